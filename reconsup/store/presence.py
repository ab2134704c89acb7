"""Whether the database is there, as one process knows it: one asks for all of the process's connections.

While it is away a new connection is tried about once a second (with jitter, so that hosts do not come in step), beside
those that still hang: a way that swallows packets, or a server that is frozen, says nothing for as long as one likes,
and work must go on the moment it is back, not after a time-out. Everybody else fails at once and waits for `returned`.

What was sent and is not answered within a second is doubted, and the one who asks looks at its backend: is it at work,
the statement is waited for; is it idle, or gone, the way between was lost without a word (a firewall forgot it, a host
moved). Then the connection is cut and its backend ended: neither they nor the locks they hold wait for a time-out.
Behind a pooler nobody can tell, and the client's own bound must do.
"""

import asyncio
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, LiteralString, Self

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from reconsup.store.errors import SchemaBehind, StoreRefused, StoreUnavailable
from reconsup.store.revision import CURRENT, state_of

CONNECT_SECONDS = 5
ASK_SECONDS = 1.0  # from one attempt to the next, on average
LATE_SECONDS = 1.0  # an answer that takes longer is doubted
LOOK_AGAIN_SECONDS = 0.25

# The server's words for "I am here, but not for you"; libpq gives a failed connection no SQLSTATE.
_REFUSALS = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "not permitted to log in",
    "no password supplied",
    "permission denied for database",
)

_ME: LiteralString = "SELECT pg_backend_pid()"
_LOOK: LiteralString = """
SELECT pid, COALESCE(state IN ('active', 'disabled'), true), state, state_change::text
FROM pg_stat_activity
WHERE pid = ANY (%(pids)s::int[]) AND application_name = %(application)s AND datname = current_database()
"""
_END: LiteralString = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid = %(pid)s AND application_name = %(application)s AND datname = current_database()
"""


class Line(psycopg.AsyncConnection[Any]):
    """A connection that counts what was sent over it. `generation`: see `Presence.generation`. `is_cut`: by `cut`."""

    sent = 0
    generation = 0
    is_cut = False

    async def execute(self, *arguments: Any, **options: Any) -> psycopg.AsyncCursor[Any]:
        """As psycopg's."""
        self.sent += 1
        return await super().execute(*arguments, **options)

    def cut(self) -> None:
        """End it as if the other side had hung up: whoever waits for an answer hears of it at once."""
        self.is_cut = True
        with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(self.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)


def refusal(error: BaseException) -> StoreUnavailable:
    """What it means that no connection could be made."""
    text = first_line(error) or f"no connection within {CONNECT_SECONDS} s"
    return StoreRefused(text) if any(words in text for words in _REFUSALS) else StoreUnavailable(text)


