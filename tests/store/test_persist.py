"""Persist: what a decision writes, in the row and in its history."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from reconsup.payments.request import Reason, Status
from reconsup.payments.settlement import Orphaning, Settlement
from reconsup.store.persist import Failure
from tests.support.ledgers import (
    MONEY_MAX,
    OWNER,
    Chain,
    Emptied,
    born,
    claimed,
    decided,
    history_of,
    now,
    persisted,
    request_of,
    store,
)
from tests.support.stepped import Stepped

pytestmark = pytest.mark.service

CONFIRMED = decided(Status.CONFIRMED, Reason.CONFIRMED)
UNCHANGED = decided(Status.PENDING, seconds=60.0)


def settlement(ref: str = "0xref", amount_minor: int = 1, orphaning: Orphaning | None = None) -> Settlement:
    return Settlement(ref, amount_minor, 100, "0xblock", now(), orphaning)


# what is written


def test_a_decision_is_written_with_its_history_and_the_lease_comes_back(emptied: Emptied) -> None:
    id_ = emptied.insert(expected_amount_minor=MONEY_MAX, reconcile_failures=2, reconcile_error="failed: once")
    evidence = (settlement("0xaa:7", MONEY_MAX - 1), settlement("0xbb", 1))
    decision = decided(Status.CONFIRMED, Reason.CONFIRMED, amount_minor=MONEY_MAX, confirmations=3, evidence=evidence)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            done = await persisted(worker, batch, decision)
            assert done.written == {id_}
            assert done.refused == Counter()
            assert done.history == {id_: ((Reason.CONFIRMED, None),)}

    asyncio.run(story())
    row = request_of(emptied, id_)
    assert (row["status"], row["reconcile_lease_owner"], row["reconcile_lease_until"]) == ("confirmed", None, None)
    assert (row["next_reconcile_at"], row["reconcile_due_height"]) == (None, None)
    assert (row["reconcile_failures"], row["reconcile_error"]) == (0, None)
    assert row["updated_at"] > row["created_at"]
    (entry,) = history_of(emptied, id_)
    assert (entry["from_status"], entry["to_status"], entry["reason"]) == ("pending", "confirmed", "payment_confirmed")
    assert (entry["amount_minor"], entry["expected_amount_minor"]) == (MONEY_MAX, MONEY_MAX)
    assert (entry["confirmations"], entry["evidence_ref"], entry["proof"]) == (3, None, None)
    assert (entry["worker_id"], entry["lease_owner"], entry["lease_epoch"]) == ("host-0", OWNER, 1)
    assert entry["evidence"] == [
        {"ref": ref, "amount_minor": amount, "height": 100, "block_hash": "0xblock", "canonical": True}
        for ref, amount in (("0xaa:7", str(MONEY_MAX - 1)), ("0xbb", "1"))
    ]


def test_a_look_at_which_nothing_happens_leaves_no_history(emptied: Emptied) -> None:
    id_ = emptied.insert()

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain(first=100))
            before = request_of(emptied, id_)
            batch = await claimed(worker)
            assert (await persisted(worker, batch, decided(Status.PENDING, seconds=60.0, height=200))).history == {
                id_: ()
            }
            row = request_of(emptied, id_)
            assert row["updated_at"] == before["updated_at"]
            assert row["reconcile_due_height"] == 200
            assert timedelta(seconds=50) < row["next_reconcile_at"] - now() <= timedelta(seconds=61)

    asyncio.run(story())
    assert history_of(emptied, id_) == []


def test_a_reorg_is_told_with_its_proof(emptied: Emptied) -> None:
    id_ = emptied.insert(status="confirmed")
    proof = Orphaning(100, "0xblock", "0xnew", 105)
    decision = decided(
        Status.REORGED, Reason.REORGED, seconds=1.0, evidence=(settlement(orphaning=proof),), proof=proof
    )

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            await persisted(worker, await claimed(worker), decision)

    asyncio.run(story())
    (entry,) = history_of(emptied, id_)
    assert entry["proof"] == {"height": 100, "block_hash": "0xblock", "new_hash": "0xnew", "scanned_height": 105}
    assert entry["evidence"][0]["canonical"] is False


def test_a_late_payment_is_told_once(emptied: Emptied) -> None:
    """Seen to fail (StoreRejected) without the ON CONFLICT, (told twice) without the unique index's condition."""
    id_ = emptied.insert(status="expired")
    first, second = settlement("0xlate", MONEY_MAX), settlement("0xlater", 5)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            look = decided(Status.EXPIRED, late=(first,))
            assert (await persisted(worker, await claimed(worker), look)).history == {id_: ((Reason.LATE, "0xlate"),)}
            emptied.execute("UPDATE app.payment_requests SET next_reconcile_at = now()")
            look = decided(Status.EXPIRED, late=(first, second))
            assert (await persisted(worker, await claimed(worker), look)).history == {id_: ((Reason.LATE, "0xlater"),)}

    asyncio.run(story())
    assert [(e["evidence_ref"], e["amount_minor"], e["to_status"]) for e in history_of(emptied, id_)] == [
        ("0xlate", MONEY_MAX, "expired"),
        ("0xlater", 5, "expired"),
    ]


