"""The last crashes: what is kept of them, and that nothing about them can hurt who notes them."""

import os
import signal
import subprocess
import sys

from reconsup.fleet.crashes import CRASHES_KEPT, Crash, Crashes
from reconsup.fleet.scoreboard import Scoreboard
from reconsup.fleet.slot import MONITOR, Cause


def noted(crashes: Crashes, pid: int, row: str | None = None) -> None:
    crashes.note(1, pid, -9, Cause.SIGNAL, row, at=1e9 + pid, at_monotonic=float(pid))


def test_the_newest_stand_first_and_only_so_many_are_kept() -> None:
    crashes = Crashes("host", size=4)
    assert crashes.last() == []

    for pid in range(1, 11):
        noted(crashes, pid, f"pay_{pid}")

    assert [crash.pid for crash in crashes.last()] == [10, 9, 8, 7]
    assert crashes.last()[0] == Crash(1, "host-1", 10, -9, Cause.SIGNAL, 1e9 + 10, 10.0, "pay_10")


def test_who_died_and_at_which_row_is_read_from_its_seat() -> None:
    board = Scoreboard("host")
    board.cell(2).set_row("pay_7")
    board.note_crash(2, 77, 70, Cause.CRASH)
    board.note_crash(MONITOR, 78, -11, Cause.SIGNAL)

    monitor, worker = board.crashes()

    assert (worker.worker_id, worker.code, worker.cause, worker.row) == ("host-2", 70, Cause.CRASH, "pay_7")
    assert (monitor.worker_id, monitor.code, monitor.row) == ("host-monitor", -11, None)


def test_every_cause_and_any_row_can_be_noted() -> None:
    crashes = Crashes("host")
    for cause in Cause:
        crashes.note(0, 1, 1, cause, "ü" * 400, at=0.0, at_monotonic=0.0)

    assert [crash.cause for crash in reversed(crashes.last())] == list(Cause)
    assert {crash.row for crash in crashes.last()} == {None}, "too long to be told whole"
    assert len(Cause) <= CRASHES_KEPT


READER = """
import os, signal, sys
from reconsup.fleet.crashes import Crashes
from reconsup.fleet.slot import Cause
crashes = Crashes("host", size=4)
pid = os.fork()
if pid == 0:
    number = 1
    while True:
        crashes.note(number % 7, number, number, tuple(Cause)[number % len(Cause)], f"pay_{number}", at=1.0 + number,
                     at_monotonic=1.0 + number)
        number += 1
seen = 0
while seen < 20000:
    for crash in crashes.last():
        number, seen = crash.pid, seen + 1
        whole = (number % 7, number, tuple(Cause)[number % len(Cause)], 1.0 + number, 1.0 + number)
        assert (crash.slot, crash.code, crash.cause, crash.at, crash.at_monotonic) == whole, crash
        assert crash.row in (f"pay_{number}", None), crash
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
"""


def test_no_reader_ever_sees_half_an_entry() -> None:
    """One process writes as fast as it can while another reads. Seen to fail without the look at the number."""
    done = subprocess.run([sys.executable, "-c", READER], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_it_outlives_the_process_that_looks() -> None:
    crashes = Crashes("host")
    noted(crashes, 5)
    pid = os.fork()
    if pid == 0:
        os._exit(len(crashes.last()))
    _, ended = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(ended) == 1
    noted(crashes, 6)
    assert [crash.pid for crash in crashes.last()] == [6, 5]
    assert signal.Signals(-crashes.last()[0].code) is signal.SIGKILL
