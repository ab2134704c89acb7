"""A slot: a seat in the fleet, what sits in it, and what becomes of it when that dies. PURE.

The restart policy lives here. A first death is answered at once, later ones after a growing pause, too many in a
window not at all; what waits for a dependency waits gently and costs nothing. Clock and chance are arguments; this
room forks nothing, kills nothing and logs nothing.
"""

import signal
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

MONITOR = -1
PROBE = -2
WORKERS_MAX = 512
SPARE = WORKERS_MAX  # the seat in which a worker with new settings proves that they work, beside all others

EXIT_CLEAN = 0
EXIT_UNAVAILABLE = 69
EXIT_GAVE_UP = 70
EXIT_CONFIG = 78

BACKOFF_SECONDS_MIN = 0.25
BACKOFF_SECONDS_MAX = 30.0
DEPENDENCY_SECONDS_MIN = 0.5
DEPENDENCY_SECONDS_MAX = 15.0
PATIENT_SECONDS = 5.0  # who was there for so long has waited for its dependency itself
HEALTHY_SECONDS = 60.0


_NAMES = {MONITOR: "monitor", PROBE: "probe", SPARE: "spare"}


def worker_id(base: str, number: int) -> str:
    """`BASE-SLOT`; for others `BASE-monitor`, `BASE-probe`, `BASE-spare`."""
    return f"{base}-{_NAMES.get(number, number)}"


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"


class WorkerState(StrEnum):
    """What sits in a slot. booting → ready → draining → dead → backoff | parked, and again."""

    EMPTY = "empty"
    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"
    BACKOFF = "backoff"
    PARKED = "parked"


LIVE = frozenset({WorkerState.BOOTING, WorkerState.READY, WorkerState.DRAINING})

# Every way from one state to another, and what it is taken for. A random walk holds it against what the plan does.
MOVES = MappingProxyType(
    {
        (WorkerState.EMPTY, WorkerState.BOOTING): "forked",
        (WorkerState.EMPTY, WorkerState.DEAD): "wanted again, after its last worker had left",
        (WorkerState.BOOTING, WorkerState.READY): "says that it does its work",
        (WorkerState.BOOTING, WorkerState.DRAINING): "told to leave",
        (WorkerState.BOOTING, WorkerState.DEAD): "left, to be followed at once or by nobody",
        (
            WorkerState.BOOTING,
            WorkerState.BACKOFF,
        ): "left again too soon, or its dependency is away, or there was no fork",
        (WorkerState.BOOTING, WorkerState.PARKED): "left too often, or its settings cannot work",
        (WorkerState.BOOTING, WorkerState.EMPTY): "there was no fork for a trial of new settings",
        (WorkerState.READY, WorkerState.DRAINING): "told to leave",
        (WorkerState.READY, WorkerState.DEAD): "left, to be followed at once or by nobody",
        (WorkerState.READY, WorkerState.BACKOFF): "left again too soon, or its dependency is away",
        (WorkerState.READY, WorkerState.PARKED): "left too often, or its settings cannot work",
        (WorkerState.DRAINING, WorkerState.DEAD): "left, to be followed at once or by nobody",
        (WorkerState.DRAINING, WorkerState.BACKOFF): "failed while it left, and nobody of ours had told it to",
        (WorkerState.DRAINING, WorkerState.PARKED): "failed once too often while it left by itself",
        (WorkerState.DEAD, WorkerState.BOOTING): "forked",
        (WorkerState.DEAD, WorkerState.EMPTY): "wanted no more",
        (WorkerState.BACKOFF, WorkerState.BOOTING): "forked, for its pause is over",
        (WorkerState.BACKOFF, WorkerState.DEAD): "new settings give another chance, or the fleet drains",
        (WorkerState.BACKOFF, WorkerState.EMPTY): "wanted no more",
        (WorkerState.PARKED, WorkerState.DEAD): "new settings give another chance",
        (WorkerState.PARKED, WorkerState.EMPTY): "wanted no more",
    }
)


class Cause(StrEnum):
    """Why a process left. Bounded: it is a metric's label. Exit code and signal are in the log line."""

    CLEAN = "clean"  # exit 0
    DEPENDENCY = "dependency"  # exit 69: what it needs is away
    CONFIG = "config"  # exit 78: the next one would fail the same way
    CRASH = "crash"  # any other exit code
    SIGNAL = "signal"  # killed, but not by the supervisor (out of memory, an operator, a fault)
    BOOT = "boot"  # killed: not ready in time
    DRAIN = "drain"  # killed: did not finish draining in time
    STOP = "stop"  # killed: the supervisor was told to stop now
    HANG = "hang"  # killed: its work loop gave no sign of life
    RELOAD = "reload"  # replaced: there are new settings
    RECYCLE = "recycle"  # replaced: too old, or too large
    SCALE = "scale"  # told to leave: one worker fewer is wanted


