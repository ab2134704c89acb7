"""10,000 signals to a supervisor, as fast as another process can send them, while its workers are killed.

What a signal means must survive it: every death is noticed and every seat is taken again, the HUP after it is heard,
and a TERM in the middle of a second storm is a drain that ends with 0. Signals of one kind that are pending together
are one for the kernel; what is counted is what they ask for.
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
from tests.support.aftermath import Seat, seats
from tests.support.havoc import STORM, STORM_CODE
from tests.support.hosts import MARK, Life, children, strike
from tests.support.program import Program, wait_for

SIGNALS = 10_000
KILLS = 20
WORKERS = 4
PAUSE_SECONDS = 0.01
LAST_SECONDS = 60.0


def storm_at(pid: int, count: int, names: tuple[str, ...] = STORM) -> subprocess.Popen[bytes]:
    """Begin a storm."""
    return subprocess.Popen([sys.executable, "-c", STORM_CODE, str(pid), str(count), *names])


def deaths_in_a_storm(program: Program, mark: str) -> dict[str, Any]:
    """Kill children again and again while it lasts: which deaths were not told, which seats not taken again."""
    chance, killed, pid = random.Random(1), [], program.process.pid
    cpu, began = _cpu_seconds(pid), time.monotonic()
    storm = storm_at(pid, SIGNALS)
    while len(killed) < KILLS or storm.poll() is None:
        if storm.poll() is not None:  # it was over too soon: another one for those who are left
            storm = storm_at(pid, SIGNALS)
        victim = chance.choice(children(pid) or [0])
        if len(killed) < KILLS and victim and strike(victim, mark, signal.SIGKILL):
            killed.append(victim)
        time.sleep(PAUSE_SECONDS)
    seconds = time.monotonic() - began
    used = _cpu_seconds(pid) - cpu
    # TTINs and TTOUs of which nobody knows how many were one: HUP, and there are as many as the settings say.
    reloads = len(program.events("reload_done"))
    program.process.send_signal(signal.SIGHUP)
    wait_for("the last HUP was heard", lambda: len(program.events("reload_done")) > reloads, LAST_SECONDS)
    wait_for("all seats are taken", lambda: ready(program) == WORKERS, LAST_SECONDS)
    found = wait_for("all are ready by the log, too", lambda: all_filled(program, mark))
    told = {each["pid"] for each in program.events("process_left")}
    filled = sorted(seat.until - seat.emptied_at for seat in found if seat.is_filled)
    return {
        "signals a second": round(SIGNALS / seconds),
        "seconds": round(seconds, 2),
        "supervisor CPU seconds": round(used, 2),
        "killed": len(killed),
        "of them not told": len(set(killed) - told),
        "seats emptied and taken again": len(found),
        "left → ready, median ms": round(median(filled) * 1000, 1),
        "left → ready, longest ms": round(filled[-1] * 1000, 1),
        "reloads": len(program.events("reload_done")),
    }


def all_filled(program: Program, mark: str) -> list[Seat]:
    """The seats that became empty, once each is taken again."""
    found = seats(Life(1, program, mark, 0.0), time.time(), WORKERS)
    return found if all(seat.is_filled for seat in found) else []


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


def ready(program: Program) -> int:
    """How many workers are ready."""
    try:
        return sum(each["state"] == "ready" for each in program.status()["workers"])
    except OSError:  # a monitor is replaced, too
        return 0


def _cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """1 if something was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    mark = f"{os.getpid()}."
    with open_site() as site, site.program("storm", workers=WORKERS, poll=0.2, **{MARK: mark}) as program:
        program.wait_ready()
        wait_for("all are ready", lambda: ready(program) == WORKERS)
        found = deaths_in_a_storm(program, mark) | term_in_a_storm(program)
    print(f"\n{SIGNALS} signals ({', '.join(STORM)}) to a supervisor with {WORKERS} workers")
    for name, value in found.items():
        print(f"  {name:<28}{value:>10}")
    if given.json:
        given.json.write_text(json.dumps(found))
    return 1 if found["of them not told"] or found["exit code"] else 0


if __name__ == "__main__":
    sys.exit(main())
