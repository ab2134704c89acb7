"""decide(): what must become of one payment request, given what is known of the chain.

The order of the questions is the policy: first what money in time has reached, then whether the chain took money
back (only a stored proof says so), then whether the request is over. Nothing is inferred from absence: a
request expires only behind a barrier of canonical blocks, and one whose past is not fully read never does.

Time is the chain's. The two figures that come from a clock (how long the tip has stood still, how long ago a
row was confirmed) are arguments, and only the first may change *when* we look again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from reconsup.payments.request import TRANSITIONS, PaymentRequest, Reason, RowError, Status
from reconsup.payments.settlement import Orphaning, Settlement, height_that_reaches, is_reached, total

BACKOFF_SECONDS_MAX = 300.0
UNREAD_PAST_SECONDS = 300.0  # at first; a tenth of its age later on
AUDIT_SECONDS = 300.0  # a safety net: the audit itself touches what it has compared
LOOK_SECONDS_MAX = 6 * 3600.0  # a safety net: nothing that waits for chain time is forgotten for longer
HEIGHT_SLACK_SECONDS = 60.0

Tag = Literal["safe", "finalized"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator decided, for one network. `confirmations` is a depth in blocks or a tag of the chain.

    `audits_balances`: no native request expires before its balance was compared (money may leave no log).
    """

    confirmations: int | Tag = 1
    finality_confirmations: int = 1
    detected_threshold_bps: int = 10_000
    confirmed_threshold_bps: int = 10_000
    observe_window_seconds: float = 86_400.0
    expiry_confirmations: int = 12
    expiry_grace_seconds: float = 0.0
    audits_balances: bool = True


@dataclass(frozen=True, slots=True)
class ChainView:
    """What was known of the network in the one statement that read it.

    `expiry_time` is the time of the block that is exactly `Policy.expiry_confirmations` deep (None: not kept).
    `tip_age_seconds` is the database's clock minus `tip_time`; `block_seconds` the mean spacing of recent blocks.
    """

    chain_id: int
    scanned_height: int
    tip_time: datetime
    tip_age_seconds: float
    block_seconds: float
    expiry_time: datetime | None
    safe_height: int | None = None
    finalized_height: int | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """The money that a status was given for.

    `amounts`: by transaction (it may be mined again under another log index), what was canonical then, in minor units.
    `gone`: (evidence_ref, block hash) of what had been taken back by then, and did not count.
    """

    amounts: Mapping[str, int] = field(default_factory=dict)
    gone: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """What was known of one request in the same statement.

    `was_confirmed`: its history has been confirmed before, however it stands now: a consumer must see
    `payment_confirmed` once. `counted`: what the history's entry counted by which it came to its status; None where
    there is no such entry: another program wrote the status, or it is still the first one. `audited_time`: of the
    block, still ours, at which its balance was compared; `unexplained_minor`: what nobody could explain of it.
    """

    settlements: tuple[Settlement, ...] = ()
    shares_address: bool = False
    was_confirmed: bool = False
    confirmed_age_seconds: float | None = None
    counted: Counted | None = None
    audited_time: datetime | None = None
    unexplained_minor: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """When to look next: after so many seconds, or once the scan reached a height. Neither: only when touched."""

    seconds: float | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        assert self.seconds is None or math.isfinite(self.seconds), "a look at no time at all would be a look never"


WHEN_TOUCHED = Look()
AT_ONCE = Look(seconds=0.0)  # the same facts move the request a step further


@dataclass(frozen=True, slots=True)
class Decision:
    """What to write. `reason` is set exactly when the history gets an entry besides those for `late`; `paid_at` (the
    time of the block whose payment made it enough) when a pending request is the first time seen to be paid.
    """

    status: Status
    reason: Reason | None
    look: Look
    amount_minor: int
    confirmations: int
    evidence: tuple[Settlement, ...]
    proof: Orphaning | None
    late: tuple[Settlement, ...]
    paid_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Money:
    """The settlements of a request, sorted by what they may do. `lost`: those orphaned ones that its status counted."""

    in_time: tuple[Settlement, ...]
    orphaned: tuple[Settlement, ...]
    lost: tuple[Settlement, ...]
    deep: tuple[Settlement, ...]
    late: tuple[Settlement, ...]


