"""Asks the database how things are, and says that this host is alive.

At every poll: the backlog, the scans, the host's row, each one cheap statement. A count of all rows by status reads
the whole table: it gets a small share of the time (every few seconds on a small table, every minutes on a large
one) and gives up after a few seconds. While the database is away nothing is shown as known, and it is asked again
soon: readiness must come back with it. What only people look at is asked for only while somebody does.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from reconsup import logs, pulse, redact
from reconsup.fleet.scoreboard import Load
from reconsup.monitor import status
from reconsup.monitor.onlookers import FAILED_SECONDS, Onlookers
from reconsup.monitor.status import Known
from reconsup.payments.request import Network
from reconsup.store import backlog, recent
from reconsup.store.database import Database
from reconsup.store.errors import SchemaBehind, StoreRejected, StoreUnavailable

POLL_SECONDS_MAX = 5.0
RETRY_SECONDS = 1.0
CENSUS_SHARE = 50  # a census that took a second is made every 50 s
CENSUS_PAUSE_SECONDS_MAX = 3600.0
FRESH_POLLS = 3
WAITING = "status and metrics"
LEAVE_SECONDS = 0.5  # nobody waits for it
WAIT_SECONDS = 15.0  # for the Database: a third of it bounds a statement

log = logs.get_logger()


def poll_seconds(poll_interval_seconds: float) -> float:
    """How often to ask, given how often an idle worker looks: often enough for somebody who watches."""
    return min(poll_interval_seconds, POLL_SECONDS_MAX)


def fresh_seconds(poll_interval_seconds: float) -> float:
    """For how long an answer counts as known."""
    return FRESH_POLLS * poll_seconds(poll_interval_seconds) + WAIT_SECONDS / 3


class Watch:
    """The loop that keeps `known` up to date. `database` is its own.

    `tell_load` takes what it saw of the work that waits, for the supervisor; `announcement` is what the host's row is
    to say of the fleet.
    """

    def __init__(
        self,
        database: Database,
        networks: Sequence[Network],
        host: backlog.Host,
        known: Known,
        *,
        seconds: float,
        tell_load: Callable[[Load], None] = lambda _: None,
        announcement: Callable[[], Mapping[str, object] | None] = lambda: None,
        onlookers: Onlookers | None = None,
    ) -> None:
        self._database = database
        self._networks = networks
        self._host = host
        self._known = known
        self._seconds = seconds
        self._tell_load = tell_load
        self._announcement = announcement
        self._onlookers = onlookers or Onlookers()
        self._census_at = 0.0
        self._census_failures = 0
        self._rival: int | None = None
        self._has_announced = False
        self._is_lost = False

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            pulse.alive()
            pause = await self.look()
            pulse.rests(max(pause, RETRY_SECONDS))
            if self._database.is_away:
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_SECONDS):
                        await self._database.returned()
            elif not self._database.was_cut:
                await self._rest(pause)

    async def _rest(self, seconds: float) -> None:
        """Until the next look. Who opens the page meanwhile is told at once, if the database is well."""
        until = time.monotonic() + seconds
        if self._is_lost:
            await asyncio.sleep(seconds)
        while (left := until - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._onlookers.due()  # a wait and nothing else: it may be cut short
            except TimeoutError:
                return
            await self.show()

    async def show(self) -> None:
        """Ask for what people look at, once. That it cannot be had is no sign of anything else."""
        began = time.monotonic()
        try:
            self._onlookers.succeed(await recent.read(self._database), began)
        except (StoreUnavailable, StoreRejected) as error:
            log.info("history_not_read", waiting="status page", error=str(error), again_seconds=FAILED_SECONDS)
            self._onlookers.fail(error)

    async def leave(self) -> None:
        """Say in the host's row that it stops because somebody said so: who just falls silent counts as gone."""
        said = {**(self._announcement() or {}), "state": backlog.STOPPED}
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await backlog.announce(self._database, self._host, said, fresh_seconds=self._known.fresh_seconds)

    async def look(self) -> float:
        """Ask once; after how many seconds to ask again."""
        try:
            reading = await backlog.read(self._database, self._networks)
            read_at = time.monotonic()
            rival = await backlog.announce(
                self._database, self._host, self._announcement(), fresh_seconds=self._known.fresh_seconds
            )
        except StoreUnavailable as error:
            self._fail(error)
            return min(RETRY_SECONDS, self._seconds)
        self._succeed(reading, rival)
        self._tell_load(status.load(reading, self._known.lease_seconds, read_at))
        if time.monotonic() >= self._census_at:
            await self._take_census()
        return self._seconds

    def _fail(self, error: Exception) -> None:
        if not self._is_lost and isinstance(error, SchemaBehind):
            todo = "run `reconsup migrate`: then status and metrics are known again by themselves"
            log.error("schema_behind", waiting=WAITING, error=str(error), todo=todo)
        elif not self._is_lost:
            log.warning("database_away", waiting=WAITING, error=str(error))
        self._is_lost = True
        self._known.problem = redact.text(str(error))

    def _succeed(self, reading: backlog.Backlog, rival: int | None) -> None:
        self._known.backlog, self._known.backlog_at = reading, time.monotonic()
        if self._is_lost:
            log.info("database_back", waited=WAITING)
        self._is_lost = False
        self._known.problem = None
        if not self._has_announced:
            rival = None  # the row may be of whoever ran here before us; one who lives writes it again
        self._has_announced = True
        if rival is not None and rival != self._rival:
            log.warning(
                "worker_id_shared",
                base=self._host.base,
                pid_of_the_other=rival,
                todo="another supervisor uses this worker id: give each its own --worker-id",
            )
        self._rival = rival

    async def _take_census(self) -> None:
        started_at = time.monotonic()
        try:
            self._known.census = await backlog.census(self._database, self._networks)
        except StoreUnavailable as error:
            # the table is too large for the time it may take, or the database just went: not soon again
            self._census_failures += 1
            pause = CENSUS_SHARE * backlog.CENSUS_SECONDS_MAX * 2.0 ** min(self._census_failures - 1, 10)
            pause = min(pause, CENSUS_PAUSE_SECONDS_MAX)
            log.info("requests_not_counted", error=str(error), again_seconds=pause)
        else:
            self._census_failures = 0
            self._known.census_at = time.monotonic()
            pause = max(self._seconds, CENSUS_SHARE * (self._known.census_at - started_at))
        self._census_at = time.monotonic() + pause
