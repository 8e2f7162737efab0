"""The web page in a real browser."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.chromium import Chromium, find_chromium

from extproc.admin.server import AdminServer
from extproc.admin.usage import UsagePage
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.nearness import LimitUse, LimitWatch
from extproc.telemetry.spending import Spending
from extproc.usage.usage import Usage

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")

HOSTILE = "<img src=http://192.0.2.1/x onerror='document.title=1'><script>document.title=1</script>"
ROWS = "[...document.querySelectorAll('#rows tr')].map(row => [...row.cells].map(cell => cell.textContent))"


def usage(prompt: int, completion: int, model: str) -> Usage:
    return Usage(prompt, completion, prompt + completion, model=model, source="reported", cost=2_500_000)


@pytest.fixture
def metrics() -> Metrics:
    spending = Spending(("user", "group"), 100)
    for user, group, prompt in ((HOSTILE, "free", 9000), ("ann", "premium", 60), ("", "", 1)):
        spending.allowed((user, group), "route")
        spending.used((user, group), "route", usage(prompt, 40, HOSTILE), prompt + 40)
    for _ in range(3):
        spending.refused(("ann", "premium"), "route", HOSTILE)
    spending.rejected("unauthenticated")

    async def nearest(at_most: int) -> list[LimitUse]:
        return [
            LimitUse("route", "per-minute", (HOSTILE,), 107, 100, 42.0, 60),
            LimitUse("route", "per-day", (), 90, 100, 7200.0, 86400),
            LimitUse("route", "per-hour", ("ann",), 10, 100, 600.0, 3600),
        ]

    metrics = Metrics(spending=spending, limits=LimitWatch(nearest))
    metrics.used(usage(1, 1, "m"), "openai", 1.0, None)
    return metrics


@pytest.fixture
async def admin(metrics: Metrics) -> AsyncIterator[AdminServer]:
    admin = AdminServer(
        "127.0.0.1:0", readiness=lambda: None, metrics=metrics.page, config=dict, usage=UsagePage(metrics)
    )
    await admin.start()
    yield admin
    await admin.stop()


async def test_the_page_in_a_browser(admin: AdminServer, metrics: Metrics) -> None:
    """One browser, because starting it is what takes long: rows, limits, hostile names, updates, a server that goes."""
    async with Chromium() as browser:
        await browser.call("Page.navigate", url=f"http://{admin.address}/")
        await browser.until("document.querySelectorAll('#rows tr').length === 3")

        rows = await browser.evaluate(ROWS)
        assert [row[:2] for row in rows] == [[HOSTILE, "free"], ["ann", "premium"], ["–", "–"]]
        assert [row[3] for row in rows] == ["9,040", "100", "41"]
        assert rows[1][5:8] == ["2.50", "4", "3"]

        gauges = await browser.evaluate(
            "[...document.querySelectorAll('#limits li')].map(item => [item.className, item.innerText.split('\\n')])"
        )
        assert [kind for kind, _ in gauges] == ["gauged over", "gauged near", "gauged ok"]
        assert gauges[0][1][0] == HOSTILE
        assert "107 of 100" in gauges[0][1]
        assert any(line.startswith("over by 7, resets in ") for line in gauges[0][1])
        assert gauges[1][1][0] == "everybody"
        assert await browser.evaluate("document.querySelector('#refusals li').textContent") == f"{HOSTILE}  route3"
        assert HOSTILE in await browser.evaluate("document.querySelector('#models').textContent")
        assert await browser.evaluate("document.querySelectorAll('main img, main script').length") == 0

        assert metrics.spending is not None
        metrics.spending.used(("new", "free"), "route", usage(100_000, 0, "m"), 100_000)
        await browser.until("document.querySelector('#rows td').textContent === 'new'")
        await browser.evaluate("document.querySelector('[data-sort=refused]').click()")
        assert (await browser.evaluate(ROWS))[0][0] == "ann"

        origin = f"http://{admin.address}/"
        assert set(browser.requests) <= {origin, f"{origin}usage"} | {
            each for each in browser.requests if each[:5] == "data:"
        }
        assert browser.complaints == []
        assert await browser.evaluate("document.title") == "extproc – who spends what"

        await admin.stop()
        await browser.until("document.querySelector('#state').className === 'state lost'")
        assert await browser.evaluate("document.querySelectorAll('#rows tr').length") == 4
