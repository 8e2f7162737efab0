"""`/usage` and the page before it: what an operator's browser, `extproc top` and scripts rely on."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from extproc.admin import usage as module
from extproc.admin.page import PAGE
from extproc.admin.server import AdminServer
from extproc.admin.usage import UsagePage, nearest
from extproc.config.model import Limit
from extproc.limiter.embedded import EmbeddedLimiter
from extproc.limiter.limits import LimitSet
from extproc.limiter.seam import Query
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.names import OTHER
from extproc.telemetry.nearness import LimitUse, LimitWatch
from extproc.telemetry.spending import Spending
from extproc.usage.usage import Usage


def usage(prompt: int, completion: int = 0, model: str = "qwen", cost: int | None = None) -> Usage:
    return Usage(prompt, completion, prompt + completion, model=model, source="reported", cost=cost)


def watch(*counters: LimitUse) -> LimitWatch:
    async def found(at_most: int) -> list[LimitUse]:
        return list(counters)

    return LimitWatch(found)


@pytest.fixture
def spending() -> Spending:
    return Spending(("user", "group"), 1000, clock=lambda: 1_700_000_000.0)


def page_of(metrics: Metrics, clock: float = 1_700_000_060.0) -> UsagePage:
    return UsagePage(metrics, clock=lambda: clock)


class TestPage:
    async def test_who_spends_what(self, spending: Spending) -> None:
        metrics = Metrics("1.2.3", spending)
        for _ in range(2):
            spending.allowed(("ann", "free"), "route")
            spending.used(("ann", "free"), "route", usage(20, 10, cost=4), 30, "openai")
        spending.refused(("ann", "free"), "route", "minute")
        spending.used(("bob", "premium"), "batch", usage(500), None)
        spending.rejected("unauthorized")
        metrics.used(usage(1), "openai", 1.0, None)
        metrics.report_ended("failed")
        page = await page_of(metrics)()
        assert page["rows"] == [
            {
                "who": {"user": "bob", "group": "premium"},
                "namespaces": ["batch"],
                "requests": {"allowed": 0, "refused": 0},
                "refusals": {},
                "tokens": {"input": 500, "output": 0, "total": 500, "charged": 0},
                "cost": None,
                "models": {"qwen": {"input": 500, "output": 0, "total": 500, "cost": None}},
                "last_seen": 1_700_000_000.0,
            },
            {
                "who": {"user": "ann", "group": "free"},
                "namespaces": ["route"],
                "requests": {"allowed": 2, "refused": 1},
                "refusals": {"minute": 1},
                "tokens": {"input": 40, "output": 20, "total": 60, "charged": 60},
                "cost": 8,
                "models": {"qwen": {"input": 40, "output": 20, "total": 60, "cost": 8}},
                "last_seen": 1_700_000_000.0,
            },
        ]
        assert page["other"] is None
        assert (page["now"], page["version"], page["uptime"]) == (1_700_000_060.0, "1.2.3", 0.0)
        assert page["labels"] == ["user", "group"]
        assert page["totals"]["tokens"] == 560
        assert page["totals"]["requests"] == {
            "allowed": 2, "refused": 1, "unauthenticated": 0, "unauthorized": 1, "model": 0, "no_limit": 0,
            "no_match": 0, "no_provider": 0, "no_selector": 0, "body": 0, "encoding": 0, "too_large": 0,
            "guard": 0, "failure": 0,
        }  # fmt: skip
        assert page["totals"]["refusals"] == [{"namespace": "route", "limit": "minute", "requests": 1}]
        assert page["totals"]["sources"]["reported"] == 1
        assert page["totals"]["reports"] == {"sent": 0, "dropped": 0, "failed": 1}
        assert page["totals"]["users"] == {"told_apart": 2, "at_most": 1000}

    async def test_those_with_few_tokens_are_one_row(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Bounded, and nothing is missing from the sums."""
        monkeypatch.setattr(module, "ROWS", 3)
        spending = Spending(("user",), 6)
        for number in (4, 9, 1, 7, 3, 8, 2, 6):
            spending.allowed((f"u{number}",), "route")
            spending.used((f"u{number}",), "route", usage(number), number)
        page = await page_of(Metrics(spending=spending))()
        assert [row["who"]["user"] for row in page["rows"]] == ["u9", "u8", "u7"]
        assert page["other"]["tokens"]["total"] == 4 + 1 + 3 + 2 + 6
        assert page["other"]["requests"]["allowed"] == 5

    async def test_limits_as_the_embedded_limiter_has_them(self) -> None:
        limiter = EmbeddedLimiter(
            LimitSet([Limit(namespace="ns", max_value=100, seconds=60, name="minute", variables=["descriptors[0].u"])]),
            clock=lambda: 0.0,
        )
        for user, hits in (("ann", 20), ("bob", 107)):
            limiter.report(Query("ns", ((("u", user),),), hits))
        metrics = Metrics(limits=LimitWatch(lambda most: nearest(limiter, most)))
        page = await page_of(metrics)()
        assert page["limits"] == [
            {"namespace": "ns", "limit": "minute", "values": [user], "used": used, "maximum": 100,
             "resets_in": 60.0, "window": 60}
            for user, used in (("bob", 107), ("ann", 20))
        ]  # fmt: skip

    async def test_without_users(self) -> None:
        """`extproc limiter` has limits and no users."""
        page = await page_of(Metrics(limits=watch(LimitUse("ns", "minute\x1b", ("a\nb",), 5, 10, 3.25, 60))))()
        assert (page["labels"], page["rows"], page["other"]) == ([], [], None)
        assert (page["limits"][0]["limit"], page["limits"][0]["values"]) == ("minute?", ["a?b"])

    async def test_beyond_the_capacity(self) -> None:
        spending = Spending(("user",), 1)
        for user in ("ann", "bob"):
            spending.used((user,), "route", usage(7), 7)
        page = await page_of(Metrics(spending=spending))()
        assert [row["who"]["user"] for row in page["rows"]] == ["ann"]
        assert page["other"]["tokens"]["total"] == 7
        assert OTHER not in str(page["rows"])


