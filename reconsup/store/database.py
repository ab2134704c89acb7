"""One connection to PostgreSQL, made again when it breaks, and the only two ways to use it.

`fetch` sends one autocommitted statement. `transact` sends several, each after the one before was answered, and
COMMIT only when the work itself returned: a fence that did not hold can still roll back. Every wait is bounded, on
the server (lock, statement and idle time-outs, each at most a third of the lease) and on the client (two thirds, and up
to ten seconds in which psycopg tries to cancel what was sent): a frozen process must not hold a network, nor a silent
network a process. Statements are not sent as a pipeline: between two of its statements PostgreSQL counts nobody as
idle, and a process frozen there would keep its locks for ever.

Nothing here depends on a session: no LISTEN, no advisory lock, no prepared statement, so a PgBouncer in
transaction mode changes nothing.

Connections of one process may share a `Presence`: then one of them asks for all while the database is away, the others
fail at once, and an answer that is lost without a word is given up within a second or two.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import Any, LiteralString, Self, TypeVar

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus
from psycopg.rows import namedtuple_row

from reconsup.store import adapters
from reconsup.store.errors import SchemaBehind, StoreRefused, StoreRejected, StoreUnavailable
from reconsup.store.presence import CONNECT_SECONDS, Line, Presence, first_line, refusal

RETRIES_MAX = 5
RETRY_SECONDS = 0.02
CUT_SECONDS = 0.1  # where a Presence is, and nothing was heard for so long, it cuts first
CANCEL_SECONDS = 10  # psycopg's own bounds while it takes back what was sent

# Rows are named tuples: to be unpacked in the order of the statement, or read by column name. They are untyped
# and end at this room's doors.
Row = Any
Connection = Line
T = TypeVar("T")

# Called when a wait begins, with the seconds it lasts at most, and with 0 when it, or a statement in it, has ended.
OnWait = Callable[[float], None]

_RETRIED = (errors.DeadlockDetected, errors.LockNotAvailable, errors.ForeignKeyViolation)

# Classes of SQLSTATE: connection, transaction rollback, resources, operator intervention, system; "" is libpq's own.
_BEFALLING = ("", "08", "40", "53", "57", "58")


class Database:
    """A connection that one task owns. Not to be shared: statements of two tasks would interleave.

    `application_name` lets the janitor end the connections of a dead incarnation. Errors of every method:
    StoreUnavailable, StoreRefused, StoreRejected, SchemaBehind. `presence` is shared with the process's other ones and
    goes by the same `application_name`. `retries_max`: how often to try again when others were in the way.
    """

    def __init__(
        self,
        url: str,
        *,
        application_name: str,
        lease_seconds: float,
        presence: Presence | None = None,
        retries_max: int = RETRIES_MAX,
        on_wait: OnWait = lambda _: None,
    ) -> None:
        self._url = url
        self._presence = presence
        self._retries_max = retries_max
        self._on_wait = on_wait
        self.was_cut = False  # what failed last was a dead connection to a database that is there: try again at once
        self._application_name = application_name
        self._wait_seconds = lease_seconds / 3
        wait_ms = int(self._wait_seconds * 1000)
        self._begin = _BEGIN.format(wait_ms=wait_ms, lock_ms=wait_ms // 2).encode()
        self._connection: Connection | None = None
        self.statements = 0  # sent so far, without BEGIN and COMMIT

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def is_away(self) -> bool:
        """Whether something is known to be wrong: every use fails at once, until it has `returned`."""
        return self._presence is not None and self._presence.problem is not None

    async def returned(self) -> None:
        """Wait until nothing is known to be wrong."""
        if self._presence is not None:
            await self._presence.returned()

    async def close(self) -> None:
        """Close the connection if there is one; the next use makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                await connection.close()

    async def fetch(self, sql: LiteralString, parameters: dict[str, Any] | None = None) -> list[Row]:
        """Run one autocommitted statement; its rows."""

        async def work(connection: Connection) -> list[Row]:
            cursor = await self._send(connection, sql, parameters)
            return await cursor.fetchall() if cursor.description else []

        return await self._with_retries(work)

    async def is_direct(self) -> bool:
        """Whether we speak to PostgreSQL itself; False where a pooler shares its connections among its clients.

        PostgreSQL names its own process when a connection is made; a pooler, which may have none yet, makes one up.
        """

        async def work(connection: Connection) -> bool:
            ((pid,),) = await (await self._send(connection, "SELECT pg_backend_pid()", None)).fetchall()
            return bool(pid == connection.info.backend_pid)

        return await self._with_retries(work)

    async def transact(self, work: Callable[["Transaction"], Awaitable[T]]) -> T:
        """Run `work` in one READ COMMITTED transaction; what it returns is committed, what it raises rolls back.

        A deadlock (40P01), a lock not had in time (55P03) or a request that was deleted under our hands (23503)
        runs `work` again from its beginning: it must have no effect outside the transaction.
        """

        async def attempt(connection: Connection) -> T:
            await connection.execute(self._begin)
            result = await work(Transaction(self, connection))
            await connection.execute("COMMIT")
            return result

        return await self._with_retries(attempt)

    async def _with_retries(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        give_up_at = time.monotonic() + 3 * self._wait_seconds
        for attempt in itertools.count():
            try:
                return await self._bounded(work)
            except _RETRIED as error:
                if attempt == self._retries_max or time.monotonic() > give_up_at:
                    if isinstance(error, errors.ForeignKeyViolation):  # nobody was in the way: it stays like that
                        raise StoreRejected(first_line(error)) from error
                    raise StoreUnavailable(f"others were in the way for too long ({error.sqlstate})") from error
                await asyncio.sleep(RETRY_SECONDS * 2**attempt * (0.5 + random.random()))  # noqa: S311 - jitter
        raise AssertionError("unreachable")

    async def _bounded(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work` on a live connection within the client's bound; translate what goes wrong."""
        connection = await self._connected()
        seconds_max = self._wait_seconds * 2
        self._on_wait(seconds_max + CUT_SECONDS + CANCEL_SECONDS)
        try:
            # The server's time-outs come first; this one is for a server that does not answer at all.
            with self._expecting(connection, connection.cut, seconds_max):
                async with asyncio.timeout(seconds_max + CUT_SECONDS):
                    return await work(connection)
        except _RETRIED:
            await self._roll_back(connection)
            raise
        except (psycopg.Error, TimeoutError) as error:
            meaning = _translated(error)
            self._tell(meaning, connection)
            await (self.close() if type(meaning) is StoreUnavailable else self._roll_back(connection))
            raise meaning from error
        except asyncio.CancelledError:
            await self.close()  # the answer to what was sent is not coming: do not reuse the connection
            raise
        except BaseException:
            # The work's own refusal: the transaction must not stay open behind us.
            await self._roll_back(connection)
            raise
        finally:
            self._on_wait(0)

    async def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.closed and not self._is_stale(self._connection):
            return self._connection
        await self.close()
        if self._presence is not None:
            self._presence.check()
        generation = 0 if self._presence is None else self._presence.generation
        self._on_wait(2 * (CONNECT_SECONDS + 1))  # one that hangs, and another
        try:
            self._connection = await self._connect()
        except (psycopg.Error, TimeoutError, OSError) as error:
            problem = refusal(error)
            if self._presence is not None:
                self._presence.lost(problem)
            raise problem from error
        self._connection.generation = generation
        self.was_cut = False
        adapters.register(self._connection)
        return self._connection

    async def _connect(self) -> Connection:
        """A new connection. One that hangs is given up as soon as another one of this process was had."""

        async def connect() -> Connection:
            async with asyncio.timeout(CONNECT_SECONDS + 1):
                return await Line.connect(
                    self._url,
                    autocommit=True,
                    row_factory=namedtuple_row,
                    prepare_threshold=None,
                    connect_timeout=CONNECT_SECONDS,
                    application_name=self._application_name,
                    client_encoding="UTF8",  # what lists are sent in, see adapters
                    tcp_user_timeout=int(self._wait_seconds * 2000),
                    keepalives_idle=max(1, int(self._wait_seconds)),
                )

        if self._presence is None:
            return await connect()
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as bound:
                now = asyncio.get_running_loop().time
                with self._expecting(None, lambda: bound.reschedule(now()), CONNECT_SECONDS + 2):
                    return await connect()
        if not bound.expired():
            raise TimeoutError
        return await connect()

    def _expecting(
        self, line: Line | None, cut: Callable[[], None], seconds_max: float
    ) -> AbstractContextManager[None]:
        if self._presence is None:
            return nullcontext()
        return self._presence.expecting(line, cut, seconds_max=seconds_max)

    def _is_stale(self, connection: Connection) -> bool:
        return self._presence is not None and connection.generation != self._presence.generation

    def _tell(self, meaning: Exception, connection: Connection) -> None:
        """Let the others of this process know what concerns them too."""
        self.was_cut = connection.is_cut
        if self._presence is None or not isinstance(meaning, StoreUnavailable) or self.was_cut:
            return
        if isinstance(meaning, SchemaBehind):
            self._presence.lost(meaning)
        elif connection.closed:
            self._presence.broke(meaning)

    async def _roll_back(self, connection: Connection) -> None:
        try:
            if connection.info.transaction_status != TransactionStatus.IDLE:
                self._on_wait(self._wait_seconds + CUT_SECONDS + CANCEL_SECONDS)
                with self._expecting(connection, connection.cut, self._wait_seconds):
                    async with asyncio.timeout(self._wait_seconds + CUT_SECONDS):
                        await connection.execute("ROLLBACK")
        except (psycopg.Error, TimeoutError):
            await self.close()

    async def _send(
        self, connection: Connection, sql: LiteralString, parameters: dict[str, Any] | None
    ) -> psycopg.AsyncCursor[Row]:
        self.statements += 1
        cursor = await connection.execute(sql, parameters)
        self._on_wait(0)
        return cursor


class Transaction:
    """What `Database.transact` hands to its work."""

    def __init__(self, database: Database, connection: Connection) -> None:
        self._database = database
        self._connection = connection

    async def send(self, sql: LiteralString, parameters: dict[str, Any] | None = None) -> None:
        """Run a statement whose rows nobody needs."""
        await self._database._send(self._connection, sql, parameters)

    async def attempt(self, sql: LiteralString, parameters: dict[str, Any]) -> str | None:
        """Run a statement and take it back; None, or in PostgreSQL's words why it refuses a value in it.

        Also what would be refused at COMMIT only: constraints do not wait for it here.
        """
        await self._connection.execute("SAVEPOINT attempt; SET CONSTRAINTS ALL IMMEDIATE")
        try:
            await self._database._send(self._connection, sql, parameters)
        except psycopg.Error as error:
            if not isinstance(_translated(error), StoreRejected):
                raise
            return first_line(error)
        finally:
            if self._connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                await self._connection.execute("ROLLBACK TO SAVEPOINT attempt")
        return None

    async def rows_unless_refused(self, sql: LiteralString, parameters: dict[str, Any]) -> list[Row] | str:
        """Run a statement; its rows, or in PostgreSQL's words why it refuses a value in it: then it has done nothing.

        Also what would be refused at COMMIT only: from here on constraints of this transaction do not wait for it.
        """
        await self._connection.execute("SAVEPOINT kept; SET CONSTRAINTS ALL IMMEDIATE")
        try:
            rows = await self.rows(sql, parameters)
        except psycopg.Error as error:
            if not isinstance(_translated(error), StoreRejected):
                raise
            await self._connection.execute("ROLLBACK TO SAVEPOINT kept")
            return first_line(error)
        await self._connection.execute("RELEASE SAVEPOINT kept")
        return rows

    async def rows(self, sql: LiteralString, parameters: dict[str, Any] | None = None) -> list[Row]:
        """Run a statement; its rows."""
        return await (await self._database._send(self._connection, sql, parameters)).fetchall()


def _translated(error: psycopg.Error | TimeoutError) -> Exception:
    """What an error in a statement of ours means; one that we know no reason for is our own mistake, and stays."""
    text = first_line(error)
    if "out of memory" in text and isinstance(error, psycopg.Error) and error.sqlstate is None:
        return MemoryError(text)  # libpq's own, in this process; the server's has a code
    if isinstance(error, psycopg.DataError | psycopg.IntegrityError) or _is_raised(error):
        return StoreRejected(text)
    if isinstance(error, errors.UndefinedTable | errors.UndefinedColumn | errors.InvalidSchemaName):
        return SchemaBehind(f"{text}: run `reconsup migrate`")
    if isinstance(error, errors.InsufficientPrivilege):
        return StoreRefused(text)
    if isinstance(error, psycopg.ProgrammingError):
        return error
    return StoreUnavailable(text or "PostgreSQL does not answer")


def _is_raised(error: psycopg.Error | TimeoutError) -> bool:
    """Whether it was raised in a function, that is in somebody's trigger, whatever code was chosen for it.

    Not what befalls any statement at any time, also one of a trigger: somebody is in the way, its time is up, the
    server goes down or is full.
    """
    if not isinstance(error, psycopg.Error) or isinstance(error, errors.LockNotAvailable):
        return False
    if (error.sqlstate or "")[:2] in _BEFALLING:
        return False
    return bool(error.diag.context) or isinstance(error, errors.RaiseException)


# One message, so that there is no moment at which the transaction is open without its time-outs. The lock's must be
# the shorter one: were the statement's first, PostgreSQL would not say that a lock was what it waited for.
_BEGIN = """
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = {lock_ms};
SET LOCAL statement_timeout = {wait_ms};
SET LOCAL idle_in_transaction_session_timeout = {wait_ms}
"""
