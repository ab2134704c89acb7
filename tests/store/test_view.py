"""The view: what decisions look at, from one snapshot, as it is stored."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reconsup.payments.decision import Counted
from reconsup.payments.request import Reason, Status
from reconsup.payments.settlement import Orphaning, Settlement
from reconsup.store import cursor as cursors
from reconsup.store import view
from reconsup.store.cursor import Tags
from reconsup.store.database import Database
from reconsup.store.persist import persist
from tests.support.ledgers import (
    GENESIS,
    MONEY_MAX,
    NETWORK,
    Chain,
    Emptied,
    all_of,
    born,
    claimed,
    committed,
    decided,
    ether,
    hash_of,
    now,
    rolled_back,
    settlements_of,
    store,
)

pytestmark = pytest.mark.service

ADDRESS = "0x" + "ab" * 20
MIXED_CASE = "0x" + "aB" * 20


def insert(database: Emptied, **columns: Any) -> str:
    return database.insert(**{"address_canonical": ADDRESS, **columns})


async def seen(database: Database, *ids: str, expiry_confirmations: int = 12) -> view.View:
    result = await view.read(database, NETWORK, ids, expiry_confirmations=expiry_confirmations)
    assert result is not None
    return result


# the chain


def test_nothing_is_seen_of_a_network_without_a_cursor_or_a_block(emptied: Emptied) -> None:
    id_ = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            assert await view.read(worker, NETWORK, [id_], expiry_confirmations=12) is None
            await cursors.birth(worker, NETWORK, chain_id=31337, genesis_hash=GENESIS, parent=None)
            assert await view.read(worker, NETWORK, [id_], expiry_confirmations=12) is None

    asyncio.run(story())


def test_the_chain_as_it_was_scanned(emptied: Emptied) -> None:
    id_ = insert(emptied)
    chain = Chain(first=100)
    chain.mined(30)

    async def story() -> None:
        async with store(emptied) as worker:
            tags = Tags(200, safe=chain.blocks[20].header, finalized=chain.blocks[10].header)
            await committed(worker, await born(worker, chain), *chain.blocks, tags=tags)
            here = (await seen(worker, id_)).chain
            assert (here.chain_id, here.scanned_height, here.tip_time) == (31337, 129, chain.tip.time)
            assert (here.safe_height, here.finalized_height) == (120, 110)
            assert here.block_seconds == 12.0
            age_seconds = (datetime.now(UTC) - chain.tip.time).total_seconds()
            assert here.tip_age_seconds == pytest.approx(age_seconds, abs=5)

    asyncio.run(story())


@pytest.mark.parametrize("confirmations", [1, 12, 30, 31])
def test_the_expiry_block_is_exactly_so_many_confirmations_deep(emptied: Emptied, confirmations: int) -> None:
    """Seen to fail with the height moved by one."""
    id_ = insert(emptied)
    chain = Chain(first=100)
    chain.mined(30)

    async def story() -> None:
        async with store(emptied) as worker:
            await committed(worker, await born(worker, chain), *chain.blocks)
            here = (await seen(worker, id_, expiry_confirmations=confirmations)).chain
            if confirmations > 30:
                assert here.expiry_time is None
                return
            (block,) = [block for block in chain.blocks if block.time == here.expiry_time]
            depth = Settlement("x", 1, block.height, block.block_hash, block.time).confirmations(here.scanned_height)
            assert depth == confirmations

    asyncio.run(story())


def test_a_cursor_that_was_just_born_has_no_spacing_and_no_expiry(emptied: Emptied) -> None:
    id_ = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain(first=100))
            here = (await seen(worker, id_)).chain
            assert (here.scanned_height, here.block_seconds, here.expiry_time) == (99, 12.0, None)

    asyncio.run(story())


def test_spacing_is_that_of_recent_blocks(emptied: Emptied) -> None:
    id_ = insert(emptied)
    chain = Chain(first=100, begins=now() - timedelta(hours=5))
    chain.mined(100)
    for _ in range(70):
        chain.mine(time=chain.tip.time + timedelta(seconds=2))

    async def story() -> None:
        async with store(emptied) as worker:
            await committed(worker, await born(worker, chain), *chain.blocks)
            assert (await seen(worker, id_)).chain.block_seconds == 2.0

    asyncio.run(story())


# settlements


def test_settlements_are_read_to_the_last_digit_in_the_order_of_the_chain(emptied: Emptied) -> None:
    id_, other = insert(emptied), insert(emptied, address_canonical="0xother")
    chain = Chain(first=100)
    first = chain.mine(ether(ADDRESS, MONEY_MAX, "z"), time=now())
    second = chain.mine(ether(ADDRESS, 1, "a"))

    async def story() -> None:
        async with store(emptied) as worker:
            await committed(worker, await born(worker, chain), *chain.blocks)
            facts = (await seen(worker, id_, other, "no-such-request")).facts
            assert facts.keys() == {id_, other}
            assert facts[other].settlements == ()
            assert facts[id_].settlements == (
                Settlement(hash_of("z"), MONEY_MAX, 100, first.block_hash, first.time),
                Settlement(hash_of("a"), 1, 101, second.block_hash, second.time),
            )

    asyncio.run(story())


def test_another_programs_settlements_are_not_seen(emptied: Emptied) -> None:
    """Below the tail, where no stored block is asked for. Seen to fail (unreadable) without the mark of our own."""
    id_ = insert(emptied)
    emptied.execute(
        "INSERT INTO app.payment_request_settlements (payment_request_id, evidence_ref, amount_minor, confirmations, "
        "block_height, block_hash, first_seen_at, last_seen_at) VALUES (%s, 'theirs', 5, 9, 50, '0xb', now(), now())",
        [id_],
    )

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            assert (await seen(worker, id_)).facts[id_].settlements == ()

    asyncio.run(story())


def test_a_proof_orphans_a_settlement(emptied: Emptied) -> None:
    id_ = insert(emptied)
    chain = Chain(first=100)
    chain.mine()
    orphan = chain.mine(ether(ADDRESS, 3, "t"), time=now())
    other = chain.branch(100)
    other.mined(2)

    async def story() -> None:
        async with store(emptied) as worker:
            cursor = (await committed(worker, await born(worker, chain), *chain.blocks)).cursor
            await rolled_back(worker, cursor, chain.fork_to(other, 100))
            proof = Orphaning(101, orphan.block_hash, other.blocks[1].block_hash, 101)
            for is_flagged in (True, False):  # the flag is everybody's to write
                result = await seen(worker, id_)
                (settlement,) = result.facts[id_].settlements
                assert settlement.orphaning == proof
                assert result.disowned == ()
                emptied.execute("UPDATE app.payment_request_settlements SET is_canonical = %s", [is_flagged])

    asyncio.run(story())


@pytest.mark.parametrize(
    "metadata",
    [
        '{"first_block_time": "2026-01-01T00:00:00Z"}',
        '{"first_block_time": "2026-01-01T00:00:00Z", "reorg": null}',
        '{"first_block_time": "2026-01-01T00:00:00Z", "reorg": {"block_hash": "0xold", "height": 1, '
        '"new_hash": "0x", "scanned_height": 2}}',
    ],
    ids=["no proof", "a null", "an old block's"],
)
def test_a_flag_without_a_proof_of_this_block_is_disowned_not_orphaned(emptied: Emptied, metadata: str) -> None:
    """Seen to fail (a demotion that nothing proves) when any proof will do."""
    id_, other = insert(emptied), insert(emptied, address_canonical="0xother")
    emptied.execute(
        "INSERT INTO app.payment_request_settlements (payment_request_id, evidence_ref, amount_minor, confirmations, "
        "block_height, block_hash, is_canonical, metadata, first_seen_at, last_seen_at) "
        "VALUES (%s, 'ours', 5, 9, 100, '0xb', false, %s, now(), now())",
        [id_, metadata],
    )

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            result = await seen(worker, id_, other)
            assert result.disowned == (id_,)
            assert [each.orphaning for each in result.facts[id_].settlements] == [None]

    asyncio.run(story())


@pytest.mark.parametrize(
    "metadata",
    ['{"first_block_time": "yesterday"}', '{"first_block_time": null}', '{"first_block_time": "2026-01-01T00:00:00Z", '
     '"reorg": {"block_hash": "0xb"}}'],
)  # fmt: skip
def test_a_settlement_that_nobody_can_read_is_its_own_requests_error(emptied: Emptied, metadata: str) -> None:
    """Seen to fail (no request of the batch is decided any more) when it is read like the others."""
    id_, other = insert(emptied), insert(emptied, address_canonical="0xother")
    emptied.execute(
        "INSERT INTO app.payment_request_settlements (payment_request_id, evidence_ref, amount_minor, confirmations, "
        "block_height, block_hash, is_canonical, metadata, first_seen_at, last_seen_at) "
        "VALUES (%s, 'ours', 5, 9, 100, '0xb', false, %s, now(), now())",
        [id_, metadata],
    )

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            result = await seen(worker, id_, other)
            assert result.facts.keys() == {other}
            assert result.unreadable.keys() == {id_}
            assert result.unreadable[id_].startswith("settlement metadata: ")

    asyncio.run(story())


# requests


@pytest.mark.parametrize(
    ("twin", "is_shared"),
    [
        ({"address_canonical": MIXED_CASE}, True),
        ({"address_canonical": MIXED_CASE, "status": "failed"}, True),
        ({"address_canonical": MIXED_CASE, "network": "sepolia"}, False),
        ({"address_canonical": MIXED_CASE, "chain_id": 1}, False),
        ({"address_canonical": MIXED_CASE, "token_standard": "ERC20", "token_contract": "0xcd"}, False),
        ({"address_canonical": "0xother"}, False),
    ],
)
def test_who_shares_its_address(emptied: Emptied, twin: dict[str, Any], is_shared: bool) -> None:
    """Seen to fail for each when its condition is taken out."""
    id_ = insert(emptied)
    insert(emptied, **twin)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            assert (await seen(worker, id_)).facts[id_].shares_address is is_shared

    asyncio.run(story())


def test_how_long_ago_it_was_confirmed_and_what_its_expiry_knew(emptied: Emptied) -> None:
    confirmed, expired, pending = (insert(emptied, address_canonical=f"0x{n}") for n in range(3))
    evidence = (
        Settlement("0xaa:7", 1, 100, "0xb", now()),
        Settlement("0xbb", 1, 100, "0xb", now()),
        Settlement("0xcc", 1, 100, "0xb", now(), Orphaning(100, "0xb", "0xnew", 105)),  # not counted, so not known
    )

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            outcomes = all_of(batch, decided(Status.PENDING, seconds=1.0)) | {
                confirmed: decided(Status.CONFIRMED, Reason.CONFIRMED),
                expired: decided(Status.EXPIRED, Reason.UNDERPAID_EXPIRED, evidence=evidence),
            }
            await persist(worker, batch, outcomes, worker_id="w")
            emptied.execute(
                "UPDATE app.payment_request_transitions SET created_at = created_at - interval '1 hour' "
                "WHERE to_status = 'confirmed'"
            )
            facts = (await seen(worker, confirmed, expired, pending)).facts
            assert facts[confirmed].confirmed_age_seconds == pytest.approx(3600, abs=60)
            counted = facts[expired].counted
            assert counted is not None
            assert counted.amounts.keys() == {"0xaa", "0xbb"}
            assert facts[confirmed].counted == Counted()
            assert facts[pending].confirmed_age_seconds is None
            assert facts[pending].counted is None

    asyncio.run(story())


def test_a_request_confirmed_by_another_program_has_no_age(emptied: Emptied) -> None:
    id_ = insert(emptied, status="confirmed")

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            assert (await seen(worker, id_)).facts[id_].confirmed_age_seconds is None
            assert settlements_of(emptied, id_) == {}

    asyncio.run(story())
