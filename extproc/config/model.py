"""What an operator writes, field by field.

`services`, `actionSets`, `requestData` and `observability` are wasm-shim's plugin configuration, unchanged.
Everything else is ours. Durations are written `20ms`, `1.5s`, `1h30m` and read as seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, Tag, model_validator

from extproc.config.fields import (
    Addressed,
    ClientTls,
    DialectName,
    Duration,
    FilePath,
    Hostname,
    InShort,
    Model,
    Namespace,
    PathEnding,
    PemFile,
    Size,
    arm,
)
from extproc.config.guards import Guard
from extproc.config.prompts import Algorithm, Precharge, PromptLimits
from extproc.config.providers import Provider, Routing

PriceOf = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
ServiceType = Literal["auth", "ratelimit", "ratelimit-check", "ratelimit-report"]
FailureMode = Literal["deny", "allow"]
CalendarUnit = Literal["minute", "hour", "day", "week", "month"]
DenyProfile = Literal["kuadrant", "gloo", "openai", "anthropic"]


class Service(Model):
    """A policy service that actions call."""

    type: ServiceType = Field(
        description="`ratelimit-check` asks, `ratelimit-report` counts, `ratelimit` does both at once."
    )
    endpoint: str = Field(description="A name from `endpoints`; in wasm-shim the name of an Envoy cluster.")
    failure_mode: FailureMode = Field(default="deny", description="What happens when no decision is reached.")
    timeout: Annotated[Duration, Field(gt=0)] = Field(default=0.02, description="Deadline of one call.")


class KeyValue(Model):
    """A key and its literal value, or the CEL expression that gives it."""

    key: str = Field(
        description="Key of the entry; `ratelimit.domain` and `ratelimit.hits_addend` set the call's own fields."
    )
    value: str


class Data(Model):
    """One descriptor entry: exactly one of `static` and `expression`."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"type": "object"}}} for name in ("static", "expression")
            ]
        }
    )

    static: KeyValue | None = Field(default=None, description="`value` is taken literally.")
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
    predicates: list[str] = Field(default_factory=list, description="CEL expressions, all must be true.")
    conditional_data: list[ConditionalData] = Field(
        default_factory=list, description="The entries of every block that counts make one descriptor."
    )
    sources: list[str] = Field(default_factory=list, description="Where the action comes from; only shown.")


class RouteRuleConditions(Model):
    """Which requests an action set is for."""

    hostnames: Annotated[list[Hostname], Field(min_length=1)] = Field(
        description="`*`, `*.suffix` or an exact host, without a port; case does not matter."
    )
    predicates: list[str] = Field(default_factory=list, description="CEL expressions, all must be true.")


class DenyWith(InShort):
    """The answer to a request over its limit; the bare profile may be written."""

    in_short = "profile"
    choices = get_args(DenyProfile)
    profile: DenyProfile = Field(
        default="kuadrant",
        description="`kuadrant`: a line of text; `gloo`: no body; `openai`, `anthropic`: JSON as their APIs answer.",
    )
    status: Annotated[int, Field(ge=400, le=599)] = 429
    headers: dict[str, str] = Field(
        default_factory=lambda: {"x-envoy-ratelimited": "true"},
        description="`x-envoy-ratelimited: true` unless given; what is given replaces it.",
    )
    body: str | None = Field(default=None, description="In place of the profile's.")


class Fixed(Model):
    """A fixed charge."""

    fixed: Annotated[int, Field(ge=0, lt=2**32)] = Field(description="Tokens.")


OnMissingUsage = Annotated[
    Annotated[Literal["estimate", "skip"], Tag("word")] | Annotated[Fixed, Tag("fixed")],
    arm(word=str, fixed=(dict, Fixed)),
]


class ActionSet(Model):
    """The first action set whose predicates hold, of the most specific host, runs its actions in order."""

    name: str
    route_rule_conditions: RouteRuleConditions
    actions: list[Action]
    deny_with: DenyWith | None = Field(default=None, description="Overrides the top level `denyWith`.")
    on_no_limit: FailureMode | None = Field(default=None, description="Overrides the top level `onNoLimit`.")
    dialect: DialectName | None = Field(default=None, description="Overrides the top level `dialect`.")
    precharge: Precharge | None = Field(default=None, description="Overrides the top level `precharge`.")
    guards: list[str] = Field(default_factory=list, description="Names from `guards`, besides those of the host.")
    routed: bool = Field(default=True, description="Whether `providers` and `promptLimits` are for these requests.")


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


class Endpoint(Addressed):
    """Where a service lives."""

    address: str = Field(description="`host:port`, `unix:/path`, or `embedded` for the limiter in this process.")
    tls: ClientTls | None = None

    @property
    def embedded(self) -> bool:
        return self.address == "embedded"


