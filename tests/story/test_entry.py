"""Signals while the program is still importing: none is lost, none ends it midway, none becomes a traceback.

The signal is sent after the program's first line (its mask says so) and a chance while: what comes before that line
meets Python alone, which dies of it. No database is there, and none is needed.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import launcher
from tests.support.pid_one import as_pid_one, pid_outside
from tests.support.program import free_port, wait_for

pytestmark = pytest.mark.story

TERM, INT, HUP, QUIT = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT
IMPORT_SECONDS = 1.6  # of `run`, on a machine that does other things as well
# what pip writes into bin/reconsup
SCRIPT = "import re, sys\nfrom reconsup.__main__ import main\nsys.argv[0] = 'reconsup'\nsys.exit(main())"
AS_SCRIPT = (sys.executable, "-c", SCRIPT)
Way = Sequence[str] | None
AS_CHOSEN: Way = None  # as the launcher says, which is a module where nothing else was asked for


@dataclass
class Start:
    """A program that is starting. `pid` is its own, as seen from here."""

    process: subprocess.Popen[bytes]
    pid: int
    log: Path

    def end(self) -> tuple[int, str]:
        """Exit code and all that was written, once it has ended by itself."""
        return self.process.wait(30), self.log.read_text()


@contextmanager
def starting(
    folder: Path, *words: str, way: Way = AS_CHOSEN, before: Sequence[str] = (), **variables: str
) -> Iterator[Start]:
    launched = launcher.chosen()
    log = folder / f"{time.monotonic_ns()}.log"
    settings = {
        "DATABASE_URL": f"postgresql://u:p@127.0.0.1:{free_port()}/d",
        "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": '{"mainnet": "http://127.0.0.1:9"}',
        "RECONSUP_METRICS_ADDRESS": "",
        "RECONSUP_LOG_FORMAT": "json",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*before, *(way or launched.words()), *words],
            env={**os.environ, **launched.variables, **settings, **variables},
            cwd=launched.folder,
            stdout=out,
            stderr=out,
            # of its own process group, as a shell or a unit would start it; who tests in the background ignores INT
            start_new_session=True,
            preexec_fn=lambda: signal.signal(INT, signal.SIG_DFL),
        )
    try:
        pid = wait_for("PID 1", lambda: pid_outside(process)) if before else process.pid
        yield Start(process, pid, log)
    finally:
        process.kill()
        process.wait()


def holds(pid: int) -> bool:
    """Whether a process has HUP blocked. (TERM and INT also `unshare` blocks, for a while.)"""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return False
    mask = next((int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:")), 0)
    return bool(mask & 1 << (HUP - 1))


def until_it_holds(start: Start) -> None:
    wait_for("its first line", lambda: holds(start.pid))


def assert_clean(text: str) -> None:
    assert "Traceback" not in text, text
    assert "Exception ignored" not in text, text
    assert "process_crashed" not in text, text


Strike = Callable[[Start], None]


def term(start: Start) -> None:
    os.kill(start.pid, TERM)


def term_twice(start: Start) -> None:
    term(start)
    time.sleep(random.uniform(0, 0.3))
    if start.process.poll() is None:
        term(start)


def int_to_the_group(start: Start) -> None:
    os.killpg(os.getpgid(start.pid), INT)


def all_that_may_come(start: Start) -> None:
    """A terminal closes, somebody scales, a log is rotated: and then it is told to stop."""
    for number in (signal.SIGUSR1, HUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2, TERM):
        os.kill(start.pid, number)


def strike_at(folder: Path, strike: Strike, seconds: float, way: Way, before: Sequence[str] = ()) -> None:
    """One start, struck so long after its first line; it must stop by itself, and cleanly."""
    with starting(folder, "--workers", "2", way=way, before=before) as start:
        until_it_holds(start)
        time.sleep(seconds)
        assert start.process.poll() is None, "the window was missed"
        strike(start)
        code, text = start.end()
    assert (code, seconds) == (0, seconds), text
    assert '"event":"supervisor_stopped"' in text
    for number in (HUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU) if strike is all_that_may_come else ():
        assert f'"signal":"{number.name}"' in text, text
    assert_clean(text)


@pytest.mark.parametrize(
    ("strike", "way", "is_pid_one"),
    [
        (term, AS_CHOSEN, False),
        (term_twice, AS_CHOSEN, True),
        (int_to_the_group, AS_SCRIPT, False),
        (all_that_may_come, AS_SCRIPT, True),
    ],
)
def test_who_is_told_to_stop_while_it_imports_stops_and_exits_0(
    tmp_path: Path, strike: Strike, way: Way, *, is_pid_one: bool
) -> None:
    """Seen to fail without the block."""
    strike_at(tmp_path, strike, random.uniform(0, 0.3), way, as_pid_one() if is_pid_one else ())


@pytest.mark.long
@pytest.mark.parametrize("is_pid_one", [False, True], ids=["as-any", "as-pid-1"])
@pytest.mark.parametrize("strike", [term, term_twice, int_to_the_group, all_that_may_come])
def test_at_no_moment_of_the_start_one_is_lost(tmp_path: Path, strike: Strike, *, is_pid_one: bool) -> None:
    before = as_pid_one() if is_pid_one else ()
    if is_pid_one and strike is int_to_the_group:
        before = (*before, "setsid")  # `unshare` itself would die of it
    moments = [random.uniform(0, IMPORT_SECONDS) for _ in range(20 if strike is term else 8)]
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(strike_at, tmp_path, strike, each, AS_CHOSEN, before) for each in moments]:
            done.result()


@pytest.mark.long
def test_before_its_first_line_it_dies_of_it_and_after_that_it_stops(tmp_path: Path) -> None:
    codes = set()
    for tick in range(20):
        with starting(tmp_path) as start:
            time.sleep(tick * 0.004)
            os.kill(start.pid, TERM)
            code, text = start.end()
        codes.add(code)
        assert_clean(text)
    assert codes <= {0, -TERM}


@pytest.mark.parametrize(("number", "code"), [(INT, 130), (TERM, -TERM)])
def test_another_command_is_interrupted_without_a_traceback(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """`check` imports for a second, then waits for a database. Seen to fail (lost) when none is ever let go."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/d"
        with starting(tmp_path, "check", DATABASE_URL=url) as start:
            until_it_holds(start)
            os.kill(start.pid, number)
            got, text = start.end()

    assert got == code, text
    assert_clean(text)


@pytest.mark.long
def test_another_command_is_interrupted_at_any_moment_and_as_often_as_one_likes(tmp_path: Path) -> None:
    """An interrupt at the very end may find nothing left to interrupt: then the command's own code stands."""
    codes = set()
    for _ in range(30):
        with starting(tmp_path, "check") as start:
            until_it_holds(start)
            for _ in range(3):
                time.sleep(random.uniform(0, 0.3))
                if start.process.poll() is None:
                    os.kill(start.pid, INT)
            code, text = start.end()
        codes.add(code)
        assert_clean(text)
    assert codes <= {130, 69}
    assert 130 in codes
