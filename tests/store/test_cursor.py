"""The cursor: who may read on, what the tail keeps, and what the chain's tags are worth."""

import asyncio
from datetime import timedelta

import pytest

from reconsup.payments.request import Network
from reconsup.store import cursor as cursors
from reconsup.store.cursor import Tags
from tests.support.ledgers import (
    NETWORK,
    OTHER,
    OWNER,
    Chain,
    Emptied,
    born,
    committed,
    cursor_of,
    ether,
    now,
    store,
)

pytestmark = pytest.mark.service


def test_the_tail_keeps_so_many_blocks_and_an_hour(emptied: Emptied) -> None:
    """Seen to fail (blocks of the last hour go) without the second bound, (all stay) without the first."""
    chain = Chain(first=1000, begins=now() - timedelta(days=1))

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = await born(scanner, chain)
            # 12 s a block: an hour is 300 blocks, more than the 64
            for _ in range(4):
                chain.mine(ether("0xnobody", 1, chain.tip.height))
                done = await committed(scanner, cursor, chain.blocks[-1], *chain.mined(99))
                cursor = done.cursor
            assert (cursor.next_height, cursor.tail_start) == (1400, 1099)
            # a minute a block: an hour is 60 blocks, fewer than the 64
            for _ in range(400):
                chain.mine(time=chain.tip.time + timedelta(minutes=1))
            cursor = (await committed(scanner, cursor, *chain.blocks[-400:])).cursor
            assert (cursor.next_height, cursor.tail_start) == (1800, 1736)
            assert cursor.finalized_height == 1735  # what has left the tail is final

    asyncio.run(story())
    assert emptied.fetch("SELECT min(height), max(height), count(*) FROM app.chain_blocks") == [(1736, 1799, 64)]
    assert emptied.fetch("SELECT count(*) FROM app.chain_credits") == [(0,)]


def test_credits_leave_with_their_blocks_and_not_before(emptied: Emptied) -> None:
    chain = Chain(first=1000, begins=now() - timedelta(days=1))
    for _ in range(100):
        chain.mine(ether("0xnobody", 1, chain.tip.height), time=chain.tip.time + timedelta(minutes=1))

    async def story() -> None:
        async with store(emptied) as scanner:
            done = await committed(scanner, await born(scanner, chain), *chain.blocks)
            assert done.cursor.tail_start == 1036

    asyncio.run(story())
    assert emptied.fetch("SELECT min(height), count(*) FROM app.chain_credits") == [(1036, 64)]


def test_another_networks_tail_is_not_pruned(emptied: Emptied) -> None:
    """Seen to fail without the network in the DELETE."""
    sepolia = Network("ethereum", "sepolia")
    young = Chain(first=10)
    old = Chain(first=1000, begins=now() - timedelta(days=1))
    for _ in range(100):
        old.mine(time=old.tip.time + timedelta(minutes=1))

    async def story() -> None:
        async with store(emptied) as scanner:
            young.mine(ether("0xnobody", 1))
            await committed(scanner, await born(scanner, young, network=sepolia), *young.blocks)
            await committed(scanner, await born(scanner, old), *old.blocks)

    asyncio.run(story())
    assert emptied.fetch("SELECT height FROM app.chain_blocks WHERE network = 'sepolia'") == [(10,)]
    assert emptied.fetch("SELECT height FROM app.chain_credits WHERE network = 'sepolia'") == [(10,)]


# tags


def test_a_tag_counts_only_where_its_hash_is_ours(emptied: Emptied) -> None:
    """Seen to fail when the tag's height is taken as it comes."""
    chain = Chain(first=100)
    chain.mined(10)
    foreign = Chain(first=100, name="foreign")
    foreign.mined(10)

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = await born(scanner, chain)
            lies = Tags(109, safe=foreign.blocks[7].header, finalized=foreign.blocks[5].header)
            cursor = (await committed(scanner, cursor, *chain.blocks[:9], tags=lies)).cursor
            assert (cursor.finalized_height, cursor_of(emptied)["safe_height"]) == (99, None)
            assert cursor_of(emptied)["finalized_tag_height"] is None
            ahead = Tags(109, safe=chain.blocks[9].header, finalized=chain.blocks[5].header)
            cursor = (await committed(scanner, cursor, chain.blocks[9], tags=ahead)).cursor
            assert (cursor.finalized_height, cursor_of(emptied)["safe_height"]) == (105, 109)
            back = Tags(109, safe=chain.blocks[8].header, finalized=chain.blocks[4].header)
            kept = await cursors.keep(scanner, cursor, back, lease_seconds=30, due_against="scanned")
            assert kept is not None
            assert (kept.finalized_height, cursor_of(emptied)["safe_height"]) == (105, 108)  # final stays final
            assert cursor_of(emptied)["finalized_tag_height"] == 105

    asyncio.run(story())


def test_keeping_renews_the_lease_and_only_the_holder_keeps(emptied: Emptied) -> None:
    """Seen to fail without the fence."""
    chain = Chain()

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = await born(scanner, chain, owner=OWNER)
            before = cursor_of(emptied)["scan_lease_until"]
            kept = await cursors.keep(scanner, cursor, Tags(99), lease_seconds=90, due_against="scanned")
            assert kept == cursor
            assert cursor_of(emptied)["scan_lease_until"] > before + timedelta(seconds=50)
            emptied.execute("UPDATE app.chain_cursors SET scan_lease_until = now() - interval '1 ms'")
            await cursors.take(scanner, NETWORK, owner=OTHER, lease_seconds=30)
            after = cursor_of(emptied)
            assert await cursors.keep(scanner, cursor, Tags(99), lease_seconds=90, due_against="scanned") is None
            assert cursor_of(emptied) == after

    asyncio.run(story())
