"""What happens on the local chain: customers pay, and once the chain takes a payment back.

Amounts are minor units. Errors are AnvilError, a sentence each.
"""

import time

from reconsup.demo import token
from reconsup.demo.anvil import Anvil, AnvilError
from reconsup.demo.cast import Asset, Order

BLOCK_SECONDS = 1
SUPPLY_MINOR = 1_000_000 * 10**token.DECIMALS
MINED_SECONDS = 15.0
_GAS = hex(1_000_000)


class Customers:
    """Everybody who pays, with anvil's own accounts; the first one owns all the tokens."""

    def __init__(self, anvil: Anvil) -> None:
        self._anvil = anvil
        tx_hash = self._send(0, None, data=token.deployment(SUPPLY_MINOR))
        self._mine(1)
        self.token_contract = str(self._receipt(tx_hash)["contractAddress"]).lower()

    def height(self) -> int:
        """The height of the latest block."""
        return int(self._anvil.rpc("eth_blockNumber"), 16)

    def pay(self, order: Order, amount_minor: int) -> str:
        """Send a payment; it is mined with the next block. Returns the transaction's hash."""
        if order.asset is Asset.USDT:
            return self._send(0, self.token_contract, data=token.transfer(order.address, amount_minor))
        return self._send(1 + order.number % 9, order.address, amount_wei=amount_minor)

    def take_back(self, tx_hash: str) -> int:
        """Replace the blocks from that of a mined transaction on by others without it; returns how many."""
        self._anvil.rpc("evm_setIntervalMining", 0)
        try:
            depth = self.height() - self.height_of(tx_hash) + 1
            self._anvil.rpc("anvil_reorg", depth, [])
        finally:
            self._anvil.rpc("evm_setIntervalMining", BLOCK_SECONDS)
        return depth

    def pay_in_two_blocks(self, order: Order, amount_minor: int) -> None:
        """Pay, with the payment's block and another one on it mined at once."""
        self._anvil.rpc("evm_setIntervalMining", 0)
        try:
            self.pay(order, amount_minor)
            self._mine(2)
        finally:
            self._anvil.rpc("evm_setIntervalMining", BLOCK_SECONDS)

    def height_of(self, tx_hash: str) -> int:
        """The height of a transaction's block; waits until it is mined."""
        return int(self._receipt(tx_hash)["blockNumber"], 16)

    def _send(self, account: int, to: str | None, *, amount_wei: int = 0, data: str = "0x") -> str:
        sender = self._anvil.accounts[account]
        transaction = {"from": sender, "value": hex(amount_wei), "data": data, "gas": _GAS}
        return str(self._anvil.rpc("eth_sendTransaction", transaction | ({"to": to} if to else {})))

    def _mine(self, blocks: int) -> None:
        self._anvil.rpc("anvil_mine", hex(blocks), hex(BLOCK_SECONDS))

    def _receipt(self, tx_hash: str) -> dict[str, str]:
        deadline = time.monotonic() + MINED_SECONDS
        while time.monotonic() < deadline:
            receipt: dict[str, str] | None = self._anvil.rpc("eth_getTransactionReceipt", tx_hash)
            if receipt is not None:
                return receipt
            time.sleep(0.02)
        raise AnvilError(f"the local chain did not mine within {MINED_SECONDS:.0f} s: is this machine overloaded?")
