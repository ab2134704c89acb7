"""The leases of the dead, given back in milliseconds instead of after a lease time-out.

The supervisor reaped a worker: that is proof, not a guess. It notes the incarnation in shared memory and rings the
bell; here its connections are ended and its leases given back, and only then is the note crossed out, so that
neither an outage of the database nor the death of this process loses one. Should all of this fail, the lease's
end still frees the rows.

It writes to payment requests only through `store.leases`, and knows nothing of what they mean.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress

from reconsup import logs, pulse
from reconsup.fleet.posix import Death, Seat
from reconsup.monitor import metrics
from reconsup.payments.request import Network
from reconsup.store import leases
from reconsup.store.database import Database
from reconsup.store.errors import SchemaBehind, StoreRejected, StoreUnavailable

SWEEP_SECONDS = 600.0
LOOK_SECONDS = 1.0  # a look at shared memory, in case a ring was missed
RETRY_SECONDS_MIN = 0.2
RETRY_SECONDS_MAX = 5.0
FAREWELL_SECONDS = 3.5  # the supervisor kills after 5

log = logs.get_logger()


class Janitor:
    """The loop and what it remembers. `database` is its own; `sweep_seconds` is an argument for tests."""

    def __init__(
        self, seat: Seat, database: Database, networks: Sequence[Network], *, sweep_seconds: float = SWEEP_SECONDS
    ) -> None:
        self._seat = seat
        self._database = database
        self._networks = list(networks)
        self._sweep_seconds = sweep_seconds
        # hosts that were started together do not sweep together
        self._sweep_at = time.monotonic() + sweep_seconds * random.random()  # noqa: S311 - jitter
        self._failures = 0
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
                    await self.work()
                    await asyncio.sleep(RETRY_SECONDS_MIN if self._failures else 0)
        left = [death.worker_id for death in self._seat.scoreboard.dead()]
        if left:
            log.warning("leases_left", workers=left, todo="nothing: the leases' end frees them")

    async def work(self) -> float:
        """Bury the dead, sweep if it is time; after how many seconds to look again."""
        self._tell_forgotten()
        try:
            for death in self._seat.scoreboard.dead():
                await self._bury(death)
            if time.monotonic() >= self._sweep_at:
                await self._sweep()
        except (StoreUnavailable, SchemaBehind) as error:
            return self._retry_seconds(error)
        self._failures = 0
        return LOOK_SECONDS

    async def _bury(self, death: Death) -> None:
        started_at = time.monotonic()
        try:
            released = await leases.bury(
                self._database,
                incarnation=death.incarnation,
                owner=death.owner,
                row=death.row,
                is_charged=death.is_charged,
            )
        except StoreRejected as error:  # of a row that may not be written any more; the next dead must not wait for it
            self._seat.scoreboard.acknowledge(death.index)
            log.warning(
                "leases_left",
                dead=death.owner,
                error=str(error),
                todo="nothing: the leases' end frees all but that row",
            )
            return
        self._seat.scoreboard.acknowledge(death.index)
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
        self._sweep_at = (
            time.monotonic() + self._sweep_seconds
        )  # also if it fails: it may be too much for this database
        try:
            swept = await leases.sweep(self._database, self._networks)
        except StoreRejected as error:
            log.warning("requests_not_swept", error=str(error), todo="PostgreSQL refuses to write a row: put it right")
            return
        if swept:
            # somebody changed them by hand: nothing would have looked at them again
            log.warning("requests_swept", requests=swept)
            self._seat.bell.ring()

    def _tell_forgotten(self) -> None:
        forgotten = self._seat.scoreboard.deaths_overwritten
        if forgotten > self._forgotten:
            log.error(
                "deaths_forgotten", workers=forgotten - self._forgotten, todo="nothing: the leases' end frees them"
            )
        self._forgotten = forgotten

    def _retry_seconds(self, error: Exception) -> float:
        if self._failures == 0:
            log.warning("database_away", waiting="leases of the dead", error=str(error))
        self._failures += 1
        return min(RETRY_SECONDS_MIN * 2.0 ** min(self._failures, 10), RETRY_SECONDS_MAX)
