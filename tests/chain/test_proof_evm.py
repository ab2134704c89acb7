"""chain.evm proves what a real anvil mines: of every fork and type, after a reorg, and in blocks of any size."""

import asyncio
import time
from typing import Any

import pytest

from reconsup.chain.evm import EvmChain
from reconsup.demo.anvil import Anvil
from reconsup.demo.devchain import DevChain
from tests.chain.bench import Bench, on_bench, pay
from tests.chain.conftest import endpoint
from tests.support.proxy import Proxy, change

pytestmark = pytest.mark.service

RECEIPTS = "eth_getBlockReceipts"
FORKS = {
    "berlin": ["0x0", "0x1"],
    "london": ["0x0", "0x1", "0x2"],
    "paris": ["0x0", "0x1", "0x2"],
    "shanghai": ["0x0", "0x1", "0x2"],
    "cancun": ["0x0", "0x1", "0x2"],
    "prague": ["0x0", "0x1", "0x2", "0x4"],
    "osaka": ["0x0", "0x1", "0x2", "0x4"],
}
PRICE = hex(2 * 10**9)


async def send_each(dev: DevChain, types: list[str]) -> None:
    """A payment by a transaction of each type; not yet mined."""
    payer, payee, other = dev.accounts[:3]
    more: dict[str, Any] = {
        "0x0": {"gasPrice": PRICE},
        "0x1": {"gasPrice": PRICE, "accessList": [{"address": other, "storageKeys": ["0x" + "01" * 32]}]},
        "0x2": {},
        "0x4": {
            "authorizationList": [
                {"chainId": "0x7a69", "address": other, "nonce": "0x0", "yParity": "0x0", "r": "0x1", "s": "0x2"}
            ]
        },
    }
    for kind in types:
        tx = {"from": payer, "to": payee, "value": "0x5", "gas": hex(10**6), "type": kind}
        await dev.call("eth_sendTransaction", tx | more[kind])


@pytest.mark.parametrize(("fork", "types"), FORKS.items(), ids=FORKS.keys())
def test_blocks_of_every_fork_are_proven_the_first_too(fork: str, types: list[str]) -> None:
    async def story(url: str) -> None:
        async with DevChain(url) as dev, endpoint(url) as node:
            await send_each(dev, types)
            await dev.mine(2)
            chain = EvmChain(node)

            blocks = await chain.blocks(0, 2)

            raw = await dev.call("eth_getBlockByNumber", "0x1", True)
            assert [tx["type"] for tx in raw["transactions"]] == types
            assert [len(block.credits) for block in blocks] == [0, len(types), 0]
            assert [block.proven for block in blocks] == [True, True, True]
            assert chain.doubt is None

    with Anvil(block_seconds=0, options=["--hardfork", fork]) as running:
        asyncio.run(story(running.url))


def test_blocks_are_proven_after_a_reorg(anvil: Anvil) -> None:
    async def story(at: Bench) -> None:
        (paid,) = await pay(at.dev, 5)
        await at.dev.mine(3)
        raw = await at.dev.raw(paid)
        before = await at.chain.blocks(1, 3)
        await at.dev.reorg(3, [(raw, 1)])

        after = await at.chain.blocks(1, 3)

        assert not {block.block_hash for block in before} & {block.block_hash for block in after}
        assert [len(block.credits) for block in after] == [0, 1, 0]
        assert [block.proven for block in (*before, *after)] == [True] * 6

    on_bench(anvil, story)


def test_a_block_of_any_size_is_proven_and_without_blooms_too(anvil: Anvil, proxy: Proxy) -> None:
    """Their positions are one byte to 127 and two from 128 on, three from 256 on."""

    async def story(at: Bench) -> None:
        dollars = await at.dev.deploy_token(10**12)
        for count in (127, 129, 258):
            for number in range(count):
                await at.dev.send_token(dollars, at.dev.accounts[number % 9 + 1], number + 1)
            await at.dev.mine()
        blocks = await at.chain.blocks(2, 4)
        proxy.spoil = change(
            RECEIPTS, lambda all_: [{key: each[key] for key in each if key != "logsBloom"} for each in all_]
        )

        assert await at.chain.blocks(2, 4) == blocks
        assert [(len(block.credits), block.proven) for block in blocks] == [(127, True), (129, True), (258, True)]

    on_bench(anvil, story, proxy)


def test_others_on_the_loop_come_between_the_blocks_of_a_batch(anvil: Anvil, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker proves that it lives between two of them. Seen to fail (one gap as long as all blocks together)
    without the pause after each block."""
    proof_seconds = 0.02

    def slow(*_: Any) -> None:
        time.sleep(proof_seconds)

    monkeypatch.setattr("reconsup.chain.proof.doubt", slow)

    async def story(at: Bench) -> None:
        await at.dev.mine(20)
        gaps: list[float] = []

        async def beat() -> None:
            last = time.monotonic()
            while True:
                await asyncio.sleep(0)
                now = time.monotonic()
                gaps.append(now - last)
                last = now

        beating = asyncio.create_task(beat())
        await at.chain.blocks(1, 20)
        beating.cancel()
        assert len([gap for gap in gaps if gap >= proof_seconds]) >= 20

    on_bench(anvil, story)
