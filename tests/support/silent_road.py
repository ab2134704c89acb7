"""A TCP way to PostgreSQL that a test can make go silent: it swallows what either side says, and hangs up on nobody.

It runs in a thread with a loop of its own; the program under test is another process.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Road:
    """The way there. `silence` is for the connections there are; `is_dead` is for new ones too."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._silenced: set[asyncio.StreamWriter] = set()  # their client's end
        self._open: set[asyncio.StreamWriter] = set()
        self._is_dead = False
        self._trap: tuple[bytes, bool] | None = None
        self.trapped = threading.Event()
        self.accepted = 0  # connections so far, also those that led nowhere
        self.port = 0
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()], daemon=True)

    def url(self, url: str) -> str:
        """The address of a database, by this way."""
        return url.replace(f":{self._parts.port}/", f":{self.port}/")

    def silence(self) -> int:
        """From now on nothing moves on the connections that are open; how many these are."""
        return self._call(self._silence)

    def set_dead(self, is_dead: bool) -> None:
        """Nothing moves on any connection, old or new; or new ones work again. Old ones stay silent."""

        def change() -> int:
            self._is_dead = is_dead
            return self._silence() if is_dead else 0

        self._call(change)

    def trap(self, words: bytes, *, is_delivered: bool) -> None:
        """The next connection whose client says `words` goes silent, before or after they are delivered."""
        self.trapped.clear()
        self._trap = (words, is_delivered)

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    def _call(self, change: Callable[[], int]) -> int:
        async def run() -> int:
            return int(change())

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def _silence(self) -> int:
        self._silenced |= self._open
        return len(self._open)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._open.add(writer)
        if self._is_dead:
            self._silenced.add(writer)
            await reader.read()
        try:
            there, back = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            self._carry(reader, back, writer, is_client=True), self._carry(there, writer, writer, is_client=False)
        )

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        line: asyncio.StreamWriter,
        *,
        is_client: bool,
    ) -> None:
        try:
            while data := await reader.read(65536):
                if is_client and self._trap and self._trap[0] in data:
                    (_, is_delivered), self._trap = self._trap, None
                    self._silenced.add(line)
                    if is_delivered:
                        writer.write(data)
                    self.trapped.set()
                if line not in self._silenced:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        if line in self._silenced:
            return  # nobody is told that somebody hung up
        self._open.discard(line)
        writer.close()


@contextmanager
def road_to(url: str) -> Iterator[Road]:
    """A way to the server of `url`, for the length of a with block."""
    road = Road(url)
    road.start()
    try:
        yield road
    finally:
        road.stop()
