"""The plan's clocks: signs of life, recycling, and a supervisor that was itself stopped for a while."""

from dataclasses import replace

import pytest

from reconsup.fleet import plan
from reconsup.fleet.plan import Beat, Bury, Exited, Forked, Grown, Leaving, Limits, Overslept, Ready, Tick
from reconsup.fleet.slot import MONITOR, SPARE, Cause
from tests.fleet.plays import (
    BOOTING,
    DRAINING,
    LIMITS,
    NOW,
    PARKED,
    PIDS,
    READY,
    abort,
    died,
    fail,
    kill,
    others,
    play,
    running,
    spawn,
    states,
    term,
)

WATCHED = replace(LIMITS, watchdog_seconds=20)
AGEING = replace(LIMITS, recycle_seconds=100)
GROWING = replace(LIMITS, recycle_bytes=1000)


def beats(at: float, *slots: int) -> list[Beat]:
    return [Beat(slot, PIDS[slot], at) for slot in slots]


# Signs of life. `running` is ready since NOW - 5.


def test_a_worker_that_gives_no_sign_of_life_is_aborted_then_killed_then_replaced() -> None:
    fleet, early = play(running(limits=WATCHED), *beats(NOW, MONITOR, 1), 14.9, Tick())
    fleet, commands = play(fleet, Tick(), 1.9, Tick(), 0.1, Tick(), died(0), Tick(), now=NOW + 15)

    assert early == []
    assert commands == [
        abort(0, Cause.HANG),
        kill(0, Cause.HANG),
        Bury(0, 100, -9, Cause.HANG, False),
        spawn(0),
    ]
    assert states(fleet) == [BOOTING, READY]
    assert fleet.slots[0].crashes == (NOW + 17,), "to hang again and again parks like crashing"


def test_one_that_dies_of_the_abort_is_not_killed_as_well() -> None:
    _, commands = play(running(limits=WATCHED), 15.0, *beats(NOW, MONITOR, 1), Tick(), died(0, -6), 10.0, Tick())

    assert commands[:2] == [abort(0, Cause.HANG), Bury(0, 100, -6, Cause.HANG, False)]
    assert kill(0, Cause.HANG) not in commands


def test_signs_of_life_keep_it() -> None:
    fleet = running(limits=WATCHED)
    for second in range(0, 200, 10):
        fleet, commands = play(fleet, *beats(NOW + second, MONITOR, 0, 1), Tick(), now=NOW + second)
        assert commands == []


def test_an_older_sign_of_life_takes_nothing_back() -> None:
    fleet, _ = play(running(limits=WATCHED), *beats(NOW, MONITOR, 0, 1), *beats(NOW - 50, 0))

    assert fleet.slots[0].deadline == NOW + 20


def test_a_sign_of_life_after_the_abort_does_not_save_it() -> None:
    """It was sent SIGABRT. Seen to fail without the look at `doom` in `_take_in`."""
    _, commands = play(
        running(limits=WATCHED), 15.0, *beats(NOW, MONITOR, 1), Tick(), *beats(NOW + 15, 0), 2.0, Tick(), now=NOW
    )

    assert kill(0, Cause.HANG) in commands


def test_the_monitor_is_watched_too() -> None:
    _, commands = play(running(limits=WATCHED), *beats(NOW, 0, 1), 15.0, Tick(), died(MONITOR, -6), Tick())

    assert commands == [abort(MONITOR, Cause.HANG), Bury(MONITOR, 11, -6, Cause.HANG, False), spawn(MONITOR)]


def test_who_drains_is_bound_by_the_drain_alone() -> None:
    _, commands = play(running(limits=WATCHED), *beats(NOW, MONITOR, 1), Leaving(0, 100), 15.0, Tick())

    assert commands == []


# A supervisor that was stopped: so was everybody, most likely.


def test_after_the_supervisor_was_stopped_nobody_is_late_by_that_time() -> None:
    fleet = running(limits=WATCHED)

    _, spared = play(fleet, Overslept(600.0), Tick(), now=NOW + 600)
    _, later = play(fleet, Overslept(600.0), Tick(), now=NOW + 615)

    assert spared == []
    assert others(later) == [abort(slot, Cause.HANG) for slot in (MONITOR, 0, 1)]


