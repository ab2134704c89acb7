"""An endurance run: what is done to two hosts under load, when, and what their logs must show afterwards.

The schedule is drawn from a seed: a list of moments and acts. One thread performs it, each act as soon as its moment
has come and the one before is done; one that lasts (an outage, a freeze, a burst of faults) puts its own end into it.
"""

import heapq
import itertools
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from tests.support import faults, vitals
from tests.support.arena import DRAIN_SECONDS, LEASE_SECONDS, Arena
from tests.support.hosts import Host, children, strike
from tests.support.load import backends
from tests.support.program import wait_for
from tests.support.vitals import Sample

LOOK_SECONDS = 1.0
OUTAGE_SECONDS = (0.1, 1.5)
BURST_SECONDS = (1.5, 4.0)
FAULT_SHARE = 0.3
FREEZE_SECONDS = 1.6 * LEASE_SECONDS
OUTLIVES_SECONDS = DRAIN_SECONDS + 0.25 + LOOK_SECONDS  # seen up to a look later
TRIES_MAX = 200
# Of the storm: not those that say leave, or what the supervisor is not to be told a thousand times.
STORM = ("HUP", "TTIN", "TTOU", "CHLD", "USR1", "USR2")
FAULTS = [
    faults.lagging,
    faults.head_that_goes_back,
    faults.null_block,
    faults.null_receipts,
    faults.empty_receipts,
    faults.receipt_removed,
    faults.empty_logs,
    faults.log_removed,
    faults.empty_block,
    faults.dropped_item,
    faults.reordered_items,
    faults.wrong_id,
    faults.swapped_ids,
    faults.throttled,
    faults.unavailable,
    faults.too_large,
    faults.truncated,
    faults.slow,
    faults.wrong_chain_id,
    faults.other_fork,
    faults.torn_between_forks,
]


@dataclass(frozen=True)
class Plan:
    """How much of everything within so many seconds."""

    seed: int
    seconds: float
    worker_kills: int
    supervisor_kills: int
    restarts_of_postgresql: int
    cuts: int = 0
    bursts: int = 0
    stalls: int = 0
    freezes: int = 0
    storms: int = 0
    stops: int = 0
    workers: int = 2


@dataclass
class Run:
    """A run while it goes on.

    `windows`: when something was away or frozen, wall clock. `broken`: what was seen on the way and must not be.
    `outliving`: those of it who outlived their supervisor, and for how many seconds.
    """

    plan: Plan
    arena: Arena
    hosts: dict[str, Host]
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    done: list[tuple[float, str]] = field(default_factory=list)
    windows: list[tuple[float, float]] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=lambda: {"a": [], "b": []})
    broken: list[str] = field(default_factory=list)
    open_since: dict[str, float] = field(default_factory=dict)
    stalled: set[int] = field(default_factory=set)
    outliving: dict[int, float] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    began: float = field(default_factory=time.monotonic)
    to_do: list[tuple[float, int, Callable[["Run"], None]]] = field(default_factory=list)  # a heap

    @property
    def passed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def plan_act(self, at: float, act: Callable[["Run"], None]) -> None:
        """Put an act into the schedule."""
        heapq.heappush(self.to_do, (at, next(self.numbers), act))

    def note(self, what: str, where: str = "") -> None:
        """Remember what was done, for the one who reads why it failed."""
        self.counts[what] += 1
        self.done.append((time.time(), f"{what} {where}"))

    def begins(self, what: str) -> None:
        """Something is away, or frozen, from now on."""
        self.open_since[what] = time.time()

    def is_over(self, what: str) -> None:
        """It is there again."""
        self.windows.append((self.open_since.pop(what), time.time()))

    def host(self) -> Host:
        """One of the hosts, by chance."""
        return self.hosts[self.chance.choice("ab")]


Act = tuple[float, Callable[[Run], None]]


