"""Logs that nobody reads, or nobody can: the process goes on working, and says later how many lines were lost."""

import json
import os
import pty
import select
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

LINES = 1000
SECONDS_MAX = 5.0  # for all of them: to wait for each would take longer by far

WRITER = """
import os, sys, time
from reconsup import logs
logs.configure("json", worker_id="h-1")
log = logs.get_logger()
def say(numbers, size=400):
    started_at = time.monotonic()
    for number in numbers: log.info("beat", number=number, filler="x" * size)
    print(f"{time.monotonic() - started_at:.3f}", flush=True)
def fork_writers(count):
    for _ in range(count):
        if os.fork() == 0:
            for number in range(300): log.info("beat", number=number, filler="x" * 400)
            os._exit(0)
    for _ in range(count): assert os.wait()[1] == 0
for line in sys.stdin: exec(line)
"""


@dataclass
class Writer:
    """A process that logs what it is told to, into `reader`'s other end."""

    process: subprocess.Popen[str]
    reader: int

    def say(self, words: str) -> float:
        """Have it do that; the seconds that it took, by its own clock."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        assert select.select([self.process.stdout], [], [], 20)[0], "it is stuck"
        return float(self.process.stdout.readline())

    def read(self) -> str:
        """All that is there to be read now."""
        data = b""
        while select.select([self.reader], [], [], 0)[0] and (more := os.read(self.reader, 1 << 20)):
            data += more
        return data.decode()


@contextmanager
def writer(into: int, reader: int) -> Iterator[Writer]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=into, text=True
    )
    os.close(into)
    try:
        yield Writer(process, reader)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def on(kind: str) -> Iterator[Writer]:
    """A writer into a fresh pipe, socket or terminal."""
    if kind == "socket":
        ours, theirs = (each.detach() for each in socket.socketpair())
    elif kind == "terminal":
        ours, theirs = pty.openpty()
        attributes = termios.tcgetattr(theirs)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    else:
        ours, theirs = os.pipe()
    with writer(theirs, ours) as made:
        yield made
    os.close(ours)


def entries(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_stands_still_costs_lines_and_no_time_and_they_are_counted(kind: str) -> None:
    """Seen to fail (stuck) with a plain write, and without the count."""
    with on(kind) as made:
        seconds = made.say(f"say(range({LINES}))")
        assert seconds < SECONDS_MAX
        kept = entries(made.read())
        made.say(f"say([{LINES}])")
        later = entries(made.read())

    assert 20 < len(kept) < LINES
    assert [each["number"] for each in kept] == list(range(len(kept)))
    assert [each["event"] for each in later] == ["log_lines_dropped", "beat"]
    assert later[0]["count"] == LINES - len(kept)
    assert (later[0]["level"], later[0]["worker_id"]) == ("warning", "h-1")


def test_a_reader_that_is_only_slow_loses_nothing() -> None:
    """Seen to fail without patience."""
    with on("pipe") as made:
        assert made.process.stdin is not None
        assert made.process.stdout is not None
        made.process.stdin.write(f"say(range({LINES}))\n")
        made.process.stdin.flush()
        data = b""
        while data.count(b"\n") < LINES:
            assert select.select([made.reader], [], [], 20)[0]
            data += os.read(made.reader, 4096)
            time.sleep(0.001)  # slower than it writes

    assert [each["number"] for each in entries(data.decode())] == list(range(LINES))


def test_many_processes_that_share_a_full_pipe_are_not_stuck_either() -> None:
    with on("pipe") as made:
        made.say("fork_writers(8); say([])")

        assert len(entries(made.read())) > 20


def test_room_that_another_process_takes_between_a_look_and_the_write_is_no_trap() -> None:
    """Seen to fail (stuck) when the shared descriptor itself is written to."""
    with on("pipe") as made:
        made.say("logs._is_writable = lambda *_: True; say([])")  # it was so a moment ago

        assert made.say(f"say(range({LINES}))") < SECONDS_MAX


def test_a_line_that_was_torn_costs_itself_only() -> None:
    """Seen to fail when the next one follows on the same line."""
    with on("pipe") as made:
        made.say("say([1], 50_000)")
        made.say("say([2], 50_000)")
        whole, torn = made.read().splitlines()
        made.say("say([3])")
        empty, *later = made.read().splitlines()

    assert json.loads(whole)["number"] == 1
    assert torn.startswith('{"timestamp"')
    assert len(torn) < 50_000
    assert empty == ""
    assert [json.loads(each)["event"] for each in later] == ["log_lines_dropped", "beat"]


def test_a_terminal_that_is_held_stops_nothing() -> None:
    with on("terminal") as made:
        seconds = made.say(f"say(range({LINES}))")
        before = made.read()
        made.say("say([7])")
        time.sleep(0.05)  # the terminal's own
        after = made.read()

    assert seconds < SECONDS_MAX
    assert before.startswith('{"timestamp"')
    assert '"log_lines_dropped"' in after


def test_who_has_no_descriptor_left_can_still_say_so() -> None:
    """Nor is it stuck, as little as who may not open the pipe again because another user made it."""
    with on("pipe") as made:
        made.say("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); say([1])")
        assert [each["number"] for each in entries(made.read())] == [1]
        assert made.say(f"say(range({LINES}))") < SECONDS_MAX

        assert len(entries(made.read())) > 20


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_a_reader_that_is_gone_stops_nothing(kind: str) -> None:
    with on(kind) as made:
        os.close(made.reader)
        seconds = made.say(f"say(range({LINES}))")
        made.reader = os.open(os.devnull, os.O_RDONLY)
        os.dup2(made.reader, made.reader)

    assert seconds < SECONDS_MAX


def test_a_full_disk_stops_nothing_and_is_told_when_there_is_room() -> None:
    with writer(os.open("/dev/full", os.O_WRONLY), -1) as made:
        assert made.say(f"say(range({LINES}))") < SECONDS_MAX
        read, write = os.pipe()
        made.reader = read
        there = f"/proc/{os.getpid()}/fd/{write}"
        made.say(f"os.dup2(os.open({there!r}, os.O_WRONLY), 2); say([1])")

        assert [each.get("count", each.get("number")) for each in entries(made.read())] == [LINES, 1]
        os.close(read)
        os.close(write)


TOSTOP = """
import os, pty, signal, sys, termios
from reconsup import logs
leader, terminal = pty.openpty()
if os.fork():
    os._exit(0) if os.waitstatus_to_exitcode(os.wait()[1]) == 0 else os._exit(1)
