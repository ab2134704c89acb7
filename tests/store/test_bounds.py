"""No wait and no lock lasts, whoever is frozen, silent or in the way."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from reconsup.store.database import Database, Transaction
from reconsup.store.errors import StoreUnavailable
from tests.support import postgres
from tests.support.ledgers import Emptied, store
from tests.support.postgres import insert_request
from tests.support.stepped import DEADLINE_SECONDS, Stepped, until

pytestmark = pytest.mark.service

LOCK = "SELECT id FROM app.payment_requests WHERE id = %(id)s FOR NO KEY UPDATE"


def two_requests(database: postgres.Database) -> tuple[str, str]:
    with database.connect() as connection:
        return insert_request(connection), insert_request(connection)


def test_a_transaction_has_its_time_outs_and_a_session_keeps_none(emptied: Emptied) -> None:
    """Seen to fail when one of the three is not set, or set without LOCAL."""
    query = """SELECT current_setting('lock_timeout') AS l, current_setting('statement_timeout') AS s,
                      current_setting('idle_in_transaction_session_timeout') AS i,
                      current_setting('transaction_isolation') AS t"""

    async def story() -> None:
        async with store(emptied, lease_seconds=6.0) as worker:
            before = await worker.fetch(query)

            async def work(transaction: Transaction) -> None:
                assert await transaction.rows(query) == [("1s", "2s", "2s", "read committed")]

            await worker.transact(work)
            assert await worker.fetch(query) == before == [("0", "0", "0", "read committed")]

    asyncio.run(story())


def test_a_frozen_process_does_not_keep_its_locks(emptied: Emptied) -> None:
    """Seen to fail without the idle time-out, and with the statements sent as a pipeline (nobody is idle there)."""
    (id_, _) = two_requests(emptied)

    async def story() -> None:
        async with (
            Stepped(emptied.url, before="frozen here", name="frozen", lease_seconds=1.2, is_frozen=True) as frozen,
            store(emptied, "other", lease_seconds=4) as other,
        ):

            async def work(transaction: Transaction) -> None:
                await transaction.rows(LOCK, {"id": id_})
                await transaction.send("UPDATE app.payment_requests SET status = 'failed' -- frozen here")

            doomed = asyncio.create_task(frozen.transact(work))
            await frozen.reached()

            async def lock(transaction: Transaction) -> list[object]:
                return await transaction.rows(LOCK, {"id": id_})

            assert await other.transact(lock) == [(id_,)]
            frozen.go()
            with pytest.raises(StoreUnavailable):
                await doomed
        assert emptied.fetch("SELECT DISTINCT status FROM app.payment_requests") == [("pending",)]

    asyncio.run(story())


def test_a_lock_not_had_in_time_is_tried_again(emptied: Emptied) -> None:
    """Seen to fail when 55P03 is not retried, and when the statement's time-out is not longer than the lock's."""
    (id_, _) = two_requests(emptied)
    tries = 0

    async def story() -> None:
        async with store(emptied, "holder") as holder, store(emptied, "waiter", lease_seconds=0.6) as waiter:

            async def lock(transaction: Transaction) -> list[object]:
                nonlocal tries
                tries += 1
                second_try.set() if tries == 2 else None
                return await transaction.rows(LOCK, {"id": id_})

            async def hold(transaction: Transaction) -> None:
                await transaction.rows(LOCK, {"id": id_})
                holding.set()
                await second_try.wait()

            holding, second_try = asyncio.Event(), asyncio.Event()
            held = asyncio.create_task(holder.transact(hold))
            await holding.wait()
            assert await waiter.transact(lock) == [(id_,)]
            await held
        assert tries >= 2

    asyncio.run(story())


def test_a_lock_never_had_is_given_up(emptied: Emptied) -> None:
    (id_, _) = two_requests(emptied)

    async def story() -> None:
        async with store(emptied, "holder") as holder, store(emptied, "waiter", lease_seconds=0.3) as waiter:

            async def lock(transaction: Transaction) -> list[object]:
                return await transaction.rows(LOCK, {"id": id_})

            async def hold(transaction: Transaction) -> None:
                await transaction.rows(LOCK, {"id": id_})
                with pytest.raises(StoreUnavailable, match="55P03"):
                    await waiter.transact(lock)

            await holder.transact(hold)

    asyncio.run(story())


def test_both_sides_of_a_deadlock_are_done_in_the_end(database: postgres.Database) -> None:
    """Seen to fail when 40P01 is not retried."""
    database.execute(f"ALTER DATABASE {database.name} SET deadlock_timeout = '50ms'")
    ids = two_requests(database)
    tries: list[str] = []

    async def story() -> None:
        met = asyncio.Barrier(2)

        async def both(worker: Database, first: str, second: str) -> None:
            async def work(transaction: Transaction) -> None:
                tries.append(first)
                await transaction.rows(LOCK, {"id": first})
                if tries.count(first) == 1:
                    await met.wait()
                await transaction.rows(LOCK, {"id": second})

            await worker.transact(work)

        async with store(database) as one, store(database) as two:
            await asyncio.gather(both(one, *ids), both(two, *reversed(ids)))

    asyncio.run(story())
    assert len(tries) == 3


@pytest.mark.direct
def test_a_statement_that_waits_too_long_is_given_up_on_both_sides(emptied: Emptied) -> None:
    """A single statement has no time-outs on the server. Seen to fail (it waits for ever) without the client's."""
    (id_, _) = two_requests(emptied)

    async def story() -> None:
        async with store(emptied, "holder") as holder, store(emptied, "waiter", lease_seconds=0.3) as waiter:

            async def hold(transaction: Transaction) -> None:
                await transaction.rows(LOCK, {"id": id_})
                async with asyncio.timeout(DEADLINE_SECONDS):
                    with pytest.raises(StoreUnavailable, match="does not answer"):
                        await waiter.fetch(LOCK, {"id": id_})
                await until(
                    emptied.url,
                    "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'waiter' "
                    "AND state = 'active')",
                )

            await holder.transact(hold)

    asyncio.run(story())


@contextlib.asynccontextmanager
async def silent_road(url: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A way to the server on which, once the event is set, nothing moves any more and nobody hangs up."""
    parts = urlsplit(url)
    is_silent = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (data := await reader.read(65536)) and not is_silent.is_set():
            writer.write(data)
            await writer.drain()
        await asyncio.Event().wait()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(parts.hostname, parts.port)
        tasks.update({asyncio.create_task(carry(reader, back)), asyncio.create_task(carry(there, writer))})

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield url.replace(f":{parts.port}/", f":{port}/"), is_silent
    finally:
        server.close()
        for task in tasks:
            task.cancel()


def test_a_server_that_says_nothing_does_not_hold_a_process(emptied: Emptied) -> None:
    """Seen to fail (it waits for ever) without the client's bound."""

    async def story() -> None:
        async with silent_road(emptied.url) as (url, is_silent):
            worker = Database(url, application_name="t", lease_seconds=0.6)
            assert await worker.fetch("SELECT 1 AS one") == [(1,)]
            is_silent.set()
            began = time.monotonic()
            async with asyncio.timeout(20):
                with pytest.raises(StoreUnavailable, match="does not answer"):
                    await worker.fetch("SELECT 1")
            print(f"gave up after {time.monotonic() - began:.1f} s")
            await worker.close()

    asyncio.run(story())
