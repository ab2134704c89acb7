"""chain.nodes: which endpoint is asked, which is set aside and for how long. Real nodes, and a clock that is moved."""

import asyncio
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from reconsup.chain.errors import (
    AnswerTooSlow,
    CallRefused,
    ChainInconsistent,
    ChainUnavailable,
    EndpointsDisagree,
    Throttled,
    WrongChain,
)
from reconsup.chain.evm import EvmChain
from reconsup.demo.anvil import Anvil
from tests.chain.nodes_at import NUMBER, WHO, asked, nodes_at, nothing
from tests.support.proxy import Reply, change, proxy_before
from tests.support.twin_nodes import Twins, away, twin_nodes

pytestmark = pytest.mark.service


@pytest.fixture
def twins() -> Iterator[Twins]:
    with twin_nodes() as running:
        yield running


def throttled(*_: object) -> Reply:
    return Reply(429, headers={"Retry-After": "7"})


# fail-over


def test_another_endpoint_answers_where_one_fails_and_it_is_kept(twins: Twins) -> None:
    """No flip-flop: the first one is back, and the one that works goes on.

    Seen to fail (a answers again) with `ask` always preferring the order of the settings.
    """

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            assert await group.who_answers() == "a"
            twins.at_a.spoil = away
            assert await group.who_answers() == "b"
            twins.at_a.spoil = None
            await group.wait(1000)
            assert [await group.who_answers() for _ in range(3)] == ["b"] * 3
            twins.at_b.spoil = away
            assert await group.who_answers() == "a"

    asyncio.run(run())


@pytest.mark.parametrize("method", [NUMBER, "eth_chainId"])
def test_an_answer_that_no_chain_can_give_is_asked_of_another_endpoint(twins: Twins, method: str) -> None:
    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            twins.at_a.spoil = change(method, lambda _: "nonsense")
            assert await group.who_answers() == "b"

    asyncio.run(run())


def test_the_work_begins_anew_at_the_other_endpoint(twins: Twins) -> None:
    """What belongs together is never put together from the answers of two."""

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            begun: list[str] = []

            async def work(chain: EvmChain) -> list[int]:
                begun.append(group.names[chain.endpoint.name])
                first = await chain.header_at(1)
                twins.at_a.spoil = away
                second = await chain.header_at(2)
                assert first is not None
                assert second is not None
                return [first.height, second.height]

            assert await group.nodes.ask(work) == [1, 2]
            assert begun == ["a", "b"]

    asyncio.run(run())


def test_a_time_out_is_left_to_the_caller_and_the_next_question_goes_to_another_endpoint_at_once(twins: Twins) -> None:
    """Seen to fail (b is asked within the same call, when the lease may be over) without the question for the time."""

    async def run() -> None:
        async with nodes_at(*twins.urls, timeout_seconds=0.2) as group:
            assert await group.who_answers() == "a"
            twins.at_a.delay_seconds = 1.0
            with pytest.raises(AnswerTooSlow):
                await group.who_answers()
            assert group.nodes.has_usable
            assert asked(twins.at_b) == 0
            assert await group.who_answers() == "b"

    asyncio.run(run())


def test_an_error_that_is_not_the_chains_blames_nobody(twins: Twins) -> None:
    async def run() -> None:
        async with nodes_at(*twins.urls) as group:

            async def work(_: EvmChain) -> None:
                raise KeyError("the caller's own")

            with pytest.raises(KeyError):
                await group.nodes.ask(work)
            assert await group.who_answers() == "a"

    asyncio.run(run())


# for how long


def test_one_that_fails_again_and_again_is_asked_ever_more_rarely_and_at_least_every_five_minutes(
    twins: Twins,
) -> None:
    """Seen to fail (asked each second) with the doubling taken out of Node.set_aside."""

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            chain = group.chains[1]
            (top,) = await group.headers(1, 5, 5)
            twins.at_a.spoil = away
            twins.clear()
            for _ in range(3600):
                await group.wait(1)
                await group.nodes.agree_on_blocks(chain, [top], nothing)
            assert 8 + 10 <= asked(twins.at_a) <= 8 + 13  # after 1, 2, 4, … 128, 256 s, then every 300 s

    asyncio.run(run())


