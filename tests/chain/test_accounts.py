"""Proofs of many accounts: how they are asked for, and what an endpoint that gives none is taken for."""

import asyncio
from typing import Any

import pytest

from reconsup.chain import accounts
from reconsup.chain.errors import ChainInconsistent, ChainUnavailable, EndpointsDisagree, QuorumMissing, Throttled
from reconsup.chain.evm import EvmChain
from reconsup.chain.state import State
from reconsup.demo.anvil import Anvil
from tests.chain.bench import Bench, on_bench
from tests.chain.nodes_at import Group, nodes_at
from tests.chain.test_balances import address, rich, tip
from tests.support import hidden
from tests.support.proxy import Proxy, Reply, change, refuse
from tests.support.twin_nodes import away

pytestmark = pytest.mark.service


async def wanted(at: Bench, count: int) -> tuple[list[tuple[str, str]], list[State | None]]:
    """So many accounts at the latest block, and what they are there."""
    held = await rich(at, 0, 1, count - 1)
    await at.dev.mine()
    block_hash = await tip(at)
    addresses = [address(number) for number in range(count)]
    return [(each, block_hash) for each in addresses], [State(held.get(each, 0), 0) for each in addresses]


def test_a_state_costs_one_call_and_a_block_one_more(anvil: Anvil, proxy: Proxy) -> None:
    """What is not there is proven as well."""

    async def story(at: Bench) -> None:
        pairs, expected = await wanted(at, 120)
        proxy.requests.clear()
        assert await accounts.proven(at.chain, pairs) == expected
        assert [(calls[0], len(calls)) for calls in proxy.requests] == [
            ("eth_getBlockByHash", 1),
            ("eth_getProof", 50),
            ("eth_getProof", 50),
            ("eth_getProof", 20),
        ]
        assert await accounts.proven(at.chain, []) == []
        assert len(proxy.requests) == 4

    on_bench(anvil, story, proxy)


def test_a_batch_that_is_too_much_is_made_smaller_and_that_is_remembered(anvil: Anvil, proxy: Proxy) -> None:
    def spoil(requests: Any, answers: Any) -> Any:
        return Reply(status=413) if len(requests) > 20 else answers

    proxy.spoil = spoil

    async def story(at: Bench) -> None:
        pairs, expected = await wanted(at, 40)
        for failures in (2, 0):
            proxy.requests.clear()
            assert await accounts.proven(at.chain, pairs) == expected
            assert sum(len(calls) > 20 for calls in proxy.requests) == (1 if failures else 0)

    on_bench(anvil, story, proxy)


def test_a_node_without_the_method_is_not_asked_again_for_an_hour(
    anvil: Anvil, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.spoil = hidden.refusing("eth_getProof")

    async def story(at: Bench) -> None:
        pairs, expected = await wanted(at, 60)
        assert await accounts.proven(at.chain, pairs) == [None] * 60
        proxy.spoil = None
        proxy.requests.clear()
        assert await accounts.proven(at.chain, pairs) == [None] * 60
        assert proxy.requests == []
        monkeypatch.setattr(accounts, "CANNOT_SECONDS", 0.0)
        accounts._abilities.clear()
        proxy.spoil = hidden.refusing("eth_getProof")
        assert await accounts.proven(at.chain, pairs) == [None] * 60
        proxy.spoil = None
        assert await accounts.proven(at.chain, pairs) == expected

    on_bench(anvil, story, proxy)


@pytest.mark.parametrize(
    "words", ["distance to target block exceeds maximum proof window", "missing trie node 5c5c (path )"]
)
def test_a_state_that_is_too_old_is_not_proven_and_later_ones_are_asked_for(
    anvil: Anvil, proxy: Proxy, words: str
) -> None:
    """In the words of reth and of geth."""

    async def story(at: Bench) -> None:
        pairs, expected = await wanted(at, 60)
        proxy.spoil = refuse("eth_getProof", -32602, words)
        proxy.requests.clear()
        assert await accounts.proven(at.chain, pairs) == [None] * 60
        assert len(proxy.requests) == 2
        proxy.spoil = None
        assert await accounts.proven(at.chain, pairs) == expected

    on_bench(anvil, story, proxy)


def test_where_blocks_are_not_proven_balances_are_not_either(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        pairs, _ = await wanted(at, 3)
        proxy.requests.clear()
        assert await accounts.proven(EvmChain(at.chain.endpoint, proves=False), pairs) == [None] * 3
        assert proxy.requests == []

    on_bench(anvil, story, proxy)


def test_a_node_that_throttles_or_does_not_know_the_block_is_no_liar(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        pairs, _ = await wanted(at, 3)
        with pytest.raises(ChainUnavailable, match="does not have block"):
            await accounts.proven(at.chain, [(address(0), "0x" + "77" * 32)])
        proxy.spoil = refuse("eth_getProof", -32005, "too many requests")
        with pytest.raises(Throttled):
            await accounts.proven(at.chain, pairs)

    on_bench(anvil, story, proxy)


def test_a_node_that_shows_another_state_root_is_one(anvil: Anvil, proxy: Proxy) -> None:
    """A root that fits its lie is not the header's. Seen to fail when the header is not hashed."""

    async def story(at: Bench) -> None:
        pairs, _ = await wanted(at, 3)
        await at.dev.call("anvil_setBalance", pairs[2][0], hex(7))  # in the latest state, and not in its block's root
        lie = anvil.rpc("eth_getProof", pairs[2][0], [], "latest")["accountProof"][0]
        root = "0x" + accounts.state.proof.keccak(bytes.fromhex(lie[2:])).hex()
        proxy.spoil = change("eth_getBlockByHash", lambda block: block | {"stateRoot": root})
        with pytest.raises(ChainInconsistent, match="does not hash to its own hash"):
            await accounts.proven(at.chain, pairs)

    on_bench(anvil, story, proxy)


def test_the_quorum_is_of_balances_too_where_they_are_not_proven(anvil: Anvil, proxy: Proxy) -> None:
    """Told as of blocks. Seen to fail (told by one) without the count."""

    async def run() -> None:
        urls = (anvil.url, proxy.url)
        async with nodes_at(*urls) as any_, nodes_at(*urls, quorum=2) as two:

            async def ask(group: Group, told: int) -> bool:
                async def again(_: EvmChain) -> int:
                    await group.chains[1].head()
                    return 1

                return await group.nodes.agree(group.chains[0], told, again, "at block 1")

            assert (await ask(any_, 1), await ask(two, 1)) == (True, True)
            for group in (any_, two):
                with pytest.raises(EndpointsDisagree, match="tell different balances at block 1"):
                    await ask(group, 2)
            assert (await ask(any_, 1), await ask(two, 1)) == (True, True)
            proxy.spoil = away
            assert await ask(any_, 1) is False
            with pytest.raises(QuorumMissing):
                await ask(two, 1)

    asyncio.run(run())
