"""S4.5: what a claim does not allow is asked of no model, however the request is written."""

from __future__ import annotations

import gzip
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import request_headers

from extproc.facts import RequestFacts
from extproc.identity.model_guard import ModelGuard, names_in_body, names_in_target

ALLOWED = frozenset({"allowed", "also"})
CHAT = "/v1/chat/completions"


def guard(path: str = CHAT, *, has_body: bool = True, method: str = "POST", **headers: str) -> ModelGuard:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return ModelGuard(ALLOWED, RequestFacts(request_headers(sent, path=path, method=method)), has_body=has_body)


@pytest.mark.parametrize("body", [b'{"model":"allowed"}', b' {"messages":[{"model":"x"}],"model":"also"}\n'])
def test_what_is_allowed_passes(body: bytes) -> None:
    assert not guard().refuses
    assert guard().allows(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"forbidden"}',
        b'{"model":"forbidden","model":"allowed"}',
        b'{"model":"allowed","model":"forbidden"}',
        b'{"model":"allowed","Model":"forbidden"}',
        b'{"\\u006dodel":"forbidden","model":"allowed"}',
        b'{"model":"allowed","model":["forbidden"]}',
        b'{"model":["allowed"]}',
        b'{"model":null}',
        b"{}",
        b"",
        b'[{"model":"allowed"}]',
        b'data: {"model":"allowed"}\n\n',
        b'{"model":"allowed"} trailing',
        b'{"model":"allowed"}{"model":"forbidden"}',
        b'{"model":"allowed"',
        b'{"t":NaN,"model":"allowed"}',
        b"[" * 100_000,
        gzip.compress(b'{"model":"allowed"}', mtime=0),
        b'{"model":"allowed\xff"}',
        b'{"model":"allowed","models":["forbidden"]}',
        b'{"model":"allowed","fallbacks":[{"model":"forbidden"}]}',
    ],
)
def test_what_is_not_certain_is_refused(body: bytes) -> None:
    """A name given twice, in another case, a body that is no JSON object: servers differ in what they make of it."""
    assert not guard().allows(body)


OTHER_KINDS = [
    {"content_encoding": "gzip"},
    {"content_type": "multipart/form-data; boundary=b"},
    {"content_type": "x"},
    {"content_type": "application/json; charset=utf-7"},
    {"content_type": "application/json;a=1,application/x-www-form-urlencoded"},
]


@pytest.mark.parametrize("headers", OTHER_KINDS)
def test_a_body_of_another_kind_is_refused(headers: dict[str, str]) -> None:
    assert not guard(**headers).allows(b'{"model":"allowed"}')


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "application/a+json"])
def test_json_goes_by_several_names(content_type: str) -> None:
    assert guard(content_type=content_type).allows(b'{"model":"allowed"}')


@pytest.mark.parametrize(
    "path",
    [
        "/openai/deployments/forbidden/chat/completions",
        "/openai/Deployments/forbidden/chat/completions",
        "/openai/%64eployments/forbidden/chat/completions",
        "/openai/deployments/allowed/../forbidden/chat/completions",
        "/openai/deployments/allowed/%2e%2e/forbidden/chat/completions",
        "/openai//deployments/allowed/x",
        "/v1beta/models/forbidden:generateContent",
        "/v1beta/%6dodels/forbidden:predictLongRunning",
        "/model/forbidden/invoke",
        "/model/forbidden/%69nvoke",
        "/model/forbidden/invoke/",
        "/model/arn:aws:bedrock:eu:1:inference-profile/forbidden/converse",
        "/v1/engines/forbidden/completions",
        "/v2/models/forbidden/infer",
        "/models/forbidden/v1/chat/completions",
        "/v1/realtime?model=forbidden",
        "/v1/projects/p/locations/l/endpoints/forbidden:predict",
        "/openai/deployments;a/forbidden/chat",
        "/v1/chat/completions?Model=forbidden",
    ],
)
def test_a_model_in_the_path_is_not_covered_by_one_in_the_body(path: str) -> None:
    found = guard(path)
    assert found.refuses
    assert not found.allows(b'{"model":"allowed"}')


@pytest.mark.parametrize("path", ["/v1beta/models/allowed:generateContent", "/model/allowed/converse", "/x?model=also"])
def test_an_allowed_model_in_the_path_is_enough(path: str) -> None:
    assert not guard(path).refuses
    assert guard(path).allows(b"{}")
    assert not guard(path).allows(b'{"model":"forbidden"}')
    assert not guard(path, has_body=False).refuses


@pytest.mark.parametrize(("method", "headers"), [("GET", {}), ("HEAD", {}), ("DELETE", {}), ("OPTIONS", {})])
def test_what_generates_nothing_may_be_asked_by_everybody(method: str, headers: dict[str, str]) -> None:
    found = guard("/v1/models/forbidden", has_body=False, method=method, **headers)
    assert not found.refuses
    assert not found.needs_body


@pytest.mark.parametrize(
    ("method", "has_body", "headers"),
    [
        ("post", True, {}),
        ("PUT", True, {}),
        ("GET", True, {}),
        ("POST", False, {}),
        ("GET", False, {"upgrade": "websocket"}),
        ("GET", False, {"x_http_method_override": "POST"}),
        ("GET", False, {"x_method_override": "POST"}),
    ],
)
def test_what_only_looks_harmless_is_checked(method: str, has_body: bool, headers: dict[str, str]) -> None:
    found = guard(CHAT, has_body=has_body, method=method, **headers)
    assert found.refuses or found.needs_body


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.text(max_size=8), st.integers(-9, 9), st.none()), max_size=6))
def test_of_any_object_all_names_are_found(document: dict[str, Any]) -> None:
    names = names_in_body(orjson.dumps(document))
    values = [value for key, value in document.items() if key.casefold() == "model"]
    if all(isinstance(value, str) for value in values):
        assert names == frozenset(values)
    else:
        assert names is None


@given(st.binary(max_size=60))
def test_no_body_raises(body: bytes) -> None:
    names_in_body(body)


@given(st.text(max_size=40))
def test_no_path_raises(path: str) -> None:
    names_in_target("/" + path)
