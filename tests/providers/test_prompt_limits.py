"""Limits of prompts: what a limiter is asked, and what the embedded one says, with the numbers of Plano's tests."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import request_headers

from extproc.config.prompts import PromptLimits
from extproc.config.secret_headers import CREDENTIAL_HEADERS
from extproc.facts import RequestFacts
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.seam import MAX_HITS, Code, Query
from extproc.providers.prompt_limits import Missing, PromptQueries, counted_value, legacy_body, limits_of

KEY, VALUE = "selector-key", "selector-value"
SELECT = "x-arch-ratelimit-selector"


def limit(
    tokens: int, value: str | None = None, *, model: str = "gpt-4", header: str | None = KEY, **fields: Any
) -> Any:
    selector = None if header is None else {"header": header, "value": value}
    return {"model": model, "selector": selector, "tokens": tokens} | fields


def config_of(*limits: Any, **fields: Any) -> PromptLimits:
    return PromptLimits.model_validate({"limits": list(limits)} | fields)


def facts(headers: dict[str, Any]) -> RequestFacts:
    return RequestFacts(request_headers(headers))


def asked(config: PromptLimits, headers: dict[str, Any], model: str = "gpt-4", tokens: int = 10) -> Any:
    queries = PromptQueries(config)
    return queries.query(queries.select(facts(headers)), model, tokens)


# --- what is asked


def test_the_model_and_its_selector_are_asked_for() -> None:
    """S2.13"""
    query = asked(config_of(limit(50, VALUE)), {KEY: VALUE}, tokens=47)
    assert query == Query("prompts", ((("model", "gpt-4"), (KEY, VALUE)),), 47)


@pytest.mark.parametrize(
    ("tokens", "hits"), [(-1, None), (0, None), (1, 1), (MAX_HITS, MAX_HITS), (2**32, MAX_HITS), (2**70, MAX_HITS)]
)
def test_no_tokens_are_no_question_and_too_many_are_as_many_as_can_be(tokens: int, hits: int | None) -> None:
    """S2.D7"""
    query = asked(config_of(limit(50)), {KEY: VALUE}, tokens=tokens)
    assert (query and query.hits_addend) == hits


@pytest.mark.parametrize(("model", "limited"), [("gpt-4", True), ("GPT-4", True), ("gpt-4o", False), ("", False)])
def test_a_model_without_limits_is_not_asked_for(model: str, limited: bool) -> None:
    """S2.17; another case is no way around a limit."""
    query = asked(config_of(limit(50)), {KEY: VALUE}, model=model)
    assert (query and dict(query.descriptors[0])["model"]) == ("gpt-4" if limited else None)


TENANT, TEAM = limit(50, header="x-tenant"), limit(50, "red", header="x-team")
EVERYBODY = limit(500, header=None)
OTHER_MODEL = limit(50, model="o3", header="x-other")

ON_SERVER: list[tuple[str, list[Any], dict[str, Any], Any]] = [
    # missing, limits, headers, entries besides the model
    ("shared", [TENANT], {"x-tenant": "a"}, {"x-tenant": "a"}),
    ("shared", [TENANT], {"x-tenant": "a", SELECT: "x-other", "x-other": "b"}, {"x-tenant": "a"}),
    ("shared", [TENANT], {}, {"x-tenant": ""}),
    ("shared", [TENANT, TEAM, EVERYBODY], {"x-team": "red"}, {"x-tenant": "", "x-team": "red"}),
    ("shared", [EVERYBODY], {}, {}),
    ("shared", [TENANT, OTHER_MODEL], {"x-tenant": "a", "x-other": "b"}, {"x-tenant": "a"}),
    ("shared", [TENANT], {"x-tenant": b"\xff"}, {"x-tenant": "\N{REPLACEMENT CHARACTER}"}),
    ("deny", [TENANT], {"x-tenant": "a"}, {"x-tenant": "a"}),
    ("deny", [TENANT], {}, Missing("x-tenant")),
    ("deny", [TENANT], {"x-tenant": ""}, Missing("x-tenant")),
    ("deny", [TENANT, TEAM], {"x-tenant": "a"}, Missing("x-team")),
    ("deny", [EVERYBODY], {}, {}),
    ("allow", [TENANT], {}, None),
    ("allow", [TENANT], {"x-tenant": ""}, None),
    ("allow", [TENANT, TEAM], {"x-team": "blue"}, {"x-team": "blue"}),
    ("allow", [TENANT, EVERYBODY], {}, {}),
]
TRUSTED: list[tuple[str, list[Any], dict[str, Any], Any]] = [
    ("shared", [TENANT, TEAM], {SELECT: "x-team", "x-team": "red", "x-tenant": "a"}, {"x-team": "red"}),
    ("shared", [TENANT, TEAM], {SELECT: " X-Team ", "x-team": "red"}, {"x-team": "red"}),
    ("shared", [TENANT], {"x-tenant": "a"}, None),
    ("shared", [TENANT], {SELECT: "x-tenant"}, None),
    ("shared", [TENANT], {SELECT: "x-unknown", "x-unknown": "a", "x-tenant": "a"}, None),
    ("shared", [TENANT], {SELECT: b"\xff\x00", "x-tenant": "a"}, None),
    ("shared", [TENANT, EVERYBODY], {}, {}),
    ("shared", [TENANT, OTHER_MODEL], {SELECT: "x-other", "x-other": "b"}, None),
    ("deny", [TENANT, TEAM], {SELECT: "x-team", "x-team": "red"}, {"x-team": "red"}),
    ("deny", [TENANT], {}, Missing(SELECT)),
    ("deny", [TENANT], {SELECT: "x-tenant"}, Missing(SELECT)),
    ("deny", [TENANT, OTHER_MODEL], {SELECT: "x-other", "x-other": "b"}, Missing(SELECT)),
    ("deny", [EVERYBODY], {}, {}),
    ("allow", [TENANT], {}, None),
]


@pytest.mark.parametrize(
    ("trusted", "missing", "limits", "headers", "found"),
    [(False, *case) for case in ON_SERVER] + [(True, *case) for case in TRUSTED],
)
def test_which_selectors_a_request_has(trusted: bool, missing: str, limits: Any, headers: Any, found: Any) -> None:
    """S2.D10: those of the configuration, and what of a request without them; S2.8: only where a client is trusted
    its word counts, and a selector header that names an absent header is no selector."""
    config = config_of(*limits, trust_selector_header=trusted, on_missing_selector=missing)
    query = asked(config, headers)
    if isinstance(query, Query):
        assert dict(query.descriptors[0]) == {"model": "gpt-4"} | found
    else:
        assert query == found


def test_selectors_are_those_of_the_request_before_it_was_changed() -> None:
    """The credential of the provider may take the place of what selected a limit."""
    queries, about = PromptQueries(config_of(limit(50, header="authorization"))), facts({"authorization": "mine"})
    before = queries.query(queries.select(about), "gpt-4", 1)
    selection = queries.select(about)
    about.change_headers([("authorization", "Bearer of-the-provider")], [SELECT])
    assert queries.query(selection, "gpt-4", 1) == before != queries.query(queries.select(about), "gpt-4", 1)


# --- keys that select


KEY_OF_CLIENT = "Bearer sk-of-a-client"
COUNTED = "sha256:39c5b3d143e11ed8"


@pytest.mark.parametrize("header", [*CREDENTIAL_HEADERS, "x-own-key"])
def test_a_key_is_counted_by_its_hash(header: str) -> None:
    """S2.D24: descriptors, counters, overviews and refusals come of the query."""
    config = config_of(limit(50, header=header), limit(20, KEY_OF_CLIENT, header=header))
    secret = {*CREDENTIAL_HEADERS, "x-own-key"}
    queries = PromptQueries(config, secret)
    query = queries.query(queries.select(facts({header: KEY_OF_CLIENT})), "gpt-4", 21)
    assert isinstance(query, Query)
    assert dict(query.descriptors[0])[header] == counted_value(header, KEY_OF_CLIENT, secret) == COUNTED
    made = limits_of(config, secret)
    assert "sk-of" not in f"{query} {legacy_body(query)!r} {made}"
    assert EmbeddedLimiter(LimitSet(made)).should_rate_limit(query).code is Code.OVER_LIMIT


async def test_nothing_that_the_limiter_shows_has_a_key_in_it() -> None:
    config = config_of(limit(50, header="authorization"), limit(20, "Bearer sk-other", header="authorization"))
    limiter = EmbeddedLimiter(LimitSet(limits_of(config)))
    assert limiter.should_rate_limit(asked(config, {"authorization": KEY_OF_CLIENT}, tokens=30)).code is Code.OK
    shown = repr(await limiter.counters(100))
    assert COUNTED in shown
    assert "sk-" not in shown


def test_other_values_and_missing_keys_stay_as_they_are() -> None:
    assert counted_value("x-team", "red", CREDENTIAL_HEADERS) == "red"
    assert counted_value("authorization", "", CREDENTIAL_HEADERS) == ""


@given(
    headers=st.dictionaries(st.sampled_from([SELECT, KEY, "x-team"]), st.binary(max_size=20)),
    model=st.text(max_size=8) | st.just("gpt-4"),
    tokens=st.integers(),
    trusted=st.booleans(),
)
def test_nothing_that_a_client_sends_raises(headers: Any, model: str, tokens: int, trusted: bool) -> None:
    config = config_of(limit(50), limit(20, VALUE), TEAM, trust_selector_header=trusted, algorithm="fixed")
    limiter = EmbeddedLimiter(LimitSet(limits_of(config)))
    query = asked(config, headers, model, tokens)
    if query is not None:
        assert limiter.should_rate_limit(query).code is not Code.UNKNOWN
        assert legacy_body(query).decode()


# --- what the embedded limiter makes of it

HOURLY = {"per": "hour"}
WALKS: list[tuple[str, list[Any], list[tuple[str, str, str, int, bool]]]] = [
    # limits, [(model, header, value, tokens, whether it is allowed)]
    ("S2.12: within the limit", [limit(50, VALUE)], [("gpt-4", KEY, VALUE, 47, True)]),
    ("S2.13: beyond it", [limit(50, VALUE)], [("gpt-4", KEY, VALUE, 47, True), ("gpt-4", KEY, VALUE, 47, False)]),
    (
        "S2.14: more than the whole bucket, though it is full",
        [limit(100, "value", **HOURLY)],
        [("gpt-4", KEY, "value", 101, False), ("gpt-4", KEY, "value", 100, True), ("gpt-4", KEY, "value", 1, False)],
    ),
    (
        "S2.15: a limit for a value goes before one for its header",
        [limit(100, **HOURLY), limit(200, "value1", **HOURLY), limit(20, "value2", **HOURLY)],
        [
            ("gpt-4", KEY, "value1", 150, True),
            ("gpt-4", KEY, "value1", 51, False),
            ("gpt-4", KEY, "value2", 21, False),
            ("gpt-4", KEY, "value2", 20, True),
            ("gpt-4", KEY, "value3", 101, False),
            ("gpt-4", KEY, "value3", 100, True),
        ],
    ),
    (
        "S2.16: a header alone is one bucket for each of its values",
        [limit(100, **HOURLY)],
        [
            ("gpt-4", KEY, "value1", 50, True),
            ("gpt-4", KEY, "value2", 60, True),
            ("gpt-4", KEY, "value1", 70, False),
        ],
    ),
    (
        "S2.16: an empty value is a header alone",
        [limit(100, "", **HOURLY)],
        [("gpt-4", KEY, "value1", 50, True), ("gpt-4", KEY, "value2", 60, True), ("gpt-4", KEY, "value1", 70, False)],
    ),
    (
        "S2.17: unknown models and keys are not limited",
        [limit(100, VALUE, **HOURLY)],
        [("unknown", KEY, VALUE, 5000, True), ("gpt-4", "unknown-key", VALUE, 5000, True)],
    ),
    (
        "S2.18: a limit for a value does not catch others",
        [limit(100, "value", **HOURLY)],
        [("gpt-4", KEY, "not-the-value", 5000, True), ("gpt-4", KEY, "value", 5000, False)],
    ),
    (
        "S2.19: two models with the same selector are independent",
        [limit(100, "value", **HOURLY), limit(200, "value", model="gpt-4o", **HOURLY)],
        [
            ("gpt-4", KEY, "value", 100, True),
            ("gpt-4o", KEY, "value", 200, True),
            ("gpt-4", KEY, "value", 1, False),
            ("gpt-4o", KEY, "value", 1, False),
        ],
    ),
    (
        "all requests together, whatever they say",
        [limit(100, header=None)],
        [("gpt-4", KEY, "a", 60, True), ("gpt-4", "x-team", "b", 60, False), ("GPT-4", KEY, "a", 41, False)],
    ),
    (
        "several units",
        [limit(10, per="second"), limit(15, per="day")],
        [("gpt-4", KEY, "a", 10, True), ("gpt-4", KEY, "a", 1, False), ("gpt-4", KEY, "b", 10, True)],
    ),
    (
        "every selector of a model sees its own",
        [limit(100), limit(50, "red", header="x-team")],
        [("gpt-4", "x-team", "red", 50, True), ("gpt-4", KEY, "a", 100, True), ("gpt-4", "x-team", "red", 1, False)],
    ),
    (
        "S2.D10: who leaves the header out shares a bucket with the others who do",
        [limit(100)],
        [("gpt-4", "x-any", "a", 60, True), ("gpt-4", "x-any", "b", 60, False), ("gpt-4", KEY, "c", 60, True)],
    ),
    (
        "any text may be a value",
        [limit(100), limit(10, "a\"'\\\n?ä\N{SNOWMAN}")],
        [("gpt-4", KEY, "a\"'\\\n?ä\N{SNOWMAN}", 11, False), ("gpt-4", KEY, "a\"'\\\n", 11, True)],
    ),
]


@pytest.mark.parametrize("algorithm", ["fixed", "gcra"])
@pytest.mark.parametrize(("limits", "requests"), [walk[1:] for walk in WALKS], ids=[walk[0] for walk in WALKS])
def test_the_embedded_limiter(limits: Any, requests: Any, algorithm: str) -> None:
    config = config_of(*limits, algorithm=algorithm)
    limiter = EmbeddedLimiter(LimitSet(limits_of(config)), clock=lambda: 1000.0)
    allowed = []
    for model, header, value, tokens, _ in requests:
        query = asked(config, {header: value}, model, tokens)
        allowed.append(query is None or limiter.should_rate_limit(query).code is Code.OK)
    assert allowed == [request[-1] for request in requests]


@pytest.mark.parametrize(("per", "seconds"), [("second", 1), ("minute", 60), ("hour", 3600), ("day", 86400)])
def test_units(per: str, seconds: int) -> None:
    """S2.20: a window of the unit's length, and after it the limit is whole again."""
    config = config_of(limit(50, per=per), algorithm="fixed")
    now = [1000.0]
    limiter = EmbeddedLimiter(LimitSet(limits_of(config)), clock=lambda: now[0])
    query = asked(config, {KEY: VALUE}, tokens=47)
    codes = []
    for at in (0, seconds - 0.5, seconds):
        now[0] = 1000.0 + at
        codes.append(limiter.should_rate_limit(query).code)
    assert codes == [Code.OK, Code.OVER_LIMIT, Code.OK]


