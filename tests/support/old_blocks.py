"""A chain whose tail is short, requests that are older, and who reads what is below: for the tests of spans."""

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Self

from reconsup.chain.block import Block
from reconsup.payments.request import Status
from reconsup.store import admission, spans
from reconsup.store import cursor as cursors
from reconsup.store.cursor import Cursor
from reconsup.store.database import Database
from reconsup.store.leases import Batch
from reconsup.store.spans import Span, Stepped
from tests.support.ledgers import (
    CHAIN_ID,
    GENESIS,
    LEASE_SECONDS,
    NETWORK,
    SCANNER,
    Chain,
    Emptied,
    claimed,
    committed,
    decided,
    now,
    persisted,
    store,
)

READER = "host-2#00000000000000dd"
ADDRESS = "0x" + "ab" * 20
MIXED_CASE = "0x" + "aB" * 20
USDT = "0x" + "cd" * 20
OLD = timedelta(minutes=59, seconds=30)
TAIL_START = 200
LOWEST = 144  # the highest block that is older than anything an OLD request could be paid in


class Scene:
    """A chain with a block a minute, of which the last twenty are in the tail: 200 to 219, the youngest just now.

    `paid`: credits by height. The worker claims and admits; the reader reads what is below the tail.
    """

    def __init__(self, emptied: Emptied, paid: dict[int, Any] | None = None) -> None:
        self.emptied = emptied
        self.chain = Chain(first=100, begins=now() - timedelta(minutes=120))
        for height in range(100, 220):
            self.mine(*(paid or {}).get(height, ()))
        self._stack = AsyncExitStack()
        self.cursor: Cursor
        self.worker: Database
        self.reader: Database

    def mine(self, *arrived: Any) -> Block:
        return self.chain.mine(*arrived, time=self.chain.tip.time + timedelta(minutes=1))

    def blocks(self, first: int, last: int) -> list[Block]:
        return self.chain.blocks[first - 100 : last - 99]

    async def __aenter__(self) -> Self:
        self.worker = await self._stack.enter_async_context(store(self.emptied, "worker"))
        self.reader = await self._stack.enter_async_context(store(self.emptied, "reader"))
        (parent,) = self.blocks(TAIL_START - 1, TAIL_START - 1)
        await cursors.birth(
            self.worker, NETWORK, chain_id=CHAIN_ID, genesis_hash=GENESIS, parent=parent.header
        )  # fmt: skip
        cursor = await cursors.take(self.worker, NETWORK, owner=SCANNER, lease_seconds=LEASE_SECONDS)
        assert cursor is not None
        self.cursor = (await committed(self.worker, cursor, *self.blocks(TAIL_START, 219))).cursor
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def grow(self, *arrived: Any, tail_blocks: int = 64) -> None:
        """One more block in the tail."""
        self.cursor = (await committed(self.worker, self.cursor, self.mine(*arrived), tail_blocks=tail_blocks)).cursor

    def insert(self, age: timedelta = OLD, **columns: Any) -> str:
        """A request so much older than block 219."""
        created_at = self.chain.blocks[119].time - age
        return self.emptied.insert(created_at=created_at, expires_at=created_at + timedelta(hours=3), **columns)

    async def admit(self, database: Database | None = None) -> Batch:
        """Claim what is due, admit it, and give it back; the batch."""
        batch = await claimed(self.worker)
        await admission.admit(database or self.worker, batch)
        await persisted(self.worker, batch, decided(Status.PENDING, seconds=3600.0))
        return batch

    async def taken(self, owner: str = READER) -> Span:
        """The span, taken."""
        span = await self.span()
        assert await spans.take(self.reader, span, owner=owner, lease_seconds=LEASE_SECONDS)
        return await self.span()

    async def span(self) -> Span:
        span = await spans.read(self.reader, NETWORK, join_seconds=0.0)
        assert span is not None
        return span

    async def step(self, span: Span, count: int = 50, *, database: Database | None = None) -> Stepped | None:
        blocks = self.blocks(span.next_height - count + 1, span.next_height)
        return await spans.step(database or self.reader, span, blocks, lease_seconds=LEASE_SECONDS)

    async def read_all(self) -> int:
        """Take the span, read and close it; how many settlements it wrote."""
        settled = 0
        span = await self.taken()
        while span.is_needed and not span.is_read:
            done = await self.step(span, 10)
            assert done is not None
            settled += done.settlements
            span = await self.span()
        is_over = False
        while not is_over:
            closed = await spans.close(self.reader, span)
            assert closed is not None
            is_over = closed.is_over
        return settled

    def rows(self) -> list[dict[str, Any]]:
        return self.emptied.rows("SELECT * FROM app.chain_spans")