_NO_MONEY = _Money((), (), (), (), ())


def decide(request: PaymentRequest, facts: Facts, view: ChainView, policy: Policy) -> Decision | RowError:
    """Say what becomes of the request; a RowError when the row itself cannot be decided."""
    error = request.error(chain_id=view.chain_id, shares_address=facts.shares_address)
    if error is not None:
        return error
    money = _sort(request, facts, view, policy)
    status, reason = _next(request.status, request, facts, money, view, policy)
    if status == Status.EXPIRED != request.status and _audits(request, policy) and facts.unexplained_minor:
        return RowError.UNEXPLAINED_BALANCE
    assert status == request.status or reason in TRANSITIONS[request.status, status]
    moves_on = status != request.status and _next(status, request, facts, money, view, policy)[0] != status
    counted = money.deep if status == Status.CONFIRMED else money.in_time
    return Decision(
        status=status,
        reason=reason,
        look=AT_ONCE if moves_on else _look(status, request, facts, money, view, policy),
        amount_minor=total(money.in_time),
        confirmations=min((each.confirmations(view.scanned_height) for each in counted), default=0),
        evidence=money.in_time + money.orphaned,
        proof=_proof(money) if status == Status.REORGED or reason == Reason.REORGED_AFTER_FINALITY else None,
        late=_late(status, request, facts, money),
        paid_at=_paid_at(status, request, money, policy),
    )


def _paid_at(status: Status, request: PaymentRequest, money: _Money, policy: Policy) -> datetime | None:
    if request.status != Status.PENDING or status not in (Status.DETECTED, Status.CONFIRMED):
        return None
    height = height_that_reaches(money.in_time, request.expected_amount_minor, policy.detected_threshold_bps)
    return max(each.first_block_time for each in money.in_time if height is None or each.height <= height)


def _next(
    status: Status, request: PaymentRequest, facts: Facts, money: _Money, view: ChainView, policy: Policy
) -> tuple[Status, Reason | None]:
    """One step of the state machine from `status`: the next one, and the reason if the history gets an entry."""
    match status:
        case Status.PENDING | Status.DETECTED | Status.REORGED:
            return _open(status, request, facts, money, view, policy)
        case Status.CONFIRMED:
            return _confirmed(request, facts, money, policy)
        case Status.EXPIRED | Status.FAILED:
            return status, None


def _open(
    status: Status, request: PaymentRequest, facts: Facts, money: _Money, view: ChainView, policy: Policy
) -> tuple[Status, Reason | None]:
    """The next status of a pending, detected or reorged request, and why."""
    expected = request.expected_amount_minor
    seen = total(money.in_time)
    if is_reached(total(money.deep), expected, policy.confirmed_threshold_bps):
        return Status.CONFIRMED, Reason.RECONFIRMED if facts.was_confirmed else Reason.CONFIRMED
    if is_reached(seen, expected, policy.detected_threshold_bps):
        if status != Status.DETECTED:
            return Status.DETECTED, Reason.DETECTED
    elif status == Status.DETECTED and money.lost:
        return Status.REORGED, Reason.REORGED
    if _is_over(request, money, view, policy) and not _waits_for_audit(request, facts, policy):
        return Status.EXPIRED, Reason.UNDERPAID_EXPIRED if seen else Reason.EXPIRED
    return status, None


