"""The port, with clients that come in great number and say nothing."""

import asyncio
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from reconsup.monitor import door, http
from tests.monitor.test_http import free_port
from tests.monitor.test_status import FLEET, known

Port = int


def visit(folder: Path, doing: Callable[[Port], Awaitable[None]]) -> None:
    """Do it while the pages are served as the monitor serves them."""

    async def run() -> None:
        app, port = http.application(lambda: FLEET, known(), folder), free_port()
        serving = asyncio.create_task(http.serve(app, "127.0.0.1", port))
        await reached(port)
        try:
            await doing(port)
        finally:
            serving.cancel()
            await asyncio.wait([serving])

    asyncio.run(run())


async def reached(port: Port) -> None:
    async with asyncio.timeout(10):
        while True:
            with suppress(ConnectionRefusedError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.01)


async def healthy(port: Port) -> bool:
    """Whether a new client is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"ok\n")


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """As many descriptors as a service has by default; both ends of a connection are ours here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_descriptors")
def test_clients_that_say_nothing_keep_nobody_out_and_fill_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of them begin a request and never end it. Seen to fail without the bound: the descriptors are gone after
    half of them, nobody is answered, and asyncio logs `socket.accept() out of system resource` again and again.
    """

    async def flood(port: Port) -> None:
        silent = []
        for number in range(700):
            silent.append(await asyncio.open_connection("127.0.0.1", port))
            if number % 2:
                silent[-1][1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        assert await healthy(port)
        first, last = silent[0][0], silent[-1][0]
        assert await asyncio.wait_for(first.read(), 10) == b"", "who was there longest had to go"
        assert not last.at_eof()
        for _, writer in silent:
            writer.transport.abort()

    visit(tmp_path, flood)
    assert caplog.records == []


def test_a_connection_on_which_nothing_is_asked_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose request never ends. Seen to fail with aiohttp's own hour."""
    assert door.IDLE_SECONDS > 60, "or Prometheus finds its connection closed at each scrape"
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.2)

    async def wait(port: Port) -> None:
        for words in (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(words)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()

    visit(tmp_path, wait)
