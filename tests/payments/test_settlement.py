"""Sums, thresholds and depths."""

import dataclasses

import pytest

from reconsup.payments.settlement import height_that_reaches, is_reached, total
from tests.payments.make import MAX_AMOUNT, SCANNED, lost, paid


@pytest.mark.parametrize(
    ("sum_minor", "expected_minor", "threshold_bps", "reached"),
    [
        (100, 100, 10_000, True),
        (99, 100, 10_000, False),
        (101, 100, 10_000, True),
        (0, 100, 1, False),
        # nothing expected: any amount above zero
        (1, None, 10_000, True),
        (0, None, 10_000, False),
        (1, 0, 10_000, True),
        (0, 0, 1, False),
        # one basis point, never rounded in the customer's favour
        (1, 10_000, 1, True),
        (1, 10_001, 1, False),
        (2, 10_001, 1, True),
        (1, 1, 1, True),
        # 33.33 % of 10,001 is 3333.3333: 3,333 is not enough
        (3_333, 10_001, 3_333, False),
        (3_334, 10_001, 3_333, True),
        # 99.99 % of the largest amount: exact where a float would round
        (MAX_AMOUNT, MAX_AMOUNT, 10_000, True),
        (MAX_AMOUNT - 1, MAX_AMOUNT, 10_000, False),
        (MAX_AMOUNT * 9_999 // 10_000 + 1, MAX_AMOUNT, 9_999, True),
        (MAX_AMOUNT * 9_999 // 10_000, MAX_AMOUNT, 9_999, False),
        (2 * MAX_AMOUNT, MAX_AMOUNT, 10_000, True),
    ],
)
def test_a_threshold_is_reached_exactly(
    sum_minor: int, expected_minor: int | None, threshold_bps: int, reached: bool
) -> None:
    """Seen to fail with `sum > 0` taken out, with `>` for `>=`, and with a division instead of the products."""
    assert is_reached(sum_minor, expected_minor, threshold_bps) is reached


def test_a_total_is_exact() -> None:
    assert total([]) == 0
    assert total([paid(MAX_AMOUNT), paid(MAX_AMOUNT), paid(1)]) == 2 * MAX_AMOUNT + 1


@pytest.mark.parametrize(
    ("scanned", "height", "confirmations"), [(1000, 1000, 1), (1000, 998, 3), (1000, 1001, 0), (1000, 1100, 0)]
)
def test_a_block_confirms_itself_and_one_that_was_scanned_back_has_none(
    scanned: int, height: int, confirmations: int
) -> None:
    settlement = dataclasses.replace(paid(1), height=height)

    assert settlement.confirmations(scanned) == confirmations


def test_a_settlement_is_canonical_until_a_proof_names_its_block() -> None:
    assert paid(1).is_canonical
    assert not lost(1).is_canonical


def test_a_proof_of_another_block_is_no_proof() -> None:
    """Seen to fail with the assertion taken out."""
    settlement = lost(1)

    with pytest.raises(AssertionError):
        dataclasses.replace(settlement, block_hash="0xother")


def test_the_transaction_is_the_same_under_any_log_index() -> None:
    assert paid(1, ref="0xa1").transaction == "0xa1"
    assert paid(1, ref="0xa1:7").transaction == "0xa1"
    assert paid(1, ref="0xa1:trace:0.1").transaction == "0xa1"


def test_the_height_that_reaches_counts_from_the_lowest() -> None:
    """Seen to fail without the sorting."""
    instalments = [paid(30, depth=1), paid(40, depth=9), paid(60, depth=5)]

    assert height_that_reaches(instalments, 40, 10_000) == SCANNED - 8
    assert height_that_reaches(instalments, 100, 10_000) == SCANNED - 4
    assert height_that_reaches(instalments, 101, 10_000) == SCANNED
    assert height_that_reaches(instalments, 260, 5_000) == SCANNED
    assert height_that_reaches(instalments, 131, 10_000) is None
    assert height_that_reaches([], None, 1) is None
