"""API keys from files: which are taken, whose they are, and what is said, without them, of those that cannot be."""

from __future__ import annotations

import base64
import gc
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.errors import ConfigError
from extproc.config.files import Files
from extproc.config.keys import MAX_KEY, KeyEntry, read_keys
from extproc.config.model import ApiKeys, Selector

KEY = "freeuser1_key"
HASH = hashlib.sha256(KEY.encode())
LABELS = {"kuadrant.io/apikeys-by": "maas"}


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def secret(key: Any = KEY, *, section: str = "stringData", **metadata: Any) -> dict[str, Any]:
    """A Secret as Models-as-a-Service writes it."""
    about = {
        "name": "freeuser1-apikey",
        "namespace": "kuadrant-system",
        "labels": LABELS,
        "annotations": {"secret.kuadrant.io/user-id": "freeuser1", "kuadrant.io/groups": "free"},
    }
    return {"apiVersion": "v1", "kind": "Secret", "metadata": about | metadata, section: {"api_key": key}}


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[KeyEntry]]:
    """Reads files with these contents: texts, or documents; `source` are fields of ApiKeys."""

    def read_files(*contents: Any, **source: Any) -> list[KeyEntry]:
        for number, content in enumerate(contents):
            text = content if isinstance(content, str) else yaml.safe_dump_all([content])
            (tmp_path / f"{number}.yaml").write_text(text)
        return read_keys(ApiKeys(**({"files": [str(tmp_path)]} | source)), Files())

    return read_files


@pytest.fixture
def problems(read: Callable[..., list[KeyEntry]], tmp_path: Path) -> Callable[..., list[str]]:
    """What is wrong with files of these contents; that no line shows the key is seen to here."""

    def find(*contents: Any) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read(*contents)
        lines = [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]
        assert not [line for line in lines if KEY in line or HASH.hexdigest() in line]
        return lines

    return find


# --- lists


@pytest.mark.parametrize("key", [KEY, f"sha256:{HASH.hexdigest()}", f"sha256:{HASH.hexdigest().upper()}"])
def test_a_list_of_keys_in_plain_and_hashed(read, key: str) -> None:
    """S1.1, S1.D7: everything but the key is who it is."""
    entries = read({"keys": [{"key": key, "userid": "freeuser1", "groups": "free", "limits": {"rpm": 3}}]})
    assert entries == [KeyEntry(HASH.digest(), {"userid": "freeuser1", "groups": "free", "limits": {"rpm": 3}})]


@pytest.mark.parametrize("content", ["keys:\n", "keys: []\n", "# all revoked\n", "", "kind: Route\n"])
def test_nobody_may_be_let_in(read, content: str) -> None:
    """S1.18: whoever takes the last key away wants nobody to get in, not the earlier file to stay in force."""
    assert read(content) == []


def test_a_folder_is_read_by_name_and_a_file_only_once(read, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [{"key": "c"}]}))
    (tmp_path / "notes.txt").write_text("no keys")
    files = [str(tmp_path), str(tmp_path / "0.yaml")]
    entries = read({"keys": [{"key": "a"}]}, {"keys": [{"key": "b"}]}, files=files)
    assert [entry.digest for entry in entries] == [digest("a"), digest("b"), digest("c")]


def test_what_is_read_is_watched(tmp_path: Path) -> None:
    """S1.18: a key that is added or revoked is a change, and one more file is too."""
    (tmp_path / "keys.yaml").write_text("keys: [{key: a}]")
    files = Files()
    read_keys(ApiKeys(files=[str(tmp_path)]), files)
    assert {tmp_path, tmp_path / "keys.yaml"} <= files.snapshot.keys()


def test_several_documents_in_a_file_other_kinds_between_them(read) -> None:
    documents = [{"keys": [{"key": "a"}]}, {"kind": "RateLimitPolicy", "spec": {}}, secret(), {"keys": [{"key": "b"}]}]
    entries = read(yaml.safe_dump_all(documents))
    assert [entry.digest for entry in entries] == [digest("a"), HASH.digest(), digest("b")]


# --- Secrets


