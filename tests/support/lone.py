"""One real worker (or the monitor), forked as a supervisor does it, and nobody above it who would end it.

`python -m tests.support.lone JSON` forks it and answers, a line a line, what stands on its cell of the scoreboard, or
what its end left behind. `Lone` is the test's end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.program import wait_for

SLOT = 0
END_SECONDS = 15.0  # who has not left by then is killed, and the test sees that it was


@dataclass(frozen=True)
class Cell:
    """What the supervisor would see. `silent_seconds`: the age of the beat; None: there was none yet."""

    pid: int
    state: str
    loop: str | None
    silent_seconds: float | None
    memory_bytes: int | None


@dataclass(frozen=True)
class End:
    """What is left of it: exit code (negative: the signal), stacks, and whether their file is gone."""

    code: int
    stacks: str | None
    is_swept: bool


class Lone:
    """One process. Leaving the `with` kills it, and leaves nothing behind."""

    def __init__(
        self, settings: Mapping[str, str], folder: Path, *, plant: str | None = None, is_monitor: bool = False
    ) -> None:
        self.log = folder / "log"
        given = {"settings": dict(settings), "folder": str(folder), "plant": plant, "is_monitor": is_monitor}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.lone", json.dumps(given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # it kills its child when nobody asks any more

    def cell(self) -> Cell:
        """Its cell now."""
        return Cell(**self._ask("cell"))

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.cell().pid, number)

    def end(self, *numbers: signal.Signals) -> End:
        """Wait until it is gone, after it was sent these signals."""
        for number in numbers:
            self.send(number)
        return End(**self._ask("end"))

    def wait_for_silence(self, seconds: float) -> Cell:
        """Wait until nothing was heard of one of its loops for so long."""
        return wait_for(f"a silence of {seconds:g} s", lambda: self._silent(seconds), 30)

    def longest_silence(self, seconds: float) -> float:
        """Watch it for a while: the longest silence there was."""
        silences, until = [], time.monotonic() + seconds
        while time.monotonic() < until:
            silences.append(self.cell().silent_seconds or 0.0)
            time.sleep(0.05)
        return max(silences)

    def events(self, event: str) -> list[dict[str, Any]]:
        """What it has logged under this name."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [entry for line in lines if (entry := json.loads(line))["event"] == event]

    def wait_logged(self, event: str) -> dict[str, Any]:
        """Wait until it has logged this; the first of them."""
        return wait_for(f"{event} is logged", lambda: self.events(event))[0]

    def _silent(self, seconds: float) -> Cell | None:
        cell = self.cell()
        return cell if (cell.silent_seconds or 0.0) >= seconds else None

    def _ask(self, what: str) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    """Fork it, and answer."""
    from reconsup import logs
    from reconsup.fleet import posix, stacks
    from reconsup.fleet.slot import Slot
    from reconsup.monitor import http
    from reconsup.settings import load
    from reconsup.worker import process
    from tests.support import plants

    given = json.loads(sys.argv[1])
    folder = Path(given["folder"])
    settings = load(given["settings"], {})
    if given["plant"] is not None:
        plants.plant(given["plant"])
    logs.configure("json")
    board, bell, lifeline = posix.Scoreboard("lone"), posix.Bell(), posix.Lifeline()
    board.open(pid=os.getpid(), boot_id="", started_at=time.time(), version="0", slots=1)
    slot = posix.MONITOR if given["is_monitor"] else SLOT
    seat = posix.Seat(slot, "lone", "0" * 16, board, bell, lifeline.read_fd, folder)
    role = http.run if given["is_monitor"] else process.run
    board.clear(slot)

    def body() -> int:
        stacks.open_in(folder, slot)  # as the supervisor's child does
        return role(seat, settings)

    child = posix.fork(body, lifeline.close_write_end, "lone")
    state = posix.WorkerState.BOOTING
    board.show(Slot(slot, state, pid=child.pid, started=time.monotonic()))
    for line in sys.stdin:
        if line.strip() == "cell":
            view = board.read(slot)
            silent = None if view.beat is None else time.monotonic() - view.beat
            answer = Cell(child.pid, str(board.child_state(slot)), view.loop, silent, view.memory_bytes)
            print(json.dumps(asdict(answer)), flush=True)
        else:
            deadline = time.monotonic() + END_SECONDS
            while (code := child.reap()) is None:
                time.sleep(0.01)
                if time.monotonic() > deadline:
                    child.send(signal.SIGKILL)
            text = stacks.take(folder, slot)
            end = End(code, text, stacks.take(folder, slot) is None and not list(folder.glob("stacks*")))
            print(json.dumps(asdict(end)), flush=True)
            return
    child.send(signal.SIGKILL)


if __name__ == "__main__":
    serve()
