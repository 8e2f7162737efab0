"""Addresses of storages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.address import Tcp, Unix
from extproc.config.errors import ConfigError
from extproc.config.fields import ClientTls
from extproc.config.model import Storage
from extproc.config.storage import RedisAddress, parse_storage

HOST = (Tcp("redis", 6379),)
GOOD = [
    ("redis://redis:6379", RedisAddress("single", HOST)),
    ("redis://redis", RedisAddress("single", HOST)),
    ("redis://redis/", RedisAddress("single", HOST)),
    ("redis://redis:6379/3", RedisAddress("single", HOST, database=3)),
    ("rediss://redis:6379", RedisAddress("single", HOST, tls=True)),
    ("redis://[::1]:7/0", RedisAddress("single", (Tcp("::1", 7),))),
    ("redis://[::1]", RedisAddress("single", (Tcp("::1", 6379),))),
    ("redis://:pw@redis", RedisAddress("single", HOST, password="pw")),
    ("redis://me:p%40%2f%25:w@redis", RedisAddress("single", HOST, username="me", password="p@/%:w")),
    ("redis://me:p@ss,word@redis", RedisAddress("single", HOST, username="me", password="p@ss,word")),
    ("redis://me:%C3%A4@redis", RedisAddress("single", HOST, username="me", password="ä")),
    ("unix:///run/redis.sock", RedisAddress("single", (Unix("/run/redis.sock"),))),
    ("unix:///run/redis.sock?db=2", RedisAddress("single", (Unix("/run/redis.sock"),), database=2)),
    ("unix:///run/a%20b@c", RedisAddress("single", (Unix("/run/a b@c"),))),
    ("unix://me:pw@/run/r", RedisAddress("single", (Unix("/run/r"),), username="me", password="pw")),
    (
        "redis+sentinel://a:1,b,[::1]:2/counters/4",
        RedisAddress("sentinel", (Tcp("a", 1), Tcp("b", 26379), Tcp("::1", 2)), "counters", 4),
    ),
    ("rediss+sentinel://:pw@a/x", RedisAddress("sentinel", (Tcp("a", 26379),), "x", tls=True, password="pw")),
    ("redis+cluster://a:1,b", RedisAddress("cluster", (Tcp("a", 1), Tcp("b", 6379)))),
    ("rediss+cluster://a:1", RedisAddress("cluster", (Tcp("a", 1),), tls=True)),
]


@pytest.mark.parametrize(("url", "address"), GOOD)
def test_understands(url: str, address: RedisAddress) -> None:
    assert parse_storage(Storage(url=url)) == address


def test_memory_is_no_address() -> None:
    assert parse_storage(Storage()) is None


BAD: list[tuple[dict[str, Any], str]] = [
    ({"url": "redis"}, "storage.url: expected `memory`, `redis://`"),
    ({"url": "http://redis:6379"}, "storage.url: expected `memory`, `redis://`"),
    ({"url": "redis+foo://redis"}, "storage.url: expected `memory`, `redis://`"),
    ({"url": "redis+://redis"}, "storage.url: expected `memory`, `redis://`"),
    ({"url": "redis://"}, "storage.url: the host is missing: expected `redis://[user:password@]host:port"),
    ({"url": "redis://a:x"}, "storage.url: the port is not a number"),
    ({"url": "redis://a:0"}, "storage.url: the port is not a number"),
    ({"url": "redis://::1:6379"}, "in brackets"),
    ({"url": "redis://a,b"}, "storage.url: expected one server"),
    ({"url": "redis://a/b"}, "storage.url: the database is a number"),
    ({"url": "redis://a/-1"}, "storage.url: the database is a number"),
    ({"url": "redis://a?db=1"}, "without `?` and `#`"),
    ({"url": "redis://a b"}, "no spaces"),
    ({"url": "redis://me@a"}, "a user without a password"),
    ({"url": "redis://me:%zz@a"}, "is written `%25`"),
    ({"url": "redis://me:%ff@a"}, "expected UTF-8"),
    ({"url": "redis+sentinel://a"}, "storage.url: the service is missing"),
    ({"url": "redis+sentinel://a,/x"}, "storage.url: the host is missing"),
    ({"url": "redis+cluster://a/1"}, "storage.url: a cluster has no databases"),
    ({"url": "unix://run/r"}, "storage.url: expected `unix://"),
    ({"url": "unix:///run/r?password=x"}, "storage.url: expected `unix://"),
    ({"url": "unix:///" + "x" * 107}, "at most 107 bytes"),
    ({"url": "redis://a", "prefix": ""}, "storage.prefix: expected 1 to 64 letters"),
    ({"url": "redis://a", "prefix": "a{b}"}, "storage.prefix: expected 1 to 64 letters"),
    ({"url": "redis://a", "tls": ClientTls()}, "storage.tls: belongs to `rediss://`"),
    ({"url": "rediss://a", "tls": ClientTls(cert="x")}, "storage.tls: expected both or neither"),
    ({"url": "redis://:pw@a", "password_file": "x"}, "storage.passwordFile: `url` holds a password already"),
    ({"password_file": "x"}, "storage.passwordFile: belongs to a Redis"),
    ({"tls": ClientTls()}, "storage.tls: belongs to a Redis"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_says_what_is_expected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_storage(Storage(**fields))
    assert message in str(caught.value)


def test_a_user_may_have_the_password_in_a_file(tmp_path: Path) -> None:
    address = parse_storage(Storage(url="redis://me@redis", password_file=str(tmp_path / "x")))
    assert address == RedisAddress("single", HOST, username="me")


SECRETS = [
    "redis://admin:hunter2@redis:x",
    "redis://admin:hunter2@",
    "redis://admin:hunter2@a/hunter2",
    "redis://admin:hun/ter2@a",
    "redis://admin:hunter2?@a",
    "redis://admin:hunter2 @a",
    "redis://admin:hunter2%zz@a",
    "redis://admin:hunter2@a,b",
    "http://admin:hunter2@a",
    "admin:hunter2@a",
    "unix://admin:hunter2@run",
    "unix:///run?password=hunter2",
    "redis+sentinel://admin:hunter2@a",
    "redis+cluster://admin:hunter2@a/1",
]


@pytest.mark.parametrize("url", SECRETS)
def test_an_error_never_repeats_a_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_storage(Storage(url=url))
    assert "hun" not in str(caught.value)
    assert "admin" not in str(caught.value)


def test_neither_does_an_address_that_is_shown() -> None:
    address = parse_storage(Storage(url="redis+sentinel://admin:hunter2@a:1,b:2/counters"))
    assert str(address) == "counters of a:1,b:2"
    assert "hunter2" not in repr(address)
    assert "admin" not in repr(address)


@given(st.text(max_size=60), st.sampled_from(["", "redis://", "unix://", "redis+sentinel://", "rediss+cluster://"]))
def test_any_text_is_an_address_or_an_error_of_the_storage(text: str, scheme: str) -> None:
    try:
        parse_storage(Storage(url=scheme + text))
    except ConfigError as error:
        paths = {problem.path for problem in error.problems}
    else:
        paths = {"storage.url"}
    assert paths == {"storage.url"}
