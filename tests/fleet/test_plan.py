"""The plan: every state × event as a table, stories as lists of events. Nothing is forked here."""

from dataclasses import replace
from signal import SIGHUP, SIGINT, SIGQUIT, SIGTERM, Signals

import pytest

from reconsup.fleet import plan
from reconsup.fleet.plan import (
    Bury,
    Command,
    Event,
    Exited,
    Finish,
    Forked,
    Leaving,
    NotForked,
    Phase,
    Ready,
    Signalled,
    Terms,
    Tick,
)
from reconsup.fleet.slot import MONITOR, PROBE, Cause, Slot, WorkerState
from tests.fleet.plays import (
    BACKOFF,
    BOOTING,
    DEAD,
    DRAINING,
    EMPTY,
    LIMITS,
    NOW,
    PARKED,
    READY,
    abort,
    buried,
    died,
    kill,
    others,
    play,
    probing,
    running,
    spawn,
    states,
    term,
)

# Every state × every event, while running. What is not in the table changes nothing and commands nothing.

SLOTS = {
    EMPTY: Slot(0, EMPTY, deadline=NOW + 5),
    BOOTING: Slot(0, BOOTING, deadline=NOW + 5, pid=100, started=NOW - 1, forks=1),
    READY: Slot(0, READY, deadline=NOW + 5, pid=100, started=NOW - 2, ready_at=NOW - 1, forks=1),
    DRAINING: Slot(0, DRAINING, deadline=NOW + 5, pid=100, started=NOW - 2, ready_at=NOW - 1, forks=1),
    DEAD: Slot(0, DEAD, deadline=NOW + 5, forks=1),
    BACKOFF: Slot(0, BACKOFF, deadline=NOW + 5, forks=2),
    PARKED: Slot(0, PARKED, forks=6),
}
EVENTS: dict[str, Event] = {
    "tick": Tick(),
    "ready": Ready(0, 100),
    "leaving": Leaving(0, 100),
    "crash": Exited(0, 100, 1, 0.0),
    "69": Exited(0, 100, 69, 0.0),
    "78": Exited(0, 100, 78, 0.0),
    "0": Exited(0, 100, 0, 0.0),
    "stale ready": Ready(0, 99),
    "stale leaving": Leaving(0, 99),
    "stale crash": Exited(0, 99, 1, 0.0),
    "HUP": Signalled(SIGHUP),
    "TERM": Signalled(SIGTERM),
    "INT": Signalled(SIGINT),
    "QUIT": Signalled(SIGQUIT),
}
SPAWN, TERM, DRAIN_ABORT, BOOT_ABORT, STOP_KILL = (
    (spawn(0),),
    (term(0),),
    (abort(0, Cause.DRAIN),),
    (abort(0, Cause.BOOT),),
    (kill(0, Cause.STOP),),
)
CHANGES: dict[tuple[WorkerState, str], tuple[WorkerState, tuple[Command, ...]]] = {
    (EMPTY, "late tick"): (BOOTING, SPAWN),
    (DEAD, "late tick"): (BOOTING, SPAWN),
    (BACKOFF, "late tick"): (BOOTING, SPAWN),
    (BOOTING, "late tick"): (BOOTING, BOOT_ABORT),
    (DRAINING, "late tick"): (DRAINING, DRAIN_ABORT),
    (READY, "late tick"): (READY, (abort(0, Cause.HANG),)),
    (BOOTING, "ready"): (READY, ()),
    (BOOTING, "leaving"): (DRAINING, ()),
    (READY, "leaving"): (DRAINING, ()),
    **{(live, "crash"): (DEAD, (Bury(0, 100, 1, Cause.CRASH, False),)) for live in (BOOTING, READY, DRAINING)},
    **{(live, "69"): (BACKOFF, (Bury(0, 100, 69, Cause.DEPENDENCY, False),)) for live in (BOOTING, READY, DRAINING)},
    **{(live, "78"): (PARKED, (Bury(0, 100, 78, Cause.CONFIG, False),)) for live in (BOOTING, READY, DRAINING)},
    **{(live, "0"): (DEAD, (Bury(0, 100, 0, Cause.CLEAN, False),)) for live in (BOOTING, READY, DRAINING)},
    **{(idle, number): (DEAD, ()) for idle in (DEAD, BACKOFF) for number in ("TERM", "INT", "QUIT")},
    **{(live, number): (DRAINING, TERM) for live in (BOOTING, READY) for number in ("TERM", "INT")},
    **{(live, "QUIT"): (live, STOP_KILL) for live in (BOOTING, READY, DRAINING)},
}