def test_when_all_fail_the_one_whose_time_ends_first_is_asked(twins: Twins) -> None:
    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            twins.at_a.spoil = twins.at_b.spoil = away
            for a, b in ((1, 1), (2, 1), (2, 2), (3, 2)):
                with pytest.raises(ChainUnavailable):
                    await group.who_answers()
                assert (asked(twins.at_a), asked(twins.at_b)) == (a, b)
            assert not group.nodes.has_usable

    asyncio.run(run())


def test_a_pause_that_an_endpoint_asks_for_is_kept_to_the_letter_while_another_one_is_used(twins: Twins) -> None:
    """Seen to fail (a is asked after a second) without `not_before`."""

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            twins.at_a.spoil = throttled
            assert await group.who_answers() == "b"
            twins.at_a.spoil, twins.at_b.spoil = None, away
            twins.clear()
            for _ in range(6):
                await group.wait(1)
                with pytest.raises(ChainUnavailable):
                    await group.who_answers()
            assert asked(twins.at_a) == 0
            await group.wait(1)
            assert await group.who_answers() == "a"

    asyncio.run(run())


def test_where_all_ask_for_a_pause_nobody_is_asked_and_the_caller_hears_how_long(twins: Twins) -> None:
    """The only endpoint of a network, too: the scan and the audit must not break each other's pause."""

    async def run() -> None:
        async with nodes_at(twins.at_a.url) as group:
            twins.at_a.spoil = throttled
            with pytest.raises(Throttled):
                await group.who_answers()
            twins.clear()
            await group.wait(3)
            with pytest.raises(Throttled) as caught:
                await group.who_answers()
            assert caught.value.retry_after_seconds == 4
            assert asked(twins.at_a) == 0
            twins.at_a.spoil = None
            await group.wait(4)
            assert await group.who_answers() == "a"

    asyncio.run(run())


def test_a_single_endpoint_is_asked_as_often_as_its_caller_likes(twins: Twins) -> None:
    """Waiting is the caller's: one endpoint behaves as if nothing were set aside."""

    async def run() -> None:
        async with nodes_at(twins.at_a.url) as group:
            twins.at_a.spoil = away
            for count in range(1, 5):
                with pytest.raises(ChainUnavailable):
                    await group.who_answers()
                assert asked(twins.at_a) == count
            twins.at_a.spoil = None
            assert await group.who_answers() == "a"

    asyncio.run(run())


def test_many_questions_at_once_find_the_endpoint_that_works(twins: Twins) -> None:
    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            twins.at_a.spoil = away
            with capture_logs() as logs:
                answers = await asyncio.gather(*(group.who_answers() for _ in range(20)))
            assert set(answers) == {"b"}
            assert [log["event"] for log in logs] == ["endpoint_set_aside"]

    asyncio.run(run())


# who they are


def test_each_endpoint_is_asked_who_it_is_before_its_first_use_and_after_each_failure(twins: Twins) -> None:
    """Seen to fail (another chain's head is believed) when a failure leaves `is_met` as it was."""

    async def run() -> None:
        async with nodes_at(twins.at_a.url) as group:
            await group.pin()
            await group.who_answers()
            await group.who_answers()
            assert twins.at_a.requests == [WHO, [NUMBER] * 3, [NUMBER] * 3]
            twins.at_a.spoil = away
            with pytest.raises(ChainUnavailable):
                await group.who_answers()
            twins.at_a.spoil = None
            twins.clear()
            await group.who_answers()
            assert twins.at_a.requests == [WHO, [NUMBER] * 3]
            with Anvil(chain_id=5) as other:
                twins.at_a.spoil = away
                with pytest.raises(ChainUnavailable):
                    await group.who_answers()
                twins.at_a.spoil, twins.at_a._upstream = None, other.url
                with pytest.raises(WrongChain):
                    await group.who_answers()

    asyncio.run(run())