def test_it_gives_the_booting_and_the_draining_their_time_back_and_forks_as_planned() -> None:
    fleet, _ = play(
        running(3), died(0), Tick(), Forked(0, 100), Leaving(1, 101), died(2), Tick(), Forked(2, 102), died(2)
    )
    before = fleet.slots

    fleet, commands = play(fleet, Overslept(50.0))

    assert commands == []
    assert [(fleet.slots[n].deadline or 0) - (before[n].deadline or 0) for n in (0, 1, 2)] == [50, 50, 0]


# Recycling


def test_an_old_worker_is_replaced_behind_readiness() -> None:
    fleet = running(limits=AGEING)
    first, second = (fleet.slots[number].recycle_at for number in (0, 1))
    assert first == second == NOW - 5 + 100  # chance 0.5: exactly the age

    fleet, a = play(fleet, Tick(), Tick(), now=NOW + 95)
    fleet, b = play(fleet, Forked(SPARE, 512), Tick(), Ready(SPARE, 512), now=NOW + 95)
    fleet, c = play(fleet, died(0, 0), Tick(), Forked(0, 100), Tick(), now=NOW + 95)
    fleet, d = play(fleet, Ready(0, 100), died(1, 0), Tick(), Forked(1, 101), Ready(1, 101), Tick(), now=NOW + 95)
    fleet, e = play(fleet, died(SPARE, 0), Tick(), Tick(), now=NOW + 95)

    assert a == [spawn(SPARE)]
    assert b == [replace(term(0), cause=Cause.RECYCLE)]
    assert c == [Bury(0, 100, 0, Cause.RECYCLE, True), spawn(0)]
    assert d == [
        replace(term(1), cause=Cause.RECYCLE),
        Bury(1, 101, 0, Cause.RECYCLE, True),
        spawn(1),
        replace(term(SPARE), cause=Cause.RELOAD),
    ]
    assert others(e) == []
    assert fleet.spare() is None
    assert [slot.failures for slot in fleet.seats()] == [0, 0]


@pytest.mark.parametrize(("chance", "age"), [(0.0, 90), (0.5, 100), (0.999, 109.98)])
def test_ages_are_spread_by_a_tenth(chance: float, age: float) -> None:
    fleet, _ = play(running(limits=AGEING), died(0), Tick(), Forked(0, 100, chance))

    assert fleet.slots[0].recycle_at == pytest.approx(NOW + age)


def test_a_worker_that_grew_too_large_is_replaced_and_one_that_did_not_is_not() -> None:
    fleet = running(limits=GROWING)

    _, small = play(fleet, Grown(0, 100, 1000), Tick())
    _, large = play(fleet, Grown(0, 100, 1001), Tick())
    _, helper = play(fleet, Grown(MONITOR, 11, 5000), Tick())

    assert (small, large, helper) == ([], [spawn(SPARE)], [])


def test_never_two_at_once_however_many_are_worn() -> None:
    fleet = running(3, limits=GROWING)
    asked = []
    for number in (0, 1, 2):
        fleet, _ = play(fleet, Grown(number, PIDS[number], 2000))
    fleet, _ = play(fleet, Tick(), Forked(SPARE, 512), Ready(SPARE, 512))
    for number in (0, 1, 2):
        asked.append([slot.number for slot in fleet.workers() if slot.state is DRAINING])
        fleet, _ = play(fleet, died(number, 0), Tick(), Forked(number, PIDS[number]), Ready(number, PIDS[number]))

    assert asked == [[0], [1], [2]]


def test_a_spare_worker_that_crashes_in_a_recycling_costs_no_other() -> None:
    fleet, _ = play(running(limits=GROWING), Grown(0, 100, 2000))
    fleet, came = fail(fleet, SPARE, Exited(SPARE, 512, 1, 0.0), times=20)

    assert (came, states(fleet)) == (6, [READY, READY, PARKED])


def test_a_spare_worker_that_waits_to_be_forked_again_is_not_when_the_worn_one_has_died_meanwhile() -> None:
    """Seen to fail without the first `removed` in `_replace_next`."""
    fleet, _ = play(running(limits=GROWING), Grown(0, 100, 2000))
    fleet, _ = fail(fleet, SPARE, Exited(SPARE, 512, 1, 0.0), times=1)
    fleet, commands = play(fleet, died(0), Tick(), Forked(0, 100), Ready(0, 100), 60.0, Tick(), Tick())

    assert others(commands) == [spawn(0)]
    assert fleet.spare() is None


def test_the_next_deadline_counts_recycling() -> None:
    limits = Limits(watchdog_seconds=1e6, recycle_seconds=100)

    assert plan.next_deadline(running(limits=limits)) == NOW + 95
