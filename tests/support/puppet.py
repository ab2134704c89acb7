"""A worker on strings: a Desk that stops wherever it waits for PostgreSQL or the chain, and goes on when it is told to.

So a script decides who of several workers moves, where one dies and where one freezes; a seed is the same course each
time. Between two stops a worker runs by itself. A dead worker's connections are gone at once and it writes nothing
more, not even while Python takes its task apart; what it had leased stays leased.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from random import Random
from typing import Any, TypeVar

import psycopg

from reconsup.store import database as store
from reconsup.store.database import Transaction
from tests.support.desk import Desk
from tests.support.liar import Node
from tests.support.postgres import Database

T = TypeVar("T")
LEASE_SECONDS = 120.0
RPC_SECONDS = 30.0
MORE_SCANS_AT_A_LIAR = 3
BLOCKED_SECONDS = 0.01  # who has not stopped again by then may wait for a lock: PostgreSQL is asked
SAFE = ("rpc", "rpc answered", "statement", "answered", "transaction")  # stops at which no row is locked


class _Strings:
    """Where a worker stops. `waiting`: its stops, oldest first (two at a time where it does two things at once)."""

    def __init__(self) -> None:
        self.is_free = True
        self.is_dead = False
        self.moved = asyncio.Event()
        self.waiting: list[tuple[str, asyncio.Future[None]]] = []

    async def stop(self, where: str) -> None:
        """Stop here unless free."""
        if self.is_dead:
            raise asyncio.CancelledError
        if self.is_free:
            return
        place = (where, asyncio.get_running_loop().create_future())
        self.waiting.append(place)
        self.moved.set()
        try:
            await place[1]
        finally:
            if place in self.waiting:
                self.waiting.remove(place)

    def pull(self) -> None:
        """Let the oldest stop go on."""
        _, place = self.waiting.pop(0)
        self.moved.clear()
        place.set_result(None)

    def let_go(self) -> None:
        """Let all go on, and never stop again."""
        self.is_free = True
        while self.waiting:
            self.pull()

    def cut(self) -> None:
        """Nobody goes on."""
        self.is_dead = True
        for _, place in self.waiting:
            place.cancel()
        self.waiting.clear()


class _Stopping(store.Database):
    """The real Database, which stops before and after each statement, each transaction, and before COMMIT."""

    def __init__(self, url: str, strings: _Strings, *, application_name: str, lease_seconds: float) -> None:
        super().__init__(url, application_name=application_name, lease_seconds=lease_seconds)
        self._strings = strings
        self._is_inside = False

    async def fetch(self, sql: Any, parameters: dict[str, Any] | None = None) -> list[Any]:
        """One statement."""
        await self._strings.stop("statement")
        rows = await super().fetch(sql, parameters)
        await self._strings.stop("answered")
        return rows

    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """A transaction."""

        async def stopping(transaction: Transaction) -> T:
            self._is_inside = True
            try:
                result = await work(transaction)
                await self._strings.stop("commit")
            finally:
                self._is_inside = False
            return result

        await self._strings.stop("transaction")
        result = await super().transact(stopping)
        await self._strings.stop("answered")
        return result

    async def _send(self, connection: Any, sql: Any, parameters: dict[str, Any] | None) -> Any:
        if self._is_inside:
            await self._strings.stop("inside")
        return await super()._send(connection, sql, parameters)

    async def _connected(self) -> Any:
        if self._strings.is_dead:
            raise asyncio.CancelledError
        return await super()._connected()

    def cut(self) -> None:
        """The connection is gone, as with its process."""
        if self._connection is not None:
            self._connection.pgconn.finish()


class Puppet(Desk):
    """A worker on strings. `course`: what it does now; None when it is at rest."""

    def __init__(
        self, database: Database, outsider: psycopg.Connection[Any], nodes: Sequence[Node], slot: int, **figures: Any
    ) -> None:
        self._outsider = outsider
        self.strings = _Strings()
        self.course: asyncio.Task[Any] | None = None
        self._databases: list[_Stopping] = []
        self._nodes_asked = nodes
        self._path = f"/{slot}-{id(self)}"
        for node in nodes:
            node.gates[self._path] = self.strings.stop
        urls = [node.url + self._path for node in nodes]
        figures = {"lease_seconds": LEASE_SECONDS, "rpc_timeout_seconds": RPC_SECONDS} | figures
        super().__init__(database, urls, slot=slot, **figures)

    async def _store(self, part: str) -> store.Database:
        database = _Stopping(
            self._url, self.strings, application_name=f"{self.owner}/{part}", lease_seconds=self.watch.lease_seconds
        )
        self._databases.append(database)
        return await self._stack.enter_async_context(database)

    async def work(self) -> None:
        """All that a worker does, after some scans more where the node lies."""
        for _ in range(MORE_SCANS_AT_A_LIAR if any(node.schedule for node in self._nodes_asked) else 0):
            await self.scan()
        await super().work()

    def begin(self, course: Coroutine[Any, Any, Any] | None = None) -> None:
        """Begin to work, or a part of it; it stops at the first string."""
        self.strings.is_free = False
        self.course = asyncio.create_task(course or self.work())

    @property
    def where(self) -> str:
        """At which kind of stop it stands."""
        return self.strings.waiting[0][0] if self.strings.waiting else "rest"

    async def go_on(self, stops: int = 1, *, to_safety: bool = False) -> bool:
        """Pass so many stops (and then on to one where it holds no lock); whether it has come to rest."""
        while self.course is not None:
            await self._until_stopped()
            if self.course.done():
                self.finished()
                break
            where = self.strings.waiting[0][0] if self.strings.waiting else "blocked"
            if where == "blocked" or (stops <= 0 and not (to_safety and where not in SAFE)):
                break
            stops -= 1
            self.strings.pull()
        return self.course is None

    async def go_on_to(self, where: str) -> bool:
        """Go on to the next stop of this kind; whether it has come to rest instead."""
        while not await self.go_on(0) and self.where != where:
            await self.go_on()
        return self.course is None

    async def _until_stopped(self) -> None:
        assert self.course is not None
        while not (self.strings.waiting or self.course.done()):
            moved = asyncio.create_task(self.strings.moved.wait())
            done, _ = await asyncio.wait(
                {moved, self.course}, timeout=BLOCKED_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            moved.cancel()
            if not done and self._outsider.execute(_BLOCKED, [f"{self.owner}/%"]).fetchall():
                return

    async def to_the_end(self) -> None:
        """Work, or go on, until at rest."""
        if self.course is None:
            self.course = asyncio.create_task(self.work())
        self.strings.let_go()
        await self.course
        self.finished()

    def finished(self) -> None:
        """Take note of the end; what it died of is raised."""
        assert self.course is not None
        course, self.course = self.course, None
        self.strings.let_go()
        course.result()

    async def die(self) -> None:
        """As with SIGKILL: wherever it is, nothing more leaves it."""
        self.strings.cut()
        for database in self._databases:
            database.cut()
        if self.course is not None:
            self.course.cancel()
            with suppress(BaseException):  # whatever its undoing says, nobody hears it
                await self.course
            self.course = None
        for node in self._nodes_asked:
            node.gates.pop(self._path, None)
        with suppress(Exception):
            await self._stack.aclose()


_BLOCKED = "SELECT FROM pg_stat_activity WHERE application_name LIKE %s AND wait_event_type = 'Lock'"


async def interleaved(puppets: Sequence[Puppet], random: Random) -> None:
    """Let them, who have begun, work beside each other to the end, one stop at a time, in an order that is drawn."""
    while live := [each for each in puppets if each.course is not None]:
        await random.choice(live).go_on()
