"""Words that several parts of a page use."""

from __future__ import annotations

from collections.abc import Sequence

from extproc.config.duration import format_duration
from extproc.config.providers import Credential, CredentialChoice


def counted(number: int, thing: str) -> str:
    """`1 pattern`, `2 patterns`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def seconds(number: float) -> str:
    """A duration as it is written."""
    return format_duration(number)


def credential_of(credential: CredentialChoice | None) -> str:
    """Where a secret comes from and which header carries it; never the secret."""
    if not isinstance(credential, Credential):
        return {"client": "with the client's own credential"}.get(str(credential), "without a credential")
    return f"with {_source(credential)} in `{credential.header}`"


def _source(credential: Credential) -> str:
    if credential.env is not None:
        return f"the credential of the variable {credential.env}"
    if credential.file is not None:
        return f"the credential of the file {credential.file}"
    secret = credential.secret
    assert secret is not None
    return f"`{secret.key}` of the Secret {secret.namespace}/{secret.name}"
