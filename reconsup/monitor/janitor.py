"""The leases of the dead, given back in milliseconds instead of after a lease time-out.

The supervisor reaped a worker: that is proof, not a guess. It notes the incarnation in shared memory and rings the
bell; here its connections are ended and its leases given back, and only then is the note crossed out, so that
neither an outage of the database nor the death of this process loses one. Should all of this fail, the lease's
end still frees the rows.

The dead are buried one after the other over one connection, and none waits long for another: who is in the way has a
second, once; then all is freed that nobody has locked, and the rest is tried again, ever more rarely. The sweep does
the same. It writes to payment requests only through `store`, and knows nothing of what they mean.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from reconsup import logs, pulse
from reconsup.fleet.posix import Death, Seat
from reconsup.monitor import metrics
from reconsup.payments.request import Network
from reconsup.store import burial, leases
from reconsup.store.database import Database
from reconsup.store.errors import StoreRejected, StoreUnavailable
from reconsup.store.leases import SWEEP_ROWS, Released

SWEEP_SECONDS = 600.0
LOOK_SECONDS = 1.0  # a look at shared memory, in case a ring was missed
RETRY_SECONDS_MIN = 0.2
RETRY_SECONDS_MAX = 5.0
FAREWELL_SECONDS = 3.5  # the supervisor kills after 5
TOLD_TRIES = 4
REFUSED_TOLD = 16
WAIT_SECONDS = 6.0  # for the Database: a third of it bounds a statement, half of that the wait for a lock

log = logs.get_logger()


@dataclass(slots=True)
class _Grave:
    """What is known of a death that could not be buried at once, or not whole. Moments are monotonic."""

    due_at: float = 0.0
    tries: int = 0
    is_partial: bool = False
    is_sighted: bool = False
    refused: dict[str, str] = field(default_factory=dict)

    def put_off(self) -> None:
        """Try again, later each time."""
        pause = RETRY_SECONDS_MIN * 2.0 ** min(self.tries, 10)
        self.tries += 1
        self.due_at = time.monotonic() + min(pause, RETRY_SECONDS_MAX)


class Janitor:
    """The loop and what it remembers. `database` is its own, and should not try again by itself for long.

    `sweep_seconds` is an argument for tests.
    """

    def __init__(
        self, seat: Seat, database: Database, networks: Sequence[Network], *, sweep_seconds: float = SWEEP_SECONDS
    ) -> None:
        self._seat = seat
        self._database = database
        self._networks = list(networks)
        self._sweep_seconds = sweep_seconds
        # hosts that were started together do not sweep together
        self._sweep_at = time.monotonic() + sweep_seconds * random.random()  # noqa: S311 - jitter
        self._sweep_after: str | None = None  # in the midst of a sweep page by page: the id it has come to
        self._swept = 0
        self._graves: dict[int, _Grave] = {}  # by the death's index
        self._is_away = False
        self._forgotten = 0

    async def run(self, bell: asyncio.Event) -> None:
        """Work until cancelled; `bell` is set whenever somebody rang."""
        while True:
            bell.clear()
            pulse.alive()
            pause = await self.work()
            pulse.rests(pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):  # not wait_for: in 3.11 it loses a cancel that meets a ring
                    await bell.wait()

    async def farewell(self) -> None:
        """Bury who is left, for a few seconds at most: the supervisor waits for it. After `run` has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                while self._seat.scoreboard.dead():
                    pause = await self.work()
                    if self._seat.scoreboard.dead():  # else nothing is waited for: a drain has a deadline
                        await asyncio.sleep(min(pause, RETRY_SECONDS_MIN))
        left = [death.worker_id for death in self._seat.scoreboard.dead()]
        if left:
            log.warning("leases_left", workers=left, todo="nothing: the leases' end frees them")

    async def work(self) -> float:
        """Bury the dead that are due, sweep if it is time; after how many seconds to look again."""
        self._tell_forgotten()
        try:
            await self._bury_all()
            if time.monotonic() >= self._sweep_at:
                await self._sweep()
        except StoreUnavailable as error:
            if not self._is_away:
                log.warning("database_away", waiting="leases of the dead", error=str(error))
            self._is_away = True
            return LOOK_SECONDS
        self._is_away = False
        next_at = min((self._sweep_at, *(grave.due_at for grave in self._graves.values())))
        return min(LOOK_SECONDS, max(next_at - time.monotonic(), 0.0))

    async def _bury_all(self) -> None:
        """Try each that is due. Raises StoreUnavailable where the database is away for all of them."""
        dead = {death.index: death for death in self._seat.scoreboard.dead()}
        self._graves = {index: self._graves.get(index, _Grave()) for index in dead}
        due = [index for index in dead if self._graves[index].due_at <= time.monotonic()]
        for index in sorted(due, key=lambda each: (self._graves[each].tries, each)):  # the new ones first
            grave = self._graves[index]
            try:
                is_buried = await self._bury(dead[index], grave)
            except StoreUnavailable as error:
                if self._database.is_away:
                    raise
                self._put_off(dead[index], grave, str(error))
            else:
                if is_buried:
                    self._seat.scoreboard.acknowledge(index)
                    del self._graves[index]
                else:
                    self._put_off(dead[index], grave, "somebody has them locked")

    def _put_off(self, death: Death, grave: _Grave, error: str) -> None:
        grave.put_off()
        if grave.tries == TOLD_TRIES:
            log.warning(
                "burial_put_off",
                dead=death.owner,
                error=error,
                todo="nothing if it passes; else look in pg_locks for who has these rows locked. It is tried again, "
                "and the leases' end frees them",
            )

    async def _bury(self, death: Death, grave: _Grave) -> bool:
        """One try; whether nothing is left of its leases that could be freed."""
        started_at = time.monotonic()
        if not grave.is_partial:
            try:
                released = await leases.bury(
                    self._database,
                    incarnation=death.incarnation,
                    owner=death.owner,
                    row=death.row,
                    is_charged=death.is_charged,
                )
            except (StoreRejected, StoreUnavailable):
                if self._database.is_away:
                    raise
                grave.is_partial = True
            else:
                self._tell_released(death, released, started_at)
                return True
        rest = await burial.bury_rest(
            self._database,
            incarnation=death.incarnation,
            owner=death.owner,
            row=death.row,
            is_charged=death.is_charged,
            is_sighted=grave.is_sighted,
            without=list(grave.refused),
        )
        grave.is_sighted = rest.is_sighted
        grave.refused |= rest.refused
        self._tell_released(death, rest.released, started_at)
        if rest.left == 0 and grave.refused:
            log.warning(
                "leases_left",
                dead=death.owner,
                rows=list(grave.refused)[:REFUSED_TOLD],
                error=next(iter(grave.refused.values())),
                todo="PostgreSQL refuses to write these rows: put them right. All others are free",
            )
        return rest.left == 0

    def _tell_released(self, death: Death, released: Released, started_at: float) -> None:
        for id_ in released.set_aside:
            metrics.ROW_FAILURES.inc(1, "set_aside")
            log.error(
                "row_set_aside",
                request_id=id_,
                dead=death.owner,
                todo="workers die at this row: it is looked at no more until a person puts it right",
            )
        if not released.requests and not released.scans:
            return  # it gave everything back itself
        self._seat.bell.ring()
        metrics.LEASES_RELEASED.inc(released.requests + released.scans, death.cause)
        log.info(
            "leases_of_the_dead_released",
            dead=death.owner,
            cause=death.cause,
            row=death.row,
            requests=released.requests,
            scans=released.scans,
            latency_ms=round((time.monotonic() - started_at) * 1000),
        )

    async def _sweep(self) -> None:
        """A page. The next one is due at once, after the dead have had their turn; the next sweep after a while."""
        try:
            is_over = await self._sweep_page()
        except (StoreRejected, StoreUnavailable) as error:
            if self._database.is_away:
                raise
            is_over = self._sweep_after is not None  # not even page by page: it may be too much for this database
            self._sweep_after = None if is_over else ""
            if is_over:
                log.warning("requests_not_swept", error=str(error), todo="nothing if it passes: it is tried again")
        if not is_over:
            return
        if self._swept:
            # somebody changed them by hand: nothing would have looked at them again
            log.warning("requests_swept", requests=self._swept)
            self._seat.bell.ring()
        self._swept, self._sweep_after = 0, None
        self._sweep_at = time.monotonic() + self._sweep_seconds

    async def _sweep_page(self) -> bool:
        """Whether it was the last one. Where one cannot be written, they are gone through in the order of their ids."""
        if self._sweep_after is None:
            swept = await leases.sweep(self._database, self._networks)
            self._swept += swept
            return swept < SWEEP_ROWS
        page = await burial.sweep_rest(self._database, self._networks, after=self._sweep_after)
        self._swept += page.requests
        if page.refused:
            log.warning(
                "requests_not_swept",
                rows=list(page.refused)[:REFUSED_TOLD],
                error=next(iter(page.refused.values())),
                todo="PostgreSQL refuses to write these rows: put them right",
            )
        self._sweep_after = page.last
        return page.last is None

    def _tell_forgotten(self) -> None:
        forgotten = self._seat.scoreboard.deaths_overwritten
        if forgotten > self._forgotten:
            log.error(
                "deaths_forgotten", workers=forgotten - self._forgotten, todo="nothing: the leases' end frees them"
            )
        self._forgotten = forgotten
