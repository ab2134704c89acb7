"""chain.proof: what nodes of three makes and public chains say of their blocks comes out of it, and nothing else does.

No expected hash here was made by our own code: they are go-ethereum's, anvil's, or those of public chains.
"""

from collections.abc import Callable
from typing import Any

import pytest

from reconsup.chain import decode, proof
from reconsup.chain.errors import ChainInconsistent
from tests.chain.vectors import EXECUTION_APIS, HEADERS, of_anvil

Raw = dict[str, Any]


def doubt(block: Raw, receipts: list[Raw]) -> str | None:
    """What is left when a block went through both: `decode` refuses what has no structure."""
    decode.block(block, receipts, int(block["number"], 16))
    return proof.doubt(block, receipts)


# -- what is true


@pytest.mark.parametrize("raw", HEADERS.values(), ids=HEADERS.keys())
def test_a_header_of_each_fork_hashes_to_what_everybody_knows(raw: Raw) -> None:
    assert "0x" + proof.header_hash(raw).hex() == raw["hash"]


@pytest.mark.parametrize("raw", HEADERS.values(), ids=HEADERS.keys())
def test_every_field_of_a_header_counts(raw: Raw) -> None:
    hashed = [key for key in (*proof.HASHED_ALWAYS, *proof.HASHED_SINCE_FORKS) if key in raw]
    changed = {key: proof.header_hash(raw | {key: raw[key][:-1] + ("1" if raw[key][-1] != "1" else "2")})
               for key in hashed if raw[key] != "0x"}  # fmt: skip

    assert len(set(changed.values()) | {bytes.fromhex(raw["hash"][2:])}) == len(changed) + 1


def test_a_block_of_go_ethereum_is_proven_with_its_receipts() -> None:
    assert doubt(EXECUTION_APIS["block"], EXECUTION_APIS["receipts"]) is None


def test_a_block_of_anvil_is_proven_with_its_receipts() -> None:
    block, receipts = of_anvil()

    assert [tx["type"] for tx in block["transactions"][:4]] == ["0x0", "0x1", "0x2", "0x4"]
    assert doubt(block, receipts) is None


def test_every_type_of_transaction_has_go_ethereums_hash_and_root() -> None:
    """The block with blobs: its receipts were not to be had, so the rest of it is proven alone."""
    block = EXECUTION_APIS["with blobs"]
    encoded = [proof.transaction(tx) for tx in block["transactions"]]

    assert [tx["type"] for tx in block["transactions"]] == ["0x1", "0x3", "0x0", "0x2"]
    assert "0x" + proof.list_root(encoded).hex() == block["transactionsRoot"]
    assert "0x" + proof.header_hash(block).hex() == block["hash"]
    credits_ = decode.block(block, [_receipt_of(tx) for tx in block["transactions"]], 3).credits
    assert [credit.amount_minor for credit in credits_] == [2, 3, 2, 10**9]


def _receipt_of(tx: Raw) -> Raw:
    return {"transactionHash": tx["hash"], "status": "0x1", "logs": []} | {
        key: tx[key] for key in ("blockHash", "transactionIndex")
    }


def test_a_node_may_leave_out_the_blooms_and_the_parity_and_write_in_capitals() -> None:
    block, receipts = of_anvil()
    for receipt in receipts:
        del receipt["logsBloom"]
    for tx in block["transactions"]:
        tx.pop("yParity", None)
        tx |= {key: "0x" + tx[key][2:].upper() for key in ("r", "s", "hash", "input")}

    assert doubt(block, receipts) is None


# Roots of lists of so many items, each the item's number as two bytes: computed with py-trie 4.0.0.
LIST_ROOTS = {
    0: "56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421",
    1: "b7a67f797016330183b3d39927bc21be30932766b528e54b39f37a5ff0893537",
    2: "bdcafcb343a701a402c943f44ca75c31d3afe183f998c01c7f1b0b34c1ad3cab",
    16: "61fed2cdd119ca00a72e55f9b3a2b2e3c4ad8b4592bd74abde23f1ee2315ee7c",
    17: "f6089084b041cc3eecd370104b9bdc0611dabbbec8134aca2254d746915c821b",
    127: "4d2c625bc84c14149eb27cb92aac9bd383f515527cb948b3dfa5ebe222584607",
    128: "6c7107c66c1def6c4bbb7f467a071db432bd6d33d7d349d83d9ddaefea7b40e5",
    129: "92e7bf417556ef8ba37f8791d4543b1ef4f6ba00ff2b75f32e2a44b875f059b6",
    256: "bc299dda7a98f5e6bd2fc54929b062d64338e849ef1583a76b222a9d213b5dc4",
    257: "b265076ab09c2ede4e8c3526ffa3edfd70b6b9fc70cac36fc87b2583f35b04d4",
    300: "72a7e52579d0f5a399d64ff3655bc7e482ab08c1541f7e92abdde4c7466c8f98",
}


