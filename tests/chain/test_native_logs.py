"""chain.decode: what is no money at all, and native transfers that come as logs (EIP-7708). Plain calls."""

from typing import Any

import pytest

from reconsup.chain import decode
from reconsup.chain.block import NATIVE, Block, Credit
from reconsup.chain.errors import ChainInconsistent
from tests.chain.test_decode import ALICE, BOB, CONTRACT, HEIGHT, TX, log, raw, receipt, transaction, word

SYSTEM = "0x" + "ff" * 19 + "fe"
LOOKALIKE = "0x" + "ff" * 20


def system_log(tx_index: int, log_index: int, amount: int, to: str = BOB, **changes: Any) -> dict[str, Any]:
    return log(tx_index, log_index, amount, address=SYSTEM, topics=[decode.TRANSFER_TOPIC, word(ALICE), word(to)]) | (
        changes
    )


def logged() -> tuple[dict[str, Any], list[Any]]:
    """A block with EIP-7708: value to Bob; value to a contract that forwards it to Bob; a failure; a token to Bob."""
    block, _ = raw()
    block["transactions"] = [
        transaction(0, value=7, **{"from": ALICE}),
        transaction(1, to=CONTRACT, value=9, **{"from": ALICE}),
        transaction(2, value=8, **{"from": ALICE}),
        transaction(3, to=CONTRACT, **{"from": ALICE}),
    ]
    receipts = [
        receipt(0, [system_log(0, 0, 7)]),
        receipt(1, [system_log(1, 1, 9, to=CONTRACT), system_log(1, 2, 4)]),
        receipt(2, [], status="0x0"),
        receipt(3, [log(3, 3, amount=5)]),
    ]
    return block, receipts


def read(block: Any, receipts: Any, native_logs_from: int | None) -> Block:
    return decode.block(block, receipts, HEIGHT, native_logs_from)


TOKEN_CREDIT = Credit(f"{TX[3]}:3", TX[3], BOB, CONTRACT, 5)


@pytest.mark.parametrize("native_logs_from", [0, HEIGHT - 1, HEIGHT])
def test_from_the_given_block_on_the_logs_are_the_native_credits_and_the_values_are_not(native_logs_from: int) -> None:
    """Also what a contract hands on. Seen to fail, 7 twice, with the values counted beside their logs."""
    assert read(*logged(), native_logs_from).credits == (
        Credit(f"{TX[0]}:0", TX[0], BOB, NATIVE, 7),
        Credit(f"{TX[1]}:1", TX[1], CONTRACT, NATIVE, 9),
        Credit(f"{TX[1]}:2", TX[1], BOB, NATIVE, 4),
        TOKEN_CREDIT,
    )


@pytest.mark.parametrize("native_logs_from", [None, HEIGHT + 1])
def test_before_it_the_logs_of_that_address_are_nothing(native_logs_from: int | None) -> None:
    """Seen to fail with the logs taken for those of a token, and with the comparison of heights turned round."""
    assert read(*logged(), native_logs_from).credits == (
        Credit(TX[0], TX[0], BOB, NATIVE, 7),
        Credit(TX[1], TX[1], CONTRACT, NATIVE, 9),
        TOKEN_CREDIT,
    )


def test_a_value_without_its_log_is_refused_where_logs_are_all_that_counts() -> None:
    """The setting names a block before the fork: nobody's payments would be seen. Seen to fail without the check."""
    block, receipts = logged()
    receipts[0]["logs"] = []
    for index, each in enumerate(entry for one in receipts for entry in one["logs"]):
        each["logIndex"] = hex(index)

    with pytest.raises(ChainInconsistent, match="correct RECONSUP_NATIVE_LOGS_FROM_JSON"):
        read(block, receipts, HEIGHT)
    assert len(read(block, receipts, None).credits) == 3


def test_a_value_to_oneself_has_no_log_and_is_no_credit() -> None:
    block, receipts = logged()
    block["transactions"][2] = transaction(2, to=ALICE, value=8, **{"from": ALICE.upper().replace("X", "x")})
    receipts[2]["status"] = "0x1"

    assert [credit.address for credit in read(block, receipts, HEIGHT).credits] == [BOB, CONTRACT, BOB, BOB]


@pytest.mark.parametrize(
    "other",
    [
        system_log(3, 3, 0),
        system_log(3, 3, 5, topics=["0x" + "cc" * 32, word(ALICE)]),  # a burn
        log(3, 3, amount=0),
        log(3, 3, address=LOOKALIKE, topics=[decode.TRANSFER_TOPIC, word(ALICE), word(BOB), word(BOB)]),
    ],
    ids=["no amount", "another event", "a token's zero", "an NFT of a contract with a similar address"],
)
def test_logs_that_are_no_money_there_either(other: dict[str, Any]) -> None:
    block, receipts = logged()
    receipts[3]["logs"] = [other]

    assert [credit.evidence_ref for credit in read(block, receipts, HEIGHT).credits] == [
        f"{TX[0]}:0",
        f"{TX[1]}:1",
        f"{TX[1]}:2",
    ]


def test_a_contract_that_looks_like_the_native_address_is_a_token_of_its_own() -> None:
    """A look-alike's credit names its contract: no request without that contract can be paid by it."""
    block, receipts = logged()
    receipts[3]["logs"] = [log(3, 3, amount=5, address=LOOKALIKE)]

    assert read(block, receipts, HEIGHT).credits[-1] == Credit(f"{TX[3]}:3", TX[3], BOB, LOOKALIKE, 5)


WORTHLESS = {
    "a failure with value": (transaction(0, value=7), "0x0"),
    "a contract made with value": (transaction(0, to=None, value=7), "0x1"),
    "no value": (transaction(0, value=0), "0x1"),
    "a failure of an unknown type": (transaction(0, value=7, type="0x7e"), "0x0"),
}


@pytest.mark.parametrize(("tx", "status"), WORTHLESS.values(), ids=WORTHLESS.keys())
@pytest.mark.parametrize("native_logs_from", [None, HEIGHT])
def test_transactions_that_bring_nothing(tx: dict[str, Any], status: str, native_logs_from: int | None) -> None:
    """Seen to fail, each row for its check: the status, the null recipient, the amount."""
    block, receipts = logged()
    block["transactions"][0] = tx
    receipts[0] |= {"status": status, "logs": []}
    for index, each in enumerate(entry for one in receipts for entry in one["logs"]):
        each["logIndex"] = hex(index)

    assert TX[0] not in {credit.tx_hash for credit in read(block, receipts, native_logs_from).credits}