def _confirmed(request: PaymentRequest, facts: Facts, money: _Money, policy: Policy) -> tuple[Status, Reason | None]:
    """A confirmed request moves only when a proof took the money it was confirmed for, and what is left is too little.

    Not because too little is left: somebody may have raised the amount, or its settlements may have to be seen again.
    """
    left = total(money.in_time)
    if not money.lost or is_reached(left, request.expected_amount_minor, policy.confirmed_threshold_bps):
        return Status.CONFIRMED, None
    if _was_final(facts, money, policy):
        return Status.CONFIRMED, Reason.REORGED_AFTER_FINALITY
    return Status.REORGED, Reason.REORGED


def _was_final(facts: Facts, money: _Money, policy: Policy) -> bool:
    """Whether all the money that was taken back had reached finality, and its watching had ended."""
    age = facts.confirmed_age_seconds
    if age is None or age <= policy.observe_window_seconds:
        return False
    return all(
        each.orphaning is not None
        and each.confirmations(each.orphaning.scanned_height) >= policy.finality_confirmations
        for each in money.lost
    )


def _is_over(request: PaymentRequest, money: _Money, view: ChainView, policy: Policy) -> bool:
    """The expiry barrier: admission closed, a later block deep enough, and nothing that may still come back."""
    if not request.admitted or view.expiry_time is None:
        return False
    if is_reached(total(money.in_time), request.expected_amount_minor, policy.confirmed_threshold_bps):
        return False  # enough money, which merely waits for its depth
    if view.expiry_time <= _deadline(request, policy):
        return False
    return _return_height(money, policy) <= view.scanned_height


def _audits(request: PaymentRequest, policy: Policy) -> bool:
    return policy.audits_balances and not request.token_contract


def _waits_for_audit(request: PaymentRequest, facts: Facts, policy: Policy) -> bool:
    """Whether its balance is still to be compared at a block behind its end."""
    if not _audits(request, policy):
        return False
    return facts.audited_time is None or facts.audited_time <= _deadline(request, policy)


def _look(
    status: Status, request: PaymentRequest, facts: Facts, money: _Money, view: ChainView, policy: Policy
) -> Look:
    """When to look again. Confirmed and expired rows cost nothing until somebody touches them."""
    if status in (Status.CONFIRMED, Status.EXPIRED, Status.FAILED):
        return WHEN_TOUCHED
    height = height_that_reaches(money.in_time, request.expected_amount_minor, policy.confirmed_threshold_bps)
    if height is not None:
        return _look_for_depth(height, view, policy)
    if not request.admitted:
        age_seconds = (view.tip_time - request.created_at).total_seconds()
        return Look(seconds=min(LOOK_SECONDS_MAX, max(UNREAD_PAST_SECONDS, age_seconds / 10)))
    wait_seconds = (_deadline(request, policy) - view.tip_time).total_seconds()
    if wait_seconds >= 0:
        # A tip that is old already (the scan catches up, or the chain stands still) has used up part of the wait.
        wait_seconds += policy.expiry_confirmations * view.block_seconds - max(0.0, view.tip_age_seconds)
        return Look(seconds=min(LOOK_SECONDS_MAX, max(wait_seconds, _standstill_seconds(view))))
    if _is_over(request, money, view, policy) and _waits_for_audit(request, facts, policy):
        return Look(seconds=AUDIT_SECONDS)
    # Chain time is past the end, the barrier is not deep yet: the tip itself is deep enough by then.
    barrier = view.scanned_height + policy.expiry_confirmations - 1
    due_height = max(barrier, _return_height(money, policy), view.scanned_height + 1)
    return _look_at(due_height, view.scanned_height, view)


def _look_for_depth(height: int, view: ChainView, policy: Policy) -> Look:
    """Wait until the block at `height` is confirmed; for a tag the due height is compared with the tag's."""
    if isinstance(policy.confirmations, int):
        return _look_at(height + policy.confirmations - 1, view.scanned_height, view)
    tag_height = view.safe_height if policy.confirmations == "safe" else view.finalized_height
    return _look_at(height, tag_height or 0, view)


