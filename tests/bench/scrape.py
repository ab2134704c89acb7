"""One scrape of a folder as 1, 4, 64 and 512 busy workers of three networks leave it; what the folder takes; a count.

Beside ours prometheus_client's own collector over the same files, in the same run. Processor time (it is all work, and
others use this machine too): the first scrape of a monitor, which reads every name, and the median and p99 of 50 more.
Then the real page over HTTP, wall time, from a monitor's web application in this process. Fails where the median of 64
seats takes as long as MS_MAX.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.test_utils import TestServer

from reconsup.fleet.slot import Cause
from reconsup.monitor import metrics
from reconsup.monitor.http import application
from reconsup.monitor.page import Page
from reconsup.monitor.status import Fleet, Known
from tests.bench.stage import percentile
from tests.monitor.test_page import TheirCollector
from tests.support.program import free_port
from tests.support.seats import fill

SEATS = (1, 4, 64, 512)
ROUNDS = 50
MS_MAX = 20.0
COUNTS = 100_000


def milliseconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1000


def fleet(seats: int) -> Fleet:
    """A fleet in which each seat was filled again for six reasons."""
    causes = list(Cause)[-6:]
    restarts = {(seat, cause): 3 for seat in range(seats) for cause in causes}
    return Fleet(1, "running", "0", datetime.now(UTC), (), restarts=restarts)


def restarts(seats: int) -> dict[str, dict[tuple[str, ...], float]]:
    """The same, as readings."""
    return {"reconsup_worker_restarts_total": {(str(seat), str(cause)): 3 for seat, cause in fleet(seats).restarts}}


async def over_http(folder: Path, seats: int) -> list[float]:
    """Milliseconds of each request for the page."""
    app = application(lambda: fleet(seats), Known((), 20.0), folder)
    found = []
    async with TestServer(app, host="127.0.0.1", port=free_port()) as server, aiohttp.ClientSession() as session:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            async with session.get(server.make_url("/metrics")) as answer:
                await answer.read()
                assert answer.status == 200
            found.append((time.perf_counter() - started) * 1000)
    return found


def measure(folder: Path, seats: int) -> dict[str, Any]:
    """All figures of one folder."""
    folder.mkdir()
    fill(folder, seats)
    page, readings = Page(folder), restarts(seats)
    first = milliseconds(lambda: page.render(readings))
    ours = [milliseconds(lambda: page.render(readings)) for _ in range(ROUNDS)]
    theirs = [milliseconds(TheirCollector(folder).page) for _ in range(3)]
    http = asyncio.run(over_http(folder, seats))
    taken = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
    return {
        "first_ms": first,
        "median_ms": statistics.median(ours),
        "p99_ms": percentile(ours, 99),
        "library_ms": statistics.median(theirs),
        "http_median_ms": statistics.median(http),
        "http_p99_ms": percentile(http, 99),
        "page_bytes": len(page.render(readings)),
        "folder_bytes_a_seat": taken // seats,
    }


def microseconds_a_count(folder: Path) -> dict[str, float]:
    """What it costs a worker to count."""
    folder.mkdir()
    metrics.open(folder, "0")
    network, method = "mainnet", "eth_getBlockByNumber"
    inc = milliseconds(lambda: [metrics.RPC_REQUESTS.inc(1, network, method, "ok") for _ in range(COUNTS)])
    observe = milliseconds(lambda: [metrics.RPC_SECONDS.observe(0.1, network, method) for _ in range(COUNTS)])
    return {"inc": inc * 1000 / COUNTS, "observe": observe * 1000 / COUNTS}


def main() -> int:
    """Measure and print; 1 if a scrape of 64 seats takes too long."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scrape", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(prefix="reconsup-bench-", dir=memory if Path(memory).is_dir() else None) as root:
        found = {seats: measure(Path(root) / str(seats), seats) for seats in SEATS}
        count = microseconds_a_count(Path(root) / "count")
    print("  seats    first   median      p99  library  ratio   HTTP median      p99    page KB   KB a seat")
    for seats, each in found.items():
        ratio = each["library_ms"] / each["median_ms"]
        print(
            f"  {seats:>5}{each['first_ms']:>9.1f}{each['median_ms']:>9.1f}{each['p99_ms']:>9.1f}"
            f"{each['library_ms']:>9.1f}{ratio:>6.0f}×{each['http_median_ms']:>14.1f}{each['http_p99_ms']:>9.1f}"
            f"{each['page_bytes'] / 1024:>11.0f}{each['folder_bytes_a_seat'] / 1024:>12.0f}"
        )
    print(f"  a count: {count['inc']:.1f} µs, a duration: {count['observe']:.1f} µs")
    if given.json:
        given.json.write_text(json.dumps({"seats": found, "count_us": count}, indent=2) + "\n")
    return 0 if found[64]["median_ms"] < MS_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
