"""The load generator: h2load of nghttp2, which sends an exact number of requests and logs each of them."""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

_TIMEOUT = 120.0
_FINISHED = re.compile(r"^finished in .*?, ([\d.]+) req/s", re.MULTILINE)
_SUCCEEDED = re.compile(r"^requests: .*?, (\d+) succeeded", re.MULTILINE)
HOST = "bench.example.com"


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of the load generator saw. Latencies run to the end of the answer, in milliseconds."""

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float


def find_h2load() -> str:
    """Its path; raises BenchError with what to install."""
    found = shutil.which("h2load")
    if found is None:
        raise BenchError("h2load is not installed: apt-get install nghttp2-client")
    return found


async def run(
    url: str, body: bytes, *, requests: int, connections: int, rate: int | None = None, headers: Sequence[str] = ()
) -> Load:
    """POST `body` to `url` over HTTP/1.1 so often. Raises BenchError unless every answer was a 2xx.

    `rate` is in requests a second and connection; as fast as answers come where it is None. `headers` are sent with
    each request, as `name: value`.
    """
    pace = () if rate is None else (f"--rps={rate}",)
    with tempfile.TemporaryDirectory(prefix="extproc-bench-") as directory:
        data, log = _file(directory, body), Path(directory, "requests.tsv")
        process = await asyncio.create_subprocess_exec(
            find_h2load(),
            *("--h1", "--threads=1", f"--requests={requests}", f"--clients={connections}"),
            *(f"--data={data}", f"--log-file={log}", f"--header=:authority: {HOST}"),
            *("--header=content-type: application/json", *(f"--header={header}" for header in headers), *pace, url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), _TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise BenchError(f"h2load: {requests} requests took more than {_TIMEOUT:.0f} s") from None
        return parse(output.decode(), _text(log), requests)


def _file(directory: str, content: bytes) -> Path:
    path = Path(directory, "body.json")
    path.write_bytes(content)
    return path


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def parse(output: str, log: str, requests: int) -> Load:
    """h2load's summary and its log lines `start, status, microseconds`; raises BenchError for a failed request."""
    finished, succeeded = _FINISHED.search(output), _SUCCEEDED.search(output)
    if finished is None or succeeded is None:
        raise BenchError(f"h2load said something unexpected:\n{output[-1000:]}")
    rows = [line.split("\t") for line in log.splitlines()]
    bad = sorted({status for _, status, _ in rows if not status.startswith("2")})
    if int(succeeded[1]) != requests or len(rows) != requests or bad:
        raise BenchError(f"{succeeded[1]} of {requests} requests succeeded; other statuses: {', '.join(bad) or 'none'}")
    latencies = [int(microseconds) / 1000 for _, _, microseconds in rows]
    return Load(requests, float(finished[1]), statistics.median(latencies), percentile(latencies, 99))


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank; raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
