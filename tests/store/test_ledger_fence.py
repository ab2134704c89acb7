"""The ledger's fence and its locks: who lost the cursor writes nothing, and nobody waits in a circle."""

import asyncio
from typing import Any

import pytest

from reconsup.payments.request import Reason, Status
from reconsup.store import admission
from reconsup.store import cursor as cursors
from reconsup.store.errors import StoreRejected
from reconsup.store.persist import persist
from tests.support.ledgers import (
    LEASE_SECONDS,
    NETWORK,
    OTHER,
    OWNER,
    Chain,
    Emptied,
    all_of,
    born,
    claimed,
    commit,
    committed,
    decided,
    ether,
    everything,
    now,
    persisted,
    settlements_of,
    store,
)
from tests.support.stepped import Stepped, until_blocked, without

pytestmark = pytest.mark.service

ADDRESS = "0x" + "ab" * 20


def test_a_scanner_that_lost_the_lease_commits_nothing(emptied: Emptied) -> None:
    """Seen to fail (StoreRejected, two blocks at one height) when later statements are sent before the fence is read,
    and (its settlements stay) without owner and epoch in the fence.
    """
    emptied.insert(address_canonical=ADDRESS)
    chain = Chain()
    other = Chain()
    chain.mine(ether(ADDRESS, 7, "zombie's"), time=now())
    other.mine(ether(ADDRESS, 8, "successor's"), time=now())

    async def story() -> None:
        async with store(emptied) as zombie, store(emptied) as successor:
            stale = await born(zombie, chain, owner=OWNER)
            emptied.execute("UPDATE app.chain_cursors SET scan_lease_until = now() - interval '1 ms'")
            fresh = await cursors.take(successor, NETWORK, owner=OTHER, lease_seconds=LEASE_SECONDS)
            assert fresh is not None
            before = everything(emptied)
            assert await commit(zombie, stale, *chain.blocks) is None
            assert everything(emptied) == before
            await committed(successor, fresh, *other.blocks)
            before = everything(emptied)
            assert await commit(zombie, stale, *chain.blocks) is None
            assert everything(emptied) == before

    asyncio.run(story())
    assert emptied.fetch("SELECT amount_minor::int8 FROM app.payment_request_settlements") == [(8,)]


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
def test_each_part_of_the_cursors_fence_counts(emptied: Emptied, change: str) -> None:
    """Seen to fail for each when it is taken out of the fence."""
    emptied.insert(address_canonical=ADDRESS)
    chain = Chain()
    chain.mine()
    chain.mine(ether(ADDRESS, 7), time=now())

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = (await committed(scanner, await born(scanner, chain), chain.blocks[0])).cursor
            emptied.execute(f"UPDATE app.chain_cursors SET {change}")
            before = everything(emptied)
            assert await commit(scanner, cursor, chain.blocks[1]) is None
            assert everything(emptied) == before

    asyncio.run(story())


def test_of_two_scanners_with_the_same_block_one_commits(emptied: Emptied) -> None:
    """The one that waited reads a moved cursor. Seen to fail (StoreRejected) without next_height in the fence."""
    id_ = emptied.insert(address_canonical=ADDRESS)
    chain = Chain()
    chain.mine(ether(ADDRESS, 7), time=now())

    async def story() -> None:
        async with (
            Stepped(emptied.url, before="COMMIT", name="first") as first,
            store(emptied, "second") as second,
            store(emptied) as helper,
        ):
            cursor = await born(helper, chain)
            one = asyncio.create_task(commit(first, cursor, *chain.blocks))
            await first.reached()
            two = asyncio.create_task(commit(second, cursor, *chain.blocks))
            await until_blocked(emptied.url, "second")
            first.go()
            assert (await one) is not None
            assert (await two) is None

    asyncio.run(story())
    assert len(settlements_of(emptied, id_)) == 1


def test_a_scanner_that_dies_in_the_middle_leaves_nothing(emptied: Emptied) -> None:
    emptied.insert(address_canonical=ADDRESS)
    chain = Chain()
    chain.mine(ether(ADDRESS, 7), time=now())

    async def story() -> None:
        async with Stepped(emptied.url, before="INSERT INTO app.payment_request_settlements") as scanner:
            async with store(emptied) as helper:
                cursor = await born(helper, chain)
            before = everything(emptied)
            dying = asyncio.create_task(commit(scanner, cursor, *chain.blocks))
            await scanner.reached()
            dying.cancel()
            await asyncio.gather(dying, return_exceptions=True)
            assert everything(emptied) == before

    asyncio.run(story())


def test_a_request_that_is_deleted_under_the_commit_does_not_stop_it(emptied: Emptied) -> None:
    """A failed request is not locked before it is settled. Seen to fail (StoreRejected) when 23503 is not retried."""
    emptied.insert(address_canonical=ADDRESS, status="failed")
    chain = Chain()
    chain.mine(ether(ADDRESS, 7), time=now())

    async def story() -> None:
        async with store(emptied, "scanner") as scanner:
            cursor = await born(scanner, chain)
            with emptied.connect(autocommit=False) as other_service:
                other_service.execute("DELETE FROM app.payment_requests")
                committing = asyncio.create_task(committed(scanner, cursor, *chain.blocks))
                await until_blocked(emptied.url, "scanner")
            assert (await committing).settlements == 0

    asyncio.run(story())


