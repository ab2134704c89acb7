"""Whoever changes a span meets whoever else does, stepped: nothing is missed between them, and nobody reads twice."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from reconsup.payments.request import Status
from reconsup.store import admission, spans
from reconsup.store.database import Database
from reconsup.store.joining import WAITING
from tests.support.ledgers import (
    Emptied,
    claimed,
    committed,
    decided,
    ether,
    persisted,
    request_of,
    settlements_of,
    store,
)
from tests.support.old_blocks import ADDRESS, TAIL_START, Scene
from tests.support.stepped import Stepped, until_blocked, until_done_or_blocked

pytestmark = pytest.mark.service

WAIT = decided(Status.PENDING, seconds=3600.0)


async def read_what_is_left(scene: Scene) -> None:
    """Read every span to its end, and let who waited open the next one."""
    for _ in range(3):
        if scene.rows():
            await scene.read_all()
        scene.emptied.execute("UPDATE app.payment_requests SET next_reconcile_at = now()")
        await scene.admit()
    assert scene.rows() == []


def test_a_request_that_comes_while_the_first_blocks_are_read_waits_for_the_next_span(emptied: Emptied) -> None:
    """Its admission waits for the reader, and sees then that the span is begun.

    Seen to fail (admitted, its payment never seen) when whoever needs a span is a member of the one there is.
    """

    async def story() -> None:
        async with (
            Scene(emptied, {195: [ether(ADDRESS, 3)]}) as scene,
            Stepped(emptied.url, before="COMMIT", name="step") as reader,
        ):
            scene.insert()
            await scene.admit()
            span = await scene.taken()
            reading = asyncio.create_task(scene.step(span, 10, database=reader))
            await reader.reached()
            late = scene.insert(address_canonical=ADDRESS)
            batch = await claimed(scene.worker)
            admitting = asyncio.create_task(admission.admit(scene.worker, batch))
            await until_done_or_blocked(emptied.url, "worker", admitting)
            reader.go()
            assert await reading == spans.Stepped(0, 0)
            await admitting
            assert request_of(emptied, late)["reconcile_span_height"] == WAITING
            await persisted(scene.worker, batch, WAIT)
            await scene.worker.fetch("UPDATE app.chain_spans SET lease_until = now()")
            await read_what_is_left(scene)
            assert request_of(emptied, late)["reconcile_admitted_height"] == 219
            assert len(settlements_of(emptied, late)) == 1

    asyncio.run(story())


@pytest.mark.parametrize("has_moved", [False, True])
def test_a_request_that_joins_while_the_reader_waits_for_the_cursor_is_seen_by_it(
    emptied: Emptied, has_moved: bool
) -> None:
    """Where the tail moved on meanwhile, the reader is fenced and begins a block higher.

    Seen to fail (the payment in block 200 is never read) when the top stays where it was.
    """

    async def story() -> None:
        async with (
            Scene(emptied, {200 if has_moved else 195: [ether(ADDRESS, 3)]}) as scene,
            Stepped(emptied.url, before="COMMIT", name="admission") as worker,
        ):
            scene.insert()
            await scene.admit()
            span = await scene.taken()
            if has_moved:
                emptied.execute("UPDATE app.chain_cursors SET tail_start = 201")
                emptied.execute("DELETE FROM app.chain_credits")
            late = scene.insert(address_canonical=ADDRESS)
            batch = await claimed(scene.worker)
            admitting = asyncio.create_task(admission.admit(worker, batch))
            await worker.reached()
            reading = asyncio.create_task(scene.step(span, 10))
            await until_done_or_blocked(emptied.url, "reader", reading)
            worker.go()
            await admitting
            assert await reading == (None if has_moved else spans.Stepped(1, 1))
            await persisted(scene.worker, batch, WAIT)
            emptied.execute("UPDATE app.chain_spans SET lease_until = now()")
            await scene.read_all()
            assert request_of(emptied, late)["reconcile_admitted_height"] == 219
            assert len(settlements_of(emptied, late)) == 1

    asyncio.run(story())


def test_a_request_that_comes_while_a_span_ends_opens_the_next_one(emptied: Emptied) -> None:
    """It waits until the old one is gone, and is a member of the new one."""

    async def story() -> None:
        async with (
            Scene(emptied, {195: [ether(ADDRESS, 3)]}) as scene,
            Stepped(emptied.url, before="COMMIT", name="close") as reader,
        ):
            scene.insert()
            await scene.admit()
            await scene.step(await scene.taken(), 60)
            closing = asyncio.create_task(spans.close(reader, await scene.span()))
            await reader.reached()
            late = scene.insert(address_canonical=ADDRESS)
            batch = await claimed(scene.worker)
            admitting = asyncio.create_task(admission.admit(scene.worker, batch))
            await until_done_or_blocked(emptied.url, "worker", admitting)
            reader.go()
            assert await closing == spans.Closed(1, True)
            await admitting
            await persisted(scene.worker, batch, WAIT)
            assert request_of(emptied, late)["reconcile_span_height"] == TAIL_START
            assert await scene.read_all() == 1

    asyncio.run(story())


@pytest.mark.parametrize("who", ["commit", "admission"])
def test_a_payment_in_a_block_that_is_just_leaving_the_tail_is_found_above_or_below(emptied: Emptied, who: str) -> None:
    """The commit that prunes it meets the admission that opens a span below it, whoever is first.

    Seen to fail (it is in neither) when the admission reads the tail's start before it has the cursor.
    """

    async def story() -> None:
        async with (
            Scene(emptied, {TAIL_START: [ether(ADDRESS, 3)]}) as scene,
            Stepped(emptied.url, before="COMMIT", name="first") as first,
            store(emptied, "second") as second,
        ):
            id_ = scene.insert(address_canonical=ADDRESS)
            batch = await claimed(scene.worker)
            block = scene.chain.mine(time=scene.chain.tip.time + timedelta(days=2))

            def commit(database: Database) -> Any:  # the hour of chain time is over: only the new block is kept
                return committed(database, scene.cursor, block, tail_blocks=1)

            def admit(database: Database) -> Any:
                return admission.admit(database, batch)

            acts = (commit, admit) if who == "commit" else (admit, commit)
            one = asyncio.create_task(acts[0](first))
            await first.reached()
            other = asyncio.create_task(acts[1](second))
            await until_blocked(emptied.url, "second")
            first.go()
            await asyncio.gather(one, other)
            assert emptied.fetch("SELECT count(*) FROM app.chain_credits") == [(0,)]
            await persisted(scene.worker, batch, WAIT)
            (row,) = scene.rows()
            assert row["to_height"] == (219 if who == "commit" else TAIL_START - 1)
            assert len(settlements_of(emptied, id_)) == (0 if who == "commit" else 1)
            await scene.read_all()
            assert len(settlements_of(emptied, id_)) == 1
            assert request_of(emptied, id_)["reconcile_admitted_height"] == 220

    asyncio.run(story())


def test_a_request_that_joins_before_the_reader_has_the_cursor_is_seen_by_it(emptied: Emptied) -> None:
    """It comes, and is admitted, while the reader is on its way with the first blocks.

    Seen to fail (the payment is never seen) when the reader looks for requests before it has the cursor.
    """

    async def story() -> None:
        async with (
            Scene(emptied, {195: [ether(ADDRESS, 3)]}) as scene,
            Stepped(emptied.url, before="SELECT 1 FROM app.chain_cursors", name="step") as reader,
        ):
            scene.insert()
            await scene.admit()
            reading = asyncio.create_task(scene.step(await scene.taken(), 10, database=reader))
            await reader.reached()
            late = scene.insert(address_canonical=ADDRESS)
            await scene.admit()
            assert request_of(emptied, late)["reconcile_span_height"] == TAIL_START
            reader.go()
            assert await reading == spans.Stepped(1, 1)
            assert len(settlements_of(emptied, late)) == 1

    asyncio.run(story())


def test_a_reader_waits_for_whoever_changes_the_networks_cursor(emptied: Emptied) -> None:
    """A stop, or a `resume`, that is just being written: what it says of the chain counts.

    Seen to fail (settled though the network is stopped) when the cursor is read without its lock.
    """

    async def story() -> None:
        async with Scene(emptied, {195: [ether(ADDRESS, 3)]}) as scene:
            id_ = scene.insert(address_canonical=ADDRESS)
            await scene.admit()
            span = await scene.taken()
            with emptied.connect(autocommit=False) as other:
                other.execute("UPDATE app.chain_cursors SET stop_reason = 'x'")
                reading = asyncio.create_task(scene.step(span, 10))
                await until_done_or_blocked(emptied.url, "reader", reading)
            assert await reading is None
            assert settlements_of(emptied, id_) == {}

    asyncio.run(story())


def test_of_two_steps_at_once_one_is_fenced(emptied: Emptied) -> None:
    async def story() -> None:
        async with (
            Scene(emptied, {195: [ether(ADDRESS, 3)]}) as scene,
            Stepped(emptied.url, before="COMMIT", name="first") as first,
        ):
            scene.insert(address_canonical=ADDRESS)
            await scene.admit()
            span = await scene.taken()
            one = asyncio.create_task(scene.step(span, 10, database=first))
            await first.reached()
            other = asyncio.create_task(scene.step(span, 20))
            await until_blocked(emptied.url, "reader")
            first.go()
            assert (await one, await other) == (spans.Stepped(1, 1), None)
            assert (await scene.span()).next_height == 189

    asyncio.run(story())
