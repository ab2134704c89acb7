"""Scoreboard, morgue and bell inside one process; what needs several is in test_posix."""

import mmap
from pathlib import Path

import pytest

from reconsup.fleet.bell import Bell
from reconsup.fleet.morgue import Death, Morgue
from reconsup.fleet.posix import MONITOR, PROBE, Cause, Scoreboard, Seat, WorkerState
from reconsup.fleet.shared import Integer, Text
from reconsup.fleet.slot import SPARE, Slot

INCARNATION = "0123456789abcdef"


def board(slots: int = 3) -> Scoreboard:
    made = Scoreboard("host")
    made.open(pid=42, boot_id=INCARNATION, started_at=1.5e9, version="1.2.3", slots=slots)
    return made


def test_supervisor_facts() -> None:
    made = board()
    made.set_phase("running")

    facts = made.supervisor()

    assert (facts.pid, facts.boot_id, facts.started_at) == (42, INCARNATION, 1.5e9)
    assert (facts.version, facts.phase, facts.slots, list(made.slots())) == ("1.2.3", "running", 3, [0, 1, 2])


def test_a_cell_tells_what_worker_and_supervisor_wrote() -> None:
    made = board()
    made.show(Slot(1, WorkerState.READY, pid=77, started=10.0, forks=4))
    made.count(1, Cause.SIGNAL)
    made.count(1, Cause.SIGNAL)
    made.count(1, Cause.BOOT)
    cell = made.cell(1)
    cell.set_incarnation(INCARNATION)
    cell.set_state(WorkerState.READY)
    cell.beat(12.5)
    cell.set_leases(200)
    cell.set_row("pay_ü")
    cell.set_last_cycle(1.6e9)

    view = made.read(1)

    assert (view.slot, view.worker_id, view.incarnation, view.pid) == (1, "host-1", INCARNATION, 77)
    assert (view.state, view.restarts, view.started) == (WorkerState.READY, 3, 10.0)
    assert (view.beat, view.leases, view.row, view.last_cycle) == (12.5, 200, "pay_ü", 1.6e9)
    assert {cause: count for cause, count in view.causes.items() if count} == {Cause.SIGNAL: 2, Cause.BOOT: 1}
    assert view.ready_at is not None
    assert view.ready_seconds == view.ready_at - 10.0


def test_cells_do_not_touch_each_other() -> None:
    made = board()
    seats = [PROBE, MONITOR, 0, 1, 2]
    for number in seats:
        made.show(Slot(number, WorkerState.BOOTING, pid=1000 + number))
        made.cell(number).set_incarnation(f"{number + 2:016x}")
        made.cell(number).set_row("r" * (100 + number))

    assert [made.read(number).pid for number in seats] == [998, 999, 1000, 1001, 1002]
    assert [made.read(number).incarnation for number in seats] == [f"{n:016x}" for n in range(5)]
    assert [len(made.read(number).row or "") for number in seats] == [98, 99, 100, 101, 102]


def test_nobody_sits_in_an_empty_slot() -> None:
    view = board().read(2)

    assert (view.state, view.pid, view.incarnation, view.restarts) == (WorkerState.EMPTY, None, None, 0)
    assert (view.leases, view.row, view.beat, view.last_cycle, view.ready_seconds) == (0, None, None, None, None)


@pytest.mark.parametrize(
    ("supervisor_says", "child_says", "shown"),
    [
        (WorkerState.BOOTING, WorkerState.BOOTING, WorkerState.BOOTING),
        (WorkerState.BOOTING, WorkerState.READY, WorkerState.READY),
        (WorkerState.READY, WorkerState.DRAINING, WorkerState.DRAINING),
        (WorkerState.DRAINING, WorkerState.READY, WorkerState.DRAINING),
        (WorkerState.BACKOFF, WorkerState.READY, WorkerState.BACKOFF),
        (WorkerState.PARKED, WorkerState.READY, WorkerState.PARKED),
    ],
)
def test_state_is_the_newest_that_is_known(
    supervisor_says: WorkerState, child_says: WorkerState, shown: WorkerState
) -> None:
    made = board()
    made.show(Slot(0, supervisor_says, pid=1))
    made.cell(0).set_state(child_says)

    assert made.read(0).state is shown


