"""What becomes of a request: the lifecycle of the contract, a row a sentence."""

import dataclasses
from typing import Any

import pytest

from reconsup.payments.decision import ChainView, Facts, Tag, decide
from reconsup.payments.request import TRANSITIONS, Reason, RowError, Status
from reconsup.payments.settlement import Settlement
from tests.payments.make import (
    BEFORE,
    DEADLINE,
    MAX_AMOUNT,
    OVER,
    POLICY,
    SCANNED,
    after_deadline,
    chain,
    decided,
    lost,
    paid,
    request,
)

PENDING, DETECTED, CONFIRMED = Status.PENDING, Status.DETECTED, Status.CONFIRMED
REORGED, EXPIRED, FAILED = Status.REORGED, Status.EXPIRED, Status.FAILED
DAY = 86_400.0
HALVES = dataclasses.replace(POLICY, detected_threshold_bps=5_000, confirmed_threshold_bps=9_000)


STEPS = [
    # status before, money, chain, status after, reason
    pytest.param(PENDING, (), BEFORE, PENDING, None, id="nothing came yet"),
    pytest.param(PENDING, (paid(99, 3),), BEFORE, PENDING, None, id="too little came"),
    pytest.param(PENDING, (paid(100, 1),), BEFORE, DETECTED, Reason.DETECTED, id="enough came"),
    pytest.param(PENDING, (paid(100, 2),), BEFORE, DETECTED, Reason.DETECTED, id="enough, a block short of deep"),
    pytest.param(PENDING, (paid(100, 3),), BEFORE, CONFIRMED, Reason.CONFIRMED, id="enough and deep, at first sight"),
    pytest.param(PENDING, (paid(500, 9),), BEFORE, CONFIRMED, Reason.CONFIRMED, id="too much is enough"),
    pytest.param(
        PENDING, (paid(60, 9), paid(40, 2, ref="0xa2")), BEFORE, DETECTED, Reason.DETECTED, id="one half is shallow"
    ),
    pytest.param(
        PENDING, (paid(60, 9), paid(40, 3, ref="0xa2")), BEFORE, CONFIRMED, Reason.CONFIRMED, id="both halves are deep"
    ),
    pytest.param(PENDING, (lost(100),), BEFORE, PENDING, None, id="what was taken back was never told of"),
    pytest.param(PENDING, (), OVER, EXPIRED, Reason.EXPIRED, id="nothing came in time"),
    pytest.param(PENDING, (paid(1, 9),), OVER, EXPIRED, Reason.UNDERPAID_EXPIRED, id="too little came in time"),
    pytest.param(PENDING, (paid(100, 9, at=1),), OVER, EXPIRED, Reason.EXPIRED, id="it came too late"),
    pytest.param(PENDING, (lost(100),), OVER, EXPIRED, Reason.EXPIRED, id="what came did not come back"),
    pytest.param(PENDING, (paid(100, 1),), OVER, DETECTED, Reason.DETECTED, id="in time, whenever we look"),
    pytest.param(PENDING, (paid(100, 3),), OVER, CONFIRMED, Reason.CONFIRMED, id="in time and deep, whenever we look"),
    pytest.param(DETECTED, (paid(100, 2),), BEFORE, DETECTED, None, id="detected, it waits"),
    pytest.param(DETECTED, (paid(100, 2),), OVER, DETECTED, None, id="enough that merely waits for depth stays"),
    pytest.param(DETECTED, (paid(100, 3),), BEFORE, CONFIRMED, Reason.CONFIRMED, id="detected, then deep"),
    pytest.param(DETECTED, (paid(60, 9), lost(40)), BEFORE, REORGED, Reason.REORGED, id="detected, a part taken back"),
    pytest.param(DETECTED, (lost(100),), OVER, REORGED, Reason.REORGED, id="taken back, told of before it expires"),
    pytest.param(DETECTED, (paid(100, 2), lost(5)), BEFORE, DETECTED, None, id="detected, more than needed taken back"),
    pytest.param(DETECTED, (paid(60, 9),), BEFORE, DETECTED, None, id="less than its threshold, but no proof"),
    pytest.param(DETECTED, (paid(60, 9), lost(40, at=1)), BEFORE, DETECTED, None, id="only late money was taken back"),
    pytest.param(DETECTED, (paid(60, 9),), OVER, EXPIRED, Reason.UNDERPAID_EXPIRED, id="detected, then the end"),
    pytest.param(DETECTED, (), OVER, EXPIRED, Reason.EXPIRED, id="detected by another program, and nothing is there"),
    pytest.param(CONFIRMED, (paid(100, 9),), OVER, CONFIRMED, None, id="confirmed for good"),
    pytest.param(CONFIRMED, (), OVER, CONFIRMED, None, id="confirmed by another program"),
    pytest.param(CONFIRMED, (paid(60, 9),), OVER, CONFIRMED, None, id="confirmed, less is there, but no proof"),
    pytest.param(CONFIRMED, (paid(100, 1), lost(100)), OVER, CONFIRMED, None, id="taken back and mined again"),
    pytest.param(
        CONFIRMED, (paid(60, 9), lost(40)), BEFORE, REORGED, Reason.REORGED, id="confirmed, a part taken back"
    ),
    pytest.param(CONFIRMED, (lost(100),), OVER, REORGED, Reason.REORGED, id="confirmed, all taken back"),
    pytest.param(CONFIRMED, (paid(60, 9), lost(40, at=1)), OVER, CONFIRMED, None, id="late money never confirmed it"),
    pytest.param(REORGED, (lost(100),), BEFORE, REORGED, None, id="reorged, it may come back"),
    pytest.param(REORGED, (lost(100), paid(100, 2)), BEFORE, DETECTED, Reason.DETECTED, id="reorged, paid again"),
    pytest.param(REORGED, (paid(100, 3),), BEFORE, CONFIRMED, Reason.CONFIRMED, id="reorged, then deep at last"),
    pytest.param(REORGED, (lost(100),), OVER, EXPIRED, Reason.EXPIRED, id="reorged, and nothing came back"),
    pytest.param(REORGED, (lost(40), paid(60, 9)), OVER, EXPIRED, Reason.UNDERPAID_EXPIRED, id="reorged, half is left"),
    pytest.param(REORGED, (lost(40), paid(60, 9), paid(40, 2)), OVER, DETECTED, Reason.DETECTED, id="back in time"),
    pytest.param(EXPIRED, (paid(100, 9),), OVER, EXPIRED, None, id="expired for good"),
    pytest.param(EXPIRED, (lost(100),), OVER, EXPIRED, None, id="expired, and a reorg"),
    pytest.param(FAILED, (paid(100, 9),), OVER, FAILED, None, id="failed belongs to others"),
    pytest.param(FAILED, (), OVER, FAILED, None, id="failed is not expired either"),
]


