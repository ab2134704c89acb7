"""The laws that no decision breaks, tried on a few thousand worlds made up at random (always the same ones).

Each law is written from the contract, without the helpers of the code it judges.
"""

import dataclasses
from collections.abc import Sequence
from datetime import timedelta
from fractions import Fraction
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from reconsup.payments.decision import (
    AT_ONCE,
    WHEN_TOUCHED,
    ChainView,
    Counted,
    Decision,
    Facts,
    Policy,
    Tag,
    decide,
)
from reconsup.payments.request import TRANSITIONS, PaymentRequest, Reason, Status
from reconsup.payments.settlement import Settlement
from tests.payments.make import AUDITED, MAX_AMOUNT, SCANNED, after_deadline, chain, lost, paid, request

OPEN = (Status.PENDING, Status.DETECTED, Status.REORGED)
# Around every bound: amounts about the expected 100, times about the deadline, depths about the policy's.
AMOUNTS = (1, 49, 50, 51, 99, 100, 101, MAX_AMOUNT)
TIMES = (-60, -1, 0, 1, 30, 31)
TRANSACTIONS = ("0xa1", "0xa2", "0xa3")
MONEY = [
    *(
        paid(amount, depth, at=at, ref=ref)
        for amount, depth, at, ref in product(AMOUNTS, (1, 2, 3, 5, 6, 10, 13), TIMES, TRANSACTIONS)
    ),
    *(
        lost(amount, depth, at=at, ref=ref, scanned=scanned)
        for amount, depth, at, ref, scanned in product(
            AMOUNTS, (1, 5, 6, 12), TIMES, TRANSACTIONS, (SCANNED - 13, SCANNED - 12, SCANNED - 11, SCANNED + 3)
        )
    ),
]
COUNTED = (None, *range(16))  # no entry, or which of the settlements (bits) it counted
REQUESTS = [
    request(status, expected, admitted=admitted)
    for status, expected, admitted in product(Status, (100, 100, 200, None, 0, MAX_AMOUNT), (True, True, True, False))
]
VIEWS = [
    chain(
        tip,
        expiry_time=None if deep is None else after_deadline(min(tip, deep)),
        tip_age_seconds=age,
        safe_height=safe,
        finalized_height=finalized,
    )
    for tip, deep, age, safe, finalized in product(
        (-9_000, 0, 1, 31, 200), (None, 0, 1, 30, 31, 100), (-5.0, 900.0), (None, SCANNED - 4), (None, SCANNED - 9)
    )
]
DEPTHS: tuple[int | Tag, ...] = (1, 3, 3, 6, "safe", "finalized")
POLICIES = [
    Policy(
        confirmations=confirmations,
        finality_confirmations=finality,
        detected_threshold_bps=detected,
        confirmed_threshold_bps=confirmed,
        expiry_grace_seconds=grace,
    )
    for confirmations, finality, (detected, confirmed), grace in product(
        DEPTHS, (6, 12), ((10_000, 10_000), (5_000, 10_000), (1, 5_000)), (0.0, 30.0)
    )
]


def known_facts(settlements: list[Settlement], age_seconds: float | None, counted: int | None) -> Facts:
    """Each settlement under a log index of its own; those that the status was not given for were gone by then."""
    found = tuple(
        dataclasses.replace(each, evidence_ref=f"{each.evidence_ref}:{index}") for index, each in enumerate(settlements)
    )
    then = None if counted is None else Counted(_amounts(found, counted), _gone(found, counted))
    return Facts(settlements=found, confirmed_age_seconds=age_seconds, counted=then, audited_time=AUDITED)


def _amounts(settlements: Sequence[Settlement], counted: int) -> dict[str, int]:
    amounts: dict[str, int] = {}
    for index, each in enumerate(settlements):
        if counted >> index & 1:
            amounts[each.transaction] = amounts.get(each.transaction, 0) + each.amount_minor
    return amounts


def _gone(settlements: Sequence[Settlement], counted: int) -> frozenset[tuple[str, str]]:
    return frozenset(
        (each.evidence_ref, each.block_hash)
        for index, each in enumerate(settlements)
        if each.orphaning is not None and not counted >> index & 1
    )


