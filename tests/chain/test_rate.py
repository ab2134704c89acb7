"""chain.rate, and how an endpoint and its batches slow down and speed up again."""

import asyncio
import time
from dataclasses import replace

import pytest

from reconsup.chain.errors import AnswerTooLarge, Throttled
from reconsup.chain.evm import EvmChain
from reconsup.chain.rate import GAP_SECONDS_MAX, GAP_SECONDS_MIN, Rate
from reconsup.chain.rpc import Refusal
from tests.chain.conftest import call, endpoint
from tests.support.proxy import Answers, Proxy, Reply, refuse

RECEIPTS = "eth_getBlockReceipts"


def test_nobody_waits_as_long_as_nobody_throttles() -> None:
    rate = Rate()
    for second in range(100):
        assert rate.take_turn(second / 1000) == 0
        rate.was_answered()


def test_each_refusal_halves_how_often_it_is_asked_and_answers_bring_it_back() -> None:
    rate = Rate()
    gaps = []
    for _ in range(8):
        rate.was_throttled()
        gaps.append(rate.gap_seconds)
    assert gaps == [GAP_SECONDS_MIN * factor for factor in (1, 2, 4, 8, 16, 32)] + [GAP_SECONDS_MAX] * 2
    answers = 0
    while rate.gap_seconds:
        rate.was_answered()
        answers += 1
    assert 10 < answers < 30


def test_whoever_asks_at_the_same_time_comes_one_after_the_other() -> None:
    """Seen to fail (all at once) when a turn does not move the next one."""
    rate = Rate()
    rate.was_throttled()
    assert [round(rate.take_turn(10.0), 3) for _ in range(4)] == [0, 0.05, 0.1, 0.15]
    assert rate.take_turn(20.0) == 0


@pytest.mark.service
def test_a_throttled_endpoint_is_asked_less_often_and_for_less_at_a_time(proxy: Proxy) -> None:
    """And by and by for as much as before. Seen to fail without the words to Rate and to Pace."""

    async def run() -> None:
        async with endpoint(proxy.url) as node:
            chain = EvmChain(node)
            await node.call("anvil_mine", hex(60))
            proxy.spoil = refuse(RECEIPTS, -32005, "daily request count exceeded, request rate limited")
            for _ in range(3):
                with pytest.raises(Throttled):
                    await chain.blocks(1, 50)
            proxy.spoil = None
            proxy.requests.clear()
            began = time.monotonic()
            await chain.blocks(1, 50)
            sizes = [len(methods) // 2 for methods in proxy.requests]
            assert sizes[0] == 6
            assert sizes == sorted(sizes[:-1]) + sizes[-1:]  # growing; the last one is what was left
            assert time.monotonic() - began > GAP_SECONDS_MIN * 4  # the gap after three refusals
            for _ in range(40):
                await chain.blocks(1, 50)
            proxy.requests.clear()
            await chain.blocks(1, 50)
            assert [len(methods) for methods in proxy.requests] == [100]

    asyncio.run(run())


SIZES = {
    "geth": (-32005, "query returned more than 10000 results"),
    "a range hint": (-32005, "query returned more than 10000 results. Try with this block range [0x1, 0x5]."),
    "alchemy": (-32602, "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range"),
    "a block range": (-32005, "block range is too wide"),
    "a limited range": (-32000, "exceed maximum block range: 5000"),
    "a size": (-32003, "rejected"),
    "a batch": (-32600, "batch limit 20 exceeded"),
    "413 in JSON": (413, "no"),
}
RATES = {
    "infura": (-32005, "daily request count exceeded, request rate limited"),
    "bare": (-32005, "limit exceeded"),
    "alchemy": (429, "Your app has exceeded its compute units per second capacity"),
    "drpc": (-32029, "no"),
}


@pytest.mark.parametrize(("code", "message"), SIZES.values(), ids=SIZES.keys())
def test_what_is_too_much_at_a_time_is_no_throttling(code: int, message: str) -> None:
    """-32005 says "limit exceeded" of both. Seen to fail (waiting instead of asking for less) without OF_SIZE first."""
    refusal = Refusal(code, message)
    assert refusal.is_too_large
    assert not refusal.is_throttling


@pytest.mark.parametrize(("code", "message"), RATES.values(), ids=RATES.keys())
def test_what_comes_too_often_is_throttling(code: int, message: str) -> None:
    refusal = Refusal(code, message)
    assert refusal.is_throttling
    assert not refusal.is_too_large
    assert not replace(refusal, code=-32602, message="invalid params").is_throttling


@pytest.mark.service
def test_a_range_hint_is_answered_with_smaller_batches(proxy: Proxy) -> None:
    """We ask for no ranges of logs, so what the hint names is of no use; that it comes is."""

    def spoil(requests: Answers, answers: Answers) -> Answers:
        too_large = len(requests) > 20
        error = {"code": -32005, "message": "query returned more than 10000 results. Try with this block range [0x1]"}
        return [{"jsonrpc": "2.0", "id": each["id"], "error": error} for each in requests] if too_large else answers

    async def run() -> None:
        async with endpoint(proxy.url) as node:
            chain = EvmChain(node)
            await node.call("anvil_mine", hex(60))
            proxy.spoil = spoil
            assert len(await chain.blocks(1, 50)) == 50
            assert [len(methods) for methods in proxy.requests[1:5]] == [100, 50, 24, 12]

    asyncio.run(run())


@pytest.mark.service
def test_a_range_hint_on_a_single_call_is_a_size_too(proxy: Proxy) -> None:
    proxy.spoil = refuse("eth_chainId", -32005, "query returned more than 10000 results")
    with pytest.raises(AnswerTooLarge):
        call(proxy.url)
    proxy.spoil = lambda *_: Reply(429)
    with pytest.raises(Throttled):
        call(proxy.url)
