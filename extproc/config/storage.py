"""The address of a storage: `redis://user:password@host:6379/0` and its relatives."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, NoReturn
from urllib.parse import parse_qsl, unquote

from extproc.config.address import Address, Tcp, Unix, parse_address
from extproc.config.errors import ConfigError, Problem
from extproc.config.model import Storage

Kind = Literal["single", "sentinel", "cluster"]

REDIS_PORT = 6379
SENTINEL_PORT = 26379
_KINDS: dict[str, Kind] = {"": "single", "sentinel": "sentinel", "cluster": "cluster"}
_SCHEMES = "`memory`, `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`"
_FORMS: dict[Kind, str] = {
    "single": "`redis://[user:password@]host:port[/database]`",
    "sentinel": "`redis+sentinel://[user:password@]host:port,host:port/service[/database]`",
    "cluster": "`redis+cluster://[user:password@]host:port,host:port`",
}
_UNIX = "`unix://[user:password@]/path[?db=0]`"
_LONGEST_SOCKET_PATH = 107
_PREFIX = re.compile(r"[A-Za-z0-9._:/-]{1,64}")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where counters are kept.

    `nodes` are the server itself, the Sentinels that know the master of `service`, or some nodes of a cluster.
    `username` and `password` are "" where there are none; they belong to the servers that hold counters, and are
    told to a Sentinel that asks for them.
    """

    kind: Kind
    nodes: tuple[Address, ...]
    service: str = ""
    database: int = 0
    tls: bool = False
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        """For logs: no user, no password."""
        nodes = ",".join(map(str, self.nodes))
        return f"{self.service} of {nodes}" if self.service else nodes


def parse_storage(storage: Storage) -> RedisAddress | None:
    """Where `storage` is; None for the memory of this process.

    Raises ConfigError. Its text says what is expected and repeats nothing of an address that may hold a password.
    """
    if storage.in_memory:
        _only_for_redis(storage)
        return None
    if not _PREFIX.fullmatch(storage.prefix):
        _fail("prefix", "expected 1 to 64 letters, digits and `._:/-`")
    try:
        address = _parse(storage.url)
    except ValueError as error:
        _fail("url", str(error))
    _check(storage, address)
    return address


def _only_for_redis(storage: Storage) -> None:
    for name, value in (("passwordFile", storage.password_file), ("tls", storage.tls)):
        if value is not None:
            _fail(name, "belongs to a Redis; `url` is `memory`")


def _check(storage: Storage, address: RedisAddress) -> None:
    if storage.tls is not None:
        if not address.tls:
            _fail("tls", "belongs to `rediss://`; the address is without TLS")
        if (storage.tls.cert is None) != (storage.tls.key is None):
            _fail("tls", "expected both or neither of `cert` and `key`")
    if storage.password_file is not None and address.password:
        _fail("passwordFile", "`url` holds a password already; expected one of the two")
    if address.username and not address.password and storage.password_file is None:
        _fail("url", "a user without a password: write `user:password@`, or the password into `passwordFile`")


def _parse(url: str) -> RedisAddress:
    if not url.isprintable() or " " in url:
        raise ValueError("an address holds no spaces or control characters; write them percent-encoded")
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ValueError(f"expected {_SCHEMES}")
    if scheme == "unix":
        return _parse_unix(rest)
    transport, _, kind_name = scheme.partition("+")
    kind = _KINDS.get(kind_name)
    if transport not in ("redis", "rediss") or kind is None or scheme.endswith("+"):
        raise ValueError(f"expected {_SCHEMES}")
    if "?" in rest or "#" in rest:
        raise ValueError(f"expected {_FORMS[kind]} without `?` and `#`; in a password they are `%3F` and `%23`")
    authority, _, path = rest.partition("/")
    userinfo, at, hosts = authority.rpartition("@")
    username, password = _user(userinfo) if at else ("", "")
    service, database = _path(path, kind)
    return RedisAddress(
        kind, _nodes(hosts, kind), service, database, tls=transport == "rediss", username=username, password=password
    )


def _parse_unix(rest: str) -> RedisAddress:
    place, _, query = rest.partition("?")
    userinfo, at, path = ("", "", place) if place.startswith("/") else place.rpartition("@")
    username, password = _user(userinfo) if at else ("", "")
    options = dict(parse_qsl(query, keep_blank_values=True))
    database = options.pop("db", "0")
    if options or not path.startswith("/"):
        raise ValueError(f"expected {_UNIX}")
    path = _decoded(path)
    if "\0" in path or len(path.encode()) > _LONGEST_SOCKET_PATH:
        raise ValueError(f"the path of a socket has at most {_LONGEST_SOCKET_PATH} bytes, and no zero byte")
    return RedisAddress("single", (Unix(path),), database=_database(database), username=username, password=password)


def _user(userinfo: str) -> tuple[str, str]:
    username, _, password = userinfo.partition(":")
    return _decoded(username), _decoded(password)


def _decoded(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ValueError("a `%` of a name, a password or a path is written `%25`")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("expected UTF-8 where bytes are percent-encoded") from None


def _nodes(hosts: str, kind: Kind) -> tuple[Address, ...]:
    nodes = hosts.split(",")
    if kind == "single" and len(nodes) > 1:
        raise ValueError(
            f"expected one server, {_FORMS['single']}; for several write `redis+sentinel://` or `redis+cluster://`"
        )
    return tuple(_node(node, kind) for node in nodes)


def _node(text: str, kind: Kind) -> Address:
    if not text:
        raise ValueError(f"the host is missing: expected {_FORMS[kind]}")
    if ":" not in text.rpartition("]")[2]:
        text += f":{SENTINEL_PORT if kind == 'sentinel' else REDIS_PORT}"
    try:
        node = parse_address(text)
    except ValueError as error:
        raise ValueError(f"{error}: expected {_FORMS[kind]}") from None
    if not isinstance(node, Tcp):
        raise ValueError(f"expected {_FORMS[kind]}")
    return node


def _path(path: str, kind: Kind) -> tuple[str, int]:
    """Service and database."""
    if kind != "sentinel":
        if kind == "cluster" and path:
            raise ValueError(f"a cluster has no databases: expected {_FORMS[kind]}")
        return "", _database(path or "0")
    service, _, database = path.partition("/")
    if not service:
        raise ValueError(f"the service is missing: expected {_FORMS[kind]}")
    return _decoded(service), _database(database or "0")


def _database(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise ValueError("the database is a number, as in `redis://host:6379/0`; a `/` in a password is `%2F`")
    return int(text)


def _fail(name: str, message: str) -> NoReturn:
    raise ConfigError([Problem.at(("storage", name), message)])
