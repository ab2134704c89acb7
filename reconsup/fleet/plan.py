"""What the fleet does next: `step(fleet, event, now) → (fleet, commands)`. PURE: no clock, no process, no log.

Phases: probing (one child asks whether the database is there and fits) → running → draining → done. The supervisor
feeds what happened, one event after the other, and performs the commands in their order. At most one process is
spawned a tick, so that a signal or a death is looked at before every fork. Whatever the order of events: nobody is
spawned while draining, a slot never has two processes, a signal goes only to a process that was not reaped, TERM goes
to each once, the monitor leaves last, and the way ends in `Finish`.
"""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from reconsup.fleet import slot as seat
from reconsup.fleet.slot import (
    EXIT_CLEAN,
    EXIT_CONFIG,
    EXIT_GAVE_UP,
    EXIT_UNAVAILABLE,
    MONITOR,
    PROBE,
    Cause,
    Slot,
    WorkerState,
)


class Phase(StrEnum):
    """What the fleet as a whole does."""

    PROBING = "probing"
    RUNNING = "running"
    DRAINING = "draining"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Limits:
    """Every time-out of the plan, in seconds. `start` bounds the probe, which should end by itself before."""

    boot_seconds: float = 60.0
    drain_seconds: float = 30.0
    start_seconds: float = 70.0
    farewell_seconds: float = 5.0  # for the monitor, after the last worker
    again_seconds: float = 1.0  # bootloaders and process groups deliver one signal twice: sooner is no second one


@dataclass(frozen=True, slots=True)
class Fleet:
    """All that the plan knows. `asked_at`: when it was last told to stop; `is_hasty`: it was told not to wait."""

    limits: Limits
    slots: Mapping[int, Slot]
    phase: Phase = Phase.PROBING
    exit_code: int = EXIT_CLEAN
    asked_at: float | None = None
    is_hasty: bool = False

    def workers(self) -> list[Slot]:
        """The workers' slots."""
        return [slot for number, slot in self.slots.items() if number >= 0]

    def count(self, state: WorkerState) -> int:
        """How many workers are in that state."""
        return sum(slot.state is state for slot in self.workers())


# Events


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: what is due?"""


@dataclass(frozen=True, slots=True)
class Signalled:
    """The supervisor got a signal."""

    number: signal.Signals


@dataclass(frozen=True, slots=True)
class Forked:
    """A `Spawn` succeeded."""

    slot: int
    pid: int


@dataclass(frozen=True, slots=True)
class NotForked:
    """A `Spawn` failed. `chance` is in [0, 1)."""

    slot: int
    chance: float


@dataclass(frozen=True, slots=True)
class Ready:
    """A process said that it does its work."""

    slot: int
    pid: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """A worker said that it drains."""

    slot: int
    pid: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A process was reaped: its exit code, or minus the signal that killed it. `chance` is in [0, 1)."""

    slot: int
    pid: int
    code: int
    chance: float


Event = Tick | Signalled | Forked | NotForked | Ready | Leaving | Exited


# Commands


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a process for the slot and answer `Forked` or `NotForked` at once."""

    slot: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a signal to a process that was not reaped. `cause` says why, if it is SIGKILL."""

    slot: int
    pid: int
    number: signal.Signals
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Bury:
    """Note the death of a reaped process. `is_unasked`: nobody had told it to leave."""

    slot: int
    pid: int
    code: int
    cause: Cause
    is_unasked: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """Nobody is left: exit with this code. The last command."""

    code: int


Command = Spawn | Send | Bury | Finish
Step = tuple[Fleet, tuple[Command, ...]]


def new(workers: int, limits: Limits, now: float) -> Fleet:
    """A fleet of `workers` slots, a monitor and a probe, the probe being due."""
    assert workers > 0
    slots = {number: Slot(number) for number in (PROBE, MONITOR, *range(workers))}
    return Fleet(limits, slots | {PROBE: Slot(PROBE, deadline=now)})


def next_deadline(fleet: Fleet) -> float | None:
    """When the next `Tick` is due; None: not before something happens."""
    return min((slot.deadline for slot in fleet.slots.values() if slot.deadline is not None), default=None)


