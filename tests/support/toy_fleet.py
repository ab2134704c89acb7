"""A real supervisor with toy children: `python -m tests.support.toy_fleet DIRECTORY JSON`.

What each child is to do stands in the JSON (`Play`); what happened is appended to DIRECTORY/events.jsonl, one line
an event, so that a test can wait for it.
"""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reconsup import logs
from reconsup.fleet import posix, scale, supervisor
from reconsup.fleet.plan import Limits
from reconsup.fleet.posix import Seat, WorkerState
from reconsup.fleet.scoreboard import Load


@dataclass
class Play:
    """`worker`: what all workers do, or one entry a slot. The limits are the plan's."""

    workers: int = 2
    worker: str | list[str] = "idle"
    monitor: str = "idle"
    probe: str = "ok"
    limits: dict[str, float] = field(default_factory=dict)
    twist: str = ""
    most: int = 0  # 0: as many as `workers`
    name: str = "first"  # told at birth

    def text(self) -> str:
        return json.dumps(asdict(self))


class Toy:
    def __init__(self, directory: Path, play: Play) -> None:
        self.directory = directory
        self.play = play

    def tell(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, "pid": os.getpid(), **fields}) + "\n"
        fd = os.open(self.directory / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, line.encode())
        os.close(fd)

    def worker(self, seat: Seat) -> int:
        part = self.play.worker if isinstance(self.play.worker, str) else self.play.worker[seat.slot]
        return self.act(seat, part)

    def monitor(self, seat: Seat) -> int:
        return self.act(seat, self.play.monitor)

    def probe(self, seat: Seat) -> int:
        return 0 if self.play.probe == "ok" else self.act(seat, self.play.probe)

    def act(self, seat: Seat, part: str) -> int:
        self.tell(
            "born",
            slot=seat.slot,
            owner=seat.owner,
            play=self.play.name,
            sid=os.getsid(0),
            descriptors=_descriptors(),
            systemd=sum(name.startswith(("NOTIFY", "WATCHDOG")) for name in os.environ),
        )
        act = getattr(self, "_" + part.partition(":")[0].replace("-", "_"))
        code: int = act(seat, *part.split(":")[1:])
        return code

    # what a child can do

    def _exit(self, _: Seat, code: str) -> int:
        return int(code)

    def _exit_until(self, seat: Seat, code: str, name: str) -> int:
        return self._idle(seat) if (self.directory / name).exists() else int(code)

    def _raise(self, _: Seat) -> int:
        raise RuntimeError("the toy is broken")

    def _leave_by_system_exit(self, _: Seat) -> int:
        sys.exit(7)

    def _term_itself(self, seat: Seat) -> int:
        """As early as any signal can come."""
        os.kill(os.getpid(), signal.SIGTERM)
        self.tell("survived", slot=seat.slot)
        return 1

    def _frozen(self, seat: Seat) -> int:
        """Ready, and then no sign of life."""
        self._ready(seat)
        while True:
            time.sleep(0.05)

    def _loads(self, seat: Seat, name: str) -> int:
        """A monitor that sees work wait until that file is there, and then none."""
        seat.scoreboard.set_load(Load(0.0, 0.0, time.monotonic()))
        return asyncio.run(self._loop(seat, is_calm=(self.directory / name).exists))

    def _silent(self, seat: Seat) -> int:
        """Never ready."""
        self.tell("silent", slot=seat.slot)
        time.sleep(3600)
        return 1

    def _silent_the_second_time(self, seat: Seat) -> int:
        is_first = not (self.directory / "first").exists()
        (self.directory / "first").touch()
        return self._idle(seat) if is_first else self._silent(seat)

    def _stubborn(self, seat: Seat) -> int:
        """Ready, but deaf to everything that can be ignored."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda got, _: self.tell("ignored", slot=seat.slot, signal=got))
        self._ready(seat)
        while True:
            time.sleep(0.05)

    def _stubborn_orphan(self, seat: Seat) -> int:
        """Never leaves, except that it has the kernel end it when the supervisor is gone."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._ready(seat)
        while not seat.is_orphaned():
            time.sleep(0.01)
        seat.end_within(0.3)
        self.tell("orphaned", slot=seat.slot)
        while True:
            time.sleep(1)

    def _idle(self, seat: Seat) -> int:
        """As a real worker: an event loop, TERM and the lifeline drain, the bell is heard."""
        return asyncio.run(self._loop(seat))

    def _undertaker(self, seat: Seat, acknowledges: str) -> int:
        """A monitor: tells who is dead at every ring."""
        return asyncio.run(self._loop(seat, looks=True, acknowledges=acknowledges == "yes"))

    def _undertaker_that_dies(self, seat: Seat) -> int:
        """Dies the first time it sees somebody dead, and acknowledges them the second time."""
        is_first = not (self.directory / "died").exists()
        (self.directory / "died").touch() if is_first and seat.scoreboard.dead() else None
        return asyncio.run(self._loop(seat, looks=True, acknowledges=not is_first, dies=is_first))

    async def _loop(
        self,
        seat: Seat,
        *,
        looks: bool = False,
        acknowledges: bool = False,
        dies: bool = False,
        is_calm: Callable[[], bool] | None = None,
    ) -> int:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        listener = seat.bell.listen()

        def look() -> None:
            listener.drain()
            self.tell("rung", slot=seat.slot)
            dead = seat.scoreboard.dead() if looks else []
            if dead:
                self.tell("dead", owners=[each.owner for each in dead], rows=[each.row for each in dead])
                if dies:
                    (self.directory / "died").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            for each in dead if acknowledges else []:
                seat.scoreboard.acknowledge(each.index)

        def stop(cause: str) -> None:
            if not stopping.is_set():
                self.tell("draining", slot=seat.slot, cause=cause)
                seat.cell.set_state(WorkerState.DRAINING)
            stopping.set()

        def orphaned() -> None:
            loop.remove_reader(seat.lifeline_fd)
            seat.end_within(5)
            stop("orphaned")

        loop.add_signal_handler(signal.SIGTERM, stop, "TERM")
        loop.add_reader(seat.lifeline_fd, orphaned)
        loop.add_reader(listener.fileno(), look)
        self._ready(seat)
        look()
        while not stopping.is_set():
            now = time.monotonic()
            seat.cell.beat(now, "toy")
            if is_calm is not None:
                seat.scoreboard.set_load(Load(0.0 if is_calm() else 100.0, 0.0, now))
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), 0.05)
        if looks:
            look()
        self.tell("left", slot=seat.slot)
        return 0

    def _ready(self, seat: Seat) -> None:
        seat.cell.set_row(f"row-of-{seat.slot}")
        seat.cell.set_state(WorkerState.READY)
        self.tell("ready", slot=seat.slot, owner=seat.owner)


