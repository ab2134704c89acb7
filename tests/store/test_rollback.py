"""Reorgs: money goes back with proof, and only where the chain took it."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from reconsup.payments.request import Status
from reconsup.store import cursor as cursors
from reconsup.store import ledger
from reconsup.store.cursor import Tags
from reconsup.store.database import Database
from reconsup.store.persist import persist
from tests.support.ledgers import (
    NETWORK,
    Chain,
    Emptied,
    all_of,
    born,
    claimed,
    committed,
    cursor_of,
    decided,
    due_in_seconds,
    ether,
    everything,
    hash_of,
    ids_of,
    now,
    put_off,
    request_of,
    rolled_back,
    settlements_of,
    store,
    token,
)
from tests.support.stepped import Stepped, until_blocked, without

pytestmark = pytest.mark.service

ADDRESS = "0x" + "ab" * 20
USDT = "0x" + "cd" * 20
TOKEN = {"token_standard": "ERC20", "token_contract": "0x" + "Cd" * 20, "token_decimals": 6, "asset": "USDT"}


async def reorged(
    database: Database, chain: Chain, *, at: int = 100, build: Callable[[Chain], object] | None = None
) -> tuple[Any, Chain]:
    """Commit the chain, then take it back to `at`, where another begins."""
    cursor = (await committed(database, await born(database, chain), *chain.blocks)).cursor
    other = chain.branch(at)
    (build or (lambda each: each.mined(len(chain.blocks))))(other)
    while other.tip.height < chain.tip.height:
        other.mine()
    done = await rolled_back(database, cursor, chain.fork_to(other, at))
    return done, other


def test_a_rollback_orphans_with_proof_touches_and_takes_the_cursor_back(emptied: Emptied) -> None:
    lost = emptied.insert(address_canonical="0xaa")
    safe = emptied.insert(address_canonical="0xbb")
    chain = Chain(first=100)
    chain.mine(ether("0xbb", 5, "safe"), time=now())
    orphan = chain.mine(ether("0xaa", 7, "lost"))
    chain.mined(3)
    put_off(emptied)

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = (await committed(scanner, await born(scanner, chain), *chain.blocks)).cursor
            put_off(emptied)
            before = settlements_of(emptied, safe)
            other = chain.branch(100)
            other.mined(5)
            done = await rolled_back(scanner, cursor, chain.fork_to(other, 100))
            assert (done.touched, done.orphaned) == (1, 1)
            assert (done.cursor.next_height, done.cursor.tip_hash) == (101, chain.blocks[0].block_hash)
            assert done.cursor.tip_time == chain.blocks[0].time
            stored = await cursors.read(scanner, NETWORK)
            assert stored is not None
            assert (stored.next_height, stored.tip_hash, stored.tip_time) == (
                101, chain.blocks[0].block_hash, chain.blocks[0].time
            )  # fmt: skip
            (row,) = settlements_of(emptied, lost).values()
            assert not row["is_canonical"]
            assert row["metadata"] == {
                "first_block_time": orphan.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "reorg": {
                    "height": 101,
                    "block_hash": orphan.block_hash,
                    "new_hash": other.blocks[1].block_hash,
                    "scanned_height": 104,
                },
            }
            assert settlements_of(emptied, safe) == before
            assert due_in_seconds(request_of(emptied, lost)) <= 0 < due_in_seconds(request_of(emptied, safe))
            # and on along the other chain
            again = await committed(scanner, done.cursor, *other.blocks[1:])
            assert again.cursor.next_height == 106

    asyncio.run(story())
    assert emptied.fetch("SELECT height FROM app.chain_credits") == [(100,)]
    assert emptied.fetch("SELECT max(height) FROM app.chain_blocks") == [(105,)]


def test_a_rollback_touches_rows_that_wait_for_nothing(emptied: Emptied) -> None:
    """A confirmed row is not polled: only this touch tells it. A failed one is never touched."""
    confirmed = emptied.insert(address_canonical="0xaa", status="confirmed", next_reconcile_at=None)
    failed = emptied.insert(address_canonical="0xbb", status="failed", next_reconcile_at=None)
    chain = Chain(first=100)
    chain.mine()
    chain.mine(ether("0xaa", 5, "1"), ether("0xbb", 5, "2"), time=now())

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = (await committed(scanner, await born(scanner, chain), *chain.blocks)).cursor
            emptied.execute("UPDATE app.payment_requests SET next_reconcile_at = NULL")
            before = request_of(emptied, failed)
            other = chain.branch(100)
            other.mine()
            done = await rolled_back(scanner, cursor, chain.fork_to(other, 100))
            assert (done.touched, done.orphaned) == (1, 2)
            assert request_of(emptied, failed) == before
            assert ids_of(await claimed(scanner)) == [confirmed]

    asyncio.run(story())


def test_another_programs_settlements_and_other_networks_are_left_as_they_are(emptied: Emptied) -> None:
    """Seen to fail without the mark of our own, and without the network."""
    foreign = emptied.insert(address_canonical="0xaa")
    elsewhere = emptied.insert(address_canonical="0xbb", network="sepolia")
    chain = Chain(first=100)
    chain.mined(2)
    with emptied.connect() as connection:
        for id_, metadata in ((foreign, "{}"), (elsewhere, '{"first_block_time": "2026-01-01T00:00:00Z"}')):
            connection.execute(
                "INSERT INTO app.payment_request_settlements (payment_request_id, evidence_ref, amount_minor, "
                "confirmations, block_height, block_hash, metadata, first_seen_at, last_seen_at) "
                "VALUES (%s, 'x', 1, 1, 101, %s, %s, now(), now())",
                [id_, chain.blocks[1].block_hash, metadata],
            )
    put_off(emptied)

    async def story() -> None:
        async with store(emptied) as scanner:
            before = [settlements_of(emptied, id_) for id_ in (foreign, elsewhere)]
            done, _ = await reorged(scanner, chain)
            assert (done.touched, done.orphaned) == (0, 0)
            assert [settlements_of(emptied, id_) for id_ in (foreign, elsewhere)] == before

    asyncio.run(story())


def test_a_payment_mined_again_elsewhere_keeps_the_time_at_which_it_was_first_seen(
    emptied: Emptied,
) -> None:
    """Also with another log index, which is another evidence_ref.

    Seen to fail (the time moves, the payment becomes late) when each settlement keeps its own block's time.
    """
    id_ = emptied.insert(address_canonical=ADDRESS, **TOKEN)
    chain = Chain(first=100)
    chain.mine()
    first = chain.mine(token(ADDRESS, USDT, 7, "t", 3), time=now())

    async def story() -> None:
        async with store(emptied) as scanner:

            def build(other: Chain) -> None:
                other.mine()
                other.mine(token(ADDRESS, USDT, 7, "t", 9), time=now() + timedelta(minutes=5))

            done, other = await reorged(scanner, chain, build=build)
            assert settlements_of(emptied, id_)[f"{hash_of('t')}:3"]["is_canonical"] is False
            await committed(scanner, done.cursor, *other.blocks[1:])

    asyncio.run(story())
    rows = settlements_of(emptied, id_)
    assert {ref: row["is_canonical"] for ref, row in rows.items()} == {
        f"{hash_of('t')}:3": False,
        f"{hash_of('t')}:9": True,
    }
    assert {row["metadata"]["first_block_time"] for row in rows.values()} == {first.time.strftime("%Y-%m-%dT%H:%M:%SZ")}


def test_a_payment_mined_again_as_it_was_loses_its_proof(emptied: Emptied) -> None:
    """Seen to fail (an old proof beside a new block) when the proof stays in the metadata."""
    id_ = emptied.insert(address_canonical=ADDRESS)
    chain = Chain(first=100)
    chain.mine()
    first = chain.mine(ether(ADDRESS, 7, "t"), time=now())

    async def story() -> None:
        async with store(emptied) as scanner:

            def build(other: Chain) -> None:
                other.mine()
                other.mine(ether(ADDRESS, 7, "t"), time=now() + timedelta(minutes=5))

            done, other = await reorged(scanner, chain, build=build)
            again = await committed(scanner, done.cursor, *other.blocks[1:])
            (row,) = settlements_of(emptied, id_).values()
            assert (row["is_canonical"], row["block_height"]) == (True, 102)
            assert row["block_hash"] == other.blocks[2].block_hash
            assert row["metadata"] == {"first_block_time": first.time.strftime("%Y-%m-%dT%H:%M:%SZ")}
            # and back to the very first block
            back = other.branch(100)
            back.blocks += [first]
            for _ in range(2):
                back.mine()
            done = await rolled_back(scanner, again.cursor, other.fork_to(back, 100))
            (row,) = settlements_of(emptied, id_).values()
            assert row["metadata"]["reorg"]["block_hash"] == other.blocks[2].block_hash
            await committed(scanner, done.cursor, *back.blocks[1:])
            (row,) = settlements_of(emptied, id_).values()
            assert (row["is_canonical"], row["block_hash"], row["amount_minor"]) == (True, first.block_hash, 7)
            assert row["metadata"] == {"first_block_time": first.time.strftime("%Y-%m-%dT%H:%M:%SZ")}

    asyncio.run(story())


def test_a_fork_below_what_is_final_is_refused(emptied: Emptied) -> None:
    """Seen to fail without the height in the rollback's fence."""
    emptied.insert(address_canonical=ADDRESS)
    chain = Chain(first=100)
    chain.mined(3)
    chain.mine(ether(ADDRESS, 7), time=now())
    other = chain.branch(100)
    other.mined(5)

    async def story() -> None:
        async with store(emptied) as scanner:
            tags = Tags(103, finalized=chain.blocks[1].header)
            cursor = (await committed(scanner, await born(scanner, chain), *chain.blocks, tags=tags)).cursor
            assert cursor.finalized_height == 101
            before = everything(emptied)
            fork = chain.fork_to(other, 100)
            assert await ledger.roll_back(scanner, cursor, fork, lease_seconds=30) is None
            assert everything(emptied) == before
            later = chain.branch(101)
            later.mined(5)
            assert (await rolled_back(scanner, cursor, chain.fork_to(later, 101))).orphaned == 1

    asyncio.run(story())