def _with_embedded(endpoints: dict[str, Endpoint]) -> dict[str, Endpoint]:
    return {"embedded": Endpoint(address="embedded"), **endpoints}


class ServerTls(Model):
    """TLS of a listener. Files hold PEM."""

    cert: PemFile
    key: PemFile
    client_ca: PemFile | None = Field(default=None, description="Demands a client certificate of this CA (mTLS).")


class Listener(Addressed):
    """Where Envoy reaches us."""

    address: str = Field(description="`host:port` or `unix:/path`; port 0 takes any free one.")
    tls: ServerTls | None = None


class Admin(Model):
    """Health, metrics and the active configuration over HTTP. No authentication: bind it to a private address."""

    address: str = Field(default="127.0.0.1:9090", description="`host:port`; port 0 takes any free one.")


class Limit(Model):
    """One limit as in Limitador's limits file; `calendar` and `time_zone` are ours."""

    namespace: str = Field(description="The domain of the calls it applies to.")
    max_value: Annotated[int, Field(ge=0, lt=2**64)] = Field(alias="max_value", description="Hits in a window.")
    seconds: Annotated[int, Field(gt=0, lt=2**63)] | None = Field(
        default=None, description="Length of a window, which begins with its first hit."
    )
    calendar: CalendarUnit | None = Field(
        default=None, description="In place of `seconds`: windows of the calendar; a week begins on Monday."
    )
    time_zone: str = Field(
        default="UTC", alias="time_zone", description="Of `calendar`: a name of the IANA database, as `Europe/Berlin`."
    )
    id: str | None = None
    name: str | None = None
    algorithm: Algorithm = Field(
        default="fixed",
        description="`gcra`: no windows, but a bucket of `max_value` that fills steadily within `seconds`.",
    )
    conditions: list[str] = Field(default_factory=list, description="CEL over `descriptors`, all must be true.")
    variables: list[str] = Field(default_factory=list, description="CEL; one counter per distinct value.")

    @model_validator(mode="after")
    def one_window(self) -> Limit:
        if (self.seconds is None) == (self.calendar is None):
            raise ValueError("expected exactly one of `seconds`, `calendar`")
        if self.time_zone != "UTC" and self.calendar is None:
            raise ValueError("`time_zone` belongs to `calendar`")
        if self.algorithm == "gcra" and self.seconds is None:
            raise ValueError("`algorithm: gcra` needs `seconds`")
        return self


class Storage(InShort):
    """Where the embedded limiter keeps its counters; the bare address may be written."""

    in_short = "url"
    url: str = Field(
        default="memory",
        description="`memory`, `redis://[user:password@]host:port[/db]`, `rediss://...` (TLS), `unix:///path`, "
        "`redis+sentinel://host:port,host:port/service[/db]` or `redis+cluster://host:port,host:port`; each also as "
        "`rediss+...`.",
    )
    password_file: FilePath | None = Field(
        default=None, description="Holds the password, in place of one in `url`; relative to this file."
    )
    tls: ClientTls | None = Field(default=None, description="Certificates for `rediss`.")
    prefix: str = Field(default="extproc", description="What every key in Redis begins with.")

    @property
    def in_memory(self) -> bool:
        return self.url == "memory"


class Denial(Model):
    """The answer to a request without, or with the wrong, identity."""

    status: Annotated[int, Field(ge=400, le=599)] | None = Field(default=None, description="401, or 403.")
    headers: dict[str, str] = Field(default_factory=dict, description="Besides the usual ones.")
    body: str | None = Field(default=None, description="That of the `denyWith` profile when absent.")


class Credentials(Model):
    """Where a request carries an API key."""

    header: str = "authorization"
    prefix: str | None = Field(
        default=None,
        description="Before the key and a space, as `APIKEY`; by default `Bearer` in `authorization`, else nothing.",
    )

    @property
    def scheme(self) -> str:
        """What stands before a key, "" where nothing does."""
        if self.prefix is None:
            return "Bearer" if self.header.lower() == "authorization" else ""
        return self.prefix


class Selector(Model):
    """Chooses Kubernetes Secrets by their labels."""

    match_labels: dict[str, str] = Field(default_factory=dict)


class ApiKeys(Model):
    """API keys from files: ours, or Kubernetes Secret documents."""

    files: Annotated[list[FilePath], Field(min_length=1)] = Field(
        description="Files or folders, relative to this file."
    )
    selector: Selector = Selector()
    namespace: str | None = Field(default=None, description="Only Secrets of this namespace; all when absent.")


class Jwt(Model):
    """Claims of a token that Envoy's `jwt_authn` has verified."""

    namespace: str = Field(default="envoy.filters.http.jwt_authn", description="Of the dynamic metadata.")
    payload: str = Field(default="principal", description="`payload_in_metadata` of the provider.")
    issuer: str | None = Field(default=None, description="The claim `iss` must be this.")
    require_expiration: bool = Field(default=False, description="Tokens without the claim `exp` are refused.")