def _descriptors() -> list[str]:
    """What this process has open besides stdio."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            found.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return sorted(what if "anon" in what else what.partition(":")[0] for number, what in found if number > 2)


def _twist(toy: Toy) -> None:
    """What is wrong with the supervisor's own surroundings."""
    match toy.play.twist:
        case "thread":
            threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        case "quick":
            # looks and scales at once
            supervisor.LOOK_SECONDS = 0.05
            scale.RISE_SECONDS, scale.FALL_SECONDS, scale.SETTLE_SECONDS = 0.1, 0.5, 0.1
        case "no-pidfd":
            # as on an old kernel
            posix._pidfd = lambda _: None  # type: ignore[assignment]
        case "fork-fails":
            real, failures = os.fork, iter([True, True])

            def fork() -> int:
                if next(failures, False):
                    raise BlockingIOError(11, "Resource temporarily unavailable")
                return real()

            os.fork = fork


def main() -> int:
    directory, play = Path(sys.argv[1]), Play(**json.loads(sys.argv[2]))
    logs.configure("json")
    toy = Toy(directory, play)
    _twist(toy)
    options = supervisor.Options(base="toy", version="0", metrics_directory=directory)
    return supervisor.run(setup_of(toy), options, lambda: _again(directory))


def setup_of(toy: Toy) -> supervisor.Setup:
    play = toy.play
    return supervisor.Setup(
        supervisor.Roles(worker=toy.worker, monitor=toy.monitor, probe=toy.probe),
        least=play.workers,
        most=play.most or play.workers,
        limits=Limits(**play.limits),  # type: ignore[arg-type] # numbers, whole ones too
    )


def _again(directory: Path) -> supervisor.Setup:
    """At HUP: the play that stands in the folder now."""
    text = (directory / "again.json").read_text()
    if text.startswith("refused: "):
        raise supervisor.SetupRefused(*text.removeprefix("refused: ").split("; "))
    return setup_of(Toy(directory, Play(**json.loads(text))))


if __name__ == "__main__":
    sys.exit(main())
