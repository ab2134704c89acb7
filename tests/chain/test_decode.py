"""chain.decode: what counts as a credit, and what is refused. Plain calls on a hand-made block; real ones: test_evm."""

import copy
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from reconsup.chain import decode
from reconsup.chain.block import NATIVE, Block, Credit
from reconsup.chain.errors import ChainInconsistent

HEIGHT = 0x2A
BLOCK_HASH, PARENT_HASH = "0x" + "b1" * 32, "0x" + "b0" * 32
TX = ["0x" + f"{index:02x}" * 32 for index in range(0xE0, 0xE4)]
ALICE, BOB, CONTRACT = "0x" + "aa" * 20, "0x" + "bb" * 20, "0x" + "cc" * 20
ZEROS = "0x" + "00" * 32
UINT256_MAX = 2**256 - 1


def word(address: str) -> str:
    return "0x" + "00" * 12 + address[2:]


def log(tx_index: int, log_index: int, amount: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "address": CONTRACT,
        "topics": [decode.TRANSFER_TOPIC, word(ALICE), word(BOB)],
        "data": f"0x{amount:064x}",
        "blockHash": BLOCK_HASH,
        "transactionHash": TX[tx_index],
        "logIndex": hex(log_index),
        "removed": False,
    } | changes


def transaction(index: int, to: str | None = BOB, value: int = 0, **changes: Any) -> dict[str, Any]:
    fields = {"hash": TX[index], "transactionIndex": hex(index), "to": to, "value": hex(value), "type": "0x2"}
    return fields | changes


def receipt(index: int, logs: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "transactionHash": TX[index],
        "transactionIndex": hex(index),
        "blockHash": BLOCK_HASH,
        "status": "0x1",
        "logs": logs,
    } | changes


def raw() -> tuple[dict[str, Any], list[Any]]:
    """A block of four: value to Bob; tokens to Bob twice; a failure with value; a contract made with value."""
    block = {
        "number": hex(HEIGHT),
        "hash": BLOCK_HASH,
        "parentHash": PARENT_HASH,
        "timestamp": "0x6b49d200",
        "transactions": [
            transaction(0, value=7),
            transaction(1, to=CONTRACT),
            transaction(2, value=8),
            transaction(3, to=None, value=9),
        ],
    }
    receipts = [
        receipt(0, []),
        receipt(1, [log(1, 0, amount=5), log(1, 1, amount=UINT256_MAX)]),
        receipt(2, [], status="0x0"),
        receipt(3, [log(3, 2, amount=0)]),
    ]
    return block, receipts


def read(block: Any, receipts: Any) -> Block:
    return decode.block(block, receipts, HEIGHT)


def test_a_block_is_read_with_its_credits_in_order() -> None:
    block = read(*raw())

    assert block.credits == (
        Credit(TX[0], TX[0], BOB, NATIVE, 7),
        Credit(f"{TX[1]}:0", TX[1], BOB, CONTRACT, 5),
        Credit(f"{TX[1]}:1", TX[1], BOB, CONTRACT, UINT256_MAX),
    )
    assert (block.height, block.block_hash, block.parent_hash) == (HEIGHT, BLOCK_HASH, PARENT_HASH)
    assert block.time == datetime.fromtimestamp(0x6B49D200, UTC)
    assert block.proven is False


def test_what_comes_in_capitals_is_stored_in_small_letters() -> None:
    def upper(value: Any) -> Any:
        if isinstance(value, str):
            return "0x" + value[2:].upper()
        if isinstance(value, list):
            return [upper(each) for each in value]
        return {key: upper(each) for key, each in value.items()} if isinstance(value, dict) else value

    block, receipts = raw()

    assert read(upper(block), upper(receipts)) == read(block, receipts)


