"""chain.rpc against a real anvil; what a bad endpoint does is done by a proxy before it."""

import asyncio
import gzip
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from reconsup.chain import rpc
from reconsup.chain.errors import AnswerTooLarge, AnswerTooSlow, ChainInconsistent, ChainUnavailable, Throttled
from reconsup.chain.rpc import Refusal
from reconsup.demo.anvil import Anvil
from tests.chain.conftest import Meter, call, endpoint
from tests.support.proxy import Answers, Proxy, Reply, refuse

pytestmark = pytest.mark.service

CHAIN_ID, NUMBER = "eth_chainId", "eth_blockNumber"
KEY = "s3cret-api-key-1234567890"


def batch(url: str, methods: list[str], meter: Meter | None = None) -> list[Any]:
    """One batch through an endpoint of its own."""

    async def run() -> list[Any]:
        async with endpoint(url, meter) as node:
            return await node.batch([(method, []) for method in methods])

    return asyncio.run(run())


def test_a_call_returns_its_result_and_is_metered(anvil: Anvil, meter: Meter) -> None:
    assert call(anvil.url, meter) == "0x7a69"
    assert meter.calls == [("local", CHAIN_ID, "ok")]
    assert 0 < meter.seconds[0] < 5


def test_a_batch_is_one_http_request_and_meters_every_call(proxy: Proxy, meter: Meter) -> None:
    assert batch(proxy.url, [CHAIN_ID, NUMBER, CHAIN_ID], meter) == ["0x7a69", "0x0", "0x7a69"]
    assert proxy.requests == [[CHAIN_ID, NUMBER, CHAIN_ID]]
    assert Counter(method for _, method, _ in meter.calls) == {CHAIN_ID: 2, NUMBER: 1}


def test_a_refused_call_of_a_batch_leaves_the_others(anvil: Anvil, meter: Meter) -> None:
    chain_id, refusal, number = batch(anvil.url, [CHAIN_ID, "eth_nonsense", NUMBER], meter)

    assert (chain_id, number) == ("0x7a69", "0x0")
    assert isinstance(refusal, Refusal)
    assert refusal.is_unsupported
    assert meter.outcomes == {"ok": 2, "error": 1}


def test_a_refused_single_call_is_unavailable_in_the_nodes_own_words(anvil: Anvil) -> None:
    async def run() -> None:
        async with endpoint(anvil.url) as node:
            await node.call("eth_getBlockByNumber", "yesterday", False)

    with pytest.raises(
        ChainUnavailable, match=r"^local: http://127.0.0.1:\d+ refuses eth_getBlockByNumber: .+ \(-32602\)$"
    ):
        asyncio.run(run())


def test_connections_are_kept_alive(proxy: Proxy) -> None:
    """Seen to fail with web3's own session: a connection a call."""

    async def run() -> None:
        async with endpoint(proxy.url) as node:
            for _ in range(10):
                await node.call(CHAIN_ID)
                await node.batch([(NUMBER, [])] * 3)

    asyncio.run(run())
    assert len(proxy.requests) == 20
    assert proxy.connections == 1


def test_no_thread_is_started_for_calls(anvil: Anvil) -> None:
    """Seen to fail with web3's own session handling, which takes a lock in a thread pool before each call."""
    before = threading.active_count()

    async def run() -> int:
        async with endpoint(anvil.url) as node:
            await node.batch([(NUMBER, [])] * 3)
            return threading.active_count()

    assert asyncio.run(run()) == before


def test_a_connection_that_the_server_closed_meanwhile_costs_no_error(proxy: Proxy, meter: Meter) -> None:
    """Seen to fail without the second attempt in Transport._post."""

    async def run() -> None:
        async with endpoint(proxy.url, meter) as node:
            for _ in range(5):
                await node.call(CHAIN_ID)
                proxy.drop_connections()  # blocks this loop: it cannot notice before it uses the connection

    asyncio.run(run())
    assert meter.outcomes == {"ok": 5}
    assert proxy.connections == 5


def test_it_can_be_used_again_after_close(proxy: Proxy) -> None:
    async def run() -> None:
        node = endpoint(proxy.url)
        await node.call(CHAIN_ID)
        await node.close()
        await node.call(CHAIN_ID)
        await node.close()

    asyncio.run(run())
    assert proxy.connections == 2


def other_id(_: Answers, answers: Answers) -> Answers:
    return [{**answers[0], "id": 9999}, *answers[1:]]


