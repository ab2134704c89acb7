"""Faults to plant into the real program, so that one of its processes hangs, or runs out of memory.

`plant(kind)` patches this process, before the fork; `code(kind)` is for `Program(code=…)` (tests.support.program): the
real program, planted. With a `marker` (the path of a file that is not there yet) one process of the fleet springs the
plant, once; without it each does, always.

- boot: never ready
- database: a statement that never ends, without any of the time-outs around it
- rpc: a call to the endpoint that nobody ends
- busy: Python runs in circles, and no other line of the process gets its turn
- stopped: SIGSTOP
- memory: takes memory until there is no more
- monitor: the janitor waits for ever; busy-monitor: as busy
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from reconsup.chain.rpc import Transport
from reconsup.monitor.janitor import Janitor
from reconsup.store.database import Database
from reconsup.worker.process import _Worker
from reconsup.worker.reconciler import Reconciler

Spring = Callable[[Any], Awaitable[None]]


def code(kind: str, marker: Path | None = None) -> str:
    """Python that runs the program with a plant in it."""
    given = None if marker is None else str(marker)
    return (
        f"from tests.support import plants; plants.plant({kind!r}, {given!r})\nfrom reconsup.cli import main\nmain()\n"
    )


def plant(kind: str, marker: str | None = None) -> None:
    """Patch this process."""
    place, name, spring = PLANTS[kind]
    real = getattr(place, name)

    async def planted(self: Any, *arguments: Any) -> Any:
        if _is_mine(marker):
            await spring(self)
        return await real(self, *arguments)

    setattr(place, name, planted)


def _is_mine(marker: str | None) -> bool:
    if marker is None:
        return True
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


async def wait_for_ever(_: Any) -> None:
    await asyncio.Event().wait()


async def ask_for_ever(reconciler: Reconciler) -> None:
    """PostgreSQL works on it, and neither side has set it an end."""
    database: Database = reconciler._databases[0]
    connection = await database._connected()
    await connection.execute("SET statement_timeout = 0")
    await connection.execute("SELECT pg_sleep(86400)")


async def run_in_circles(_: Any) -> None:
    while True:
        pass


async def stop(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


async def take_all_memory(_: Any) -> None:
    taken = []
    while True:
        taken.append(bytes(2**20))


PLANTS: dict[str, tuple[type, str, Spring]] = {
    "boot": (_Worker, "_wait_for_database", wait_for_ever),
    "database": (Reconciler, "look_around", ask_for_ever),
    "rpc": (Transport, "_post", wait_for_ever),
    "busy": (Reconciler, "look_around", run_in_circles),
    "stopped": (Reconciler, "look_around", stop),
    "memory": (Reconciler, "look_around", take_all_memory),
    "monitor": (Janitor, "work", wait_for_ever),
    "busy-monitor": (Janitor, "work", run_in_circles),
}
