"""All that the plan knows of the fleet, and the few things that are done to a slot from more than one place. PURE."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from reconsup.fleet import slot as seat
from reconsup.fleet.events import Command, Send
from reconsup.fleet.scale import Pressure
from reconsup.fleet.slot import EXIT_CLEAN, SPARE, Cause, Limits, Slot, Terms, WorkerState

_ON_THE_WAY = frozenset({WorkerState.BOOTING, WorkerState.DRAINING})


class Phase(StrEnum):
    """What the fleet as a whole does."""

    PROBING = "probing"
    RUNNING = "running"
    DRAINING = "draining"
    DONE = "done"


# Every way from one phase to the next, and what it is taken for; held against the plan like `slot.MOVES`.
STEPS = MappingProxyType(
    {
        (Phase.PROBING, Phase.RUNNING): "the probe found database and schema as they must be",
        (Phase.PROBING, Phase.DRAINING): "told to stop, or the probe gave up (exit 69, 70 or 78)",
        (Phase.RUNNING, Phase.DRAINING): "told to stop, or every seat is parked (exit 70)",
        (Phase.DRAINING, Phase.DONE): "nobody is left",
    }
)


@dataclass(frozen=True, slots=True)
class Fleet:
    """`wanted`: how many workers there are to be. `offer`: new terms that a worker in the spare seat is to prove.
    `asked_at`: when it was last told to stop; `is_hasty`: it was told not to wait.
    """

    terms: Terms
    slots: Mapping[int, Slot]
    wanted: int
    phase: Phase = Phase.PROBING
    offer: Terms | None = None
    pressure: Pressure = field(default_factory=Pressure)
    exit_code: int = EXIT_CLEAN
    asked_at: float | None = None
    is_hasty: bool = False

    @property
    def limits(self) -> Limits:
        """The limits that are in force."""
        return self.terms.limits

    def limits_for(self, slot: Slot) -> Limits:
        """The limits for who is forked into that slot: a worker that tries new settings is bound by these."""
        is_trial = self.offer is not None and self.offer.generation == slot.generation
        return self.offer.limits if self.offer is not None and is_trial else self.terms.limits

    def workers(self) -> list[Slot]:
        """The workers' slots, the spare one too."""
        return [slot for number, slot in self.slots.items() if number >= 0]

    def seats(self) -> list[Slot]:
        """The slots of the workers that there are to be, in order."""
        return [self.slots[number] for number in range(self.wanted) if number in self.slots]

    def spare(self) -> Slot | None:
        """The spare seat, if somebody sits there, is about to, or was given up."""
        slot = self.slots.get(SPARE)
        return None if slot is None or (slot.state is WorkerState.EMPTY and slot.deadline is None) else slot

    def count(self, state: WorkerState) -> int:
        """How many workers are in that state."""
        return sum(slot.state is state for slot in self.workers())

    def is_stale(self, slot: Slot) -> bool:
        """Whether it was forked with other settings than those that are in force."""
        return slot.generation != self.terms.generation

    def has_stale(self) -> bool:
        """Whether some process still works with other settings than those in force."""
        return any(slot.is_live and self.is_stale(slot) for slot in self.slots.values())

    def is_stalled(self) -> bool:
        """Whether a worker with the settings in force was given up: who has other ones stays."""
        return any(slot.state is WorkerState.PARKED for slot in self.workers())

    def is_turning(self) -> bool:
        """Whether new settings are being tried, or are on their way to the rest of the fleet."""
        if self.phase is not Phase.RUNNING:
            return False
        return self.offer is not None or (self.has_stale() and not self.is_stalled())

    def is_healthy(self) -> bool:
        """Whether a worker does its work, or none can only because a dependency is away."""
        states = [slot.state for slot in self.workers()]
        is_waiting = any(slot.state is WorkerState.BACKOFF and slot.waits for slot in self.workers())
        return WorkerState.READY in states or (is_waiting and WorkerState.PARKED not in states)

    def awaited_until(self) -> float | None:
        """When everybody who comes or goes must have come or gone; None: nobody does."""
        moments = [slot.deadline for slot in self.slots.values() if slot.state in _ON_THE_WAY and slot.deadline]
        if not moments:
            return None
        # the monitor leaves after the last worker
        return max(moments) + (self.limits.farewell_seconds if self.phase is Phase.DRAINING else 0.0)

    def holder(self, number: int, pid: int) -> Slot | None:
        """The slot, if that process sits in it."""
        slot = self.slots.get(number)
        return slot if slot is not None and slot.is_live and slot.pid == pid else None

    def put(self, slot: Slot) -> "Fleet":
        """The fleet with that slot."""
        return replace(self, slots={**self.slots, slot.number: slot})


Step = tuple[Fleet, tuple[Command, ...]]


def ask_to_leave(fleet: Fleet, slot: Slot, deadline: float, cause: Cause | None = None) -> Step:
    """TERM, once: a second one would kill it in the middle of leaving."""
    if slot.pid is None or slot.state is WorkerState.DRAINING or slot.doom is not None:
        return fleet, ()
    return fleet.put(seat.draining(slot, deadline, cause)), (Send(slot.number, slot.pid, signal.SIGTERM, cause),)


def abort(fleet: Fleet, slot: Slot, cause: Cause, until: float) -> Step:
    """SIGABRT, at which it writes down where it is and dies; who has not died by `until` is killed."""
    assert slot.pid is not None
    return fleet.put(seat.doomed(slot, cause, until)), (Send(slot.number, slot.pid, signal.SIGABRT, cause),)


def kill(fleet: Fleet, slot: Slot, cause: Cause) -> Step:
    """SIGKILL, once."""
    if slot.pid is None or (slot.doom is not None and slot.deadline is None):
        return fleet, ()
    doomed = seat.doomed(slot, cause, None)
    return fleet.put(doomed), (Send(slot.number, slot.pid, signal.SIGKILL, doomed.doom),)
