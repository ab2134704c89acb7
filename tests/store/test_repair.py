"""Settlements of ours that another program disowned: repaired where nothing proves it right."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from reconsup.payments.request import Network
from reconsup.store import admission
from tests.support.ledgers import (
    OTHER,
    Chain,
    Emptied,
    born,
    claimed,
    committed,
    ether,
    now,
    rolled_back,
    settlements_of,
    store,
    with_epochs,
)
from tests.support.stepped import Stepped, until_done_or_blocked

pytestmark = pytest.mark.service

ADDRESS = "0x" + "ab" * 20


def insert(database: Emptied, **columns: Any) -> str:
    return database.insert(**{"address_canonical": ADDRESS, **columns})


def test_what_another_program_disowned_without_a_proof_is_repaired(emptied: Emptied) -> None:
    id_ = insert(emptied)
    chain = Chain(first=100)
    chain.mine(ether(ADDRESS, 3, "t"), time=now())

    async def story() -> None:
        async with store(emptied) as worker:
            await committed(worker, await born(worker, chain), *chain.blocks)
            before = settlements_of(emptied, id_)
            emptied.execute("UPDATE app.payment_request_settlements SET is_canonical = false")
            batch = await claimed(worker)
            assert await admission.repair(worker, batch, [id_]) == 1
            assert await admission.repair(worker, batch, [id_]) == 0
            (row,) = settlements_of(emptied, id_).values()
            (old,) = before.values()
            assert {k for k in row if row[k] != old[k]} == {"updated_at"}

    asyncio.run(story())


@pytest.mark.parametrize("why", ["proof", "not ours", "another block", "another request"])
def test_nothing_else_is_repaired(emptied: Emptied, why: str) -> None:
    """Seen to fail for each when its condition is taken out."""
    id_ = insert(emptied)
    bystander = insert(emptied, address_canonical="0xbystander")
    chain = Chain(first=100)
    chain.mine()
    chain.mine(ether(ADDRESS, 3, "t"), time=now())
    other = chain.branch(100)
    other.mined(2)

    async def story() -> None:
        async with store(emptied) as worker:
            cursor = (await committed(worker, await born(worker, chain), *chain.blocks)).cursor
            batch = await claimed(worker)
            match why:
                case "proof":
                    await rolled_back(worker, cursor, chain.fork_to(other, 100))
                case "not ours":
                    emptied.execute("UPDATE app.payment_request_settlements SET metadata = '{}'")
                case "another block":
                    emptied.execute("UPDATE app.payment_request_settlements SET block_hash = '0xanother'")
            emptied.execute("UPDATE app.payment_request_settlements SET is_canonical = false")
            before = settlements_of(emptied, id_)
            ids = [bystander] if why == "another request" else [id_, bystander]
            assert await admission.repair(worker, batch, ids) == 0
            assert settlements_of(emptied, id_) == before

    asyncio.run(story())


def test_below_the_tail_a_disowned_settlement_is_still_ours(emptied: Emptied) -> None:
    id_ = insert(emptied)
    chain = Chain(first=100)
    chain.mine(ether(ADDRESS, 3, "t"), time=now())

    async def story() -> None:
        async with store(emptied) as worker:
            await committed(worker, await born(worker, chain), *chain.blocks)
            emptied.execute("UPDATE app.payment_request_settlements SET is_canonical = false")
            emptied.execute("UPDATE app.chain_cursors SET tail_start = 101")
            emptied.execute("DELETE FROM app.chain_blocks")
            assert await admission.repair(worker, await claimed(worker), [id_]) == 1

    asyncio.run(story())


def test_below_the_tail_a_proof_still_stands(emptied: Emptied) -> None:
    """Seen to fail (orphaned money made canonical) when the proof is not asked for."""
    id_ = insert(emptied)
    chain = Chain(first=100)
    chain.mine()
    chain.mine(ether(ADDRESS, 3, "t"), time=now())
    other = chain.branch(100)
    other.mined(2)

    async def story() -> None:
        async with store(emptied) as worker:
            cursor = (await committed(worker, await born(worker, chain), *chain.blocks)).cursor
            await rolled_back(worker, cursor, chain.fork_to(other, 100))
            emptied.execute("UPDATE app.chain_cursors SET tail_start = 102")
            before = settlements_of(emptied, id_)
            assert await admission.repair(worker, await claimed(worker), [id_]) == 0
            assert settlements_of(emptied, id_) == before

    asyncio.run(story())


def test_a_repair_waits_for_a_rollback_under_way_and_then_sees_its_proof(emptied: Emptied) -> None:
    """Seen to fail (made canonical although the cursor has left its block) without the lock on the cursor."""
    id_ = insert(emptied)
    chain = Chain(first=100)
    chain.mine()
    chain.mine(ether(ADDRESS, 3, "t"), time=now())
    other = chain.branch(100)
    other.mined(2)

    async def story() -> None:
        async with (
            Stepped(emptied.url, before="WITH orphaned AS", name="scanner") as scanner,
            store(emptied, "worker") as worker,
        ):
            cursor = (await committed(worker, await born(worker, chain), *chain.blocks)).cursor
            emptied.execute("UPDATE app.payment_request_settlements SET is_canonical = false")
            batch = await claimed(worker)
            rolling = asyncio.create_task(rolled_back(scanner, cursor, chain.fork_to(other, 100)))
            await scanner.reached()
            repairing = asyncio.create_task(admission.repair(worker, batch, [id_]))
            await until_done_or_blocked(emptied.url, "worker", repairing)
            scanner.go()
            await rolling
            assert await repairing == 0

    asyncio.run(story())


def test_admission_is_one_networks(emptied: Emptied) -> None:
    """The same address on another network, whose tail holds nothing of it."""
    sepolia = Network("ethereum", "sepolia")
    chain, there = Chain(first=100), Chain(first=100, name="sepolia")
    chain.mine(ether(ADDRESS, 3, "t"), time=now())
    there.mine()

    async def story() -> None:
        async with store(emptied) as worker:
            await committed(worker, await born(worker, chain), *chain.blocks)
            await committed(worker, await born(worker, there, network=sepolia), *there.blocks)
            id_ = insert(emptied, network="sepolia")
            await admission.admit(worker, await claimed(worker, network=sepolia))
            assert settlements_of(emptied, id_) == {}

    asyncio.run(story())


def test_who_lost_the_request_repairs_nothing_of_it(emptied: Emptied) -> None:
    """Seen to fail (its settlement written by a worker that is nobody there any more) without the lease in the lock."""
    id_ = insert(emptied)
    chain = Chain(first=100)
    chain.mine(ether(ADDRESS, 3, "t"), time=now())

    async def story() -> None:
        async with store(emptied) as worker:
            await committed(worker, await born(worker, chain), *chain.blocks)
            emptied.execute("UPDATE app.payment_request_settlements SET is_canonical = false")
            batch = await claimed(worker)
            before = settlements_of(emptied, id_)
            assert await admission.repair(worker, with_epochs(batch, -1), [id_]) == 0
            assert await admission.repair(worker, replace(batch, owner=OTHER), [id_]) == 0
            assert settlements_of(emptied, id_) == before
            assert await admission.repair(worker, batch, [id_]) == 1

    asyncio.run(story())


def test_a_repair_locks_its_requests_before_their_settlements(emptied: Emptied) -> None:
    """In the order of all: while somebody has the request, no settlement of it is locked.

    Seen to fail (repaired, while somebody decides the request) when the requests are not locked first.
    """
    id_ = insert(emptied)
    chain = Chain(first=100)
    chain.mine(ether(ADDRESS, 3, "t"), time=now())

    async def story() -> None:
        async with store(emptied, "worker") as worker:
            await committed(worker, await born(worker, chain), *chain.blocks)
            emptied.execute("UPDATE app.payment_request_settlements SET is_canonical = false")
            batch = await claimed(worker)
            with emptied.connect(autocommit=False) as other:
                other.execute("SELECT 1 FROM app.payment_requests WHERE id = %s FOR NO KEY UPDATE", [id_])
                repairing = asyncio.create_task(admission.repair(worker, batch, [id_]))
                await until_done_or_blocked(emptied.url, "worker", repairing)
                assert not repairing.done()
                other.execute("SELECT 1 FROM app.payment_request_settlements FOR NO KEY UPDATE NOWAIT")
            assert await repairing == 1

    asyncio.run(story())