@pytest.mark.parametrize("state", SLOTS)
@pytest.mark.parametrize("name", [*EVENTS, "late tick"])
def test_every_state_and_event(state: WorkerState, name: str) -> None:
    # slot 1 is there so that the fleet as a whole goes on
    fleet = running()
    fleet = replace(fleet, slots={**fleet.slots, 0: SLOTS[state]})
    now = NOW + 5 if name == "late tick" else NOW

    after, commands = plan.step(fleet, EVENTS.get(name, Tick()), now)

    about_it = tuple(each for each in commands if not isinstance(each, Finish) and each.slot == 0)
    assert (after.slots[0].state, about_it) == CHANGES.get((state, name), (state, ()))


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_when_done_nothing_happens_any_more(event: Event) -> None:
    fleet, _ = play(running(1), Signalled(SIGQUIT), died(0), died(MONITOR, 0))
    assert fleet.phase is Phase.DONE

    assert plan.step(fleet, event, NOW + 1000) == (fleet, ())


# Probing


def test_probe_comes_first_and_alone() -> None:
    fleet, commands = play(plan.new(Terms(0, 2, 2, LIMITS), NOW), Tick(), Forked(PROBE, 10), Tick(), 60.0, Tick())

    assert (fleet.phase, commands) == (Phase.PROBING, [spawn(PROBE)])


def test_after_a_good_probe_monitor_and_workers_start_one_a_tick() -> None:
    fleet, commands = play(probing(), died(PROBE, 0), Tick(), Tick(), Tick(), Tick())

    assert fleet.phase is Phase.RUNNING
    assert commands == [Bury(PROBE, 10, 0, Cause.CLEAN, True), spawn(MONITOR), spawn(0), spawn(1)]


@pytest.mark.parametrize(("code", "exit_code"), [(69, 69), (78, 78)])
def test_bad_probe_ends_the_supervisor(code: int, exit_code: int) -> None:
    fleet, commands = play(probing(), died(PROBE, code))

    assert (fleet.phase, commands[-1]) == (Phase.DONE, Finish(exit_code))


def test_probe_that_hangs_is_killed_and_counts_as_unavailable() -> None:
    _fleet, commands = play(probing(), 70.0, Tick(), 2.0, Tick(), died(PROBE))

    assert others(commands) == [abort(PROBE, Cause.BOOT), kill(PROBE, Cause.BOOT), Finish(69)]


def test_probe_that_crashes_is_tried_again_then_given_up() -> None:
    fleet, commands = probing(), []
    for _ in range(10):
        fleet, more = play(fleet, died(PROBE, 1), 30.0, Tick(), Forked(PROBE, 10), now=NOW)
        commands += more

    assert commands.count(spawn(PROBE)) == 5
    assert (fleet.phase, commands[-1]) == (Phase.DONE, Finish(70))


def test_term_while_probing_is_a_clean_end() -> None:
    _fleet, commands = play(probing(), Signalled(SIGTERM), died(PROBE, -15))

    assert others(commands) == [term(PROBE), Finish(0)]


def test_term_between_spawn_and_fork_reaches_the_probe() -> None:
    fleet = plan.new(Terms(0, 2, 2, LIMITS), NOW)

    fleet, commands = play(fleet, Tick(), Signalled(SIGTERM), Forked(PROBE, 10), died(PROBE, -15))

    assert others(commands) == [spawn(PROBE), term(PROBE), Finish(0)]


# Running


def test_crash_is_followed_by_a_spawn_in_the_same_slot() -> None:
    _fleet, commands = play(running(), died(1), Tick())

    assert commands == [Bury(1, 101, -9, Cause.SIGNAL, False), spawn(1)]