NO_CREDIT = {
    "an NFT's transfer has a fourth topic": log(1, 0, topics=[decode.TRANSFER_TOPIC, word(ALICE), word(BOB), ZEROS]),
    "amount zero": log(1, 0, amount=0),
    "another event of the same shape": log(1, 0, topics=["0x" + "12" * 32, word(ALICE), word(BOB)]),
    "recipient not indexed": log(1, 0, topics=[decode.TRANSFER_TOPIC, word(ALICE)], data="0x" + "00" * 63 + "01"),
    "no topics": log(1, 0, topics=[]),
    "no data": log(1, 0, data="0x"),
    "33 bytes of data": log(1, 0, data="0x" + "01" * 33),
    "a third topic that is no address": log(1, 0, topics=[decode.TRANSFER_TOPIC, word(ALICE), "0x" + "01" * 32]),
}


@pytest.mark.parametrize("logged", NO_CREDIT.values(), ids=NO_CREDIT.keys())
def test_logs_that_are_no_money(logged: dict[str, Any]) -> None:
    """Seen to fail, each row for its check: the topics' count, the first topic, the length, the amount, the padding."""
    block, receipts = raw()
    receipts[1]["logs"][0] = logged

    assert [each.evidence_ref for each in read(block, receipts).credits] == [TX[0], f"{TX[1]}:1"]


UNKNOWN_TYPES = {
    "with the shared fields": (transaction(0, value=7, type="0x7e"), 1),
    "without a value": ({key: value for key, value in transaction(0, type="0x76").items() if key != "value"}, 0),
    "without to": ({key: value for key, value in transaction(0, type="0x76").items() if key != "to"}, 0),
    "of a type that is no number": (transaction(0, value=7, type="nonsense"), 1),
}


@pytest.mark.parametrize(("tx", "native_credits"), UNKNOWN_TYPES.values(), ids=UNKNOWN_TYPES.keys())
def test_an_unknown_transaction_type_never_stops_the_scan(tx: dict[str, Any], native_credits: int) -> None:
    block, receipts = raw()
    block["transactions"][0] = tx

    credits_ = read(block, receipts).credits
    assert len([each for each in credits_ if each.token_contract == NATIVE]) == native_credits
    assert len(credits_) == native_credits + 2


def test_a_transaction_without_type_is_an_old_one() -> None:
    block, receipts = raw()
    del block["transactions"][0]["type"]

    assert read(block, receipts).credits[0].amount_minor == 7


Edit = Callable[[dict[str, Any], list[Any]], Any]


def put(path: str, value: Any) -> Edit:
    """Put a value at a path such as "receipts.1.logs.0.logIndex" or "block.hash"."""

    def edit(block: dict[str, Any], receipts: list[Any]) -> None:
        *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        target: Any = {"block": block, "receipts": receipts}
        for step in way:
            target = target[step]
        target[last] = value

    return edit