_OF_EXIT_CODE = {EXIT_CLEAN: Cause.CLEAN, EXIT_UNAVAILABLE: Cause.DEPENDENCY, EXIT_CONFIG: Cause.CONFIG}


@dataclass(frozen=True, slots=True)
class Limits:
    """Every time-out of the plan, in seconds; 0 for `recycle_…`: never. `start` bounds the probe, which should end by
    itself before.
    """

    boot_seconds: float = 60.0
    drain_seconds: float = 30.0
    start_seconds: float = 70.0
    watchdog_seconds: float = 60.0
    recycle_seconds: float = 0.0
    recycle_bytes: int = 0
    farewell_seconds: float = 5.0  # for the monitor, after the last worker
    again_seconds: float = 1.0  # bootloaders and process groups deliver one signal twice: sooner is no second one
    stacks_seconds: float = 2.0  # from SIGABRT, at which a process writes down where it is, to SIGKILL
    last_words_seconds: float = 0.15  # the same at the end of a drain, which is a promise
    window_seconds: float = 60.0
    crashes_max: int = 5  # in the window; one more parks the slot
    busy_seconds: float = 30.0  # a due request that waits for longer asks for one more worker…
    behind_seconds: float = 60.0  # … and so does a scan whose last block is older, while it is not at the head


@dataclass(frozen=True, slots=True)
class Terms:
    """What the settings say: how many workers at least and at most, and the limits. A generation for each reading."""

    generation: int
    least: int
    most: int
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Slot:
    """A seat and what is known of it. Moments are monotonic seconds.

    `deadline` is what happens next by itself: while booting, draining or ready, the kill; while empty, dead or in
    backoff, the fork; None: nothing. A slot that is booting without a pid is just being forked. Who is to die gets
    SIGABRT first and has `doom` and a deadline; after SIGKILL it has no deadline any more.
    """

    number: int
    state: WorkerState = WorkerState.EMPTY
    deadline: float | None = None
    pid: int | None = None
    generation: int = 0  # of the settings with which it was forked
    started: float | None = None
    ready_at: float | None = None
    watchdog_seconds: float = 0.0  # for how long it may be silent, by the settings it was forked with
    recycle_at: float | None = None
    is_worn: bool = False  # too old, or too large: to be replaced
    asked: Cause | None = None  # it was told to leave for this
    doom: Cause | None = None  # it is being killed for this
    forks: int = 0
    failures: int = 0  # in a row, forgiven after a healthy time; what the pause grows with
    waits: int = 0  # how often in a row it left at once for want of a dependency
    crashes: tuple[float, ...] = ()  # when, in the window

    @property
    def is_live(self) -> bool:
        """Whether a process sits in it, or is about to."""
        return self.state in LIVE

    @property
    def restarts(self) -> int:
        """How often the seat was filled again."""
        return max(self.forks - 1, 0)


def due(slot: Slot, now: float) -> Slot:
    """It is to be filled now."""
    assert not slot.is_live, f"slot {slot.number} is taken"
    return replace(slot, state=WorkerState.DEAD if slot.forks else WorkerState.EMPTY, deadline=now)


def spawning(slot: Slot, generation: int) -> Slot:
    """It is being forked."""
    assert not slot.is_live, f"slot {slot.number} is taken"
    fresh = replace(slot, state=WorkerState.BOOTING, deadline=None, pid=None, ready_at=None, recycle_at=None)
    return replace(fresh, generation=generation, is_worn=False, asked=None, doom=None)


def forked(slot: Slot, pid: int, now: float, boot_seconds: float, recycle_seconds: float = 0.0) -> Slot:
    """It has a process, which must be ready in time, and is to be replaced after `recycle_seconds` (0: never)."""
    recycle_at = now + recycle_seconds if recycle_seconds else None
    return replace(slot, pid=pid, started=now, deadline=now + boot_seconds, recycle_at=recycle_at, forks=slot.forks + 1)


def not_forked(slot: Slot, now: float, chance: float) -> Slot:
    """The system has no process for it (EAGAIN, ENOMEM): again after a pause. It is not the slot's fault."""
    failures = max(slot.failures + 1, 2)  # never at once
    pause = pause_seconds(failures, chance)
    return replace(slot, state=WorkerState.BACKOFF, deadline=now + pause, failures=failures)


def ready(slot: Slot, now: float, watchdog_seconds: float) -> Slot:
    """It does its work, and must give signs of life from now on."""
    deadline = now + watchdog_seconds
    return replace(
        slot, state=WorkerState.READY, deadline=deadline, watchdog_seconds=watchdog_seconds, ready_at=now, waits=0
    )


