"""Whether somebody looks at the status page, and what the database said for them.

While nobody looks nothing is asked. While somebody does, one statement every few seconds, however many they are. Who
opens the page waits a moment for it, and never longer: the page is served without it.
"""

import asyncio
import time
from contextlib import suppress

from reconsup import redact
from reconsup.store.recent import Recent

PAUSE_SECONDS = 3.0
FAILED_SECONDS = 30.0
FIRST_SECONDS = 0.7  # who opens the page waits for so long at most


class Onlookers:
    """Who looks says `look`; the watch, which alone asks the database, waits for `due` and says what came of it."""

    def __init__(self, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._pause_seconds = pause_seconds
        self._is_wanted = False
        self._due_at = float("-inf")
        self._read_at = float("-inf")
        self._bell = asyncio.Event()
        self._told = asyncio.Event()
        self.recent: Recent | None = None
        self.problem: str | None = None

    async def look(self, *, is_worth_waiting: bool) -> None:
        """Somebody looks. Waits a moment if nothing is known that is fresh enough to be shown."""
        self._is_wanted = True
        self._bell.set()
        age = self.seconds_ago
        if is_worth_waiting and self.problem is None and (age is None or age > 2 * self._pause_seconds):
            self._told.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_SECONDS):
                    await self._told.wait()

    @property
    def seconds_ago(self) -> float | None:
        """How old `recent` is; None: there is none."""
        return None if self.recent is None else time.monotonic() - self._read_at

    async def due(self) -> None:
        """Wait until somebody looks, and the last time is long enough ago."""
        while not self._is_wanted:
            self._bell.clear()
            await self._bell.wait()
        await asyncio.sleep(max(self._due_at - time.monotonic(), 0.0))

    def succeed(self, recent: Recent, read_at: float) -> None:
        """It was asked at monotonic `read_at`, and this was the answer."""
        self.recent, self._read_at, self.problem = recent, read_at, None
        self._settle(self._pause_seconds)

    def fail(self, error: Exception) -> None:
        """It could not be had; not soon again. What is known stays, with its age."""
        self.problem = redact.text(str(error))
        self._settle(FAILED_SECONDS)

    def _settle(self, pause: float) -> None:
        self._is_wanted = False
        self._due_at = time.monotonic() + pause
        self._told.set()
