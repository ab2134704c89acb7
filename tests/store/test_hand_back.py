"""What a persist does not write, it hands back: due at once, and only what is still its own."""

import asyncio
from collections import Counter

import pytest

from reconsup.payments.request import Reason, Status
from reconsup.payments.settlement import Orphaning, Settlement
from tests.support.ledgers import (
    OTHER,
    Chain,
    Emptied,
    born,
    claimed,
    decided,
    history_of,
    ids_of,
    is_due_and_free,
    now,
    persisted,
    request_of,
    store,
)

pytestmark = pytest.mark.service

CONFIRMED = decided(Status.CONFIRMED, Reason.CONFIRMED)


def settlement(ref: str = "0xref", amount_minor: int = 1, orphaning: Orphaning | None = None) -> Settlement:
    return Settlement(ref, amount_minor, 100, "0xblock", now(), orphaning)


def test_a_row_without_an_outcome_is_handed_back_due(emptied: Emptied) -> None:
    """Seen to fail (it stays leased) when the hand-back takes only the decided rows."""
    known, unknown = emptied.insert_many(2)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            done = await persisted(worker, batch, {known: CONFIRMED})
            assert (done.written, done.refused) == ({known}, Counter())
            assert is_due_and_free(request_of(emptied, unknown))
            assert request_of(emptied, unknown)["reconcile_lease_epoch"] == 1

    asyncio.run(story())


def test_a_batch_without_any_outcome_is_handed_back_due(emptied: Emptied) -> None:
    ids = emptied.insert_many(2)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            assert (await persisted(worker, await claimed(worker), {})).written == frozenset()
            assert ids_of(await claimed(worker, owner=OTHER)) == ids

    asyncio.run(story())


def test_hand_back_leaves_the_leases_of_others(emptied: Emptied) -> None:
    """Seen to fail without owner and epoch in the hand-back."""
    taken, again, kept = emptied.insert_many(3)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            emptied.execute("UPDATE app.payment_requests SET reconcile_lease_owner = %s WHERE id = %s", [OTHER, taken])
            emptied.execute("UPDATE app.payment_requests SET reconcile_lease_epoch = 9 WHERE id = %s", [again])
            before = [request_of(emptied, id_) for id_ in (taken, again)]
            done = await persisted(worker, batch, {})
            assert done.refused == Counter()
            assert [request_of(emptied, id_) for id_ in (taken, again)] == before
            assert is_due_and_free(request_of(emptied, kept))

    asyncio.run(story())


def test_a_deleted_request_is_a_lost_lease(emptied: Emptied) -> None:
    gone, kept = emptied.insert_many(2)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            emptied.execute("DELETE FROM app.payment_requests WHERE id = %s", [gone])
            done = await persisted(worker, batch, CONFIRMED)
            assert (done.written, done.refused) == ({kept}, Counter(lease_lost=1))

    asyncio.run(story())
    assert history_of(emptied, gone) == []
