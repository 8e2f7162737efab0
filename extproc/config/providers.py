"""Fields of `providers` and `routing`: who has the models, and which of them a request goes to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Tag, WithJsonSchema, model_validator

from extproc.config.fields import DialectName, FilePath, HeaderName, Host, Model, arm


class SecretKey(Model):
    """A value of a Kubernetes Secret document."""

    file: FilePath = Field(description="Relative to this file; it may hold several documents.")
    name: str = Field(description="`metadata.name` of the Secret.")
    namespace: str = "default"
    key: str = Field(default="api_key", description="In its `data` or `stringData`.")


class Credential(Model):
    """Where a secret comes from: exactly one of `env`, `file`, `secret`. It is read at the start and at each reload."""

    env: str | None = Field(default=None, description="A variable of the environment.")
    file: FilePath | None = Field(default=None, description="Holds nothing else; relative to this file.")
    secret: SecretKey | None = None
    header: HeaderName = Field(default="authorization", description="Of the request, that is to carry it.")
    prefix: str | None = Field(
        default=None, description="Before it and a space; by default `Bearer` in `authorization`, else nothing."
    )

    @model_validator(mode="after")
    def exactly_one(self) -> Credential:
        if sum(source is not None for source in (self.env, self.file, self.secret)) != 1:
            raise ValueError("expected exactly one of `env`, `file`, `secret`")
        return self

    def carried(self, secret: str) -> str:
        """The value of the header."""
        prefix = ("Bearer" if self.header == "authorization" else "") if self.prefix is None else self.prefix
        return f"{prefix} {secret}" if prefix else secret


CredentialChoice = Annotated[
    Annotated[Literal["none", "client"], Tag("word")] | Annotated[Credential, Tag("reference")],
    arm(word=str, reference=(dict, Credential)),
]


def _by_name(models: object) -> object:
    """A list of names stands for names that stay as they are."""
    if isinstance(models, list) and all(isinstance(model, str) for model in models):
        return dict.fromkeys(models)
    return models


Models = Annotated[
    dict[str, str | None],
    BeforeValidator(_by_name),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "string"}},
                {"type": "object", "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
            ]
        }
    ),
]


class Provider(Model):
    """One that has models."""

    name: str = Field(description="Of the hint, of rules, and in `routing.header` unless `cluster` is given.")
    model: str | None = Field(
        default=None, description="What it calls its model: put into requests for any other than its `models`."
    )
    models: Models = Field(
        default_factory=dict,
        description="What clients ask for -> what the provider calls it (the same when null); `*` stands for any "
        "characters. Requests for these come here. Or a list of names.",
    )
    default: bool = Field(default=False, description="Gets the requests that nothing else decides about.")
    credential: CredentialChoice | None = Field(
        default=None,
        description="`none`: needs none; `client`: what the client sent. Without one its requests are refused (400).",
    )
    headers: dict[HeaderName, str] = Field(
        default_factory=dict, description="Set on requests to it, as `anthropic-version`. Not for secrets."
    )
    dialect: DialectName | None = Field(default=None, description="Overrides that of the action set.")
    cluster: str | None = Field(default=None, description="What `routing.header` says, in place of the name.")
    address: str | None = Field(
        default=None,
        description="`https://host[:port]` or `http://...`: for `extproc envoy-config`, which makes a cluster.",
    )

    @property
    def destination(self) -> str:
        """What the gateway routes by."""
        return self.name if self.cluster is None else self.cluster


class RoutingRule(Model):
    """Requests for which a condition holds go to one provider."""

    when: str = Field(description="CEL over the head of the request and `auth`.")
    provider: str


class Routing(Model):
    """How a request gets its provider: by the first rule that holds, its hint, its model, or it is the default."""

    hosts: Annotated[list[Host], Field(min_length=1)] = Field(
        default_factory=lambda: ["*"], description="Requests to these; `*`, `*.suffix` or an exact host."
    )
    header: HeaderName = Field(
        default="x-arch-llm-provider", description="Tells the gateway's routes; replaced whatever a client sent."
    )
    hint_header: HeaderName = Field(
        default="x-arch-llm-provider-hint", description="In which a client may name a provider, or `default`."
    )
    unknown_hint: Literal["reject", "default"] = Field(
        default="reject", description="A hint that names no provider: answered 400, or as if it were not there."
    )
    rules: list[RoutingRule] = Field(default_factory=list)
    remove_headers: list[str] = Field(
        default_factory=lambda: ["x-arch-*"],
        description="Never passed on when a client sends them; `*` at the end stands for anything.",
    )
    paths: Annotated[list[str], Field(min_length=1)] = Field(
        default_factory=lambda: ["/v1/chat/completions"],
        description="Whose bodies are read and edited, and prompts counted; `*` stands for any characters. Other "
        "requests get their provider by rule, hint or default.",
    )
    remove: list[str] = Field(
        default_factory=lambda: ["/metadata", "/messages/*/model"],
        description="Members taken out of these bodies: JSON pointers, `*` for every item of a list.",
    )
