"""10,000 signals to a supervisor, as fast as another process can send them, while its workers are killed.

What a signal means must survive it: every death is noticed and every seat is taken again, and a TERM in the middle of a
second storm is a drain that ends with 0. Signals of one kind that are pending together are one for the kernel; what is
counted is what they ask for.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.takeover import open_site
from tests.support.aftermath import seats
from tests.support.havoc import STORM, STORM_CODE
from tests.support.hosts import Life
from tests.support.program import Program, wait_for

SIGNALS = 10_000
KILLS = 20
WORKERS = 4


def storm_at(pid: int, count: int, names: tuple[str, ...] = STORM) -> subprocess.Popen[bytes]:
    """Begin a storm."""
    return subprocess.Popen([sys.executable, "-c", STORM_CODE, str(pid), str(count), *names])


def deaths_in_a_storm(program: Program) -> dict[str, Any]:
    """Kill workers again and again while it lasts; how many deaths and new processes were not noticed, and how fast."""
    chance, killed, began = random.Random(1), 0, time.monotonic()
    cpu = _cpu_seconds(program.process.pid)
    storm = storm_at(program.process.pid, SIGNALS)
    ended: float | None = None
    while killed < KILLS or ended is None:
        if ended is None and storm.poll() is not None:
            ended = time.monotonic()
        if killed < KILLS:
            pids = program.pids()
            slot = chance.choice(sorted(pids))
            os.kill(pids[slot], signal.SIGKILL)
            killed += 1
            wait_for("the seat is taken", lambda at=slot, old=pids[slot]: program.pids().get(at, old) != old)
            if ended is not None:  # it was over too soon: another one for those who are left
                storm, ended = storm_at(program.process.pid, SIGNALS), None
        time.sleep(0.005)
    wait_for("every death is in the log", lambda: deaths(program) >= killed)
    wait_for("all are ready", lambda: ready(program) == WORKERS)
    found = seats(Life(1, program, "", 0.0), time.time(), WORKERS)
    missed = [seat for seat in found if not seat.is_filled]
    filled = sorted(seat.until - seat.emptied_at for seat in found if seat.is_filled)
    return {
        "deaths": killed,
        "deaths told": deaths(program),
        "seats not taken again": len(missed),
        "left → ready, median ms": round(median(filled) * 1000, 1),
        "left → ready, longest ms": round(filled[-1] * 1000, 1),
        "seconds": round(time.monotonic() - began, 2),
        "supervisor CPU seconds": round(_cpu_seconds(program.process.pid) - cpu, 2),
    }


def term_in_a_storm(program: Program) -> dict[str, Any]:
    """TERM while it lasts: once told, it leaves with 0."""
    storm = storm_at(program.process.pid, SIGNALS)
    time.sleep(0.05)
    began = time.monotonic()
    program.process.send_signal(signal.SIGTERM)
    code = program.process.wait(30)
    seconds = time.monotonic() - began
    storm.wait()
    return {"exit code": code, "TERM → gone, ms": round(seconds * 1000, 1)}


def deaths(program: Program) -> int:
    """How many of its workers' deaths the supervisor has told."""
    return sum(each["cause"] == "signal" for each in program.events("process_left"))


def ready(program: Program) -> int:
    """How many workers are ready."""
    return sum(each["state"] == "ready" for each in program.status()["workers"])


def _cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """1 if something was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with open_site() as site, site.program("storm", workers=WORKERS, poll=0.2) as program:
        program.wait_ready()
        wait_for("all are ready", lambda: len(program.pids()) == WORKERS)
        found = deaths_in_a_storm(program) | term_in_a_storm(program)
    print(f"\n{SIGNALS} signals ({', '.join(STORM)}) to a supervisor with {WORKERS} workers")
    for name, value in found.items():
        print(f"  {name:<28}{value:>10}")
    if given.json:
        given.json.write_text(json.dumps(found))
    return 1 if found["deaths"] != found["deaths told"] or found["seats not taken again"] or found["exit code"] else 0


if __name__ == "__main__":
    sys.exit(main())
