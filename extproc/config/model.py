"""What an operator writes, field by field.

`services`, `actionSets`, `requestData` and `observability` are wasm-shim's plugin configuration, unchanged.
Everything else is ours. Durations are written `20ms`, `1.5s`, `1h30m` and read as seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel

from extproc.config.duration import parse_duration

Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+(\.\d+)?(h|m|s|ms|us|ns))+$"}),
]
ServiceType = Literal["auth", "ratelimit", "ratelimit-check", "ratelimit-report"]
FailureMode = Literal["deny", "allow"]
Size = Annotated[int, Field(gt=0)]


class Model(BaseModel):
    """Immutable; unknown fields are errors, because a misspelt limit is no limit."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, alias_generator=to_camel, populate_by_name=True
    )


class Service(Model):
    """A policy service that actions call."""

    type: ServiceType
    endpoint: str = Field(description="A name from `endpoints`; in wasm-shim the name of an Envoy cluster.")
    failure_mode: FailureMode = Field(default="deny", description="What happens when no decision is reached.")
    timeout: Annotated[Duration, Field(gt=0)] = Field(default=0.02, description="Deadline of one call.")


class KeyValue(Model):
    """A key and its literal value, or the CEL expression that gives it."""

    key: str
    value: str


class Data(Model):
    """One descriptor entry: exactly one of `static` and `expression`."""

    static: KeyValue | None = None
    expression: KeyValue | None = Field(default=None, description="`value` is a CEL expression.")

    @model_validator(mode="after")
    def exactly_one(self) -> Data:
        if (self.static is None) == (self.expression is None):
            raise ValueError("expected exactly one of `static`, `expression`")
        return self

    @property
    def item(self) -> KeyValue:
        found = self.static or self.expression
        assert found is not None
        return found


class ConditionalData(Model):
    """Entries that count when every predicate holds."""

    predicates: list[str] = Field(default_factory=list, description="CEL expressions, all must be true.")
    data: list[Data] = Field(default_factory=list)


class Action(Model):
    """One call to a service."""

    service: str = Field(description="A name from `services`.")
    scope: str = Field(description="The domain of the call, unless `ratelimit.domain` is among the data.")
    predicates: list[str] = Field(default_factory=list)
    conditional_data: list[ConditionalData] = Field(default_factory=list)
    sources: list[str] = Field(default_factory=list, description="Where the action comes from; only shown.")


class RouteRuleConditions(Model):
    """Which requests an action set is for."""

    hostnames: Annotated[list[str], Field(min_length=1)]
    predicates: list[str] = Field(default_factory=list)


class DenyWith(Model):
    """The answer to a request over its limit."""

    status: Annotated[int, Field(ge=400, le=599)] = 429
    headers: dict[str, str] = Field(default_factory=lambda: {"x-envoy-ratelimited": "true"})
    body: str = "Too Many Requests\n"


class Fixed(Model):
    """A fixed charge."""

    fixed: Annotated[int, Field(ge=0, lt=2**32)]


OnMissingUsage = Literal["estimate", "skip"] | Fixed


class ActionSet(Model):
    """The first action set whose predicates hold, of the most specific host, runs its actions in order."""

    name: str
    route_rule_conditions: RouteRuleConditions
    actions: list[Action]
    deny_with: DenyWith | None = Field(default=None, description="Overrides the top level `denyWith`.")


class Tracing(Model):
    """Accepted from wasm-shim; spans are not exported."""

    service: str


