"""Blocks that are read while the ones before them are being stored: the chain and PostgreSQL work at the same time.

What was read ahead proves nothing by itself: whoever takes it looks whether it hangs on what was stored meanwhile.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from reconsup.chain.block import Block

Read = Callable[[int, int], Coroutine[Any, Any, list[Block]]]


class ReadAhead:
    """At most one range ahead. `read` is asked for (first, last), both included."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._first = -1
        self._task: asyncio.Task[list[Block]] | None = None

    async def blocks(self, first: int, last: int) -> list[Block]:
        """The blocks from `first` on: those that were read ahead, be they more or fewer, or else those up to `last`.

        Raises what `read` raises, also what it raised ahead.
        """
        task, self._task = self._task, None
        if task is not None and self._first == first:
            try:
                return await task
            except asyncio.CancelledError:
                task.cancel()  # it was us who were cancelled: nobody will ask for it any more
                raise
        _forget(task)
        return await self._read(first, last)

    def begin(self, first: int, last: int) -> None:
        """Start reading these; they are there, or on their way, when they are asked for."""
        self.drop()
        self._first = first
        self._task = asyncio.create_task(self._read(first, last))

    def drop(self) -> None:
        """Forget what was read ahead, or is being read."""
        task, self._task = self._task, None
        _forget(task)


def _forget(task: "asyncio.Task[list[Block]] | None") -> None:
    if task is not None:
        task.cancel()
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # looked at: nobody is told
