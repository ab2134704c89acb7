"""What the fleet does next: `step(fleet, event, now) → (fleet, commands)`. PURE: no clock, no process, no log.

Phases: probing (one child asks whether the database is there and fits) → running → draining → done. The supervisor
feeds what happened, one event after the other, and performs the commands in their order. At most one process is
spawned a tick, so that a signal or a death is looked at before every fork. Whatever the order of events: nobody is
spawned while draining, a slot never has two processes, a signal goes only to a process that was not reaped, TERM goes
to each once, the monitor leaves last, and the way ends in `Finish`.

What is due and what a signal means is here; who comes and who goes while all is well in `turnover`; when a dead worker
comes back in `slot`; how many there are to be in `scale`.
"""

import signal
from dataclasses import replace

from reconsup.fleet import scale, turnover
from reconsup.fleet import slot as seat
from reconsup.fleet.events import (
    Accept,
    Beat,
    Bury,
    Command,
    Event,
    Exited,
    Finish,
    Forked,
    Grown,
    Leaving,
    Loaded,
    NotForked,
    Overslept,
    Ready,
    Refuse,
    Reload,
    Send,
    Signalled,
    Spawn,
    Tick,
)
from reconsup.fleet.scale import Marks
from reconsup.fleet.slot import (
    EXIT_CLEAN,
    EXIT_CONFIG,
    EXIT_GAVE_UP,
    EXIT_UNAVAILABLE,
    MONITOR,
    PROBE,
    SPARE,
    Cause,
    Limits,
    Slot,
    Terms,
    WorkerState,
)
from reconsup.fleet.state import Fleet, Phase, Step, abort, ask_to_leave, kill

__all__ = [
    "Accept",
    "Beat",
    "Bury",
    "Command",
    "Event",
    "Exited",
    "Finish",
    "Fleet",
    "Forked",
    "Grown",
    "Leaving",
    "Limits",
    "Loaded",
    "NotForked",
    "Overslept",
    "Phase",
    "Ready",
    "Refuse",
    "Reload",
    "Send",
    "Signalled",
    "Spawn",
    "Terms",
    "Tick",
    "new",
    "next_deadline",
    "step",
]

RECYCLE_JITTER = 0.1  # of the age: workers that were forked together are not replaced together


def new(terms: Terms, now: float) -> Fleet:
    """A fleet of the least number of workers, a monitor and a probe, the probe being due."""
    assert 0 < terms.least <= terms.most
    slots = {number: Slot(number) for number in (PROBE, MONITOR, *range(terms.least))}
    return Fleet(terms, slots | {PROBE: Slot(PROBE, deadline=now)}, wanted=terms.least)


def next_deadline(fleet: Fleet) -> float | None:
    """When the next `Tick` is due; None: not before something happens."""
    moments = [slot.deadline for slot in fleet.slots.values()]
    moments += [slot.recycle_at for slot in fleet.slots.values() if slot.state is WorkerState.READY]
    return min((moment for moment in moments if moment is not None), default=None)


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
        case Overslept(seconds):
            return _overslept(fleet, seconds), ()
        case Signalled(number):
            return _signalled(fleet, number, now)
        case Reload(terms):
            return _reload(fleet, terms, now)
        case Forked(number, pid, chance):
            return _forked(fleet, fleet.slots[number], pid, now, chance)
        case NotForked(number, chance):
            return _not_forked(fleet, fleet.slots[number], now, chance)
        case Exited(number, pid):
            slot = fleet.holder(number, pid)
            return (fleet, ()) if slot is None else _exited(fleet, slot, event, now)
        case Loaded():
            return _loaded(fleet, event, now), ()
        case Ready(number, pid) | Beat(number, pid) | Grown(number, pid) | Leaving(number, pid):
            slot = fleet.holder(number, pid)
            return (fleet, ()) if slot is None or slot.doom is not None else _said(fleet, slot, event, now)


def _tick(fleet: Fleet, now: float) -> Step:
    due = [slot for slot in fleet.slots.values() if slot.deadline is not None and slot.deadline <= now]
    vacant = [slot for slot in due if not slot.is_live]
    commands: list[Command] = []
    for slot in fleet.slots.values():
        if slot.state is WorkerState.READY and slot.recycle_at is not None and slot.recycle_at <= now:
            fleet = fleet.put(seat.worn(slot))
    for slot in due:
        if slot.is_live:
            fleet, command = _too_late(fleet, slot, now)
            commands += command
    if vacant:
        number = vacant[0].number
        is_trial = number == SPARE and fleet.offer is not None
        terms = fleet.offer if is_trial and fleet.offer is not None else fleet.terms
        fleet = fleet.put(seat.spawning(vacant[0], terms.generation))
        commands.append(Spawn(number, terms.generation))
    return fleet, tuple(commands)