def test_crash_loop_parks_and_the_others_go_on() -> None:
    fleet = running()
    for _ in range(5):
        fleet, _ = play(fleet, died(0, 3), 5.0, Tick(), Forked(0, 100))

    fleet, commands = play(fleet, died(0, 3), 100.0, Tick())

    assert (fleet.phase, states(fleet), others(commands)) == (Phase.RUNNING, [PARKED, READY], [])
    assert commands[-1] == Bury(0, 100, 3, Cause.CRASH, False)


def test_all_parked_gives_up_with_70_and_the_monitor_leaves_last() -> None:
    fleet, commands = play(running(), died(0, 78), died(1, 78), died(MONITOR, 0))

    assert others(commands) == [term(MONITOR), Finish(70)]
    assert states(fleet) == [PARKED, PARKED]


def test_unready_worker_is_killed_at_the_boot_deadline_and_replaced() -> None:
    fleet, _ = play(running(), died(0), Tick(), Forked(0, 100))

    fleet, early = play(fleet, 59.9, Tick())
    fleet, commands = play(fleet, 60.0, Tick(), Tick(), died(0, -6), Tick())

    assert early == []
    assert commands == [abort(0, Cause.BOOT), Bury(0, 100, -6, Cause.BOOT, False)]
    assert states(fleet) == [BACKOFF, READY]


def test_readiness_after_the_kill_does_not_count() -> None:
    """Seen to fail without the look at `doom` in `_ready`."""
    fleet, _ = play(running(), died(0), Tick(), Forked(0, 100), 60.0, Tick(), Ready(0, 100))

    assert fleet.slots[0].state is BOOTING


def test_monitor_is_restarted_and_never_ends_the_fleet() -> None:
    fleet, spawned = running(), 0
    for _ in range(20):
        fleet, commands = play(fleet, died(MONITOR, 1), 30.0, Tick(), Forked(MONITOR, 11), Ready(MONITOR, 11))
        spawned += commands.count(spawn(MONITOR))

    assert (fleet.phase, spawned) == (Phase.RUNNING, 20)
    assert play(fleet, died(MONITOR, 78))[0].phase is Phase.RUNNING


def test_failed_fork_is_tried_again_later() -> None:
    fleet, commands = play(running(), died(0), Tick(), NotForked(0, 0.0), Tick(), 0.25, Tick(), Forked(0, 200))

    assert others(commands) == [spawn(0), spawn(0)]
    assert (fleet.slots[0].pid, fleet.slots[0].restarts) == (200, 1)


def test_worker_that_was_told_to_leave_by_somebody_else_is_not_waited_for_endlessly() -> None:
    _fleet, commands = play(running(), Leaving(0, 100), 30.0, Tick(), 0.15, Tick(), died(0), Tick())

    assert commands == [abort(0, Cause.DRAIN), kill(0, Cause.DRAIN), Bury(0, 100, -9, Cause.DRAIN, False), spawn(0)]


def test_dependency_exits_never_end_the_fleet() -> None:
    fleet = running(1)
    for _ in range(200):
        fleet, _ = play(fleet, died(0, 69), 20.0, Tick(), Forked(0, 100))

    assert (fleet.phase, states(fleet)) == (Phase.RUNNING, [BOOTING])


# Draining


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_drain_tells_workers_then_monitor(number: Signals) -> None:
    fleet, first = play(running(), Signalled(number))
    fleet, second = play(fleet, died(0, 0))
    fleet, third = play(fleet, died(1, 0))
    fleet, last = play(fleet, died(MONITOR, 0))

    assert [others(each) for each in (first, second, third, last)] == [
        [term(0), term(1)],
        [],
        [term(MONITOR)],
        [Finish(0)],
    ]


def test_term_goes_to_each_worker_once() -> None:
    """Seen to fail without the look at the state in `_ask_to_leave`."""
    _, commands = play(running(), Leaving(0, 100), Signalled(SIGTERM), 0.5, Signalled(SIGTERM), Signalled(SIGINT))

    assert commands == [term(1)]


def test_nobody_is_replaced_while_draining() -> None:
    _fleet, commands = play(running(), died(0), Signalled(SIGTERM), Tick(), died(MONITOR), 1.0, Tick(), died(1, 0))

    assert others(commands) == [term(1), Finish(0)]


