"""A host of its own: the program under a small service manager that starts it again when it dies, as systemd would.

All its processes carry a mark in their environment, which children inherit; they are found by it and by nothing else,
so that whatever is struck, or found to have outlived its supervisor, is ours. Unlike systemd this one ends nobody who
outlives a supervisor: the next one starts beside them.
"""

import os
import random
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.program import Program, wait_for

MARK = "RECONSUP_TEST_HOST"
RESTART_SECONDS = (0.1, 1.0)
FINAL_CODES = (0, 78)  # RestartPreventExitStatus, as in the unit that we propose

# A worker that is killed from outside is no crash loop, but nobody can tell: it costs the slot's budget of five a
# minute all the same, and the pauses grow. Killing each many times a minute, for minutes, needs a wider one; the policy
# has its own tests (tests/fleet).
TOUGH = """
from dataclasses import replace
from reconsup import cli
from reconsup.fleet import slot
slot.HEALTHY_SECONDS = 0.0
slot.BACKOFF_SECONDS_MAX = 1.0
limits = cli._limits
cli._limits = lambda settings: replace(limits(settings), crashes_max=10**6)
cli.main()
"""

Start = Callable[[str, str, Path], Program]  # worker id, mark, folder of its log


def marked(mark: str) -> dict[int, str]:
    """Process id → mark of all processes whose mark begins so. Who is only waiting to be reaped has none any more."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                words = (folder / "environ").read_bytes().split(b"\0")
                its = [word.partition(b"=")[2].decode() for word in words if word.startswith(MARK.encode() + b"=")]
                if its and its[0].startswith(mark):
                    found[int(folder.name)] = its[0]
    return found


def strike(pid: int, mark: str, number: signal.Signals) -> bool:
    """Send a signal to a process of this mark; False if it is not there any more. No other can be hit in its place."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not _has_mark(pid, mark):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def _has_mark(pid: int, mark: str) -> bool:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return any(word.startswith(f"{MARK}={mark}".encode()) for word in words)
    return False


def children(pid: int) -> list[int]:
    """The children of a process, also those that were only just forked."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Ends:
    """The ends of processes, noticed at once: open it while they live."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._descriptors = [os.pidfd_open(pid) for pid in pids]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def wait(self, deadline: float) -> float:
        """Wait until the last one has ended; when that was, monotonic."""
        left = set(self._descriptors)
        while left:
            poll = select.poll()
            for descriptor in left:
                poll.register(descriptor, select.POLLIN)
            ended = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            assert ended, f"{len(left)} processes are still there"
            left -= {descriptor for descriptor, _ in ended}
        return time.monotonic()


@dataclass
class Life:
    """One supervisor of a host. Moments are wall clock; `code` and `ended_at` are None while it lives."""

    number: int
    program: Program
    mark: str
    began_at: float
    ended_at: float | None = None
    code: int | None = None


class Host:
    """The service manager and what it runs. `mark` is unique to the run, and begins every process's."""

    def __init__(self, name: str, start: Start, folder: Path, mark: str, chance: random.Random) -> None:
        self.name = name
        self.mark = f"{mark}/{name}/"
        self.lives: list[Life] = []
        self._start = start
        self._folder = folder
        self._chance = chance
        self._lock = threading.Lock()
        self._is_wanted = False
        self._thread: threading.Thread | None = None
        self._change = threading.Event()

    @property
    def life(self) -> Life:
        """The newest one."""
        return self.lives[-1]

    @property
    def program(self) -> Program:
        """The newest one's program."""
        return self.life.program

    @property
    def is_up(self) -> bool:
        """Whether a supervisor runs (or is frozen) now."""
        return bool(self.lives) and self.program.process.poll() is None

    def start(self) -> None:
        """Run the program, and again whenever it dies."""
        self._is_wanted = True
        self._begin()
        self._thread = threading.Thread(target=self._keep, name=f"keeper of {self.name}")
        self._thread.start()

    def stop(self, seconds: float = 20.0) -> int:
        """TERM, and wait; the exit code. It is not started again until `start`."""
        with self._lock:
            self._is_wanted = False
        self._change.set()
        assert self._thread is not None
        wait_for("the keeper has no restart under way", lambda: not self._is_restarting())
        code = self.program.stop(seconds)
        self._thread.join(seconds)
        assert not self._thread.is_alive()
        self._change.clear()
        return code

    def end(self) -> None:
        """After a failure: leave nothing behind, whatever it costs."""
        with self._lock:
            self._is_wanted = False
        self._change.set()
        if self._thread is not None:
            self.strike_all(signal.SIGKILL)
            self._thread.join(20)
        self.strike_all(signal.SIGKILL)
        for life in self.lives:
            life.program.process.wait(20)

    def strike_all(self, number: signal.Signals) -> int:
        """Send a signal to every process of this host; to how many."""
        return sum(strike(pid, self.mark, number) for pid in marked(self.mark))

    def kill_supervisor(self) -> bool:
        """kill -9 of the supervisor; False if there is none."""
        return self.is_up and strike(self.program.process.pid, self.life.mark, signal.SIGKILL)

    def outliving(self) -> dict[int, Life]:
        """Processes whose supervisor has ended, and whose children they were."""
        ended = {life.mark: life for life in self.lives if life.ended_at is not None}
        return {pid: ended[mark] for pid, mark in marked(self.mark).items() if mark in ended}

    def _is_restarting(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and not self.is_up and self._is_wanted

    def _begin(self) -> None:
        number = len(self.lives) + 1
        mark = f"{self.mark}{number}."
        folder = self._folder / f"{self.name}-{number}"
        folder.mkdir()
        self.lives.append(Life(number, self._start(self.name, mark, folder), mark, time.time()))

    def _keep(self) -> None:
        while True:
            life = self.life
            code = life.program.process.wait()
            life.ended_at, life.code = time.time(), code
            if code in FINAL_CODES or not self._is_wanted:
                return
            self._change.wait(self._chance.uniform(*RESTART_SECONDS))
            with self._lock:
                if not self._is_wanted:
                    return
                self._begin()


@contextmanager
def hosts(names: str, start: Start, folder: Path, mark: str, chance: random.Random) -> Iterator[dict[str, Host]]:
    """A host for each letter, to be started; nothing of them is left afterwards, whatever happens."""
    made = {name: Host(f"host-{name}", start, folder, mark, random.Random(chance.random())) for name in names}
    try:
        yield made
    finally:
        for host in made.values():
            host.end()
