"""What a process that dies of a signal leaves behind for who reaps it."""

import faulthandler
import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from reconsup.fleet import stacks
from reconsup.fleet.posix import fork
from tests.fleet.test_posix import alone, end_of, nothing

story = pytest.mark.story


def fork_and_die(folder: Path, slot: int, number: int) -> int:
    def body() -> int:
        stacks.open_in(folder, slot)
        os.kill(os.getpid(), number)
        return 0

    return end_of(fork(body, nothing, "toy-0"))


def signals_that_kill() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for slot, number in ((0, signal.SIGABRT), (-1, signal.SIGSEGV), (512, signal.SIGABRT)):
            assert fork_and_die(folder, slot, number) == -number
            text = stacks.take(folder, slot)
            assert text is not None
            assert "in body" in text
            assert stacks.take(folder, slot) is None
            assert list(folder.iterdir()) == []
        # the next one in the seat begins a new page
        stacks._path(folder, 0).write_text("of long ago\n" * 10_000)
        fork_and_die(folder, 0, signal.SIGABRT)
        assert "long ago" not in str(stacks.take(folder, 0))
        # who dies of nothing that it can see coming, or not at all, leaves nothing
        assert fork_and_die(folder, 0, signal.SIGKILL) == -signal.SIGKILL
        assert fork_and_die(folder, 0, signal.SIGUSR2) == 0
        assert stacks.take(folder, 0) is None
        # nowhere to write to: it starts all the same
        assert fork_and_die(folder / "gone", 0, signal.SIGUSR2) == 0
        assert fork_and_die(folder / "gone", 0, signal.SIGABRT) == -signal.SIGABRT


@story
def test_the_stacks_of_a_process_are_there_once_after_its_death() -> None:
    done = alone(signals_that_kill)

    assert "Fatal Python error: Aborted" in done.stderr  # of the one without a folder
    assert done.stderr.count("in body") == 3  # its own, and two that were asked


def test_a_huge_file_costs_little_and_broken_letters_are_no_error(tmp_path: Path) -> None:
    """Seen to fail without the limit, and when the bytes must be UTF-8."""
    stacks._path(tmp_path, 3).write_bytes(b"\xff" + b"x" * 10 * stacks.BYTES_MAX)

    text = stacks.take(tmp_path, 3)

    assert text is not None
    assert len(text) == stacks.BYTES_MAX
    assert not stacks._path(tmp_path, 3).exists()


def test_the_file_stays_open_as_long_as_the_process_lives(tmp_path: Path) -> None:
    """Closed, the next file that is opened would get the stacks."""
    was_enabled = faulthandler.is_enabled()
    try:
        stacks.open_in(tmp_path, 5)
        held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_there(fd)]
        assert str(stacks._path(tmp_path, 5)) in held
    finally:
        faulthandler.unregister(signal.SIGUSR2)
        faulthandler.enable(sys.__stderr__) if was_enabled and sys.__stderr__ else faulthandler.disable()


def _is_there(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")