class Observability(Model):
    """wasm-shim's section; `httpHeaderIdentifier` is honoured, the rest is accepted."""

    http_header_identifier: str | None = Field(
        default=None, description="A response header that carries the request id."
    )
    default_level: Literal["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "OFF"] = "WARN"
    tracing: Tracing | None = None


class ClientTls(Model):
    """TLS towards a limiter. Files hold PEM."""

    ca: str | None = Field(default=None, description="Trusted roots; the system's when absent.")
    cert: str | None = None
    key: str | None = None
    server_name: str | None = Field(default=None, description="Expected name in the server's certificate.")


class Endpoint(Model):
    """Where a service lives: `host:port`, `unix:/path` or `embedded`."""

    address: str
    tls: ClientTls | None = None


class ServerTls(Model):
    """TLS of a listener. Files hold PEM; `clientCa` demands a client certificate (mTLS)."""

    cert: str
    key: str
    client_ca: str | None = None


class Listener(Model):
    """Where Envoy reaches us: `host:port` or `unix:/path`."""

    address: str
    tls: ServerTls | None = None


class Admin(Model):
    """Health, metrics and the active configuration over HTTP. No authentication: bind it to a private address."""

    address: str = "127.0.0.1:9090"


class Limit(Model):
    """One limit as in Limitador's limits file."""

    namespace: str
    max_value: Annotated[int, Field(ge=0, lt=2**64)] = Field(alias="max_value")
    seconds: Annotated[int, Field(gt=0, lt=2**63)]
    id: str | None = None
    name: str | None = None
    conditions: list[str] = Field(default_factory=list, description="CEL over `descriptors`, all must be true.")
    variables: list[str] = Field(default_factory=list, description="CEL; one counter per distinct value.")


class Report(Model):
    """How usage is reported after the answer."""

    wait: Annotated[Duration, Field(ge=0)] = Field(
        default=0.1, description="How long the last reply may be held until the report is answered."
    )
    queue: Annotated[int, Field(gt=0)] = Field(default=10_000, description="Reports under way at most.")
    retry_for: Annotated[Duration, Field(ge=0)] = Field(
        default=30.0, description="How long a report is retried while the limiter cannot be reached."
    )


class Bodies(Model):
    """How much of a body is ever held, in bytes."""

    json_buffer: Size = Field(default=64 * 1024, description="JSON up to this size is parsed whole.")
    sse_event: Size = Field(default=1024 * 1024, description="Larger server-sent events are not read.")
    decoded: Size = Field(
        default=256 * 1024 * 1024, description="A compressed answer is read up to this decoded size."
    )
    request: Size = Field(default=1024 * 1024, description="Larger request bodies are not read.")


class Shutdown(Model):
    """What SIGTERM does: not ready, `delay`, GOAWAY, and at most `deadline` for running exchanges."""

    delay: Annotated[Duration, Field(ge=0)] = 5.0
    deadline: Annotated[Duration, Field(ge=0)] = 30.0


class Log(Model):
    """Lines on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`auto`: console on a terminal, otherwise json."
    )


class Config(Model):
    """A whole configuration file."""

    services: dict[str, Service]
    action_sets: list[ActionSet]
    request_data: dict[str, str] = Field(default_factory=dict, description="Key -> CEL expression.")
    observability: Observability = Observability()
    descriptor_service: str | None = Field(default=None, description="Accepted from wasm-shim, not used.")

    endpoints: dict[str, Endpoint] = Field(default_factory=dict)
    limits: str | list[Limit] = Field(
        default_factory=list, description="The embedded limiter's limits, or the path of a limits file."
    )
    listeners: Annotated[list[Listener], Field(min_length=1)] = Field(
        default_factory=lambda: [Listener(address="127.0.0.1:50051")]
    )
    admin: Admin | None = Admin()
    report: Report = Report()
    bodies: Bodies = Bodies()
    on_missing_usage: OnMissingUsage = Field(
        default="estimate", description="What a 2xx answer without usage is charged."
    )
    charge_errors: bool = Field(default=False, description="Report answers with status 400 and above too.")
    strip_accept_encoding: bool = Field(
        default=True, description="Ask models for uncompressed answers where usage is read."
    )
    deny_with: DenyWith = DenyWith()
    shutdown: Shutdown = Shutdown()
    log: Log = Log()

    @model_validator(mode="before")
    @classmethod
    def short_forms(cls, data: Any) -> Any:
        """`endpoints: {limitador: embedded}` and `listeners: [host:port]` mean objects with that address."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        endpoints, listeners = data.get("endpoints"), data.get("listeners")
        if isinstance(endpoints, dict):
            data["endpoints"] = {name: _addressed(value) for name, value in endpoints.items()}
        if isinstance(listeners, list):
            data["listeners"] = [_addressed(value) for value in listeners]
        return data


def _addressed(value: Any) -> Any:
    return {"address": value} if isinstance(value, str) else value
