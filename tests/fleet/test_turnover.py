"""New settings, TTIN, TTOU and MIN:MAX: who comes, who goes, in which order; lists of events in, commands out."""

from dataclasses import replace
from signal import SIGTERM, SIGTTIN, SIGTTOU

import pytest

from reconsup.fleet.plan import (
    Accept,
    Beat,
    Bury,
    Event,
    Exited,
    Finish,
    Fleet,
    Forked,
    Loaded,
    NotForked,
    Phase,
    Ready,
    Refuse,
    Reload,
    Signalled,
    Spawn,
    Terms,
    Tick,
)
from reconsup.fleet.slot import MONITOR, PROBE, SPARE, Cause, WorkerState
from tests.fleet.plays import (
    BACKOFF,
    LIMITS,
    NOW,
    PARKED,
    PIDS,
    READY,
    Send,
    died,
    fail,
    others,
    play,
    probing,
    running,
    spawn,
    states,
    term,
)

HARD = replace(LIMITS, drain_seconds=7)


def offer(generation: int = 1, least: int = 2, most: int = 0) -> Reload:
    return Reload(Terms(generation, least, most or least, HARD))


def leave(slot: int, cause: Cause = Cause.RELOAD) -> Send:
    return Send(slot, PIDS[slot], SIGTERM, cause)


def come(slot: int) -> list[Event]:
    """It is forked and ready."""
    return [Tick(), Forked(slot, PIDS[slot]), Ready(slot, PIDS[slot])]


def go(slot: int) -> Exited:
    """It leaves as it was told."""
    return Exited(slot, PIDS[slot], 0, 0.0)


# HUP


def test_workers_are_replaced_one_by_one_each_new_one_ready_before_the_next_leaves() -> None:
    fleet, first = play(running(), offer(), *come(SPARE))
    fleet, monitor = play(fleet, go(MONITOR), *come(MONITOR))
    fleet, second = play(fleet, go(0), *come(0))
    fleet, third = play(fleet, go(1), *come(1))
    fleet, last = play(fleet, go(SPARE), Tick(), Tick())

    assert first == [spawn(SPARE, 1), Accept(1), leave(MONITOR), leave(0)]
    assert others(monitor) == [spawn(MONITOR, 1)]
    assert others(second) == [spawn(0, 1), leave(1)]
    assert others(third) == [spawn(1, 1), leave(SPARE)]
    assert others(last) == []
    assert states(fleet) == [READY, READY, WorkerState.EMPTY]
    assert {fleet.slots[n].generation for n in (MONITOR, 0, 1)} == {1}
    assert fleet.limits is HARD
    assert not fleet.is_turning()


def test_nothing_changes_before_a_worker_is_ready_with_the_new_settings() -> None:
    fleet, commands = play(running(), offer(1, 5), Tick(), Forked(SPARE, 512), 59.0, Tick(), Tick())

    assert commands == [spawn(SPARE, 1)]
    assert (fleet.wanted, fleet.limits.drain_seconds, fleet.terms.generation) == (2, 30, 0)


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (died(SPARE, 1), Cause.CRASH),
        (died(SPARE, 78), Cause.CONFIG),
        (died(SPARE, 69), Cause.DEPENDENCY),
        (died(SPARE, -9), Cause.SIGNAL),
        (died(SPARE, 0), Cause.CLEAN),
    ],
)
def test_if_the_first_new_one_fails_everything_stays(end: Exited, cause: Cause) -> None:
    before = running()
    fleet, commands = play(before, offer(), Tick(), Forked(SPARE, 512), end, Tick(), 100.0, Tick())

    assert others(commands) == [spawn(SPARE, 1), Refuse(1, cause)]
    assert [fleet.slots[number] for number in (MONITOR, 0, 1)] == [before.slots[number] for number in (MONITOR, 0, 1)]
    assert (fleet.terms, fleet.offer, fleet.spare()) == (before.terms, None, None)


def test_one_that_is_not_ready_in_time_is_refused_too() -> None:
    fleet, commands = play(running(), offer(), Tick(), Forked(SPARE, 512), 60.0, Tick(), died(SPARE, -6), Tick())

    assert commands[-1] == Refuse(1, Cause.BOOT)
    assert states(fleet)[:2] == [READY, READY]


def test_a_fork_that_fails_refuses_and_nothing_is_tried_hot() -> None:
    fleet, commands = play(running(), offer(), Tick(), NotForked(SPARE, 0.0), Tick(), Tick())

    assert commands == [spawn(SPARE, 1), Refuse(1, Cause.CRASH)]
    assert fleet.spare() is None


def test_after_a_refusal_the_next_offer_is_tried_afresh() -> None:
    fleet, _ = play(running(), offer(1), Tick(), Forked(SPARE, 512), died(SPARE, 78))
    _, commands = play(fleet, offer(2), *come(SPARE))

    assert commands[:2] == [spawn(SPARE, 2), Accept(2)]


