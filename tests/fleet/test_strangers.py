"""Orphans that become the supervisor's children, and signals in a storm: real processes, each story in its own Python.

As PID 1 (the stories run in a namespace of their own once more) everybody's orphans do so; elsewhere after
`adopt_orphans` those of the fleet.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from reconsup.fleet import posix
from reconsup.fleet.posix import SignalNotes, adopt_orphans, reap_strangers
from tests.fleet.test_posix import SECONDS_MAX, child, end_of
from tests.support.pid_one import as_pid_one

pytestmark = pytest.mark.story

STRANGERS = 100


def alone(story: Callable[[], None], *before: str) -> None:
    """Run a story in a process of its own; its assertions are ours."""
    code = f"from {story.__module__} import {story.__name__} as story; story()"
    done = subprocess.run(
        [*before, sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def leave_orphans(count: int) -> tuple[int, list[int]]:
    """Have a child leave `count` orphans, which live until the returned descriptor is closed; their pids."""
    gate_read, gate_write = os.pipe()
    told_read, told_write = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.close(gate_write)
        for number in range(count):
            if os.fork() == 0:
                os.write(told_write, b"%d\n" % os.getpid())
                os.read(gate_read, 1)
                os._exit((70, 78, 0)[number % 3])
        os._exit(0)
    os.close(gate_read)
    os.close(told_write)
    assert os.waitpid(parent, 0)[1] == 0
    told = b""
    while told.count(b"\n") < count:
        told += os.read(told_read, 65536)
    return gate_write, [int(pid) for pid in told.split()]


def until(what: str, look: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def many_strangers() -> None:
    adopt_orphans()
    notes = SignalNotes()
    gate, orphans = leave_orphans(STRANGERS)
    assert posix.children() == set(orphans)
    assert reap_strangers(()) == []
    os.close(gate)
    reaped: list[int] = []
    while len(reaped) < STRANGERS:
        assert select.select([notes], [], [], SECONDS_MAX)[0], f"only {len(reaped)} were reaped"
        notes.take()
        reaped += reap_strangers(())
    assert sorted(reaped) == sorted(orphans)
    assert posix.children() == set()


@pytest.mark.parametrize("is_pid_one", [False, True], ids=["subreaper", "pid-1"])
def test_a_hundred_strangers_that_die_at_once_are_reaped(*, is_pid_one: bool) -> None:
    """Seen to fail without `adopt_orphans`, and when only one is reaped for each SIGCHLD."""
    alone(many_strangers, *(as_pid_one() if is_pid_one else ()))


def strangers_among_ours() -> None:
    adopt_orphans()
    embedded = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    ours = child(lambda: 78)
    living = child(lambda: signal.pause() or 0)
    until("both are dead", lambda: all(_is_dead(pid) for pid in (embedded.pid, ours.pid)))
    gate, orphans = leave_orphans(STRANGERS)
    os.close(gate)
    until("all are dead", lambda: all(_is_dead(pid) for pid in orphans))

    assert sorted(reap_strangers({embedded.pid, ours.pid, living.pid})) == sorted(orphans)
    assert reap_strangers({embedded.pid, ours.pid, living.pid}) == []
    assert ours.reap() == 78
    assert embedded.wait() == 3
    assert living.reap() is None
    living.send(signal.SIGKILL)
    assert end_of(living) == -signal.SIGKILL
    assert reap_strangers(()) == []


@pytest.mark.parametrize("is_pid_one", [False, True], ids=["subreaper", "pid-1"])
def test_strangers_are_reaped_beside_the_dead_that_somebody_waits_for(*, is_pid_one: bool) -> None:
    """Seen to fail when the first dead child that is known ends the search, and when `known` is not looked at."""
    alone(strangers_among_ours, *(as_pid_one() if is_pid_one else ()))


def _is_dead(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "Z"


def another_view() -> None:
    """Without a /proc of this namespace the kernel's list has other numbers."""
    known = child(lambda: 7)
    gate, orphans = leave_orphans(3)
    os.close(gate)
    time.sleep(0.2)  # there is no /proc to look at
    found = reap_strangers({known.pid})
    assert set(found) <= set(orphans)
    assert end_of(known) == 7
    until("the rest is found once the known one is gone", lambda: len(found) == 3 or found.extend(reap_strangers(())))


def test_without_a_proc_of_its_own_no_known_childs_status_is_taken() -> None:
    alone(another_view, *(word for word in as_pid_one() if word != "--mount-proc"))


def counted() -> None:
    notes = SignalNotes()
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTTIN)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTTOU)
    os.kill(os.getpid(), signal.SIGUSR1)
    ttin, ttou, hup = signal.SIGTTIN, signal.SIGTTOU, signal.SIGHUP
    assert notes.take() == [ttin, hup, ttou, ttin, ttou, ttin, ttou]
    for _ in range(2000):
        os.kill(os.getpid(), signal.SIGTTIN)
    os.kill(os.getpid(), signal.SIGTERM)
    assert notes.take() == [ttin] * 512 + [signal.SIGTERM]
    assert notes.take() == []


def test_each_one_worker_more_counts_up_to_a_limit_and_other_signals_once() -> None:
    """Seen to fail with `COUNTED` empty, and without the limit."""
    alone(counted)


STORM = """
import os, signal, sys
pid, each = int(sys.argv[1]), int(sys.argv[2])
for _ in range(each):
    for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGUSR1, signal.SIGTTOU, signal.SIGUSR2):
        os.kill(pid, number)
os.kill(pid, signal.SIGTERM)
"""


def storm_from_outside() -> None:
    """10,000 signals from another process while this one forks, reaps and takes notes; each wakes who waits."""
    notes = SignalNotes()
    attacker = subprocess.Popen([sys.executable, "-c", STORM, str(os.getpid()), "2000"])
    seen: list[signal.Signals] = []
    forked = 0
    while signal.SIGTERM not in seen or attacker.poll() is None:
        assert select.select([notes], [], [], SECONDS_MAX)[0], seen
        seen += notes.take()
        if forked < 50:
            assert end_of(child(lambda: 7)) == 7
            forked += 1
    seen += notes.take()
    assert attacker.returncode == 0
    kinds = {signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2, signal.SIGCHLD, signal.SIGTERM}
    assert set(seen) == kinds
    assert seen.count(signal.SIGTERM) == 1
    assert forked > 0


def test_ten_thousand_signals_from_outside_lose_no_meaning() -> None:
    alone(storm_from_outside)


def none_is_late() -> None:
    notes = SignalNotes([signal.SIGUSR2])
    for _ in range(3000):
        pid = os.getpid()
        os.kill(pid, signal.SIGUSR2)
        assert notes.take() == [signal.SIGUSR2]
        assert not select.select([notes], [], [], 0)[0]


def test_every_signal_after_a_look_is_seen_at_the_next() -> None:
    alone(none_is_late)


def deaf_child() -> None:
    SignalNotes()
    # as early as any signal can come, and later
    numbers = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2)

    def strike(_: int = 0) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    def body() -> int:
        strike()
        taken: list[int] = []
        signal.signal(signal.SIGUSR2, lambda number, _: taken.append(number))
        signal.signal(signal.SIGUSR1, lambda number, _: taken.append(number))
        strike()
        return len(taken)

    posix.set_parent_death_signal = strike  # type: ignore[assignment]  # the first thing that a child does
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # as the entry has it
    SignalNotes()
    assert end_of(child(body)) == 2


def test_what_is_meant_for_the_supervisor_does_not_end_a_child_without_handlers() -> None:
    """Seen to fail with the default actions, and (one of two) when the entry's block of USR1 is inherited."""
    alone(deaf_child)
