"""The port: who comes in, and how many at once.

A process has so many file descriptors, often 1,024, and the monitor needs some for the database. So there is room for a
bounded number of connections. Who comes when all are taken takes the place of the one that is there longest: clients
that hold connections and say nothing keep out neither Prometheus nor each other. Without a bound they take the last
descriptor, and then asyncio writes thousands of lines a second into the log.
"""

import asyncio

from aiohttp import web

CONNECTIONS_MAX = 128
IDLE_SECONDS = 75  # Prometheus keeps its connection from scrape to scrape, most often for a minute


class Door:
    """Where `server` is reached: `host` and `port`."""

    def __init__(self, server: web.Server, host: str, port: int) -> None:
        self._server = server
        self._host = host
        self._port = port
        self._listening: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. Raises OSError where that cannot be."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(self._enter, self._host, self._port)

    def close(self) -> None:
        """Let nobody in any more."""
        if self._listening is not None:
            self._listening.close()

    def _enter(self) -> asyncio.Protocol:
        """Somebody came."""
        there = [
            each.transport
            for each in self._server.connections
            if each.transport is not None and not each.transport.is_closing()
        ]
        if len(there) >= CONNECTIONS_MAX:
            there[0].abort()
        return self._server()