def test_a_second_hup_replaces_an_offer_that_was_not_proven_yet() -> None:
    fleet, asked = play(running(), offer(1), Tick(), Forked(SPARE, 512), offer(2))
    fleet, commands = play(fleet, died(SPARE, -15), Tick(), Forked(SPARE, 512), Ready(SPARE, 512))

    assert asked == [spawn(SPARE, 1), leave(SPARE)]
    assert others(commands)[:2] == [spawn(SPARE, 2), Accept(2)]


def test_a_second_hup_in_the_middle_of_a_roll_over_starts_from_the_first_again() -> None:
    fleet, _ = play(running(), offer(1), *come(SPARE), go(MONITOR), *come(MONITOR), go(0), *come(0))
    fleet, asked = play(fleet, offer(2), go(1), *come(1))
    fleet, proven = play(fleet, go(SPARE), *come(SPARE))

    assert leave(SPARE) in asked
    assert others(proven)[:2] == [spawn(SPARE, 2), Accept(2)]
    assert fleet.is_turning()


def test_a_worker_that_crashes_meanwhile_is_waited_for() -> None:
    fleet, _ = play(running(3), offer(1, 3), *come(SPARE))
    fleet, commands = play(fleet, died(2), go(0), Tick(), Forked(0, 100), Ready(0, 100))

    assert leave(1) not in commands
    _, later = play(fleet, *come(2))
    assert leave(1) in later


def test_a_seat_that_crash_loops_with_the_new_settings_stops_the_roll_over_and_the_old_ones_stay() -> None:
    """Seen to fail without the look at `is_stalled`: one after the other was replaced by a worker that crashes."""
    fleet, _ = play(running(), offer(), *come(SPARE), go(MONITOR), *come(MONITOR), go(0))
    fleet, came = fail(fleet, 0, died(0, 1), times=20)

    assert came == 6
    assert fleet.slots[0].state is PARKED
    fleet, commands = play(fleet, Tick(), 100.0, Tick())
    assert commands == []
    assert (states(fleet), fleet.slots[1].generation, fleet.phase) == ([PARKED, READY, READY], 0, Phase.RUNNING)
    assert not fleet.is_turning()
    assert fleet.is_stalled()


def test_each_is_judged_by_the_watchdog_and_the_boot_deadline_of_its_own_settings() -> None:
    """Seen to fail (an old worker's deadline came with the new settings) by the limits that are in force."""
    strict = Reload(Terms(1, 2, 2, replace(LIMITS, watchdog_seconds=5, boot_seconds=90)))
    fleet, _ = play(running(), strict, Tick(), Forked(SPARE, 512))
    assert fleet.slots[SPARE].deadline == NOW + 90
    fleet, _ = play(fleet, Ready(SPARE, 512), Beat(1, 101, NOW), Beat(SPARE, 512, NOW))

    assert fleet.terms.generation == 1
    assert [fleet.slots[n].deadline for n in (1, SPARE)] == [NOW + LIMITS.watchdog_seconds, NOW + 5]


def test_new_settings_are_another_chance_for_who_was_given_up() -> None:
    fleet, _ = play(running(), died(0, 78))
    assert states(fleet) == [PARKED, READY]

    fleet, commands = play(fleet, offer(), *come(SPARE), Tick())

    assert spawn(0, 1) in commands
    assert fleet.slots[0].crashes == ()


def test_new_settings_come_in_time_when_all_were_given_up_but_one_that_is_trying_them() -> None:
    """All parked ends the supervisor; not while new settings are being tried."""
    fleet, _ = play(running(1), offer(1, 1), Tick(), Forked(SPARE, 512), died(0, 78))
    assert fleet.phase is Phase.RUNNING

    _, refused = play(fleet, died(SPARE, 78), died(MONITOR, 0))
    _, accepted = play(fleet, Ready(SPARE, 512), Tick())
    assert refused[-1] == Finish(70)
    assert spawn(0, 1) in accepted


def test_the_number_of_workers_is_part_of_the_settings() -> None:
    more, grown = play(running(2), offer(1, 3), *come(SPARE), Tick())
    fewer, shrunk = play(running(3), offer(1, 1), *come(SPARE))

    assert (more.wanted, spawn(2, 1) in grown) == (3, True)
    assert fewer.wanted == 1
    assert {leave(1, Cause.SCALE), leave(2, Cause.SCALE)} <= set(shrunk)


def test_hup_while_probing_asks_again_with_the_new_settings() -> None:
    fleet, commands = play(probing(), offer(), died(PROBE, -15), Tick())

    assert others(commands) == [
        Accept(1),
        leave(PROBE),
        spawn(PROBE, 1),
    ]
    assert fleet.phase is Phase.PROBING


def test_hup_while_draining_changes_nothing() -> None:
    fleet, _ = play(running(), Signalled(SIGTERM))

    assert play(fleet, offer()) == (fleet, [])


def test_a_stop_in_the_middle_of_a_roll_over_takes_everybody_along() -> None:
    fleet, _ = play(running(), offer(), *come(SPARE))
    fleet, commands = play(fleet, Signalled(SIGTERM), go(0), go(1), go(SPARE), go(MONITOR), Tick())

    assert term(1) in commands
    assert term(SPARE) in commands
    assert term(0) not in commands, "it had been told"
    assert (fleet.phase, commands[-1]) == (Phase.DONE, Finish(0))
    assert not [each for each in commands if isinstance(each, Spawn)]


