"""The scan lease: one scanner a network."""

import asyncio

import pytest

from reconsup.payments.request import Network
from reconsup.store import cursor as cursors
from reconsup.store.database import Database, Transaction
from reconsup.store.errors import StoreUnavailable
from tests.support.ledgers import (
    LEASE_SECONDS,
    NETWORK,
    OTHER,
    OWNER,
    SCANNER,
    Chain,
    Emptied,
    born,
    cursor_of,
    store,
)

pytestmark = pytest.mark.service


async def ready(database: Database) -> None:
    """A running cursor for the network."""
    await born(database, Chain())


def test_one_scanner_holds_the_cursor_until_its_lease_ends(emptied: Emptied) -> None:
    """Seen to fail without the condition on scan_lease_until."""

    async def story() -> None:
        async with store(emptied) as worker:
            first = await born(worker, Chain(), owner=OWNER)
            assert await cursors.take(worker, NETWORK, owner=OTHER, lease_seconds=30) is None
            emptied.execute("UPDATE app.chain_cursors SET scan_lease_until = now() - interval '1 ms'")
            second = await cursors.take(worker, NETWORK, owner=OTHER, lease_seconds=30)
            assert second is not None
            assert (first.epoch, second.epoch, second.owner) == (1, 2, OTHER)
            await cursors.free(worker, first)  # too late: it is not its any more
            assert cursor_of(emptied)["scan_lease_owner"] == OTHER
            await cursors.free(worker, second)
            assert cursor_of(emptied)["scan_lease_owner"] is None
            assert cursor_of(emptied)["scan_lease_epoch"] == 2

    asyncio.run(story())


def test_a_scanner_may_take_its_own_lease_again(emptied: Emptied) -> None:
    """It holds it without knowing when an answer was lost. Seen to fail (a whole lease is waited for) without that."""

    async def story() -> None:
        async with store(emptied) as worker:
            first = await born(worker, Chain(), owner=OWNER)
            again = await cursors.take(worker, NETWORK, owner=OWNER, lease_seconds=30)
            assert again is not None
            assert (first.epoch, again.epoch) == (1, 2)

    asyncio.run(story())


def test_a_cursor_is_born_once(emptied: Emptied) -> None:
    async def story() -> None:
        async with store(emptied) as worker:
            chain = Chain(first=50)
            await born(worker, chain)
            await cursors.birth(worker, NETWORK, chain_id=1, genesis_hash="0xother", parent=Chain(first=9).parent)
            cursor = await cursors.read(worker, NETWORK)
            assert cursor is not None
            assert (cursor.chain_id, cursor.next_height, cursor.tip_hash) == (31337, 50, chain.parent.block_hash)
            assert (cursor.tail_start, cursor.finalized_height, cursor.scanned_height) == (50, 49, 49)
            assert cursor.tip_time == chain.parent.time
            assert await cursors.read(worker, Network("ethereum", "mainnet")) is None
            assert (
                await cursors.take(worker, Network("ethereum", "mainnet"), owner=OWNER, lease_seconds=LEASE_SECONDS)
                is None
            )

    asyncio.run(story())


def test_taking_waits_no_longer_than_its_lock_time_out(emptied: Emptied) -> None:
    """Seen to fail (nobody tells what it waits for) as a bare statement."""

    async def story() -> None:
        async with store(emptied) as holder, store(emptied, lease_seconds=0.3) as taker:
            await ready(holder)

            async def hold(transaction: Transaction) -> None:
                await transaction.rows("SELECT 1 FROM app.chain_cursors FOR UPDATE")
                with pytest.raises(StoreUnavailable, match="55P03"):
                    await cursors.take(taker, NETWORK, owner=SCANNER, lease_seconds=30)

            await holder.transact(hold)

    asyncio.run(story())


def test_taking_the_scan_lease_is_no_news_of_the_chain(emptied: Emptied) -> None:
    """`at_head` of /status goes by it, and in an outage the lease goes round. Seen to fail with the time set."""

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain(), owner=OWNER)
            emptied.execute(
                "UPDATE app.chain_cursors SET updated_at = now() - interval '1 hour', scan_lease_until = now()"
            )
            assert await cursors.take(worker, NETWORK, owner=OTHER, lease_seconds=30) is not None
        old = "SELECT count(*) FROM app.chain_cursors WHERE updated_at < now() - interval '59 min'"
        assert emptied.fetch(old) == [(1,)]

    asyncio.run(story())