def test_one_of_another_chain_is_set_aside_and_the_others_go_on(twins: Twins) -> None:
    """With another chain id, and with the same one on another first block. It is told, with what to do.

    Seen to fail (a answers) without the comparison in Nodes._meet.
    """

    async def run(other: Anvil) -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            twins.at_a.spoil = away
            assert await group.who_answers() == "b"
            twins.at_a.spoil, twins.at_a._upstream, twins.at_b.spoil = None, other.url, away
            await group.wait(2)
            with capture_logs() as logs, pytest.raises(ChainUnavailable):
                await group.who_answers()
            (log,) = [log for log in logs if log["reason"] == "wrong_chain"]
            assert (log["event"], log["log_level"]) == ("endpoint_set_aside", "error")
            assert "PAYMENT_REQUEST_EVM_RPC_URLS_JSON" in log["todo"]
            assert not group.nodes.is_wrong  # the other one is only away
            twins.at_b.spoil = None
            await group.wait(2)
            assert await group.who_answers() == "b"
            twins.at_b._upstream = other.url
            with pytest.raises(WrongChain):
                await group.nodes.ask(lambda chain: group.nodes.meet(chain, anew=True))
            assert group.nodes.is_wrong

    for chain_id in (5, 31337):
        with Anvil(chain_id=chain_id, options=["--timestamp", "1600000000"]) as other:
            asyncio.run(run(other))
        twins.at_a._upstream, twins.at_b._upstream = twins.a.url, twins.b.url


def test_before_a_chain_is_pinned_all_that_answer_must_show_the_same(twins: Twins) -> None:
    """Seen to fail (the first one's chain is taken) without the comparison in Nodes.identity."""

    async def run(other: Anvil) -> None:
        with proxy_before(other.url) as at_c:
            async with nodes_at(*twins.urls, at_c.url) as group:
                with capture_logs() as logs, pytest.raises(EndpointsDisagree, match="chain id 5"):
                    await group.nodes.identity()
                assert [log["event"] for log in logs] == ["endpoints_disagree"]
            at_c.spoil = away  # who is silent has no say
            async with nodes_at(*twins.urls, at_c.url) as group:
                assert (await group.nodes.identity()).chain_id == 31337

    with Anvil(chain_id=5) as other:
        asyncio.run(run(other))


# what the operator hears


def test_it_is_told_once_that_an_endpoint_is_set_aside_then_every_hour_and_when_it_is_back(twins: Twins) -> None:
    """Seen to fail (a line a call) with Node.must_tell always true."""

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            (top,) = await group.headers(1, 5, 5)
            twins.at_a.spoil = away
            with capture_logs() as logs:
                for _ in range(100):
                    await group.wait(60)
                    assert await group.who_answers() == "b"
                    await group.nodes.agree_on_blocks(group.chains[1], [top], nothing)
                twins.at_a.spoil = None
                await group.wait(300)
                await group.nodes.agree_on_blocks(group.chains[1], [top], nothing)
            assert [log["event"] for log in logs] == ["endpoint_set_aside", "endpoint_set_aside", "endpoint_back"]
            assert all(log["endpoint"] == twins.at_a.url for log in logs)
            assert "HTTP 503" in logs[0]["error"]

    asyncio.run(run())


def test_a_moments_throttling_is_not_told(twins: Twins) -> None:
    """Every provider does it now and then; the metrics of the calls show it."""

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            with capture_logs() as logs:
                twins.at_a.spoil = throttled
                assert await group.who_answers() == "b"
            assert logs == []

    asyncio.run(run())


def test_of_a_single_endpoint_nothing_is_told_here(twins: Twins) -> None:
    """The scanner tells."""

    async def run() -> None:
        async with nodes_at(twins.at_a.url) as group:
            twins.at_a.spoil = change(NUMBER, lambda _: 5)
            with capture_logs() as logs, pytest.raises(ChainInconsistent):
                await group.who_answers()
            assert logs == []

    asyncio.run(run())


def test_a_refused_call_costs_the_endpoint_a_second_and_not_its_standing(twins: Twins) -> None:
    """It answers: whoever asks for something that it does not have (an old balance) must not take it from the scan.

    Seen to fail (set aside for five minutes, and told) when a refusal counts as a failure.
    """

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:

            async def old_balance(chain: EvmChain) -> object:
                return await chain.endpoint.call("eth_getBalance", "0x" + "5" * 40, "0xffffff")

            with capture_logs() as logs:
                for _ in range(20):
                    with pytest.raises(CallRefused):
                        await group.nodes.ask(old_balance)
                    await group.wait(1)
                    assert group.nodes.has_another(group.chains[0])
            assert logs == []
            twins.clear()
            assert await group.who_answers() == "a"
            assert twins.at_a.requests == [[NUMBER] * 3]  # nor is it asked again who it is

    asyncio.run(run())