INCONSISTENT: dict[str, Callable[[Answers, Answers], Any]] = {
    "an answer is missing": lambda _, answers: answers[:1] + answers[2:],
    "an answer comes twice": lambda _, answers: [*answers, answers[0]],
    "one twice, one missing": lambda _, answers: [answers[0], answers[0], answers[2]],
    "an id that nobody asked": other_id,
    "an id that is a string": lambda _, answers: [{**each, "id": str(each["id"])} for each in answers],
    "an id that is true": lambda _, answers: [{**each, "id": each["id"] == 1 or each["id"]} for each in answers],
    "no ids": lambda _, answers: [{"result": each["result"]} for each in answers],
    "an empty list": lambda *_: [],
    "a number": lambda *_: 42,
    "null": lambda *_: None,
    "an object without error": lambda *_: {"jsonrpc": "2.0", "id": None},
    "a list of numbers": lambda *_: [1, 2, 3],
    "neither result nor error": lambda _, answers: [{"id": each["id"]} for each in answers],
    "an error that is a string": lambda _, answers: [{"id": each["id"], "error": "no"} for each in answers],
    "an error without code": lambda _, answers: [{"id": each["id"], "error": {}} for each in answers],
}


@pytest.mark.parametrize("spoil", INCONSISTENT.values(), ids=INCONSISTENT.keys())
def test_an_answer_that_does_not_match_its_batch_is_refused(proxy: Proxy, meter: Meter, spoil: Any) -> None:
    """Seen to fail with the comparison of the ids taken out; web3 8.0.0 itself shifts the later answers silently."""
    proxy.spoil = spoil

    with pytest.raises(ChainInconsistent, match=r"^local: http://127.0.0.1:\d+ sent "):
        batch(proxy.url, [CHAIN_ID, NUMBER, CHAIN_ID], meter)
    assert meter.outcomes == {"inconsistent": 3}


def test_answers_in_another_order_are_put_right(proxy: Proxy) -> None:
    proxy.spoil = lambda _, answers: answers[::-1]

    assert batch(proxy.url, [CHAIN_ID, NUMBER, CHAIN_ID]) == ["0x7a69", "0x0", "0x7a69"]


def test_a_single_answer_with_a_wrong_id_is_refused(proxy: Proxy) -> None:
    """Seen to fail with web3's own make_request, which does not look at the id."""
    proxy.spoil = other_id

    with pytest.raises(ChainInconsistent):
        call(proxy.url)


def test_one_error_for_a_whole_batch_is_a_refusal_of_every_call(proxy: Proxy, meter: Meter) -> None:
    proxy.spoil = lambda *_: {"id": None, "error": {"code": -32600, "message": "batch too large"}}

    refusals = batch(proxy.url, [CHAIN_ID, NUMBER], meter)

    assert refusals == [Refusal(-32600, "batch too large")] * 2
    assert refusals[0].is_too_large
    assert meter.outcomes == {"error": 2}


# -- an endpoint that is away, slow or throttling: (the proxy's answer, the error's kind, its words, outcome, pause)
NEVER, LONG_AGO = "Tue, 29 Oct 2999 16:56:32 GMT", "Tue, 29 Oct 2002 16:56:32 GMT"
REPLIES: dict[str, tuple[Reply, type[ChainUnavailable], str, str, float | None]] = {
    "429": (Reply(429), Throttled, r"throttling us \(HTTP 429\)", "throttled", None),
    "429 with a pause": (Reply(429, headers={"Retry-After": "7"}), Throttled, "429", "throttled", 7.0),
    "429 until a date": (Reply(429, headers={"Retry-After": NEVER}), Throttled, "429", "throttled", 3600.0),
    "429 until a past date": (Reply(429, headers={"Retry-After": LONG_AGO}), Throttled, "429", "throttled", 0.0),
    "429 with nonsense": (Reply(429, headers={"Retry-After": "soon"}), Throttled, "429", "throttled", None),
    "429 for ever": (Reply(429, headers={"Retry-After": "999999999"}), Throttled, "429", "throttled", 3600.0),
    "503 with a pause": (
        Reply(503, headers={"Retry-After": "2.5"}),
        ChainUnavailable,
        "answered HTTP 503",
        "error",
        2.5,
    ),
    "500": (Reply(500, b"oops"), ChainUnavailable, "answered HTTP 500", "error", None),
    "404": (Reply(404), ChainUnavailable, r"knows nothing at this URL \(HTTP 404\)", "error", None),
    "401": (Reply(401), ChainUnavailable, "check the key in its URL", "error", None),
    "413": (Reply(413), AnswerTooLarge, r"\(HTTP 413\)", "error", None),
    "a redirection": (Reply(301, headers={"Location": "/"}), ChainUnavailable, "give its final URL", "error", None),
    "a web page": (Reply(200, b"<html>"), ChainUnavailable, "something that is not JSON", "error", None),
    "no UTF-8": (Reply(200, b'"\xff"'), ChainUnavailable, "something that is not JSON", "error", None),
    "nothing": (Reply(200), ChainUnavailable, "something that is not JSON", "error", None),
    "half an answer": (Reply(200, b"[", cut=True), ChainUnavailable, "before its answer was complete", "error", None),
    "broken gzip": (
        Reply(200, b"no gzip", {"Content-Encoding": "gzip"}),
        ChainUnavailable,
        "does not speak HTTP|before its answer",
        "error",
        None,
    ),
}


