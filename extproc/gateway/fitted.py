"""Settings of Envoy that fit a configuration: what `extproc envoy-config` prints in any format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from extproc.config.address import Tcp
from extproc.config.duration import format_duration
from extproc.config.errors import Problem, field_path, quoted
from extproc.config.model import Config
from extproc.config.origins import Origin, parse_origin
from extproc.gateway.buffers import USUAL, Buffers
from extproc.gateway.clusters import EXTPROC, UPSTREAM
from extproc.gateway.expressions import Named, named
from extproc.gateway.processor import IDENTITIES, REQUEST_ATTRIBUTES, FilterOptions
from extproc.gateway.waiting import LONGEST, MARGIN, Waiting, active_guards, longest_wait

_FRAMING = 64 * 1024
"""Bytes of a message of Envoy besides the body that it carries."""


class Unfit(Exception):
    """A configuration that no gateway fits. `str()` has one line for each problem, with the name of the field."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))


@dataclass(frozen=True, slots=True)
class Placed:
    """A provider with an address. `name` is what `routing.header` says, and what its cluster is called."""

    name: str
    address: str
    origin: Origin
    field: str


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a gateway needs to know of a configuration."""

    waiting: Waiting
    namespace: str
    attributes: tuple[str, ...]
    """Attributes that expressions name, beyond those that are always sent."""
    identities: tuple[str, ...]
    """Namespaces of dynamic metadata that are named, beyond those that are always forwarded."""
    readers: tuple[str, ...]
    """Sections for which a request may be held until all of its body is there."""
    answers: tuple[str, ...]
    """Fields that say how much of an answer is held."""
    rewriters: tuple[str, ...]
    """Fields that set headers which Envoy routes by."""
    buffers: Buffers
    routing_header: str
    hosts: tuple[str, ...]
    """To which requests are routed to providers; () for all."""
    providers: tuple[Placed, ...]
    default: Placed | None
    """Whose are the requests that name no provider, where one has an address."""
    unplaced: tuple[str, ...]
    """Fields of the providers without an address."""
    outside: tuple[Origin, ...]
    """Where the guards' models and webhooks are, which extproc asks itself."""

    @property
    def options(self) -> FilterOptions:
        """Those of `ext_proc_filter`."""
        options = FilterOptions(
            message_timeout=f"{self.waiting.message_timeout}s",
            namespace=self.namespace,
            request_attributes=(*REQUEST_ATTRIBUTES, *self.attributes),
            forwarded=(*IDENTITIES, *self.identities),
        )
        if self.rewriters:
            options["mutation_rules"] = {"allow_all_routing": True}
        return options

    def reasons(self) -> Iterator[str]:
        """Sentences that tell which fields led to which settings."""
        margin = format_duration(MARGIN)
        yield f"message_timeout {self.waiting.message_timeout}s: {self.waiting}, and {margin} for the rest."
        readers = f", for {', '.join(self.readers)}" if self.readers else ""
        yield f"Body modes NONE, and allow_mode_override: extproc asks for bodies, request by request{readers}."
        if self.buffers.request is not None:
            yield (
                f"{self.buffers.request} bytes of a request can be held (--request-buffer): a larger one that has to "
                "be seen whole is answered 413."
            )
        if self.answers:
            yield f"{self.buffers.answer} bytes of an answer can be held, for {', '.join(self.answers)}."
        if self.attributes:
            yield f"request_attributes: expressions name {', '.join(self.attributes)}."
        if self.identities:
            yield f"forwarding_namespaces: authConfigs or expressions name {', '.join(self.identities)}."
        if self.rewriters:
            yield f"mutation_rules: {', '.join(self.rewriters)} change where a request goes."


def fit(config: Config, *, request_buffer: int | None = None) -> Fitted:
    """Settings for a loaded configuration; `request_buffer`: bytes of a request that are to be held, as is usual when
    it is None. Raises Unfit.
    """
    names = named(config)
    waiting = longest_wait(config)
    providers, wrong = _providers(config)
    if problems := [*names.problems, *wrong, *_sizes(config, request_buffer or USUAL), *_times(waiting)]:
        raise Unfit(problems)
    defaults = {provider.destination for provider in config.providers if provider.default}
    chosen = [placed for placed in providers if placed.name in defaults] or providers
    readers = tuple(_readers(config, names))
    answers = dict(_answers(config))
    return Fitted(
        waiting=waiting,
        namespace=config.metadata_namespace,
        attributes=names.attributes,
        identities=tuple(sorted({*_jwt_namespaces(config), *names.namespaces} - {*IDENTITIES})),
        readers=readers,
        answers=tuple(answers),
        rewriters=tuple(_rewriters(config)),
        buffers=Buffers(
            request=request_buffer or (USUAL if readers else None), answer=max(answers.values(), default=0)
        ),
        routing_header=config.routing.header,
        hosts=() if "*" in config.routing.hosts else tuple(config.routing.hosts),
        providers=tuple(providers),
        default=next(iter(chosen), None),
        unplaced=tuple(_address_field(index) for index, each in enumerate(config.providers) if each.address is None),
        outside=tuple(_outside(config)),
    )