def step(fleet: Fleet, event: Event, now: float) -> Step:
    """Take in one event. An event about a process that is not (or no more) in its slot changes nothing."""
    if fleet.phase is Phase.DONE:
        return fleet, ()
    after, commands = _take_in(fleet, event, now)
    settled, more = _settle(after, now)
    return settled, (*commands, *more)


def _take_in(fleet: Fleet, event: Event, now: float) -> Step:
    match event:
        case Tick():
            return _tick(fleet, now)
        case Signalled(number):
            return _signalled(fleet, number, now)
        case Forked(number, pid):
            return _forked(fleet, fleet.slots[number], pid, now)
        case NotForked(number, chance):
            return _not_forked(fleet, fleet.slots[number], now, chance), ()
        case Ready(number, pid):
            return _ready(fleet, _holder(fleet, number, pid), now), ()
        case Leaving(number, pid):
            return _leaving(fleet, _holder(fleet, number, pid), now), ()
        case Exited(number, pid):
            slot = _holder(fleet, number, pid)
            return (fleet, ()) if slot is None else _exited(fleet, slot, event, now)


def _tick(fleet: Fleet, now: float) -> Step:
    due = [slot for slot in fleet.slots.values() if slot.deadline is not None and slot.deadline <= now]
    late = [slot for slot in due if slot.is_live]
    vacant = [slot for slot in due if not slot.is_live]
    commands: list[Command] = []
    for slot in late:
        cause = Cause.BOOT if slot.state is WorkerState.BOOTING else Cause.DRAIN
        fleet, command = _kill(fleet, slot, cause)
        commands += command
    if vacant:
        fleet = _with(fleet, seat.spawning(vacant[0]))
        commands.append(Spawn(vacant[0].number))
    return fleet, tuple(commands)


def _signalled(fleet: Fleet, number: signal.Signals, now: float) -> Step:
    if number not in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        return fleet, ()
    is_quit = number is signal.SIGQUIT
    is_again = fleet.asked_at is not None and now - fleet.asked_at >= fleet.limits.again_seconds
    if is_again or (is_quit and not fleet.is_hasty):
        return _stop_now(replace(fleet, asked_at=now))
    if fleet.asked_at is not None:
        return fleet, ()
    fleet = replace(fleet, asked_at=now)
    return (fleet, ()) if fleet.phase is Phase.DRAINING else _drain(fleet, EXIT_CLEAN, now)


def _forked(fleet: Fleet, slot: Slot, pid: int, now: float) -> Step:
    assert slot.is_live
    assert slot.pid is None
    seconds = fleet.limits.start_seconds if slot.number == PROBE else fleet.limits.boot_seconds
    slot = seat.forked(slot, pid, now, seconds)
    if fleet.phase is not Phase.DRAINING or slot.number == MONITOR:
        return _with(fleet, slot), ()
    if fleet.is_hasty:
        return _kill(fleet, slot, Cause.STOP)
    return _ask_to_leave(fleet, slot, now + fleet.limits.drain_seconds)


def _not_forked(fleet: Fleet, slot: Slot, now: float, chance: float) -> Fleet:
    if fleet.phase is Phase.DRAINING:
        return _with(fleet, seat.retired(slot))
    return _with(fleet, seat.not_forked(slot, now, chance))


def _ready(fleet: Fleet, slot: Slot | None, now: float) -> Fleet:
    if slot is None or slot.state is not WorkerState.BOOTING or slot.doom is not None:
        return fleet
    return _with(fleet, seat.ready(slot, now))


def _leaving(fleet: Fleet, slot: Slot | None, now: float) -> Fleet:
    """A worker that somebody else told to leave: it gets the time of a drain. The helpers are told by us."""
    if slot is None or slot.number < 0 or slot.state is WorkerState.DRAINING or slot.doom is not None:
        return fleet
    return _with(fleet, seat.draining(slot, now + fleet.limits.drain_seconds))


def _exited(fleet: Fleet, slot: Slot, event: Exited, now: float) -> Step:
    cause = seat.cause_of(slot, event.code)
    is_unasked = fleet.phase is Phase.RUNNING
    bury = Bury(slot.number, event.pid, event.code, cause, is_unasked)
    if fleet.phase is Phase.DRAINING:
        return _with(fleet, seat.retired(slot)), (bury,)
    if slot.number == PROBE:
        fleet, commands = _probed(fleet, slot, cause, now, event.chance)
        return fleet, (bury, *commands)
    return _with(fleet, seat.left(slot, cause, now, event.chance)), (bury,)