@pytest.mark.parametrize(
    ("row", "shown"),
    [("a" * 120, "a" * 120), ("a" * 121, None), ("ü" * 60, "ü" * 60), ("ü" * 60 + "a", None), ("", None), (None, None)],
)
def test_a_row_that_cannot_be_told_whole_is_unknown(row: str | None, shown: str | None) -> None:
    made = board()
    made.cell(0).set_row("before")

    made.cell(0).set_row(row)

    assert made.read(0).row == shown


def test_clearing_forgets_the_last_one_but_not_how_long_the_slot_has_been_idle() -> None:
    made = board()
    cell = made.cell(0)
    cell.set_incarnation(INCARNATION)
    cell.set_state(WorkerState.READY)
    cell.set_row("r")
    cell.set_leases(3)
    cell.beat(5.0)
    cell.set_last_cycle(6.0)

    made.clear(0)
    made.show(Slot(0, WorkerState.BOOTING, pid=1))

    view = made.read(0)
    assert (view.state, view.incarnation, view.row, view.leases) == (WorkerState.BOOTING, None, None, 0)
    assert (view.ready_at, view.beat, view.last_cycle) == (None, 5.0, 6.0)


def test_a_text_that_is_no_utf_8_does_not_raise() -> None:
    """The supervisor reads it: nothing that a child writes may end it. Seen to fail (UnicodeDecodeError)."""
    memory, text = mmap.mmap(-1, 256), Text(0, 120)
    text.set(memory, 0, "aé")
    memory[8] = 0xFF  # as two texts that meet in the middle of a letter

    assert text.get(memory, 0) == "a\ufffd\ufffd"


def test_a_text_whose_writer_was_killed_is_unknown_until_the_next_one_writes() -> None:
    """Seen to fail when `Text.get` does not look at the counter, and when `set` adds 1 to an odd one."""
    memory, text = mmap.mmap(-1, 256), Text(0, 120)
    text.set(memory, 0, "whole")
    seq = Integer("I", 0)
    seq.set(memory, 0, seq.get(memory, 0) + 1)  # as if killed between the two halves

    torn = text.get(memory, 0)
    text.set(memory, 0, "whole again")

    assert (torn, text.get(memory, 0)) == (None, "whole again")


def test_a_slot_number_that_does_not_exist_is_a_bug() -> None:
    for number in (-3, SPARE + 1):
        with pytest.raises(AssertionError):
            board().read(number)


def test_owner_and_names() -> None:
    made = board()
    seats = [Seat(number, "host", INCARNATION, made, Bell(), 0, Path("/nowhere")) for number in (0, 2, MONITOR, PROBE)]

    assert [seat.worker_id for seat in seats] == ["host-0", "host-2", "host-monitor", "host-probe"]
    assert seats[1].owner == f"host-2#{INCARNATION}"


# The morgue


def test_who_is_buried_stays_until_acknowledged() -> None:
    made = board()
    made.cell(1).set_incarnation(INCARNATION)
    made.cell(1).set_row("pay_1")
    made.bury(1, Cause.SIGNAL)
    made.clear(1)
    made.cell(1).set_incarnation("f" * 16)
    made.bury(1, Cause.DRAIN)

    first, second = made.dead()
    made.acknowledge(first.index)

    assert first == Death(1, 1, "host-1", INCARNATION, "signal", "pay_1")
    assert (first.owner, first.is_charged) == (f"host-1#{INCARNATION}", True)
    assert (second.incarnation, second.row, second.is_charged) == ("f" * 16, None, False)
    assert made.dead() == [second]


