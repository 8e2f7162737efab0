"""The authenticator in this process: API keys from files and claims that Envoy verified, by the rules of an AuthConfig.

Expressions (`authorization`, `filters`, `models`, `headers`) see two variables: `auth.identity`, which is what a
source found (an entry of a keys file, `metadata` of a Secret, claims), and `request` with `method`, `path`,
`url_path`, `host` and `headers`. What `filters` make of it is what everything after sees as `auth`; `auth.identity`
stays as it was found where no filter has that name.

A claim comes as its issuer likes, as a text or as a list. `auth.identity.tier[0]` gives `free` for `free` as well as
for `[free]` (S1.16), where it is all of an expression or compared with a text; other expressions have to know what
they get: `auth.identity.tier == "free"` does not hold for a list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from extproc.config.errors import ConfigError, Problem, listed, quoted
from extproc.config.keys import KeyEntry
from extproc.config.model import AuthConfig, Source
from extproc.facts import RequestFacts
from extproc.identity.denials import NO_RULES, Denials
from extproc.identity.readings import Compiler, Reading
from extproc.identity.rules import Expressions, Removal, Rules
from extproc.identity.seam import Metadata, Verdict
from extproc.identity.sources import CallerSource, JwtSource, KeySource

_ESSENTIAL = (
    ":authority",
    ":method",
    ":path",
    ":scheme",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
)

Keys = Mapping[tuple[str, str], Sequence[KeyEntry]]
"""API keys by the names of an AuthConfig and of a source in it."""


class EmbeddedAuthenticator:
    """Answers at once, and never raises on traffic: a scope without rules is refused as by Authorino, with 404."""

    def __init__(self, auth_configs: Mapping[str, AuthConfig], keys: Keys) -> None:
        """Raises ConfigError with every expression that cannot be used."""
        compiler = Compiler()
        self._rules = {scope: _rules(scope, config, keys, compiler) for scope, config in auth_configs.items()}
        if compiler.problems:
            raise ConfigError(compiler.problems)

    def authenticate(self, facts: RequestFacts, scope: str, metadata: Metadata = ()) -> Verdict:
        """The verdict by the AuthConfig called `scope`."""
        rules = self._rules.get(scope)
        return NO_RULES if rules is None else rules.judge(facts)


def _rules(scope: str, config: AuthConfig, keys: Keys, compiler: Compiler) -> Rules:
    sources = [_source(name, source, keys.get((scope, name), ())) for name, source in config.authentication.items()]
    denials = Denials(sources, config.unauthenticated, config.unauthorized)
    expressions = _expressions(scope, config, compiler)
    credentials = () if config.forward_credentials else tuple(source.header for source in sources if source.header)
    removal = _removal((*config.remove_headers, *expressions.headers, *credentials))
    compiler.problems.extend(_unremovable(scope, config))
    return Rules(sources, denials, expressions, removal, config.user, config.on_missing_user)


def _source(name: str, source: Source, entries: Sequence[KeyEntry]) -> CallerSource:
    if source.jwt is not None:
        return JwtSource(name, source.jwt)
    return KeySource(name, source.credentials, entries)


def _expressions(scope: str, config: AuthConfig, compiler: Compiler) -> Expressions:
    def reading(source: str, *steps: str | int) -> Reading | None:
        return compiler.reading(source, "authConfigs", scope, *steps)

    def readings(sources: Mapping[str, str], *steps: str) -> dict[str, Reading]:
        compiled = {name: reading(source, *steps, name) for name, source in sources.items()}
        return {name: found for name, found in compiled.items() if found is not None}

    authorization = [reading(source, "authorization", index) for index, source in enumerate(config.authorization)]
    return Expressions(
        authorization=tuple(found for found in authorization if found is not None),
        filters={name: readings(properties, "filters", name) for name, properties in config.filters.items()},
        models=None if config.models is None else reading(config.models, "models"),
        headers={name.lower(): found for name, found in readings(config.headers, "headers").items()},
    )


def _unremovable(scope: str, config: AuthConfig) -> Iterator[Problem]:
    """Headers without which a request is none may be neither removed nor set."""
    for index, pattern in enumerate(config.remove_headers):
        removal = _removal((pattern,))
        if lost := [name for name in _ESSENTIAL if removal.concerns(name)]:
            message = f"{quoted(pattern)} would take away {listed(lost)}, which requests need"
            yield Problem.at(("authConfigs", scope, "removeHeaders", index), message)
    for name in config.headers:
        if name.lower() in _ESSENTIAL:
            yield Problem.at(("authConfigs", scope, "headers", name), "this header belongs to the gateway")


def _removal(patterns: Sequence[str]) -> Removal:
    """`*` at the end of a pattern stands for anything."""
    lower = [pattern.lower() for pattern in patterns]
    names = frozenset(pattern for pattern in lower if not pattern.endswith("*"))
    return Removal(names, tuple(pattern[:-1] for pattern in lower if pattern.endswith("*")))