facts = st.builds(
    known_facts,
    st.lists(st.sampled_from(MONEY), max_size=4),
    st.sampled_from([None, 86_400.0, 86_401.0]),
    st.sampled_from(COUNTED),
)


@dataclasses.dataclass(frozen=True)
class World:
    """What a decision looks at, and the sums that a law needs, counted afresh."""

    request: PaymentRequest
    facts: Facts
    view: ChainView
    policy: Policy

    def decide(self) -> Decision:
        decision = decide(self.request, self.facts, self.view, self.policy)
        assert isinstance(decision, Decision)
        return decision

    def is_in_time(self, settlement: Settlement) -> bool:
        return settlement.first_block_time <= self.request.expires_at + timedelta(
            seconds=self.policy.expiry_grace_seconds
        )

    def canonical(self) -> list[Settlement]:
        return [each for each in self.facts.settlements if each.orphaning is None and self.is_in_time(each)]

    def orphaned(self) -> list[Settlement]:
        return [each for each in self.facts.settlements if each.orphaning is not None and self.is_in_time(each)]

    def lost(self) -> list[Settlement]:
        """What was taken back of the money that the status was given for."""
        counted = self.facts.counted
        if counted is None:
            return self.orphaned()
        there = {each.transaction: 0 for each in self.facts.settlements}
        for each in self.canonical():
            there[each.transaction] += each.amount_minor
        return [
            each
            for each in self.orphaned()
            if (each.evidence_ref, each.block_hash) not in counted.gone
            and each.transaction in counted.amounts
            and counted.amounts[each.transaction] > there[each.transaction]
        ]

    def deep(self) -> list[Settlement]:
        by_tag = {"safe": self.view.safe_height, "finalized": self.view.finalized_height}
        depth = self.policy.confirmations
        top = self.view.scanned_height + 1 - depth if isinstance(depth, int) else by_tag[depth]
        return [each for each in self.canonical() if top is not None and each.height <= top]

    def reaches(self, settlements: Sequence[Settlement], threshold_bps: int) -> bool:
        sum_minor = sum(each.amount_minor for each in settlements)
        expected = self.request.expected_amount_minor or 0
        return sum_minor > 0 and sum_minor >= Fraction(expected * threshold_bps, 10_000)


worlds = st.builds(World, st.sampled_from(REQUESTS), facts, st.sampled_from(VIEWS), st.sampled_from(POLICIES))


def every_move_is_in_the_table(world: World, decision: Decision) -> None:
    before, after = world.request.status, decision.status
    if before != after:
        assert decision.reason in TRANSITIONS[before, after]
    else:
        notes = {None, Reason.REORGED_AFTER_FINALITY} if before == Status.CONFIRMED else {None}
        assert decision.reason in notes


def confirmed_only_with_enough_deep_money_in_time(world: World, decision: Decision) -> None:
    enough = world.reaches(world.deep(), world.policy.confirmed_threshold_bps)
    if decision.reason in (Reason.CONFIRMED, Reason.RECONFIRMED):
        assert enough
    if world.request.status in OPEN and enough:
        assert decision.status == Status.CONFIRMED


def detected_only_with_enough_money_in_time(world: World, decision: Decision) -> None:
    if decision.reason == Reason.DETECTED:
        assert world.reaches(world.canonical(), world.policy.detected_threshold_bps)


def reorged_only_with_a_proof_that_took_too_much(world: World, decision: Decision) -> None:
    if decision.reason not in (Reason.REORGED, Reason.REORGED_AFTER_FINALITY):
        return
    policy = world.policy
    was_detected = world.request.status == Status.DETECTED
    assert not world.reaches(
        world.canonical(), policy.detected_threshold_bps if was_detected else policy.confirmed_threshold_bps
    )
    assert decision.proof is not None
    assert decision.proof.block_hash in {each.block_hash for each in world.lost()}
    if decision.reason == Reason.REORGED_AFTER_FINALITY:
        assert (world.facts.confirmed_age_seconds or 0) > policy.observe_window_seconds


def a_loss_that_leaves_too_little_is_told(world: World, decision: Decision) -> None:
    policy, status = world.policy, world.request.status
    if status not in (Status.DETECTED, Status.CONFIRMED) or not world.lost():
        return
    threshold_bps = policy.detected_threshold_bps if status == Status.DETECTED else policy.confirmed_threshold_bps
    if not world.reaches(world.canonical(), threshold_bps):
        assert decision.reason in (Reason.REORGED, Reason.REORGED_AFTER_FINALITY)


