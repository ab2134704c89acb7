"""The operating system as the fleet needs it: fork, the end of a child, signals, the lifeline; and what a child gets.

Forks only from a process with one thread: a lock that another thread holds would stay locked in the child for ever.
A child never returns into the supervisor's frames: it always ends in `os._exit`. Signal handlers only take notes;
they neither log nor act, because they may interrupt anything.
"""

import ctypes
import gc
import os
import secrets
import select
import signal
import sys
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from reconsup.fleet.bell import Bell, Listener
from reconsup.fleet.morgue import Death
from reconsup.fleet.scoreboard import Cell, CellView, Scoreboard, SupervisorView
from reconsup.fleet.slot import EXIT_CLEAN, EXIT_GAVE_UP, MONITOR, PROBE, Cause, WorkerState
from reconsup.logs import get_logger

__all__ = [
    "MONITOR",
    "PROBE",
    "Bell",
    "Cause",
    "Cell",
    "CellView",
    "Child",
    "Death",
    "Lifeline",
    "Listener",
    "Scoreboard",
    "Seat",
    "SignalNotes",
    "SupervisorView",
    "WorkerState",
    "adopt_orphans",
    "assert_one_thread",
    "children",
    "draw_incarnation",
    "end_within",
    "fork",
    "reap_strangers",
    "set_parent_death_signal",
]

HANDLED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD),
    *(signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
)
COUNTED = frozenset({signal.SIGTTIN, signal.SIGTTOU})  # each asks for one worker more or fewer
COUNT_MAX = 512  # there are never more workers
MEANINGLESS = frozenset({signal.SIGUSR1})  # to the supervisor; its default would be to die of it
# What an operator means for the supervisor, or what a terminal sends to all: a child lives on until it has a handler.
CHILDREN_IGNORE = frozenset({signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2})
STRANGERS_MAX = 10_000  # in one go

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)  # before any fork: loading takes locks


@dataclass(frozen=True, slots=True)
class Seat:
    """What a forked process gets: who it is, and what it shares with the others.

    It must say `scoreboard.cell(slot).set_state(WorkerState.READY)` before the boot deadline (60 s), leave on TERM,
    and watch `lifeline_fd`: readable (EOF) means that the supervisor died; then `end_within` and leave.
    """

    slot: int
    base: str
    incarnation: str  # 16 hex digits, drawn after the fork
    scoreboard: Scoreboard
    bell: Bell
    lifeline_fd: int
    metrics_directory: Path

    @property
    def worker_id(self) -> str:
        """`BASE-SLOT`: the same after a restart."""
        return self.scoreboard.worker_id(self.slot)

    @property
    def owner(self) -> str:
        """`BASE-SLOT#INCARNATION`: who holds this process's leases, never the same again."""
        return f"{self.worker_id}#{self.incarnation}"

    @property
    def cell(self) -> Cell:
        """Its cell on the scoreboard."""
        return self.scoreboard.cell(self.slot)

    def is_orphaned(self) -> bool:
        """Whether the supervisor is gone."""
        return bool(select.select([self.lifeline_fd], [], [], 0)[0])

    def end_within(self, seconds: float) -> None:
        """Let the kernel end this process after so long, whatever it is doing then. For an orphan's drain."""
        end_within(seconds)

    def end_if_orphaned(self, seconds: float) -> None:
        """From now on, end within `seconds` of the supervisor's death, also if the event loop runs in circles and
        hears of nothing. Not by a deadline that is put off again and again: one who was only stopped would miss it.
        """
        half = max(seconds / 2, 0.001)

        def look(_: int, __: FrameType | None) -> None:
            if self.is_orphaned():
                end_within(half)

        signal.signal(signal.SIGALRM, look)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, half, half)


def end_within(seconds: float) -> None:
    """Let the kernel end this process after `seconds` (SIGALRM, not caught), unless it has ended by then."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))


class Lifeline:
    """A pipe that nothing is written to: while the supervisor lives it holds the only write end."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def close_write_end(self) -> None:
        """In the child: or its siblings would never see the end."""
        os.close(self._write_fd)


class SignalNotes:
    """The signals that came in. A handler notes the number; a byte in a pipe wakes whoever waits."""

    def __init__(self, numbers: Sequence[signal.Signals] = HANDLED) -> None:
        self._numbers = tuple(numbers)
        self._noted: list[int] = []  # in the order of their arrival
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # a full pipe loses bytes, not notes
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, self._note)
        for number in MEANINGLESS - set(self._numbers):
            signal.signal(number, signal.SIG_IGN)
        # the program's entry has them blocked, and whoever started us may have
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*self._numbers, *MEANINGLESS})

    def fileno(self) -> int:
        """For a selector: readable when there may be notes."""
        return self._read_fd

    def take(self) -> list[signal.Signals]:
        """What came since the last time, in order: those that are counted as often as they were handled, others once.

        The kernel keeps one of each that waits, so even a counted one may have been sent more often.
        """
        with suppress(BlockingIOError):
            while os.read(self._read_fd, 4096):
                pass
        noted, self._noted = self._noted, []
        # a handler that interrupts another may note once too often
        return [
            signal.Signals(number)
            for index, number in enumerate(noted)
            if noted.index(number) == index or number in COUNTED
        ]

    def end(self) -> None:
        """Take no more notes: who is told to leave while it leaves anyhow keeps its exit code.

        Python gives its handlers up before the process ends, and the default action is to die of the signal.
        """
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in self._numbers:
            if number is not signal.SIGCHLD:
                signal.signal(number, signal.SIG_IGN)

    def close(self) -> None:
        """Close the pipe, in a child, after `set_wakeup_fd(-1)`."""
        os.close(self._read_fd)
        os.close(self._write_fd)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._noted.count(number) < (COUNT_MAX if number in COUNTED else 1):
            self._noted.append(number)


