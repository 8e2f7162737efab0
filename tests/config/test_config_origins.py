"""Addresses of providers as operators write them."""

from __future__ import annotations

import pytest

from extproc.config.origins import Origin, is_name, parse_origin


@pytest.mark.parametrize(
    ("text", "address", "tls", "authority"),
    [
        ("https://api.openai.com", "api.openai.com:443", True, "api.openai.com"),
        ("https://api.openai.com/", "api.openai.com:443", True, "api.openai.com"),
        ("HTTPS://api.openai.com:8443", "api.openai.com:8443", True, "api.openai.com:8443"),
        ("http://ollama", "ollama:80", False, "ollama"),
        ("http://ollama:80", "ollama:80", False, "ollama"),
        ("http://10.0.0.1:11434", "10.0.0.1:11434", False, "10.0.0.1:11434"),
        ("https://[::1]", "[::1]:443", True, "[::1]"),
        ("http://[::1]:8080", "[::1]:8080", False, "[::1]:8080"),
        ("model:80", "model:80", False, None),
        ("unix:/run/model.sock", "unix:/run/model.sock", False, None),
    ],
)
def test_what_is_written_is_understood(text: str, address: str, tls: bool, authority: str | None) -> None:
    origin = parse_origin(text)
    assert (str(origin.address), origin.tls, origin.authority) == (address, tls, authority)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("api.openai.com", "the port is missing"),
        ("ftp://model", "neither `https` nor `http`"),
        ("https://", "the host is missing"),
        ("https://api.openai.com/v1", "without a path"),
        ("https://api.openai.com?key=s3cret", "without a path"),
        ("https://api.openai.com:0", "the port is not a number"),
        ("https://user:s3cret@api.openai.com", "no user information"),
        ("https://unix:/run/model.sock", "without a path"),
        ("https://a b", "no spaces"),
        ("https://[::1", "IPv6"),
    ],
)
def test_what_cannot_be_understood_is_refused_without_its_secrets(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        parse_origin(text)
    assert "s3cret" not in str(raised.value)


def test_names_are_told_from_addresses() -> None:
    texts = ("https://a.example", "https://10.0.0.1", "https://[::1]", "unix:/a")
    assert [is_name(parse_origin(text).address) for text in texts] == [True, False, False, False]


def test_a_bare_address_leaves_the_host_of_requests_alone() -> None:
    assert parse_origin("a:1") == Origin(parse_origin("http://a:1").address)
