"""What the history is told: evidence, confirmations, and money that came too late."""

import pytest

from reconsup.payments.decision import Counted, Decision
from reconsup.payments.request import Status
from tests.payments.make import OVER, decided, lost, paid

PENDING, DETECTED, CONFIRMED = Status.PENDING, Status.DETECTED, Status.CONFIRMED
REORGED, EXPIRED, FAILED = Status.REORGED, Status.EXPIRED, Status.FAILED


def test_the_evidence_is_all_that_came_in_time_canonical_first() -> None:
    gone, there, late = lost(60), paid(40, 9), paid(100, 3, at=1, ref="0xa2")
    decision = decided(REORGED, gone, there, late, view=OVER)

    assert decision.evidence == (there, gone)
    assert decision.amount_minor == 40


def test_confirmations_are_those_of_the_shallowest_money_that_counts() -> None:
    """Seen to fail with all money counted: a confirmation at depth 3 was told as one at depth 1."""
    enough, more = paid(100, 3), paid(5, 1, ref="0xa2")

    assert decided(PENDING, enough, more).confirmations == 3
    assert decided(PENDING, paid(60, 2), paid(40, 1, ref="0xa2")).confirmations == 1
    assert decided(PENDING).confirmations == 0


def refs(decision: Decision) -> list[str]:
    return [each.evidence_ref for each in decision.late]


def test_the_decision_that_expires_tells_of_what_came_too_late() -> None:
    """Seen to fail with the late ones left for a later look."""
    decision = decided(PENDING, paid(1, 9), paid(100, 3, at=1, ref="0xa2"), view=OVER)

    assert (decision.status, refs(decision)) == (EXPIRED, ["0xa2"])


def test_the_look_that_finds_it_expired_tells_of_what_came_too_late() -> None:
    decision = decided(EXPIRED, paid(100, 3, at=1, ref="0xa2"), paid(7, 1, at=99, ref="0xa3"), view=OVER)

    assert (decision.status, decision.reason, refs(decision)) == (EXPIRED, None, ["0xa2", "0xa3"])


@pytest.mark.parametrize("status", [PENDING, DETECTED, CONFIRMED, REORGED, FAILED])
def test_late_money_is_told_of_by_requests_that_are_over_only(status: Status) -> None:
    """Seen to fail with that question taken out. (Of one that another program confirmed nobody knows for what.)"""
    assert decided(status, paid(1, 9, at=1)).late == ()


def test_the_decision_that_confirms_tells_of_what_came_too_late() -> None:
    decision = decided(DETECTED, paid(100, 9), paid(7, 9, ref="0xa2"), paid(5, 1, at=1, ref="0xa3"))

    assert (decision.status, decision.amount_minor, refs(decision)) == (CONFIRMED, 107, ["0xa3"])


def test_money_that_came_after_the_confirmation_is_told_of_in_time_or_late() -> None:
    """But not the payment it was confirmed by, also when it is there again under another log index."""
    money = (paid(100, 9, ref="0xa1:7"), paid(100, 1, ref="0xa2:1"), paid(100, 1, at=1, ref="0xa3"))
    gone = lost(9, ref="0xa4")
    decision = decided(CONFIRMED, *money, gone, counted=Counted({"0xa1": 100}))

    assert (decision.status, decision.reason, refs(decision)) == (CONFIRMED, None, ["0xa3", "0xa2:1"])


def test_late_money_that_was_taken_back_is_not_told_of() -> None:
    """Seen to fail with orphaned ones included."""
    assert decided(EXPIRED, lost(100, at=1), view=OVER).late == ()


def test_money_in_time_that_the_expiry_did_not_know_is_told_of_as_late() -> None:
    """Seen to fail with money in time left out: a deep reorg brought it, and nobody would ever have heard of it."""
    known, unknown = paid(40, 9, ref="0xa1:7"), paid(60, 9, ref="0xa2:1")
    decision = decided(EXPIRED, known, unknown, view=OVER, counted=Counted({"0xa1": 40}))

    assert refs(decision) == ["0xa2:1"]