# TTIN, TTOU


def test_ttin_adds_a_worker_and_ttou_takes_the_last_one_away() -> None:
    fleet, added = play(running(), Signalled(SIGTTIN), *come(2))
    fleet, taken = play(fleet, Signalled(SIGTTOU), go(2), Tick(), 100.0, Tick())

    assert added == [spawn(2)]
    assert taken == [leave(2, Cause.SCALE), Bury(2, 102, 0, Cause.SCALE, True)]
    assert (fleet.wanted, states(fleet)) == (2, [READY, READY, WorkerState.EMPTY])


def test_the_last_worker_stays_and_the_last_seat_is_the_512th() -> None:
    fleet, _ = play(running(1), *[Signalled(SIGTTOU)] * 5)
    assert fleet.wanted == 1

    fleet, _ = play(fleet, *[Signalled(SIGTTIN)] * 1000)
    assert fleet.wanted == 512


def test_ttin_right_after_ttou_fills_the_seat_again_once_it_is_free() -> None:
    _, commands = play(running(), Signalled(SIGTTOU), Signalled(SIGTTIN), Tick(), go(1), Tick())

    assert others(commands) == [leave(1, Cause.SCALE), spawn(1)]


def test_a_seat_in_backoff_or_parked_can_be_taken_away() -> None:
    for deaths, state in (([died(1), Tick(), Forked(1, 101), died(1)], BACKOFF), ([died(1, 78)], PARKED)):
        fleet, _ = play(running(), *deaths)
        assert fleet.slots[1].state is state
        fleet, commands = play(fleet, Signalled(SIGTTOU), 100.0, Tick())

        assert (others(commands), fleet.count(WorkerState.EMPTY), fleet.slots[1].deadline) == ([], 1, None)


def test_ttou_of_a_worker_that_is_just_forked_reaches_it() -> None:
    fleet, _ = play(running(), Signalled(SIGTTIN), Tick())
    fleet, commands = play(fleet, Signalled(SIGTTOU), Forked(2, 102))

    assert commands == [leave(2, Cause.SCALE)]


def test_within_min_and_max_the_signals_move_the_number() -> None:
    fleet, _ = play(running(2, most=3), *[Signalled(SIGTTIN)] * 9)
    assert fleet.wanted == 3
    fleet, _ = play(fleet, *[Signalled(SIGTTOU)] * 9)
    assert fleet.wanted == 2


# MIN:MAX


def looks(seconds: float, oldest: float, behind: float = 0.0) -> list[Event | float]:
    """A look every five seconds, for so long."""
    return [each for _ in range(int(seconds / 5)) for each in (5.0, Loaded(oldest, behind), Tick())]


def follow(fleet: Fleet, *events: Event | float, now: float = NOW) -> tuple[Fleet, list[int]]:
    """Feed the events, let everybody come and go at once; how many were wanted, each time that changed."""
    wanted = [fleet.wanted]
    for event in events:
        if isinstance(event, float):
            now += event
            continue
        fleet, commands = play(fleet, event, now=now)
        for command in commands:
            if isinstance(command, Spawn):
                fleet, _ = play(
                    fleet, Forked(command.slot, 100 + command.slot), Ready(command.slot, 100 + command.slot), now=now
                )
            elif isinstance(command, Send):
                fleet, _ = play(fleet, Exited(command.slot, command.pid, 0, 0.5), now=now)
        if fleet.wanted != wanted[-1]:
            wanted.append(fleet.wanted)
    return fleet, wanted


def test_work_that_waits_brings_one_worker_after_the_other_up_to_the_most() -> None:
    fleet, wanted = follow(running(1, most=3), *looks(300, oldest=31))

    assert wanted == [1, 2, 3]
    assert states(fleet) == [READY] * 3


def test_a_scan_that_is_behind_counts_as_well() -> None:
    assert follow(running(1, most=3), *looks(15, 0, behind=61))[1] == [1, 2]
    assert follow(running(1, most=3), *looks(300, 0, behind=59))[1] == [1]


def test_calm_takes_them_away_slowly() -> None:
    busy, _ = follow(running(1, most=3), *looks(60, 31))
    _, soon = follow(busy, *looks(295, 0), now=NOW + 60)
    _, later = follow(busy, *looks(1000, 0), now=NOW + 60)

    assert (busy.wanted, soon, later) == (3, [3], [3, 2, 1])


def test_a_short_burst_brings_nobody_and_a_short_calm_takes_nobody() -> None:
    assert follow(running(1, most=3), *looks(5, 31), *looks(5, 0), *looks(5, 31), *looks(5, 0))[1] == [1]
    busy, _ = follow(running(1, most=2), *looks(60, 31))
    assert follow(busy, *looks(200, 0), *looks(5, 16), *looks(200, 0), now=NOW + 60)[1] == [2]


def test_a_fixed_number_does_not_scale() -> None:
    assert follow(running(2), *looks(600, 1000, 1000))[1] == [2]
