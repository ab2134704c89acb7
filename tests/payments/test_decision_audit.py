"""What the balance audit has to do with a decision: no native request expires without it."""

import dataclasses
from typing import Any

import pytest

from reconsup.payments.decision import AUDIT_SECONDS, Counted, Facts, Look, decide
from reconsup.payments.request import RowError, Status
from tests.payments.make import AUDITED, BEFORE, OVER, POLICY, after_deadline, chain, decided, paid, request

PENDING, DETECTED, REORGED = Status.PENDING, Status.DETECTED, Status.REORGED


@pytest.mark.parametrize("status", [PENDING, DETECTED, REORGED])
def test_a_native_request_does_not_expire_before_its_balance_was_compared_behind_its_end(status: Status) -> None:
    """Seen to fail (expired) with `<` for `<=`, and without the question."""
    for audited_time in (None, after_deadline(-60), after_deadline(0)):
        decision = decided(status, view=OVER, audited_time=audited_time)
        assert (decision.status, decision.look) == (status, Look(seconds=AUDIT_SECONDS))
    assert decided(status, view=OVER, audited_time=after_deadline(1)).status == Status.EXPIRED


def test_grace_is_part_of_the_end_that_the_audit_must_be_behind() -> None:
    policy = dataclasses.replace(POLICY, expiry_grace_seconds=100.0)
    over = chain(tip=600)

    assert decided(PENDING, view=over, policy=policy, audited_time=after_deadline(100)).status == PENDING
    assert decided(PENDING, view=over, policy=policy, audited_time=after_deadline(101)).status == Status.EXPIRED


def test_a_token_request_and_one_whose_network_has_no_audit_wait_for_none() -> None:
    token = request(asset="USDT", token_standard="ERC20", token_contract="0x" + "70" * 20)
    off = dataclasses.replace(POLICY, audits_balances=False)

    assert decided(token, view=OVER, audited_time=None).status == Status.EXPIRED
    assert decided(PENDING, view=OVER, policy=off, audited_time=None, unexplained_minor=1).status == Status.EXPIRED


@pytest.mark.parametrize("unexplained_minor", [1, -1])
def test_what_cannot_be_explained_is_an_error_only_where_the_request_would_expire(unexplained_minor: int) -> None:
    """Money seen in the usual way still confirms it."""
    known: dict[str, Any] = {"audited_time": AUDITED, "unexplained_minor": unexplained_minor}

    assert decide(request(), Facts(**known), OVER, POLICY) == RowError.UNEXPLAINED_BALANCE
    assert decide(request(), Facts((paid(60, 3),), **known), OVER, POLICY) == RowError.UNEXPLAINED_BALANCE
    assert decided(PENDING, view=BEFORE, **known).status == PENDING
    assert decided(PENDING, paid(100, 3), view=OVER, **known).status == Status.CONFIRMED
    assert decided(Status.EXPIRED, view=OVER, **known).status == Status.EXPIRED


def test_a_difference_mined_again_in_another_block_is_the_same_payment() -> None:
    """What an expiry counted is not told as late when a reorg puts it into another block."""
    first, again = (paid(60, 9, ref=f"{block}:delta") for block in ("0xb1", "0xb2"))
    assert first.transaction == again.transaction != paid(61, 9, ref="0xb1:delta").transaction
    assert paid(60, 9, ref="0xa1:trace:0.1").transaction == "0xa1"

    assert decided(Status.EXPIRED, again, counted=Counted({first.transaction: 60})).late == ()
