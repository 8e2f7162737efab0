"""`extproc top`: what a terminal shows, and what scripts read."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from extproc.admin.server import AdminServer
from extproc.admin.usage import UsagePage
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.nearness import LimitUse, LimitWatch
from extproc.telemetry.spending import Spending
from extproc.top import cli, fetch
from extproc.top.fetch import Source, Unanswered, pages
from extproc.top.overview import Overviews
from extproc.top.page import NoUsage, Page, read
from extproc.top.view import view
from extproc.usage.usage import Usage

Row = tuple[str, str, int, int, int | None]
"""User, group, tokens, refused, cost."""


def page_json(*rows: Row, limits: tuple[tuple[str, int, int], ...] = (), **more: Any) -> dict[str, Any]:
    """A page with rows, and counters of the limit `minute` by user, used and maximum."""
    return {
        "now": 0.0, "version": "1.0", "uptime": 7200.0, "labels": ["user", "group"], "other": None,
        "rows": [
            {"who": {"user": user, "group": group}, "requests": {"allowed": 10, "refused": refused}, "last_seen": 0.0,
             "tokens": {"input": tokens, "output": 0, "total": tokens, "charged": tokens}, "cost": cost}
            for user, group, tokens, refused, cost in rows
        ],
        "limits": [
            {"namespace": "route", "limit": "minute", "values": [user], "used": used, "maximum": maximum,
             "resets_in": 42.0, "window": 60}
            for user, used, maximum in limits
        ],
        "totals": {
            "tokens": sum(row[2] for row in rows),
            "requests": {"allowed": 10 * len(rows), "refused": sum(row[3] for row in rows), "unauthorized": 2},
            "refusals": [{"namespace": "route", "limit": "minute", "requests": sum(row[3] for row in rows)}],
            "sources": {"reported": 3}, "reports": {"sent": 3, "failed": 0, "dropped": 0},
        },
        **more,
    }  # fmt: skip


def page(*rows: Row, **more: Any) -> Page:
    return read(json.dumps(page_json(*rows, **more)).encode())


ANN: Row = ("ann", "free", 300, 5, None)
BOB: Row = ("bob", "premium", 900, 0, 2_500_000)


def shown(*page_s: Page, height: int | None = None, complaints: tuple[str, ...] = ()) -> str:
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(view(Overviews().of(page_s, 0.0), height, complaints))
    return capture.get()


def line_with(text: str, *words: str) -> str:
    (line,) = (line for line in text.splitlines() if all(word in line for word in words))
    return line


class TestOverview:
    @pytest.mark.parametrize(
        ("by", "first"), [("tokens", "bob"), ("requests", "ann"), ("cost", "bob"), ("refused", "ann")]
    )
    def test_order(self, by: Any, first: str) -> None:
        assert Overviews(by).of([page(ANN, BOB)], 0.0).users[0].who[0] == first

    def test_workers_are_summed_and_of_a_counter_the_highest_counts(self) -> None:
        one = page(ANN, BOB, limits=(("ann", 30, 100), ("bob", 90, 100)))
        two = page(ANN, limits=(("ann", 95, 100),))
        overview = Overviews().of([one, two], 0.0)
        ann = next(user.spent for user in overview.users if user.who == ("ann", "free"))
        assert (ann.tokens.total, ann.requests.refused, ann.cost) == (600, 10, None)
        assert [(limit.values, limit.used) for limit in overview.limits] == [(("ann",), 95), (("bob",), 90)]
        assert overview.tokens == 1500
        assert overview.requests["allowed"] == 30
        assert overview.refusals == (("route", "minute", 10),)

    def test_rates_are_of_the_last_minute(self) -> None:
        overviews = Overviews()
        assert overviews.of([page(ANN)], 0.0).rate is None
        rates = [
            overviews.of([page(("ann", "free", tokens, 0, None))], now).users[0].rate
            for now, tokens in ((30.0, 400), (60.0, 500), (90.0, 500), (121.0, 500))
        ]
        assert rates == [200.0, 200.0, 100.0, 0.0]

    def test_a_restart_makes_no_negative_rate(self) -> None:
        overviews = Overviews()
        overviews.of([page(ANN)], 0.0)
        assert overviews.of([page(("ann", "free", 10, 0, None))], 2.0).rate is None
        assert overviews.of([page(("ann", "free", 20, 0, None))], 4.0).rate == 300.0

    def test_a_new_user_has_a_rate(self) -> None:
        overviews = Overviews()
        overviews.of([page(ANN)], 0.0)
        users = overviews.of([page(ANN, BOB)], 60.0).users
        assert [(user.who[0], user.rate) for user in users] == [("bob", 900.0), ("ann", 0.0)]


class TestView:
    def test_who_spends_what(self) -> None:
        text = shown(page(ANN, BOB, limits=(("ann", 107, 100),)))
        assert line_with(text, "bob", "premium").split()[-5:] == ["900", "–", "2.50", "10", "–"]
        assert line_with(text, "ann", "free").split()[-5:] == ["300", "–", "–", "15", "5"]
        assert line_with(text, "ann", "minute").split()[-4:] == ["107", "100", "42", "s"]
        assert "up 2 h" in text
        assert "2 rejected" in text
        assert line_with(text, "minute", "route", " 5")

    def test_without_prices_there_is_no_column_for_them(self) -> None:
        assert "cost" not in shown(page(ANN))

    def test_nothing_yet(self) -> None:
        assert "No requests yet." in shown(page())

    @pytest.mark.parametrize("height", [24, 40])
    def test_what_has_no_room_is_one_row(self, height: int) -> None:
        rows = [(f"user{number}", "free", 1000 - number, 1, None) for number in range(100)]
        everything = page(*rows, limits=tuple((f"user{number}", number, 100) for number in range(50)))
        text = shown(everything, height=height)
        assert len(text.splitlines()) <= height
        seen = sum(bool(re.match(r" user\d+ +free ", line)) for line in text.splitlines())
        others = line_with(text, "all others").split()
        assert seen >= 5
        assert others[-1] == str(100 - seen)

    def test_lost_reports_and_complaints_stand_out(self) -> None:
        lost = page_json(ANN)
        lost["totals"]["reports"]["failed"] = 3
        text = shown(read(json.dumps(lost).encode()), height=40, complaints=("127.0.0.1:1: nobody\x1b[2J",))
        assert "3 reports lost" in text
        assert "127.0.0.1:1: nobody?[2J" in text

    @pytest.mark.parametrize("name", ["\x1b[2J\x1b]0;owned\x07", "a\nb", "a\rb", "\x9b2J", "‮evil", "[red]x[/]"])
    def test_names_cannot_steer_the_terminal(self, name: str) -> None:
        """They come out of requests; markup is text too."""
        hostile = page_json((name, name, 5, 1, None), limits=((name, 1, 2),), version=name)
        hostile["totals"]["refusals"][0]["limit"] = name
        text = shown(read(json.dumps(hostile).encode()))
        assert not re.search(r"[^\n\x20-\x7e\xa0-\uffff]|[\u202a-\u202e]", text)
        if name.startswith("[red]"):
            assert name in text


class TestReading:
    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"<html>", "not a page of usage: Invalid JSON"),
            (b"[]", "not a page of usage"),
            (b"{}", "not a page of usage: now: Field required"),
            (json.dumps(page_json(("ann", "free", -1, 0, None))).encode(), "rows.0.tokens.input: Input should be"),
            (json.dumps({**page_json(), "uptime": "\x1b[2J"}).encode(), "uptime: Input should be a valid number"),
            (b'{"now": NaN}', "not a page of usage"),
        ],
    )
    def test_what_is_no_page(self, content: bytes, problem: str) -> None:
        with pytest.raises(NoUsage, match=re.escape(problem)) as caught:
            read(content)
        assert "\x1b" not in str(caught.value)

    def test_a_newer_page_may_say_more(self) -> None:
        assert page(ANN, more={"to": "say"}).rows[0].who["user"] == "ann"


@pytest.mark.parametrize("address", ["", "host", ":9090", "unix:", "host:port", "ftp://a:1", "a b:1", "a:1/path"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match="expected `HOST:PORT` or `unix:/path`"):
        Source(address)


async def ask(address: str) -> Page:
    async with Source(address) as source:
        return await source.page()


Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    runners: list[web.AppRunner] = []

    async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
        app = web.Application()
        app.router.add_get("/usage", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return "{}:{}".format(*runner.addresses[0][:2])

    yield start
    for runner in runners:
        await runner.cleanup()


class TestAsking:
    async def test_a_running_extproc(self, tmp_path: Path) -> None:
        spending = Spending(("user",), 10)
        spending.allowed(("ann",), "route")
        spending.used(("ann",), "route", Usage(5, 6, 11, model="m"), 11)

        async def nearest(at_most: int) -> list[LimitUse]:
            return [LimitUse("route", "minute", ("ann",), 11, 100, 5.0, 60)]

        metrics = Metrics(spending=spending, limits=LimitWatch(nearest))
        for address in ("127.0.0.1:0", f"unix:{tmp_path}/admin.sock"):
            admin = AdminServer(
                address, readiness=lambda: None, metrics=metrics.page, config=dict, usage=UsagePage(metrics)
            )
            await admin.start()
            found = await ask(admin.address)
            assert (found.rows[0].who, found.rows[0].tokens.total, found.limits[0].used) == ({"user": "ann"}, 11, 11)
            await admin.stop()

    async def test_nobody_listens(self) -> None:
        with pytest.raises(Unanswered, match=r"^127\.0\.0\.1:1: nobody listens there: Connection refused$"):
            await ask("127.0.0.1:1")

    async def test_another_program(self, serve: Serve) -> None:
        async def moved(request: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": "http://192.0.2.1/"})

        with pytest.raises(Unanswered, match="status 302"):
            await ask(await serve(moved))

    async def test_no_usage_there(self) -> None:
        admin = AdminServer("127.0.0.1:0", readiness=lambda: None, metrics=Metrics().render, config=dict)
        await admin.start()
        with pytest.raises(Unanswered, match="it has no /usage: another program, or an older extproc"):
            await ask(admin.address)
        await admin.stop()

    async def test_silence(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetch, "TIMEOUT", 0.05)

        async def silent(request: web.Request) -> web.Response:
            await asyncio.Event().wait()
            return web.Response()

        with pytest.raises(Unanswered, match=r"no answer within 0\.05 s"):
            await ask(await serve(silent))

    async def test_an_answer_without_end(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetch, "LARGEST", 100_000)

        async def endless(request: web.Request) -> web.Response:
            return web.Response(body=b" " * 200_000)

        with pytest.raises(Unanswered, match="more than 100000 bytes"):
            await ask(await serve(endless))

    async def test_those_that_answer_are_shown_without_those_that_do_not(self, serve: Serve) -> None:
        async def answer(request: web.Request) -> web.Response:
            return web.json_response(page_json(ANN))

        async with Source(await serve(answer)) as there, Source("127.0.0.1:1") as away:
            found, missing = await pages([there, away])
        assert len(found) == 1
        assert str(missing[0]).startswith("127.0.0.1:1: nobody listens there")


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(arguments)


class TestCommand:
    async def run(self, *arguments: str) -> tuple[int, str, str]:
        code = "import sys, argparse; from extproc.top import cli; p = argparse.ArgumentParser(); "
        code += "cli.add_arguments(p); sys.exit(cli.run(p.parse_args()))"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, error = await asyncio.wait_for(process.communicate(), 20)
        return process.returncode or 0, out.decode(), error.decode()

    async def test_once(self, serve: Serve) -> None:
        async def answer(request: web.Request) -> web.Response:
            return web.json_response(page_json(ANN, BOB, limits=(("ann", 107, 100),)))

        address = await serve(answer)
        status, out, error = await self.run("--admin", address, "--once")
        assert (status, error) == (0, "")
        assert "\x1b" not in out
        assert line_with(out, "bob", "premium")
        status, out, error = await self.run("--admin", address, "--admin", "127.0.0.1:1", "--once", "--json")
        found = json.loads(out)
        assert (status, found["rows"][0]["who"]) == (0, {"user": "bob", "group": "premium"})
        assert found["limits"][0]["used"] == 107
        assert error == "extproc: 127.0.0.1:1: nobody listens there: Connection refused\n"

    async def test_nobody_listens(self) -> None:
        status, out, error = await self.run("--admin", "127.0.0.1:1", "--once")
        assert (status, out) == (1, "")
        assert error == "extproc: 127.0.0.1:1: nobody listens there: Connection refused\n"

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (("--admin", "nonsense"), "argument --admin: expected `HOST:PORT` or `unix:/path`, got `nonsense`"),
            (("--interval", "0"), "argument --interval: expected 0.2 to 3600 seconds, got `0`"),
            (("--interval", "nan"), "argument --interval: expected 0.2 to 3600 seconds"),
            (("--by", "name"), "argument --by: invalid choice"),
        ],
    )
    def test_wrong_arguments(
        self, arguments: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            options(*arguments)
        assert problem in capsys.readouterr().err
