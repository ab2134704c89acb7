"""fork, signals and shared memory between real processes.

Each story runs in a Python of its own, because it forks, and forks only with one thread: `alone`.
"""

import asyncio
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from reconsup.fleet import posix
from reconsup.fleet.bell import Bell
from reconsup.fleet.posix import Child, Scoreboard, SignalNotes, WorkerState, end_within, fork

pytestmark = pytest.mark.story

SECONDS_MAX = 10.0


def alone(story: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    """Run a story in a process of its own; its assertions are ours."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from reconsup import logs; logs.configure('json'); "
            f"from {story.__module__} import {story.__name__} as story; story()",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def nothing() -> None:
    """There is nothing to leave behind."""


def child(body: Callable[[], int]) -> Child:
    return fork(body, nothing, "toy-0")


def end_of(process: Child) -> int:
    deadline = time.monotonic() + SECONDS_MAX
    while (code := process.reap()) is None:
        assert time.monotonic() < deadline, "it does not end"
        assert process.pidfd is not None
        select.select([process.pidfd], [], [], 0.5)
    return code


def exit_codes() -> None:
    def leave(code: object) -> int:
        raise SystemExit(code)

    def kill_itself() -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    bodies: list[tuple[Callable[[], int], int]] = [
        (lambda: 0, 0),
        (lambda: 69, 69),
        (lambda: leave(None), 0),
        (lambda: leave(7), 7),
        (lambda: leave("text"), 70),
        (lambda: 1 // 0, 70),
        (kill_itself, -9),
    ]
    for body, code in bodies:
        assert end_of(child(body)) == code


def test_exit_codes() -> None:
    done = alone(exit_codes)

    assert done.stderr.count("ZeroDivisionError: integer division or modulo by zero") == 1


def unwinding() -> None:
    sys.stdout = open(1, "w", buffering=4096, closefd=False)  # noqa: SIM115 - it lives as long as the process
    print("once", end=" ")  # still in the buffer when the child is born
    try:
        assert end_of(child(lambda: 1 // 0)) == 70
    finally:
        print("parent", end=" ")


def test_a_child_never_returns_into_its_parents_frames_nor_flushes_its_buffers() -> None:
    """Seen to fail without the flush before the fork."""
    assert alone(unwinding).stdout == "once parent "


def early_signal() -> None:
    notes = SignalNotes()

    def signal_itself(_: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    # the first thing a child does: no signal comes earlier
    posix.set_parent_death_signal = signal_itself  # type: ignore[assignment]
    assert end_of(child(lambda: 0)) == -signal.SIGTERM
    assert signal.SIGTERM not in notes.take()


def test_a_signal_between_fork_and_handler_is_not_swallowed() -> None:
    """Seen to fail when the child keeps the supervisor's handlers, and when signals are not blocked around the fork."""
    alone(early_signal)


def wakeup() -> None:
    notes = SignalNotes([signal.SIGTERM])

    def take_term() -> int:
        taken: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        return len(taken)

    assert end_of(child(take_term)) == 1
    assert select.select([notes], [], [], 0)[0] == []


def test_a_childs_signals_do_not_wake_the_supervisor() -> None:
    """Seen to fail without `set_wakeup_fd(-1)` in the child."""
    alone(wakeup)


def mask() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    expected = before | {signal.SIGUSR1}

    def masked_as_before() -> int:
        return int(signal.pthread_sigmask(signal.SIG_BLOCK, ()) != expected)

    assert end_of(child(masked_as_before)) == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == expected

    def fails() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    os.fork = fails
    with pytest.raises(BlockingIOError):
        child(masked_as_before)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == expected


def test_the_signal_mask_is_given_back_on_both_sides_and_when_the_fork_fails() -> None:
    alone(mask)


def threads() -> None:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    with pytest.raises(AssertionError, match="fork with 2 threads"):
        child(lambda: 0)
    os._exit(0)


def test_no_fork_from_a_process_with_threads() -> None:
    """Seen to fail without `assert_one_thread`."""
    alone(threads)


def different() -> None:
    read_fd, write_fd = os.pipe()

    def draw() -> int:
        os.write(write_fd, f"{random.random()} {posix.draw_incarnation()}\n".encode())
        return 0

    random.seed(1)
    for _ in range(3):
        assert end_of(child(draw)) == 0
    drawn = [line.split() for line in os.read(read_fd, 4096).decode().splitlines()]
    assert len({chance for chance, _ in drawn}) == 3
    assert len({incarnation for _, incarnation in drawn}) == 3
    assert all(len(incarnation) == 16 and int(incarnation, 16) >= 0 for _, incarnation in drawn)


def test_siblings_draw_different_chances_and_incarnations() -> None:
    alone(different)


def hard_end() -> None:
    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})

    def deaf() -> int:
        end_within(0.1)
        while True:
            pass

    assert end_of(child(deaf)) == -signal.SIGALRM


