"""A part: a process that outlives the command which started it, and what is known of it afterwards.

A part writes down who it is before it becomes the program: pid, start time and boot. Only a process of which all three
are right is ours; signals go through a pidfd that was checked, so a number that was given out again is never hit.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]


class Part:
    """One of them, by its name in a folder: NAME.json says who runs, NAME.log what it said."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.record, self.log = folder / f"{name}.json", folder / f"{name}.log"

    @property
    def pid(self) -> int | None:
        """The process, if it is ours and runs."""
        with self._opened() as (pid, _):
            return pid

    @property
    def is_dead(self) -> bool:
        """Whether it was started, and nobody stopped it, and it does not run."""
        return self.record.exists() and self.pid is None

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it, in a session of its own and with nothing of ours but the log."""
        self.record.unlink(missing_ok=True)
        with self.log.open("ab") as out:
            self._spawn(command, environment, out)

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str], out: IO[bytes]) -> None:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            # before the program: should we be killed now, it is known all the same
            preexec_fn=lambda: write_whole(self.record, _identity(os.getpid())),
        )
        process.returncode = 0  # it is nobody's child: this object must not wait for it, nor complain

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal, if it runs; whether it does."""
        with self._opened() as (pid, descriptor):
            if pid is not None:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
            return pid is not None

    def has_gone(self, seconds: float) -> bool:
        """Wait until it does not run; whether it went in time."""
        with self._opened() as (pid, descriptor):
            if pid is None:
                return True
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            return bool(waiting.poll(seconds * 1000))

    def forget(self) -> None:
        """It was stopped: nothing is expected of it any more."""
        self.record.unlink(missing_ok=True)

    def left_behind(self, argument: str) -> list[int]:
        """Children that outlive it (they end by themselves), known by its session and a word of its command line."""
        try:
            session = int(json.loads(self.record.read_text())["pid"])
        except (OSError, ValueError, KeyError):
            return []
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError, IndexError):
                pid, words = int(entry.name), _stat(int(entry.name))
                is_ours = argument.encode() in (entry / "cmdline").read_bytes().split(b"\0")
                if int(words[3]) == session and words[0] not in "ZX" and is_ours:
                    found.append(pid)
        return found

    @contextmanager
    def _opened(self) -> Iterator[tuple[int | None, int]]:
        """Its pid, and a descriptor that stays with this process whatever becomes of the number."""
        try:
            known: dict[str, Any] = json.loads(self.record.read_text())
            descriptor = os.pidfd_open(known["pid"])
        except (OSError, ValueError, KeyError):
            yield None, -1
            return
        try:
            yield (known["pid"], descriptor) if _is_same(known) else (None, -1)
        finally:
            os.close(descriptor)


def write_whole(path: Path, what: Mapping[str, Any]) -> None:
    """Write a file that is there whole or not at all; only its owner reads it."""
    fresh = path.with_suffix(f".{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        json.dump(what, out)
    fresh.rename(path)


def wait_until(seconds: float) -> Iterator[float]:
    """Look again and again, for so long at most: yields how long it has been."""
    started = time.monotonic()
    while (since := time.monotonic() - started) < seconds:
        yield since
        time.sleep(0.02)


def _is_same(known: Mapping[str, Any]) -> bool:
    try:
        return _stat(known["pid"])[0] not in "ZX" and _identity(known["pid"]) == known
    except (OSError, IndexError):
        return False


def _identity(pid: int) -> dict[str, Any]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"pid": pid, "started": int(_stat(pid)[19]), "boot": boot}


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold anything: state, parent, group, session, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