REFUSED: dict[str, Edit] = {
    "another height": put("block.number", "0x2b"),
    "a height that is a number": put("block.number", 42),
    "no height (a pending block)": put("block.number", None),
    "a height beyond any": put("block.number", "0x" + "f" * 64),
    "no hash (a pending block)": put("block.hash", None),
    "a short hash": put("block.hash", "0x12"),
    "a hash with a stray letter": put("block.hash", "0x" + "g" * 64),
    "no parent": put("block.parentHash", None),
    "a time that is no date": put("block.timestamp", "0xffffffffffff"),
    "an underscore in a quantity": put("block.timestamp", "0x6b49_d200"),
    "an empty quantity": put("block.timestamp", "0x"),
    "no transactions": put("block.transactions", None),
    "hashes in place of transactions": put("block.transactions", TX),
    "a transaction's index is off": put("block.transactions.1.transactionIndex", "0x2"),
    "a transaction without hash": put("block.transactions.1.hash", None),
    "a value that is a number": put("block.transactions.0.value", 7),
    "a value beyond 256 bits": put("block.transactions.0.value", "0x1" + "0" * 64),
    "a negative value": put("block.transactions.0.value", "-0x7"),
    "a value that is null": put("block.transactions.0.value", None),
    "a recipient of 19 bytes": put("block.transactions.0.to", "0x" + "bb" * 19),
    "no recipient field": lambda block, _: block["transactions"][0].pop("to"),
    "no value field": lambda block, _: block["transactions"][0].pop("value"),
    "no receipts": lambda _, receipts: receipts.clear(),
    "the last receipt is missing": lambda _, receipts: receipts.pop(),
    "a receipt too many": lambda _, receipts: receipts.append(copy.deepcopy(receipts[0])),
    "receipts in another order": lambda _, receipts: receipts.insert(0, receipts.pop(2)),
    "a null receipt": put("receipts.1", None),
    "another transaction's receipt": put("receipts.2.transactionHash", "0x" + "12" * 32),
    "a receipt of another block": put("receipts.0.blockHash", PARENT_HASH),
    "a receipt's index is off": put("receipts.2.transactionIndex", "0x3"),
    "a receipt without status": put("receipts.0.status", None),
    "a status that is neither": put("receipts.0.status", "0x2"),
    "a receipt without logs": put("receipts.1.logs", None),
    "the first log is missing": lambda _, receipts: receipts[1]["logs"].pop(0),
    "the last log of a receipt is missing": lambda _, receipts: receipts[1]["logs"].pop(),
    "a log twice": lambda _, receipts: receipts[1]["logs"].append(copy.deepcopy(receipts[1]["logs"][1])),
    "a log of another block": put("receipts.1.logs.0.blockHash", PARENT_HASH),
    "a log of another transaction": put("receipts.1.logs.0.transactionHash", TX[0]),
    "a removed log": put("receipts.1.logs.0.removed", True),
    "a log without address": put("receipts.1.logs.0.address", None),
    "a log without topics": put("receipts.1.logs.0.topics", None),
    "a log without data": put("receipts.1.logs.0.data", None),
    "a log whose data is no number": put("receipts.1.logs.0.data", "0x" + "z" * 64),
    "a log whose topic is no word": put("receipts.1.logs.0.topics.2", BOB),
}


@pytest.mark.parametrize("edit", REFUSED.values(), ids=REFUSED.keys())
def test_a_malformed_block_is_refused(edit: Edit) -> None:
    """Each row is one guard; each was seen to fail with its check in `decode` taken out."""
    block, receipts = raw()
    edit(block, receipts)

    with pytest.raises(ChainInconsistent):
        read(block, receipts)


def test_the_same_transaction_twice_is_refused() -> None:
    """Seen to fail without the check: its credit would be there twice, under one evidence_ref."""
    block, receipts = raw()
    block["transactions"][2] |= {"hash": TX[0]}
    receipts[2] |= {"transactionHash": TX[0]}

    with pytest.raises(ChainInconsistent, match="twice"):
        read(block, receipts)


@pytest.mark.parametrize("what", [None, 1, "block", [], True])
def test_a_header_that_is_no_object_is_refused(what: Any) -> None:
    with pytest.raises(ChainInconsistent):
        decode.header(what)


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, as the keys that lead to it."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*way, key)
        yield from places(each, (*way, key))


def test_junk_anywhere_is_refused_or_harmless_but_never_a_crash() -> None:
    """Every field replaced by all that JSON can hold: ChainInconsistent, or a Block. (A type of [] once failed.)"""
    refused = 0
    junk: Any
    for way in places(list(raw())):
        for junk in (None, True, -1, 1.5, 2**70, "", "0x", "0x1", "\ud800", [], [None], {}, {"hash": {}}):
            root: Any = list(raw())
            target: Any = root
            for key in way[:-1]:
                target = target[key]
            target[way[-1]] = junk
            try:
                read(*root)
            except ChainInconsistent:
                refused += 1
    assert refused > 900
