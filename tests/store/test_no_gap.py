"""Scanners that race, workers that admit, readers of spans, customers who come at any moment: no payment is missed.

Everything really runs at once, over a connection each. The chain is given: each request is paid once, in the block that
was mined for it, and comes into the table before that block is stored, at the same instant, or long after. A block
is twenty minutes long and the tail an hour, so that half of the requests come when their block has left it.
"""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from reconsup.payments.request import Status
from reconsup.store import admission, spans
from reconsup.store import cursor as cursors
from reconsup.store.cursor import Cursor
from reconsup.store.database import Database
from tests.support.ledgers import (
    LEASE_SECONDS,
    NETWORK,
    Chain,
    Emptied,
    born,
    claimed,
    commit,
    decided,
    ether,
    now,
    persisted,
    store,
)
from tests.support.postgres import insert_request_async

pytestmark = pytest.mark.service

PAID_PER_BLOCK = 3
BLOCK = timedelta(minutes=20)
FIRST = 100


class Race:
    def __init__(self, emptied: Emptied, blocks: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.emptied = emptied
        self.chain = Chain(first=FIRST, begins=now() - (blocks + 2) * BLOCK)
        self.addresses: dict[int, list[str]] = {}
        for height in range(FIRST, FIRST + blocks):
            self.addresses[height] = [f"0x{height:036x}{number:04x}" for number in range(PAID_PER_BLOCK)]
            credits_ = [ether(address, 7, address) for address in self.addresses[height]]
            self.chain.mine(*credits_, time=self.chain.tip.time + BLOCK)
        self.is_over = False
        self.scanned = FIRST - 1
        self.refused = 0  # commits of who was not the first
        self.spans = 0
        self.settled_below = 0

    async def pause(self) -> None:
        await asyncio.sleep(self.random.random() * 0.01)

    async def scanner(self, database: Database, cursor: Cursor) -> None:
        """One of several that believe to hold the same lease: only one of them can store the next block."""
        while cursor.next_height - FIRST < len(self.chain.blocks):
            await self.pause()
            done = await commit(database, cursor, self.chain.blocks[cursor.next_height - FIRST], tail_blocks=1)
            if done is not None:
                cursor = done.cursor
                self.scanned = cursor.scanned_height
                continue
            self.refused += 1
            seen = await cursors.read(database, NETWORK)
            assert seen is not None
            cursor = replace(seen, owner=cursor.owner, epoch=cursor.epoch)

    async def customers(self, connection: psycopg.AsyncConnection, moments: Sequence[tuple[int, int]]) -> None:
        """They come when the first of two heights is about to be stored; the second is that of their payment."""
        for moment, height in moments:
            while self.scanned < min(moment, self.chain.tip.height) - 1:
                await self.pause()
            for address in self.addresses[height]:
                await self.pause()
                created_at = self.chain.blocks[height - FIRST].time - timedelta(minutes=5)
                await insert_request_async(
                    connection, address_canonical=address, created_at=created_at, expires_at=now() + timedelta(days=1)
                )

    async def worker(self, database: Database, owner: str) -> None:
        while not self.is_over:
            batch = await claimed(database, owner=owner, limit=5)
            if not batch.claims:
                await self.pause()
                continue
            await admission.admit(database, batch)
            await persisted(database, batch, decided(Status.PENDING, seconds=3600.0))

    async def reader(self, database: Database, owner: str) -> None:
        while not self.is_over:
            span = await spans.read(database, NETWORK, join_seconds=0.05)
            if span is None or (span.owner != owner and not span.is_free):
                await self.pause()
            elif span.owner != owner:
                await spans.take(database, span, owner=owner, lease_seconds=LEASE_SECONDS)
            elif span.is_read or not span.is_needed:
                closed = await spans.close(database, span)
                self.spans += closed is not None and closed.is_over
            else:
                await self.pause()
                lowest = max(FIRST, span.next_height - self.random.randrange(3))
                blocks = self.chain.blocks[lowest - FIRST : span.next_height - FIRST + 1]
                done = await spans.step(database, span, blocks, lease_seconds=LEASE_SECONDS)
                self.settled_below += done.settlements if done else 0

    async def run(self) -> None:
        async with AsyncExitStack() as stack:

            async def database(name: str) -> Database:
                return await stack.enter_async_context(store(self.emptied, name))

            cursor = await born(await database("birth"), self.chain)
            connections = [
                await stack.enter_async_context(
                    await psycopg.AsyncConnection.connect(self.emptied.url, autocommit=True, prepare_threshold=None)
                )
                for _ in range(2)
            ]
            heights = range(FIRST + 3, FIRST + len(self.chain.blocks))  # the first ones would need what nobody has
            moments = sorted((height + self.random.choice((-2, 0, 0, 1, 4, 5, 6, 8, 30)), height) for height in heights)
            scanners = [self.scanner(await database(f"scan-{n}"), cursor) for n in range(2)]
            others = [self.worker(await database(f"work-{n}"), f"work-{n}#{n:016x}") for n in range(4)]
            others += [self.reader(await database(f"span-{n}"), f"span-{n}#{n:016x}") for n in range(2)]
            comers = [self.customers(each, moments[n::2]) for n, each in enumerate(connections)]
            tasks = [asyncio.create_task(each) for each in others]
            try:
                await asyncio.gather(*scanners, *comers)
                await self.until_all_are_admitted(60.0)
            finally:
                self.is_over = True
                await asyncio.gather(*tasks)

    async def until_all_are_admitted(self, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            query = "SELECT FROM app.payment_requests WHERE reconcile_admitted_height IS NULL LIMIT 1"
            while self.emptied.fetch(query):  # noqa: ASYNC110 - what PostgreSQL says is no event of ours
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("blocks", "seed"), [(60, 1), (60, 2), *(pytest.param(400, seed, marks=pytest.mark.long) for seed in range(3, 6))]
)
def test_no_payment_falls_between_scanners_admissions_and_spans(emptied: Emptied, blocks: int, seed: int) -> None:
    """Each request is settled once, and its past is read in the end.

    Seen to fail (18 and 48 of the 171 payments were never settled) when a request is a member of a span that is begun
    and the end of a span admits whoever is marked: each of the two guards alone holds. And (one is never admitted) when
    the admission does not lock the cursor.
    """
    race = Race(emptied, blocks, seed)
    asyncio.run(race.run())
    count = PAID_PER_BLOCK * (blocks - 3)
    assert emptied.fetch("SELECT count(*) FROM app.payment_requests") == [(count,)]
    settled = """
        SELECT count(*), count(DISTINCT payment_request_id), min(amount_minor), max(amount_minor)
        FROM app.payment_request_settlements WHERE is_canonical"""
    assert emptied.fetch(settled) == [(count, count, 7, 7)]
    assert race.refused > 0
    assert race.spans > 0
    assert race.settled_below > count / 20
    print(f"{race.refused} commits refused, {race.spans} spans, {race.settled_below} of {count} settled by them")