@pytest.mark.parametrize(("reply", "kind", "words", "outcome", "pause"), REPLIES.values(), ids=REPLIES.keys())
def test_a_bad_http_answer_is_unavailable(
    proxy: Proxy,
    meter: Meter,
    reply: Reply,
    kind: type[ChainUnavailable],
    words: str,
    outcome: str,
    pause: float | None,
) -> None:
    proxy.spoil = lambda *_: reply

    with pytest.raises(ChainUnavailable, match=words) as caught:
        call(proxy.url, meter)

    assert type(caught.value) is kind
    assert caught.value.retry_after_seconds == pause
    assert meter.outcomes == {outcome: 1}
    assert len(proxy.requests) == 1


THROTTLING: dict[str, tuple[int, str, Any, float | None]] = {
    "limit exceeded": (-32005, "limit exceeded", None, None),
    "with a pause": (-32005, "daily request count exceeded", {"rate": {"backoff_seconds": 30}}, 30.0),
    "with a strange pause": (-32005, "daily request count exceeded", {"rate": {"backoff_seconds": "x"}}, None),
    "429 in JSON": (429, "Your app has exceeded its compute units per second capacity", None, None),
    "only in words": (-32000, "Too Many Requests", None, None),
}


@pytest.mark.parametrize(("code", "message", "data", "pause"), THROTTLING.values(), ids=THROTTLING.keys())
def test_throttling_inside_json_is_understood(
    proxy: Proxy, meter: Meter, code: int, message: str, data: Any, pause: float | None
) -> None:
    proxy.spoil = refuse(CHAIN_ID, code, message, data=data)

    with pytest.raises(Throttled, match="is throttling eth_chainId") as caught:
        call(proxy.url, meter)
    assert caught.value.retry_after_seconds == pause
    assert meter.outcomes == {"throttled": 1}


def test_a_slow_endpoint_is_given_up_in_time(proxy: Proxy, meter: Meter) -> None:
    proxy.delay_seconds = 3.0
    began = time.monotonic()

    with pytest.raises(AnswerTooSlow, match=r"did not answer within 0.2 s$"):
        call(proxy.url, meter, timeout_seconds=0.2)
    assert time.monotonic() - began < 1.5
    assert meter.outcomes == {"timeout": 1}


ENDLESS = {
    "plain": Reply(200, b" " * 100_000, repeat=1_000),
    "compressed": Reply(200, gzip.compress(b" " * 20_000_000), {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("reply", ENDLESS.values(), ids=ENDLESS.keys())
def test_an_oversized_answer_is_not_read_to_its_end(
    proxy: Proxy, meter: Meter, reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail without the limit in Transport._exchange (then it is "not JSON", after all of it was read)."""
    monkeypatch.setattr(rpc, "ANSWER_BYTES_MAX", 2**20)
    proxy.spoil = lambda *_: reply

    with pytest.raises(AnswerTooLarge, match="sent more than 1 MiB in one answer"):
        call(proxy.url, meter)
    assert meter.outcomes == {"error": 1}


def test_nobody_listens(meter: Meter) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{KEY}"
        with pytest.raises(ChainUnavailable, match=r"cannot be reached: connection refused$"):
            call(url, meter)
    assert meter.outcomes == {"error": 1}


def test_a_host_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ChainUnavailable, match=r"its host name is not known$"):
        call("http://node.example")


def test_tls_to_a_port_that_has_none(anvil: Anvil) -> None:
    with pytest.raises(ChainUnavailable, match="TLS fails"):
        call(anvil.url.replace("http:", "https:"))


@pytest.mark.parametrize("url", ["http://", "nonsense", "http://127.0.0.1:99999", "http://a..b/"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ChainUnavailable, match=r"http\(s\)|host name|does not speak HTTP"):
        call(url)


def test_a_server_that_speaks_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")
                connection.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ChainUnavailable):
            call(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
