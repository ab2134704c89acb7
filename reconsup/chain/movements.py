"""Who moved native coins inside a block: the calls inside its transactions (traced), and what an account itself spent.

A trace is the node's own word and nothing in the header vouches for it. So it is never the amount that is believed,
only where it came from: whoever asks compares the sum with what the balance says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from reconsup.chain import decode
from reconsup.chain.errors import AnswerTooLarge, ChainInconsistent, ChainUnavailable
from reconsup.chain.evm import EvmChain
from reconsup.chain.rpc import Call, Refusal

MOVING = frozenset({"CALL", "CREATE", "CREATE2", "SELFDESTRUCT"})  # the others run code and move nothing
RECEIPTS_PER_BATCH = 100


@dataclass(frozen=True, slots=True)
class Move:
    """Native coins that moved inside a transaction: not by the transaction itself, which the scan reads.

    `path` is the call's position: 0.2 is the third call of the first call of the transaction.
    """

    tx_hash: str
    path: str
    sender: str
    recipient: str
    amount_minor: int


_tracers: WeakKeyDictionary[EvmChain, str] = WeakKeyDictionary()  # of those that have shown one


async def moves(chain: EvmChain, height: int, block_hash: str) -> list[Move] | None:
    """Everything that moved inside the transactions of a block; None if the endpoint does not trace."""
    for name, call, read in (
        ("debug", ("debug_traceBlockByHash", [block_hash, {"tracer": "callTracer"}]), _of_frames),
        ("trace", ("trace_block", [hex(height)]), _of_traces),
    ):
        if _tracers.get(chain, name) != name:
            continue
        (answer,) = await chain.endpoint.batch([call])
        if isinstance(answer, Refusal):
            if answer.is_throttling:
                chain.endpoint.accepted(answer, call[0])
            continue
        try:
            found = list(read(answer, block_hash))
        except ChainInconsistent:
            continue  # a tracer of another make: its word is not needed
        _tracers[chain] = name
        return found
    return None


async def spent(chain: EvmChain, address: str, block_hash: str) -> int:
    """What an account's own transactions of a block cost it: value, where they succeeded, and gas. In wei."""
    raw = await chain.endpoint.call("eth_getBlockByHash", block_hash, True)
    if raw is None:
        raise ChainUnavailable(chain.endpoint.says(f"does not have block {block_hash}"))
    of = decode.header(raw)
    if of.block_hash != block_hash:
        raise ChainInconsistent(chain.endpoint.says(f"was asked for block {block_hash}, gave {of.block_hash}"))
    own = [tx for tx in decode.transactions(raw, of) if str(tx.get("from")).lower() == address]
    total = 0
    for start in range(0, len(own), RECEIPTS_PER_BATCH):
        part = own[start : start + RECEIPTS_PER_BATCH]
        calls: list[Call] = [("eth_getTransactionReceipt", [tx["hash"]]) for tx in part]
        for tx, answer in zip(part, await chain.endpoint.batch(calls), strict=True):
            receipt = chain.endpoint.accepted(answer, "eth_getTransactionReceipt")
            if not isinstance(receipt, dict) or receipt.get("transactionHash") != tx["hash"]:
                raise ChainUnavailable(chain.endpoint.says("does not have the receipt of a transaction it gave"))
            total += _cost(tx, receipt)
    return total


def _cost(tx: decode.Json, receipt: decode.Json) -> int:
    """Value and gas, with what a blob and (on chains above another one) the chain below cost."""

    def of(source: decode.Json, name: str, otherwise: str = "0x0") -> int:
        return decode.quantity(source.get(name) or otherwise, name)

    value = of(tx, "value") if of(receipt, "status") else 0
    price = of(receipt, "effectiveGasPrice", str(tx.get("gasPrice")))
    blobs = of(receipt, "blobGasUsed") * of(receipt, "blobGasPrice")
    return value + of(receipt, "gasUsed") * price + blobs + of(receipt, "l1Fee")


def _of_frames(answer: object, _: str) -> Iterator[Move]:
    """Read what debug_traceBlockByHash says, with the tracer of calls."""
    for each in decode.objects(answer, "a trace"):
        tx_hash = decode.hash32(each.get("txHash"), "a trace's transaction")
        root = each.get("result")
        if isinstance(root, dict) and not root.get("error"):
            yield from _inside(root, tx_hash, ())


def _inside(frame: Any, tx_hash: str, path: tuple[int, ...]) -> Iterator[Move]:
    """The calls that a frame made, and theirs. What failed was taken back with all that it had called."""
    pending = [(frame, path)]
    while pending:
        above, above_path = pending.pop()
        for position, call in enumerate(decode.objects(above.get("calls") or [], "a trace's calls")):
            if call.get("error"):
                continue
            here = (*above_path, position)
            pending.append((call, here))
            if call.get("type") in MOVING:
                yield from _move(tx_hash, here, call.get("from"), call.get("to"), call.get("value"))


def _of_traces(answer: object, block_hash: str) -> Iterator[Move]:
    """Read what trace_block says: a flat list, in which a call comes after the one that made it."""
    failed: set[tuple[str, tuple[int, ...]]] = set()
    for each in decode.objects(answer, "a trace"):
        action, path = each.get("action"), each.get("traceAddress")
        if each.get("type") == "reward":  # of a block: no transaction's
            continue
        if each.get("blockHash") != block_hash or not isinstance(action, dict) or not isinstance(path, list):
            raise ChainInconsistent("a trace is of another block, or malformed")
        tx_hash, here = decode.hash32(each.get("transactionHash"), "a trace's transaction"), tuple(map(int, path))
        if each.get("error") or any((tx_hash, here[:length]) in failed for length in range(len(here))):
            failed.add((tx_hash, here))
            continue
        match each.get("type"), action.get("callType"):
            case ("call", "call") | ("create", _):
                to = action.get("to") or (each.get("result") or {}).get("address")
                yield from _move(tx_hash, here, action.get("from"), to, action.get("value"))
            case "suicide" | "selfdestruct", _:
                yield from _move(
                    tx_hash, here, action.get("address"), action.get("refundAddress"), action.get("balance")
                )


def _move(tx_hash: str, path: Sequence[int], sender: object, recipient: object, amount: object) -> Iterator[Move]:
    """A move, if it is one: below the transaction's own call, and of something."""
    amount_minor = decode.quantity(amount or "0x0", "a trace's value")
    if path and amount_minor:
        yield Move(
            tx_hash=tx_hash,
            path=".".join(map(str, path)),
            sender=decode.address20(sender, "a trace's sender"),
            recipient=decode.address20(recipient, "a trace's recipient"),
            amount_minor=amount_minor,
        )


async def traces(chain: EvmChain, height: int, block_hash: str) -> bool:
    """Whether the endpoint can trace, tried at a block."""
    try:
        return await moves(chain, height, block_hash) is not None
    except AnswerTooLarge:
        return True