os.setsid()
os.close(os.open(os.ttyname(terminal), os.O_RDWR))  # it is ours now
attributes = termios.tcgetattr(terminal)
attributes[3] |= termios.TOSTOP
termios.tcsetattr(terminal, termios.TCSANOW, attributes)
if (child := os.fork()) == 0:
    os.setpgid(0, 0)  # into the background
    taken = []
    signal.signal(signal.SIGTTOU, lambda number, _: taken.append(number))
    os.dup2(terminal, 2)
    logs.configure("json")
    signal.alarm(5)
    logs.get_logger().info("beat")
    os._exit(len(taken))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_terminal_that_stops_background_writers_does_not_tell_us_to_have_fewer_workers() -> None:
    """Seen to fail (TTOU without end) when TTOU is not blocked while a line is written."""
    done = subprocess.run([sys.executable, "-c", TOSTOP], capture_output=True, text=True, timeout=20, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_text_shows_what_would_work_on_a_terminal() -> None:
    """Seen to fail without `_shown`."""
    script = (
        "import logging\nfrom reconsup import logs\nlogs.configure('text')\nlog = logs.get_logger()\n"
        "evil = '\\x1b[2J\\x07\\x9b31m\\u202egnp.exe\\u2066\\x7f'\n"
        "log.info(evil, plain=evil, spaced=f'a {evil}', nested={evil: [evil]})\n"
        "logging.getLogger('aiohttp').warning(evil)\n"
        "try: raise ValueError(evil)\n"
        "except ValueError: log.exception('failed')\n"
        "log.info('zwölf 你好', tab='a\\tb')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)

    unshown = [letter for letter in done.stderr if not (letter.isprintable() or letter in "\n\t")]
    assert unshown == []
    assert done.stderr.count("\\x1b[2J") >= 6
    assert "\\u202egnp.exe\\u2066\\x7f" in done.stderr
    assert "Traceback (most recent call last)" in done.stderr
    assert "zwölf 你好" in done.stderr
