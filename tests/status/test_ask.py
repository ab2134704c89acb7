"""Whoever answers on the metrics address, or nobody: one sentence in time, never a traceback, never a wrong picture."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import pytest

from reconsup.status import ask
from reconsup.status.ask import Address, NoAnswer
from tests.shown import told
from tests.support.program import free_port

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


def asked(answer: Answer) -> dict[str, object]:
    """What is understood of a listener that answers so."""

    async def run() -> dict[str, object]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await answer(reader, writer)
            finally:
                writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            return await ask.host((host, port))

    return asyncio.run(run())


def says(text: bytes) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(text)
        await writer.drain()

    return answer


def test_a_supervisors_status_is_taken_as_it_is() -> None:
    assert asked(says(OK + json.dumps(told.host()).encode())) == told.host()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        OK,
        OK + b"<html>",
        OK + b"[]",
        OK + b'{"supervisor": {}}',
        OK + b"\xff\xfe",
        OK + json.dumps(told.host()).encode()[:-40],
        b"HTTP/1.1 404 Not Found\r\n\r\n" + json.dumps(told.host()).encode(),
    ],
    ids=["silence", "ssh", "nothing", "html", "a list", "half", "bytes", "cut off", "404"],
)
def test_something_else_that_answers_is_not_taken_for_a_supervisor(text: bytes) -> None:
    with pytest.raises(NoAnswer, match="something else answers"):
        asked(says(text))


@pytest.mark.parametrize("drips", [False, True], ids=["silent", "dripping"])
def test_nobody_waits_longer_than_two_seconds(drips: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for one who sends a byte now and then. Seen to fail with a time-out for each read."""
    monkeypatch.setattr(ask, "ANSWER_SECONDS", 0.3)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(40):
            if drips:
                writer.write(b"x")
            await asyncio.sleep(0.05)

    started_at = time.monotonic()
    with pytest.raises(NoAnswer, match=r"does not answer within 0\.3 s"):
        asked(answer)
    assert time.monotonic() - started_at < 1.5


def test_an_endless_answer_ends() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(OK + b" " * (1 << 20))
            await writer.drain()

    with pytest.raises(NoAnswer, match=r"something else|within"):
        asked(answer)


def test_where_nobody_listens_it_is_said_what_to_do() -> None:
    address = ("127.0.0.1", free_port())

    with pytest.raises(NoAnswer, match=f"no reconsup answers at http://127.0.0.1:{address[1]}: start one"):
        asyncio.run(ask.host(address))
    with pytest.raises(NoAnswer, match="cannot be reached"):
        asyncio.run(ask.host(("name.invalid", 1)))


@pytest.mark.parametrize(
    ("address", "reached", "shown"),
    [
        (("0.0.0.0", 1), ("127.0.0.1", 1), "http://127.0.0.1:1"),
        (("::", 1), ("::1", 1), "http://[::1]:1"),
        (("0:0:0:0:0:0:0:0", 1), ("::1", 1), "http://[::1]:1"),
        (("10.0.0.7", 1), ("10.0.0.7", 1), "http://10.0.0.7:1"),
        (("localhost", 1), ("localhost", 1), "http://localhost:1"),
    ],
)
def test_who_listens_everywhere_is_asked_at_home(address: Address, reached: Address, shown: str) -> None:
    assert (ask.reachable(address), ask.shown(address)) == (reached, shown)
