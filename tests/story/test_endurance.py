"""Two hosts are killed, frozen, cut off and restarted again and again; nothing is lost, wrong or left behind."""

import os
import random
import time
from pathlib import Path
from statistics import median

import pytest

from tests.support import aftermath, endurance, verdict, vitals
from tests.support.arena import DRAIN_SECONDS, arena
from tests.support.havoc import Plan, Run
from tests.support.hosts import Host, marked
from tests.support.program import wait_for

pytestmark = [pytest.mark.service, pytest.mark.story, pytest.mark.direct, pytest.mark.planted]

SEED = "RECONSUP_TEST_SEED"
SHORT = Plan(
    seed=int(os.environ.get(SEED, "1")),
    seconds=8.0,
    worker_kills=24,
    supervisor_kills=3,
    restarts_of_postgresql=1,
    cuts=1,
    bursts=1,
    stalls=1,
    freezes=1,
    storms=1,
    stops=1,
    turnovers=1,
    resizes=1,
    hangs=1,
)
WHOLE = Plan(
    seed=SHORT.seed,
    seconds=560.0,
    worker_kills=1000,
    supervisor_kills=50,
    restarts_of_postgresql=10,
    cuts=20,
    bursts=30,
    stalls=20,
    freezes=8,
    storms=5,
    stops=4,
    turnovers=20,
    resizes=20,
    hangs=20,
    workers=4,
)


@pytest.mark.parametrize("plan", [SHORT, pytest.param(WHOLE, marks=pytest.mark.long)], ids=["20 s", "10 min"])
def test_whatever_is_killed_frozen_or_away_no_status_is_wrong_and_nobody_is_left(plan: Plan, tmp_path: Path) -> None:
    """The seed is fixed, RECONSUP_TEST_SEED=N takes another. What is done when is in tests/support/endurance.py."""
    print(f"\n{plan}")
    began = time.monotonic()
    chance = random.Random(plan.seed)
    with arena(tmp_path, plan.seed, plan.workers) as stage, stage.hosts(chance) as hosts:
        run = Run(plan, stage, hosts, chance)
        with endurance.told_on_failure(run):
            stage.trade.begin()
            endurance.perform(run, endurance.schedule(plan))
            for host in hosts.values():
                wait_for(f"each seat of {host.name} is taken", lambda at=host: is_whole(at, plan.workers))
            stage.trade.end()
            verdict.judge(stage.town, stage.trade.orders)
            folders = [vitals.metrics_folder(host.program.process.pid) for host in hosts.values()]
            assert [host.stop(DRAIN_SECONDS + 10) for host in hosts.values()] == [0, 0]
            assert [pid for host in hosts.values() for pid in marked(host.mark)] == []
            assert [folder for folder in folders if folder.exists()] == []
            assert stage.town.leases() == []
            assert verdict.complaints(stage.town, stage.trade.orders) == []
            tell_and_judge(run, time.monotonic() - began)


def is_whole(host: Host, workers: int) -> bool:
    """Whether all workers are ready."""
    try:
        return [each["state"] for each in host.program.status()["workers"]] == ["ready"] * workers
    except OSError:
        return False


def tell_and_judge(run: Run, seconds: float) -> None:
    """One line with what was done, the figures, and whether the logs are as they must be."""
    hosts = list(run.hosts.values())
    counts, lost = aftermath.alarms(hosts)
    seats = [
        seat for host in hosts for life in host.lives for seat in aftermath.seats(life, time.time(), run.plan.workers)
    ]
    late = aftermath.empty_too_long(seats, run.windows)
    filled = sorted(seat.until - seat.emptied_at for seat in seats if seat.is_filled)
    done = ", ".join(f"{count} {what}" for what, count in sorted(run.counts.items()))
    traded = ", ".join(f"{count} {what}" for what, count in sorted(run.arena.trade.counts.items()))
    print(f"{seconds:.0f} s: {done}; {len(run.arena.trade.node.applied)} answers of the good endpoint spoiled")
    print(f"{len(run.arena.trade.orders)} requests, none lost, none wrong: {traded}")
    print(f"statuses: {run.arena.town.statuses()}; warnings and errors logged: {dict(counts)}")
    print(
        f"{len(filled)} seats emptied and filled again: median {median(filled) * 1000:.0f} ms, "
        f"p99 {filled[int(len(filled) * 0.99)]:.2f} s, longest {filled[-1]:.2f} s (outages included)"
    )
    grown = []
    for name, samples in run.samples.items():
        longest = vitals.longest_life(samples)
        lines, grew = vitals.table(longest) if len(longest) >= 6 else ([], [])
        print(f"host-{name}, its longest life:", *lines, sep="\n")
        grown += grew if len(longest) >= 30 else []
    for each in (*run.broken, *lost, *late, *grown):
        print(f"WRONG: {each}")
    assert (run.broken, lost, late, grown) == ([], [], [], [])
    assert {what: run.counts[what] for what in ("workers and monitors killed", "supervisors killed")} == {
        "workers and monitors killed": run.plan.worker_kills,
        "supervisors killed": run.plan.supervisor_kills,
    }
    assert run.counts["restarts of PostgreSQL"] == run.plan.restarts_of_postgresql
