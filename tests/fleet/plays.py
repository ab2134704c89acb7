"""What the plan's tests share: events in a row, a fleet that probes or runs, commands in short."""

from collections.abc import Sequence
from signal import SIGABRT, SIGKILL, SIGTERM

from reconsup.fleet import plan
from reconsup.fleet.plan import (
    Bury,
    Command,
    Event,
    Exited,
    Fleet,
    Forked,
    Limits,
    Ready,
    Send,
    Spawn,
    Terms,
    Tick,
)
from reconsup.fleet.slot import MONITOR, PROBE, SPARE, Cause, WorkerState

NOW = 1000.0
LIMITS = Limits(
    boot_seconds=60,
    drain_seconds=30,
    start_seconds=70,
    watchdog_seconds=1e6,
    farewell_seconds=5,
    again_seconds=1,
    stacks_seconds=2,
    last_words_seconds=0.15,
)
PIDS = {PROBE: 10, MONITOR: 11, 0: 100, 1: 101, 2: 102, SPARE: 512}

BOOTING, READY, DRAINING = WorkerState.BOOTING, WorkerState.READY, WorkerState.DRAINING
EMPTY, DEAD, BACKOFF, PARKED = WorkerState.EMPTY, WorkerState.DEAD, WorkerState.BACKOFF, WorkerState.PARKED


def play(fleet: Fleet, *events: Event | float, now: float = NOW) -> tuple[Fleet, list[Command]]:
    """Feed the events; a number lets so many seconds pass. The fleet and all commands."""
    commands: list[Command] = []
    for event in events:
        if isinstance(event, float):
            now += event
        else:
            fleet, more = plan.step(fleet, event, now)
            commands += more
    return fleet, commands


def probing(workers: int = 2, most: int = 0, limits: Limits = LIMITS) -> Fleet:
    """The probe runs."""
    terms = Terms(0, workers, most or workers, limits)
    fleet, _ = play(plan.new(terms, NOW - 5), Tick(), Forked(PROBE, PIDS[PROBE]), now=NOW - 5)
    return fleet


def running(workers: int = 2, most: int = 0, limits: Limits = LIMITS) -> Fleet:
    """Everybody is ready, for five seconds."""
    fleet, _ = play(probing(workers, most, limits), Exited(PROBE, PIDS[PROBE], 0, 0.0), now=NOW - 5)
    for number in (MONITOR, *range(workers)):
        fleet, commands = play(fleet, Tick(), Forked(number, PIDS[number]), Ready(number, PIDS[number]), now=NOW - 5)
        assert commands == [spawn(number)]
    return fleet


def states(fleet: Fleet) -> list[WorkerState]:
    return [slot.state for slot in fleet.workers()]


def term(slot: int) -> Send:
    return Send(slot, PIDS[slot], SIGTERM)


def spawn(slot: int, generation: int = 0) -> Spawn:
    return Spawn(slot, generation)


def abort(slot: int, cause: Cause) -> Send:
    return Send(slot, PIDS[slot], SIGABRT, cause)


def kill(slot: int, cause: Cause) -> Send:
    return Send(slot, PIDS[slot], SIGKILL, cause)


def died(slot: int, code: int = -9) -> Exited:
    return Exited(slot, PIDS[slot], code, 0.0)


def buried(commands: Sequence[Command]) -> list[tuple[int, Cause]]:
    return [(each.slot, each.cause) for each in commands if isinstance(each, Bury)]


def others(commands: Sequence[Command]) -> list[Command]:
    return [each for each in commands if not isinstance(each, Bury)]


def fail(fleet: Fleet, slot: int, *events: Event, times: int) -> tuple[Fleet, int]:
    """Let so many processes come to that slot, each meeting these events, a minute passing in all; how many came."""
    came = 0
    for attempt in range(times):
        now = NOW + 5.0 * attempt
        for _ in range(len(fleet.slots)):
            fleet, commands = play(fleet, Tick(), now=now)
            if any(isinstance(each, Spawn) and each.slot == slot for each in commands):
                came += 1
                fleet, _ = play(fleet, Forked(slot, PIDS[slot]), *events, now=now)
    return fleet, came
