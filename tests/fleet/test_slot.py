"""The restart policy, by plain calls."""

from dataclasses import replace

import pytest

from reconsup.fleet import slot as seat
from reconsup.fleet.slot import MONITOR, Cause, Limits, Slot, WorkerState

NOW = 1000.0
LIVE = Slot(0, WorkerState.READY, pid=7, started=NOW - 10, ready_at=NOW - 9, forks=1)


def die(slot: Slot, now: float, cause: Cause = Cause.CRASH, chance: float = 0.0) -> Slot:
    """Sit in the slot for no time at all, and leave."""
    booted = seat.ready(seat.forked(seat.spawning(slot, 0), 7, now, 60), now, 60)
    return seat.left(booted, cause, now, chance, Limits())


def test_first_death_is_answered_at_once() -> None:
    after = seat.left(LIVE, Cause.SIGNAL, NOW, 0.9, Limits())

    assert (after.state, after.deadline, after.pid) == (WorkerState.DEAD, NOW, None)


@pytest.mark.parametrize(
    ("failures", "longest"),
    [(0, 0), (1, 0), (2, 0.25), (3, 0.5), (4, 1), (5, 2), (6, 4), (7, 8), (8, 16), (9, 30), (10, 30), (5000, 30)],
)
def test_pause_doubles_to_thirty_seconds_less_up_to_half(failures: int, longest: float) -> None:
    assert seat.pause_seconds(failures, 0.0) == longest
    assert seat.pause_seconds(failures, 0.5) == longest * 0.75
    assert longest / 2 <= seat.pause_seconds(failures, 0.999) <= longest


def test_second_death_in_a_row_waits() -> None:
    after = die(die(Slot(0), NOW), NOW + 1)

    assert (after.state, after.deadline) == (WorkerState.BACKOFF, NOW + 1.25)


def test_sixth_crash_within_a_minute_parks() -> None:
    slot = Slot(0)
    for crash in range(5):
        slot = die(slot, NOW + 10 * crash)
        assert slot.state is not WorkerState.PARKED

    parked = die(slot, NOW + 59.9)
    spared = die(slot, NOW + 60)

    assert (parked.state, parked.deadline) == (WorkerState.PARKED, None)
    assert spared.state is WorkerState.BACKOFF


def test_crashes_that_are_spread_out_reach_the_longest_pause_and_never_park() -> None:
    slot, now = Slot(0), NOW
    for _ in range(50):
        now += 15
        slot = die(slot, now)

    assert (slot.state, slot.deadline) == (WorkerState.BACKOFF, now + 30)
    assert len(slot.crashes) <= 6


def test_a_healthy_minute_forgives() -> None:
    slot = die(die(die(Slot(0), NOW), NOW + 1), NOW + 2)
    booted = seat.ready(seat.forked(seat.spawning(slot, 0), 7, NOW + 3, 60), NOW + 3, 60)

    just_not = seat.left(booted, Cause.CRASH, NOW + 62.9, 0, Limits())
    healthy = seat.left(booted, Cause.CRASH, NOW + 63, 0, Limits())

    assert (just_not.failures, just_not.state) == (4, WorkerState.BACKOFF)
    assert (healthy.failures, healthy.crashes, healthy.state) == (1, (NOW + 63,), WorkerState.DEAD)


def test_time_spent_booting_is_not_health() -> None:
    slow = seat.forked(seat.spawning(die(Slot(0), NOW), 0), 7, NOW, 600)

    assert seat.left(slow, Cause.BOOT, NOW + 500, 0, Limits()).failures == 2


def test_a_missing_dependency_costs_nothing_and_who_left_at_once_comes_later_and_later() -> None:
    slot, pauses = Slot(0), []
    for attempt in range(1000):
        slot = die(slot, NOW + attempt, Cause.DEPENDENCY, chance=0.5)
        pauses.append((slot.deadline or 0) - NOW - attempt)

    assert pauses[:1] == [0.5]
    assert (slot.state, slot.failures, slot.crashes) == (WorkerState.BACKOFF, 0, ())


def test_who_waited_for_its_dependency_itself_comes_again_soon() -> None:
    slot, now, pauses = Slot(0), NOW, []
    for lived in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 30.0, 1.0):
        slot = seat.forked(seat.spawning(slot, 0), 7, now, 60)
        now += lived
        slot = seat.left(slot, Cause.DEPENDENCY, now, 0.5, Limits())
        pauses.append((slot.deadline or 0) - now)

    assert pauses == [0.5, 1, 2, 4, 8, 15, 15, 0.5, 0.5]


def test_bad_configuration_parks_at_once() -> None:
    after = die(Slot(0), NOW, Cause.CONFIG)

    assert (after.state, after.deadline) == (WorkerState.PARKED, None)


def test_monitor_is_never_given_up() -> None:
    monitor = Slot(MONITOR)
    for crash in range(100):
        monitor = die(monitor, NOW + crash / 100)

    assert (monitor.state, monitor.deadline) == (WorkerState.BACKOFF, NOW + 0.99 + 30)
    assert die(Slot(MONITOR), NOW, Cause.CONFIG).deadline == NOW + 30


def test_a_failed_fork_waits_longer_each_time_but_is_no_crash() -> None:
    slot, pauses = Slot(0), []
    for _ in range(4):
        slot = seat.not_forked(seat.spawning(slot, 0), NOW, 0)
        pauses.append((slot.deadline or 0) - NOW)

    assert pauses == [0.25, 0.5, 1, 2]
    assert (slot.state, slot.crashes, slot.forks) == (WorkerState.BACKOFF, (), 0)


@pytest.mark.parametrize(
    ("doom", "state", "code", "cause"),
    [
        (None, WorkerState.READY, 0, Cause.CLEAN),
        (None, WorkerState.READY, 69, Cause.DEPENDENCY),
        (None, WorkerState.READY, 78, Cause.CONFIG),
        (None, WorkerState.READY, 70, Cause.CRASH),
        (None, WorkerState.READY, 1, Cause.CRASH),
        (None, WorkerState.READY, -9, Cause.SIGNAL),
        (None, WorkerState.READY, -15, Cause.SIGNAL),
        (None, WorkerState.DRAINING, -15, Cause.CLEAN),
        (Cause.BOOT, WorkerState.BOOTING, -9, Cause.BOOT),
        (Cause.DRAIN, WorkerState.DRAINING, -9, Cause.DRAIN),
        (Cause.DRAIN, WorkerState.DRAINING, 0, Cause.CLEAN),
    ],
)
def test_cause(doom: Cause | None, state: WorkerState, code: int, cause: Cause) -> None:
    assert seat.cause_of(replace(LIVE, doom=doom, state=state), code) is cause


def test_restarts_count_the_forks_after_the_first() -> None:
    slot, seen = Slot(0), []
    for _ in range(3):
        slot = seat.forked(seat.spawning(slot, 0), 7, NOW, 60)
        seen.append(slot.restarts)
        slot = seat.left(slot, Cause.CRASH, NOW, 0, Limits())

    assert (Slot(0).restarts, seen) == (0, [0, 1, 2])


def test_a_taken_slot_is_not_filled_twice() -> None:
    """Seen to fail without the assertion in `spawning`."""
    with pytest.raises(AssertionError, match="slot 0 is taken"):
        seat.spawning(LIVE, 0)