def test_only_who_may_hold_a_lease_is_buried() -> None:
    made = board()
    for number in (MONITOR, 0, 2):
        made.cell(number).set_incarnation(INCARNATION)
    made.cell(2).set_leases(1)

    made.bury(MONITOR, Cause.SIGNAL)  # a helper
    made.bury(0, Cause.CLEAN)  # gave everything back
    made.bury(1, Cause.SIGNAL)  # died before it was somebody
    made.bury(2, Cause.CLEAN)  # says itself that it could not give back

    assert [(each.slot, each.cause) for each in made.dead()] == [(2, "clean")]


def test_acknowledging_out_of_order_and_twice() -> None:
    morgue = Morgue("host", size=8)
    for number in range(5):
        morgue.lay_in(number, f"{number:016x}", Cause.CRASH, None)

    for index in (4, 2, 2, 1):
        morgue.acknowledge(index)

    assert [each.index for each in morgue.dead()] == [3, 5]
    morgue.acknowledge(3)
    morgue.acknowledge(5)
    assert morgue.dead() == []


def test_a_full_morgue_forgets_the_oldest_and_counts() -> None:
    morgue = Morgue("host", size=4)
    for number in range(6):
        morgue.lay_in(number, f"{number:016x}", Cause.CRASH, f"row-{number}")

    assert [(each.slot, each.row) for each in morgue.dead()] == [(n, f"row-{n}") for n in (2, 3, 4, 5)]
    assert morgue.overwritten == 2


def test_acknowledging_one_that_was_overwritten_does_not_cross_out_who_lies_there_now() -> None:
    """Seen to fail when `acknowledge` marks the place instead of the index."""
    morgue = Morgue("host", size=4)
    morgue.lay_in(0, "0" * 16, Cause.CRASH, None)
    (old,) = morgue.dead()
    for number in range(1, 5):
        morgue.lay_in(number, f"{number:016x}", Cause.CRASH, None)

    morgue.acknowledge(old.index)

    assert [each.slot for each in morgue.dead()] == [1, 2, 3, 4]


def test_ten_thousand_deaths() -> None:
    morgue = Morgue("host", size=16)
    for number in range(10_000):
        morgue.lay_in(number % 3, f"{number:016x}", Cause.SIGNAL, None)
        for death in morgue.dead():
            assert death.incarnation == f"{number:016x}"
            morgue.acknowledge(death.index)

    assert (morgue.dead(), morgue.overwritten) == ([], 0)


# The bell


def test_each_ring_wakes_each_listener_once() -> None:
    """Seen to fail without EPOLLET (a ring never ends) and when a listener reads the eventfd (others stay asleep)."""
    bell = Bell()
    listeners = [bell.listen() for _ in range(3)]
    assert [each.drain() for each in listeners] == [False, False, False]

    for _ in range(3):
        bell.ring()
        assert [each.drain() for each in listeners] == [True, True, True]
        assert [each.drain() for each in listeners] == [False, False, False]


def test_rings_that_nobody_waits_for_are_kept_as_one() -> None:
    bell = Bell()
    listener = bell.listen()
    for _ in range(1000):
        bell.ring()

    assert [listener.drain(), listener.drain()] == [True, False]
    listener.close()


def test_who_left_unasked_is_counted_also_for_a_seat_that_is_no_longer_used() -> None:
    shared = Scoreboard("host")
    shared.open(pid=42, boot_id=INCARNATION, started_at=1.5e9, version="1.2.3", slots=2)
    for slot, cause in ((1, Cause.SIGNAL), (1, Cause.SIGNAL), (7, Cause.HANG), (MONITOR, Cause.CRASH)):
        shared.count(slot, cause)

    assert shared.unasked() == {(1, Cause.SIGNAL): 2, (7, Cause.HANG): 1}
    assert shared.read(1).causes[Cause.SIGNAL] == 2