def _look_at(height: int, reached_height: int, view: ChainView) -> Look:
    """Wait for a height; the time beside it is a safety net only."""
    expected_seconds = max(0, height - reached_height) * view.block_seconds
    slack_seconds = max(HEIGHT_SLACK_SECONDS, _standstill_seconds(view))
    return Look(seconds=min(LOOK_SECONDS_MAX, expected_seconds + slack_seconds), height=height)


def _standstill_seconds(view: ChainView) -> float:
    """Grows with the time for which the chain has shown nothing new, from a second to five minutes."""
    return min(BACKOFF_SECONDS_MAX, max(1.0, view.tip_age_seconds / 2))


def _sort(request: PaymentRequest, facts: Facts, view: ChainView, policy: Policy) -> _Money:
    if not facts.settlements:  # most looks, by far
        return _NO_MONEY
    deadline = _deadline(request, policy)
    in_time = [each for each in facts.settlements if each.first_block_time <= deadline]
    canonical = tuple(each for each in in_time if each.is_canonical)
    orphaned = tuple(each for each in in_time if not each.is_canonical)
    return _Money(
        in_time=canonical,
        orphaned=orphaned,
        lost=tuple(each for each in orphaned if _is_lost(each, canonical, facts.counted)),
        deep=tuple(each for each in canonical if _is_confirmed(each, view, policy)),
        late=tuple(each for each in facts.settlements if each.is_canonical and each.first_block_time > deadline),
    )


def _is_lost(orphaned: Settlement, canonical: tuple[Settlement, ...], counted: Counted | None) -> bool:
    """Whether the loss of this credit took money away that the request's status was given for.

    Not where it had been taken back before, where its transaction was not counted, or where that is there again with
    all that was counted of it.
    """
    if counted is None:
        return True
    if (orphaned.evidence_ref, orphaned.block_hash) in counted.gone:
        return False
    there = total([each for each in canonical if each.transaction == orphaned.transaction])
    return there < counted.amounts.get(orphaned.transaction, 0)


def _is_confirmed(settlement: Settlement, view: ChainView, policy: Policy) -> bool:
    match policy.confirmations:
        case "safe":
            return view.safe_height is not None and settlement.height <= view.safe_height
        case "finalized":
            return view.finalized_height is not None and settlement.height <= view.finalized_height
        case depth:
            return settlement.confirmations(view.scanned_height) >= depth


def _late(status: Status, request: PaymentRequest, facts: Facts, money: _Money) -> tuple[Settlement, ...]:
    """Money for a request that is over: too late, or in time but unknown when it expired or was confirmed.

    A person must know of it: somebody paid for nothing, or twice. It never counts towards the status.
    """
    if status not in (Status.EXPIRED, Status.CONFIRMED):
        return ()
    if request.status != status:
        return money.late  # this very decision is the end, and counts all that is in time
    if status == Status.CONFIRMED and facts.counted is None:
        return ()  # another program confirmed it: nobody knows for which money
    known = facts.counted.amounts if facts.counted else {}
    return money.late + tuple(each for each in money.in_time if each.transaction not in known)


def _proof(money: _Money) -> Orphaning | None:
    """The newest proof: an older one may be of money that has long come back under another log index."""
    proofs = [each.orphaning for each in money.lost if each.orphaning is not None]
    return max(proofs, key=lambda each: (each.scanned_height, each.height, each.block_hash), default=None)


def _deadline(request: PaymentRequest, policy: Policy) -> datetime:
    return request.expires_at + timedelta(seconds=policy.expiry_grace_seconds)


def _return_height(money: _Money, policy: Policy) -> int:
    """The height up to which the newest orphaned credit may still be mined again; 0 when there is none."""
    return max(
        (
            each.orphaning.scanned_height + policy.expiry_confirmations
            for each in money.orphaned
            if each.orphaning is not None
        ),
        default=0,
    )
