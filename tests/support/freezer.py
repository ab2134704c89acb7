"""Children that stop themselves in the middle of a transaction, as a frozen process does: SIGSTOP, and no clean-up.

`python -m tests.support.freezer` forks one for each line it reads, so that a test pays for Python's start once. Each
line is a pickled `Errand`; the answer is the child's process id, and when the child has ended, what became of it.
"""

import asyncio
import base64
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from reconsup.store.database import Database, Transaction

T = TypeVar("T")
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Errand:
    """What a child does: `do(scene, database)`, stopping before its statement number `at` (from 1; COMMIT is last)."""

    url: str
    lease_seconds: float
    do: Callable[[Any, Database], Awaitable[Any]]
    scene: Any
    at: int


class Freezing(Database):
    """A Database that stops its own process before a statement of a transaction."""

    def __init__(self, url: str, *, name: str, lease_seconds: float, at: int) -> None:
        super().__init__(url, application_name=name, lease_seconds=lease_seconds)
        self._at = at
        self._seen = 0

    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        async def stopping(transaction: Transaction) -> T:
            result = await work(transaction)
            self._step()
            return result

        return await super().transact(stopping)

    async def _send(self, connection: Any, sql: Any, parameters: dict[str, Any] | None) -> Any:
        self._step()
        return await super()._send(connection, sql, parameters)

    def _step(self) -> None:
        self._seen += 1
        if self._seen == self._at:
            os.kill(os.getpid(), signal.SIGSTOP)


def run(errand: Errand) -> str:
    """The child's whole life; how it ended."""

    async def work() -> None:
        name = f"frozen-{os.getpid()}"
        async with Freezing(errand.url, name=name, lease_seconds=errand.lease_seconds, at=errand.at) as worker:
            await errand.do(errand.scene, worker)

    try:
        asyncio.run(work())
    except Exception as error:  # noqa: BLE001 - the test judges it
        return f"{type(error).__name__}: {error}"
    return "done"


def serve() -> None:
    """Fork a child for each line of stdin; tell its process id, then wait for it and tell how it ended."""
    for line in sys.stdin:
        errand = pickle.loads(base64.b64decode(line))
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, run(errand).encode())
            os._exit(0)
        os.close(writer)
        print(child, flush=True)
        os.waitpid(child, 0)
        with open(reader) as said:
            print(" ".join(said.read().split()) or "killed", flush=True)


class Freezer:
    """The test's end: one child after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.freezer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self, errand: Errand) -> int:
        """Send a child on its errand; its process id, once it has stopped itself."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(base64.b64encode(pickle.dumps(errand)).decode() + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        deadline = time.monotonic() + STOP_SECONDS
        while (state := _state(child)) != "T":
            if state not in ("R", "S", "D") or time.monotonic() > deadline:
                self._process.stdout.readline()
                raise AssertionError(f"it did not come to its statement {errand.at}")
        return child

    def finish(self, child: int) -> str:
        """Let it go on; how it ended."""
        assert self._process.stdout
        os.kill(child, signal.SIGCONT)
        return self._process.stdout.readline().strip()


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"


if __name__ == "__main__":
    serve()
