"""An answer that does not come: is the statement at work, or was the way to it lost without a word?"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from reconsup.store import presence
from reconsup.store.database import Database, Transaction
from reconsup.store.errors import StoreUnavailable
from reconsup.store.presence import Presence
from tests.support.postgres import Database as Fresh
from tests.support.postgres import insert_request
from tests.support.silent_road import Road, road_to

pytestmark = [pytest.mark.service, pytest.mark.direct]

LEASE_SECONDS = 30.0  # of which two thirds bound a statement
LATE_SECONDS = 0.2


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "LATE_SECONDS", LATE_SECONDS)
    monkeypatch.setattr(presence, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(presence, "LOOK_AGAIN_SECONDS", 0.1)


@pytest.fixture
def road(database: Fresh) -> Iterator[Road]:
    with road_to(database.direct_url) as running:
        yield running


def with_database(url: str, work: Callable[[Database], Awaitable[None]]) -> None:
    async def run() -> None:
        async with (
            Presence(url, application_name="reconsup/asker") as shared,
            Database(url, application_name="reconsup/asker", lease_seconds=LEASE_SECONDS, presence=shared) as mine,
        ):
            await work(mine)

    asyncio.run(run())


def test_a_statement_that_is_at_work_is_waited_for(database: Fresh) -> None:
    """Seen to fail when what is late is cut without a look at its backend."""

    async def work(mine: Database) -> None:
        assert await mine.fetch("SELECT 1 AS one FROM pg_sleep(1.5)") == [(1,)]
        assert not mine.is_away

    with_database(database.direct_url, work)


def test_who_thinks_long_between_two_statements_is_not_taken_for_lost(database: Fresh) -> None:
    """Its backend is idle, because nothing was sent. Seen to fail when only the backend is looked at."""

    async def think(transaction: Transaction) -> int:
        await transaction.send("SELECT 1")
        await asyncio.sleep(1.5)  # what is tried is the time that passes
        ((one,),) = await transaction.rows("SELECT 1")
        return int(one)

    async def work(mine: Database) -> None:
        assert await mine.transact(think) == 1

    with_database(database.direct_url, work)


def test_a_statement_whose_way_was_lost_is_given_up_soon_and_its_locks_with_it(database: Fresh, road: Road) -> None:
    """Not after two thirds of a lease. Seen to fail (its rows stay locked) when only the client is cut."""
    with database.connect() as connection:
        insert_request(connection)

    async def lose(transaction: Transaction) -> None:
        await transaction.send("SELECT FROM app.payment_requests FOR UPDATE")
        road.silence()
        await transaction.send("SELECT 1")

    async def work(mine: Database) -> None:
        began_at = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await mine.transact(lose)
        assert time.monotonic() - began_at < 5
        assert not mine.is_away
        assert mine.was_cut
        assert await mine.fetch("SELECT 1 AS one") == [(1,)]
        with database.connect() as other:
            other.execute("SET lock_timeout = '1s'")
            other.execute("SELECT FROM app.payment_requests FOR UPDATE")

    with_database(road.url(database.direct_url), work)


def test_a_connection_in_the_making_that_hangs_is_tried_again_beside(database: Fresh, road: Road) -> None:
    """Seen to fail (6 s) when it is waited for."""

    async def work(mine: Database) -> None:
        road.set_dead(True)
        began_at = time.monotonic()
        asking = asyncio.create_task(mine.fetch("SELECT 1 AS one"))
        await asyncio.sleep(3 * LATE_SECONDS)  # what is tried is that it hangs for a while
        road.set_dead(False)
        assert await asking == [(1,)]
        assert time.monotonic() - began_at < 4

    with_database(road.url(database.direct_url), work)
