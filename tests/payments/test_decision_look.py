"""When a request is looked at again: by height where a height is waited for, by time where chain time is."""

import dataclasses
from datetime import timedelta, timezone
from typing import Any

import pytest

from reconsup.payments.decision import AT_ONCE, WHEN_TOUCHED, Decision, Facts, Look, Policy, Tag, decide
from reconsup.payments.request import PaymentRequest, Status
from reconsup.payments.settlement import Settlement
from tests.payments.make import AUDITED, BEFORE, OVER, POLICY, SCANNED, after_deadline, chain, lost, paid, request

HOUR = 3600.0
UNTIL_DEEP = POLICY.expiry_confirmations * BEFORE.block_seconds
HALVES = dataclasses.replace(POLICY, detected_threshold_bps=5_000)


def look(
    of: PaymentRequest,
    *settlements: Settlement,
    tip: float = -600,
    policy: Policy = POLICY,
    **view: Any,
) -> Look:
    """The next look at a request that stays or becomes what the caller expects."""
    decision = decide(of, Facts(settlements, audited_time=AUDITED), chain(tip, **view), policy)
    assert isinstance(decision, Decision)
    return decision.look


@pytest.mark.parametrize(
    ("before", "settlements", "tip"),
    [
        pytest.param(Status.PENDING, (paid(100, 3),), -600, id="just confirmed"),
        pytest.param(Status.CONFIRMED, (paid(100, 3),), -600, id="long confirmed"),
        pytest.param(Status.PENDING, (), 133, id="just expired"),
        pytest.param(Status.EXPIRED, (paid(100, 3, at=1),), 133, id="long expired"),
        pytest.param(Status.FAILED, (), 133, id="failed"),
    ],
)
def test_what_is_over_costs_nothing_until_touched(
    before: Status, settlements: tuple[Settlement, ...], tip: float
) -> None:
    """Seen to fail with the request's former status asked instead of the new one."""
    assert look(request(before), *settlements, tip=tip) == WHEN_TOUCHED


@pytest.mark.parametrize(("depth", "due"), [(1, SCANNED + 2), (2, SCANNED + 1)])
@pytest.mark.parametrize("admitted", [True, False])
@pytest.mark.parametrize("tip", [-600, 133])
def test_money_that_waits_for_depth_waits_for_a_height(depth: int, due: int, admitted: bool, tip: float) -> None:
    """The time beside the height is when that height is expected, and a minute."""
    waiting = request(admitted=admitted)

    assert look(waiting, paid(100, depth), tip=tip) == Look(seconds=(due - SCANNED) * 12.0 + 60, height=due)


def test_the_height_is_that_of_the_instalment_that_makes_it_enough() -> None:
    """Seen to fail with the last instalment's height: what comes on top must not hold a confirmation."""
    enough = paid(40, 9), paid(60, 2, ref="0xa2"), paid(1, 1, ref="0xa3")

    assert look(request(), *enough).height == SCANNED + 1


@pytest.mark.parametrize("tag", ["safe", "finalized"])
def test_under_a_tag_the_due_height_is_the_money_s_own(tag: Tag) -> None:
    """It is compared with the tag's height: 20 blocks below the money, they are awaited for 240 s and a minute."""
    policy = dataclasses.replace(POLICY, confirmations=tag)
    waits = look(request(), paid(100, 9), policy=policy, **{f"{tag}_height": SCANNED - 28})

    assert waits == Look(seconds=20 * 12.0 + 60, height=SCANNED - 8)


def test_under_a_tag_that_the_node_does_not_know_the_net_is_six_hours() -> None:
    policy = dataclasses.replace(POLICY, confirmations="safe")
    waits = look(request(), paid(100, 9), policy=policy, block_seconds=60.0)

    assert waits == Look(seconds=6 * HOUR, height=SCANNED - 8)


def test_before_the_deadline_it_waits_until_the_block_after_it_is_deep() -> None:
    assert look(request()) == Look(seconds=600 + UNTIL_DEEP)
    assert look(request(), paid(99, 1)) == Look(seconds=600 + UNTIL_DEEP)
    assert look(request(Status.REORGED), lost(100)) == Look(seconds=600 + UNTIL_DEEP)


def test_money_that_is_only_enough_to_be_told_of_waits_for_no_depth() -> None:
    """Seen to fail with the detected threshold there: a height that was reached already made it due for ever."""
    assert look(request(Status.DETECTED), paid(60, 9), policy=HALVES) == Look(seconds=600 + UNTIL_DEEP)


def test_grace_is_waited_for_too() -> None:
    policy = dataclasses.replace(POLICY, expiry_grace_seconds=50)

    assert look(request(), policy=policy) == Look(seconds=650 + UNTIL_DEEP)


def test_the_age_of_the_tip_is_part_of_the_wait() -> None:
    """Seen to fail without it: a tip ten hours old put the look of a request just past its end an hour away."""
    assert look(request(), tip_age_seconds=100.0) == Look(seconds=500 + UNTIL_DEEP)
    assert look(request(), tip=-HOUR, tip_age_seconds=10 * HOUR) == Look(seconds=300)


