"""A toy fleet on a stage: started by a test, watched through what its children tell, and cleared away afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.toy_fleet import Play

SECONDS_MAX = 15.0

Event = dict[str, Any]


class Stage:
    """A running toy fleet. Whatever is waited for has a deadline."""

    def __init__(self, directory: Path, play: Play, **environment: str) -> None:
        self.directory = directory
        self._log_path = directory / "log"
        with self._log_path.open("wb") as log:
            self.supervisor = subprocess.Popen(
                [sys.executable, "-m", "tests.support.toy_fleet", str(directory), play.text()],
                stderr=log,
                env=os.environ | environment,
                # of its own process group, as a shell or a unit would start it
                start_new_session=True,
            )

    def told(self, event: str = "", **fields: Any) -> list[Event]:
        """What the children told, in order."""
        return _lines(self.directory / "events.jsonl", event, fields)

    def logged(self, event: str = "", **fields: Any) -> list[Event]:
        """What the supervisor (and a crashing child) logged."""
        return _lines(self._log_path, event, fields)

    def wait(self, what: str, happened: Callable[[], Any]) -> Any:
        """Until `happened` returns something; that."""
        deadline = time.monotonic() + SECONDS_MAX
        while not (result := happened()):
            assert time.monotonic() < deadline, f"{what}: not within {SECONDS_MAX} s\n{self._log_path.read_text()}"
            time.sleep(0.005)
        return result

    def until_told(self, event: str, count: int = 1, **fields: Any) -> list[Event]:
        """Until the children have told this so often."""
        found: list[Event] = self.wait(
            f"{count} × {event} {fields}", lambda: len(all_ := self.told(event, **fields)) >= count and all_
        )
        return found

    def until_logged(self, event: str, count: int = 1, **fields: Any) -> list[Event]:
        """Until the log has this so often."""
        found: list[Event] = self.wait(
            f"{count} × {event} {fields}", lambda: len(all_ := self.logged(event, **fields)) >= count and all_
        )
        return found

    def until_ready(self, workers: int) -> dict[int, int]:
        """Until that many workers and the monitor are ready; slot → pid."""
        for slot in (-1, *range(workers)):
            self.until_told("ready", slot=slot)
        self.until_logged("process_ready", count=workers + 1)
        return {event["slot"]: event["pid"] for event in self.told("ready")}

    def hup(self, play: Play | str) -> None:
        """HUP, with this play to be read again; a text is why it is refused."""
        text = play if isinstance(play, str) else play.text()
        (self.directory / "writing.json").write_text(text)
        (self.directory / "writing.json").replace(self.directory / "again.json")
        self.send(signal.SIGHUP)

    def send(self, number: signal.Signals) -> None:
        """A signal to the supervisor."""
        self.supervisor.send_signal(number)

    def end(self) -> int:
        """Until the supervisor has ended and nobody of its is left; its exit code."""
        code = self.supervisor.wait(SECONDS_MAX)
        self.until_nobody_is_left()
        return code

    def until_nobody_is_left(self) -> None:
        """Until every process that ever told or logged anything is gone."""
        self.wait("the end of all children", lambda: not [pid for pid in self.pids() if is_alive(pid)])

    def pids(self) -> set[int]:
        """Every child there ever was."""
        return {event["pid"] for event in (*self.told(), *self.logged("process_forked"))}


@contextmanager
def on_stage(directory: Path, play: Play, **environment: str) -> Iterator[Stage]:
    """A toy fleet; afterwards nothing of it is left, however the test ended."""
    stage = Stage(directory, play, **environment)
    try:
        yield stage
    finally:
        stage.supervisor.kill()
        stage.supervisor.wait()
        for pid in stage.pids():
            if is_alive(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether it runs: a zombie that its adopter has not reaped yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _lines(path: Path, event: str, fields: Event) -> list[Event]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # the last one may be half written
            entry = json.loads(line)
            if event in ("", entry["event"]) and fields.items() <= entry.items():
                found.append(entry)
    return found