@pytest.mark.parametrize(("before", "money", "view", "after", "reason"), STEPS)
def test_the_lifecycle(
    before: Status, money: tuple[Settlement, ...], view: ChainView, after: Status, reason: Reason | None
) -> None:
    """Seen to fail, row by row, with each question of the state machine taken out or turned round."""
    decision = decided(before, *money, view=view)

    assert (decision.status, decision.reason) == (after, reason)


def test_the_lifecycle_walks_every_row_of_the_table() -> None:
    """Each step twice: as a request that was never confirmed, and as one that was. Seen to fail with one step less."""
    taken = [
        (before, decided(before, *money, view=view, was_confirmed=was_confirmed))
        for before, money, view, *_ in (param.values for param in STEPS)
        for was_confirmed in (False, True)
    ]
    walked = {(before, decision.status, decision.reason) for before, decision in taken if before != decision.status}

    assert walked == {(*pair, reason) for pair, reasons in TRANSITIONS.items() for reason in reasons}


# Thresholds


@pytest.mark.parametrize(
    ("amount_minor", "depth", "status"),
    [(49, 9, PENDING), (50, 9, DETECTED), (89, 9, DETECTED), (90, 2, DETECTED), (90, 3, CONFIRMED)],
)
def test_each_status_has_its_own_threshold(amount_minor: int, depth: int, status: Status) -> None:
    """Seen to fail with either threshold used for both."""
    assert decided(PENDING, paid(amount_minor, depth), policy=HALVES).status == status