def schedule(plan: Plan) -> list[Act]:
    """What is done when, in order. Host b loses its supervisor in the first third only: one life of it is long."""
    chance = random.Random(plan.seed)
    first, last = 0.02 * plan.seconds, plan.seconds

    def moments(count: int, before: float = last) -> list[float]:
        """One in each of so many equal parts of the time."""
        part = (before - first) / max(count, 1)
        return [first + part * (number + chance.random()) for number in range(count)]

    acts: list[Act] = [(at, kill_child) for at in moments(plan.worker_kills)]
    of_b = plan.supervisor_kills // 5
    acts += [(at, partial(kill_supervisor, name="a")) for at in moments(plan.supervisor_kills - of_b)]
    acts += [(at, partial(kill_supervisor, name="b")) for at in moments(of_b, last / 3)]
    acts += [(at, cut_connections) for at in moments(plan.cuts)]
    acts += [(at, fall) for at in moments(plan.restarts_of_postgresql)]
    acts += [(at, begin_faults) for at in moments(plan.bursts)]
    acts += [(at, stall_child) for at in moments(plan.stalls)]
    acts += [(at, partial(freeze, name=chance.choice("ab"))) for at in moments(plan.freezes)]
    acts += [(at, storm) for at in moments(plan.storms)]
    acts += [(at, partial(stop_and_start, name="a")) for at in moments(plan.stops)]
    return sorted(acts, key=lambda act: act[0])


# acts


def kill_child(run: Run) -> None:
    """kill -9 of a worker or a monitor, whatever it is doing; it may have been forked this moment."""
    for _ in range(TRIES_MAX):
        host = run.host()
        pids = children(host.program.process.pid) if host.is_up else []
        if pids and strike(run.chance.choice(pids), host.mark, signal.SIGKILL):
            return run.note("workers and monitors killed", host.name)
        time.sleep(0.02)
    raise AssertionError(f"for {TRIES_MAX * 0.02:g} s there is nobody to kill")


def kill_supervisor(run: Run, name: str) -> None:
    """kill -9 of a supervisor."""
    for _ in range(TRIES_MAX):
        if run.hosts[name].kill_supervisor():
            return run.note("supervisors killed", name)
        time.sleep(0.02)
    raise AssertionError(f"for {TRIES_MAX * 0.02:g} s there is no supervisor of {name}")