def first_line(error: BaseException) -> str:
    """The error's own sentence, without libpq's continuation lines (they repeat addresses for each try)."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


class _Doubt:
    """Something that waits for an answer: a statement on `line`, or a connection in the making (`line` is None).

    `seen`: how its backend was when it was not at work, as long as it is the same statement.
    """

    __slots__ = ("cut", "line", "seen", "since", "timer")

    def __init__(self, line: Line | None, cut: Callable[[], None]) -> None:
        self.line = line
        self.cut = cut
        self.since = time.monotonic()
        self.seen: object = None
        self.timer: asyncio.TimerHandle | None = None


class Presence:
    """Shared by all `Database`s of a process; close it after them. `problem`: None while nothing is known to be wrong.

    `generation` is raised when connections that are open may be dead without a word: those that were made before are
    made again before they are used.
    """

    def __init__(self, url: str, *, application_name: str) -> None:
        self.problem: StoreUnavailable | None = None
        self.generation = 0
        self.on_loss: list[Callable[[StoreUnavailable], None]] = []  # once each time
        self.on_return: list[Callable[[], None]] = []
        self._url = url
        self._application_name = application_name
        self._is_there = asyncio.Event()
        self._is_there.set()
        self._doubts: set[_Doubt] = set()
        self._asking: asyncio.Task[None] | None = None
        self._has_broken = asyncio.Event()
        self._hurried_at = float("-inf")
        self._next_at = 0.0
        self._heard_at = float("-inf")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def returned(self) -> None:
        """Wait until nothing is known to be wrong."""
        await self._is_there.wait()

    def check(self) -> None:
        """Raise the problem, if there is one."""
        if self.problem is not None:
            self._ask()
            raise type(self.problem)(*self.problem.args)

    def lost(self, problem: StoreUnavailable) -> None:
        """No connection was to be had, or the schema is not ours: from now on one asks for all."""
        self._set(problem)
        self._ask()

    def broke(self, problem: StoreUnavailable) -> None:
        """A connection broke, perhaps only that one: the same, but at once, unless this happens again and again."""
        self.lost(problem)
        if time.monotonic() >= self._hurried_at + ASK_SECONDS:
            self._hurried_at = time.monotonic()
            self._has_broken.set()

    @contextmanager
    def expecting(self, line: Line | None, cut: Callable[[], None], *, seconds_max: float) -> Iterator[None]:
        """While an answer is waited for, at most so long. `cut` ends the waiting when it is known to be in vain.

        The caller has a bound of its own, which ends the statement on the server too; but that means to speak with it,
        so where nobody has heard anything of it for so long, `cut` comes first.
        """
        doubt = _Doubt(line, cut)
        loop = asyncio.get_running_loop()
        doubt.timer = loop.call_later(min(LATE_SECONDS, seconds_max), self._doubt, doubt, seconds_max)
        try:
            yield
        finally:
            doubt.timer.cancel()
            self._doubts.discard(doubt)

    def _doubt(self, doubt: _Doubt, seconds_max: float) -> None:
        self._doubts.add(doubt)
        left = doubt.since + seconds_max - time.monotonic()
        doubt.timer = asyncio.get_running_loop().call_later(max(left, 0), self._give_up, doubt)
        self._ask()

    def _give_up(self, doubt: _Doubt) -> None:
        if self._heard_at < doubt.since:
            doubt.cut()

    def _ask(self) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._run(), name="presence")

    @property
    def _is_needed(self) -> bool:
        return self.problem is not None or bool(self._doubts)

    async def _run(self) -> None:
        """Ask until all is well."""
        line: Line | None = None
        try:
            while self._is_needed:
                if line is None:
                    line = await self._new_line()
                    continue
                looked_at = time.monotonic()
                try:
                    with self._within(line, LATE_SECONDS):
                        is_sure = await self._hear(line)
                except (psycopg.Error, SchemaBehind) as error:
                    if isinstance(error, SchemaBehind):
                        self.problem = error  # in the words of what there is
                    await _close(line)
                    line = None
                    continue
                if self._is_needed:
                    await self._rest_until(looked_at + (ASK_SECONDS if is_sure else LOOK_AGAIN_SECONDS))
        finally:
            if line is not None:
                await _close(line)

    async def _rest_until(self, moment: float) -> None:
        self._has_broken.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, moment - time.monotonic())):
                await self._has_broken.wait()

    async def _new_line(self) -> Line | None:
        """A connection; None when nobody needs one any more. A new attempt each second, beside those that hang."""
        attempts: set[asyncio.Task[Line]] = set()
        try:
            while self._is_needed:
                await asyncio.sleep(max(0.0, self._next_at - time.monotonic()))
                self._next_at = time.monotonic() + ASK_SECONDS * (0.75 + random.random() / 2)  # noqa: S311 - jitter
                attempts.add(asyncio.get_running_loop().create_task(self._attempt()))
                while attempts and (seconds := self._next_at - time.monotonic()) > 0 and self._is_needed:
                    done, attempts = await asyncio.wait(
                        attempts, timeout=min(seconds, LOOK_AGAIN_SECONDS), return_when=asyncio.FIRST_COMPLETED
                    )
                    for each in done:
                        if (error := each.exception()) is None:
                            attempts |= done - {each}
                            return each.result()
                        if not isinstance(error, psycopg.Error | OSError | TimeoutError):
                            raise error
                        self._fail(refusal(error))
            return None
        finally:
            await _drop(attempts)

    def _fail(self, problem: StoreUnavailable) -> None:
        """A new attempt failed: that is news even where statements still wait for their answers."""
        self._set(problem)

    def _set(self, problem: StoreUnavailable) -> None:
        was = self.problem
        if isinstance(was, SchemaBehind) and not isinstance(problem, SchemaBehind):
            return  # should it be away too: the schema must be looked at before it counts as there
        self.problem = problem
        self._is_there.clear()
        if was is None or (isinstance(problem, SchemaBehind) and not isinstance(was, SchemaBehind)):
            for told in self.on_loss:
                told(problem)

    async def _attempt(self) -> Line:
        async with asyncio.timeout(CONNECT_SECONDS):
            return await Line.connect(
                self._url,
                autocommit=True,
                row_factory=tuple_row,
                prepare_threshold=None,
                connect_timeout=CONNECT_SECONDS,
                application_name=self._application_name,
            )

    @contextmanager
    def _within(self, line: Line, seconds: float) -> Iterator[None]:
        """Cut the line if it does not answer in time. (A time-out of asyncio's would try to cancel, for seconds.)"""
        timer = asyncio.get_running_loop().call_later(seconds, line.cut)
        try:
            yield
        finally:
            timer.cancel()

    async def _hear(self, line: Line) -> bool:
        """Ask over a connection of its own; whether there is nothing that must be looked at again soon.

        Raises SchemaBehind while the tables are not ours.
        """
        if isinstance(self.problem, SchemaBehind):
            await _check_schema(line)
        ((backend,),) = await (await line.execute(_ME)).fetchall()
        self._heard_at = time.monotonic()
        is_sure = await self._judge(line) if backend == line.info.backend_pid else True
        for doubt in [each for each in self._doubts if each.line is None]:
            doubt.cut()  # it hangs, and a later one was made: let it try again
        self._return()
        return is_sure

    async def _judge(self, line: Line) -> bool:
        """Look at the backends of the statements in doubt; False if one looks dead and must be looked at again."""
        doubts = {each.line.info.backend_pid: each for each in self._doubts if each.line is not None}
        parameters: dict[str, Any] = {"application": self._application_name}
        rows = await (await line.execute(_LOOK, parameters | {"pids": list(doubts)})).fetchall() if doubts else []
        backends = {pid: (is_working, (state, changed)) for pid, is_working, state, changed in rows}
        suspects = 0
        for pid, doubt in doubts.items():
            assert doubt.line is not None
            is_working, how = backends.get(pid, (False, ("gone", None)))
            if is_working or doubt not in self._doubts or not _waits(doubt.line):
                doubt.seen = None
                continue
            seen = (doubt.line.sent, how)  # the same statement, and the backend has done nothing since
            if seen != doubt.seen:
                doubt.seen = seen
                suspects += 1
                continue
            self.generation += 1
            await line.execute(_END, parameters | {"pid": pid})
            doubt.cut()
        return suspects == 0

    def _return(self) -> None:
        if self.problem is None:
            return
        if not isinstance(self.problem, SchemaBehind):
            self.generation += 1
        self.problem = None
        self._is_there.set()
        for told in self.on_return:
            told()


def _waits(line: Line) -> bool:
    """Whether something was sent over it that is not answered."""
    return not line.closed and line.info.transaction_status == TransactionStatus.ACTIVE


async def _check_schema(line: Line) -> None:
    try:
        row = await (await line.execute(CURRENT)).fetchone()
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        row = None
    state = state_of(row)
    if not state.is_ready:
        raise SchemaBehind(state.sentence())


async def _close(line: Line) -> None:
    with suppress(psycopg.Error):
        await line.close()


async def _drop(attempts: set[asyncio.Task[Line]]) -> None:
    """End attempts that nobody waits for any more; one may have got its connection just now."""
    for each in attempts:
        each.cancel()
    for outcome in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(outcome, Line):
            await _close(outcome)
