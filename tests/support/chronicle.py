"""What really happened on the chain, and what must therefore become of each request: the oracle.

Read from the node itself with plain JSON (blocks with their transactions, logs by block hash, single receipts), beside
reconsup's decoder. It knows every block that ever stood on the chain after a step, so it can say what was taken back,
and what could have been believed at some time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from reconsup.payments.decision import Policy
from reconsup.payments.settlement import is_reached

TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
SPLITTER = "0x" + "a1" * 20  # as in tests.support.hidden
SKEW = timedelta(minutes=15)
TAIL_BLOCKS_MIN = 64  # the shortest tail that a tale has

Call = tuple[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Paid:
    """Money that a block brought; `ref` as the settlements name it. Hidden money leaves no trace in block or log."""

    ref: str
    tx: str
    address: str
    contract: str
    amount: int
    is_hidden: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A block that stood on the chain."""

    height: int
    hash: str
    time: datetime
    paid: tuple[Paid, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request as the payment service wrote it. `contract` is "" for the chain's own coin."""

    id: str
    address: str
    contract: str
    amount: int
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Sums:
    """Money of a request: certainly in time, and at most."""

    sure: int
    most: int


class Chronicle:
    """The chain as it went, step by step. `chains`: the canonical blocks after each step, lowest first."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self.blocks: dict[str, Seen] = {}
        self.raw: dict[str, tuple[dict[str, Any], list[Any]]] = {}  # by hash: each block, and its receipts
        self.chains: list[tuple[Seen, ...]] = []
        self.times: dict[str, set[datetime]] = {}  # by transaction: of all blocks in which it ever stood

    @property
    def canonical(self) -> tuple[Seen, ...]:
        """The chain as it is; a block's place is its height."""
        return self.chains[-1]

    async def follow(self, first: int = 0) -> None:
        """Read the chain anew from this height up: below it nothing has changed."""
        head = int(await self._node.call("eth_blockNumber"), 16)
        raw = await self._batch([("eth_getBlockByNumber", [hex(height), True]) for height in range(first, head + 1)])
        logs = await self._batch([("eth_getLogs", [{"blockHash": block["hash"]}]) for block in raw])
        txs = [tx for block in raw for tx in block["transactions"] if int(tx["value"], 16)]
        receipts = await self._batch([("eth_getTransactionReceipt", [tx["hash"]]) for tx in txs])
        good = {tx["hash"] for tx, receipt in zip(txs, receipts, strict=True) if receipt["status"] == "0x1"}
        read = [_seen(block, of_block, good) for block, of_block in zip(raw, logs, strict=True)]
        read = [await self._as_it_was(block) if any(paid.is_hidden for paid in block.paid) else block for block in read]
        all_receipts = await self._batch([("eth_getBlockReceipts", [block["hash"]]) for block in raw])
        self.raw |= {block["hash"]: (block, of) for block, of in zip(raw, all_receipts, strict=True)}
        below = self.canonical[:first] if self.chains else ()
        assert len(below) == first
        self.chains.append(below + tuple(read))
        for block in read:
            self.blocks[block.hash] = block
            for paid in block.paid:
                self.times.setdefault(paid.tx, set()).add(block.time)

    async def _as_it_was(self, block: Seen) -> Seen:
        """Without hidden money that did not arrive: anvil was seen to mine a call again without what it had done."""
        addresses = sorted({paid.address for paid in block.paid if paid.is_hidden})
        heights = [hex(block.height), hex(block.height - 1)]
        found = await self._batch([("eth_getBalance", [each, height]) for each in addresses for height in heights])
        grown = {
            each: int(after, 16) - int(before, 16)
            for each, after, before in zip(addresses, found[::2], found[1::2], strict=True)
        }
        told = {
            each: sum(paid.amount for paid in block.paid if (paid.address, paid.contract) == (each, ""))
            for each in grown
        }
        return replace(
            block, paid=tuple(p for p in block.paid if not p.is_hidden or grown[p.address] == told[p.address])
        )

    async def _batch(self, calls: Sequence[Call]) -> list[Any]:
        answers = await self._node._endpoint.batch(calls) if calls else []
        assert all(answer is not None for answer in answers)
        return list(answers)

    # what is owed to whom

    def credits_of(self, wanted: Wanted, chain: Iterable[Seen] | None = None) -> list[tuple[Seen, Paid]]:
        """What a chain (the canonical one) holds for a request, whenever it came."""
        return [
            (block, paid)
            for block in (self.canonical if chain is None else chain)
            if block.paid and block.time >= wanted.created_at - SKEW
            for paid in block.paid
            if (paid.address, paid.contract) == (wanted.address, wanted.contract)
        ]

    def has_hidden(self, wanted: Wanted) -> bool:
        """Whether some of a request's money can only be found by its balance."""
        return any(paid.is_hidden for _, paid in self.credits_of(wanted))

    def held_before(self, wanted: Wanted) -> bool:
        """Whether its address was ever paid coins before its first block: that is an alarm, and the row waits."""
        return not wanted.contract and any(
            (paid.address, paid.contract) == (wanted.address, "")
            for block in self.blocks.values()
            if block.time < wanted.created_at - SKEW
            for paid in block.paid
        )

    def is_out_of_reach(self, wanted: Wanted) -> bool:
        """Whether hidden money of a request stands in a block that may have left the tail before anybody looked.

        Or in the lowest of the tail: what that one brought can only be told by the block below it, which has left.
        """
        lowest = len(self.canonical) - TAIL_BLOCKS_MIN
        return any(paid.is_hidden and block.height <= lowest for block, paid in self.credits_of(wanted))

    def is_surely_late(self, wanted: Wanted, tx: str) -> bool:
        """No block that ever held it was in time."""
        return min(self.times[tx]) > wanted.expires_at

    def sums(self, wanted: Wanted, chain: Sequence[Seen], depth: int) -> Sums:
        """What a chain holds at this depth or deeper. Mined in time and late, by turns, it may count or not."""
        found = self.credits_of(wanted, chain[: len(chain) - depth + 1])
        sure = sum(paid.amount for _, paid in found if max(self.times[paid.tx]) <= wanted.expires_at)
        most = sum(paid.amount for _, paid in found if not self.is_surely_late(wanted, paid.tx))
        return Sums(sure, most)

    def could_ever(self, wanted: Wanted, depth: int, bps: int) -> bool:
        """Whether at some time the chain held so much for a request, so deep."""
        return any(is_reached(self.sums(wanted, chain, depth).most, wanted.amount, bps) for chain in self.chains)

    def was_ever_over(self, wanted: Wanted, depth: int) -> bool:
        """Whether at some time a block later than the request's end was so deep."""
        return any(len(chain) >= depth and chain[-depth].time > wanted.expires_at for chain in self.chains)

    def was_orphaned(self, height: int, block_hash: str) -> bool:
        """Whether this block stood at this height, and at some later time another one."""
        at = [chain[height].hash for chain in self.chains if len(chain) > height]
        return block_hash in at and any(other != block_hash for other in at[at.index(block_hash) :])

    def statuses(self, wanted: Wanted, policy: Policy) -> set[str]:
        """What a request may be in the end, when chain time is past its end and all of it is deep enough."""
        sums = self.sums(wanted, self.canonical, 1)
        confirmed = {"confirmed"} if is_reached(sums.most, wanted.amount, policy.confirmed_threshold_bps) else set()
        is_sure = is_reached(sums.sure, wanted.amount, policy.confirmed_threshold_bps)
        return confirmed if is_sure else confirmed | {"expired"}


def _seen(block: dict[str, Any], logs: list[dict[str, Any]], good: set[str]) -> Seen:
    native = [
        Paid(tx["hash"], tx["hash"], tx["to"].lower(), "", int(tx["value"], 16))
        for tx in block["transactions"]
        if tx["hash"] in good and tx["to"]
    ]
    token = [
        Paid(
            f"{log['transactionHash']}:{int(log['logIndex'], 16)}",
            log["transactionHash"],
            "0x" + log["topics"][2][26:],
            log["address"].lower(),
            int(log["data"], 16),
        )
        for log in logs
        if log["topics"][0] == TRANSFER and len(log["topics"]) == 3 and int(log["data"], 16)
    ]
    time = datetime.fromtimestamp(int(block["timestamp"], 16), UTC)
    hidden = [paid for tx in block["transactions"] if tx["hash"] in good for paid in _split(tx)]
    return Seen(int(block["number"], 16), block["hash"], time, tuple(native + token + hidden))


def _split(tx: dict[str, Any]) -> list[Paid]:
    """What the splitter hands on inside a transaction to it: the same to each recipient that is named."""
    if tx["to"] != SPLITTER:
        return []
    named = tx["input"][2:]
    recipients = ["0x" + named[at : at + 40] for at in range(0, len(named), 40)]
    amount = int(tx["value"], 16) // len(recipients)
    return [
        Paid(f"{tx['hash']}:trace:{n}", tx["hash"], to, "", amount, is_hidden=True) for n, to in enumerate(recipients)
    ]
