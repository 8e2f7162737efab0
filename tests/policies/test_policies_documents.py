"""Reading documents: several in a file, lists, folders, JSON, and what is no document for us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from policies.samples import SECRET, limit, policy, route

from extproc.config.document import parse_documents
from extproc.config.errors import ConfigError
from extproc.config.files import Files, take_snapshot
from extproc.policies import read_policies


def read(text: str, tmp_path: Path, name: str = "x.yaml") -> list[str]:
    (tmp_path / name).write_text(text)
    return [document.title for document in read_policies([tmp_path / name], Files())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("# nothing\n", []),
        ("---\n---\n# x\n---\n", []),
        ("a: 1\n", [{"a": 1}]),
        ("# c\n---\na: &x 1\nb: *x\n---\n- c\n...\n---\nnull\n", [{"a": 1, "b": 1}, ["c"]]),
        ('{"a": 1}', [{"a": 1}]),
        ("{a: 1}\n---\n{b: 2}\n", [{"a": 1}, {"b": 2}]),
    ],
)
def test_documents_of_a_text(text: str, expected: list[Any]) -> None:
    assert parse_documents(text, "x.yaml") == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\n---\nb: 1\nb: 2\n", "x.yaml: line 4, column 1: key `…` is given twice"),
        ("a: &x 1\n---\nb: *x\n", "x.yaml: line 3, column 4: alias `…` has nothing complete to stand for"),
        ("a: 1\n---\n\tb\n", "x.yaml: line 3, column 1: a tab: YAML is indented with spaces"),
    ],
)
def test_every_document_is_read_strictly(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_documents(text, "x.yaml")
    assert [str(found) for found in caught.value.problems] == [problem]


def test_json_lists_and_objects_of_other_kinds(tmp_path: Path) -> None:
    others = [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}},
        {"apiVersion": "kuadrant.io/v1", "kind": "TLSPolicy", "metadata": {"name": "x"}},
        {"apiVersion": "v1", "kind": "Namespace"},
    ]
    nested = {"apiVersion": "v1", "kind": "List", "items": [route(), *others]}
    secrets = {"apiVersion": "v1", "kind": "SecretList", "items": [{k: SECRET[k] for k in ("metadata", "stringData")}]}
    items = {"apiVersion": "v1", "kind": "List", "items": [nested, secrets, policy(limits={"a": limit(1)})]}
    assert read(json.dumps(items), tmp_path, "x.json") == [
        "HTTPRoute llm/chat",
        "Secret llm/alice",
        "RateLimitPolicy llm/p",
    ]


def test_a_namespace_that_is_not_given_is_default(tmp_path: Path) -> None:
    assert read("{apiVersion: v1, kind: Secret, metadata: {name: x}}", tmp_path) == ["Secret default/x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "expected a Kubernetes object, found a list"),
        ("services: {}\n", "not a Kubernetes object: it has no `apiVersion`"),
        ("apiVersion: v1\n", "not a Kubernetes object: it has no `kind`"),
        ("{apiVersion: v1, kind: Secret}", "`Secret` without `metadata.name`"),
        (
            "{apiVersion: extensions.kuadrant.io/v1alpha1, kind: PlanPolicy}",
            "not supported: `PlanPolicy` of `extensions",
        ),
        (
            "{apiVersion: kuadrant.io/v1, kind: RateLimitPolicyy}",
            "not supported: `RateLimitPolicyy` of `kuadrant.io/v1`",
        ),
        (
            "{apiVersion: v1, kind: Secret, metadata: {name: x, namespace: 5}}",
            "`metadata.namespace` of `Secret` `x` is n",
        ),
    ],
)
def test_what_is_no_document_for_us(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read("a: # not looked at\n"[:0] + text, tmp_path)
    (problem,) = caught.value.problems
    assert (problem.path, problem.message[: len(message)]) == ("document 1", message)


SECRET_TEXT = "S3CRET"


@pytest.mark.parametrize(
    "text",
    [
        "sk-S3CRET",
        "- S3CRET",
        "S3CRET: 1",
        "stringData: {S3CRET: 1, S3CRET: 2}",
        "stringData: {api_key: *S3CRET}",
        "stringData: {api_key: !!S3CRET x}",
        "stringData: {api_key: !S3CRET {}}",
        "stringData: {api_key: S3CRET: x: y}",
        'stringData: {api_key: "\\qS3CRET"}',
        '{"stringData": {"S3CRET": 1, "S3CRET": 2}}',
        '{"stringData": "S3CRET",}',
        "stringData:\n\t- S3CRET",
        "%S3CRET x\n---\na: 1",
    ],
)
def test_no_problem_shows_a_piece_of_a_file(text: str, tmp_path: Path) -> None:
    """Secrets are in these files."""
    with pytest.raises(ConfigError) as caught:
        read(text, tmp_path)
    assert SECRET_TEXT not in str(caught.value)
    assert SECRET_TEXT not in repr(caught.value.problems)


def test_a_folder_is_read_by_name_and_watched(tmp_path: Path) -> None:
    """S1.18, S1.24: one more file is a change, and so is one that is edited."""
    (tmp_path / "b.yaml").write_text(json.dumps(SECRET))
    (tmp_path / "a.yml").write_text(json.dumps(route()))
    (tmp_path / "notes.txt").write_text("not read")
    files = Files()
    found = read_policies([tmp_path, tmp_path / "a.yml"], files)
    assert [document.title for document in found] == ["HTTPRoute llm/chat", "Secret llm/alice"]
    (tmp_path / "c.yaml").write_text("")
    assert take_snapshot(files.snapshot) != files.snapshot


def test_problems_of_all_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: x\n")
    (tmp_path / "b.yaml").write_text("{")
    with pytest.raises(ConfigError) as caught:
        read_policies([tmp_path, tmp_path / "missing.yaml"], Files())
    assert [Path(problem.file).name for problem in caught.value.problems] == ["a.yaml", "b.yaml", "missing.yaml"]


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a folder without files that end in \.yaml, \.yml, \.json"):
        read_policies([tmp_path], Files())


def test_a_document_twice_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(json.dumps(route()))
    (tmp_path / "b.yaml").write_text(json.dumps(route()))
    with pytest.raises(ConfigError, match=r"HTTPRoute llm/chat: is in .*a\.yaml already"):
        read_policies([tmp_path], Files())