def test_limits_are_made_for_the_domain_with_the_algorithm() -> None:
    [made] = limits_of(config_of(limit(50, VALUE), domain="plano"))
    assert (made.namespace, made.algorithm, made.max_value, made.seconds) == ("plano", "gcra", 50, 60)


def test_names_of_limits_tell_nothing_of_values() -> None:
    """S2.D24: clients are shown them."""
    config = config_of(limit(50, VALUE), limit(100, per="day"), EVERYBODY)
    assert [made.name for made in limits_of(config)] == [
        "gpt-4 selector-key 50/minute",
        "gpt-4 selector-key 100/day",
        "gpt-4 500/minute",
    ]


# --- Plano's words


def test_the_body_of_plano() -> None:
    """S2.13, S2.D24: only where it is asked for."""
    query = asked(config_of(limit(50, VALUE)), {KEY: VALUE}, tokens=107)
    assert legacy_body(query) == (
        b'exceeded limit provider=gpt-4, selector=Header { key: "selector-key", value: "selector-value" }, '
        b"tokens_used=107"
    )


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ('a"b\\c', r'"a\"b\\c"'),
        ("it's", '"it\'s"'),
        ("\0\t\r\n", r'"\0\t\r\n"'),
        ("\x01\x7f\x80", r'"\u{1}\u{7f}\u{80}"'),
        ("ä€\N{GRINNING FACE}", '"ä€\N{GRINNING FACE}"'),
        ("e\N{COMBINING ACUTE ACCENT}", r'"e\u{301}"'),
        ("a\N{NO-BREAK SPACE}\N{ZERO WIDTH JOINER}b", r'"a\u{a0}\u{200d}b"'),
        ("{}", '"{}"'),
    ],
)
def test_values_are_escaped_as_in_rust(value: str, written: str) -> None:
    query = Query("prompts", ((("model", "gpt-4"), (KEY, value)),), 1)
    assert f'key: "{KEY}", value: {written} }}, tokens_used=1' in legacy_body(query).decode()


def test_the_body_of_plano_without_a_selector() -> None:
    query = asked(config_of(EVERYBODY), {})
    assert (
        legacy_body(query) == b'exceeded limit provider=gpt-4, selector=Header { key: "", value: "" }, tokens_used=10'
    )