@pytest.mark.parametrize(
    ("key", "section"),
    [
        (KEY, "stringData"),
        (f"sha256:{HASH.hexdigest()}", "stringData"),
        (encoded(KEY), "data"),
        (encoded(f"sha256:{HASH.hexdigest()}"), "data"),
        (encoded(KEY)[:8] + "\n" + encoded(KEY)[8:], "data"),
    ],
)
def test_a_secret_is_an_identity_without_its_data(read, key: str, section: str) -> None:
    """S1.1 as Authorino shows it: expressions find user and groups among the annotations."""
    [entry] = read(secret(key, section=section))
    assert entry == KeyEntry(HASH.digest(), {"metadata": secret()["metadata"]})


def test_string_data_counts_before_data(read) -> None:
    [entry] = read(secret() | {"data": {"api_key": "not even base64"}})
    assert entry.digest == HASH.digest()


def test_a_secret_with_a_name_only(read) -> None:
    [entry] = read({"kind": "Secret", "metadata": {"name": "a"}, "stringData": {"api_key": KEY}})
    assert entry.identity == {"metadata": {"name": "a", "namespace": "default", "labels": {}, "annotations": {}}}


SELECTED = [
    ({}, None, True),
    ({"kuadrant.io/apikeys-by": "maas"}, None, True),
    ({"kuadrant.io/apikeys-by": "maas", "tier": "free"}, None, False),
    ({"kuadrant.io/apikeys-by": "other"}, None, False),
    ({}, "kuadrant-system", True),
    ({}, "llm", False),
]


@pytest.mark.parametrize(("labels", "namespace", "taken"), SELECTED)
@pytest.mark.parametrize("kind", ["Secret", "List", "SecretList"])
def test_the_selector_and_the_namespace_choose(read, kind: str, labels, namespace: str | None, taken: bool) -> None:
    document = secret() if kind == "Secret" else {"kind": kind, "items": [secret(), {"kind": "ConfigMap"}]}
    entries = read(document, selector=Selector(match_labels=labels), namespace=namespace)
    assert bool(entries) is taken


def test_a_secret_that_is_not_chosen_may_be_anything(read) -> None:
    """TLS Secrets lie in the same folder."""
    others = [{"kind": "Secret"}, {"kind": "Secret", "metadata": 3}, {"kind": ["Secret"]}, {"kind": "List", "items": 1}]
    others += [{"kind": "List", "items": [1, {"no": "kind"}]}, {"kind": "Secret", "metadata": {"labels": [1]}}]
    chosen = Selector(match_labels=LABELS)
    assert read(yaml.safe_dump_all(others), selector=chosen) == []


# --- what is wrong

NO_HEADER = "no header can carry it: white space around it, a line break or a control character"
WRONG: list[tuple[Any, str]] = [
    ({"keys": [{"userid": "alice"}]}, "0.yaml: keys[0].key: missing"),
    ({"keys": [{"key": ""}]}, "0.yaml: keys[0].key: empty"),
    ({"keys": [{"key": 12345678}]}, "0.yaml: keys[0].key: expected a string, found a number; put it in quotes"),
    ({"keys": [{"key": None}]}, "0.yaml: keys[0].key: expected a string, found null"),
    ({"keys": [{"key": f"{KEY}\n"}]}, f"0.yaml: keys[0].key: {NO_HEADER}"),
    ({"keys": [{"key": f" {KEY}"}]}, f"0.yaml: keys[0].key: {NO_HEADER}"),
    ({"keys": [{"key": KEY * 400}]}, f"0.yaml: keys[0].key: longer than {MAX_KEY} bytes"),
    (
        {"keys": [{"key": f"sha256:{HASH.hexdigest()[1:]}"}]},
        "0.yaml: keys[0].key: expected 64 hexadecimal digits after `sha256:`",
    ),
    ({"keys": [KEY]}, "0.yaml: keys[0]: expected an object with `key`, found a string"),
    ({"keys": {KEY: "alice"}}, "0.yaml: keys: expected a list, found an object"),
    ({"keys": KEY}, "0.yaml: keys: expected a list, found a string"),
    ([{"key": KEY}], "0.yaml: expected `keys`, or a Kubernetes document, found a list"),
    (f"{KEY}\n", "0.yaml: expected `keys`, or a Kubernetes document, found a string"),
    ({KEY: "alice"}, "0.yaml: expected `keys` and nothing else, or a Kubernetes document with its `kind`"),
    (
        {"keys": [], "users": []},
        "0.yaml: expected `keys` and nothing else, or a Kubernetes document with its `kind`",
    ),
    (secret(""), "0.yaml: stringData.api_key: empty"),
    (secret(7), "0.yaml: stringData.api_key: expected a string, found a number; put it in quotes"),
    (secret(KEY, section="data"), "0.yaml: data.api_key: expected base64; plain text belongs into `stringData`"),
    (secret(encoded(f"{KEY}\n"), section="data"), f"0.yaml: data.api_key: {NO_HEADER}"),
    (
        secret() | {"stringData": {"apikey": KEY}},
        "0.yaml: data.api_key: missing; a Secret that is chosen has its key here",
    ),
    (
        secret(annotations={"user-id": 7}),
        "0.yaml: metadata.annotations.user-id: expected a string, found a number; put it in quotes",
    ),
    (secret(annotations=[1]), "0.yaml: metadata.annotations: expected an object, found a list"),
    (
        {"kind": "List", "items": [{"kind": "ConfigMap"}, secret("")]},
        "0.yaml: items[1].stringData.api_key: empty",
    ),
    (yaml.safe_dump_all([{"kind": "Route"}, {"keys": 1}]), "0.yaml, document 2: keys: expected a list, found a number"),
]


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_has_its_place_and_shows_no_key(problems, content: Any, message: str) -> None:
    assert problems(content) == [message]


