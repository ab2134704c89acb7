"""Who comes and who goes while the fleet runs: seats that are wanted or not, new settings, worn workers. PURE.

Nothing here is a script with a place in it; each call looks at how things stand and says what the next step is, so
that any death, signal or new HUP in between is just another state to go on from.

A worker is only told to leave for another's sake when one more than wanted is ready: the spare seat is filled first.
New settings are an offer until the worker in the spare seat is ready with them; if it cannot be, nothing has changed.
"""

from dataclasses import replace

from reconsup.fleet import slot as seat
from reconsup.fleet.events import Accept, Command, Refuse
from reconsup.fleet.slot import MONITOR, SPARE, Cause, Slot, Terms, WorkerState
from reconsup.fleet.state import Fleet, Step, ask_to_leave

_SETTLED = frozenset({WorkerState.READY, WorkerState.PARKED})


def turn(fleet: Fleet, now: float) -> Step:
    """The next step, if there is one to be taken now."""
    fleet, leaving = _fit_seats(fleet, now)
    fleet, replaced = _renew_monitor(fleet, now)
    fleet, more = _try_offer(fleet, now) if fleet.offer is not None else _replace_next(fleet, now)
    return fleet, (*leaving, *replaced, *more)


def resize(fleet: Fleet, wanted: int) -> Fleet:
    """There are to be so many workers, as far as the settings allow."""
    terms = fleet.terms
    least, most = (1, seat.WORKERS_MAX) if terms.least == terms.most else (terms.least, terms.most)
    return replace(fleet, wanted=min(max(wanted, least), most))


def accept(fleet: Fleet, terms: Terms, now: float) -> Step:
    """The offer is proven: the terms are in force, and who was given up gets another chance with them."""
    wanted = terms.least if terms.least == terms.most else min(max(fleet.wanted, terms.least), terms.most)
    fleet = replace(fleet, terms=terms, offer=None, wanted=wanted)
    for slot in fleet.seats():
        if slot.state in (WorkerState.PARKED, WorkerState.BACKOFF):
            fleet = fleet.put(seat.forgiven(slot, now))
    return fleet, (Accept(terms.generation),)


def refuse(fleet: Fleet, cause: Cause) -> Step:
    """The worker in the spare seat is gone before it was ready: everything stays as it is."""
    assert fleet.offer is not None
    generation = fleet.offer.generation
    return replace(fleet, offer=None).put(seat.removed(fleet.slots[SPARE])), (Refuse(generation, cause),)


def _fit_seats(fleet: Fleet, now: float) -> Step:
    """A seat for each worker that is wanted; who sits in another one is told to leave."""
    commands: list[Command] = []
    for number in range(fleet.wanted):
        slot = fleet.slots.get(number, Slot(number))
        if slot.state is WorkerState.EMPTY and slot.deadline is None:
            fleet = fleet.put(seat.due(slot, now))
    for slot in fleet.workers():
        if fleet.wanted <= slot.number != SPARE:
            if slot.is_live:
                fleet, leaving = ask_to_leave(fleet, slot, now + fleet.limits.drain_seconds, Cause.SCALE)
                commands += leaving
            elif slot != seat.removed(slot):
                fleet = fleet.put(seat.removed(slot))
    return fleet, tuple(commands)


def _renew_monitor(fleet: Fleet, now: float) -> Step:
    """The monitor has no one beside it: it leaves, and the next one goes on with what it left."""
    monitor = fleet.slots[MONITOR]
    if monitor.state is WorkerState.READY and fleet.is_stale(monitor):
        return ask_to_leave(fleet, monitor, now + fleet.limits.farewell_seconds, Cause.RELOAD)
    return fleet, ()


def _try_offer(fleet: Fleet, now: float) -> Step:
    """Seat the worker that is to prove the new settings; whoever sits there for another reason leaves first."""
    assert fleet.offer is not None
    spare = fleet.spare()
    if spare is None or not spare.is_live:
        return _seat_spare(fleet, now), ()
    if spare.generation == fleet.offer.generation or spare.pid is None:
        return fleet, ()
    return ask_to_leave(fleet, spare, now + fleet.limits.drain_seconds, Cause.RELOAD)


def _replace_next(fleet: Fleet, now: float) -> Step:
    """Replace one worker that is stale or worn, when all others are at work; at last, free the spare seat."""
    spare = fleet.spare()
    to_replace = [slot for slot in fleet.seats() if slot.is_live and (slot.is_worn or fleet.is_stale(slot))]
    if spare is not None and not spare.is_live and not to_replace:
        return fleet.put(seat.removed(spare)), ()
    seats = fleet.seats()
    if len(seats) < fleet.wanted or any(slot.state not in _SETTLED for slot in seats):
        return fleet, ()
    if fleet.has_stale() and fleet.is_stalled():
        return fleet, ()
    if spare is None:
        return (_seat_spare(fleet, now) if to_replace else fleet), ()
    if spare.state is not WorkerState.READY:
        return fleet, ()
    if not to_replace:
        return ask_to_leave(fleet, spare, now + fleet.limits.drain_seconds, Cause.RELOAD)
    next_ = to_replace[0]
    cause = Cause.RELOAD if fleet.is_stale(next_) else Cause.RECYCLE
    return ask_to_leave(fleet, next_, now + fleet.limits.drain_seconds, cause)


def _seat_spare(fleet: Fleet, now: float) -> Fleet:
    """Have the spare seat filled now."""
    slot = fleet.slots.get(SPARE, Slot(SPARE))
    if slot.deadline is not None and slot.state is not WorkerState.BACKOFF:
        return fleet  # it is about to be
    return fleet.put(seat.forgiven(slot, now))
