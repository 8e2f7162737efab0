"""AuthPolicy: what may be written in it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from extproc.config.fields import Model
from extproc.policies.objects import Anything, KubernetesObject, Predicate, Strategy, TargetRef, refused

_JWT_INSTEAD = "only `apiKey` and `jwt` are; where the token is a JWT, have Envoy verify it and write `jwt`"
_PATTERNS_INSTEAD = "write `patternMatching` with a `predicate`"
_HEADERS_ONLY = "a credential is expected in a header: `authorizationHeader` or `customHeader`"


class ValueOrSelector(Model):
    """Exactly one of them."""

    value: Anything = None
    selector: str | None = None
    expression: str | None = None


class Pattern(Model):
    """A comparison of what a selector leads to."""

    selector: str | None = None
    operator: Literal["eq", "neq", "incl", "excl", "matches"] | None = None
    value: str | None = None


class PatternOrRef(Pattern):
    """A comparison, a name from `patterns`, a CEL expression, or several of these."""

    pattern_ref: str | None = None
    predicate: str | None = None
    all: list[PatternOrRef] | None = None
    any: list[PatternOrRef] | None = None


class NamedPatterns(Model):
    all_of: list[Pattern]


class Caching(Model):
    key: ValueOrSelector
    ttl: int = 60


class Evaluator(Model):
    """What every step of Authorino's pipeline has."""

    priority: int = 0
    metrics: bool = False
    cache: Caching | None = None


class Prefixed(Model):
    prefix: str = ""


class Named(Model):
    name: Annotated[str, Field(min_length=1)]


class Placement(Model):
    """Where a credential is expected."""

    authorization_header: Prefixed | None = None
    custom_header: Named | None = None
    query_string: Anything = refused(_HEADERS_ONLY)
    cookie: Anything = refused(_HEADERS_ONLY)


class LabelSelector(Model):
    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: Anything = refused("write `matchLabels`", may_be_empty=True)


class ApiKey(Model):
    """Secrets with keys."""

    selector: LabelSelector
    all_namespaces: bool = False
    key_selector: Anything = refused("the key is in the entry `api_key` of a Secret", may_be_empty=True)


class JwtIssuer(Model):
    """Tokens; Envoy verifies them, and so cares for their keys."""

    issuer_url: str | None = None
    jwks_url: str | None = None
    ttl: int | None = None


class Authentication(Evaluator):
    """One way to say who one is."""

    credentials: Placement = Placement()
    overrides: dict[str, ValueOrSelector] = Field(default_factory=dict)
    defaults: dict[str, ValueOrSelector] = Field(default_factory=dict)
    api_key: ApiKey | None = None
    jwt: JwtIssuer | None = None
    when: Anything = refused(
        "a condition of a single source; target a policy at the route or rule it is for", may_be_empty=True
    )
    anonymous: Anything = refused("anonymous access; target the policy at the routes or rules that need a caller")
    kubernetes_token_review: Anything = refused(_JWT_INSTEAD)
    oauth2_introspection: Anything = refused(_JWT_INSTEAD)
    plain: Anything = refused(_JWT_INSTEAD)
    x509: Anything = refused("only `apiKey` and `jwt` are; have Envoy demand client certificates")


class PatternMatching(Model):
    patterns: list[PatternOrRef]


class Opa(Model):
    rego: str | None = None
    all_values: bool = False
    external_policy: Anything = refused(f"a policy from elsewhere; {_PATTERNS_INSTEAD}")


class Authorization(Evaluator):
    """One rule that must allow."""

    when: list[PatternOrRef] = Field(default_factory=list)
    pattern_matching: PatternMatching | None = None
    opa: Opa | None = None
    kubernetes_subject_access_review: Anything = refused(_PATTERNS_INSTEAD)
    spicedb: Anything = refused(_PATTERNS_INSTEAD)


class Properties(Model):
    properties: dict[str, ValueOrSelector]


class SuccessItem(Evaluator):
    """What is told of a caller who may go on."""

    key: str | None = None
    plain: ValueOrSelector | None = None
    json_: Properties | None = Field(default=None, alias="json")
    when: Anything = refused("a condition of a single item; write a CEL expression with `? :`", may_be_empty=True)
    wristband: Anything = refused("no tokens are issued")


class Success(Model):
    headers: dict[str, SuccessItem] = Field(default_factory=dict)
    filters: dict[str, SuccessItem] = Field(default_factory=dict)


class DenyResponse(Model):
    """How a refusal looks."""

    code: Annotated[int, Field(ge=300, le=599)] | None = None
    message: ValueOrSelector | None = None
    headers: dict[str, ValueOrSelector] = Field(default_factory=dict)
    body: ValueOrSelector | None = None


class Response(Model):
    unauthenticated: DenyResponse | None = None
    unauthorized: DenyResponse | None = None
    success: Success = Success()


class AuthScheme(Model):
    authentication: dict[str, Authentication] = Field(default_factory=dict)
    authorization: dict[str, Authorization] = Field(default_factory=dict)
    response: Response = Response()
    metadata: Anything = refused(
        "nobody is asked about a caller; have it in the annotations of a Secret or in claims", may_be_empty=True
    )
    callbacks: Anything = refused("nobody is told of a caller; metrics and logs say who called", may_be_empty=True)


class AuthRules(Model):
    patterns: dict[str, NamedPatterns] = Field(default_factory=dict)
    when: list[Predicate] = Field(default_factory=list)
    rules: AuthScheme | None = None


class MergeableAuthRules(AuthRules):
    strategy: Strategy = "atomic"


class AuthSpec(AuthRules):
    """Bare rules, which are defaults; or `defaults`; or `overrides`."""

    target_ref: TargetRef
    defaults: MergeableAuthRules | None = None
    overrides: MergeableAuthRules | None = None


class AuthPolicy(KubernetesObject):
    """Who may call."""

    spec: AuthSpec


AUTH_POLICY: TypeAdapter[AuthPolicy] = TypeAdapter(AuthPolicy)