def _probed(fleet: Fleet, slot: Slot, cause: Cause, now: float, chance: float) -> Step:
    """The probe's verdict. One that crashed is asked again, like a worker."""
    match cause:
        case Cause.CLEAN:
            fleet = _with(fleet, seat.retired(slot))
            others = {number: replace(each, deadline=now) for number, each in fleet.slots.items() if number != PROBE}
            return replace(fleet, phase=Phase.RUNNING, slots={**fleet.slots, **others}), ()
        case Cause.DEPENDENCY | Cause.BOOT:
            return _drain(_with(fleet, seat.retired(slot)), EXIT_UNAVAILABLE, now)
        case Cause.CONFIG:
            return _drain(_with(fleet, seat.retired(slot)), EXIT_CONFIG, now)
    fleet = _with(fleet, seat.left(slot, cause, now, chance))
    if fleet.slots[PROBE].state is WorkerState.PARKED:
        return _drain(fleet, EXIT_GAVE_UP, now)
    return fleet, ()


def _drain(fleet: Fleet, exit_code: int, now: float) -> Step:
    """Begin the drain: everybody but the monitor is told to leave, nobody is put in their place."""
    fleet = replace(fleet, phase=Phase.DRAINING, exit_code=exit_code)
    commands: list[Command] = []
    for slot in fleet.slots.values():
        if not slot.is_live:
            fleet = _with(fleet, seat.retired(slot))
        elif slot.number != MONITOR:
            fleet, command = _ask_to_leave(fleet, slot, now + fleet.limits.drain_seconds)
            commands += command
    return fleet, tuple(commands)


def _stop_now(fleet: Fleet) -> Step:
    """Kill who is left; the monitor has its few seconds for their leases, unless this is said twice."""
    commands: list[Command] = []
    is_all = fleet.is_hasty
    for slot in fleet.slots.values():
        if not slot.is_live:
            fleet = _with(fleet, seat.retired(slot))
        elif is_all or slot.number != MONITOR:
            fleet, command = _kill(fleet, slot, Cause.STOP)
            commands += command
    return replace(fleet, phase=Phase.DRAINING, is_hasty=True), tuple(commands)


def _settle(fleet: Fleet, now: float) -> Step:
    """What follows from how things stand: giving up, the monitor's turn to leave, the end."""
    commands: tuple[Command, ...] = ()
    if fleet.phase is Phase.RUNNING and all(slot.state is WorkerState.PARKED for slot in fleet.workers()):
        fleet, commands = _drain(fleet, EXIT_GAVE_UP, now)
    if fleet.phase is not Phase.DRAINING:
        return fleet, commands
    live = [slot for slot in fleet.slots.values() if slot.is_live]
    if not live:
        return replace(fleet, phase=Phase.DONE), (*commands, Finish(fleet.exit_code))
    if [slot.number for slot in live] == [MONITOR]:
        fleet, last = _ask_to_leave(fleet, live[0], now + fleet.limits.farewell_seconds)
        return fleet, (*commands, *last)
    return fleet, commands


def _ask_to_leave(fleet: Fleet, slot: Slot, deadline: float) -> Step:
    """TERM, once: a second one would kill it in the middle of leaving."""
    if slot.pid is None or slot.state is WorkerState.DRAINING or slot.doom is not None:
        return fleet, ()
    return _with(fleet, seat.draining(slot, deadline)), (Send(slot.number, slot.pid, signal.SIGTERM),)


def _kill(fleet: Fleet, slot: Slot, cause: Cause) -> Step:
    if slot.pid is None or slot.doom is not None:
        return fleet, ()
    return _with(fleet, seat.doomed(slot, cause)), (Send(slot.number, slot.pid, signal.SIGKILL, cause),)


def _holder(fleet: Fleet, number: int, pid: int) -> Slot | None:
    """The slot, if that process sits in it."""
    slot = fleet.slots[number]
    return slot if slot.is_live and slot.pid == pid else None


def _with(fleet: Fleet, slot: Slot) -> Fleet:
    return replace(fleet, slots={**fleet.slots, slot.number: slot})
