from __future__ import annotations

import pytest

from extproc.config.address import Address, Tcp, Unix, parse_address, valid_hostname


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("limitador:8081", Tcp("limitador", 8081)),
        ("my_service.ns.svc.cluster.local.:1", Tcp("my_service.ns.svc.cluster.local.", 1)),
        ("127.0.0.1:65535", Tcp("127.0.0.1", 65535)),
        ("[::1]:8081", Tcp("::1", 8081)),
        ("unix:/run/limitador.sock", Unix("/run/limitador.sock")),
    ],
)
def test_reads_addresses_and_writes_them_back(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limitador", "port is missing"),
        ("", "port is missing"),
        ("[::1]", "port is missing"),
        ("limitador:", "not a number from 1 to 65535"),
        ("limitador:0", "not a number from 1 to 65535"),
        ("limitador:65536", "not a number from 1 to 65535"),
        ("limitador:http", "not a number"),
        ("limitador:٣", "not a number"),
        ("limitador:" + "9" * 5000, "not a number"),
        (":8081", "host is missing"),
        ("::1:8081", "in brackets"),
        ("[nonsense]:8081", "not an IPv6 address"),
        ("http://limitador:8081", "without a scheme"),
        ("a b:1", "no spaces"),
        ("a\r\nb:1", "no spaces"),
        ("-a:1", "neither a name nor"),
        ("300.1.1.1:1", "neither a name nor"),
        ("a..b:1", "neither a name nor"),
        ("unix:run/x", "absolute"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
    ],
)
def test_says_what_is_wrong_with_an_address(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_address(text)


def test_user_information_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="user information") as caught:
        parse_address("admin:hunter2@redis:6379")
    assert "hunter2" not in str(caught.value)


def test_port_zero_can_be_listened_on() -> None:
    assert parse_address("127.0.0.1:0", bind=True) == Tcp("127.0.0.1", 0)


@pytest.mark.parametrize("name", ["a" * 63 + ".example", "1a.b", "10.0.0.1", "x_y.z"])
def test_hostnames(name: str) -> None:
    assert valid_hostname(name)


@pytest.mark.parametrize("name", ["", ".", "a.", "a" * 64, "a-", "1.2.3", "a.1", ".".join(["abcdefg"] * 32)])
def test_no_hostnames(name: str) -> None:
    assert not valid_hostname(name)
