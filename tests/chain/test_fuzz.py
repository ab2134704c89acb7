"""Whatever a node sends, decoder and proof give a value or ChainInconsistent, and no change slips through.

A few seconds of examples, a few minutes under the mark `long`. A failing example is printed in its shortest form.
"""

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from reconsup.chain import decode, proof
from reconsup.chain.block import Block, Header
from reconsup.chain.errors import ChainInconsistent
from tests.chain.test_decode import places
from tests.chain.test_proof import renumber
from tests.chain.vectors import EXECUTION_APIS, of_anvil

QUICK = settings(max_examples=300, deadline=None, derandomize=True, database=None)
QUICK_JUNK = settings(QUICK, max_examples=150)
LONG = settings(
    max_examples=5_000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)

Raw = dict[str, Any]
WHOLE = (of_anvil(), (EXECUTION_APIS["block"], EXECUTION_APIS["receipts"]))
PLACES = [[way for way in places(list(whole)) if len(way) > 1] for whole in WHOLE]
KEYS = sorted({key for ways in PLACES for way in ways for key in way if isinstance(key, str)})

digits = some.text("0123456789abcdefABCDEF", max_size=70)
hexes = digits.map("0x".__add__)
words = some.text("0123456789abcdef", min_size=64, max_size=64).map("0x".__add__)
texts = some.one_of(
    hexes, words, some.text(max_size=80), some.sampled_from(["0x", "0x0", "0x1", "0X1", "0x-1", "0x_1"])
)
leaves = some.one_of(some.none(), some.booleans(), some.integers(), some.floats(), texts)
junk = some.recursive(
    leaves,
    lambda inner: some.one_of(
        some.lists(inner, max_size=4), some.dictionaries(some.one_of(some.sampled_from(KEYS), texts), inner, max_size=5)
    ),
    max_leaves=20,
)


