"""The ledger: a block's money reaches its requests exactly once, and goes back with proof when the chain takes it."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reconsup.payments.request import Network, Status
from reconsup.store import cursor as cursors
from reconsup.store import leases, ledger
from reconsup.store.cursor import Tags
from reconsup.store.database import Database
from reconsup.store.persist import persist
from tests.support.ledgers import (
    LEASE_SECONDS,
    MONEY_MAX,
    NETWORK,
    OTHER,
    OWNER,
    SCANNER,
    Chain,
    Emptied,
    all_of,
    born,
    claimed,
    commit,
    committed,
    cursor_of,
    decided,
    ether,
    hash_of,
    ids_of,
    now,
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
MIXED_CASE = "0x" + "aB" * 20
TOKEN = {"token_standard": "ERC20", "token_contract": "0x" + "Cd" * 20, "token_decimals": 6, "asset": "USDT"}


def insert(database: Emptied, **columns: Any) -> str:
    return database.insert(**columns)


def everything(database: Emptied) -> list[list[tuple[Any, ...]]]:
    """All rows of all tables that a commit writes."""
    return [
        database.fetch(f"SELECT t::text FROM app.{table} t ORDER BY 1")
        for table in (
            "chain_cursors", "chain_blocks", "chain_credits", "payment_requests", "payment_request_settlements"
        )
    ]  # fmt: skip


def due_in_seconds(row: dict[str, Any]) -> float:
    return (row["next_reconcile_at"] - datetime.now(UTC)).total_seconds()


def put_off(database: Emptied) -> None:
    """Nothing is due: whoever is due after this was touched."""
    database.execute("UPDATE app.payment_requests SET next_reconcile_at = now() + interval '1 day'")


# blocks and credits


def test_blocks_and_all_their_credits_are_kept_and_the_cursor_moves(emptied: Emptied) -> None:
    chain = Chain(first=100)
    chain.mine(ether(ADDRESS, 5, "a"), token(ADDRESS, USDT, MONEY_MAX, "b", 3))
    chain.mine()
    chain.mine(ether("0xnobody", 1, "c"))

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = await born(scanner, chain)
            done = await committed(scanner, cursor, *chain.blocks, tags=Tags(107))
            assert (done.touched, done.settlements) == (0, 0)
            assert (done.cursor.next_height, done.cursor.tip_hash) == (103, chain.tip.block_hash)
            assert await cursors.read(scanner, NETWORK) is not None

    asyncio.run(story())
    row = cursor_of(emptied)
    assert (row["next_height"], row["tip_hash"], row["tip_time"]) == (103, chain.tip.block_hash, chain.tip.time)
    assert (row["head_height"], row["tail_start"], row["finalized_height"]) == (107, 100, 99)
    assert emptied.fetch(
        "SELECT height, block_hash, parent_hash, block_time FROM app.chain_blocks ORDER BY height"
    ) == [(b.height, b.block_hash, b.parent_hash, b.time) for b in chain.blocks]
    assert emptied.fetch(
        "SELECT height, evidence_ref, tx_hash, address, token_contract, amount_minor FROM app.chain_credits "
        "ORDER BY height, token_contract"
    ) == [
        (100, hash_of("a"), hash_of("a"), ADDRESS, "", 5),
        (100, f"{hash_of('b')}:3", hash_of("b"), ADDRESS, USDT, MONEY_MAX),
        (102, hash_of("c"), hash_of("c"), "0xnobody", "", 1),
    ]


def test_a_cursor_returned_by_a_commit_is_the_one_in_the_table(emptied: Emptied) -> None:
    chain = Chain(first=100)

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = await born(scanner, chain)
            for _ in range(3):
                cursor = (await committed(scanner, cursor, *chain.mined(40))).cursor
                stored = await cursors.read(scanner, NETWORK)
                assert stored is not None
                assert (stored.next_height, stored.tip_hash, stored.tip_time, stored.tail_start) == (
                    cursor.next_height, cursor.tip_hash, cursor.tip_time, cursor.tail_start
                )  # fmt: skip
                assert stored.finalized_height == cursor.finalized_height

    asyncio.run(story())


def test_what_is_pinned_in_a_settlement(emptied: Emptied) -> None:
    """Amounts to the last digit, the deepest figures, and the time of the block."""
    id_ = insert(emptied, address_canonical=MIXED_CASE, **TOKEN)
    chain = Chain(first=100)
    paid = chain.mine(token(ADDRESS, USDT, MONEY_MAX, "t", 4), time=now())
    chain.mine()

    async def story() -> None:
        async with store(emptied) as scanner:
            done = await committed(scanner, await born(scanner, chain), *chain.blocks)
            assert (done.touched, done.settlements) == (1, 1)

    asyncio.run(story())
    ((ref, row),) = settlements_of(emptied, id_).items()
    assert ref == f"{hash_of('t')}:4"
    assert (row["amount_minor"], row["block_height"], row["block_hash"]) == (MONEY_MAX, 100, paid.block_hash)
    assert (row["confirmations"], row["is_canonical"]) == (2, True)
    assert row["metadata"] == {"first_block_time": paid.time.strftime("%Y-%m-%dT%H:%M:%SZ")}
    assert row["first_seen_at"] == row["last_seen_at"]


@pytest.mark.parametrize(
    ("columns", "credit", "is_match"),
    [
        ({}, ether(ADDRESS, 7), True),
        ({"address_canonical": MIXED_CASE}, ether(ADDRESS, 7), True),
        (TOKEN, token(ADDRESS, USDT, 7), True),
        (TOKEN, ether(ADDRESS, 7), False),
        ({}, token(ADDRESS, USDT, 7), False),
        (TOKEN, token(ADDRESS, "0xanothertoken", 7), False),
        ({}, ether("0xanother", 7), False),
        ({"chain_id": 1}, ether(ADDRESS, 7), False),
        ({"chain_id": None}, ether(ADDRESS, 7), False),
        ({"network": "sepolia"}, ether(ADDRESS, 7), False),
        ({"chain": "bitcoin"}, ether(ADDRESS, 7), False),
        ({"token_standard": "ERC20"}, ether(ADDRESS, 7), False),
        ({"token_contract": TOKEN["token_contract"]}, token(ADDRESS, USDT, 7), False),
    ],
)
def test_a_credit_goes_to_the_request_with_its_address_token_and_chain(
    emptied: Emptied, columns: dict[str, Any], credit: Any, is_match: bool
) -> None:
    """Seen to fail for each when its condition is taken out of BELONGS."""
    id_ = insert(emptied, **{"address_canonical": ADDRESS, **columns})
    chain = Chain()
    chain.mine(credit, time=now())
    put_off(emptied)

    async def story() -> None:
        async with store(emptied) as scanner:
            done = await committed(scanner, await born(scanner, chain), *chain.blocks)
            assert (done.touched, done.settlements) == ((1, 1) if is_match else (0, 0))

    asyncio.run(story())
    assert [row["amount_minor"] for row in settlements_of(emptied, id_).values()] == ([7] if is_match else [])
    assert (due_in_seconds(request_of(emptied, id_)) <= 0) is is_match


@pytest.mark.parametrize(("minutes_older", "is_match"), [(14.9, True), (15.1, False)])
def test_a_block_much_older_than_the_request_matches_nothing(
    emptied: Emptied, minutes_older: float, is_match: bool
) -> None:
    """Seen to fail without the bound, and with one of an hour."""
    id_ = insert(emptied, address_canonical=ADDRESS)
    chain = Chain()
    chain.mine(ether(ADDRESS, 7), time=now() - timedelta(minutes=minutes_older))

    async def story() -> None:
        async with store(emptied) as scanner:
            await committed(scanner, await born(scanner, chain), *chain.blocks)

    asyncio.run(story())
    assert len(settlements_of(emptied, id_)) == is_match


@pytest.mark.parametrize("status", ["pending", "detected", "confirmed", "reorged", "expired"])
def test_a_payment_touches_its_request_whatever_the_status(emptied: Emptied, status: str) -> None:
    """A late payment is found by the same join. Seen to fail when the join asks for open statuses."""
    id_ = insert(emptied, address_canonical=ADDRESS, status=status, next_reconcile_at=None)
    chain = Chain()
    chain.mine(ether(ADDRESS, 7), time=now())

    async def story() -> None:
        async with store(emptied) as scanner:
            done = await committed(scanner, await born(scanner, chain), *chain.blocks)
            assert (done.touched, done.settlements) == (1, 1)
            assert ids_of(await claimed(scanner)) == [id_]

    asyncio.run(story())


@pytest.mark.parametrize("admitted", [None, 5])
def test_a_payment_is_settled_whether_admitted_or_not(emptied: Emptied, admitted: int | None) -> None:
    """Seen to fail when the join asks for an admitted height (the gap between admission and commit opens)."""
    id_ = insert(emptied, address_canonical=ADDRESS, reconcile_admitted_height=admitted)
    chain = Chain()
    chain.mine(ether(ADDRESS, 7), time=now())

    async def story() -> None:
        async with store(emptied) as scanner:
            await committed(scanner, await born(scanner, chain), *chain.blocks)

    asyncio.run(story())
    assert len(settlements_of(emptied, id_)) == 1


def test_a_failed_request_gets_its_settlement_and_no_touch(emptied: Emptied) -> None:
    """Seen to fail when the touch does not ask for the status, or the settlement does."""
    id_ = insert(emptied, address_canonical=ADDRESS, status="failed", next_reconcile_at=None, reconcile_due_height=1)
    before = request_of(emptied, id_)
    chain = Chain()
    chain.mine(ether(ADDRESS, 7), time=now())

    async def story() -> None:
        async with store(emptied) as scanner:
            done = await committed(scanner, await born(scanner, chain), *chain.blocks)
            assert (done.touched, done.settlements) == (0, 1)

    asyncio.run(story())
    assert request_of(emptied, id_) == before
    assert len(settlements_of(emptied, id_)) == 1


def test_a_touch_does_not_take_a_lease_away(emptied: Emptied) -> None:
    id_ = insert(emptied, address_canonical=ADDRESS)
    chain = Chain()
    chain.mine(ether(ADDRESS, 7), time=now())

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = await born(scanner, chain)
            await claimed(scanner)
            before = request_of(emptied, id_)
            await committed(scanner, cursor, *chain.blocks)
            after = request_of(emptied, id_)
            assert due_in_seconds(after) <= 0 < due_in_seconds(before)
            assert {k for k in after if after[k] != before[k]} == {"next_reconcile_at"}
            assert ids_of(await claimed(scanner, owner=OTHER)) == []

    asyncio.run(story())


def test_a_touch_never_puts_a_free_row_off(emptied: Emptied) -> None:
    """Seen to fail with `now()` in place of LEAST (the longest due would become the last)."""
    id_ = insert(emptied, address_canonical=ADDRESS, next_reconcile_at=now() - timedelta(hours=1))
    chain = Chain()
    chain.mine(ether(ADDRESS, 7), time=now())

    async def story() -> None:
        async with store(emptied) as scanner:
            await committed(scanner, await born(scanner, chain), *chain.blocks)

    asyncio.run(story())
    assert due_in_seconds(request_of(emptied, id_)) < -3000


def test_requests_whose_height_is_reached_are_touched(emptied: Emptied) -> None:
    """Seen to fail (one block early) with `<` moved by one, and (no touch) without that half of the union."""
    reached = insert(emptied, reconcile_due_height=101)
    ahead = insert(emptied, reconcile_due_height=102)
    elsewhere = insert(emptied, reconcile_due_height=101, network="sepolia")
    put_off(emptied)
    chain = Chain(first=100)

    async def story() -> None:
        async with store(emptied) as scanner:
            done = await committed(scanner, await born(scanner, chain), *chain.mined(2))
            assert done.touched == 1

    asyncio.run(story())
    row = request_of(emptied, reached)
    assert (row["reconcile_due_height"], due_in_seconds(row) <= 0) == (None, True)
    for id_ in (ahead, elsewhere):
        assert due_in_seconds(request_of(emptied, id_)) > 0
    assert request_of(emptied, ahead)["reconcile_due_height"] == 102


def test_a_payment_leaves_a_due_height_that_is_still_ahead(emptied: Emptied) -> None:
    id_ = insert(emptied, address_canonical=ADDRESS, reconcile_due_height=500)
    chain = Chain(first=100)
    chain.mine(ether(ADDRESS, 7), time=now())

    async def story() -> None:
        async with store(emptied) as scanner:
            await committed(scanner, await born(scanner, chain), *chain.blocks)

    asyncio.run(story())
    assert request_of(emptied, id_)["reconcile_due_height"] == 500


def test_the_same_blocks_tags_touch_what_waits_for_a_tag(emptied: Emptied) -> None:
    waits = insert(emptied, reconcile_due_height=101)
    put_off(emptied)
    chain = Chain(first=100)
    chain.mined(5)

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = await born(scanner, chain)
            for last, is_touched in ((102, False), (104, True)):
                blocks = [block for block in chain.blocks if cursor.next_height <= block.height <= last]
                tags = Tags(104, finalized=chain.blocks[last - 103].header)  # two blocks behind
                cursor = (await committed(scanner, cursor, *blocks, tags=tags, due_against="finalized")).cursor
                assert (due_in_seconds(request_of(emptied, waits)) <= 0) is is_touched

    asyncio.run(story())


def test_addresses_that_differ_only_in_case_settle_neither(emptied: Emptied) -> None:
    """Seen to fail (both are settled: one payment, two receipts) without the NOT EXISTS."""
    one = insert(emptied, address_canonical=ADDRESS)
    two = insert(emptied, address_canonical=MIXED_CASE)
    put_off(emptied)
    chain = Chain()
    chain.mine(ether(ADDRESS, 7), time=now())

    async def story() -> None:
        async with store(emptied) as scanner:
            done = await committed(scanner, await born(scanner, chain), *chain.blocks)
            assert (done.touched, done.settlements) == (2, 0)  # they learn of it, as a row error

    asyncio.run(story())
    assert (settlements_of(emptied, one), settlements_of(emptied, two)) == ({}, {})


def test_the_same_address_for_two_tokens_is_no_twin(emptied: Emptied) -> None:
    native = insert(emptied, address_canonical=ADDRESS)
    dollars = insert(emptied, address_canonical=MIXED_CASE, **TOKEN)
    chain = Chain()
    chain.mine(ether(ADDRESS, 7, "a"), token(ADDRESS, USDT, 8, "b"), time=now())

    async def story() -> None:
        async with store(emptied) as scanner:
            await committed(scanner, await born(scanner, chain), *chain.blocks)

    asyncio.run(story())
    assert [row["amount_minor"] for row in settlements_of(emptied, native).values()] == [7]
    assert [row["amount_minor"] for row in settlements_of(emptied, dollars).values()] == [8]


# the fence


def test_a_scanner_that_lost_the_lease_commits_nothing(emptied: Emptied) -> None:
    """Seen to fail (StoreRejected, two blocks at one height) when later statements are sent before the fence is read,
    and (its settlements stay) without owner and epoch in the fence.
    """
    insert(emptied, address_canonical=ADDRESS)
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
    insert(emptied, address_canonical=ADDRESS)
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
    id_ = insert(emptied, address_canonical=ADDRESS)
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
    insert(emptied, address_canonical=ADDRESS)
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
    insert(emptied, address_canonical=ADDRESS, status="failed")
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


@pytest.mark.parametrize("who", ["commit", "persist"])
def test_touch_and_persist_do_not_deadlock(emptied: Emptied, who: str) -> None:
    """Both lock requests by id. Seen to fail (40P01, a statement is sent again) when the touch does not."""
    second = insert(emptied, id="b", address_canonical="0xbb")
    first = insert(emptied, id="a", address_canonical="0xaa")
    url = without(emptied.url, "indexscan", "bitmapscan")  # so that rows come as they were inserted
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


# the tail


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
            ahead = Tags(109, safe=chain.blocks[9].header, finalized=chain.blocks[5].header)
            cursor = (await committed(scanner, cursor, chain.blocks[9], tags=ahead)).cursor
            assert (cursor.finalized_height, cursor_of(emptied)["safe_height"]) == (105, 109)
            back = Tags(109, safe=chain.blocks[8].header, finalized=chain.blocks[4].header)
            kept = await cursors.keep(scanner, cursor, back, lease_seconds=30, due_against="scanned")
            assert kept is not None
            assert (kept.finalized_height, cursor_of(emptied)["safe_height"]) == (105, 108)  # final stays final

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


# reorgs


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
    lost = insert(emptied, address_canonical="0xaa")
    safe = insert(emptied, address_canonical="0xbb")
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
    confirmed = insert(emptied, address_canonical="0xaa", status="confirmed", next_reconcile_at=None)
    failed = insert(emptied, address_canonical="0xbb", status="failed", next_reconcile_at=None)
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
    foreign = insert(emptied, address_canonical="0xaa")
    elsewhere = insert(emptied, address_canonical="0xbb", network="sepolia")
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
    id_ = insert(emptied, address_canonical=ADDRESS, **TOKEN)
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
    id_ = insert(emptied, address_canonical=ADDRESS)
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
    insert(emptied, address_canonical=ADDRESS)
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
    insert(emptied, address_canonical=ADDRESS)
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


def test_stored_hashes_are_the_tail_and_the_tip(emptied: Emptied) -> None:
    chain = Chain(first=100)

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = await born(scanner, chain)
            assert await cursors.stored_hashes(scanner, cursor) == {99: chain.parent.block_hash}
            cursor = (await committed(scanner, cursor, *chain.mined(2))).cursor
            assert await cursors.stored_hashes(scanner, cursor) == {b.height: b.block_hash for b in chain.blocks}

    asyncio.run(story())


@pytest.mark.parametrize("who", ["rollback", "persist"])
def test_rollback_and_persist_do_not_deadlock(emptied: Emptied, who: str) -> None:
    """Seen to fail (40P01) when the rollback does not lock in the order of the ids."""
    insert(emptied, id="b", address_canonical="0xbb")
    insert(emptied, id="a", address_canonical="0xaa")
    url = without(emptied.url, "indexscan", "bitmapscan")  # so that rows come as they were inserted
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


# who is not served


def test_rows_of_other_chains_and_networks_never_change(emptied: Emptied) -> None:
    """Not by a claim, a commit, a rollback, a sweep, a release or a burial. Whole rows are compared."""
    for columns in (
        {"chain": "bitcoin", "network": "regtest", "asset": "BTC", "chain_id": None, "address_scheme": "bip84_p2wpkh"},
        {"chain": "bitcoin", "network": "local", "chain_id": None},
        {"network": "mainnet", "chain_id": 1},
        {"network": "sepolia", "reconcile_due_height": 1},
    ):
        insert(emptied, address_canonical=ADDRESS, expires_at=now() - timedelta(days=2), **columns)
        insert(emptied, address_canonical=MIXED_CASE, next_reconcile_at=None, **columns)
    served = insert(emptied, address_canonical=ADDRESS)
    chain = Chain(first=100)
    chain.mine()
    chain.mine(ether(ADDRESS, 7), time=now())
    other = chain.branch(100)
    other.mined(2)

    def others() -> list[tuple[Any, ...]]:
        return emptied.fetch(
            "SELECT r::text, xmin::text FROM app.payment_requests r WHERE id <> %s ORDER BY id", [served]
        )

    async def story() -> None:
        before = others()
        async with store(emptied) as worker:
            cursor = (await committed(worker, await born(worker, chain, owner=SCANNER), *chain.blocks)).cursor
            batch = await claimed(worker)
            assert ids_of(batch) == [served]
            await leases.renew(worker, batch, lease_seconds=30)
            await rolled_back(worker, cursor, chain.fork_to(other, 100))
            await persist(worker, batch, all_of(batch, decided(Status.PENDING, height=1)), worker_id="w")
            await leases.sweep(worker, [NETWORK])
            await leases.release(worker, OWNER)
            await leases.bury(worker, incarnation="00000000000000cc", owner=SCANNER, row=None)
        assert others() == before

    asyncio.run(story())
    assert emptied.fetch(
        "SELECT count(*) FROM app.payment_request_settlements WHERE payment_request_id <> %s", [served]
    ) == [(0,)]
