"""Balances of thousands of addresses in one call, whatever the node can; and what moved inside a block."""

from collections.abc import Callable
from typing import Any

import pytest

from reconsup.chain import balances, movements
from reconsup.chain.balances import DEPLOYLESS_ADDRESSES, OVERRIDE_ADDRESSES, State
from reconsup.chain.errors import ChainInconsistent, ChainUnavailable, Throttled
from reconsup.chain.movements import Move
from reconsup.demo.anvil import Anvil
from tests.chain.bench import Bench, on_bench
from tests.support import hidden
from tests.support.proxy import Proxy, Spoil, change, refuse

pytestmark = pytest.mark.service

NODES: dict[str, tuple[Spoil | None, int]] = {  # and how many addresses a call bears
    "override": (None, OVERRIDE_ADDRESSES),
    "deployless": (hidden.refusing(with_override=True), DEPLOYLESS_ADDRESSES),
    "single": (hidden.refusing("eth_call"), 100),
}


def address(number: int) -> str:
    return f"0x{0xC0FFEE << 96 | number:040x}"


async def tip(at: Bench) -> str:
    return str((await at.dev.call("eth_getBlockByNumber", "latest", False))["hash"])


async def rich(at: Bench, *numbers: int) -> dict[str, int]:
    """Give some addresses something, a different amount each."""
    held = {address(number): 10**18 + number for number in numbers}
    for each, amount in held.items():
        await at.dev.call("anvil_setBalance", each, hex(amount))
    return held