def test_a_rollback_gives_no_tag_to_a_chain_that_has_none(emptied: Emptied) -> None:
    """Seen to fail (safe up to the fork) when `least` is taken of an unknown height."""
    chain = Chain(first=100)
    chain.mined(5)
    other = chain.branch(102)
    other.mined(5)

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = (await committed(scanner, await born(scanner, chain), *chain.blocks)).cursor
            await rolled_back(scanner, cursor, chain.fork_to(other, 102))
            after = cursor_of(emptied)
            assert (after["safe_height"], after["finalized_tag_height"]) == (None, None)

    asyncio.run(story())


@pytest.mark.parametrize(
    "change",
    [
        "scan_lease_owner = 'host-1#00000000000000bb'",
        "scan_lease_epoch = scan_lease_epoch + 1",
        "next_height = next_height + 1",
        "tip_hash = '0xother'",
        "stop_reason = 'stopped'",
    ],
)
def test_a_rollback_by_one_who_lost_the_cursor_changes_nothing(emptied: Emptied, change: str) -> None:
    """Seen to fail without the fence (another's settlements would be orphaned)."""
    emptied.insert(address_canonical=ADDRESS)
    chain = Chain(first=100)
    chain.mine()
    chain.mine(ether(ADDRESS, 7), time=now())
    other = chain.branch(100)
    other.mined(3)

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = (await committed(scanner, await born(scanner, chain), *chain.blocks)).cursor
            emptied.execute(f"UPDATE app.chain_cursors SET {change}")
            before = everything(emptied)
            fork = chain.fork_to(other, 100)
            assert await ledger.roll_back(scanner, cursor, fork, lease_seconds=30) is None
            assert everything(emptied) == before

    asyncio.run(story())


