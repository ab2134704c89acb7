"""What the logs of an endurance run say when it is over: seats that stayed empty, alarms, crashes, how fast it was."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support.hosts import Host, Life

EMPTY_SECONDS = 12.0  # a seat is filled again within it, not counting what was away or frozen
LOST = {"process_crashed", "row_failed", "row_set_aside", "row_refused", "block_refused", "network_stopped",
        "deaths_forgotten", "row_unreadable", "fork_failed"}  # fmt: skip


@dataclass(frozen=True)
class Seat:
    """A seat from a death in it until the next process there was ready (`filled_at` None: the supervisor's end came
    before)."""

    worker_id: str
    life: int
    emptied_at: float
    until: float
    is_filled: bool


def entries(log: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log; a line that was cut by a kill is left out."""
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            entry["at"] = datetime.fromisoformat(entry["timestamp"]).timestamp()
            yield entry


def seats(life: Life, now: float, workers: int) -> list[Seat]:
    """All that became empty in one life of a supervisor: of the workers that the settings ask for, and the monitor's.

    Not those that were freed because one worker fewer was wanted.
    """
    found, empty, drains = [], {}, False
    end = life.ended_at or now
    for entry in entries(life.program.log):
        drains = drains or (entry["event"] == "phase" and entry.get("phase") == "draining")
        worker_id = str(entry.get("worker_id", ""))
        name = worker_id.rpartition("-")[2]
        is_wanted = name == "monitor" or (name.isdigit() and int(name) < workers)
        if entry["event"] == "process_left" and is_wanted and not drains and entry["cause"] != "scale":
            empty.setdefault(worker_id, entry["at"])
        if entry["event"] == "process_ready" and worker_id in empty:
            found.append(Seat(worker_id, life.number, empty.pop(worker_id), entry["at"], True))
    return found + [Seat(name, life.number, at, end, False) for name, at in empty.items()]


def empty_too_long(found: Sequence[Seat], windows: Sequence[tuple[float, float]]) -> list[str]:
    """Seats that nobody took for too long."""
    late = []
    for seat in found:
        away = sum(max(0.0, min(seat.until, to) - max(seat.emptied_at, since)) for since, to in windows)
        seconds = seat.until - seat.emptied_at - away
        if seconds > EMPTY_SECONDS:
            late.append(
                f"{seat.worker_id} in life {seat.life} was empty for {seconds:.1f} s (filled: {seat.is_filled})"
            )
    return late


def alarms(hosts: Sequence[Host]) -> tuple[Counter[str], list[str]]:
    """How often each warning and error was logged; and what must never be there."""
    counts: Counter[str] = Counter()
    lost = []
    for host in hosts:
        for life in host.lives:
            words = life.program.log.read_text(errors="replace")
            if "Traceback" in words:
                at = words.index("Traceback")
                lost.append(f"{host.name}, life {life.number}: a traceback: {words[max(0, at - 1500) : at + 6000]}")
            for entry in entries(life.program.log):
                if entry["level"] in ("warning", "error", "critical"):
                    counts[entry["event"]] += 1
                if entry["event"] in LOST or str(entry.get("next", "")).startswith("parked"):
                    lost.append(f"{host.name}, life {life.number}: {json.dumps(entry)[:600]}")
    return counts, lost
