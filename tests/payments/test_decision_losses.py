"""decide(): what a status was given for, and what had been lost before. Only the loss of the former demotes."""

import pytest

from reconsup.payments.decision import Counted
from reconsup.payments.request import Reason, Status
from reconsup.payments.settlement import Settlement
from tests.payments.make import decided, lost, paid, request

DAY = 86_400.0
DETECTED, CONFIRMED, REORGED = Status.DETECTED, Status.CONFIRMED, Status.REORGED

STALE = lost(100, ref="0xa9")  # taken back, and replaced by another payment, before the status was given
ANEW = Counted({"0xa1": 100}, gone=frozenset({(STALE.evidence_ref, STALE.block_hash)}))


@pytest.mark.parametrize("status", [DETECTED, CONFIRMED])
def test_an_old_proof_demotes_nothing_when_the_amount_is_raised(status: Status) -> None:
    """Seen to fail (reorged) when any orphaned credit will do."""
    raised = request(status, 150)

    assert decided(raised, paid(100, 9), STALE, counted=ANEW).status == status
    assert decided(raised, paid(100, 9), STALE, counted=ANEW).proof is None
    assert decided(raised, STALE, counted=ANEW).status == status  # nothing is inferred from absence


@pytest.mark.parametrize("status", [DETECTED, CONFIRMED])
def test_money_that_came_after_the_status_and_went_again_demotes_nothing(status: Status) -> None:
    extra = lost(50, ref="0xa2")

    assert decided(request(status, 150), paid(100, 9), extra, counted=Counted({"0xa1": 100})).status == status


@pytest.mark.parametrize("status", [DETECTED, CONFIRMED])
@pytest.mark.parametrize(
    "money",
    [
        (lost(100, ref="0xa1"),),
        (lost(100, ref="0xa1:7"),),  # under another log index than the one that was counted
        (lost(100, ref="0xa1"), STALE),
        (lost(60, ref="0xa1:5"), paid(40, 9, ref="0xa1:6")),  # one of its two transfers is there again
        (lost(100, ref="0xa1"), paid(99, 9, ref="0xa2")),
    ],
)
def test_the_loss_of_money_that_was_counted_demotes(status: Status, money: tuple[Settlement, ...]) -> None:
    decision = decided(status, *money, counted=ANEW)

    assert (decision.status, decision.reason) == (REORGED, Reason.REORGED)
    assert decision.proof == money[0].orphaning


@pytest.mark.parametrize("status", [DETECTED, CONFIRMED])
def test_money_that_is_there_again_under_another_log_index_was_not_lost(status: Status) -> None:
    """Seen to fail (reorged) when a transaction's other credits are not asked for."""
    money = (lost(100, ref="0xa1:5"), paid(100, 9, ref="0xa1:7"))

    assert decided(request(status, 150), *money, counted=Counted({"0xa1": 100})).status == status


def test_finality_is_that_of_the_money_that_was_counted() -> None:
    """Seen to fail (reorged) with old, shallow proofs among it."""
    money = (lost(100, 9, ref="0xa1"), lost(100, 1, ref="0xa9"))
    counted = Counted({"0xa1": 100}, gone=frozenset({("0xa9", money[1].block_hash)}))

    assert decided(CONFIRMED, *money, counted=counted, confirmed_age_seconds=2 * DAY).status == CONFIRMED
    assert decided(CONFIRMED, *money, confirmed_age_seconds=2 * DAY).status == REORGED


@pytest.mark.parametrize("status", [DETECTED, CONFIRMED])
def test_of_a_status_that_another_program_gave_any_loss_counts(status: Status) -> None:
    assert decided(status, lost(100), counted=None).status == REORGED