def nested(depth: int) -> list[Any]:
    """More lists in each other than anything that recurses can follow."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def read(block: Any, receipts: Any, height: int, native_logs_from: int | None) -> Block | None:
    """What EvmChain does with a block; None where it was refused."""
    try:
        found = decode.block(block, receipts, height, native_logs_from)
        said = proof.doubt(block, receipts)
    except ChainInconsistent:
        return None
    assert said is None or len(said) < 1000
    return found


# -- nothing but a value or ChainInconsistent


def check_junk(block: Any, receipts: Any, native_logs_from: int | None) -> None:
    read(block, receipts, 0, native_logs_from)
    with suppress(ChainInconsistent):
        assert isinstance(decode.header(block), Header)


def check_spoiled(which: int, data: some.DataObject) -> None:
    root = copy.deepcopy(list(WHOLE[which]))
    for _ in range(data.draw(some.integers(1, 3))):
        way = data.draw(some.sampled_from(PLACES[which]))
        target: Any = root
        try:
            for key in way[:-1]:
                target = target[key]
            value = target[way[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took it away
        match data.draw(some.sampled_from(["junk", "nested", "delete", "double", "move"])):
            case "junk":
                target[way[-1]] = data.draw(junk)
            case "nested":
                target[way[-1]] = nested(data.draw(some.sampled_from([10, 5_000])))
            case "delete":
                del target[way[-1]]
            case "double" if isinstance(target, list):
                target.append(value)
            case "move" if isinstance(target, dict):
                target[data.draw(some.sampled_from(KEYS))] = target.pop(way[-1])
            case _:
                pass
    height = (2, 0x14)[which]
    read(*root, height, data.draw(some.sampled_from([None, 0])))


junk_given = given(block=junk, receipts=junk, native_logs_from=some.sampled_from([None, 0]))
spoiled_given = given(which=some.sampled_from([0, 1]), data=some.data())
test_random_json_is_refused_or_read = QUICK_JUNK(junk_given(check_junk))
test_a_spoiled_block_is_refused_or_read = QUICK(spoiled_given(check_spoiled))
test_random_json_is_refused_or_read_at_length = pytest.mark.long(LONG(junk_given(check_junk)))
test_a_spoiled_block_is_refused_or_read_at_length = pytest.mark.long(LONG(spoiled_given(check_spoiled)))


# -- no change of what is proven slips through


def hexed(size: int) -> some.SearchStrategy[str]:
    return some.binary(min_size=size, max_size=size).map(lambda data: "0x" + data.hex())


def quantities(most: int) -> some.SearchStrategy[str]:
    return some.integers(0, most).map(hex)


def change_transaction(block: Raw, _: list[Raw], data: some.DataObject) -> None:
    tx = data.draw(some.sampled_from(block["transactions"]))
    fields = {
        "value": quantities(2**256 - 1),
        "to": some.one_of(some.none(), hexed(20)),
        "nonce": quantities(2**64 - 1),
    }
    fields |= {"input": some.binary(max_size=100).map(lambda each: "0x" + each.hex()), "gas": quantities(2**64 - 1)}
    key = data.draw(some.sampled_from(sorted(fields)))
    tx[key] = data.draw(fields[key])


def change_receipt(_: Raw, receipts: list[Raw], data: some.DataObject) -> None:
    receipt = data.draw(some.sampled_from(receipts))
    key = data.draw(some.sampled_from(["status", "cumulativeGasUsed"]))
    receipt[key] = data.draw(quantities(1 if key == "status" else 2**64 - 1))


def change_log(_: Raw, receipts: list[Raw], data: some.DataObject) -> None:
    log = data.draw(some.sampled_from([log for receipt in receipts for log in receipt["logs"]]))
    match data.draw(some.sampled_from(["address", "data", "topic", "topics"])):
        case "address":
            log["address"] = data.draw(hexed(20))
        case "data":
            log["data"] = data.draw(
                some.one_of(hexed(32), some.binary(max_size=70).map(lambda each: "0x" + each.hex()))
            )
        case "topic":
            log["topics"][data.draw(some.integers(0, 2))] = data.draw(hexed(32))
        case _:
            log["topics"] = data.draw(some.lists(some.one_of(some.sampled_from(log["topics"]), hexed(32)), max_size=4))


def remove_log(_: Raw, receipts: list[Raw], data: some.DataObject) -> None:
    receipt = data.draw(some.sampled_from([receipt for receipt in receipts if receipt["logs"]]))
    receipt["logs"].pop()


def add_log(_: Raw, receipts: list[Raw], data: some.DataObject) -> None:
    copied = copy.deepcopy(data.draw(some.sampled_from([log for receipt in receipts for log in receipt["logs"]])))
    receipt = data.draw(some.sampled_from(receipts))
    receipt["logs"].append(copied | {"transactionHash": receipt["transactionHash"]})


def remove_transactions(block: Raw, receipts: list[Raw], data: some.DataObject) -> None:
    first, last = sorted(data.draw(some.integers(0, len(receipts))) for _ in range(2))
    del block["transactions"][first:last], receipts[first:last]


def reorder(block: Raw, receipts: list[Raw], data: some.DataObject) -> None:
    order = data.draw(some.permutations(range(len(receipts))))
    block["transactions"] = [block["transactions"][at] for at in order]
    receipts[:] = [receipts[at] for at in order]


def move_log(_: Raw, receipts: list[Raw], data: some.DataObject) -> None:
    log = data.draw(some.sampled_from([receipt for receipt in receipts if receipt["logs"]]))["logs"].pop()
    receipt = data.draw(some.sampled_from(receipts))
    receipt["logs"].append(log | {"transactionHash": receipt["transactionHash"]})


CHANGES: tuple[Callable[[Raw, list[Raw], some.DataObject], None], ...] = (
    *(change_transaction, change_receipt, change_log, remove_log, add_log, remove_transactions, reorder, move_log),
)


def check_caught(change: Callable[[Raw, list[Raw], some.DataObject], None], data: some.DataObject) -> None:
    block, receipts = of_anvil()
    change(block, receipts, data)
    renumber(block, receipts)

    found = read(block, receipts, 2, None)

    if found is not None:
        assert _proven(block, receipts) == _proven(*of_anvil())


def _proven(block: Raw, receipts: list[Raw]) -> list[Any]:
    """All that the proof speaks for, as plain values: numbers by their worth, hex in small letters."""

    def plain(value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    said: list[Any] = []
    for tx, receipt in zip(block["transactions"], receipts, strict=True):
        said += [plain(tx[key]) for key in ("hash", "to", "input")]
        said += [int(tx[key], 16) for key in ("value", "nonce", "gas")]
        said += [int(receipt[key], 16) for key in ("status", "cumulativeGasUsed")]
        said += [
            [plain(log["address"]), plain(log["data"]), [plain(each) for each in log["topics"]]]
            for log in receipt["logs"]
        ]
    return said


caught_given = given(change=some.sampled_from(CHANGES), data=some.data())
test_no_change_of_what_is_proven_slips_through = QUICK(caught_given(check_caught))
test_no_change_of_what_is_proven_slips_through_at_length = pytest.mark.long(LONG(caught_given(check_caught)))