def _readers(config: Config, names: Named) -> list[str]:
    charges = (action_set.precharge or config.precharge for action_set in config.action_sets)
    needs = {
        **dict.fromkeys(names.reading, True),
        "authConfigs": any(auth.models is not None for auth in config.auth_configs.values()),
        "providers": bool(config.providers),
        "guards": bool(active_guards(config)),
        "promptLimits": config.prompt_limits is not None,
        "precharge": any(precharge.charge == "prompt" for precharge in charges),
        "includeUsage": config.include_usage.enabled,
    }
    return [field for field, needed in needs.items() if needed]


def _answers(config: Config) -> Iterator[tuple[str, int]]:
    for name in active_guards(config):
        answers = config.guards[name].answers
        if answers is not None:
            yield field_path(("guards", name, "answers", "maxBody")), answers.max_body


def _providers(config: Config) -> tuple[list[Placed], list[Problem]]:
    """Those of one destination have one address, as has been checked."""
    placed: dict[str, Placed] = {}
    problems: list[Problem] = []
    for index, provider in enumerate(config.providers):
        if provider.address is None:
            continue
        field = _address_field(index)
        name = provider.destination
        if name in (EXTPROC, UPSTREAM):
            naming = f"providers[{index}].{'name' if provider.cluster is None else 'cluster'}"
            problems.append(Problem(naming, f"{quoted(name)} is another cluster of Envoy's; give it a `cluster`"))
            continue
        placed.setdefault(name, Placed(name, provider.address, parse_origin(provider.address), field))
    return list(placed.values()), problems


def _address_field(index: int) -> str:
    return f"providers[{index}].address"


def _jwt_namespaces(config: Config) -> Iterator[str]:
    for auth in config.auth_configs.values():
        for source in auth.authentication.values():
            if source.jwt is not None:
                yield source.jwt.namespace


def _outside(config: Config) -> Iterator[Origin]:
    for guard in (config.guards[name] for name in active_guards(config)):
        if (model := guard.model) is not None:
            yield _origin(model.scheme, model.host, model.port)
        if guard.webhook is not None:
            url = urlsplit(guard.webhook.url)
            yield _origin(url.scheme, url.hostname or "", url.port)


def _origin(scheme: str, host: str, port: int | None) -> Origin:
    tls = scheme == "https"
    return Origin(Tcp(host.strip("[]").removesuffix("."), port or (443 if tls else 80)), tls)


def _rewriters(config: Config) -> Iterator[str]:
    for name, auth in config.auth_configs.items():
        if "host" in map(str.lower, auth.headers):
            yield field_path(("authConfigs", name, "headers"))


def _sizes(config: Config, request_buffer: int) -> Iterator[Problem]:
    if config.bodies.buffer > request_buffer:
        yield Problem(
            "bodies.buffer",
            f"{config.bodies.buffer} bytes are more than Envoy may hold of a request, {request_buffer} "
            "(--request-buffer): asked to hold so much, it would let the request hang for minutes",
        )
    if request_buffer + _FRAMING > config.bodies.message:
        yield Problem(
            "bodies.message",
            f"a request of {request_buffer} bytes (--request-buffer) does not fit into a message of "
            f"{config.bodies.message}",
        )
    for field, size in _answers(config):
        if size + _FRAMING > config.bodies.message:
            yield Problem(
                field, f"an answer of {size} bytes does not fit into `bodies.message`, {config.bodies.message}"
            )


def _times(waiting: Waiting) -> Iterator[Problem]:
    if waiting.message_timeout > LONGEST:
        longest, _ = max(waiting.parts, key=lambda part: part[1])
        message = f"with it a message may have to wait for {waiting.message_timeout} s, and Envoy waits for {LONGEST}"
        yield Problem(longest, message)
