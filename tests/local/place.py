"""The folder in which all of it lives: its parts, its plan, and the lock that lets one command in at a time."""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.local.parts import Part, write_whole
from tests.local.trouble import Trouble

PREFIX = "local-"


@dataclass(frozen=True)
class Plan:
    """What was started last: where the rows are, which chain, which supervisors (name → port)."""

    database_url: str
    workers: int
    poll_seconds: float
    lease_seconds: float
    ports: Mapping[str, int]
    chain: Mapping[str, Any] | None  # None: the endpoints are given


class Place:
    """One such folder, by its absolute path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.database, self.chain = Part(self.folder, "database"), Part(self.folder, "chain")

    def supervisor(self, name: str) -> Part:
        """The supervisor of that name, whether it runs or not."""
        return Part(self.folder, name)

    def env_file(self, name: str) -> Path:
        """What that supervisor is started with."""
        return self.folder / f"{name}.env"

    def supervisors(self) -> list[Part]:
        """Those of which there is a record, in order of number."""
        names = [path.stem for path in self.folder.glob(f"{PREFIX}*.json")]
        return [self.supervisor(name) for name in sorted(names, key=lambda name: int(name.removeprefix(PREFIX)))]

    def facts(self, part: Part) -> dict[str, Any]:
        """What a keeper said of what it keeps; empty if it says nothing yet."""
        try:
            facts: dict[str, Any] = json.loads((self.folder / f"{part.name}-facts.json").read_text())
        except (OSError, ValueError):
            return {}
        return facts

    def note(self, plan: Plan) -> None:
        """Keep the plan for the commands after this one."""
        write_whole(self.folder / "plan", asdict(plan))

    def plan(self) -> Plan | None:
        """The plan that was noted."""
        try:
            return Plan(**json.loads((self.folder / "plan").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def remove(self) -> None:
        """Take away what was made here, and nothing else: who names a folder of his own keeps what is in it."""
        for name in ("database", "chain"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        kinds = (
            "database*.json",
            "chain*.json",
            f"{PREFIX}*.json",
            "database.log",
            "chain.log",
            f"{PREFIX}*.log",
            f"{PREFIX}*.env",
            "plan",
            "lock",
        )
        for kind in kinds:
            for path in self.folder.glob(kind):
                path.unlink()
        with suppress(OSError):  # not empty
            self.folder.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other command out."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise Trouble(f"cannot write in {self.folder} ({error.strerror}): choose a folder with --folder") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Trouble(f"another command is at work in {self.folder}: wait until it has ended") from None
        try:
            yield
        finally:
            os.close(descriptor)


def shown(path: Path) -> str:
    """As short as it can be typed."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def is_free(port: int) -> bool:
    """Whether somebody could listen on that port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """Any port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