def test_backoff_ends_with_the_drain() -> None:
    fleet, _ = play(running(), died(0), Tick(), Forked(0, 100), died(0))
    assert fleet.slots[0].state is BACKOFF

    fleet, commands = play(fleet, Signalled(SIGTERM), 100.0, Tick())

    assert spawn(0) not in commands
    assert fleet.slots[0].state is DEAD


def test_late_worker_is_killed_at_the_drain_deadline() -> None:
    fleet, early = play(running(), Signalled(SIGTERM), died(1, 0), 29.9, Tick())
    fleet, commands = play(fleet, Tick(), 0.15, Tick(), Tick(), died(0), now=NOW + 30)

    assert abort(0, Cause.DRAIN) not in early
    assert commands == [abort(0, Cause.DRAIN), kill(0, Cause.DRAIN), Bury(0, 100, -9, Cause.DRAIN, True), term(MONITOR)]


def test_late_monitor_is_killed_after_its_farewell() -> None:
    fleet, _ = play(running(1), Signalled(SIGTERM), 20.0, died(0, 0))

    assert plan.next_deadline(fleet) == NOW + 25
    _, commands = play(fleet, Tick(), 0.15, Tick(), died(MONITOR), now=NOW + 25)
    assert others(commands) == [abort(MONITOR, Cause.DRAIN), kill(MONITOR, Cause.DRAIN), Finish(0)]


def test_the_same_signal_within_a_second_is_one_signal() -> None:
    """Seen to fail with `again_seconds` taken as 0."""
    _, commands = play(running(), Signalled(SIGTERM), 0.0, Signalled(SIGTERM), 0.99, Signalled(SIGTERM))

    assert commands == [term(0), term(1)]


def test_a_second_signal_a_second_later_stops_now_but_leaves_the_monitor_its_time() -> None:
    _fleet, commands = play(running(), Signalled(SIGTERM), 1.0, Signalled(SIGINT), died(0), died(1), died(MONITOR, 0))

    assert others(commands)[2:] == [kill(0, Cause.STOP), kill(1, Cause.STOP), term(MONITOR), Finish(0)]
    assert buried(commands) == [(0, Cause.STOP), (1, Cause.STOP), (MONITOR, Cause.CLEAN)]


def test_quit_stops_now() -> None:
    _fleet, commands = play(running(), Signalled(SIGQUIT), died(0), died(1), died(MONITOR, 0))

    assert others(commands) == [kill(0, Cause.STOP), kill(1, Cause.STOP), term(MONITOR), Finish(0)]


def test_quit_right_after_term_stops_now() -> None:
    _, commands = play(running(), Signalled(SIGTERM), 0.1, Signalled(SIGQUIT))

    assert commands[2:] == [kill(0, Cause.STOP), kill(1, Cause.STOP)]


def test_quit_twice_takes_the_monitor_too_but_not_if_it_is_one_that_came_twice() -> None:
    fleet, twice = play(running(1), Signalled(SIGQUIT), 0.5, Signalled(SIGQUIT))
    _, again = play(fleet, Signalled(SIGQUIT), now=NOW + 1)

    assert twice == [kill(0, Cause.STOP)]
    assert again == [kill(MONITOR, Cause.STOP)]


def test_a_process_forked_into_the_drain_is_told_at_once() -> None:
    fleet, _ = play(running(), died(0), Tick())

    _, drained = play(fleet, Signalled(SIGTERM), Forked(0, 100))
    _, stopped = play(fleet, Signalled(SIGQUIT), Forked(0, 100))
    _, unforked = play(fleet, Signalled(SIGTERM), NotForked(0, 0.0), died(1, 0))

    assert drained == [term(1), term(0)]
    assert stopped == [kill(1, Cause.STOP), kill(0, Cause.STOP)]
    assert others(unforked) == [term(1), term(MONITOR)]


def test_term_while_giving_up_keeps_the_exit_code() -> None:
    impatient = [each for _ in range(3) for each in (Signalled(SIGTERM), 1.0)]

    _fleet, commands = play(running(1), died(0, 78), *impatient, died(MONITOR))

    assert others(commands) == [term(MONITOR), kill(MONITOR, Cause.STOP), Finish(70)]
