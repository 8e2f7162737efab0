"""What guards and providers count, as a dashboard finds it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support.exposition import told
from support.guards import DENIED, GuardedGateway, chat, guarded
from support.messages import request_headers, response_body, response_headers

from extproc.telemetry.guarding import BUCKETS, MAX_NAMES, MAX_RULES, GuardingMetrics
from extproc.telemetry.metrics import Metrics

VERDICTS = "extproc_guard_verdicts_total"
DENIALS = "guard_denied_total"
SECONDS = "extproc_guard_seconds"
TOKENS = "extproc_guard_tokens_total"
ROUTED = "extproc_routed_total"


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    """Whatever a test counts can be read in both formats."""
    metrics = Metrics()
    yield metrics
    assert list(parse_text(metrics.render()[0].decode()))
    page, content_type = metrics.render("application/openmetrics-text;version=1.0.0")
    assert "openmetrics" in content_type
    assert list(parse_openmetrics(page.decode()))


def test_nothing_is_there_before_a_guard_was_asked(metrics: Metrics) -> None:
    for name in (VERDICTS, DENIALS, f"{SECONDS}_count", TOKENS, ROUTED):
        assert told(metrics, name) == {}


def test_verdicts_are_told_apart(metrics: Metrics) -> None:
    """S3.D14."""
    metrics.guarding.judged("chat", "request", "deny", enforced=True)
    metrics.guarding.judged("chat", "request", "deny", enforced=True)
    metrics.guarding.judged("chat", "request", "deny", enforced=False)
    metrics.guarding.judged("chat", "answer", "unparsable", enforced=True)
    assert told(metrics, VERDICTS) == {
        ("chat", "enforce", "deny", "request"): 2,
        ("chat", "shadow", "deny", "request"): 1,
        ("chat", "enforce", "unparsable", "answer"): 1,
    }


def test_rules_are_told_apart(metrics: Metrics) -> None:
    """S3.D14: `guard_denied_total{rule}`."""
    for rule in ("deny[0]", "deny[0]", "allow", "model"):
        metrics.guarding.denied("chat", rule, enforced=True)
    assert told(metrics, DENIALS) == {
        ("chat", "enforce", "deny[0]"): 2,
        ("chat", "enforce", "allow"): 1,
        ("chat", "enforce", "model"): 1,
    }


def test_how_long_guards_took_and_what_they_cost(metrics: Metrics) -> None:
    metrics.guarding.took("chat", 0.0007, 42)
    metrics.guarding.took("chat", 11.0, 0)
    buckets = told(metrics, f"{SECONDS}_bucket")
    assert (buckets["chat", "0.0005"], buckets["chat", "0.001"], buckets["chat", "10.0"]) == (0, 1, 1)
    assert buckets["chat", "+Inf"] == told(metrics, f"{SECONDS}_count")["chat",] == 2
    assert told(metrics, f"{SECONDS}_sum")["chat",] == pytest.approx(11.0007)
    assert told(metrics, TOKENS) == {("chat",): 42}


def test_the_default_deadline_is_a_bucket() -> None:
    assert max(BUCKETS) == 10.0


def test_names_over_reloads_are_bounded(metrics: Metrics) -> None:
    """A series stays for ever: those beyond are one."""
    for number in range(MAX_NAMES + 50):
        metrics.guarding.took(f"guard-{number}", 0.001, 1)
        metrics.guarding.routed(f"provider-{number}")
    assert len(told(metrics, TOKENS)) <= MAX_NAMES + 1
    assert sum(told(metrics, TOKENS).values()) == MAX_NAMES + 50
    assert len(told(metrics, ROUTED)) <= MAX_NAMES + 1
    assert sum(told(metrics, ROUTED).values()) == MAX_NAMES + 50


def test_rules_are_bounded(metrics: Metrics) -> None:
    for number in range(MAX_RULES + 50):
        metrics.guarding.denied("chat", f"deny[{number}]", enforced=True)
    counted = told(metrics, DENIALS)
    assert len(counted) <= MAX_RULES + 1
    assert counted["chat", "enforce", "(other)"] == 50


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(), st.sampled_from(["request", "answer"]), st.text(max_size=9), st.booleans(), st.text())
    )
)
def test_any_name_can_be_read(events: list[tuple[str, str, str, bool, str]]) -> None:
    """What cannot be shown is replaced, and nothing is lost in the sum."""
    metrics = Metrics()
    guarding: GuardingMetrics = metrics.guarding
    for guard, subject, outcome, enforced, rule in events:
        guarding.judged(guard, "request" if subject == "request" else "answer", outcome, enforced=enforced)
        guarding.denied(guard, rule, enforced=True)
        guarding.took(guard, 0.1, 1)
    assert sum(told(metrics, VERDICTS).values()) == len(events)
    assert sum(told(metrics, DENIALS).values()) == len(events)
    assert sum(told(metrics, TOKENS).values()) == len(events)


async def test_a_request_and_an_answer_through_a_gateway() -> None:
    """Counted once each, in the mode of the guard, with the rule, and never with what was said."""
    for mode in ("enforce", "shadow"):
        async with GuardedGateway(guarded(mode=mode, answers={})) as gateway:
            await gateway.ask(chat(DENIED))
            await gateway.ask(chat("hello"))
            await gateway.ask(b"{")
            content = ('{"choices":[{"message":{"content":"%s"}}]}' % DENIED).encode()  # noqa: UP031
            await gateway.exchange(request_headers(ends=True), response_headers(), response_body(content))
            verdicts = told(gateway.metrics, VERDICTS)
            assert verdicts == {
                ("chat", mode, "deny", "request"): 1,
                ("chat", mode, "allow", "request"): 1,
                ("chat", mode, "unparsable", "request"): 1,
                ("chat", mode, "deny", "answer"): 1,
            }
            assert told(gateway.metrics, DENIALS) == {("chat", mode, "deny[0]"): 2, ("chat", mode, "unparsable"): 1}
            assert told(gateway.metrics, f"{SECONDS}_count") == {("chat",): 3}
            assert gateway.metrics.denied == (2 if mode == "enforce" else 0)
            assert "账号" not in gateway.metrics.render()[0].decode()
