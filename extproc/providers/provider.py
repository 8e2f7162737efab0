"""A provider, compiled: what is done to a request that goes to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from extproc.config import providers as config
from extproc.config.fields import DialectName
from extproc.config.secret_headers import CREDENTIAL_HEADERS
from extproc.providers.models import ModelTable

Headers = tuple[tuple[str, str], ...]

_AS_ASKED: Final = ""


@dataclass(frozen=True, slots=True, eq=False)
class Provider:
    """One that has models.

    `set_headers` replace what a client sent: `destination` for the gateway's routes, the credential, what it wants
    besides. They hold a secret, so they are not shown. `remove_headers` take away what a client sent for somebody
    else, of whom no key may get here; first they are removed, then the others set. With a `refusal`, the body of a
    400, no request goes to it.
    """

    name: str
    destination: str
    set_headers: Headers = field(repr=False)
    remove_headers: tuple[str, ...]
    refusal: str | None = None
    dialect: DialectName | None = None
    model: str | None = None
    aliases: ModelTable[str] = field(default_factory=lambda: ModelTable({}), repr=False)

    def model_for(self, asked: str) -> str | None:
        """What the model of a request is to be called, which asks for `asked` ("" for none); None leaves it alone."""
        found = self.aliases.find(asked)
        if found == _AS_ASKED and asked:
            return None
        return found or self.model


def compile_provider(
    provider: config.Provider, routing_header: str, secret: str | None, foreign: Iterable[str] = ()
) -> Provider:
    """`secret` is that of its credential, if it has one; `foreign` are the headers of other providers' credentials."""
    headers = dict(provider.headers)
    remove: tuple[str, ...] = ()
    if isinstance(provider.credential, config.Credential) and secret is not None:
        headers[provider.credential.header] = provider.credential.carried(secret)
    headers[routing_header] = provider.destination
    if provider.credential != "client":
        remove = tuple(name for name in dict.fromkeys((*CREDENTIAL_HEADERS, *foreign)) if name not in headers)
    return Provider(
        name=provider.name,
        destination=provider.destination,
        set_headers=tuple(headers.items()),
        remove_headers=remove,
        refusal=_refusal(provider, secret),
        dialect=provider.dialect,
        model=provider.model,
        aliases=ModelTable(_aliases(provider.models)),
    )


def _refusal(provider: config.Provider, secret: str | None) -> str | None:
    """Plano's words (S2.6)."""
    if provider.credential in ("none", "client") or secret is not None:
        return None
    return f'No access key configured for selected LLM Provider "{provider.name}"'


def _aliases(models: Mapping[str, str | None]) -> dict[str, str]:
    """What a client asks for -> the provider's name; a pattern without one leaves what was asked."""
    return {asked: model or (_AS_ASKED if "*" in asked else asked) for asked, model in models.items()}
