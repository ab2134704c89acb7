"""The body of the first child: wait for the database and look at its schema, before any worker is forked.

The supervisor holds no database handle, so it asks a child. The answer is an exit code; the words for the operator are
logged here.
"""

import asyncio
import time

import structlog

from reconsup import logs
from reconsup.fleet.posix import Seat
from reconsup.settings import Settings
from reconsup.store.database import Database
from reconsup.store.errors import StoreUnavailable
from reconsup.store.revision import fetch_state

EXIT_OK = 0
EXIT_UNAVAILABLE = 69
RETRY_SECONDS = 0.5


def run(seat: Seat, settings: Settings) -> int:
    """0: the database answers and its schema is ours. 69: not within the start time, or it is not."""
    logs.configure(settings.log_format, worker_id=f"{seat.base}-probe")
    return asyncio.run(_probe(seat, settings))


async def _probe(seat: Seat, settings: Settings) -> int:
    log = structlog.get_logger()
    deadline = time.monotonic() + settings.start_seconds
    last_words = ""
    name = f"reconsup/{seat.incarnation}"
    async with Database(settings.database_url, application_name=name, lease_seconds=settings.lease_seconds) as database:
        while True:
            try:
                state = await fetch_state(database)
                break
            except StoreUnavailable as error:
                words = str(error)
                if words != last_words:
                    log.warning("database_away", error=words, waiting_seconds=settings.start_seconds)
                last_words = words
            if time.monotonic() + RETRY_SECONDS > deadline:
                log.error(
                    "database_still_away",
                    error=last_words,
                    todo=f"the database did not answer within {settings.start_seconds:g} s: start it, or "
                    "correct DATABASE_URL",
                )
                return EXIT_UNAVAILABLE
            await asyncio.sleep(RETRY_SECONDS)
    if not state.is_ready:
        log.error("schema_behind", todo=state.sentence())
        return EXIT_UNAVAILABLE
    return EXIT_OK
