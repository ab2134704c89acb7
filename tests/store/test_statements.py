"""How many statements a batch costs, whatever its size; and that a request at rest costs none."""

import asyncio
from typing import Any

import pytest

from reconsup.payments.request import Reason, Status
from reconsup.store import leases, view
from reconsup.store.persist import Failure
from tests.support.ledgers import (
    LEASE_SECONDS,
    NETWORK,
    OWNER,
    Chain,
    Emptied,
    born,
    claimed,
    committed,
    decided,
    ids_of,
    persisted,
    store,
)
from tests.support.stepped import Stepped

pytestmark = pytest.mark.service

LOOK = decided(Status.PENDING, seconds=600.0)
CONFIRM = decided(Status.CONFIRMED, Reason.CONFIRMED)
WAIT = decided(Status.DETECTED, Reason.DETECTED, seconds=60.0, height=1000)


class Counted(Stepped):
    """A Database that remembers how many transactions of several statements it began."""

    transactions = 0

    async def transact(self, work: Any) -> Any:
        self.transactions += 1
        return await super().transact(work)


@pytest.mark.parametrize("rows", [1, 20, 400])
@pytest.mark.parametrize(
    ("outcome", "written"),
    [(LOOK, ["WITH locked"]), (CONFIRM, ["WITH locked", "INSERT INTO app.payment_request_transitions"]),
     (WAIT, ["WITH locked", "INSERT INTO app.payment_request_transitions", "WITH cursor"]),
     (Failure("failed: x"), ["WITH locked", "INSERT INTO app.payment_request_transitions"])],
    ids=["nothing happened", "confirmed", "waits for a height", "failed"],
)  # fmt: skip
def test_a_batch_is_one_claim_one_view_and_one_transaction(
    emptied: Emptied, rows: int, outcome: Any, written: list[str]
) -> None:
    """Seen to fail when each row is written, or told, by a statement of its own."""
    emptied.insert_many(rows)
    chain = Chain()

    async def story() -> None:
        async with store(emptied) as scanner, Counted(emptied.url) as worker:
            await committed(scanner, await born(scanner, chain), chain.mine())
            batch = await claimed(worker, limit=rows)
            await view.read(worker, NETWORK, ids_of(batch), expiry_confirmations=12)
            assert [each[: len("WITH candidates")] for each in worker.sent] == ["WITH candidates", "WITH cursor AS "]
            worker.sent.clear()
            assert len((await persisted(worker, batch, outcome)).written) == rows
            heads = [next(head for head in written if each.startswith(head)) for each in worker.sent]
            assert (heads, worker.transactions) == (written, 1)

    asyncio.run(story())


@pytest.mark.parametrize("rows", [1, 20, 400])
def test_a_renewal_and_a_release_are_one_statement_each(emptied: Emptied, rows: int) -> None:
    emptied.insert_many(rows)

    async def story() -> None:
        async with Counted(emptied.url) as worker:
            await born(worker, Chain())
            batch = await claimed(worker, limit=rows)
            worker.sent.clear()
            assert len((await leases.renew(worker, batch, lease_seconds=LEASE_SECONDS)).claims) == rows
            assert len(worker.sent) == 1
            assert await leases.release_requests(worker, OWNER) == rows
            assert len(worker.sent) == 2

    asyncio.run(story())


def test_a_request_at_which_nothing_happens_is_not_written_between_two_looks(emptied: Emptied) -> None:
    """Not by claims that come too early, nor by blocks that are none of its business.

    Seen to fail when a commit touches every request of its network.
    """
    emptied.insert_many(20)
    chain = Chain()
    versions = "SELECT id, xmin::text, ctid::text FROM app.payment_requests ORDER BY id"

    async def story() -> None:
        async with store(emptied) as scanner, store(emptied) as worker:
            cursor = (await committed(scanner, await born(scanner, chain), chain.mine())).cursor
            await persisted(worker, await claimed(worker), LOOK)
            before = emptied.fetch(versions)
            for _ in range(10):
                cursor = (await committed(scanner, cursor, chain.mine())).cursor
                assert ids_of(await claimed(worker)) == []
                assert ids_of(await claimed(worker, suspects=True)) == []
            assert emptied.fetch(versions) == before

    asyncio.run(story())
