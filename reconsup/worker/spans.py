"""The road down: read the blocks of a network's span, older than the tail, for the requests that wait for them.

A loop beside the scanner, over a connection of its own, so that neither waits for the other. Of all readers one holds
the span's lease; it asks for one range of blocks at a time, and rests as long as the last one took, because the
endpoint is there for the scanner first. While there is no span, a poll is one SELECT and no call. Nothing is remembered
between turns but what is told at the end: another reader goes on from what the database says.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from reconsup import pulse
from reconsup.chain.block import Block
from reconsup.chain.errors import ChainInconsistent, ChainUnavailable
from reconsup.chain.evm import EvmChain
from reconsup.chain.nodes import Nodes
from reconsup.fleet.posix import Bell
from reconsup.monitor import metrics
from reconsup.payments.request import Network
from reconsup.store import refusals, spans
from reconsup.store.database import Database
from reconsup.store.errors import SchemaBehind, StoreRejected, StoreUnavailable
from reconsup.store.spans import Span
from reconsup.worker import journal
from reconsup.worker.pause import Pause

READ_BLOCKS_MAX = 50
READ_BLOCKS_MIN = 8  # at the end, of which there is only a guess
RETRY_SECONDS_MIN = 0.5
STORE_RETRY_SECONDS = 1.0
REST_SECONDS_MAX = 1.0
STAND_BACK_FAILURES = 3  # in a row: another worker, with another endpoint, may have these blocks
TOLD_EVERY_SECONDS = 60.0
TOLD_EVERY_FAILURES = 100


@dataclass(frozen=True, slots=True)
class Reading:
    """What a span reader is there for. `join_seconds`: how long a span is left alone before it is begun."""

    network: Network
    owner: str
    lease_seconds: float
    poll_interval_seconds: float
    join_seconds: float = 2.0


class SpanReader:
    """One network's loop in one process. `is_served` says whether the endpoints show the very chain of the cursor."""

    def __init__(
        self,
        reading: Reading,
        database: Database,
        nodes: Nodes,
        bell: Bell,
        pause: Pause,
        *,
        is_served: Callable[[], bool],
    ) -> None:
        self._reading = reading
        self._database = database
        self._nodes = nodes
        self._bell = bell
        self._pause = pause
        self._is_served = is_served
        self._log = structlog.get_logger().bind(network=reading.network.name)
        self._range_blocks = READ_BLOCKS_MAX
        self._failures = 0
        self._is_away = False
        self._done: Counter[str] = Counter()  # of the span at hand, by this reader
        self._told_at = 0.0

    async def run(self) -> None:
        """Read until the drain begins; then free the lease."""
        while not self._pause.is_stopping:
            pulse.alive()
            started = time.monotonic()
            seconds = await self.turn()
            if self._is_away:
                await self._pause.for_database(self._database)
            elif seconds > 0 and not self._failures:
                await self._pause.for_seconds(seconds)
            else:  # a ring must not cut short a rest, nor a wait that an endpoint asked for
                await self._pause.whole(seconds or min(REST_SECONDS_MAX, time.monotonic() - started))
        try:
            await spans.free(self._database, self._reading.network, self._reading.owner)
        except StoreUnavailable:
            self._log.info("span_lease_left_to_end")

    async def turn(self) -> float:
        """A step, and what can go wrong in it; how many seconds to wait before the next one."""
        self._is_away = False
        try:
            return await self.step()
        except (ChainUnavailable, ChainInconsistent, StoreUnavailable, StoreRejected) as error:
            return await self._failed(error)

    async def step(self) -> float:
        """Do the next thing; how many seconds to wait before the one after it."""
        reading = self._reading
        if not self._is_served():
            return reading.poll_interval_seconds
        span = await spans.read(self._database, reading.network, join_seconds=reading.join_seconds)
        if span is None:
            self._failures = 0
            return reading.poll_interval_seconds
        if span.owner != reading.owner:
            return await self._take(span)
        if span.is_read or not span.is_needed:
            return await self._close(span)
        return await self._read(span)

    async def _take(self, span: Span) -> float:
        reading = self._reading
        if not span.is_free:
            is_joined_still = span.owner is None
            seconds = max(RETRY_SECONDS_MIN, reading.join_seconds) if is_joined_still else reading.lease_seconds
            return min(reading.poll_interval_seconds, seconds)
        if await spans.take(self._database, span, owner=reading.owner, lease_seconds=reading.lease_seconds):
            self._done.clear()
            self._told_at = time.monotonic()
            event = "span_opened" if span.is_unbegun else "span_taken_over"
            self._log.info(event, to_height=span.to_height, next_height=span.next_height)
        return 0.0

    async def _read(self, span: Span) -> float:
        last = span.next_height
        first = max(0, last + 1 - min(self._range_blocks, max(READ_BLOCKS_MIN, span.blocks_left)))

        async def work(chain: EvmChain) -> list[Block]:
            blocks = await chain.blocks(first, last)
            if blocks[-1].block_hash != span.next_hash:
                raise ChainInconsistent(f"shows another block {last} than the one that the stored chain hangs on")
            return await self._nodes.vouched(chain, blocks)

        started = time.monotonic()
        blocks = await self._nodes.ask(work)
        seconds_each = max(1e-6, time.monotonic() - started) / len(blocks)
        done = await spans.step(self._database, span, blocks, lease_seconds=self._reading.lease_seconds)
        if done is None:
            return self._lost()
        self._failures = 0
        in_time = int(self._reading.lease_seconds / 6 / seconds_each)  # as of the scanner's ranges
        self._range_blocks = max(1, min(READ_BLOCKS_MAX, self._range_blocks * 2, in_time))
        self._count(blocks, done)
        if done.refused:
            journal.tell_refused(
                done.refused,
                "PostgreSQL refuses to write this row, and it was paid: put it right, "
                "then set its next_reconcile_at to now()",
            )
            owner = self._reading.owner
            await refusals.tell(self._database, done.refused, worker_id=owner.partition("#")[0], owner=owner)
        if done.touched:
            self._bell.ring()
        if time.monotonic() - self._told_at >= TOLD_EVERY_SECONDS:
            self._told_at = time.monotonic()
            self._log.info("span_progress", next_height=first - 1, blocks_left=span.blocks_left, **self._done)
        return 0.0

    def _count(self, blocks: Sequence[Block], done: spans.Stepped) -> None:
        self._done["blocks"] += len(blocks)
        self._done["ranges"] += 1
        self._done["settlements"] += done.settlements
        metrics.SPAN_BLOCKS.inc(len(blocks), self._reading.network.name)

    async def _close(self, span: Span) -> float:
        done = await spans.close(self._database, span)
        if done is None:
            return self._lost()
        self._done["admitted"] += done.admitted
        self._bell.ring()
        if done.is_over:
            figures = {"blocks": 0, "ranges": 0, "settlements": 0} | self._done
            lowest = span.next_height + 1
            self._log.info("span_done", from_height=lowest, to_height=span.to_height, is_whole=span.is_read, **figures)
        return 0.0

    def _lost(self) -> float:
        """Somebody else reads it, or joined it, or its network stopped: begin from what the database says.

        With fewer blocks: perhaps it took longer than a lease to read them, and two who do that take it from each other
        for ever.
        """
        self._range_blocks = max(1, self._range_blocks // 2)
        self._log.info("span_moved")
        return RETRY_SECONDS_MIN

    async def _failed(self, error: Exception) -> float:
        """Tell the first failure of a row of them; ask for less, wait ever longer, and let others try."""
        self._failures += 1
        self._range_blocks = max(1, self._range_blocks // 2)
        if isinstance(error, StoreRejected):
            self._log.error(
                "span_refused",
                error=str(error),
                todo="PostgreSQL refuses a settlement of an old block, or the touch of a request: put it right. "
                "Until then no request that needs this network's old blocks expires",
            )
        elif self._failures in (1, STAND_BACK_FAILURES) or self._failures % TOLD_EVERY_FAILURES == 0:
            self._log.warning(
                "span_failed",
                error=str(error),
                kind=type(error).__name__,
                todo=_todo(error),
            )
        if isinstance(error, StoreUnavailable):
            self._is_away = True
            return STORE_RETRY_SECONDS
        seconds: float = min(RETRY_SECONDS_MIN * 2 ** min(self._failures - 1, 10), self._reading.poll_interval_seconds)
        if self._failures >= STAND_BACK_FAILURES:
            seconds = max(seconds, self._reading.lease_seconds)
            try:
                await spans.free(self._database, self._reading.network, self._reading.owner)
            except StoreUnavailable:
                self._log.info("span_lease_left_to_end")
        after = error.retry_after_seconds if isinstance(error, ChainUnavailable) else None
        return max(seconds, after or 0.0)


def _todo(error: Exception) -> str:
    if isinstance(error, SchemaBehind):
        return "run `reconsup migrate`: then it goes on by itself"
    if isinstance(error, StoreUnavailable):
        return "nothing: it goes on when PostgreSQL answers"
    return "nothing if it passes; else give the network an endpoint that has its old blocks with receipts"
