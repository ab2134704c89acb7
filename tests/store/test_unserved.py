"""Rows of chains and networks that this process does not serve: no column changes, ever."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from reconsup.payments.request import Status
from reconsup.store import leases
from reconsup.store.persist import persist
from tests.support.ledgers import (
    NETWORK,
    OWNER,
    SCANNER,
    Chain,
    Emptied,
    all_of,
    born,
    claimed,
    committed,
    decided,
    ether,
    ids_of,
    now,
    rolled_back,
    store,
)

pytestmark = pytest.mark.service

ADDRESS = "0x" + "ab" * 20
MIXED_CASE = "0x" + "aB" * 20


def test_rows_of_other_chains_and_networks_never_change(emptied: Emptied) -> None:
    """Not by a claim, a commit, a rollback, a sweep, a release or a burial. Whole rows are compared."""
    for columns in (
        {"chain": "bitcoin", "network": "regtest", "asset": "BTC", "chain_id": None, "address_scheme": "bip84_p2wpkh"},
        {"chain": "bitcoin", "network": "local", "chain_id": None},
        {"network": "mainnet", "chain_id": 1},
        {"network": "sepolia", "reconcile_due_height": 1},
    ):
        emptied.insert(address_canonical=ADDRESS, expires_at=now() - timedelta(days=2), **columns)
        emptied.insert(address_canonical=MIXED_CASE, next_reconcile_at=None, **columns)
    served = emptied.insert(address_canonical=ADDRESS)
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
