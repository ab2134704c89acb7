"""`reconsup demo`, as somebody on a fresh machine runs it: it ends by itself, and nothing of it is left."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.program import wait_for

pytestmark = pytest.mark.story

END_SECONDS = 120.0
GONE_SECONDS = 15.0
DEMO = [sys.executable, "-m", "reconsup.cli", "demo"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the demo makes its folder. Every process of the demo has it in its command line."""
    tmp_path.chmod(0o755)
    yield tmp_path
    for pid in processes(tmp_path):
        os.kill(pid, signal.SIGKILL)


def processes(folder: Path) -> dict[int, str]:
    """The processes whose command line names the folder."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in words:
                found[int(entry.name)] = words
    return found


def is_at_work(folder: Path) -> bool:
    """Whether all the parts run: PostgreSQL, anvil, the supervisor, four workers and the monitor."""
    words = list(processes(folder).values())
    parts = [sum(part in each for each in words) for part in ("bin/postgres", "bin/anvil", " run --workers 4")]
    return parts[0] >= 1 and parts[1] == 1 and parts[2] == 6


def is_gone(folder: Path) -> Callable[[], bool]:
    return lambda: not processes(folder) and not list(folder.iterdir())


def start(folder: Path, *flags: str, stdout: int) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "TMPDIR": str(folder), "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    return subprocess.Popen(
        [*DEMO, *flags],
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        # a shell gives what it starts in the background, the tests with it, an INT that is ignored: not so a terminal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_it_ends_by_itself_with_a_summary_and_leaves_nothing(folder: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(
        [*DEMO, "--plain"], env=environment, capture_output=True, text=True, timeout=END_SECONDS, check=False
    )

    said = done.stdout
    assert (done.returncode, done.stderr) == (0, ""), said
    assert "Every request ended as it must. Everything that was started is gone." in said
    assert re.search(r"requests +25 confirmed, 3 expired", said)
    assert re.search(r"kill -9 demo-\d \(process \d+\) while it holds \d+ requests?", said)
    assert re.search(r"28 +confirmed → reorged", said)
    assert re.search(r"28 +reorged → (confirmed|detected)", said)
    assert "paid too late: noted, stays expired" in said
    assert "exactly once for 2" in said
    taken_over = re.search(r"its rows with others after (\d+) ms, a new worker ready after (\d+) ms", said)
    assert taken_over is not None
    assert max(map(int, taken_over.groups())) < 10_000  # and a lease lasts 30 s
    assert is_gone(folder)()


def test_ctrl_c_in_the_middle_takes_everything_down_and_gives_the_terminal_back(folder: Path) -> None:
    """Seen to fail (processes and the folder are left) when the parts are not ended on the way out."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (30, 100))
    shown: list[bytes] = []
    demo = start(folder, stdout=slave)
    os.close(slave)
    reader = threading.Thread(target=read_all, args=(master, shown))
    reader.start()

    wait_for("all the parts run", lambda: is_at_work(folder), 60.0)
    demo.send_signal(signal.SIGINT)
    _, said = demo.communicate(timeout=END_SECONDS)
    reader.join()

    assert demo.returncode == 128 + signal.SIGINT
    assert said.decode() == "reconsup demo: interrupted; everything that was started is gone\n"
    assert is_gone(folder)(), processes(folder)
    whole = b"".join(shown)
    assert whole.rindex(b"\x1b[?1049l") > whole.rindex(b"\x1b[?1049h")


def read_all(master: int, shown: list[bytes]) -> None:
    """Read a terminal until its last user is gone."""
    try:
        while chunk := os.read(master, 1 << 16):
            shown.append(chunk)
    except OSError:
        pass  # how Linux says so
    finally:
        os.close(master)


def test_nothing_outlives_a_demo_that_is_killed(folder: Path) -> None:
    """Seen to fail without the parent-death signal (processes are left), and without the remover (the folder)."""
    demo = start(folder, "--plain", stdout=subprocess.DEVNULL)
    assert demo.stderr is not None
    wait_for("all the parts run", lambda: is_at_work(folder), 60.0)

    demo.kill()
    demo.wait()
    demo.stderr.close()

    wait_for("everything is gone", is_gone(folder), GONE_SECONDS)