def cut_connections(run: Run) -> None:
    """End some of the connections that the program has."""
    try:
        pids = [pid for each in backends(run.arena.town).values() for pid in each]
        some = run.chance.sample(pids, len(pids) // 2)
        run.arena.town.database.fetch("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [some])
    except Exception:  # noqa: BLE001 - PostgreSQL is away: then they are ended already
        return
    run.note("times half of the connections ended")


def fall(run: Run) -> None:
    """PostgreSQL goes away."""
    if "postgresql" in run.open_since:
        rise(run)
    run.begins("postgresql")
    run.arena.postgres.fall(immediate=run.chance.random() < 0.5)
    run.plan_act(run.passed + run.chance.uniform(*OUTAGE_SECONDS), rise)


def rise(run: Run) -> None:
    """And comes back."""
    if "postgresql" in run.open_since:
        run.arena.postgres.rise()
        run.is_over("postgresql")
        run.note("restarts of PostgreSQL")


def begin_faults(run: Run) -> None:
    """The good endpoint lies, throttles, breaks off or is on the other fork, now and then."""
    run.open_since.setdefault("rpc", time.time())
    run.arena.trade.node.schedule = faults.drawn(run.arena.trade.node.random, FAULTS, FAULT_SHARE)
    run.plan_act(run.passed + run.chance.uniform(*BURST_SECONDS), end_faults)


def end_faults(run: Run) -> None:
    """It is good again."""
    run.arena.trade.node.schedule = None
    if "rpc" in run.open_since:
        run.open_since.pop("rpc")
        run.note("bursts of RPC faults")


def stall_child(run: Run) -> None:
    """A worker stands still for longer than its leases."""
    host = run.host()
    pids = children(host.program.process.pid) if host.is_up else []
    pid = run.chance.choice(pids) if pids else None
    if pid is not None and strike(pid, host.mark, signal.SIGSTOP):
        run.stalled.add(pid)
        run.plan_act(run.passed + FREEZE_SECONDS, end_stalls)
        run.open_since.setdefault("stall", time.time())
        run.note("workers and monitors stopped for a while", host.name)


def end_stalls(run: Run) -> None:
    """They go on, with what they believed before."""
    for host in run.hosts.values():
        for pid in run.stalled:
            strike(pid, host.mark, signal.SIGCONT)
    run.stalled.clear()
    if "stall" in run.open_since:
        run.is_over("stall")


def freeze(run: Run, name: str) -> None:
    """A whole host stands still for longer than a lease."""
    if run.hosts[name].strike_all(signal.SIGSTOP):
        run.open_since.setdefault(f"freeze {name}", time.time())
        run.plan_act(run.passed + FREEZE_SECONDS, partial(thaw, name=name))


def thaw(run: Run, name: str) -> None:
    """It goes on: all its leases have ended."""
    run.hosts[name].strike_all(signal.SIGCONT)
    if f"freeze {name}" in run.open_since:
        run.is_over(f"freeze {name}")
        run.note("hosts frozen", name)


def storm(run: Run, count: int = 10_000) -> None:
    """Signals from another process, as fast as it can, to the supervisor of b."""
    pid = run.hosts["b"].program.process.pid
    subprocess.run([sys.executable, "-c", STORM_CODE, str(pid), str(count), *STORM], check=True, timeout=60)
    run.counts["signals in storms"] += count
    run.note("storms of signals")


def stop_and_start(run: Run, name: str) -> None:
    """TERM, an exit with 0 and nobody left; and a new start."""
    host = run.hosts[name]
    thaw(run, name)
    end_stalls(run)
    if "postgresql" in run.open_since:
        rise(run)
    wait_for(f"{host.name} is ready", lambda: _is_ready(host), 60)  # who is told before it can listen dies of it
    code = host.stop(DRAIN_SECONDS + 10)
    if code != 0:
        run.broken.append(f"{host.name} was told to stop and left with {code}")
    host.start()
    run.note("clean stops", name)


def _is_ready(host: Host) -> bool:
    try:
        return host.program.get("/readyz")[0] == 200
    except OSError:
        return False


STORM_CODE = """
import os, signal, sys
pid, count, numbers = int(sys.argv[1]), int(sys.argv[2]), [signal.Signals["SIG" + name] for name in sys.argv[3:]]
for number in range(count):
    try:
        os.kill(pid, numbers[number % len(numbers)])
    except ProcessLookupError:
        break
"""


# the run


def perform(run: Run, acts: Sequence[Act], say: Callable[[str], None] = print) -> None:
    """Do all of it, looking on the way; each act that lasts ends, so at the end nothing is away."""
    run.began, next_look = time.monotonic(), 0.0
    for at, act in acts:
        run.plan_act(at, act)
    while run.to_do:
        at, _, act = heapq.heappop(run.to_do)
        while True:
            if run.passed >= next_look:
                next_look = run.passed + LOOK_SECONDS
                look(run)
            if run.passed >= at:
                break
            time.sleep(max(0.0, min(at - run.passed, 0.05)))
        act(run)
    say(f"schedule of {run.plan.seconds:g} s done in {run.passed:.0f} s")


def look(run: Run) -> None:
    """Who outlives its supervisor; files, descriptors, memory; whether customers still come."""
    run.arena.trade.check()
    now = time.time()
    for name, host in run.hosts.items():
        for pid, life in host.outliving().items():
            assert life.ended_at is not None
            seconds = now - life.ended_at - _away_seconds(run, life.ended_at, now)
            if seconds > OUTLIVES_SECONDS and pid not in run.outliving:
                run.broken.append(
                    f"{pid} of {host.name}, life {life.number}, outlives its supervisor by {seconds:.1f} s"
                )
            if seconds > OUTLIVES_SECONDS:
                run.outliving[pid] = seconds
        if not run.open_since and host.is_up and (sample := vitals.look(host, now)) is not None:
            run.samples[name].append(sample)


def _away_seconds(run: Run, begin: float, end: float) -> float:
    """How long of that time something was away or frozen."""
    windows = [*run.windows, *((since, end) for since in run.open_since.values())]
    return sum(max(0.0, min(end, to) - max(begin, since)) for since, to in windows)


@contextmanager
def told_on_failure(run: Run) -> Iterator[None]:
    """When it fails: the seed, what was done last, and the ends of the logs."""
    try:
        yield
    except BaseException:
        print(f"\nFAILED: {run.plan}\nlast done:")
        for at, what in run.done[-40:]:
            print(f"  {at:.3f} {what}")
        for host in run.hosts.values():
            for life in host.lives[-2:]:
                words = life.program.log.read_text()
                print(f"--- {host.name}, life {life.number}, ended with {life.code}:\n{words[-5000:]}")
        raise