def test_a_chain_that_is_ahead_of_the_clock_is_waited_for_by_its_own_time() -> None:
    assert look(request(), tip_age_seconds=-5000.0) == Look(seconds=600 + UNTIL_DEEP)


def test_nothing_is_forgotten_for_longer_than_six_hours() -> None:
    assert look(request(), tip=-30 * 24 * HOUR) == Look(seconds=6 * HOUR)


@pytest.mark.parametrize(("tip_age", "seconds"), [(200.0, 100.0), (600.0, 300.0), (90_000.0, 300.0)])
def test_while_the_tip_stands_still_looks_back_off_up_to_five_minutes(tip_age: float, seconds: float) -> None:
    """Seen to fail without the standstill: the row was looked at every few milliseconds."""
    at_the_end = look(request(), tip=0, block_seconds=0.0, tip_age_seconds=tip_age)

    assert at_the_end == Look(seconds=seconds)


def test_a_fresh_tip_is_never_looked_at_more_than_once_a_second() -> None:
    assert look(request(), tip=0, block_seconds=0.0) == Look(seconds=1.0)


@pytest.mark.parametrize("tip", [1, 100, 132])
def test_past_the_deadline_it_waits_until_the_tip_itself_is_deep(tip: float) -> None:
    due = SCANNED + POLICY.expiry_confirmations - 1

    assert look(request(), tip=tip) == Look(seconds=(due - SCANNED) * 12.0 + 60, height=due)


def test_past_the_deadline_it_waits_for_what_was_taken_back() -> None:
    """Seen to fail without the return height."""
    taken = lost(100, scanned=SCANNED + 5)

    assert look(request(Status.REORGED), taken, tip=133).height == SCANNED + 17


def test_the_net_under_a_height_grows_while_the_tip_stands_still() -> None:
    assert look(request(), paid(100, 2), tip_age_seconds=90_000.0) == Look(seconds=12.0 + 300, height=SCANNED + 1)


def test_a_single_confirmation_for_expiry_still_waits_for_a_new_block() -> None:
    """Seen to fail without it: the due height was reached already, and the row came back at once, for ever."""
    policy = dataclasses.replace(POLICY, expiry_confirmations=1)

    assert look(request(), tip=133, expiry_time=None, policy=policy).height == SCANNED + 1


def test_a_request_whose_past_is_not_read_looks_at_it_again_in_five_minutes_and_backs_off_with_its_age() -> None:
    """Seen to look every five minutes for ever: a million old requests would cost 3,300 looks a second."""
    old, ancient = after_deadline(-10_600), after_deadline(-(10**7))

    assert look(request(admitted=False), tip=-600) == Look(seconds=300)
    assert look(request(admitted=False, created_at=old), tip=-600) == Look(seconds=1000)
    assert look(request(admitted=False, created_at=ancient), tip=-600) == Look(seconds=6 * 3600)


@pytest.mark.parametrize(
    ("before", "settlements", "after"),
    [
        pytest.param(Status.CONFIRMED, (paid(60, 9), lost(40)), Status.REORGED, id="reorged, and detected next"),
        pytest.param(Status.PENDING, (paid(60, 9),), Status.DETECTED, id="detected, and expired next"),
        pytest.param(Status.CONFIRMED, (lost(100),), Status.REORGED, id="reorged, and expired next"),
    ],
)
def test_where_the_same_facts_lead_further_it_is_looked_at_at_once(
    before: Status, settlements: tuple[Settlement, ...], after: Status
) -> None:
    """Seen to fail without it: the second step waited up to six hours for the barrier of the first."""
    decision = decide(request(before), Facts(settlements, audited_time=AUDITED), OVER, HALVES)

    assert isinstance(decision, Decision)
    assert (decision.status, decision.look) == (after, AT_ONCE)


def test_the_clock_decides_no_status() -> None:
    """Only when to look: the same chain, seen an hour after its tip or at once, leads to the same status."""
    for view in (BEFORE, OVER):
        for before in Status:
            facts = Facts((paid(60, 9), lost(40)), audited_time=AUDITED)
            fresh, old = (
                decide(request(before), facts, dataclasses.replace(view, tip_age_seconds=age), POLICY)
                for age in (0.0, 3600.0)
            )
            assert isinstance(fresh, Decision)
            assert isinstance(old, Decision)
            assert (fresh.status, fresh.reason) == (old.status, old.reason)


def test_times_are_compared_in_any_zone() -> None:
    """The database may answer in its own zone; `after_deadline` is UTC."""
    tokyo = timezone(timedelta(hours=9))
    in_time = dataclasses.replace(paid(100, 9), first_block_time=after_deadline(0).astimezone(tokyo))
    too_late = dataclasses.replace(paid(100, 9), first_block_time=after_deadline(1).astimezone(tokyo))

    assert look(request(), in_time) == WHEN_TOUCHED
    assert look(request(), too_late) != WHEN_TOUCHED