@pytest.mark.parametrize(("left", "before", "after"), [(49, DETECTED, REORGED), (50, DETECTED, DETECTED)])
def test_detected_is_reorged_below_the_detected_threshold(left: int, before: Status, after: Status) -> None:
    assert decided(before, paid(left, 9), lost(60), policy=HALVES).status == after


@pytest.mark.parametrize(("left", "after"), [(89, REORGED), (90, CONFIRMED)])
def test_confirmed_is_reorged_below_the_confirmed_threshold(left: int, after: Status) -> None:
    """Seen to fail with the detected threshold there: 89 of 100 would have stayed confirmed."""
    assert decided(CONFIRMED, paid(left, 9), lost(60), policy=HALVES).status == after


def test_between_the_thresholds_it_is_told_of_and_then_expires_as_underpaid() -> None:
    told = decided(PENDING, paid(89, 9), view=OVER, policy=HALVES)
    ended = decided(DETECTED, paid(89, 9), view=OVER, policy=HALVES)

    assert (told.status, ended.status, ended.reason) == (DETECTED, EXPIRED, Reason.UNDERPAID_EXPIRED)


@pytest.mark.parametrize(
    ("expected", "amount_minor", "status"),
    [
        (None, 1, CONFIRMED),
        (0, 1, CONFIRMED),
        (MAX_AMOUNT, MAX_AMOUNT, CONFIRMED),
        (MAX_AMOUNT, MAX_AMOUNT - 1, PENDING),
        (1, MAX_AMOUNT, CONFIRMED),
    ],
)
def test_amounts_at_their_edges(expected: int | None, amount_minor: int, status: Status) -> None:
    decision = decided(request(expected=expected), paid(amount_minor, 3))

    assert (decision.status, decision.amount_minor) == (status, amount_minor)


@pytest.mark.parametrize("expected", [None, 0])
def test_without_an_expected_amount_nothing_is_still_nothing(expected: int | None) -> None:
    """Seen to fail with `sum > 0` taken out of is_reached: it confirmed requests that nobody paid."""
    assert decided(request(expected=expected)).status == PENDING
    assert decided(request(expected=expected), view=OVER).reason == Reason.EXPIRED


# Depth and tags


@pytest.mark.parametrize(("depth", "status"), [(1, DETECTED), (2, DETECTED), (3, CONFIRMED), (4, CONFIRMED)])
def test_a_depth_counts_the_block_itself(depth: int, status: Status) -> None:
    assert decided(PENDING, paid(100, depth)).status == status


@pytest.mark.parametrize("tag", ["safe", "finalized"])
@pytest.mark.parametrize(
    ("tag_height", "status"),
    [(None, DETECTED), (0, DETECTED), (SCANNED - 9, DETECTED), (SCANNED - 8, CONFIRMED), (SCANNED, CONFIRMED)],
)
def test_a_tag_confirms_what_is_not_above_it(tag: Tag, tag_height: int | None, status: Status) -> None:
    """Seen to fail with `<` for `<=`, and with the other tag's height. A node without the tag confirms nothing."""
    other = {"safe": "finalized", "finalized": "safe"}[tag]
    heights: dict[str, Any] = {f"{tag}_height": tag_height, f"{other}_height": SCANNED - 20}
    policy = dataclasses.replace(POLICY, confirmations=tag)

    assert decided(PENDING, paid(100, 9), view=chain(**heights), policy=policy).status == status


def test_depth_says_nothing_where_the_policy_is_a_tag() -> None:
    policy = dataclasses.replace(POLICY, confirmations="finalized")

    assert decided(PENDING, paid(100, 900), view=chain(safe_height=SCANNED), policy=policy).status == DETECTED


# In time


@pytest.mark.parametrize(
    ("grace_seconds", "at", "status"),
    [(0, -1, CONFIRMED), (0, 0, CONFIRMED), (0, 1, PENDING), (30, 30, CONFIRMED), (30, 31, PENDING)],
)
def test_in_time_is_up_to_and_with_the_deadline_and_its_grace(grace_seconds: float, at: float, status: Status) -> None:
    """Seen to fail with `<` for `<=`, and without the grace."""
    policy = dataclasses.replace(POLICY, expiry_grace_seconds=grace_seconds)

    assert decided(PENDING, paid(100, 9, at=at), policy=policy).status == status