def test_end_within_ends_a_process_that_is_stuck() -> None:
    """Seen to fail without the default action, and without the unblocking."""
    alone(hard_end)


def storm() -> None:
    notes = SignalNotes([signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
    for _ in range(5000):
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
    for _ in range(70_000):  # more than the pipe holds
        os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert notes.take() == [signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM]
    assert notes.take() == []
    assert select.select([notes], [], [], 0)[0] == []


def test_no_signal_is_lost_in_a_storm() -> None:
    """Seen to fail when the bytes in the pipe are the truth."""
    alone(storm)


def bell() -> None:
    shared, (read_fd, write_fd), processes, rings = Bell(), os.pipe(), 4, 25

    async def hear(name: int) -> int:
        heard, enough = 0, asyncio.Event()
        listener = shared.listen()
        listener.drain()

        def rung() -> None:
            nonlocal heard
            assert listener.drain()
            heard += 1
            os.write(write_fd, bytes([name]))
            if heard == rings:
                enough.set()

        asyncio.get_running_loop().add_reader(listener.fileno(), rung)
        os.write(write_fd, bytes([name]))
        await asyncio.wait_for(enough.wait(), SECONDS_MAX)
        return 0

    def hearer(name: int) -> Callable[[], int]:
        return lambda: asyncio.run(hear(name))

    children = [child(hearer(name)) for name in range(processes)]
    for _ in range(rings + 1):  # once each to say that they listen, then after every ring
        heard: set[int] = set()
        while len(heard) < processes:
            assert select.select([read_fd], [], [], SECONDS_MAX)[0], f"only {heard} heard it"
            heard |= set(os.read(read_fd, processes))
        shared.ring()
    assert [end_of(each) for each in children] == [0] * processes


def test_each_ring_wakes_every_process() -> None:
    """Seen to fail when one listener reads the eventfd, and when the listeners share one epoll."""
    alone(bell)


def sharing() -> None:
    board = Scoreboard("toy")

    def write() -> int:
        cell = board.cell(1)
        cell.set_incarnation("0123456789abcdef")
        cell.set_state(WorkerState.READY)
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            cell.set_row("a" * 120)
            cell.set_row("ü" * 50)
        return 0

    process = child(write)
    assert select.select([board.doorbell_fd], [], [], SECONDS_MAX)[0]
    board.silence()
    assert select.select([board.doorbell_fd], [], [], 0)[0] == []
    assert board.child_state(1) is WorkerState.READY
    reads, seen = 0, set[str | None]()
    deadline = time.monotonic() + SECONDS_MAX
    while reads < 1000 or len(seen - {None}) < 2:
        assert time.monotonic() < deadline, seen
        reads += 1
        seen.add(board.read(1).row)
    assert seen <= {"a" * 120, "ü" * 50, None}, seen
    process.send(signal.SIGKILL)
    end_of(process)
    board.bury(1, posix.Cause.SIGNAL)
    assert board.dead()[0].owner == "toy-1#0123456789abcdef"


def test_what_a_child_writes_is_read_whole_and_outlives_it() -> None:
    alone(sharing)