class Child:
    """A forked process until it was reaped. Its pid cannot be another's before that."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = _pidfd(pid)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has died already."""
        with suppress(ProcessLookupError):
            if self.pidfd is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(self.pidfd, number)

    def reap(self) -> int | None:
        """Its exit code, negative for the signal that killed it; None while it lives. Never blocks."""
        try:
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG)
        except ChildProcessError:  # somebody else took its status: it is dead, nobody knows of what
            self.close()
            return EXIT_GAVE_UP
        if found is None:
            return None
        self.close()
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def close(self) -> None:
        """Close its descriptor; in another child too."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


def fork(body: Callable[[], int], leave_behind: Callable[[], None], name: str) -> Child:
    """Run `body` in a new process and exit with what it returns. OSError (EAGAIN, ENOMEM) if there can be none.

    `leave_behind` closes, in the child, what belongs to the supervisor alone. No signal is lost in between: until
    the child has its own dispositions they wait. `name` is the child's worker id, for the log.
    """
    assert_one_thread()
    _flush()  # or the child writes it once more
    supervisor_pid = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(body, leave_behind, name, supervisor_pid, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Child(pid)


def adopt_orphans() -> bool:
    """Have those orphans become our children whose parents we, or our children, are; False if the system refuses.

    As PID 1 everybody's do anyhow. From then on `reap_strangers` must be called at every SIGCHLD.
    """
    return bool(_LIBC.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0) == 0)


def children() -> frozenset[int]:
    """The pids of this process's children, also of those that are dead and not reaped.

    Whoever is there before the fleet is (an embedded PostgreSQL) has somebody who waits for it.
    """
    with suppress(OSError, ValueError):
        pids = Path("/proc/thread-self/children").read_text().split()
        return frozenset(int(pid) for pid in pids)
    return frozenset()  # a kernel without that file


def reap_strangers(known: Container[int]) -> list[int]:
    """Reap every dead child that is not in `known`, and return their pids. How they ended means nothing.

    A known one that is dead is left to those who wait for it. Never blocks. Strangers may give birth to strangers
    for ever, so there is a limit; who is left is found the next time.
    """
    reaped: list[int] = []
    while len(reaped) < STRANGERS_MAX and (pid := _any_dead()) is not None:
        if pid in known:  # the kernel would show the same one again and again: go through all of them
            return reaped + [child for child in children() if child not in known and _is_reaped(child)]
        if not _is_reaped(pid):
            break
        reaped.append(pid)
    return reaped


def _any_dead() -> int | None:
    """A dead child, which stays unreaped."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there are no children
        return None
    return None if found is None else found.si_pid


def _is_reaped(pid: int) -> bool:
    """Whether that child was dead; it is reaped then."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:  # no child of ours: another's view of /proc
        return False


def draw_incarnation() -> str:
    """16 hex digits that no other process ever has. Only after the fork."""
    return secrets.token_hex(8)


def assert_one_thread() -> None:
    """Refuse to fork from a process with more than one thread, Python's or a C library's."""
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"fork with {threads} threads: something that was imported or opened before started one"


def _be_child(
    body: Callable[[], int],
    leave_behind: Callable[[], None],
    name: str,
    supervisor_pid: int,
    mask: set[int | signal.Signals],
) -> NoReturn:
    code = EXIT_GAVE_UP
    try:
        set_parent_death_signal(signal.SIGTERM)
        if os.getppid() != supervisor_pid:  # it died before we asked to be told
            os._exit(EXIT_GAVE_UP)
        # what is sent to a terminal's or a unit's process group is the supervisor's to interpret
        os.setsid()
        # before the mask goes: a signal to this child must not wake the supervisor
        signal.set_wakeup_fd(-1)
        for number in (*HANDLED, *MEANINGLESS):
            signal.signal(number, signal.SIG_IGN if number in CHILDREN_IGNORE else signal.SIG_DFL)
        leave_behind()
        _forget_systemd()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.enable()
        code = body()
    except SystemExit as exit_:
        code = _code_of(exit_)
    except BaseException:  # noqa: BLE001 - the rim of this process: nothing unwinds into the supervisor's frames
        get_logger().exception("process_crashed", worker_id=name, pid=os.getpid())
    finally:
        # it is leaving: a late TERM would make a clean exit look like a crash
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        _flush()
        os._exit(code & 0xFF)


def _code_of(exit_: SystemExit) -> int:
    if exit_.code is None:
        return EXIT_CLEAN
    return exit_.code if isinstance(exit_.code, int) else EXIT_GAVE_UP


def set_parent_death_signal(number: signal.Signals) -> None:
    """Have the kernel send `number` to this process when the thread that forked it ends."""
    if _LIBC.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def _forget_systemd() -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        os.environ.pop(name, None)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, broken, or none at all
            stream.flush()


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:  # an old kernel, a sandbox, no descriptor left: SIGCHLD and the pid do as well
        return None
