"""Whichever two statements meet on the same rows, whoever comes first: nobody waits in a circle.

Each locks requests in the order of their ids. Here the table holds them in the other order, batches name them in the
other order, and plans are forced that keep it: an order that a statement does not ask for is the wrong one.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from reconsup.chain.block import Block, Header
from reconsup.payments.request import Status
from reconsup.store import admission, leases, ledger, spans
from reconsup.store import cursor as cursors
from reconsup.store.cursor import Cursor
from reconsup.store.database import Database
from reconsup.store.leases import Batch
from reconsup.store.spans import Span
from tests.support.ledgers import (
    NETWORK,
    OWNER,
    Chain,
    Emptied,
    born,
    claimed,
    commit,
    committed,
    decided,
    due_in_seconds,
    ether,
    hash_of,
    now,
    persisted,
    request_of,
    store,
)
from tests.support.stepped import Stepped, until_blocked, without

pytestmark = pytest.mark.service

PLANS = ("indexscan", "bitmapscan", "hashjoin", "mergejoin")
TOUCHING = ("commit", "roll_back", "touch_due", "sweep")


class Scene:
    """Requests b and a (as the table has them), both paid in block 101, leased, and waiting for height 101."""

    def __init__(self) -> None:
        self.chain = Chain(first=100)
        self.chain.mine()
        self.chain.mine(ether("0xaa", 1, "a"), ether("0xbb", 1, "b"), time=now())
        self.other = self.chain.branch(100)
        self.other.mined(2)
        self.next = self.chain.branch(101, name="main")
        self.next.mine(ether("0xbb", 1, "b again"), ether("0xaa", 1, "a again"))
        self.cursor: Cursor
        self.batch: Batch
        self.span: Span | None

    async def set(self, database: Emptied, *, is_forgotten: bool) -> None:
        database.execute("DELETE FROM app.chain_spans")
        database.execute("TRUNCATE app.payment_requests CASCADE")  # no space of former rows is used again
        for id_, minutes in (("b", 2), ("a", 1)):
            created_at = now() - timedelta(minutes=minutes)
            database.insert(id=id_, address_canonical=f"0x{id_}{id_}", created_at=created_at)
        async with store(database) as helper:
            self.cursor = (await committed(helper, await born(helper, self.chain), *self.chain.blocks)).cursor
            batch = await claimed(helper)
            self.batch = replace(batch, claims=tuple(sorted(batch.claims, key=lambda c: c.request.id, reverse=True)))
            database.execute(_SPAN, [self.chain.parent.block_hash, OWNER])
            self.span = await spans.read(helper, NETWORK, join_seconds=0)
        assert len(self.batch.claims) == 2
        due_at = "NULL" if is_forgotten else "next_reconcile_at"
        for id_ in ("b", "a"):  # the newest versions, in this order
            database.execute(
                f"UPDATE app.payment_requests SET reconcile_due_height = 101, reconcile_span_height = 100,"
                f" next_reconcile_at = {due_at}"
                f" WHERE id = '{id_}'"
            )
        with database.connect() as connection:
            connection.execute("SET enable_indexscan = off")
            assert connection.execute("SELECT id FROM app.payment_requests").fetchall() == [("b",), ("a",)]

    async def persist(self, database: Database) -> Any:
        return await persisted(database, self.batch, decided(Status.PENDING, seconds=60.0, height=101))

    async def renew(self, database: Database) -> Any:
        return await leases.renew(database, self.batch, lease_seconds=60)

    async def release(self, database: Database) -> Any:
        return await leases.release(database, OWNER)

    async def bury(self, database: Database) -> Any:
        return await leases.bury(database, incarnation="0", owner=OWNER, row=None)

    async def admit(self, database: Database) -> Any:
        return await admission.admit(database, self.batch)

    async def commit(self, database: Database) -> Any:
        return await commit(database, self.cursor, self.next.blocks[-1])

    async def roll_back(self, database: Database) -> Any:
        fork = self.chain.fork_to(self.other, 100)
        return await ledger.roll_back(database, self.cursor, fork, lease_seconds=30)

    async def touch_due(self, database: Database) -> Any:
        return await cursors.touch_due(database, NETWORK, "scanned")

    async def sweep(self, database: Database) -> Any:
        return await leases.sweep(database, [NETWORK])

    async def step(self, database: Database) -> Any:
        assert self.span is not None
        header = Header(99, self.span.next_hash, hash_of("below"), now())
        credits_ = (ether("0xbb", 1, "old b"), ether("0xaa", 1, "old a"))
        return await spans.step(database, self.span, [Block(header, credits_, proven=False)], lease_seconds=30)

    async def close(self, database: Database) -> Any:
        assert self.span is not None
        return await spans.close(database, self.span)


# One that was read, so that it can be closed, and that has another block, so that it can be stepped.
_SPAN = """
INSERT INTO app.chain_spans (chain, network, from_height, to_height, next_height, next_hash, until_time,
                             lease_owner, lease_until, lease_epoch)
VALUES ('ethereum', 'local', 100, 99, 99, %s, now() - interval '1 day', %s, now() + interval '1 hour', 1)
"""
ACTS: list[Callable[[Scene, Database], Awaitable[Any]]] = [
    Scene.persist,
    Scene.renew,
    Scene.release,
    Scene.bury,
    Scene.admit,
    Scene.commit,
    Scene.roll_back,
    Scene.touch_due,
    Scene.sweep,
]
OF_SPANS = [Scene.step, Scene.close]
WITHOUT_CURSOR = [Scene.persist, Scene.release, Scene.bury, Scene.touch_due]  # all others queue for it
PAIRS = [
    *itertools.product(ACTS, ACTS),
    *itertools.product(OF_SPANS, WITHOUT_CURSOR),
    *itertools.product(WITHOUT_CURSOR, OF_SPANS),
]


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda act: act.__name__)
def test_no_two_acts_wait_for_each_other(
    emptied: Emptied,
    first: Callable[[Scene, Database], Awaitable[Any]],
    second: Callable[[Scene, Database], Awaitable[Any]],
) -> None:
    """Somebody holds the first row of the table; one act waits for it, then the other; then the row is let go.

    PostgreSQL never ends one of them as a deadlock's victim, and nothing has to be sent twice. Seen to fail (40P01)
    for each of the ten ORDER BYs that is taken out, in each of its pairs in which that statement comes first.
    """
    names = (first.__name__, second.__name__)

    async def story() -> None:
        scene = Scene()
        await scene.set(emptied, is_forgotten="sweep" in names)
        url = without(emptied.direct_url, *PLANS)
        async with Stepped(url, name="first") as one, Stepped(url, name="second") as two:
            with emptied.connect(autocommit=False) as holder:
                holder.execute("SELECT 1 FROM app.payment_requests WHERE id = 'b' FOR UPDATE")
                tasks = [asyncio.ensure_future(first(scene, one))]
                await until_blocked(emptied.url, "first")
                tasks.append(asyncio.ensure_future(second(scene, two)))
                await until_blocked(emptied.url, "second")
            await asyncio.gather(*tasks)
            assert one.errors + two.errors == []

    asyncio.run(story())
    if set(names) & set(TOUCHING):
        assert all(due_in_seconds(request_of(emptied, id_)) <= 0 for id_ in ("a", "b"))  # no touch is lost
