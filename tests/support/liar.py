"""The node that lies, one way or another (tests.support.faults), on the test's own event loop before a real anvil."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from tests.support.faults import Endless, Exchange, Fault, Schedule
from tests.support.proxy import Answers, Reply

ENDLESS_PIECE = b" " * 2**18


@dataclass(slots=True)
class Node:
    """An endpoint before one anvil or several. `applied`: each fault that spoiled something, in order.

    `gates`: by the path of a URL, whom to ask before a request is carried on and before its answer is given.
    """

    upstreams: Sequence[str]
    random: Random = field(default_factory=lambda: Random(0))
    schedule: Schedule | None = None
    applied: list[str] = field(default_factory=list)
    gates: dict[str, Callable[[str], Awaitable[None]]] = field(default_factory=dict)
    url: str = ""
    _session: Any = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one HTTP request."""
        asked = orjson.loads(await request.read())
        requests = asked if isinstance(asked, list) else [asked]
        gate = self.gates.get(request.path)
        if gate is not None:
            await gate("rpc")
        faults = self.schedule() if self.schedule is not None else ()
        answered = await self._spoiled(requests, faults) if faults else None
        if answered is None:
            answered = await self._post(self.upstreams[0], asked)
        if gate is not None:
            await gate("rpc answered")
        return await self._send(request, asked, answered)

    async def _spoiled(self, requests: Answers, faults: Sequence[Fault]) -> Any:
        """What is sent instead of the node's answer; None if none of the faults has anything to spoil."""
        exchange = Exchange(requests, await self._answers(0, requests), self.random, self._ask, self._ask_others)
        for fault in faults:
            spoiled = await fault(exchange)
            if spoiled is not None and spoiled != exchange.answers:
                self.applied.append(fault.__name__)
                return spoiled
        return None

    async def _ask(self, method: str, *params: Any) -> Any:
        call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        return (await self._answers(0, [call]))[0]["result"]

    async def _ask_others(self, requests: Answers) -> Answers:
        return await self._answers(1, requests)

    async def _answers(self, which: int, requests: Answers) -> Answers:
        found = {each["id"]: each for each in orjson.loads(await self._post(self.upstreams[which], requests))}
        return [found[each["id"]] for each in requests]

    async def _post(self, upstream: str, calls: Any) -> bytes:
        headers = {"Content-Type": "application/json"}
        async with self._session.post(upstream, data=orjson.dumps(calls), headers=headers) as response:
            return bytes(await response.read())

    async def _send(self, request: web.Request, asked: Any, answered: Any) -> web.StreamResponse:
        if isinstance(answered, bytes):
            return web.Response(body=answered, content_type="application/json")
        if not isinstance(answered, Reply | Endless):
            single = answered[0] if not isinstance(asked, list) and len(answered) == 1 else answered
            return web.Response(body=orjson.dumps(single), content_type="application/json")
        reply = answered if isinstance(answered, Reply) else Reply()
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        if reply.cut:
            response.content_length = len(reply.body) + 1000
        await response.prepare(request)
        await response.write(reply.body)
        with suppress(ConnectionError):  # the reader has hung up
            while isinstance(answered, Endless):
                await response.write(b" " if answered.pause_seconds else ENDLESS_PIECE)
                await asyncio.sleep(answered.pause_seconds)
        if reply.cut:
            assert request.transport is not None
            request.transport.close()
            return response
        with suppress(ConnectionError):
            await response.write_eof()
        return response


@asynccontextmanager
async def node_before(*upstreams: str, random: Random | None = None) -> AsyncIterator[Node]:
    """A node before these upstreams for the length of a with block; honest until it gets a schedule."""
    node = Node(upstreams, random or Random(0))
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_post("/{path:.*}", node.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    node.url = f"http://{host}:{port}"
    async with aiohttp.ClientSession() as node._session:
        try:
            yield node
        finally:
            await runner.cleanup()
