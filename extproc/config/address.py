"""Addresses: `host:port`, `[::1]:8081`, `unix:/path`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_PORT = re.compile(r"[0-9]{1,5}")
_LONGEST_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True)
class Tcp:
    """`host` is a name or an IP address, an IPv6 address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Unix:
    """A socket in the file system, by its absolute path."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = Tcp | Unix


def parse_address(text: str, *, bind: bool = False) -> Address:
    """The address in `text`; port 0 is one only to `bind` to.

    Raises ValueError, whose text tells what to write and does not repeat user information.
    """
    if "@" in text:
        raise ValueError("an address holds no user information")
    if not text.isprintable() or " " in text:
        raise ValueError("an address holds no spaces or control characters")
    if "://" in text and not text.startswith("unix:"):
        raise ValueError("write `host:port` without a scheme")
    if text.startswith("unix:"):
        return Unix(_socket_path(text.removeprefix("unix:")))
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        raise ValueError("the port is missing: write `host:port` or `unix:/path`")
    return Tcp(_host(host), _port(port, bind))


def valid_hostname(name: str) -> bool:
    """Whether `name` is a DNS name (RFC 1123, and underscores) or an IPv4 address."""
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return False
    return not labels[-1].isdecimal() or _is_ip(IPv4Address, name)


def valid_ipv6(text: str) -> bool:
    return _is_ip(IPv6Address, text)


def _is_ip(kind: type[IPv4Address] | type[IPv6Address], text: str) -> bool:
    try:
        kind(text)
    except AddressValueError:
        return False
    return True


def _socket_path(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("the path of a socket is absolute: `unix:/path`")
    if len(path.encode()) > _LONGEST_SOCKET_PATH:
        raise ValueError(f"the path of a socket has at most {_LONGEST_SOCKET_PATH} bytes")
    return path


def _host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        if valid_ipv6(host[1:-1]):
            return host[1:-1]
        raise ValueError("not an IPv6 address between the brackets")
    if ":" in host:
        raise ValueError("write an IPv6 address in brackets: `[::1]:8081`")
    if not host:
        raise ValueError("the host is missing; for every interface write `0.0.0.0:port` or `[::]:port`")
    if not valid_hostname(host.removesuffix(".")):
        raise ValueError("the host is neither a name nor an IP address")
    return host


def _port(port: str, bind: bool) -> int:
    lowest = 0 if bind else 1
    if not _PORT.fullmatch(port) or not lowest <= int(port) <= 65535:
        raise ValueError(f"the port is not a number from {lowest} to 65535")
    return int(port)
