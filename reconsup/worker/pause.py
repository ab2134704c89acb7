"""How a worker's loops wait: until time is up, somebody rings (there is work), or the drain begins.

A ring that comes while a loop is at work is not lost: its next pause ends at once.
"""

import asyncio
import random
from contextlib import suppress

from reconsup import pulse
from reconsup.store.database import Database

AWAY_SECONDS = 1.0


class Pauses:
    """The pauses of all loops of one process. Used from its event loop only."""

    def __init__(self) -> None:
        self._pauses: list[Pause] = []
        self.stopping = asyncio.Event()

    def pause(self) -> "Pause":
        """A pause for one loop."""
        pause = Pause(self.stopping)
        self._pauses.append(pause)
        return pause

    def ring(self) -> None:
        """End every pause, also the one that has not begun yet."""
        for pause in self._pauses:
            pause.ring()

    def stop(self) -> None:
        """Begin the drain: every pause ends, now and from now on."""
        self.stopping.set()
        self.ring()


class Pause:
    """One loop's pause."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._rung = asyncio.Event()

    @property
    def is_stopping(self) -> bool:
        """Whether the worker drains: finish what is in hand, begin nothing."""
        return self._stopping.is_set()

    def ring(self) -> None:
        """End this pause."""
        self._rung.set()

    async def whole(self, seconds: float) -> None:
        """Wait so long whoever rings (an endpoint asked for it), or until the drain begins."""
        pulse.rests(seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        pulse.alive()

    async def for_database(self, database: Database) -> None:
        """Wait, after it failed, until it is back or the drain begins: a second at most, to show life and look again.

        A second, more or less, also where nothing is known to be wrong with it: what failed may fail again.
        """
        if not database.is_away and database.was_cut:
            return
        if not database.is_away:
            await self.whole(AWAY_SECONDS * (0.75 + random.random() / 2))  # noqa: S311 - jitter
            return
        pulse.rests(AWAY_SECONDS)
        waiting = [asyncio.ensure_future(self._stopping.wait()), asyncio.ensure_future(database.returned())]
        try:
            await asyncio.wait(waiting, timeout=AWAY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
            pulse.alive()

    async def for_seconds(self, seconds: float) -> None:
        """Wait so long, or until rung."""
        if not self.is_stopping:
            pulse.rests(seconds)
            try:
                async with asyncio.timeout(seconds):
                    await self._rung.wait()
            except TimeoutError:
                return
            finally:
                pulse.alive()
        self._rung.clear()
