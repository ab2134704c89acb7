"""Work grows with the batch, not with its square: no statement compares each row of a batch with every other.

The planner is where that happens: its statistics were taken when few rows were leased, so of one owner's rows it
expects next to none, and joins them in nested loops. (The plans themselves, at many sizes, are another suite's.)
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from reconsup.payments.request import Reason, Status
from reconsup.store import admission, leases, view
from reconsup.store.database import Database
from reconsup.store.persist import persist
from tests.support import postgres
from tests.support.ledgers import (
    LEASE_SECONDS,
    NETWORK,
    OWNER,
    Chain,
    all_of,
    born,
    claimed,
    committed,
    decided,
    ether,
    now,
    store,
)

pytestmark = pytest.mark.service

ROWS = 1000
COMPARED_MAX = 20 * ROWS


class Explained(Database):
    """A Database that runs each statement twice: once for its plan, rolled back, and once for real."""

    def __init__(self, url: str) -> None:
        super().__init__(url, application_name="explained", lease_seconds=LEASE_SECONDS)
        self.compared: dict[str, int] = {}

    async def _send(self, connection: Any, sql: Any, parameters: dict[str, Any] | None) -> Any:
        async with connection.transaction(force_rollback=True):
            answer = await connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", parameters)
            (((explained,),),) = await answer.fetchall()
        self.compared[" ".join(sql.split())[:100]] = sum(_compared(explained["Plan"]))
        return await super()._send(connection, sql, parameters)


def _compared(node: dict[str, Any]) -> Iterator[int]:
    """How many pairs of rows each join of a plan looked at in vain."""
    yield node.get("Rows Removed by Join Filter", 0) * node["Actual Loops"]
    for child in node.get("Plans", ()):
        yield from _compared(child)


def seeded(database: postgres.Database) -> None:
    """Many requests, none of them leased, and statistics that say so."""
    database.execute(
        """INSERT INTO app.payment_requests (id, chain, network, asset, status, address_canonical, address_scheme,
                                             derivation_index, chain_id, expires_at)
           SELECT 'pr_' || n, 'ethereum', 'local', 'ETH', 'pending', '0x' || n, 'evm_bip44', n, 31337,
                  now() + interval '1 hour' FROM generate_series(1, %s) AS n""",
        [40 * ROWS],
    )
    database.execute("ANALYZE app.payment_requests")


def test_no_statement_compares_every_row_of_a_batch_with_every_other(database: postgres.Database) -> None:
    """Seen to fail for the renewal when it joins what it has locked with the batch once more, and for persist and
    hand-back when the owner is a condition of its own (IS NOT DISTINCT FROM).
    """
    seeded(database)
    chain = Chain()
    chain.mine()
    chain.mine(*(ether(f"0x{number}", 1, number) for number in range(1, ROWS)), time=now())

    async def story() -> dict[str, int]:
        async with store(database) as helper, Explained(database.url) as worker:
            cursor = (await committed(helper, await born(helper, chain), chain.blocks[0])).cursor
            batch = await claimed(worker, limit=ROWS)
            assert len(batch.claims) == ROWS
            await admission.admit(worker, batch)
            batch = await leases.renew(worker, batch, lease_seconds=60)
            await view.read(worker, NETWORK, [claim.request.id for claim in batch.claims], expiry_confirmations=12)
            await admission.repair(worker, batch, [claim.request.id for claim in batch.claims])
            await persist(worker, batch, {}, worker_id="w")  # all of it is handed back
            batch = await claimed(worker, limit=ROWS)
            look = decided(Status.DETECTED, Reason.DETECTED, seconds=60.0, height=1)
            assert len((await persist(worker, batch, all_of(batch, look), worker_id="w")).written) == ROWS
            await committed(worker, cursor, chain.blocks[1])
            await claimed(worker, limit=ROWS)
            await leases.release(worker, OWNER)
            await claimed(worker, limit=ROWS)
            await leases.bury(worker, incarnation="0", owner=OWNER, row=None)
            return worker.compared

    compared = asyncio.run(story())
    assert len(compared) >= 18
    assert {statement: pairs for statement, pairs in compared.items() if pairs > COMPARED_MAX} == {}