def test_a_list_of_any_length_has_the_root_that_others_compute() -> None:
    """Small items, so that nodes stand whole in the nodes above them. Seen to fail with every node held by hash."""
    roots = {n: proof.list_root([index.to_bytes(2) for index in range(n)]).hex() for n in LIST_ROOTS}

    assert roots == LIST_ROOTS


# -- what is not


def put(path: str, value: Any) -> Callable[[Raw, list[Raw]], None]:
    """Put a value at a path such as "receipts.1.logs.0.data"."""

    def edit(block: Raw, receipts: list[Raw]) -> None:
        *way, last = [int(step) if step.lstrip("-").isdigit() else step for step in path.split(".")]
        target: Any = {"block": block, "receipts": receipts}
        for step in way:
            target = target[step]
        assert target[last] != value
        target[last] = value

    return edit


def without_transaction(at: int) -> Callable[[Raw, list[Raw]], None]:
    """Remove a transaction with its receipt, and renumber all that follows: the structure is whole again."""

    def edit(block: Raw, receipts: list[Raw]) -> None:
        del block["transactions"][at], receipts[at]
        renumber(block, receipts)

    return edit


def without_log(receipt_at: int, log_at: int = 0) -> Callable[[Raw, list[Raw]], None]:
    def edit(block: Raw, receipts: list[Raw]) -> None:
        del receipts[receipt_at]["logs"][log_at]
        renumber(block, receipts)

    return edit


def renumber(block: Raw, receipts: list[Raw]) -> None:
    """Give transactions, receipts and logs the numbers that a whole block has."""
    log_index = 0
    for index, (tx, receipt) in enumerate(zip(block["transactions"], receipts, strict=True)):
        tx["transactionIndex"] = receipt["transactionIndex"] = hex(index)
        for log in receipt["logs"]:
            log |= {"logIndex": hex(log_index), "transactionIndex": hex(index)}
            log_index += 1


def swap(first: int, second: int) -> Callable[[Raw, list[Raw]], None]:
    def edit(block: Raw, receipts: list[Raw]) -> None:
        for each in (block["transactions"], receipts):
            each[first], each[second] = each[second], each[first]
        renumber(block, receipts)

    return edit


def twice(block: Raw, receipts: list[Raw]) -> None:
    log = receipts[2]["logs"][0]
    receipts[2]["logs"].append(dict(log))
    renumber(block, receipts)


ANOTHER = "0x" + "12" * 20
LIES: dict[str, tuple[Callable[[Raw, list[Raw]], None], str]] = {
    "a log is missing": (without_log(2), "receipts and logs"),
    "the last log is missing": (without_log(-1), "receipts and logs"),
    "a log more": (twice, "receipts and logs"),
    "a transaction is missing": (without_transaction(2), "transactions are not"),
    "the first transaction is missing": (without_transaction(0), "transactions are not"),
    "the last transaction is missing": (without_transaction(-1), "transactions are not"),
    "two transactions in each other's place": (swap(0, 1), "transactions are not"),
    "two of the same kind in each other's place": (swap(6, 7), "transactions are not"),
    "a value": (put("block.transactions.0.value", "0x700"), "transaction 0: does not hash"),
    "a recipient": (put("block.transactions.1.to", ANOTHER), "transaction 1: does not hash"),
    "a recipient in place of none": (put("block.transactions.5.to", ANOTHER), "transaction 5: does not hash"),
    "a transaction's hash": (lambda block, receipts: _rename(block, receipts), "transaction 0: does not hash"),
    "a failure for a success": (put("receipts.0.status", "0x0"), "receipts and logs"),
    "a success for a failure": (put("receipts.4.status", "0x1"), "receipts and logs"),
    "a log's amount": (put("receipts.2.logs.0.data", f"0x{1:064x}"), "receipts and logs"),
    "a log's data cut off": (put("receipts.2.logs.0.data", "0x"), "receipts and logs"),
    "a log's contract": (put("receipts.2.logs.0.address", ANOTHER), "receipts and logs"),
    "a log's recipient": (put("receipts.2.logs.0.topics.2", "0x" + "00" * 12 + ANOTHER[2:]), "receipts and logs"),
    "a log's kind": (put("receipts.2.logs.0.topics.0", "0x" + "12" * 32), "receipts and logs"),
    "a topic less": (lambda _, receipts: receipts[2]["logs"][0]["topics"].pop(), "receipts and logs"),
    "the parent": (put("block.parentHash", "0x" + "12" * 32), "its header does not hash"),
    "the time": (put("block.timestamp", "0x1"), "its header does not hash"),
    "the receipts' root": (put("block.receiptsRoot", "0x" + "12" * 32), "its header does not hash"),
    "a header's field is gone": (
        lambda block, _: block.pop("stateRoot"),
        "missing or malformed .KeyError: 'stateRoot'",
    ),
    "a transaction's field is gone": (lambda block, _: block["transactions"][0].pop("r"), "missing or malformed"),
    # What reads as another thing to `decode` must not read as the true thing here.
    "another prefix before a topic": (put("receipts.2.logs.0.topics.0", "0X" + decode.TRANSFER_TOPIC[2:]), "not 32"),
    "white space in a topic": (put("receipts.2.logs.0.topics.1", "0x" + " " * 8 + "00" * 28), "white space"),
    "another type": (put("block.transactions.1.type", "0x0"), "transaction 1: does not hash"),
    "no type": (lambda block, _: block["transactions"][2].pop("type"), "transaction 2: does not hash"),
}


