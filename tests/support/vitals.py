"""Files, descriptors and memory of a fleet, looked at again and again while it is killed; and whether they grow.

A fleet's processes are found as the children of its supervisor. What is compared lives long: the supervisor and the
files of its metrics folder over one life of it; monitor and workers are new after each kill, so theirs is what a new
one has. Sizes are MiB resident.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.support.hosts import Host

FOLDER = "reconsup-metrics-"
PAGE = os.sysconf("SC_PAGE_SIZE")
# A median may be higher in the last third than in the first by so much: what one measurement differs from the next.
GROWTH = {"supervisor MiB": 1.5, "monitor MiB": 4.0, "worker MiB": 4.0, "descriptors": 3.0, "files": 0.0}


@dataclass(frozen=True)
class Sample:
    """One look: figure → value."""

    at: float
    life: int
    figures: Mapping[str, float]


def look(host: Host, at: float) -> Sample | None:
    """The figures of a host; None while it is not whole: somebody is being born or buried."""
    life = host.life
    with suppress(OSError, AssertionError, ValueError, KeyError):
        status = host.program.status()
        pid = host.program.process.pid
        workers = [each["pid"] for each in status["workers"] if each["pid"] and each["state"] == "ready"]
        others = set(_children(pid)) - {each["pid"] for each in status["workers"]}
        if len(workers) != len(status["workers"]) or len(others) != 1:
            return None
        (monitor,) = others
        return Sample(
            at,
            life.number,
            {
                "supervisor MiB": _resident(pid),
                "supervisor descriptors": _descriptors(pid),
                "monitor MiB": _resident(monitor),
                "monitor descriptors": _descriptors(monitor),
                "worker MiB (largest)": max(map(_resident, workers)),
                "worker descriptors (most)": max(map(_descriptors, workers)),
                "metrics files of a seat (most)": max(of_seats(metrics_folder(pid)).values(), default=0),
            },
        )
    return None


def metrics_folder(pid: int) -> Path:
    """Where a supervisor's fleet keeps its metrics: it holds a lock on the folder."""
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            target = each.readlink()
            if target.name.startswith(FOLDER):
                return target
    raise KeyError(FOLDER)


def of_seats(folder: Path) -> Counter[str]:
    """How many files each seat has: TTIN may have brought more seats, never more files to one."""
    return Counter(each.stem.rpartition("_")[2] for each in folder.iterdir() if each.suffix == ".db")


def table(samples: Sequence[Sample]) -> tuple[list[str], list[str]]:
    """A line a figure: the median of the first third and of the last one; and what has grown."""
    third = len(samples) // 3
    lines = [f"  {'':<28}{'first third':>12}{'last third':>12}{'most':>8}   ({len(samples)} samples)"]
    grown = []
    values: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        for name, value in sample.figures.items():
            values[name].append(value)
    for name, each in values.items():
        first, last = median(each[:third]), median(each[-third:])
        lines.append(f"  {name:<28}{first:>12.1f}{last:>12.1f}{max(each):>8.1f}")
        allowed = next(growth for words, growth in GROWTH.items() if words in name.removesuffix(" (largest)"))
        if last > first + allowed:
            grown.append(f"{name} grew from {first:g} to {last:g}")
    return lines, grown


def longest_life(samples: Sequence[Sample]) -> list[Sample]:
    """Those of the life of which there are most."""
    lives: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        lives[sample.life].append(sample)
    return max(lives.values(), key=len, default=[])


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 2**20


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
