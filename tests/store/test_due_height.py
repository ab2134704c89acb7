"""Heights that are reached while a decision is being written."""

import asyncio

import pytest

from reconsup.payments.request import Status
from reconsup.payments.settlement import Orphaning, Settlement
from reconsup.store import cursor as cursors
from reconsup.store.cursor import Tags
from reconsup.store.persist import Against
from tests.support.ledgers import (
    Chain,
    Emptied,
    born,
    claimed,
    committed,
    decided,
    is_due_and_free,
    now,
    persisted,
    request_of,
    store,
)
from tests.support.stepped import Stepped

pytestmark = pytest.mark.service


def settlement(ref: str = "0xref", amount_minor: int = 1, orphaning: Orphaning | None = None) -> Settlement:
    return Settlement(ref, amount_minor, 100, "0xblock", now(), orphaning)


def test_a_due_height_that_was_reached_meanwhile_makes_the_row_due_at_once(emptied: Emptied) -> None:
    """Seen to fail (a wait for the safety net) without the touch after the commit."""
    reached, ahead = emptied.insert_many(2)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain(first=100))  # scanned: 99
            batch = await claimed(worker)
            await persisted(
                worker,
                batch,
                {
                    reached: decided(Status.PENDING, seconds=600, height=99),
                    ahead: decided(Status.PENDING, seconds=600, height=100),
                },
            )
            assert is_due_and_free(request_of(emptied, reached))
            assert request_of(emptied, reached)["reconcile_due_height"] is None
            assert request_of(emptied, ahead)["reconcile_due_height"] == 100
            assert not is_due_and_free(request_of(emptied, ahead))

    asyncio.run(story())


def test_a_height_that_is_reached_while_the_persist_commits_is_not_missed(emptied: Emptied) -> None:
    """The block's touch looked before the persist committed, the persist's touch before the block's transaction did.

    Seen to fail without the touch that follows the block's COMMIT.
    """
    id_ = emptied.insert()
    chain = Chain(first=100)

    async def story() -> None:
        async with (
            Stepped(emptied.url, before="COMMIT", name="scanner") as scanner,
            store(emptied) as worker,
        ):
            cursor = await born(worker, chain)
            batch = await claimed(worker)
            committing = asyncio.create_task(committed(scanner, cursor, chain.mine()))
            await scanner.reached()
            await persisted(worker, batch, decided(Status.PENDING, seconds=600, height=100))
            assert request_of(emptied, id_)["reconcile_due_height"] == 100
            scanner.go()
            assert (await committing).touched == 1
            assert is_due_and_free(request_of(emptied, id_))

    asyncio.run(story())


@pytest.mark.parametrize("tag", ["safe", "finalized"])
def test_where_a_tag_confirms_the_due_height_is_compared_with_the_tag(emptied: Emptied, tag: Against) -> None:
    """Seen to fail when it is compared with the scan."""
    id_ = emptied.insert()
    chain = Chain(first=100)

    async def story() -> None:
        async with store(emptied) as worker:
            cursor = await born(worker, chain)
            cursor = (await committed(worker, cursor, *chain.mined(5), due_against=tag)).cursor
            batch = await claimed(worker)
            look = decided(Status.PENDING, seconds=600, height=102)
            await persisted(worker, batch, look, due_against=tag)
            assert request_of(emptied, id_)["reconcile_due_height"] == 102
            for height, is_touched in ((101, False), (102, True)):
                kept = await cursors.keep(
                    worker,
                    cursor,
                    Tags(104, **{tag: chain.blocks[height - 100].header}),
                    lease_seconds=30,
                    due_against=tag,
                )
                assert kept is not None
                assert is_due_and_free(request_of(emptied, id_)) is is_touched

    asyncio.run(story())
