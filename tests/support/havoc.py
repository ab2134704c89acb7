"""What is done to two hosts in an endurance run: each act is a function of the run, done at once.

One that lasts (an outage, a freeze, a burst of faults) puts its own end into the schedule. What it is done to is chosen
by the run's own chance. `tests.support.endurance` says when.
"""

import heapq
import itertools
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from tests.support import faults
from tests.support.arena import DRAIN_SECONDS, LEASE_SECONDS, Arena
from tests.support.hosts import Host, children, strike
from tests.support.load import backends
from tests.support.program import wait_for
from tests.support.vitals import Sample

OUTAGE_SECONDS = (0.1, 1.5)
BURST_SECONDS = (1.5, 4.0)
FAULT_SHARE = 0.3
FREEZE_SECONDS = 1.6 * LEASE_SECONDS
AGAIN_SECONDS = 0.1
PATIENCE_SECONDS = 120.0  # a busy machine is behind the schedule
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
    turnovers: int = 0
    resizes: int = 0
    hangs: int = 0
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

    def plan_again(self, act: Callable[["Run"], None]) -> None:
        """There was nobody to do it to: again in a moment. Others are done meanwhile, such as what ends a freeze."""
        assert self.passed < self.plan.seconds + PATIENCE_SECONDS, f"nobody to do it to any more: {act}"
        self.plan_act(self.passed + AGAIN_SECONDS, act)

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


def kill_child(run: Run) -> None:
    """kill -9 of a worker or a monitor, whatever it is doing; it may have been forked this moment."""
    host = run.host()
    pids = children(host.program.process.pid) if host.is_up else []
    if pids and strike(run.chance.choice(pids), host.mark, signal.SIGKILL):
        run.note("workers and monitors killed", host.name)
    else:
        run.plan_again(kill_child)


def kill_supervisor(run: Run, name: str) -> None:
    """kill -9 of a supervisor."""
    if run.hosts[name].kill_supervisor():
        run.note("supervisors killed", name)
    else:
        run.plan_again(partial(kill_supervisor, name=name))


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
    run.begins("storm")
    pid = run.hosts["b"].program.process.pid
    subprocess.run([sys.executable, "-c", STORM_CODE, str(pid), str(count), *STORM], check=True, timeout=60)
    run.counts["signals in storms"] += count
    run.is_over("storm")
    run.note("storms of signals")
    restore(run, "b")


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


def turn_over(run: Run) -> None:
    """HUP: the settings are the same, and every worker is replaced behind another that is ready."""
    host = run.host()
    if _is_listening(host) and strike(host.program.process.pid, host.mark, signal.SIGHUP):
        run.note("HUPs", host.name)
    else:
        run.plan_again(turn_over)


def grow(run: Run) -> None:
    """TTIN: one worker more; and a little later TTOU, if the supervisor is the same."""
    host = run.host()
    life = host.life
    if _is_listening(host) and strike(host.program.process.pid, life.mark, signal.SIGTTIN):
        run.note("TTINs", host.name)
        run.plan_act(run.passed + FREEZE_SECONDS, partial(shrink, name=host.name[-1], life=life.number))
    else:
        run.plan_again(grow)


def shrink(run: Run, name: str, life: int) -> None:
    """TTOU."""
    host = run.hosts[name]
    if host.life.number == life and strike(host.program.process.pid, host.life.mark, signal.SIGTTOU):
        run.note("TTOUs", host.name)


def hang(run: Run, name: str) -> None:
    """Stop a worker for good: the watchdog ends it, unless it is killed before."""
    host = run.hosts[name]
    pids = list(_pids(host).values())
    if pids and strike(run.chance.choice(pids), host.mark, signal.SIGSTOP):
        run.note("workers stopped for good", host.name)


def restore(run: Run, name: str) -> None:
    """HUP after signals of which nobody knows how many were one: the settings say again how many workers there are."""
    host = run.hosts[name]
    if not (_is_listening(host) and strike(host.program.process.pid, host.mark, signal.SIGHUP)):
        run.plan_again(partial(restore, name=name))


def _pids(host: Host) -> dict[int, int]:
    try:
        return host.program.pids()
    except (OSError, ValueError):
        return {}


def _is_listening(host: Host) -> bool:
    """Whether its supervisor has its handlers: it says so in its log."""
    return host.is_up and bool(host.program.events("supervisor_started"))


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
