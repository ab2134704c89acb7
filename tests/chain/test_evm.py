"""chain.evm against a real anvil: who it is, where its head is, and real reorgs. Its blocks: test_blocks."""

import asyncio
from typing import Any

import pytest

from reconsup.chain.block import Block, Fork, Header, NoFork
from reconsup.chain.errors import ChainInconsistent, ChainUnavailable, Throttled
from reconsup.chain.evm import EvmChain, Head
from reconsup.demo.anvil import Anvil
from tests.chain.bench import Bench, on_bench, pay
from tests.chain.conftest import Meter, endpoint
from tests.support.proxy import Proxy, Spoil, change

pytestmark = pytest.mark.service

BODY = "eth_getBlockByNumber"


# -- who and where
def test_identity(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        identity = await at.chain.identity()

        assert identity.chain_id == anvil.chain_id
        assert identity.genesis_hash == (await at.dev.call(BODY, "0x0", False))["hash"]
        assert len(proxy.requests) == 1

    on_bench(anvil, story, proxy)


def test_a_node_without_its_genesis_cannot_say_who_it_is(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        proxy.spoil = change(BODY, lambda _: None)
        with pytest.raises(ChainUnavailable, match="does not have the genesis block"):
            await at.chain.identity()
        proxy.spoil = change("eth_chainId", lambda _: None)
        with pytest.raises(ChainInconsistent, match="the chain id is not a quantity"):
            await at.chain.identity()

    on_bench(anvil, story, proxy)


def test_head_reads_all_three_tags_in_one_request(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        await at.dev.mine(70)
        head = await at.chain.head()
        assert head == Head(
            latest=await _header(at, 70), safe=await _header(at, 70 - 32), finalized=await _header(at, 70 - 64)
        )
        assert proxy.requests[0] == [BODY] * 3

    on_bench(anvil, story, proxy)


async def _header(at: Bench, height: int) -> Header:
    header = await at.chain.header_at(height)
    assert header is not None
    return header


def spoil_tag(tag: str, answer: dict[str, Any]) -> Spoil:
    """Answer one tag of the three otherwise."""
    return lambda requests, answers: [
        {"id": request["id"], **answer} if request["params"][0] == tag else good
        for request, good in zip(requests, answers, strict=True)
    ]


def test_a_tag_that_the_node_does_not_know_is_none(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        good = await at.chain.head()
        unknown = {"error": {"code": -32602, "message": "unknown block tag"}}

        proxy.spoil = spoil_tag("safe", unknown)
        assert await at.chain.head() == Head(good.latest, None, good.finalized)
        proxy.spoil = spoil_tag("finalized", {"result": None})
        assert await at.chain.head() == Head(good.latest, good.safe, None)

        for answer in (unknown, {"result": None}):
            proxy.spoil = spoil_tag("latest", answer)
            with pytest.raises(ChainUnavailable):
                await at.chain.head()
        proxy.spoil = spoil_tag("safe", {"error": {"code": -32005, "message": "slow down"}})
        with pytest.raises(Throttled):
            await at.chain.head()

    on_bench(anvil, story, proxy)


def test_the_highest_of_the_three_is_the_head(anvil: Anvil, proxy: Proxy) -> None:
    """With instant finality a block may come between the answers: finalized is then above latest."""

    async def story(at: Bench) -> None:
        await at.dev.mine(2)
        raw = {height: await at.dev.call(BODY, hex(height), False) for height in (1, 2)}

        proxy.spoil = _tags(latest=raw[1], safe=raw[1], finalized=raw[2])
        head = await at.chain.head()
        assert (head.latest.height, head.finalized and head.finalized.height) == (2, 2)

        proxy.spoil = _tags(latest=raw[1], safe={**raw[1], "hash": "0x" + "12" * 32}, finalized=None)
        with pytest.raises(ChainInconsistent, match="two blocks for one height"):
            await at.chain.head()

    on_bench(anvil, story, proxy)


def _tags(**results: Any) -> Spoil:
    return lambda requests, _: [{"id": request["id"], "result": results[request["params"][0]]} for request in requests]


def test_headers_by_hash_and_by_height(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        await at.dev.mine(2)
        header = await _header(at, 1)
        assert await at.chain.header(header.block_hash) == header
        assert await at.chain.header_at(3) is None
        assert await at.chain.header("0x" + "12" * 32) is None

        other = await _header(at, 2)
        proxy.spoil = change("eth_getBlockByHash", lambda block: {**block, "hash": other.block_hash})
        with pytest.raises(ChainInconsistent, match="was asked for"):
            await at.chain.header(header.block_hash)
        proxy.spoil = change(BODY, lambda block: {**block, "number": "0x2"})
        with pytest.raises(ChainInconsistent, match="block 1 was asked for, block 2 came"):
            await at.chain.header_at(1)

    on_bench(anvil, story, proxy)


# -- reorgs
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_real_reorg_is_walked_back_to_its_fork(anvil: Anvil, depth: int) -> None:
    async def story(at: Bench) -> None:
        for _ in range(6):
            await pay(at.dev, 1)
            await at.dev.mine()
        before = await at.chain.blocks(0, 6)
        stored = {block.height: block.block_hash for block in before}

        await at.dev.reorg(depth)
        await at.dev.mine(2)  # the new branch is longer

        assert await at.chain.header(stored[6]) is None
        fork = await at.chain.find_fork(stored, (await at.chain.head()).latest)
        after = {block.height: block.block_hash for block in await at.chain.blocks(0, 8)}
        assert fork == Fork(
            height=6 - depth,
            block_hash=stored[6 - depth],
            time=before[6 - depth].time,
            orphaned=tuple((height, stored[height], after[height]) for height in range(7 - depth, 7)),
        )

    on_bench(anvil, story)


def test_without_a_reorg_the_fork_is_our_tip(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        await at.dev.mine(4)
        tip = await _header(at, 2)
        proxy.requests.clear()

        fork = await at.chain.find_fork({1: tip.parent_hash, 2: tip.block_hash}, await _header(at, 4))

        assert fork == Fork(2, tip.block_hash, tip.time, ())
        assert len(proxy.requests) == 1 + 1

    on_bench(anvil, story, proxy)


def test_a_lower_head_and_a_deeper_fork_are_told_apart(anvil: Anvil) -> None:
    async def story(at: Bench) -> None:
        await at.dev.mine(3)
        other = {height: f"0x{height:064x}" for height in range(2, 6)}

        assert await at.chain.find_fork(other, await _header(at, 3)) is NoFork.HEAD_BELOW_TIP
        await at.dev.mine(2)
        assert await at.chain.find_fork(other, await _header(at, 5)) is NoFork.BELOW_TAIL

    on_bench(anvil, story)


def test_a_node_that_does_not_know_its_own_parents_proves_nothing(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        await at.dev.mine(3)
        head = await _header(at, 3)
        proxy.spoil = change(BODY, lambda _: None)
        with pytest.raises(ChainUnavailable, match="does not have block 2"):
            await at.chain.find_fork({3: "0x12", 2: "0x13"}, head)

    on_bench(anvil, story, proxy)


def test_the_same_payment_mined_again_keeps_its_transaction_hash(anvil: Anvil) -> None:
    """A token's evidence_ref moves with its log index; native value's does not."""

    async def story(at: Bench) -> None:
        dollars = await at.dev.deploy_token(10**9)
        (native,) = await pay(at.dev, 5)
        first = await at.dev.send_token(dollars, at.dev.accounts[1], 1)
        second = await at.dev.send_token(dollars, at.dev.accounts[1], 2, sender=at.dev.accounts[0])
        await at.dev.mine()
        raws = [(await at.dev.raw(each), 0) for each in (native, first, second)]
        (before,) = await at.chain.blocks(2, 2)

        await at.dev.reorg(1, raws)
        (after,) = await at.chain.blocks(2, 2)

        assert after.block_hash != before.block_hash
        assert after.parent_hash == before.parent_hash
        assert _sums(after) == _sums(before) == {native: 5, first: 1, second: 2}

    on_bench(anvil, story)


def _sums(block: Block) -> dict[str, int]:
    return {credit.tx_hash: credit.amount_minor for credit in block.credits}


# -- the endpoint is away
def test_every_question_to_a_dead_node_is_unavailable() -> None:
    async def run() -> None:
        meter = Meter()
        async with endpoint("http://127.0.0.1:1", meter) as node:
            chain = EvmChain(node)
            for question in (chain.identity, chain.head):
                with pytest.raises(ChainUnavailable, match="cannot be reached"):
                    await question()
            for asked in (chain.header("0x" + "12" * 32), chain.header_at(1), chain.blocks(1, 2)):
                with pytest.raises(ChainUnavailable, match="cannot be reached"):
                    await asked
        assert meter.outcomes == {"error": 2 + 3 + 1 + 1 + 4}

    asyncio.run(run())
