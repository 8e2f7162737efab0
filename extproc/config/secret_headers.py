"""Headers whose values are secrets, whoever sends them."""

from __future__ import annotations

from typing import Final

from extproc.config.model import Config
from extproc.config.providers import Credential

CREDENTIAL_HEADERS: Final = (
    *("authorization", "x-api-key", "api-key", "x-goog-api-key"),
    *("proxy-authorization", "cookie"),
)
"""In which clients send keys, those of OpenAI, Anthropic, Azure and Gemini; and what proxies and browsers send."""


def secret_headers(config: Config) -> frozenset[str]:
    """In lower case: CREDENTIAL_HEADERS, and those of the credentials of providers and of `authConfigs`."""
    ours = [each.credential.header for each in config.providers if isinstance(each.credential, Credential)]
    sources = [source for auth in config.auth_configs.values() for source in auth.authentication.values()]
    theirs = [source.credentials.header.lower() for source in sources]
    return frozenset((*CREDENTIAL_HEADERS, *ours, *theirs))