class Source(Model):
    """One way to say who one is: exactly one of `apiKeys`, `jwt`."""

    api_keys: ApiKeys | None = None
    jwt: Jwt | None = None
    credentials: Credentials = Field(default=Credentials(), description="Of `apiKeys`.")

    @model_validator(mode="after")
    def exactly_one(self) -> Source:
        if (self.api_keys is None) == (self.jwt is None):
            raise ValueError("expected exactly one of `apiKeys`, `jwt`")
        return self


class AuthConfig(Model):
    """Who may call: the embedded counterpart of an Authorino AuthConfig."""

    authentication: Annotated[dict[str, Source], Field(min_length=1)] = Field(
        description="By name; the first source that knows the caller counts."
    )
    authorization: list[str] = Field(
        default_factory=list,
        description="CEL over `auth.identity` (a Secret, an entry of a keys file, or claims) and `request`; all must "
        "be true, or the answer is 403.",
    )
    filters: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="What expressions see as `auth`: property -> CEL by name, as `identity: {userid: ...}`. Without "
        "any, `auth.identity` is what was found.",
    )
    user: str = Field(default="userid", description="The property of `auth.identity` that tells users apart.")
    on_missing_user: Literal["allow", "deny", "address", "shared"] = Field(
        default="deny",
        description="A caller without it: refused (403); told apart by address; one user, `anonymous`, together. "
        "`allow` leaves it missing.",
    )
    models: str | None = Field(
        default=None, description="CEL that gives the list of models the caller may ask for; another is a 403."
    )
    headers: dict[str, str] = Field(
        default_factory=dict, description="Header -> CEL: set on the request to the model, whatever the client sent."
    )
    remove_headers: list[str] = Field(
        default_factory=lambda: ["x-maas-*", "x-extproc-*"],
        description="Never believed and never passed on when a client sends them; `*` at the end stands for anything.",
    )
    forward_credentials: bool = Field(default=False, description="Leave the API key in the request to the model.")
    unauthenticated: Denial = Denial()
    unauthorized: Denial = Denial()


class MetricLabels(Model):
    """Numbers per user."""

    labels: dict[str, list[str]] = Field(
        default_factory=lambda: {
            "user": ["auth.identity.userid", "auth.identity.username", "auth.identity.sub"],
            "group": ["auth.identity.groups", "auth.identity.group", "auth.identity.tier"],
        },
        description="Label -> CEL expressions over the request; the first that has a value counts.",
    )
    series: Annotated[int, Field(gt=0, le=100_000)] = Field(
        default=2000, description="Distinct values of all labels together; others are counted as `(other)`."
    )
    families: list[Literal["maas", "gloo"]] = Field(
        default_factory=list,
        description="Also under the names of Models-as-a-Service (`token_usage_with_user_and_group`) or of Gloo "
        "(`ai_prompt_tokens_total`).",
    )


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
    decoded: Size = Field(default=256 * 1024 * 1024, description="A compressed answer is read up to this decoded size.")
    text: Size = Field(default=256 * 1024, description="Generated text kept of an answer, for an estimate.")
    buffer: Size = Field(
        default=16 * 1024,
        description="What Envoy surely buffers of a request, whatever its mode: edited requests up to it keep a "
        "content-length. Must not exceed Envoy's `per_connection_buffer_limit_bytes`.",
    )
    message: Annotated[int, Field(gt=0, lt=2**31)] = Field(
        default=64 * 1024 * 1024, description="Largest message from Envoy; a request body that is read must fit."
    )


class Price(Model):
    """What tokens of a model cost, in any currency per million tokens."""

    input: PriceOf = Field(description="Prompt tokens.")
    output: PriceOf = Field(description="Completion tokens, reasoning included.")
    cached: PriceOf | None = Field(default=None, description="Prompt tokens read from a cache; `input` when absent.")
    cache_write: PriceOf | None = Field(
        default=None, description="Prompt tokens written to a cache; `input` when absent."
    )


class Estimates(Model):
    """How tokens are counted that no model reported."""

    vocabulary: FilePath | None = Field(
        default=None,
        description="A folder that `extproc vocab` filled, relative to this file; TIKTOKEN_CACHE_DIR when absent. "
        "Without one, estimates go by the size of the text.",
    )
    encoding: str = Field(default="o200k_base", description="For models that tiktoken does not know.")
    prompt: Literal["size", "text"] = Field(
        default="size",
        description="`size`: a prompt is estimated by its length in bytes, unless its text is read anyway. `text`: "
        "every prompt is read while it passes, which costs a message of Envoy more a request.",
    )
    held: Size = Field(
        default=64 * 1024 * 1024,
        description="Bytes of prompts held at a time, of all exchanges; beyond that the size alone counts.",
    )


