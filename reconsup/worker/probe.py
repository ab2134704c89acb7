"""The body of the first child: wait for the database and look at its schema, before any worker is forked.

The supervisor holds no database handle, so it asks a child. The answer is an exit code; the words for the operator are
logged here. It ends at its deadline whatever it waits for then: a connection, a statement, the name server.
"""

import asyncio
import time
from contextlib import suppress

from reconsup import logs
from reconsup.fleet.posix import Seat
from reconsup.settings import Settings
from reconsup.store.database import Database
from reconsup.store.errors import StoreRefused, StoreUnavailable
from reconsup.store.presence import Presence
from reconsup.store.revision import SchemaState, fetch_state

EXIT_OK = 0
EXIT_UNAVAILABLE = 69
RETRY_SECONDS = 0.5
HINT_SECONDS = 5.0  # of silence; who waits wants to know for what
FULL = ("too many", "connection slots")

log = logs.get_logger()


def run(seat: Seat, settings: Settings) -> int:
    """0: the database answers and its schema is ours. 69: not within the start time, or it is not."""
    logs.configure(settings.log_format, worker_id=f"{seat.base}-probe")
    # Not asyncio.run: it would wait for the thread that asks a name server which does not answer. The process ends
    # right after this, and everything in it.
    return asyncio.new_event_loop().run_until_complete(_Probe(seat, settings).run())


class _Probe:
    def __init__(self, seat: Seat, settings: Settings) -> None:
        self._name = f"reconsup/{seat.incarnation}"
        self._settings = settings
        self._words = ""
        self._what = "did not answer"
        self._advice = "start it, or correct DATABASE_URL"

    async def run(self) -> int:
        deadline = time.monotonic() + self._settings.start_seconds
        asking = asyncio.ensure_future(self._ask())
        hint = min(HINT_SECONDS, self._settings.start_seconds / 2)
        done, _ = await asyncio.wait({asking}, timeout=hint)
        if not done:
            self._tell("PostgreSQL says nothing", is_news=not self._words)
            done, _ = await asyncio.wait({asking}, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            log.error(
                "database_still_away",
                error=self._words,
                todo=f"the database {self._what} within {self._settings.start_seconds:g} s: {self._advice}",
            )
            return EXIT_UNAVAILABLE  # and what hangs is left as it is: to end it nicely would take its time
        state = asking.result()
        if not state.is_ready:
            log.error("schema_behind", todo=state.sentence())
            return EXIT_UNAVAILABLE
        return EXIT_OK

    async def _ask(self) -> SchemaState:
        """Ask until there is an answer."""
        url, lease_seconds = self._settings.database_url, self._settings.lease_seconds
        async with (
            Presence(url, application_name=self._name) as presence,
            Database(url, application_name=self._name, lease_seconds=lease_seconds, presence=presence) as database,
        ):
            while True:
                try:
                    return await fetch_state(database)
                except StoreUnavailable as error:
                    self._explain(error)
                    self._tell(str(error), is_news=str(error) != self._words)
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_SECONDS):
                        await database.returned()

    def _explain(self, error: StoreUnavailable) -> None:
        words = str(error)
        self._what, self._advice = "did not answer", "start it, or correct DATABASE_URL"
        if isinstance(error, StoreRefused):
            self._what, self._advice = "did not let us in", "correct DATABASE_URL, or the role's rights"
        elif any(each in words for each in FULL):
            self._what, self._advice = "had no connection left", "end others, or raise max_connections (or its limit)"
        elif "the database system" in words:  # is starting up, is shutting down, does not accept connections
            self._what, self._advice = "was not ready", "look into its log, or start again when it is ready"

    def _tell(self, words: str, *, is_news: bool) -> None:
        if is_news:
            self._words = words
            log.warning("database_away", error=words, waiting_seconds=self._settings.start_seconds)
