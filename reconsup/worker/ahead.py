"""Blocks that are read while the ones before them are being stored: the chain and PostgreSQL work at the same time.

What was read ahead proves nothing by itself: whoever takes it looks whether it hangs on what was stored meanwhile.
"""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from reconsup.chain.block import Block, links
from reconsup.chain.errors import ChainInconsistent
from reconsup.chain.evm import BATCH_BLOCKS_MAX

COMMIT_BLOCKS_MAX = 1000
COMMIT_CREDITS_AIM = 10_000  # about a second of PostgreSQL's time: the cursor is locked for so long


Reading = Coroutine[Any, Any, list[Block]]


class Source(Protocol):
    """Where blocks are read: chain.evm.EvmChain."""

    async def blocks(self, first: int, last: int) -> list[Block]:
        """The blocks from `first` to `last`, both included."""


class ReadAhead:
    """At most one range ahead, of one endpoint's chain. `seconds`: how long it took to read what was given last."""

    def __init__(self, chain: Source) -> None:
        self.chain = chain
        self.seconds = 0.0
        self._first = -1
        self._task: asyncio.Task[tuple[list[Block], float]] | None = None

    async def blocks(self, first: int, last: int) -> list[Block]:
        """The blocks from `first` on: those that were read ahead, be they more or fewer, or else those up to `last`.

        Raises what the chain raises, also what it raised ahead.
        """
        task, self._task = self._task, None
        if task is None or self._first != first:
            _forget(task)
            found, self.seconds = await self._read(first, last)
            return found
        try:
            found, self.seconds = await task
        except asyncio.CancelledError:
            task.cancel()  # it was us who were cancelled: nobody will ask for it any more
            raise
        return found

    def begin(self, first: int, last: int) -> None:
        """Start reading these; they are there, or on their way, when they are asked for."""
        self.drop()
        self._first = first
        self._task = asyncio.create_task(self._read(first, last))

    def drop(self) -> None:
        """Forget what was read ahead, or is being read."""
        task, self._task = self._task, None
        _forget(task)

    async def _read(self, first: int, last: int) -> tuple[list[Block], float]:
        started = time.monotonic()
        count = last - first + 1
        if count <= BATCH_BLOCKS_MAX:
            return await self.chain.blocks(first, last), time.monotonic() - started
        middle = first + -(-count // (2 * BATCH_BLOCKS_MAX)) * BATCH_BLOCKS_MAX
        found = await _both(self.chain.blocks(first, middle - 1), self.chain.blocks(middle, last))
        return found, time.monotonic() - started


async def _both(lower: Reading, upper: Reading) -> list[Block]:
    """The blocks of two ranges that are read at the same time: one is decoded while the node works on the other."""
    tasks = [asyncio.create_task(lower), asyncio.create_task(upper)]
    try:
        below, above = await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            _forget(task)
        raise
    if not links([below[-1].header, above[0].header]):
        raise ChainInconsistent(f"gave blocks {below[-1].height} and {above[0].height} that are not one chain")
    return below + above


def next_range(blocks: Sequence[Block], seconds: float, *, twice: int, tail_blocks: int, lease_seconds: float) -> int:
    """How many blocks to store at once, after these, which took so long to be read: ever more (`twice` as many).

    As long as they bring few credits, and are read in a part of the lease: only a commit renews it. And no block leaves
    the tail by the very commit that brings it.
    """
    credits_each = sum(len(block.credits) for block in blocks) / len(blocks)
    fitting = COMMIT_CREDITS_AIM / credits_each if credits_each else COMMIT_BLOCKS_MAX
    in_time = lease_seconds / 6 / seconds * len(blocks) if seconds else COMMIT_BLOCKS_MAX
    count = int(min(COMMIT_BLOCKS_MAX, tail_blocks, twice, fitting, in_time))
    return count // BATCH_BLOCKS_MAX * BATCH_BLOCKS_MAX or max(1, count)  # whole HTTP requests, where it is many


def _forget(task: "asyncio.Task[Any] | None") -> None:
    if task is not None:
        task.cancel()
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # looked at: nobody is told
