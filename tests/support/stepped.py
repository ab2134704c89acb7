"""Stopping a transaction at a chosen statement, so that races are stepped through and never slept for.

`Stepped` is the real `Database`; it only waits at its gate before it sends a statement which contains given words
(or "COMMIT"). `until_blocked` waits until PostgreSQL itself says that somebody waits for a lock.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg

from reconsup.store.database import Database, Transaction

DEADLINE_SECONDS = 8.0
T = TypeVar("T")


class Stepped(Database):
    """A Database that stops before the first statement that contains `before`; `go()` lets it pass.

    `in_transaction`: also a single statement runs in a transaction, so that it can be stopped before its COMMIT.
    `is_frozen`: it does not mind how long it stands there, as a stopped process would not: only the server can.
    """

    def __init__(
        self,
        url: str,
        *,
        before: str | None = None,
        name: str = "stepped",
        lease_seconds: float = 30.0,
        in_transaction: bool = False,
        is_frozen: bool = False,
    ) -> None:
        super().__init__(url, application_name=name, lease_seconds=lease_seconds)
        if is_frozen:
            self._wait_seconds = 3600.0
        self.name = name
        self.sent: list[str] = []
        self.errors: list[str | None] = []  # the SQLSTATE of each statement that failed, also of those tried again
        self._before = before
        self._in_transaction = in_transaction
        self._reached = asyncio.Event()
        self._may_go = asyncio.Event()

    async def fetch(self, sql: Any, parameters: dict[str, Any] | None = None) -> list[Any]:
        """Run one statement, if so wished in a transaction that can be stopped."""
        if not self._in_transaction:
            return await super().fetch(sql, parameters)

        async def work(transaction: Transaction) -> list[Any]:
            return await transaction.rows(sql, parameters)

        return await self.transact(work)

    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run the work; stop before COMMIT if that is what to stop before."""

        async def gated(transaction: Transaction) -> T:
            result = await work(transaction)
            await self._gate("COMMIT")
            return result

        return await super().transact(gated)

    async def _send(self, connection: Any, sql: Any, parameters: dict[str, Any] | None) -> Any:
        await self._gate(sql)
        self.sent.append(" ".join(sql.split()))
        try:
            return await super()._send(connection, sql, parameters)
        except psycopg.Error as error:
            self.errors.append(error.sqlstate)
            raise

    async def _gate(self, statement: str) -> None:
        if self._before is not None and self._before in statement:
            self._before = None
            self._reached.set()
            await self._may_go.wait()

    async def reached(self) -> None:
        """Wait until it has stopped."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self._reached.wait()

    def go(self) -> None:
        """Let it pass."""
        self._may_go.set()


def without(url: str, *methods: str) -> str:
    """The address of the database for one whose statements are planned without these, e.g. hashjoin."""
    return f"{url}?options={'%20'.join(f'-cenable_{method}%3Doff' for method in methods)}"


async def until_blocked(url: str, name: str) -> None:
    """Wait until the connection with this application name waits for a lock."""
    await until(url, "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'", name)


async def until_done_or_blocked(url: str, name: str, task: asyncio.Task[Any]) -> None:
    """Wait until the task is done, as it is when a guard is missing, or its connection waits for a lock."""
    blocked = asyncio.create_task(until_blocked(url, name))
    await asyncio.wait({task, blocked}, return_when=asyncio.FIRST_COMPLETED)
    blocked.cancel()
    await asyncio.gather(blocked, return_exceptions=True)


async def until(url: str, query: Any, *values: Any) -> None:
    """Wait until a query has a row; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while not await (await connection.execute(query, values)).fetchall():
            assert time.monotonic() < deadline, f"never came true: {query}"
            await asyncio.sleep(0.005)
