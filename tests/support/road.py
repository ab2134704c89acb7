"""A way to PostgreSQL that breaks at a chosen statement, so that nobody knows what became of it.

What a client sends is looked at before it is carried on. At the statement the road either swallows it, or carries it
there and swallows the answer; then it hangs up. It breaks once for each `breaks`; other connections are not harmed.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

# What the server has of the statement: nothing and a hang-up; nothing and silence; all of it, and its answer is lost.
Loss = Literal["never sent", "silent", "done"]
LOSSES: tuple[Loss, ...] = ("never sent", "silent", "done")

_READY_AND_IDLE = b"Z\x00\x00\x00\x05I"


@dataclass(slots=True)
class _Break:
    after: bytes
    at: bytes
    loss: Loss


class Road:
    def __init__(self, there: str) -> None:
        self.url = ""
        self.broken = 0
        self._there = there
        self._break: _Break | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    def breaks(self, loss: Loss, *, after: str, at: str = "COMMIT") -> None:
        """Break at the first message with `at` on a connection that has carried `after`, or carries it now."""
        self._break = _Break(after.encode(), at.encode(), loss)

    async def open(self) -> asyncio.Server:
        """Listen; `url` is the database's address by this road."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        parts = urlsplit(self._there)
        self.url = self._there.replace(f":{parts.port}/", f":{server.sockets[0].getsockname()[1]}/")
        return server

    async def close(self) -> None:
        """End every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()

    async def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        parts = urlsplit(self._there)
        server, to_server = await asyncio.open_connection(parts.hostname, parts.port)
        self._writers += [to_client, to_server]
        broken = asyncio.get_running_loop().create_future()
        back = asyncio.create_task(self._carry_back(server, to_client, broken))
        self._tasks |= {back, asyncio.create_task(self._carry_there(client, to_client, to_server, broken))}

    async def _carry_there(
        self,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        to_server: asyncio.StreamWriter,
        broken: "asyncio.Future[Loss]",
    ) -> None:
        is_marked = False
        with suppress(ConnectionError):
            while data := await client.read(1 << 20):
                planned = self._break
                is_marked = is_marked or (planned is not None and planned.after in data)
                if planned is not None and is_marked and planned.at in data:
                    self._break = None
                    self.broken += 1
                    broken.set_result(planned.loss)
                    if planned.loss != "done":
                        to_client.close()
                    if planned.loss == "silent":
                        return  # the server's side stays open, and nothing comes
                    if planned.loss == "never sent":
                        break
                to_server.write(data)
                await to_server.drain()
        to_server.close()

    async def _carry_back(
        self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter, broken: "asyncio.Future[Loss]"
    ) -> None:
        swallowed = b""
        with suppress(ConnectionError):
            while data := await server.read(1 << 20):
                if not broken.done():
                    to_client.write(data)
                    await to_client.drain()
                    continue
                swallowed += data
                if _READY_AND_IDLE in swallowed:
                    break
        to_client.close()


@asynccontextmanager
async def road_to(url: str) -> AsyncIterator[Road]:
    """A road to this database for the length of a with block."""
    road = Road(url)
    server = await road.open()
    try:
        yield road
    finally:
        server.close()
        await road.close()