def expired_only_behind_the_barrier(world: World, decision: Decision) -> None:
    if decision.status != Status.EXPIRED or world.request.status == Status.EXPIRED:
        return
    deadline = world.request.expires_at + timedelta(seconds=world.policy.expiry_grace_seconds)
    assert world.request.admitted
    assert world.view.expiry_time is not None
    assert world.view.expiry_time > deadline
    assert not world.reaches(world.canonical(), world.policy.confirmed_threshold_bps)
    back = [each.orphaning.scanned_height for each in world.orphaned() if each.orphaning is not None]
    assert all(world.view.scanned_height >= height + world.policy.expiry_confirmations for height in back)


def late_money_never_counts(world: World, decision: Decision) -> None:
    in_time = tuple(each for each in world.facts.settlements if world.is_in_time(each))
    without = dataclasses.replace(world, facts=dataclasses.replace(world.facts, settlements=in_time)).decide()
    told = [each for each in decision.late if each not in in_time]

    assert dataclasses.replace(decision, late=()) == dataclasses.replace(without, late=())
    assert all(each.orphaning is None for each in decision.late)
    is_known = world.request.status != Status.CONFIRMED or world.facts.counted is not None
    if decision.status == Status.EXPIRED or (decision.status == Status.CONFIRMED and is_known):
        assert set(told) == {each for each in world.facts.settlements if not each.orphaning} - set(in_time)
    else:
        assert decision.late == ()


def deciding_again_comes_to_rest(world: World, decision: Decision) -> None:
    """Each step leads further at once, never back, and the last one waits."""
    seen = [world.request.status]
    while decision.status != world.request.status:
        assert decision.status not in seen
        seen.append(decision.status)
        world = dataclasses.replace(world, request=dataclasses.replace(world.request, status=decision.status))
        former, decision = decision, world.decide()
        assert (former.look == AT_ONCE) == (decision.status != world.request.status)
    assert decision.look != AT_ONCE
    assert world.decide() == decision


def what_is_open_is_looked_at_again_and_what_is_over_is_not(world: World, decision: Decision) -> None:
    if decision.status not in OPEN:
        assert decision.look == WHEN_TOUCHED
        return
    assert decision.look.seconds is not None
    assert 0 <= decision.look.seconds <= 6 * 3600
    assert decision.look == AT_ONCE or decision.look.seconds >= 1
    by_tag = {"safe": world.view.safe_height, "finalized": world.view.finalized_height}
    depth = world.policy.confirmations
    reached = world.view.scanned_height if isinstance(depth, int) else by_tag[depth] or 0
    assert decision.look.height is None or decision.look.height > reached


def the_order_of_the_rows_means_nothing(world: World, decision: Decision) -> None:
    backwards = dataclasses.replace(world.facts, settlements=world.facts.settlements[::-1])
    other = dataclasses.replace(world, facts=backwards).decide()
    unordered = {"evidence": (), "late": ()}

    assert dataclasses.replace(other, **unordered) == dataclasses.replace(decision, **unordered)  # type: ignore[arg-type]  # fields by name
    assert set(other.evidence) == set(decision.evidence)
    assert set(other.late) == set(decision.late)


LAWS = (
    every_move_is_in_the_table,
    confirmed_only_with_enough_deep_money_in_time,
    detected_only_with_enough_money_in_time,
    reorged_only_with_a_proof_that_took_too_much,
    a_loss_that_leaves_too_little_is_told,
    expired_only_behind_the_barrier,
    late_money_never_counts,
    deciding_again_comes_to_rest,
    what_is_open_is_looked_at_again_and_what_is_over_is_not,
    the_order_of_the_rows_means_nothing,
)


@settings(max_examples=2500, derandomize=True, deadline=None, database=None)
@given(worlds)
def test_no_decision_breaks_a_law(world: World) -> None:
    """Seen to fail with each guard of the decision taken out, by the law that is named after it."""
    decision = world.decide()
    for law in LAWS:
        law(world, decision)