def _too_late(fleet: Fleet, slot: Slot, now: float) -> Step:
    """It was not ready, not heard of, or not gone in time; or it did not even die in time."""
    limits = fleet.limits
    if slot.doom is not None:
        return kill(fleet, slot, slot.doom)
    if slot.state is WorkerState.DRAINING:
        return abort(fleet, slot, Cause.DRAIN, now + limits.last_words_seconds)
    cause = Cause.BOOT if slot.state is WorkerState.BOOTING else Cause.HANG
    return abort(fleet, slot, cause, now + limits.stacks_seconds)


def _overslept(fleet: Fleet, seconds: float) -> Fleet:
    for slot in fleet.slots.values():
        if slot.is_live and slot.deadline is not None:
            fleet = fleet.put(replace(slot, deadline=slot.deadline + seconds))
    return fleet


def _signalled(fleet: Fleet, number: signal.Signals, now: float) -> Step:
    if number in (signal.SIGTTIN, signal.SIGTTOU):
        if fleet.phase is Phase.DRAINING:
            return fleet, ()
        fleet = turnover.resize(fleet, fleet.wanted + (1 if number is signal.SIGTTIN else -1))
        return replace(fleet, pressure=scale.changed(fleet.pressure, now)), ()
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


def _reload(fleet: Fleet, terms: Terms, now: float) -> Step:
    match fleet.phase:
        case Phase.RUNNING:
            return replace(fleet, offer=terms), ()
        case Phase.PROBING:  # nobody works yet with the old ones: the probe tries the new ones
            fleet, accepted = turnover.accept(fleet, terms, now)
            deadline = now + fleet.limits.drain_seconds
            fleet, leaving = ask_to_leave(fleet, fleet.slots[PROBE], deadline, Cause.RELOAD)
            return fleet, (*accepted, *leaving)
    return fleet, ()


def _forked(fleet: Fleet, slot: Slot, pid: int, now: float, chance: float) -> Step:
    assert slot.is_live
    assert slot.pid is None
    limits = fleet.limits_for(slot)
    seconds = limits.start_seconds if slot.number == PROBE else limits.boot_seconds
    age = limits.recycle_seconds * (1 + RECYCLE_JITTER * (2 * chance - 1)) if 0 <= slot.number < SPARE else 0.0
    slot = seat.forked(slot, pid, now, seconds, age)
    if fleet.phase is not Phase.DRAINING or slot.number == MONITOR:
        return fleet.put(slot), ()
    if fleet.is_hasty:
        return kill(fleet, slot, Cause.STOP)
    return ask_to_leave(fleet, slot, now + limits.drain_seconds)


def _not_forked(fleet: Fleet, slot: Slot, now: float, chance: float) -> Step:
    if fleet.phase is Phase.DRAINING:
        return fleet.put(seat.retired(slot)), ()
    if slot.number == SPARE and fleet.offer is not None:
        return turnover.refuse(fleet, Cause.CRASH)
    return fleet.put(seat.not_forked(slot, now, chance)), ()


def _said(fleet: Fleet, slot: Slot, event: Ready | Beat | Grown | Leaving, now: float) -> Step:
    """What a process that is not being killed says of itself."""
    limits = fleet.limits
    match event:
        case Ready() if slot.state is WorkerState.BOOTING:
            fleet = fleet.put(seat.ready(slot, now, fleet.limits_for(slot).watchdog_seconds))
            if slot.number == SPARE and fleet.offer is not None:
                assert slot.generation == fleet.offer.generation, "who has older ones was told to leave"
                return turnover.accept(fleet, fleet.offer, now)
        case Beat(at=at) if slot.state is WorkerState.READY and slot.deadline is not None:
            fleet = fleet.put(replace(slot, deadline=max(slot.deadline, at + slot.watchdog_seconds)))
        case Grown(memory_bytes=size) if slot.state is WorkerState.READY and 0 <= slot.number < SPARE:
            if limits.recycle_bytes and size > limits.recycle_bytes:
                fleet = fleet.put(seat.worn(slot))
        case Leaving() if slot.state is not WorkerState.DRAINING and slot.number >= 0:
            # somebody else told it to: it gets the time of a drain. The helpers are told by us
            fleet = fleet.put(seat.draining(slot, now + limits.drain_seconds))
    return fleet, ()


def _loaded(fleet: Fleet, load: Loaded, now: float) -> Fleet:
    if fleet.phase is not Phase.RUNNING or fleet.terms.least == fleet.terms.most:
        return fleet
    pressure, change = scale.judge(
        fleet.pressure,
        Marks(fleet.limits.busy_seconds, fleet.limits.behind_seconds),
        oldest_due_seconds=load.oldest_due_seconds,
        behind_seconds=load.behind_seconds,
        now=now,
    )
    resized = turnover.resize(fleet, fleet.wanted + change)
    if resized.wanted != fleet.wanted:
        pressure = scale.changed(pressure, now)
    return replace(resized, pressure=pressure)