LEAKY = [
    f"keys:\n- key: !{KEY}\n",
    f"keys:\n- key: *{KEY}\n",
    f"keys:\n  {KEY}: alice\n  {KEY}: bob\n",
    f'{{"keys": {{"{KEY}": 1, "{KEY}": 2}}}}',
    f"keys:\n- key: '{KEY}\n",
    f"keys:\n- key: \t{KEY}: x: y\n",
    f"keys:\n- key: %{KEY}\n",
]


@pytest.mark.parametrize("text", LEAKY)
def test_text_that_is_no_yaml_is_not_shown(problems, text: str) -> None:
    """A key that begins with `*` or `!` is a mistake that is easily made, and would be cited."""
    assert len(problems(text)) == 1


def test_a_key_given_twice_names_both_places(problems) -> None:
    """Whose it is must not depend on the order of files."""
    first = {"keys": [{"key": "a"}, {"key": KEY}]}
    assert problems(first, secret()) == ["1.yaml: the same key as in 0.yaml: keys[1]"]


def test_a_key_given_twice_in_a_file(problems) -> None:
    twice = {"keys": [{"key": KEY}, {"key": f"sha256:{HASH.hexdigest()}"}]}
    assert problems(twice) == ["0.yaml: keys[1]: the same key as in keys[0]"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: no such file"):
        read_keys(ApiKeys(files=[str(tmp_path / "none.yaml")]), Files())


def test_thousands_of_mistakes_are_a_hundred_problems(problems) -> None:
    assert len(problems(json.dumps({"keys": [{}] * 5000}))) == 101


# --- what stays in memory


def test_no_plain_text_outlives_the_reading(read) -> None:
    """S1.D7: whatever looks through what the entries refer to finds no key."""
    entries = read({"keys": [{"key": KEY, "userid": "alice"}]}, secret("sk-" + "of-a-secret"))
    gc.collect()
    seen: list[Any] = list(entries)
    for item in seen:
        if isinstance(item, KeyEntry):
            seen += [item.digest, item.identity]
        elif isinstance(item, dict):
            seen += [*item, *item.values()]
    assert not {KEY, "sk-of-a-secret"} & {item for item in seen if isinstance(item, str)}


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["Secret", "List", "data"])
NAMES = st.sampled_from(["keys", "key", "kind", "items", "metadata", "labels", "data", "stringData", "api_key"])
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4))


@given(document=ANYTHING)
def test_any_document_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(document))
    entries: list[KeyEntry] = []
    with suppress(ConfigError):
        entries = read_keys(ApiKeys(files=[str(path)]), Files())
    assert all(len(entry.digest) == 32 for entry in entries)
