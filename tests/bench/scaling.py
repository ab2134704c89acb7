"""One, two and four worker processes on the same rows: where it stops scaling, and why.

The machine's idle time is printed beside: when no processor is idle any more, another process adds nothing.
"""

import multiprocessing
import multiprocessing.synchronize
import os
import time
from pathlib import Path
from typing import Any

from tests.bench import stage
from tests.bench.throughput import DRIVERS, ROUNDS, ROWS, prepare

PROCESSES = (1, 2, 4)
COMPARED = ("ours", "bare")


def _run(name: str, url: str, slot: int, gate: multiprocessing.synchronize.Barrier) -> None:
    DRIVERS[name](url, "look", slot)  # nothing is due yet: imports, plans and connections are warm
    gate.wait()
    gate.wait()
    DRIVERS[name](url, "look", slot)


def _idle_seconds() -> float:
    """Of all processors together, since they were switched on."""
    first = Path("/proc/stat").read_text().splitlines()[0].split()
    return (int(first[4]) + int(first[5])) / os.sysconf("SC_CLK_TCK")


def rows_a_second(connection: stage.Connection, url: str, name: str, processes: int) -> tuple[float, float]:
    """And the share of the machine that was busy."""
    prepare(connection, "look", ROWS)
    connection.execute("UPDATE app.payment_requests SET next_reconcile_at = now() + interval '1 hour'"
                       " WHERE derivation_index < %s", [stage.STANDING_FIRST])  # fmt: skip
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(processes + 1)
    started = [context.Process(target=_run, args=(name, url, slot, gate)) for slot in range(processes)]
    for each in started:
        each.start()
    gate.wait()
    connection.execute("UPDATE app.payment_requests SET next_reconcile_at = now() WHERE derivation_index < %s",
                       [stage.STANDING_FIRST])  # fmt: skip
    stage.settle_down(connection)
    idle, begun = _idle_seconds(), time.perf_counter()
    gate.wait()
    for each in started:
        each.join()
    seconds = time.perf_counter() - begun
    assert [each.exitcode for each in started] == [0] * processes
    busy = 1 - (_idle_seconds() - idle) / (seconds * (os.cpu_count() or 1))
    return ROWS / seconds, busy


def measure(url: str) -> list[dict[str, Any]]:
    """Each number of processes, in turn, a few times; medians."""
    results = []
    with stage.connect(url) as connection:
        for processes in PROCESSES:
            row: dict[str, Any] = {"processes": processes}
            for name in COMPARED:
                found = [rows_a_second(connection, url, name, processes) for _ in range(ROUNDS)]
                row[name] = stage.median(rate for rate, _ in found)
                row[f"{name}: machine busy %"] = 100 * stage.median(busy for _, busy in found)
            results.append(row)
    return results


def show(found: list[dict[str, Any]]) -> None:
    """For people."""
    title = f"claim → decide → persist with several processes, rows/s ({os.cpu_count()} processors for all)"
    stage.table(title, list(found[0]), [list(each.values()) for each in found])


if __name__ == "__main__":
    stage.main(measure, show)
