"""Every due row gets its turn, within a stated number of claims.

The bound: rows are claimed in the order in which they became due. So with D rows due and batches of B, a row is
claimed by the ceil(D / B)-th claim after it became due, whoever makes these claims. Rows at which a worker died are
claimed alone, one in each tenth cycle of each worker, in the same order.
"""

import asyncio

import pytest

from reconsup.payments.request import Status
from tests.support.ledgers import (
    Chain,
    Emptied,
    born,
    claimed,
    committed,
    decided,
    ether,
    now,
    persisted,
    put_off,
    store,
)

pytestmark = pytest.mark.service


def test_each_of_many_due_rows_is_claimed_within_its_turn(emptied: Emptied) -> None:
    """Rows that are due again at once go to the back.

    Seen to fail (most were never claimed) with ORDER BY created_at.
    """
    rows, batch, workers = 120, 10, 3
    emptied.insert_many(rows)

    async def story() -> None:
        async with store(emptied) as one, store(emptied) as two, store(emptied) as three:
            await born(one, Chain())
            for turn in range(1, 4):
                for number in range(rows // batch):
                    owner = f"host-{number % workers}#{number % workers:016x}"
                    worker = (one, two, three)[number % workers]
                    got = await claimed(worker, owner=owner, limit=batch)
                    await persisted(worker, got, decided(Status.PENDING, seconds=0.0))
                assert emptied.fetch("SELECT DISTINCT reconcile_lease_epoch FROM app.payment_requests") == [(turn,)]

    asyncio.run(story())


def test_a_row_that_is_touched_all_the_time_does_not_overtake_those_that_wait(emptied: Emptied) -> None:
    """Seen to fail when a touch makes a row the first in line."""
    payee, *others = emptied.insert_many(9)
    ((address,),) = emptied.fetch("SELECT address_canonical FROM app.payment_requests WHERE id = %s", [payee])
    chain = Chain(begins=now())

    async def story() -> list[str]:
        async with store(emptied) as worker, store(emptied) as scanner:
            cursor = await born(scanner, chain)
            put_off(emptied)
            emptied.execute("UPDATE app.payment_requests SET next_reconcile_at = now() WHERE id <> %s", [payee])
            seen: list[str] = []
            for number in range(9):
                block = chain.mine(ether(address, 1, number))
                cursor = (await committed(scanner, cursor, block)).cursor
                batch = await claimed(worker, limit=1)
                seen += [claim.request.id for claim in batch.claims]
                await persisted(worker, batch, decided(Status.PENDING, seconds=600.0))
            return seen

    assert asyncio.run(story()) == [*others, payee]