def worn(slot: Slot) -> Slot:
    """It is too old, or too large: it is to be replaced."""
    return replace(slot, is_worn=True, recycle_at=None)


def draining(slot: Slot, deadline: float, asked: Cause | None = None) -> Slot:
    """It leaves, until the deadline at the latest; `asked`: it was told to, for this."""
    return replace(slot, state=WorkerState.DRAINING, deadline=deadline, asked=asked, recycle_at=None)


def doomed(slot: Slot, cause: Cause, deadline: float | None) -> Slot:
    """It is being killed; at the deadline for good. None: what is left is to reap it."""
    return replace(slot, deadline=deadline, doom=slot.doom or cause, recycle_at=None)


def retired(slot: Slot) -> Slot:
    """Nobody will sit in it any more. A parked slot stays parked."""
    is_kept = slot.state in (WorkerState.PARKED, WorkerState.EMPTY)
    return replace(slot, state=slot.state if is_kept else WorkerState.DEAD, deadline=None, pid=None)


def removed(slot: Slot) -> Slot:
    """There is no such seat any more, until somebody asks for it again."""
    return Slot(slot.number, forks=slot.forks)


def cause_of(slot: Slot, code: int) -> Cause:
    """Why it left: its exit code, or minus the signal that killed it."""
    if code == EXIT_CLEAN or (code == -signal.SIGTERM and slot.state is WorkerState.DRAINING):
        # TERM: it was told to leave before it could listen, or as it was leaving
        return slot.asked or Cause.CLEAN
    if code < 0:
        return slot.doom or Cause.SIGNAL
    return _OF_EXIT_CODE.get(code, Cause.CRASH)


def left(slot: Slot, cause: Cause, now: float, chance: float, limits: Limits) -> Slot:
    """It left, and is to be filled again: when. `chance` is in [0, 1)."""
    was_healthy = slot.ready_at is not None and now - slot.ready_at >= HEALTHY_SECONDS
    dead = replace(slot, state=WorkerState.DEAD, deadline=now, pid=None, recycle_at=None)
    if was_healthy:
        dead = replace(dead, failures=0, crashes=())
    if slot.asked is not None:
        return dead  # as planned, however it went in the end
    if cause is Cause.DEPENDENCY:
        return _waiting(dead, now, chance)
    if cause is Cause.CONFIG:
        return _parked(dead, now)
    return _crashed(dead, now, chance, limits)


def pause_seconds(failures: int, chance: float) -> float:
    """How long to wait after so many failures in a row: not at all, then 0.25 s doubling to 30 s, less up to half."""
    if failures <= 1:
        return 0.0
    doublings = min(failures - 2, 10)
    return min(BACKOFF_SECONDS_MIN * 2.0**doublings, BACKOFF_SECONDS_MAX) * (1 - chance / 2)


def _waiting(slot: Slot, now: float, chance: float) -> Slot:
    """What it needs is away. Who waited for it itself comes again soon; who left at once, later and later."""
    was_patient = slot.started is not None and now - slot.started >= PATIENT_SECONDS
    waits = 0 if was_patient else min(slot.waits + 1, 10)
    pause = min(DEPENDENCY_SECONDS_MIN * 2.0 ** max(waits - 1, 0), DEPENDENCY_SECONDS_MAX) * (0.75 + chance / 2)
    return replace(slot, state=WorkerState.BACKOFF, deadline=now + pause, waits=waits)


def _crashed(slot: Slot, now: float, chance: float, limits: Limits) -> Slot:
    recent = (at for at in slot.crashes if now - at < limits.window_seconds)
    crashes = (*recent, now)[-limits.crashes_max - 1 :]
    slot = replace(slot, crashes=crashes, failures=slot.failures + 1)
    if len(crashes) > limits.crashes_max and slot.number != MONITOR:
        return _parked(slot, now)
    pause = pause_seconds(slot.failures, chance)
    if pause == 0:
        return slot  # dead, and due at once
    return replace(slot, state=WorkerState.BACKOFF, deadline=now + pause)


def _parked(slot: Slot, now: float) -> Slot:
    """Nobody is put here again. The monitor is never given up: without it no lease comes back early."""
    if slot.number == MONITOR:
        return replace(slot, state=WorkerState.BACKOFF, deadline=now + BACKOFF_SECONDS_MAX)
    return replace(slot, state=WorkerState.PARKED, deadline=None)


def forgiven(slot: Slot, now: float) -> Slot:
    """There are new settings: what was given up, or waits after failures, gets another chance."""
    return replace(due(slot, now), failures=0, waits=0, crashes=())