@pytest.mark.parametrize("way", NODES)
def test_thousands_of_balances_come_in_few_calls(anvil: Anvil, proxy: Proxy, way: str) -> None:
    """3,000 addresses are one call where the node lets us pretend; nothing is asked twice once it is known how."""
    proxy.spoil, limit = NODES[way]

    async def story(at: Bench) -> None:
        held = await rich(at, 0, 1, 1499, limit - 1, min(limit, 2999), 2999)
        block_hash = await tip(at)
        addresses = [address(number) for number in range(max(3000, limit + 1))]
        assert await balances.how(at.chain, block_hash) == way
        await balances.nonzero(at.chain, [address(0)], block_hash)
        proxy.requests.clear()
        assert await balances.nonzero(at.chain, addresses[:3000], block_hash) == {
            each: amount for each, amount in held.items() if each in addresses[:3000]
        }
        assert len(proxy.requests) == -(-3000 // limit)
        assert await balances.nonzero(at.chain, addresses, block_hash) == held
        assert await balances.nonzero(at.chain, [], block_hash) == {}

    on_bench(anvil, story, proxy)


def test_a_call_that_is_too_much_is_made_smaller_and_that_is_remembered() -> None:
    """The node's gas is enough for less than a thousand of them."""
    with Anvil(block_seconds=0, options=["--gas-limit", "3000000"]) as poor:

        async def story(at: Bench) -> None:
            held = await rich(at, 7, 1700)
            addresses = [address(number) for number in range(1800)]
            assert await balances.nonzero(at.chain, addresses, await tip(at)) == held
            assert await balances.how(at.chain, await tip(at)) == "override"
            limit = balances._abilities[at.chain].limit
            assert 450 <= limit < 1000

        on_bench(poor, story)


def test_a_node_that_ignores_the_override_is_not_believed_to_say_that_all_is_empty(anvil: Anvil, proxy: Proxy) -> None:
    """It runs the call against the empty address it is for. Seen to fail (nothing found) without the first word."""

    def spoil(requests: Any, answers: Any) -> Any:
        return [
            {**answer, "result": "0x"} if request["method"] == "eth_call" and len(request["params"]) > 2 else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    proxy.spoil = spoil

    async def story(at: Bench) -> None:
        held = await rich(at, 3)
        assert await balances.nonzero(at.chain, [address(2), address(3)], await tip(at)) == held
        assert await balances.how(at.chain, await tip(at)) == "deployless"

    on_bench(anvil, story, proxy)


WORD = "{:064x}".format
MALFORMED = {
    "half a pair": WORD(40) + WORD(0),
    "between two addresses": WORD(40) + WORD(7) + WORD(1),
    "behind the last": WORD(40) + WORD(40) + WORD(1),
    "out of order": WORD(40) + WORD(20) + WORD(1) + WORD(0) + WORD(1),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_an_answer_that_our_code_cannot_give_is_refused(anvil: Anvil, proxy: Proxy, fault: str) -> None:
    proxy.spoil = change("eth_call", lambda _: "0x" + MALFORMED[fault])

    async def story(at: Bench) -> None:
        with pytest.raises(ChainInconsistent, match=r"local: .* what our code cannot return"):
            await balances.nonzero(at.chain, [address(1), address(2)], await tip(at))

    on_bench(anvil, story, proxy)


def test_a_block_that_the_node_does_not_know_is_an_error_and_no_empty_answer(anvil: Anvil, proxy: Proxy) -> None:
    """And it says nothing about what the node can do."""

    async def story(at: Bench) -> None:
        unknown = "0x" + "77" * 32
        for ask in (
            balances.nonzero(at.chain, [address(1)], unknown),
            balances.nonces(at.chain, [address(1)], unknown),
        ):
            with pytest.raises(ChainUnavailable, match="local: "):
                await ask
        assert await balances.states(at.chain, address(1), [unknown, await tip(at)]) == [None, State(0, 0)]
        assert await balances.how(at.chain, await tip(at)) == "override"

    on_bench(anvil, story, proxy)


def test_a_throttling_node_is_left_alone(anvil: Anvil, proxy: Proxy) -> None:
    """It is not asked in another way at once."""

    async def story(at: Bench) -> None:
        block_hash = await tip(at)
        for method, ask in (
            ("eth_call", lambda: balances.nonzero(at.chain, [address(1)], block_hash)),
            ("eth_getBalance", lambda: balances.states(at.chain, address(1), [block_hash])),
            ("debug_traceBlockByHash", lambda: movements.moves(at.chain, 0, block_hash)),
        ):
            proxy.requests.clear()
            proxy.spoil = refuse(method, -32005, "too many requests")
            with pytest.raises(Throttled):
                await ask()
            assert len(proxy.requests) == 1

    on_bench(anvil, story, proxy)


# what moved


@pytest.mark.parametrize("hidden_method", ["trace_block", "debug_traceBlockByHash"])
def test_both_kinds_of_traces_say_the_same(anvil: Anvil, proxy: Proxy, hidden_method: str) -> None:
    """Two calls below another one, a self-destruct; not what failed, nor the transaction's own value."""
    proxy.spoil = hidden.refusing(hidden_method)

    async def story(at: Bench) -> None:
        await hidden.deploy(at.dev)
        pair = [address(1), address(2)]
        wallet = await hidden.through(at.dev, hidden.WALLET, pair, 10)
        await hidden.through(at.dev, hidden.FAILING, pair, 10)
        ended = await hidden.through(at.dev, hidden.DESTRUCTOR, pair, 7)
        await at.dev.send(address(3), 5)
        await at.dev.mine()
        found = await movements.moves(at.chain, await at.dev.height(), await tip(at))
        assert found is not None
        assert sorted(found, key=lambda move: (move.tx_hash != wallet, move.path)) == [
            Move(wallet, "0", hidden.WALLET, hidden.SPLITTER, 10),
            Move(wallet, "0.0", hidden.SPLITTER, address(1), 5),
            Move(wallet, "0.1", hidden.SPLITTER, address(2), 5),
            Move(ended, "0", hidden.DESTRUCTOR, address(1), 7),
        ]
        assert await movements.traces(at.chain, await at.dev.height(), await tip(at))

    on_bench(anvil, story, proxy)


def test_a_node_without_traces_or_with_others_says_nothing(anvil: Anvil, proxy: Proxy) -> None:
    def other(result: Any) -> Any:
        return [{"txHash": "?", "result": each} for each in result]

    async def story(at: Bench) -> None:
        await at.dev.send(address(3), 5)
        await at.dev.mine()
        for spoil in (hidden.refusing(*hidden.TRACING), _both(other)):
            proxy.spoil = spoil
            assert await movements.moves(at.chain, await at.dev.height(), await tip(at)) is None

    on_bench(anvil, story, proxy)


def _both(edit: Callable[[Any], Any]) -> Spoil:
    first, second = (change(method, edit) for method in hidden.TRACING)
    return lambda requests, answers: second(requests, first(requests, answers))


def test_what_an_account_spent_is_what_its_balance_fell_by(anvil: Anvil) -> None:
    """Two transfers, one that fails, and one that makes a contract."""

    async def story(at: Bench) -> None:
        await hidden.deploy(at.dev)
        sender = at.dev.accounts[4]
        before = int(await at.dev.call("eth_getBalance", sender, "latest"), 16)
        await at.dev.send(address(1), 10**18, sender=sender)
        await at.dev.send(address(2), 3, sender=sender)
        await at.dev.send(hidden.FAILING, 10**18, "0x" + address(1)[2:], sender=sender)
        await at.dev.send(None, 10**17, sender=sender)
        await at.dev.send(address(1), 1)
        await at.dev.mine()
        after = int(await at.dev.call("eth_getBalance", sender, "latest"), 16)
        assert await movements.spent(at.chain, sender.lower(), await tip(at)) == before - after
        assert await balances.nonces(at.chain, [sender, address(1)], await tip(at)) == [4, 0]

    on_bench(anvil, story)