def test_a_reorg_after_finality_is_told_once_for_each_proof(emptied: Emptied) -> None:
    """Seen to fail (told at every look) without the NOT EXISTS."""
    id_ = emptied.insert(status="confirmed")

    def look(new_hash: str) -> Any:
        proof = Orphaning(100, "0xold", new_hash, 105)
        return decided(Status.CONFIRMED, Reason.REORGED_AFTER_FINALITY, proof=proof)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            for new_hash in ("0xnew", "0xnew", "0xnewer"):
                emptied.execute("UPDATE app.payment_requests SET next_reconcile_at = now()")
                assert len((await persisted(worker, await claimed(worker), look(new_hash))).written) == 1

    asyncio.run(story())
    assert [entry["proof"]["new_hash"] for entry in history_of(emptied, id_)] == ["0xnew", "0xnewer"]


def test_an_expiry_and_its_late_payments_are_told_together_in_order(emptied: Emptied) -> None:
    id_ = emptied.insert()
    decision = decided(Status.EXPIRED, Reason.EXPIRED, late=(settlement("0xb"), settlement("0xa")))

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            await persisted(worker, await claimed(worker), decision)

    asyncio.run(story())
    assert [(entry["reason"], entry["evidence_ref"], entry["from_status"]) for entry in history_of(emptied, id_)] == [
        ("payment_expired", None, "pending"),
        ("payment_late", "0xb", "expired"),
        ("payment_late", "0xa", "expired"),
    ]


def test_a_big_batch_is_written_whole(emptied: Emptied) -> None:
    ids = emptied.insert_many(300)

    async def story() -> None:
        async with Stepped(emptied.url) as worker:
            await born(worker, Chain())
            batch = await claimed(worker, limit=1000)
            worker.sent.clear()
            done = await persisted(worker, batch, decided(Status.EXPIRED, Reason.EXPIRED, late=(settlement(),)))
            assert done.written == set(ids)
            assert {len(entries) for entries in done.history.values()} == {2}
            assert len(worker.sent) == 2  # rows and history, whatever the batch

    asyncio.run(story())
    assert emptied.fetch("SELECT count(*) FROM app.payment_request_transitions") == [(600,)]


# rows that fail


def test_a_failure_is_recorded_and_the_next_look_comes_ever_later(emptied: Emptied) -> None:
    """Seen to fail with a constant delay, and without the upper bound."""
    id_ = emptied.insert()
    delays = []

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            for failures in range(11):
                emptied.execute("UPDATE app.payment_requests SET next_reconcile_at = now()")
                batch = await claimed(worker)
                assert batch.claims[0].failures == failures
                await persisted(worker, batch, Failure("failed: so it goes"))
                row = request_of(emptied, id_)
                assert (row["reconcile_error"], row["reconcile_failures"]) == ("failed: so it goes", failures + 1)
                assert (row["status"], row["reconcile_lease_owner"]) == ("pending", None)
                delays.append(round((row["next_reconcile_at"] - now()).total_seconds() / 15))
            emptied.execute("UPDATE app.payment_requests SET next_reconcile_at = now()")
            await persisted(worker, await claimed(worker), UNCHANGED)
            row = request_of(emptied, id_)
            assert (row["reconcile_error"], row["reconcile_failures"]) == (None, 0)

    asyncio.run(story())
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 240, 240, 240]


def test_a_failure_is_told_when_it_is_news(emptied: Emptied) -> None:
    """Seen to fail (told at every look, for ever) when the error before is not asked for."""
    id_ = emptied.insert()

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            for outcome in (Failure("a"), Failure("a"), Failure("b"), UNCHANGED, Failure("b")):
                emptied.execute("UPDATE app.payment_requests SET next_reconcile_at = now()")
                await persisted(worker, await claimed(worker), outcome)

    asyncio.run(story())
    told = history_of(emptied, id_)
    assert [each["evidence"] for each in told] == [[{"error": "a"}], [{"error": "b"}], [{"error": "b"}]]
    assert {(each["reason"], each["from_status"], each["to_status"]) for each in told} == {
        ("row_failed", "pending", "pending")
    }
    assert [each["lease_epoch"] for each in told] == [1, 3, 5]


def test_one_failing_row_does_not_hold_back_the_others(emptied: Emptied) -> None:
    poison, healthy = emptied.insert_many(2)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            done = await persisted(worker, batch, {poison: Failure("failed: x"), healthy: CONFIRMED})
            assert done.written == {poison, healthy}

    asyncio.run(story())
    assert request_of(emptied, healthy)["status"] == "confirmed"
    assert request_of(emptied, poison)["status"] == "pending"


@pytest.mark.parametrize(
    ("error", "is_admitted"),
    [
        ("ambiguous_address", False),
        ("chain_id_mismatch", False),
        ("token_contract_missing", False),
        ("token_contract_invalid", False),
        ("address_invalid", False),
        ("amount_negative", True),
        ("failed: x", True),
    ],
)
def test_a_row_whose_money_nobody_could_place_is_admitted_anew(emptied: Emptied, error: str, is_admitted: bool) -> None:
    """What came meanwhile was settled for nobody. Seen to fail (that money is lost) when the admission stays."""
    id_ = emptied.insert(reconcile_admitted_height=77)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            await persisted(worker, await claimed(worker), Failure(error))
            assert request_of(emptied, id_)["reconcile_admitted_height"] == (77 if is_admitted else None)

    asyncio.run(story())
