"""Fields of `promptLimits` and `precharge`: what is charged before a model is called."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from extproc.config.fields import HeaderName, InShort, Model

Unit = Literal["second", "minute", "hour", "day"]
Algorithm = Literal["fixed", "gcra"]


class Precharge(InShort):
    """Charging before the call what is only reported after it; the bare `charge` may be written."""

    in_short = "charge"
    choices = ("prompt", "none")
    charge: Literal["prompt", "none"] = Field(
        default="prompt",
        description="`prompt`: a `ratelimit-check` charges the estimated prompt at once, and refuses a request that "
        "would cross the limit; the report then charges the rest.",
    )
    on_failure: Literal["keep", "refund"] = Field(
        default="keep",
        description="Of a call that fails, and of a prompt that was estimated too high: what was charged stays, or is "
        "given back. Only the embedded limiter can give back.",
    )


class PromptSelector(InShort):
    """Who shares a prompt limit; the bare header may be written."""

    in_short = "header"
    header: HeaderName = Field(description="A request header whose values are told apart.")
    value: str | None = Field(default=None, description="Only this value; each on its own when absent.")


class PromptLimit(Model):
    """So many tokens of prompts for a model in a time. A limit for a value goes before one for its header alone."""

    model: str = Field(description="As the provider calls it.")
    selector: PromptSelector | None = Field(default=None, description="All requests together when absent.")
    tokens: int
    per: Unit = "minute"


class PromptLimits(Model):
    """Limits of what is asked, before it is: the whole prompt is charged, whatever the model makes of it."""

    limits: Annotated[list[PromptLimit], Field(min_length=1)]
    service: str | None = Field(
        default=None, description="A `ratelimit` service from `services`; the embedded limiter when absent."
    )
    domain: str = Field(default="prompts", description="Of its queries; `limits` of the embedded limiter are made.")
    algorithm: Algorithm = Field(
        default="gcra", description="`gcra`: a bucket that fills steadily; `fixed`: a window from its first request."
    )
    trust_selector_header: bool = Field(
        default=False, description="Let the client say with `selectorHeader` which header selects: it may leave it out."
    )
    selector_header: HeaderName = "x-arch-ratelimit-selector"
    on_missing_selector: Literal["shared", "deny", "allow"] = Field(
        default="shared",
        description="A request without the header of a limit's selector: one bucket for all, 403, or not limited.",
    )
    legacy_error_body: bool = Field(
        default=False,
        description="Refuse with Plano's text, which shows the selector's value. Else as `denyWith` says.",
    )
