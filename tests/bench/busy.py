"""A chain as busy as mainnet: blocks of 200 transactions and 500 logs, on a real anvil. And near-empty ones.

Each transaction calls one of two contracts of a few bytes, which log two or three ERC-20 Transfers to an address that
the call names. What is measured is the reading of such blocks, so nobody cares who may pay whom.
"""

import asyncio
from typing import Any

import aiohttp
import orjson

from reconsup.chain.decode import TRANSFER_TOPIC
from reconsup.demo.devchain import DevChain

TRANSACTIONS = 200
LOGS = 500
SENDERS = 10
_GAS = hex(60_000)


def _emitter(logs: int) -> str:
    """The data that creates a contract which logs so many Transfers from its caller to the call's first word."""
    log = "600035" + "33" + "7f" + TRANSFER_TOPIC[2:] + "6020" + "6000" + "a3"
    runtime = "6001600052" + log * logs + "00"
    size = len(runtime) // 2
    return f"0x61{size:04x}80600c6000396000f3{runtime}"


async def _contract(chain: DevChain, logs: int) -> str:
    tx_hash = await chain.send(None, data=_emitter(logs))
    await chain.mine()
    receipt = await chain.receipt(tx_hash)
    assert receipt["status"] == "0x1", receipt
    return str(receipt["contractAddress"])


async def mine_busy(url: str, blocks: int) -> None:
    """Mine so many busy blocks."""
    async with DevChain(url) as chain, aiohttp.ClientSession() as session:
        await chain.set_automine(False)
        await chain.call("evm_setBlockGasLimit", hex(100_000_000))
        contracts = [await _contract(chain, 2), await _contract(chain, 3)]

        async def send(first: int) -> None:
            calls = []
            for number in range(first, TRANSACTIONS, SENDERS):
                to = f"0x{0xCCCC << 64 | number:064x}"
                tx = {"from": chain.accounts[first], "to": contracts[number // SENDERS % 2], "data": to, "gas": _GAS}
                calls.append({"jsonrpc": "2.0", "id": number, "method": "eth_sendTransaction", "params": [tx]})
            async with session.post(url, json=calls) as response:
                answers = orjson.loads(await response.read())
            assert all("result" in answer for answer in answers), answers

        for _ in range(blocks):
            await asyncio.gather(*(send(sender) for sender in range(SENDERS)))
            await chain.mine()
        block: Any = await chain.call("eth_getBlockReceipts", "latest")
        assert len(block) == TRANSACTIONS
        assert sum(len(receipt["logs"]) for receipt in block) == LOGS


async def mine_quiet(url: str, blocks: int) -> None:
    """Mine so many blocks, a transfer in every hundredth."""
    async with DevChain(url) as chain:
        await chain.set_automine(False)
        for _ in range(blocks // 100):
            await chain.send(f"0x{0xEEEE << 64:040x}", 1)
            await chain.mine(100)