class IncludeUsage(Model):
    """Asks models for the usage of streams whose clients did not: adds `stream_options.include_usage`."""

    enabled: bool = False
    paths: list[PathEnding] = Field(
        default_factory=lambda: ["/chat/completions", "/completions"],
        description="Endings of the paths whose requests know the option.",
    )
    except_hosts: list[Hostname] = Field(
        default_factory=list, description="`*`, `*.suffix` or an exact host: providers that refuse the option."
    )
    except_models: list[str] = Field(
        default_factory=list, description="Models that refuse it; `*` stands for any characters."
    )
    strip: bool = Field(
        default=True, description="Take the extra usage frame out of the stream of a client that had not asked."
    )


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

    services: dict[str, Service] = Field(default_factory=dict, description="By name.")
    action_sets: list[ActionSet] = Field(default_factory=list)
    request_data: dict[str, str] = Field(default_factory=dict, description="Key -> CEL expression.")
    observability: Observability = Observability()
    descriptor_service: str | None = Field(default=None, description="Accepted from wasm-shim, not used.")

    endpoints: Annotated[dict[str, Endpoint], AfterValidator(_with_embedded)] = Field(
        default_factory=lambda: _with_embedded({}), description="By name; `embedded` is always there."
    )
    limits: Annotated[Annotated[str, Tag("path")] | Annotated[list[Limit], Tag("list")], arm(path=str, list=list)] = (
        Field(
            default_factory=list,
            description="The embedded limiter's limits, or the path of a limits file, relative to this file.",
        )
    )
    storage: Storage = Field(default=Storage(), description="Of the embedded limiter's counters.")
    auth_configs: dict[str, AuthConfig] = Field(
        default_factory=dict, description="By the scope that actions of an embedded `auth` service name."
    )
    policies: list[FilePath] = Field(
        default_factory=list,
        description="Files or folders with Kuadrant's policies, Secrets and HTTPRoutes, relative to this file; what "
        "they say is added to this configuration.",
    )
    providers: list[Provider] = Field(
        default_factory=list, description="Who has the models. Without any the gateway alone decides where requests go."
    )
    routing: Routing = Routing()
    prompt_limits: PromptLimits | None = None
    precharge: Precharge = Precharge(charge="none")
    guards: dict[str, Guard] = Field(default_factory=dict, description="By name.")
    metrics: MetricLabels = MetricLabels()
    listeners: Annotated[list[Listener], Field(min_length=1)] = Field(
        default_factory=lambda: [Listener(address="127.0.0.1:50051")]
    )
    admin: Admin | None = Admin()
    report: Report = Report()
    bodies: Bodies = Bodies()
    on_missing_usage: OnMissingUsage = Field(
        default="estimate", description="What a 2xx answer without usage is charged."
    )
    estimates: Estimates = Estimates()
    include_usage: IncludeUsage = IncludeUsage()
    dialect: DialectName = Field(default="auto", description="Of the answers; `auto`: recognised from their bytes.")
    prices: dict[str, Price] = Field(
        default_factory=dict,
        description="By model; `*` stands for any characters. An exact name wins, then the longest pattern.",
    )
    metadata_namespace: Namespace = Field(
        default="extproc", description="Of the dynamic metadata with the usage, for access logs."
    )
    metered_methods: Annotated[list[str], Field(min_length=1)] = Field(
        default_factory=lambda: ["POST"],
        description="Requests with another method generate nothing: their answers are not read, and not charged. An "
        "answer that is stored and fetched again was charged when it was made.",
    )
    charge_errors: bool = Field(default=False, description="Report answers with status 400 and above too.")
    strip_accept_encoding: bool = Field(
        default=True, description="Ask models for uncompressed answers where usage is read."
    )
    deny_with: DenyWith = DenyWith()
    rate_limit_headers: Literal["none", "refused", "always"] = Field(
        default="refused",
        description="Which answers carry `x-ratelimit-limit`, `-remaining` and `-reset` (draft 03) of the limit "
        "that is nearest to its end; refusals also `retry-after`.",
    )
    on_no_match: FailureMode = Field(
        default="allow",
        description="A request that no action set matches: `deny` answers 404, so that nothing gets to a model that "
        "nobody thought of.",
    )
    on_no_limit: FailureMode = Field(
        default="allow",
        description="A request of an action set with limits to none of which it belongs, such as one of an unknown "
        "tier: `deny` answers 403. Limiters in other processes do not tell whether they have a limit for what they are "
        "asked: there it counts that they are asked.",
    )
    shutdown: Shutdown = Shutdown()
    log: Log = Log()

    @property
    def embedded_limits(self) -> list[Limit]:
        """`limits` of a loaded configuration. Raises ValueError while they are still the path of a file."""
        if isinstance(self.limits, str):
            raise ValueError("the limits file has not been read")
        return self.limits
