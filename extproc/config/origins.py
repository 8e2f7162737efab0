"""Where a provider or a model is, as an operator writes it: `https://host[:port]`, `http://...`, or a bare address."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from extproc.config.address import Address, Tcp, Unix, parse_address

_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Origin:
    """`authority`: what requests to it say in `Host`; None leaves what the client said."""

    address: Address
    tls: bool = False
    authority: str | None = None


def parse_origin(text: str) -> Origin:
    """The origin in `text`; a bare address is one of plain HTTP that takes any `Host`.

    Raises ValueError, whose text tells what to write and does not repeat user information.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "unix":
        return Origin(parse_address(text))
    default = _DEFAULT_PORTS.get(scheme.lower())
    if default is None:
        raise ValueError("the scheme is neither `https` nor `http`")
    authority = rest.removesuffix("/")
    if any(mark in authority for mark in "/?#"):
        raise ValueError("write `https://host[:port]` without a path: that of a request stays as it is")
    address = parse_address(authority if _has_port(authority) else f"{authority}:{default}")
    if isinstance(address, Unix):
        raise ValueError("write `unix:/path` without a scheme")
    return Origin(address, scheme.lower() == "https", _authority(address, default))


def is_name(address: Address) -> bool:
    """Whether DNS has to be asked where it is."""
    if isinstance(address, Unix):
        return False
    try:
        ip_address(address.host)
    except ValueError:
        return True
    return False


def _has_port(authority: str) -> bool:
    return ":" in authority.rpartition("]")[2]


def _authority(address: Tcp, default: int) -> str:
    return str(address).removesuffix(f":{default}") if address.port == default else str(address)
