"""A proxy in front of a real anvil, for nodes that lie, stall or break: it forwards, then lets a test spoil the answer.

It runs in a thread with a loop of its own, so that the code under test may have any loop, or none.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

Answers = list[dict[str, Any]]
# Takes the JSON-RPC requests and the node's answers to them, in order; returns what is sent instead: JSON or a Reply.
# A request that was not a batch gets the first of a list of one.
Spoil = Callable[[Answers, Answers], Any]


@dataclass(frozen=True)
class Reply:
    """An HTTP answer that need not be JSON-RPC. `cut`: breaks off after the body; `repeat`: sends the body so often."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    repeat: int = 1


class Proxy:
    def __init__(self, upstream: str) -> None:
        self.spoil: Spoil | None = None
        self.delay_seconds = 0.0
        self.requests: list[list[str]] = []  # of each HTTP request, the methods in it
        self.bytes = 0  # of all bodies, asked and answered
        self.url = ""
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._transports: dict[tuple[str, int], asyncio.BaseTransport] = {}
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()], daemon=True)

    @property
    def connections(self) -> int:
        """TCP connections that were ever opened to this proxy."""
        return len(self._transports)

    def leads_to(self, upstream: str) -> None:
        """Stand before another node from now on."""
        self._upstream = upstream

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    def drop_connections(self) -> None:
        """Close every connection from the server's side, as an idle time-out does."""

        async def close() -> None:
            for transport in self._transports.values():
                transport.close()

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(10)

    async def _serve(self) -> None:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        async with aiohttp.ClientSession() as self._session:
            self._started.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self._transports[request.transport.get_extra_info("peername")] = request.transport
        asked = await request.json()
        self.bytes += len(await request.read())
        requests = asked if isinstance(asked, list) else [asked]
        self.requests.append([each["method"] for each in requests])
        async with self._session.post(self._upstream, json=asked) as response:
            answered = await response.json(content_type=None)
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if self.spoil is not None:
            answers = answered if isinstance(answered, list) else [answered]
            by_id = {each["id"]: each for each in answers}
            spoiled = self.spoil(requests, [by_id[each["id"]] for each in requests])
            single = not isinstance(asked, list) and isinstance(spoiled, list) and len(spoiled) == 1
            answered = spoiled[0] if single else spoiled
        if isinstance(answered, Reply):
            return await self._send(request, answered)
        body = json.dumps(answered).encode()
        self.bytes += len(body)
        return web.Response(body=body, content_type="application/json")

    async def _send(self, request: web.Request, reply: Reply) -> web.StreamResponse:
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        if reply.cut:
            response.content_length = len(reply.body) + 1000
        await response.prepare(request)
        for _ in range(reply.repeat):
            await response.write(reply.body)
        if reply.cut:
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write_eof()
        return response


@contextmanager
def proxy_before(upstream: str) -> Iterator[Proxy]:
    """Run a proxy before a node for the length of a with block."""
    proxy = Proxy(upstream)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


def change(method: str, edit: Callable[[Any], Any]) -> Spoil:
    """Spoil the result of one method: `edit` takes the result (its own copy) and returns another."""

    def spoil(requests: Answers, answers: Answers) -> Answers:
        return [
            {**answer, "result": edit(answer["result"])} if request["method"] == method else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    return spoil


def refuse(method: str, code: int, message: str, **more: Any) -> Spoil:
    """Answer one method with a JSON-RPC error."""

    def spoil(requests: Answers, answers: Answers) -> Answers:
        error = {"code": code, "message": message, **more}
        return [
            {"jsonrpc": "2.0", "id": request["id"], "error": error} if request["method"] == method else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    return spoil