def _rename(block: Raw, receipts: list[Raw]) -> None:
    block["transactions"][0]["hash"] = receipts[0]["transactionHash"] = "0x" + "12" * 32


@pytest.mark.parametrize(("lie", "words"), LIES.values(), ids=LIES.keys())
def test_whatever_is_removed_or_changed_is_caught(lie: Callable[[Raw, list[Raw]], None], words: str) -> None:
    """Each passes the checks of structure, or `decode` has refused it before.

    Seen to fail: what is missing, moved or doubled, and whatever concerns a receipt, without the comparison of the
    roots; a transaction's hash without that of the transactions' own hashes; parent and time without that of the
    header's; the white space without the lengths.
    """
    block, receipts = of_anvil()
    lie(block, receipts)

    decode.block(block, receipts, 2)
    with pytest.raises(ChainInconsistent, match=words):
        proof.doubt(block, receipts)


# -- what cannot be known


def test_an_unknown_type_leaves_a_block_unproven_and_its_credits_are_read() -> None:
    block, receipts = of_anvil()
    block["transactions"][0]["type"] = "0x7e"

    assert doubt(block, receipts) == "block 2: transactions of unknown type '0x7e'"
    assert decode.block(block, receipts, 2).credits == decode.block(*of_anvil(), 2).credits


def test_beside_an_unknown_type_the_others_are_still_held_to_their_hashes() -> None:
    """Seen to fail with the whole body given up at the first unknown type."""
    block, receipts = of_anvil()
    block["transactions"][0]["type"] = "0x7e"
    block["transactions"][1]["value"] = "0x99"

    with pytest.raises(ChainInconsistent, match="transaction 1: does not hash"):
        doubt(block, receipts)


def test_a_header_with_an_unknown_field_is_unproven_where_its_hash_does_not_come_out() -> None:
    block, receipts = of_anvil()
    block |= {"hash": "0x" + "12" * 32, "tomorrowsRoot": "0x" + "34" * 32}
    for each in [*receipts, *(log for receipt in receipts for log in receipt["logs"])]:
        each["blockHash"] = block["hash"]

    assert doubt(block, receipts) == ("block 2: unknown header fields, so its hash cannot be recomputed: tomorrowsRoot")
    without_log(2)(block, receipts)
    with pytest.raises(ChainInconsistent, match="receipts and logs"):  # the roots it names still hold it
        doubt(block, receipts)


def test_an_unknown_field_that_is_in_no_hash_harms_nothing() -> None:
    block, receipts = of_anvil()
    block["milliTimestamp"] = receipts[0]["l1Fee"] = block["transactions"][0]["mint"] = "0x1"

    assert doubt(block, receipts) is None


def test_what_a_node_sends_instead_of_a_name_is_told_in_few_words() -> None:
    nested: Any = []
    for _ in range(5_000):
        nested = [nested]
    block, receipts = of_anvil()
    block["transactions"][0]["type"] = nested
    block["transactions"][1]["type"] = "0x" + "7" * 10_000

    said = doubt(block, receipts)
    assert said is not None
    assert "a list" in said
    assert len(said) < 300
