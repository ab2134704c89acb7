"""What people do on the local chain: pay, deploy a token, mine, and take blocks back. For the demo and the tests.

Speaks JSON-RPC to anvil and uses its unlocked accounts: there are no keys. Amounts are minor units, times UNIX seconds.
"""

from collections.abc import Sequence
from typing import Any, Self

from reconsup.chain.rpc import Endpoint
from reconsup.demo import token

CALL_SECONDS = 30.0
GAS = hex(1_000_000)


class DevChain:
    """An async client of one anvil. Where nobody is named, the first account pays. Errors are chain.rpc's.

    A transaction is in the pool when `send` returns; also with automine its block may come a moment later.
    """

    def __init__(self, url: str) -> None:
        self._endpoint = Endpoint("local", url, CALL_SECONDS)
        self.accounts: list[str] = []

    async def __aenter__(self) -> Self:
        self.accounts = await self.call("eth_accounts")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._endpoint.close()

    async def call(self, method: str, *params: Any) -> Any:
        """Make any call."""
        return await self._endpoint.call(method, *params)

    async def send(self, to: str | None, amount_wei: int = 0, data: str = "0x", sender: str | None = None) -> str:
        """Send a transaction with a fixed gas limit, so that one that fails is mined too; returns its hash."""
        tx = {"from": sender or self.accounts[0], "value": hex(amount_wei), "data": data, "gas": GAS}
        return str(await self.call("eth_sendTransaction", tx | ({"to": to} if to else {})))

    async def send_token(self, contract: str, to: str, amount_minor: int, sender: str | None = None) -> str:
        """Send tokens; returns the transaction's hash."""
        return await self.send(contract, data=token.transfer(to, amount_minor), sender=sender)

    async def deploy_token(self, supply_minor: int, sender: str | None = None) -> str:
        """Create the token, its supply with the sender, and mine; returns the contract's address."""
        tx_hash = await self.send(None, data=token.deployment(supply_minor), sender=sender)
        if await self.receipt(tx_hash) is None:
            await self.mine()
        return str((await self.receipt(tx_hash))["contractAddress"]).lower()

    async def receipt(self, tx_hash: str) -> Any:
        """Return a transaction's receipt, None while it is not mined."""
        return await self.call("eth_getTransactionReceipt", tx_hash)

    async def height(self) -> int:
        """Return the height of the latest block."""
        return int(await self.call("eth_blockNumber"), 16)

    async def block_time(self) -> int:
        """Return the time of the latest block, in UNIX seconds."""
        return int((await self.call("eth_getBlockByNumber", "latest", False))["timestamp"], 16)

    async def mine(self, blocks: int = 1, seconds_apart: int = 1) -> None:
        """Mine blocks; the first takes what is waiting."""
        await self.call("anvil_mine", hex(blocks), hex(seconds_apart))

    async def set_next_block_time(self, unix_seconds: int) -> None:
        """Fix the next block's time; the chain refuses one that is not later than its latest."""
        await self.call("evm_setNextBlockTimestamp", unix_seconds)

    async def set_automine(self, is_on: bool) -> None:
        """Mine a block for each transaction, or not."""
        await self.call("evm_setAutomine", is_on)

    async def set_block_seconds(self, seconds: int) -> None:
        """Mine a block every so often; 0 stops that."""
        await self.call("evm_setIntervalMining", seconds)

    async def raw(self, tx_hash: str) -> str:
        """Return a mined transaction as its signed bytes: what `reorg` can mine again."""
        return str(await self.call("eth_getRawTransactionByHash", tx_hash))

    async def reorg(self, depth: int, again: Sequence[tuple[str | dict[str, str], int]] = ()) -> None:
        """Replace the newest `depth` blocks by as many others.

        `again` are transactions for the new blocks, as (signed bytes or transaction object, block offset from 0); all
        others that stood in the old blocks are gone for good.
        """
        await self.call("anvil_reorg", depth, [list(each) for each in again])

    async def snapshot(self) -> str:
        """Remember the chain as it is."""
        return str(await self.call("evm_snapshot"))

    async def revert(self, snapshot: str) -> None:
        """Go back to a snapshot, once."""
        await self.call("evm_revert", snapshot)