def test_a_rollback_to_just_below_the_tail_empties_it(emptied: Emptied) -> None:
    chain = Chain(first=100)
    chain.mined(3)
    other = Chain(first=100, name="other")
    other.parent = chain.parent
    other.mined(4)

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = (await committed(scanner, await born(scanner, chain), *chain.blocks)).cursor
            done = await rolled_back(scanner, cursor, chain.fork_to(other, 99))
            assert (done.cursor.next_height, done.cursor.tail_start) == (100, 100)
            stored = await cursors.stored_hashes(scanner, done.cursor)
            assert stored == {99: chain.parent.block_hash}
            assert (await committed(scanner, done.cursor, *other.blocks)).cursor.next_height == 104

    asyncio.run(story())


def test_stored_hashes_are_the_tail_with_the_block_below_it_and_the_tip(emptied: Emptied) -> None:
    """A reorg that takes exactly the tail's first block forks at the one below; it was seen to stop the network."""
    chain = Chain(first=100)

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = await born(scanner, chain)
            assert await cursors.stored_hashes(scanner, cursor) == {99: chain.parent.block_hash}
            cursor = (await committed(scanner, cursor, *chain.mined(2))).cursor
            below = {99: chain.parent.block_hash}
            assert await cursors.stored_hashes(scanner, cursor) == below | {
                b.height: b.block_hash for b in chain.blocks
            }

    asyncio.run(story())


@pytest.mark.parametrize("who", ["rollback", "persist"])
def test_rollback_and_persist_do_not_deadlock(emptied: Emptied, who: str) -> None:
    """Seen to fail (40P01) when the rollback does not lock in the order of the ids."""
    emptied.insert(id="b", address_canonical="0xbb")
    emptied.insert(id="a", address_canonical="0xaa")
    url = without(emptied.direct_url, "indexscan", "bitmapscan")  # so that rows come as they were inserted
    chain = Chain(first=100)
    chain.mine()
    chain.mine(ether("0xbb", 1, "1"), time=now())
    chain.mine(ether("0xaa", 1, "2"))
    other = chain.branch(100)
    other.mined(3)

    async def story() -> None:
        async with (
            Stepped(url, name="rollback") as scanner,
            Stepped(emptied.url, name="persist") as worker,
            store(emptied) as helper,
        ):
            cursor = (await committed(helper, await born(helper, chain), *chain.blocks)).cursor
            batch = await claimed(helper)
            assert len(batch.claims) == 2

            def start(name: str) -> asyncio.Task[Any]:
                if name == "rollback":
                    return asyncio.create_task(rolled_back(scanner, cursor, chain.fork_to(other, 100)))
                outcome = all_of(batch, decided(Status.PENDING, seconds=60.0))
                return asyncio.create_task(persist(worker, batch, outcome, worker_id="w"))

            with emptied.connect(autocommit=False) as holder:
                holder.execute("SELECT 1 FROM app.payment_requests WHERE id = 'b' FOR UPDATE")
                tasks = []
                for name in (who, "persist" if who == "rollback" else "rollback"):
                    tasks.append(start(name))
                    await until_blocked(emptied.url, name)
            await asyncio.gather(*tasks)
            assert len([s for s in scanner.sent if "WITH orphaned" in s]) == 1
            assert len([s for s in worker.sent if "WITH locked" in s]) == 1

    asyncio.run(story())