def test_a_touch_that_is_refused_while_the_row_is_at_work_holds_up_its_block(emptied: Emptied) -> None:
    """Its worker does not know of the money, and what it decides might yet be written.

    Seen to fail (the block is stored, and the request expires although it was paid) when leased rows are left out too.
    """
    paid = emptied.insert(address_canonical="0xPAID")
    chain = Chain(begins=now())
    refuse = (
        "CREATE FUNCTION app.theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;"
        "CREATE TRIGGER theirs BEFORE UPDATE ON app.payment_requests FOR EACH ROW"
        " WHEN (NEW.reconcile_lease_owner IS NOT NULL) EXECUTE FUNCTION app.theirs()"
    )

    async def story() -> None:
        async with store(emptied) as worker, store(emptied) as scanner:
            cursor = await born(scanner, chain)
            batch = await claimed(worker)
            emptied.execute(refuse)
            try:
                with pytest.raises(StoreRejected):
                    await commit(scanner, cursor, chain.mine(ether("0xPAID", 1)))
                done = await persisted(worker, batch, decided(Status.EXPIRED, Reason.EXPIRED))
                assert done.written == {paid}
            finally:
                emptied.execute("DROP FUNCTION app.theirs CASCADE")
            assert await commit(scanner, cursor, chain.blocks[-1]) is not None  # and now it is late, and told

    asyncio.run(story())


@pytest.mark.parametrize("who", ["commit", "persist"])
def test_touch_and_persist_do_not_deadlock(emptied: Emptied, who: str) -> None:
    """Both lock requests by id. Seen to fail (40P01, a statement is sent again) when the touch does not."""
    second = emptied.insert(id="b", address_canonical="0xbb")
    first = emptied.insert(id="a", address_canonical="0xaa")
    url = without(emptied.direct_url, "indexscan", "bitmapscan")  # so that rows come as they were inserted
    chain = Chain()
    chain.mine(ether("0xbb", 1, "1"), ether("0xaa", 1, "2"), time=now())

    async def story() -> None:
        async with (
            Stepped(url, name="commit") as scanner,
            Stepped(emptied.url, name="persist") as worker,
            store(emptied) as helper,
        ):
            cursor = await born(helper, chain)
            batch = await claimed(helper)

            def start(name: str) -> asyncio.Task[Any]:
                if name == "commit":
                    return asyncio.create_task(committed(scanner, cursor, *chain.blocks))
                outcome = all_of(batch, decided(Status.PENDING, seconds=60.0))
                return asyncio.create_task(persist(worker, batch, outcome, worker_id="w"))

            with emptied.connect(autocommit=False) as holder:
                holder.execute("SELECT 1 FROM app.payment_requests WHERE id = %s FOR UPDATE", [second])
                tasks = []
                for name in (who, "persist" if who == "commit" else "commit"):
                    tasks.append(start(name))
                    await until_blocked(emptied.url, name)
            await asyncio.gather(*tasks)
            assert len([s for s in scanner.sent if "WITH touched" in s]) == 1
            assert len([s for s in worker.sent if "WITH locked" in s]) == 1

    asyncio.run(story())
    assert len(settlements_of(emptied, first)) == len(settlements_of(emptied, second)) == 1


@pytest.mark.parametrize("who", ["commit", "admission"])
def test_admission_and_commit_do_not_deadlock(emptied: Emptied, who: str) -> None:
    """Both take the cursor first, and requests after it.

    Seen to fail (40P01, a statement is sent again) when the commit touches before it moves the cursor, and when the
    admission locks its requests before the cursor.
    """
    id_ = emptied.insert(address_canonical=ADDRESS)
    chain = Chain()
    chain.mine(ether(ADDRESS, 7), time=now())

    async def story() -> None:
        async with (
            Stepped(emptied.url, name="commit") as scanner,
            Stepped(emptied.url, name="admission") as worker,
            store(emptied) as helper,
        ):
            cursor = await born(helper, chain)
            batch = await claimed(helper)

            def start(name: str) -> asyncio.Task[Any]:
                if name == "commit":
                    return asyncio.create_task(committed(scanner, cursor, *chain.blocks))
                return asyncio.create_task(admission.admit(worker, batch))

            with emptied.connect(autocommit=False) as holder:
                holder.execute("SELECT 1 FROM app.payment_requests FOR UPDATE")
                tasks = []
                for name in (who, "admission" if who == "commit" else "commit"):
                    tasks.append(start(name))
                    await until_blocked(emptied.url, name)
            await asyncio.gather(*tasks)
            assert len([s for s in scanner.sent if "SET next_height" in s]) == 1
            assert len([s for s in worker.sent if "SELECT 1 FROM app.chain_cursors" in s]) == 1

    asyncio.run(story())
    assert len(settlements_of(emptied, id_)) == 1