def test_late_money_adds_nothing_to_money_in_time() -> None:
    """Seen to fail with all canonical money counted."""
    decision = decided(PENDING, paid(99, 9), paid(1, 9, at=1, ref="0xa2"))

    assert (decision.status, decision.amount_minor) == (PENDING, 99)


# The barrier of expiry, each bar taken out by itself


@pytest.mark.parametrize(
    ("bar", "changes", "money", "view"),
    [
        ("its past is not read", {"admitted": False}, (), OVER),
        ("the block that deep is unknown", {}, (), chain(tip=133, expiry_time=None)),
        ("the block that deep is not later", {}, (), chain(tip=999, expiry_time=DEADLINE)),
        ("the block that deep is in time", {}, (), chain(tip=999, expiry_time=after_deadline(-1))),
        ("there is enough that waits for depth", {}, (paid(100, 1),), OVER),
        ("what was taken back has a block left", {}, (lost(1, scanned=SCANNED - 11),), OVER),
        ("one of those taken back has a block left", {}, (lost(1), lost(1, ref="0xa8", scanned=SCANNED - 11)), OVER),
    ],
)
@pytest.mark.parametrize("before", [PENDING, REORGED])
def test_each_bar_holds_expiry_by_itself(
    before: Status, bar: str, changes: dict[str, Any], money: tuple[Settlement, ...], view: ChainView
) -> None:
    """Seen to fail, each row, with its bar taken out of the barrier; without its bar each request expires."""
    assert decided(before, view=OVER).status == EXPIRED
    assert decided(before, lost(1), view=OVER).status == EXPIRED

    assert decided(request(before, **changes), *money, view=view).status != EXPIRED, bar


@pytest.mark.parametrize(
    ("changes", "view"), [({"admitted": False}, OVER), ({}, chain(tip=133, expiry_time=DEADLINE)), ({}, BEFORE)]
)
def test_the_barrier_holds_a_detected_request_too(changes: dict[str, Any], view: ChainView) -> None:
    assert decided(DETECTED, paid(60, 9), view=OVER).status == EXPIRED

    assert decided(request(DETECTED, **changes), paid(60, 9), view=view).status == DETECTED


def test_grace_moves_the_barrier_too() -> None:
    policy = dataclasses.replace(POLICY, expiry_grace_seconds=30)

    assert decided(PENDING, view=chain(expiry_time=after_deadline(30)), policy=policy).status == PENDING
    assert decided(PENDING, view=chain(expiry_time=after_deadline(31)), policy=policy).status == EXPIRED


def test_late_money_that_was_taken_back_holds_nothing() -> None:
    assert decided(PENDING, lost(100, at=1, scanned=SCANNED), view=OVER).status == EXPIRED


def test_enough_for_expiry_is_enough_to_confirm() -> None:
    """Seen to fail with the detected threshold there: 89 of 100 would never have expired."""
    assert decided(DETECTED, paid(89, 1), view=OVER, policy=HALVES).status == EXPIRED
    assert decided(DETECTED, paid(90, 1), view=OVER, policy=HALVES).status == DETECTED


# Reorg proofs, finality and the observe window


def test_reorged_tells_the_proof_that_took_the_money() -> None:
    """Seen to fail with the first proof taken for it.

    The older one is of the same transaction under its former log index.
    """
    older, newer = lost(100, ref="0xa1:5", scanned=940), lost(100, ref="0xa1:7", scanned=SCANNED - 1)

    assert decided(CONFIRMED, older, newer).proof == newer.orphaning
    assert decided(CONFIRMED, newer, older).proof == newer.orphaning


def test_only_what_concerns_a_reorg_carries_a_proof() -> None:
    assert decided(DETECTED, paid(100, 3), lost(5)).proof is None
    assert decided(REORGED, lost(100), view=OVER).proof is None


