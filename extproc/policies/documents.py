"""Kubernetes documents as they come: files of several, JSON or YAML, lists of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extproc.config.document import kind_of, parse_documents
from extproc.config.errors import ConfigError, Problem, Step, field_path, first_problems, quoted
from extproc.config.files import Files, Unreadable

KUADRANT = "kuadrant.io"
GATEWAY_API = "gateway.networking.k8s.io"
SUFFIXES = (".yaml", ".yml", ".json")

_SPELLING = (
    "write `apiVersion: kuadrant.io/v1`, with `window: 10s` in place of `duration` and `unit`, `expression` in "
    "`counters`, and `predicate` in `when`"
)
_VERSIONS = {
    (KUADRANT, "RateLimitPolicy"): ("v1", "v1beta3"),
    (KUADRANT, "TokenRateLimitPolicy"): ("v1", "v1alpha1"),
    (KUADRANT, "AuthPolicy"): ("v1",),
    (GATEWAY_API, "HTTPRoute"): ("v1", "v1beta1"),
    (GATEWAY_API, "Gateway"): ("v1", "v1beta1"),
    ("", "Secret"): ("v1",),
}
_REFUSED_GROUPS = (KUADRANT, "extensions.kuadrant.io")
_PASSED_OVER = frozenset({"DNSPolicy", "DNSRecord", "Kuadrant", "TLSPolicy"})
"""Of Kuadrant, but of no request."""


@dataclass(frozen=True, slots=True)
class Document:
    """One Kubernetes object of a kind that policies are made of; `data` is all of it, `file` what to call its file."""

    kind: str
    namespace: str
    name: str
    data: dict[str, Any]
    path: Path
    file: str

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    @property
    def title(self) -> str:
        """`RateLimitPolicy llm/gateway-rate-limits`."""
        return f"{self.kind} {self.namespace}/{self.name}"

    @property
    def locator(self) -> str:
        """What Kuadrant calls a policy in the `sources` of an action."""
        return f"{self.kind.lower()}.{KUADRANT}:{self.namespace}/{self.name}"

    @property
    def labels(self) -> dict[str, Any]:
        labels = self.data["metadata"].get("labels")
        return labels if isinstance(labels, dict) else {}

    @property
    def created(self) -> str:
        """When, as RFC 3339 in UTC, which sorts; "" when the document does not say."""
        created = self.data["metadata"].get("creationTimestamp")
        return created if isinstance(created, str) else ""

    def problem(self, steps: Sequence[Step], message: str) -> Problem:
        """What is wrong at a field of this document."""
        return self.problem_at(field_path(steps), message)

    def problem_at(self, path: str, message: str) -> Problem:
        return Problem(f"{self.title}: {path}" if path else self.title, message, self.file)


def read_policies(paths: Iterable[str | Path], files: Files) -> list[Document]:
    """The documents in files and folders, in their order; what is neither policy, route nor Secret is left out.

    Raises ConfigError with what is wrong in all of the files.
    """
    found: list[Document] = []
    problems: list[Problem] = []
    for path in dict.fromkeys(_listed(paths, files, problems)):
        file = _shown_path(path)
        try:
            data = parse_documents(files.read_text(path), file)
        except Unreadable as error:
            problems.append(Problem("", str(error), file))
        except ConfigError as error:
            problems += error.problems
        else:
            for number, item in enumerate(data, 1):
                found += documents_in(item, f"document {number}", path, file, problems)
    problems += _doubles(found)
    if problems:
        raise ConfigError(first_problems(problems), what="policies")
    return found


def _listed(paths: Iterable[str | Path], files: Files, problems: list[Problem]) -> Iterator[Path]:
    for given in paths:
        path = Path(given)
        try:
            listed = files.list(path, SUFFIXES)
        except Unreadable as error:
            problems.append(Problem("", str(error), _shown_path(path)))
            continue
        if not listed:
            problems.append(Problem("", f"a folder without files that end in {', '.join(SUFFIXES)}", _shown_path(path)))
        yield from listed


def _shown_path(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def documents_in(data: Any, where: str, path: Path, file: str, problems: list[Problem]) -> Iterator[Document]:
    """The object in `data`, or those of a list; what is wrong is added to `problems`, at `where`."""
    if isinstance(data, dict) and isinstance(data.get("items"), list) and str(data.get("kind")).endswith("List"):
        of_kind = str(data["kind"]).removesuffix("List")
        implied = {"apiVersion": data.get("apiVersion"), "kind": of_kind} if of_kind else {}
        for index, item in enumerate(data["items"]):
            completed = {**implied, **item} if isinstance(item, dict) else item
            yield from documents_in(completed, f"{where}, items[{index}]", path, file, problems)
        return
    try:
        document = _document(data, path, file)
    except ValueError as error:
        problems.append(Problem(where, str(error), file))
    else:
        if document is not None:
            yield document


def _document(data: Any, path: Path, file: str) -> Document | None:
    """The document in `data`; None when it has nothing to do with requests. Raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError(f"expected a Kubernetes object, found {kind_of(data)}")
    for field in ("apiVersion", "kind"):
        if not isinstance(data.get(field), str):
            raise ValueError(f"not a Kubernetes object: it has no `{field}`")
    group, _, version = data["apiVersion"].rpartition("/")
    kind = data["kind"]
    versions = _VERSIONS.get((group, kind))
    if versions is None:
        if group in _REFUSED_GROUPS and kind not in _PASSED_OVER:
            raise ValueError(f"not supported: {quoted(kind)} of {quoted(data['apiVersion'])}")
        return None
    metadata = data.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"{quoted(kind)} without `metadata.name`")
    namespace = data["metadata"].get("namespace", "default")
    if not isinstance(namespace, str):
        raise ValueError(f"`metadata.namespace` of {quoted(kind)} {quoted(name)} is no string")
    if version not in versions:
        hint = _SPELLING if group == KUADRANT else f"known: {', '.join(versions)}"
        raise ValueError(f"{kind} {namespace}/{name}: `apiVersion: {data['apiVersion']}` is not supported; {hint}")
    return Document(kind, namespace, name, data, path, file)


def _doubles(documents: Iterable[Document]) -> Iterator[Problem]:
    first: dict[str, Document] = {}
    for document in documents:
        if (earlier := first.setdefault(document.title, document)) is not document:
            yield document.problem((), f"is in {earlier.file} already")
