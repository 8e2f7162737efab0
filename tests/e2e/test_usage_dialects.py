"""Every dialect, whole and streamed, in every encoding, through the real Envoy: counted exactly, passed untouched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.envoy_client import Client, assert_clean, client_of
from support.usage_cases import CASES, Case, metering

from extproc.demo.stack import Stack

pytestmark = pytest.mark.e2e

ENCODINGS = ("identity", "gzip", "br", "zstd", "deflate")
COMPRESSED = ENCODINGS[1:]


def used(stack: Stack) -> int:
    """What the embedded limiter has counted."""
    return sum(counter.used for counter in stack.server.limiter.snapshot())


async def counted(stack: Stack, client: Client, case: Case, **headers: str) -> tuple[str, int]:
    """Whether the answer to a case was the model's own, to the byte, and what was charged for it."""
    request = case.request(**headers)
    direct = await Client(f"http://{stack.model.address}", client.session).send(**request)
    before = used(stack)
    answer = await client.send(**request)
    if answer.status != 200 or answer.body != direct.body:
        return f"{answer.status}, {len(answer.body)} bytes in place of {len(direct.body)}", used(stack) - before
    if answer.headers.get("content-encoding", "identity") != headers.get("x-sim-encoding", "identity"):
        return "another encoding", used(stack) - before
    return "untouched", used(stack) - before


def logged(log: Path) -> dict[str, dict[str, Any]]:
    """The lines of an access log by the name of their case."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {line["host"].removesuffix(".example.com"): line for line in lines}


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_every_dialect_is_counted_exactly(tmp_path: Path, encoding: str) -> None:
    """S0.1, S0.2, S0.D11, S4.13, S4.15: the true total, the model's bytes, and every field of the access log."""
    log = tmp_path / "access.log"
    forced = {"x-sim-encoding": encoding, "x-sim-force-encoding": "true"}
    async with Stack(metering(), gateway={"access_log": log}) as stack, client_of(stack) as client:
        seen = {case.name: await counted(stack, client, case, **forced) for case in CASES}
        assert seen == {case.name: ("untouched", case.logged["totalTokens"]) for case in CASES}
        page = stack.server.metrics.render()[0].decode()
        assert f'extproc_usage_total{{source="reported"}} {float(len(CASES))}' in page
        assert f'extproc_exchanges_total{{ending="complete"}} {float(len(CASES))}' in page
        await assert_clean(stack)
    told = logged(log)
    assert {case.name: _only(case.logged, told[case.name]) for case in CASES} == {
        case.name: case.logged for case in CASES
    }


def _only(wanted: Mapping[str, Any], line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: line[key] for key in wanted}


@pytest.mark.parametrize("encoding", COMPRESSED)
async def test_an_encoding_that_client_and_model_agree_on_is_kept(encoding: str) -> None:
    """S0.D11: with `stripAcceptEncoding: false` nobody's wish is changed, and the count is as exact."""
    config = metering(stripAcceptEncoding=False)
    wishes = {"accept-encoding": encoding, "x-sim-encoding": encoding}
    async with Stack(config) as stack, client_of(stack) as client:
        seen = {case.name: await counted(stack, client, case, **wishes) for case in CASES}
        assert seen == {case.name: ("untouched", case.logged["totalTokens"]) for case in CASES}
        assert all(dict(each.headers)["accept-encoding"] == encoding for each in stack.model.requests)
        await assert_clean(stack)


async def test_wasm_shims_expression_counts_every_dialect() -> None:
    """S0.D1: `responseBodyJSON` looks where OpenAI has the total; elsewhere the usage of the dialect is charged."""
    config = metering('responseBodyJSON("/usage/total_tokens")')
    async with Stack(config) as stack, client_of(stack) as client:
        seen = {case.name: await counted(stack, client, case) for case in CASES}
        assert seen == {case.name: ("untouched", case.logged["totalTokens"]) for case in CASES}
        await assert_clean(stack)


@pytest.mark.parametrize("pieces", [29, 1000])
async def test_where_the_bytes_are_cut_does_not_matter(pieces: int) -> None:
    """S0.5: frames that arrive in pieces, or several at once, are the same frames."""
    async with Stack(metering()) as stack, client_of(stack) as client:
        seen = {case.name: await counted(stack, client, case, **{"x-sim-chunk": str(pieces)}) for case in CASES}
        assert seen == {case.name: ("untouched", case.logged["totalTokens"]) for case in CASES}
        await assert_clean(stack)


@pytest.mark.parametrize("dialect", sorted({case.dialect for case in CASES}))
async def test_a_dialect_may_be_named(dialect: str) -> None:
    """What is configured is read; an action set with its own name for it wins."""
    config = metering(dialect="ollama")
    config["actionSets"][0]["dialect"] = dialect
    async with Stack(config) as stack, client_of(stack) as client:
        mine = [case for case in CASES if case.dialect == dialect]
        seen = {case.name: await counted(stack, client, case) for case in mine}
        assert seen == {case.name: ("untouched", case.logged["totalTokens"]) for case in mine}
        await assert_clean(stack)


async def test_every_part_can_be_priced(tmp_path: Path) -> None:
    """Cached tokens at a tenth, output four times as dear: the cost of each answer is in the log and can be charged."""
    prices = {"*": {"input": 10.0, "output": 40.0, "cached": 1.0, "cacheWrite": 12.5}}
    log = tmp_path / "access.log"
    config = metering("usage.cost", prices=prices)
    async with Stack(config, gateway={"access_log": log}) as stack, client_of(stack) as client:
        seen = {case.name: (await counted(stack, client, case))[1] for case in CASES}
        await assert_clean(stack)
    assert seen == {case.name: _cost(case) for case in CASES}
    assert {name: line["cost"] for name, line in logged(log).items()} == seen


def _cost(case: Case) -> int:
    said = case.logged
    cached, written = said["cachedTokens"], said["cacheWriteTokens"]
    plain = said["promptTokens"] - cached - written
    return round(plain * 10 + cached * 1 + written * 12.5 + said["completionTokens"] * 40)
