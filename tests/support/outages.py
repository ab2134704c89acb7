"""The ways in which a database is away, each begun and ended while a program works; and how soon all is well again.

A `Way` is a pair of functions on a server and the road to it. What counts as its return: the moment at which a new
connection could be had again.
"""

import os
import signal
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.phoenix import Phoenix
from tests.support.postgres import insert_request
from tests.support.program import Program, wait_for
from tests.support.silent_road import Road

AWAY_SECONDS = 4.0


@dataclass(frozen=True)
class Scene:
    """A program that works on a server, by a road."""

    phoenix: Phoenix
    road: Road
    program: Program


def server_pids(phoenix: Phoenix) -> list[int]:
    """The server and all its children."""
    pid = phoenix.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


@contextmanager
def stopped(scene: Scene) -> Iterator[None]:
    """Shut down; connections are refused."""
    scene.phoenix.fall(immediate=False)
    yield
    scene.phoenix.rise()


@contextmanager
def crashed(scene: Scene) -> Iterator[None]:
    """As after a crash of the server: it says "the database system is starting up" for a while."""
    scene.phoenix.fall(immediate=True)
    yield
    scene.phoenix.rise()


@contextmanager
def frozen(scene: Scene) -> Iterator[None]:
    """Every process of the server is stopped: connections are accepted by the kernel, and nothing is said."""
    pids = server_pids(scene.phoenix)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


@contextmanager
def silent(scene: Scene) -> Iterator[None]:
    """Nothing moves, on old connections or new ones; nobody hangs up. Old ones never speak again."""
    scene.road.set_dead(True)
    yield
    scene.road.set_dead(False)


@contextmanager
def forgotten(scene: Scene) -> Iterator[None]:
    """A firewall forgot the connections that are open; new ones work at once."""
    yield
    assert scene.road.silence() > 0


@contextmanager
def cut(scene: Scene) -> Iterator[None]:
    """All connections are ended; new ones work at once."""
    yield
    scene.phoenix.database.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'reconsup/%%'", []
    )


Way = Callable[[Scene], AbstractContextManager[None]]
WAYS = (stopped, crashed, frozen, silent, forgotten, cut)


def recovery(scene: Scene, way: Way, seconds: float = AWAY_SECONDS) -> tuple[float, float]:
    """Let the database be away for so long; after its return, seconds until /readyz is 200, and until a due request
    was looked at."""
    with way(scene):
        time.sleep(seconds)
    returned_at = time.monotonic()
    with scene.phoenix.database.connect() as connection:
        id_ = insert_request(connection)
        is_ready_at = is_looked_at = 0.0

        def well() -> bool:
            nonlocal is_ready_at, is_looked_at
            if not is_ready_at and _is_ready(scene.program):
                is_ready_at = time.monotonic()
            looked = connection.execute(
                "SELECT reconcile_lease_epoch > 0 FROM app.payment_requests WHERE id = %s", [id_]
            ).fetchone()
            if not is_looked_at and looked == (True,):
                is_looked_at = time.monotonic()
            return bool(is_ready_at and is_looked_at)

        wait_for("it is ready, and a due request was looked at", well, 60)
    return is_ready_at - returned_at, is_looked_at - returned_at


def _is_ready(program: Program) -> bool:
    try:
        return program.get("/readyz")[0] == 200
    except (OSError, urllib.error.URLError):
        return False
