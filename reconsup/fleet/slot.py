"""A slot: a seat in the fleet, what sits in it, and what becomes of it when that dies. PURE.

The restart policy lives here. A first death is answered at once, later ones after a growing pause, too many in a
window not at all; what waits for a dependency waits gently and costs nothing. Clock and chance are arguments; this
room forks nothing, kills nothing and logs nothing.
"""

import signal
from dataclasses import dataclass, replace
from enum import StrEnum

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
DEPENDENCY_SECONDS = 1.0
HEALTHY_SECONDS = 60.0
WINDOW_SECONDS = 60.0
CRASHES_MAX = 5  # in the window; one more parks the slot


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
class Slot:
    """A seat and what is known of it. Moments are monotonic seconds.

    `deadline` is what happens next by itself: while booting or draining, the kill; while empty, dead or in backoff,
    the fork; None: nothing. A slot that is booting without a pid is just being forked.
    """

    number: int
    state: WorkerState = WorkerState.EMPTY
    deadline: float | None = None
    pid: int | None = None
    started: float | None = None
    ready_at: float | None = None
    doom: Cause | None = None  # it was sent SIGKILL for this
    forks: int = 0
    failures: int = 0  # in a row, forgiven after a healthy time; what the pause grows with
    crashes: tuple[float, ...] = ()  # when, in the window

    @property
    def is_live(self) -> bool:
        """Whether a process sits in it, or is about to."""
        return self.state in LIVE

    @property
    def restarts(self) -> int:
        """How often the seat was filled again."""
        return max(self.forks - 1, 0)


def spawning(slot: Slot) -> Slot:
    """It is being forked."""
    assert not slot.is_live, f"slot {slot.number} is taken"
    return replace(slot, state=WorkerState.BOOTING, deadline=None, pid=None, ready_at=None, doom=None)


def forked(slot: Slot, pid: int, now: float, boot_seconds: float) -> Slot:
    """It has a process, which must be ready in time."""
    return replace(slot, pid=pid, started=now, deadline=now + boot_seconds, forks=slot.forks + 1)


def not_forked(slot: Slot, now: float, chance: float) -> Slot:
    """The system has no process for it (EAGAIN, ENOMEM): again after a pause. It is not the slot's fault."""
    failures = max(slot.failures + 1, 2)  # never at once
    pause = pause_seconds(failures, chance)
    return replace(slot, state=WorkerState.BACKOFF, deadline=now + pause, failures=failures)


def ready(slot: Slot, now: float) -> Slot:
    """It does its work."""
    return replace(slot, state=WorkerState.READY, deadline=None, ready_at=now)


def draining(slot: Slot, deadline: float) -> Slot:
    """It leaves, until the deadline at the latest."""
    return replace(slot, state=WorkerState.DRAINING, deadline=deadline)


def doomed(slot: Slot, cause: Cause) -> Slot:
    """It is being killed; what is left is to reap it."""
    return replace(slot, deadline=None, doom=cause)


def retired(slot: Slot) -> Slot:
    """Nobody will sit in it any more. A parked slot stays parked."""
    is_kept = slot.state in (WorkerState.PARKED, WorkerState.EMPTY)
    return replace(slot, state=slot.state if is_kept else WorkerState.DEAD, deadline=None, pid=None)


def cause_of(slot: Slot, code: int) -> Cause:
    """Why it left: its exit code, or minus the signal that killed it."""
    if code == -signal.SIGTERM and slot.state is WorkerState.DRAINING:
        return Cause.CLEAN  # it was told to leave before it could listen, or as it was leaving
    if code < 0:
        return slot.doom or Cause.SIGNAL
    return _OF_EXIT_CODE.get(code, Cause.CRASH)


def left(slot: Slot, cause: Cause, now: float, chance: float) -> Slot:
    """It left though it should have stayed: what is next. `chance` is in [0, 1)."""
    was_healthy = slot.ready_at is not None and now - slot.ready_at >= HEALTHY_SECONDS
    dead = replace(slot, state=WorkerState.DEAD, deadline=now, pid=None)
    if was_healthy:
        dead = replace(dead, failures=0, crashes=())
    if cause is Cause.DEPENDENCY:
        pause = DEPENDENCY_SECONDS * (0.75 + chance / 2)
        return replace(dead, state=WorkerState.BACKOFF, deadline=now + pause)
    if cause is Cause.CONFIG:
        return _parked(dead, now)
    return _crashed(dead, now, chance)


def pause_seconds(failures: int, chance: float) -> float:
    """How long to wait after so many failures in a row: not at all, then 0.25 s doubling to 30 s, less up to half."""
    if failures <= 1:
        return 0.0
    doublings = min(failures - 2, 10)
    return min(BACKOFF_SECONDS_MIN * 2.0**doublings, BACKOFF_SECONDS_MAX) * (1 - chance / 2)


def _crashed(slot: Slot, now: float, chance: float) -> Slot:
    crashes = (*(at for at in slot.crashes if now - at < WINDOW_SECONDS), now)[-CRASHES_MAX - 1 :]
    slot = replace(slot, crashes=crashes, failures=slot.failures + 1)
    if len(crashes) > CRASHES_MAX and slot.number != MONITOR:
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
