"""Where each worker serves, and what it and its supervisor tell each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from extproc.config.address import Address, Tcp, Unix, parse_address
from extproc.config.errors import ConfigError, Problem
from extproc.config.model import Admin, Config, Listener

_ADMIN = "admin.address"
_WILDCARDS = frozenset({"0.0.0.0", "::"})
_HIGHEST_PORT = 65535
_MARGIN = 5.0
"""Seconds that a worker may take, beyond what is configured, to deliver its last reports and close what is open."""

_Place = TypeVar("_Place", Listener, Admin)


class Pipe(Protocol):
    """The descriptors of its two ends."""

    reading: int
    writing: int


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def line(self) -> bytes:
        """As it is sent: JSON and a newline."""
        return self.model_dump_json().encode() + b"\n"


class Seat(_Message):
    """What a worker is told: who it is, where it serves, where the counters are.

    `counters` is the socket of the first worker's counters, None when workers have no need to share any. `company`
    is the descriptor of a pipe: the first worker has its reading end, which is at its end when all the others are
    gone, and each of those has a writing end.
    """

    index: int
    listeners: tuple[Listener, ...]
    admin: Admin | None
    counters: str | None
    company: int

    @property
    def counts_for_all(self) -> bool:
        """Whether the counters are this worker's, and gone when it dies."""
        return self.index == 0 and self.counters is not None

    def at(self, ready: Ready) -> Seat:
        """The same seat, with the ports that a worker was given in place of 0."""
        bound = zip(self.listeners, ready.listeners, strict=True)
        listeners = tuple(listener.model_copy(update={"address": address}) for listener, address in bound)
        admin = None if self.admin is None else self.admin.model_copy(update={"address": ready.admin})
        return self.model_copy(update={"listeners": listeners, "admin": admin})


class Ready(_Message):
    """What a worker answers once it serves: its addresses, with the ports that were really bound."""

    listeners: tuple[str, ...]
    admin: str | None


class Refused(_Message):
    """What a worker answers that cannot start: why, in words for the operator."""

    problem: str


def parse_answer(line: bytes) -> Ready | Refused | None:
    """A worker's answer; None when it ended without one."""
    for kind in (Ready, Refused):
        try:
            return kind.model_validate_json(line)
        except ValidationError:
            continue
    return None


def seats(config: Config, count: int, *, counters: str | None, company: Pipe) -> list[Seat]:
    """The seats of `count` workers.

    Worker `i` serves `host:port + i` and `unix:/path-i.sock`, worker 0 what is written; port 0 stays 0.
    Raises ConfigError, naming the field, for a port that does not exist, a path that is too long, and an address that
    another listener or the admin port of any worker takes as well.
    """
    _check(config, count)
    return [
        Seat(
            index=index,
            listeners=tuple(_moved(listener, listener.address, index) for listener in config.listeners),
            admin=None if config.admin is None else _moved(config.admin, config.admin.address, index),
            counters=counters,
            company=company.writing if index else company.reading,
        )
        for index in range(count)
    ]


def shifted(address: str, index: int) -> str:
    """`address` for worker `index`. Raises ValueError when there is no such address."""
    target = parse_address(address, bind=True)
    if index == 0 or (isinstance(target, Tcp) and target.port == 0):
        return address
    if isinstance(target, Tcp):
        if target.port + index > _HIGHEST_PORT:
            raise ValueError(f"its port would be {target.port + index}, and {_HIGHEST_PORT} is the highest")
        return str(Tcp(target.host, target.port + index))
    path = PurePosixPath(target.path)
    return str(parse_address(f"unix:{path.with_name(f'{path.stem}-{index}{path.suffix}')}"))


def longest_drain(config: Config) -> float:
    """Seconds after which a worker that was asked to stop is stuck."""
    return config.shutdown.delay + config.shutdown.deadline + _MARGIN


def reachable(address: str) -> str:
    """Where a neighbour on this machine connects to; one that listens everywhere is reached by its loopback."""
    target = parse_address(address)
    if isinstance(target, Tcp) and target.host in _WILDCARDS:
        return str(Tcp("::1" if ":" in target.host else "127.0.0.1", target.port))
    return address


def _moved(place: _Place, address: str, index: int) -> _Place:
    return place.model_copy(update={"address": shifted(address, index)})


def _check(config: Config, count: int) -> None:
    taken: list[tuple[Address, str]] = []
    problems: list[Problem] = []
    for field, address, index in _places(config, count):
        try:
            target = parse_address(shifted(address, index), bind=True)
        except ValueError as error:
            problems.append(Problem(field, f"worker {index} of {count} (--workers) cannot have a place: {error}"))
            continue
        if (holder := next((name for other, name in taken if _collide(target, other)), None)) is not None:
            problems.append(Problem(field, f"`{target}`, for worker {index} of {count} (--workers), is {holder}"))
        taken.append((target, f"{field} of worker {index}"))
    if problems:
        raise ConfigError(problems)


def _places(config: Config, count: int) -> Iterator[tuple[str, str, int]]:
    """Field, address as configured, index: of the first worker first, because its addresses are as written."""
    for index in range(count):
        for number, listener in enumerate(config.listeners):
            yield f"listeners[{number}].address", listener.address, index
        if config.admin is not None:
            yield _ADMIN, config.admin.address, index


def _collide(one: Address, other: Address) -> bool:
    if isinstance(one, Unix) or isinstance(other, Unix):
        return one == other
    same_host = one.host == other.host or not _WILDCARDS.isdisjoint({one.host, other.host})
    return one.port != 0 and one.port == other.port and same_host