@pytest.mark.parametrize(
    ("depth", "age_seconds", "after", "reason"),
    [
        (6, DAY + 1, CONFIRMED, Reason.REORGED_AFTER_FINALITY),
        (5, DAY + 1, REORGED, Reason.REORGED),
        (6, DAY, REORGED, Reason.REORGED),
        (6, None, REORGED, Reason.REORGED),
    ],
)
def test_past_finality_and_past_the_window_the_status_stays_with_a_note(
    depth: int, age_seconds: float | None, after: Status, reason: Reason
) -> None:
    """Seen to fail with either condition taken out, and with each bound moved by one."""
    decision = decided(CONFIRMED, paid(60, 9), lost(40, depth), view=OVER, confirmed_age_seconds=age_seconds)

    assert (decision.status, decision.reason) == (after, reason)
    assert decision.proof == lost(40, depth).orphaning


def test_finality_is_that_of_all_the_money_taken_back() -> None:
    """Seen to fail with `any` for `all`."""
    money = (lost(60, 9), lost(40, 2, ref="0xa8"))

    assert decided(CONFIRMED, *money, confirmed_age_seconds=2 * DAY).status == REORGED


def test_past_finality_nothing_is_noted_while_enough_is_left() -> None:
    decision = decided(CONFIRMED, paid(100, 9), lost(40, 9), confirmed_age_seconds=2 * DAY)

    assert (decision.reason, decision.proof) == (None, None)


# Rows that cannot be decided


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"chain_id": None}, RowError.CHAIN_ID_MISMATCH),
        ({"token_standard": "ERC20"}, RowError.TOKEN_CONTRACT_MISSING),
        ({"expected": -1}, RowError.AMOUNT_NEGATIVE),
        ({"address": "0x" + "ab" * 19}, RowError.ADDRESS_INVALID),
        ({"address": "bc1" + "q" * 39}, RowError.ADDRESS_INVALID),
        ({"address": "0x" + "ab" * 20 + "\n"}, RowError.ADDRESS_INVALID),
        ({"token_standard": "ERC20", "token_contract": "USDT"}, RowError.TOKEN_CONTRACT_INVALID),
    ],
)
@pytest.mark.parametrize("status", list(Status))
def test_a_row_error_comes_before_any_status(status: Status, changes: dict[str, Any], error: RowError) -> None:
    """Seen to fail with the question taken out of decide: a token row without contract was confirmed by ether."""
    assert decide(request(status, **changes), Facts((paid(100, 9),)), OVER, POLICY) == error


def test_a_shared_address_is_a_row_error() -> None:
    facts = Facts((paid(100, 9),), shares_address=True)

    assert decide(request(), facts, BEFORE, POLICY) == RowError.AMBIGUOUS_ADDRESS


@pytest.mark.parametrize("status", [PENDING, DETECTED, REORGED])
def test_a_request_that_was_confirmed_before_is_reconfirmed_by_whatever_way_it_comes_back(status: Status) -> None:
    """confirmed → reorged → detected → confirmed was seen to write `payment_confirmed` a second time."""
    assert decided(status, paid(100, 3), was_confirmed=True).reason == Reason.RECONFIRMED
    assert decided(status, paid(100, 3)).reason == Reason.CONFIRMED


@pytest.mark.parametrize(
    ("before", "money", "paid_at"),
    [
        pytest.param(PENDING, (paid(99, 3, at=-90),), None, id="not enough"),
        pytest.param(PENDING, (paid(100, 1, at=-90),), -90.0, id="detected"),
        pytest.param(PENDING, (paid(100, 3, at=-90),), -90.0, id="confirmed at first sight"),
        pytest.param(
            PENDING,
            (paid(60, 5, at=-90), paid(40, 4, at=-80, ref="0xa2"), paid(40, 3, at=-70, ref="0xa3")),
            -80.0,
            id="the one that made it enough, not the first and not one too many",
        ),
        pytest.param(DETECTED, (paid(100, 3, at=-90),), None, id="it was noticed before"),
        pytest.param(REORGED, (paid(100, 1, at=-90),), None, id="it was noticed before it was taken back"),
    ],
)
def test_the_time_of_the_payment_is_told_when_it_is_noticed(
    before: Status, money: tuple[Settlement, ...], paid_at: float | None
) -> None:
    """Seen to fail with the latest payment's time, and with the first one's."""
    assert decided(before, *money).paid_at == (None if paid_at is None else after_deadline(paid_at))