def _exited(fleet: Fleet, slot: Slot, event: Exited, now: float) -> Step:
    cause = seat.cause_of(slot, event.code)
    is_asked = fleet.phase is not Phase.RUNNING or slot.asked is not None
    bury = Bury(slot.number, event.pid, event.code, cause, is_asked)
    if fleet.phase is Phase.DRAINING:
        return fleet.put(seat.retired(slot)), (bury,)
    if slot.number == PROBE:
        fleet, commands = _probed(fleet, slot, cause, now, event.chance)
        return fleet, (bury, *commands)
    if slot.number == SPARE:
        fleet, commands = _spare_left(fleet, slot, cause, now, event.chance)
        return fleet, (bury, *commands)
    return fleet.put(seat.left(slot, cause, now, event.chance, fleet.limits)), (bury,)


def _spare_left(fleet: Fleet, slot: Slot, cause: Cause, now: float, chance: float) -> Step:
    fleet = fleet.put(seat.left(slot, cause, now, chance, fleet.limits))
    if fleet.offer is not None and fleet.offer.generation == slot.generation:
        return turnover.refuse(fleet, cause)
    return fleet, ()


def _probed(fleet: Fleet, slot: Slot, cause: Cause, now: float, chance: float) -> Step:
    """The probe's verdict. One that crashed is asked again, like a worker; so is one that had old settings."""
    if slot.asked is not None:
        return fleet.put(seat.left(slot, cause, now, chance, fleet.limits)), ()
    match cause:
        case Cause.CLEAN:
            fleet = fleet.put(seat.retired(slot)).put(seat.due(fleet.slots[MONITOR], now))
            return replace(fleet, phase=Phase.RUNNING), ()
        case Cause.DEPENDENCY | Cause.BOOT:
            return _drain(fleet.put(seat.retired(slot)), EXIT_UNAVAILABLE, now)
        case Cause.CONFIG:
            return _drain(fleet.put(seat.retired(slot)), EXIT_CONFIG, now)
    fleet = fleet.put(seat.left(slot, cause, now, chance, fleet.limits))
    if fleet.slots[PROBE].state is WorkerState.PARKED:
        return _drain(fleet, EXIT_GAVE_UP, now)
    return fleet, ()


def _drain(fleet: Fleet, exit_code: int, now: float) -> Step:
    """Begin the drain: everybody but the monitor is told to leave, nobody is put in their place."""
    fleet = replace(fleet, phase=Phase.DRAINING, exit_code=exit_code, offer=None)
    commands: list[Command] = []
    for slot in fleet.slots.values():
        if not slot.is_live:
            fleet = fleet.put(seat.retired(slot))
        elif slot.number != MONITOR:
            fleet, command = ask_to_leave(fleet, slot, now + fleet.limits.drain_seconds)
            commands += command
    return fleet, tuple(commands)


def _stop_now(fleet: Fleet) -> Step:
    """Kill who is left; the monitor has its few seconds for their leases, unless this is said twice."""
    commands: list[Command] = []
    is_all = fleet.is_hasty
    for slot in fleet.slots.values():
        if not slot.is_live:
            fleet = fleet.put(seat.retired(slot))
        elif is_all or slot.number != MONITOR:
            fleet, command = kill(fleet, slot, Cause.STOP)
            commands += command
    return replace(fleet, phase=Phase.DRAINING, is_hasty=True, offer=None), tuple(commands)


def _settle(fleet: Fleet, now: float) -> Step:
    """What follows from how things stand: who comes and goes, giving up, the monitor's turn to leave, the end."""
    commands: tuple[Command, ...] = ()
    if fleet.phase is Phase.RUNNING:
        fleet, commands = turnover.turn(fleet, now)
        seats = [slot for slot in (*fleet.seats(), fleet.spare()) if slot is not None]
        if all(slot.state is WorkerState.PARKED for slot in seats):
            fleet, more = _drain(fleet, EXIT_GAVE_UP, now)
            commands = (*commands, *more)
    if fleet.phase is not Phase.DRAINING:
        return fleet, commands
    live = [slot for slot in fleet.slots.values() if slot.is_live]
    if not live:
        return replace(fleet, phase=Phase.DONE), (*commands, Finish(fleet.exit_code))
    if [slot.number for slot in live] == [MONITOR]:
        fleet, last = ask_to_leave(fleet, live[0], now + fleet.limits.farewell_seconds)
        return fleet, (*commands, *last)
    return fleet, commands