class TestServed:
    @pytest.fixture
    async def client(self, spending: Spending) -> AsyncIterator[aiohttp.ClientSession]:
        metrics = Metrics(spending=spending, limits=watch())
        spending.allowed(("<script>alert(1)</script>", "free"), "route")
        admin = AdminServer(
            "127.0.0.1:0", readiness=lambda: None, metrics=metrics.page, config=dict, usage=UsagePage(metrics)
        )
        await admin.start()
        async with aiohttp.ClientSession(f"http://{admin.address}") as session:
            yield session
        await admin.stop()

    async def test_json(self, client: aiohttp.ClientSession) -> None:
        async with client.get("/usage") as response:
            assert response.headers["Content-Type"] == "application/json"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cache-Control"] == "no-store"
            page: Any = await response.json()
        assert page["rows"][0]["who"]["user"] == "<script>alert(1)</script>"

    async def test_metrics_that_are_made_in_turns(self, client: aiohttp.ClientSession) -> None:
        async with client.get("/metrics", headers={"Accept": "application/openmetrics-text"}) as response:
            text = await response.text()
            assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        assert 'decision="allowed",limit=""} 1\n' in text
        assert text.endswith("# EOF\n")

    async def test_the_page_runs_its_own_script_and_nothing_else(self, client: aiohttp.ClientSession) -> None:
        async with client.get("/") as response:
            policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
            html = await response.read()
            assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        for tag, directive in ((b"script", "script-src"), (b"style", "style-src")):
            (content,) = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), html, re.DOTALL)
            assert policy[directive] == f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert "unsafe" not in str(policy)

    async def test_every_link_works(self, client: aiohttp.ClientSession) -> None:
        links = re.findall(rb'<a href="([a-z]+)"', PAGE.html)
        assert set(links) == {b"usage", b"metrics", b"config", b"healthz", b"readyz"}
        for link in links:
            async with client.get(f"/{link.decode()}") as response:
                assert response.status == 200

    async def test_only_reading(self, client: aiohttp.ClientSession) -> None:
        for method in ("POST", "PUT", "DELETE"):
            async with client.request(method, "/usage") as response:
                assert response.status == 405


def test_the_page_takes_nothing_from_elsewhere() -> None:
    """Works where there is no internet, and tells nobody who looks at it."""
    html = PAGE.html.decode()
    elsewhere = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+", html)) - {"http://www.w3.org"}
    assert elsewhere == set()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\son\w+=", html)


async def test_without_usage_there_is_a_list_of_links() -> None:
    admin = AdminServer("127.0.0.1:0", readiness=lambda: None, metrics=Metrics().render, config=dict)
    await admin.start()
    async with aiohttp.ClientSession(f"http://{admin.address}") as session, session.get("/") as response:
        assert "/usage" not in await response.text()
    async with aiohttp.ClientSession(f"http://{admin.address}") as session, session.get("/usage") as response:
        assert response.status == 404
    await admin.stop()
