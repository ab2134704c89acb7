"""Persist: only who still holds the lease, on a row that nobody moved or touched since, writes a decision."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from reconsup.payments.request import Reason, Status
from reconsup.payments.settlement import Orphaning, Settlement
from reconsup.store import cursor as cursors
from reconsup.store import leases
from reconsup.store.cursor import Tags
from reconsup.store.database import Database
from reconsup.store.leases import Batch
from reconsup.store.persist import Against, Failure, Persisted, persist
from tests.support.ledgers import (
    MONEY_MAX,
    OTHER,
    OWNER,
    Chain,
    Emptied,
    all_of,
    born,
    claimed,
    committed,
    decided,
    ether,
    history_of,
    ids_of,
    now,
    request_of,
    rolled_back,
    store,
    with_epochs,
)
from tests.support.stepped import Stepped, until_blocked, without

pytestmark = pytest.mark.service

CONFIRMED = decided(Status.CONFIRMED, Reason.CONFIRMED)
UNCHANGED = decided(Status.PENDING, seconds=60.0)


def insert(database: Emptied, count: int = 1, **columns: Any) -> list[str]:
    return [database.insert(**columns) for _ in range(count)]


async def persisted(database: Database, batch: Batch, outcomes: Any, due_against: Against = "scanned") -> Persisted:
    if not isinstance(outcomes, dict):
        outcomes = all_of(batch, outcomes)
    return await persist(database, batch, outcomes, worker_id="host-0", due_against=due_against)


def is_due_and_free(row: dict[str, Any]) -> bool:
    return row["reconcile_lease_owner"] is None and row["next_reconcile_at"] <= now() + timedelta(seconds=1)


def settlement(ref: str = "0xref", amount_minor: int = 1, orphaning: Orphaning | None = None) -> Settlement:
    return Settlement(ref, amount_minor, 100, "0xblock", now(), orphaning)


# what is written


def test_a_decision_is_written_with_its_history_and_the_lease_comes_back(emptied: Emptied) -> None:
    (id_,) = insert(emptied, expected_amount_minor=MONEY_MAX, reconcile_failures=2, reconcile_error="failed: once")
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
    (id_,) = insert(emptied)

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
    (id_,) = insert(emptied, status="confirmed")
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
    (id_,) = insert(emptied, status="expired")
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
    (id_,) = insert(emptied, status="confirmed")

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
    (id_,) = insert(emptied)
    decision = decided(Status.EXPIRED, Reason.EXPIRED, late=(settlement("0xb"), settlement("0xa")))

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            await persisted(worker, await claimed(worker), decision)

    asyncio.run(story())
    assert [(entry["reason"], entry["evidence_ref"], entry["from_status"]) for entry in history_of(emptied, id_)] == [
        ("payment_expired", None, "pending"),
        ("payment_late", "0xb", "pending"),
        ("payment_late", "0xa", "pending"),
    ]


def test_a_big_batch_is_written_whole(emptied: Emptied) -> None:
    ids = insert(emptied, 300)

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
    (id_,) = insert(emptied)
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
    assert history_of(emptied, id_) == []


def test_one_failing_row_does_not_hold_back_the_others(emptied: Emptied) -> None:
    poison, healthy = insert(emptied, 2)

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
        ("amount_negative", True),
        ("failed: x", True),
    ],
)
def test_a_row_whose_money_nobody_could_place_is_admitted_anew(emptied: Emptied, error: str, is_admitted: bool) -> None:
    """What came meanwhile was settled for nobody. Seen to fail (that money is lost) when the admission stays."""
    (id_,) = insert(emptied, reconcile_admitted_height=77)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            await persisted(worker, await claimed(worker), Failure(error))
            assert request_of(emptied, id_)["reconcile_admitted_height"] == (77 if is_admitted else None)

    asyncio.run(story())


# the fence


def test_who_lost_the_lease_to_another_writes_nothing(emptied: Emptied) -> None:
    """Seen to fail without the owner and the epoch in the UPDATE (the status alone does not help)."""
    (id_,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            stale = await claimed(worker, owner=OWNER)
            emptied.execute("UPDATE app.payment_requests SET reconcile_lease_until = now(), next_reconcile_at = now()")
            fresh = await claimed(worker, owner=OTHER)
            before = request_of(emptied, id_)
            done = await persisted(worker, stale, CONFIRMED)
            assert (done.written, done.refused, done.history) == (frozenset(), Counter(lease_lost=1), {})
            assert request_of(emptied, id_) == before
            assert (await persisted(worker, fresh, UNCHANGED)).written == {id_}

    asyncio.run(story())
    assert history_of(emptied, id_) == []


@pytest.mark.parametrize(
    "change",
    ["reconcile_lease_owner = 'host-1#00000000000000bb'", "reconcile_lease_epoch = reconcile_lease_epoch + 1"],
)
def test_owner_and_epoch_count_each(emptied: Emptied, change: str) -> None:
    """Seen to fail for each when it is taken out of the fence."""
    (id_,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            emptied.execute(f"UPDATE app.payment_requests SET {change}")
            before = request_of(emptied, id_)
            done = await persisted(worker, batch, CONFIRMED)
            assert (done.written, done.refused) == (frozenset(), Counter(lease_lost=1))
            assert request_of(emptied, id_) == before

    asyncio.run(story())
    assert history_of(emptied, id_) == []


def test_a_zombie_writes_nothing_when_its_successor_has_released(emptied: Emptied) -> None:
    """The row is free and its status is the one the zombie saw.

    Seen to fail with the well-known "or the lease is null" in the fence.
    """
    (id_,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            zombie = await claimed(worker, owner=OWNER)
            emptied.execute("UPDATE app.payment_requests SET reconcile_lease_until = now(), next_reconcile_at = now()")
            successor = await claimed(worker, owner=OTHER)
            assert (await persisted(worker, successor, UNCHANGED)).written == {id_}
            # Even the due time is what the zombie wrote.
            emptied.execute("UPDATE app.payment_requests SET next_reconcile_at = %s", [zombie.claims[0].due_at])
            before = request_of(emptied, id_)
            assert before["reconcile_lease_owner"] is None
            done = await persisted(worker, zombie, CONFIRMED)
            assert (done.written, done.refused) == (frozenset(), Counter(lease_lost=1))
            assert request_of(emptied, id_) == before

    asyncio.run(story())
    assert history_of(emptied, id_) == []


def test_the_same_owners_earlier_claim_writes_nothing(emptied: Emptied) -> None:
    (id_,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            done = await persisted(worker, with_epochs(batch, -1), CONFIRMED)
            assert (done.written, done.refused) == (frozenset(), Counter(lease_lost=1))
            assert (await persisted(worker, batch, UNCHANGED)).written == {id_}

    asyncio.run(story())


def test_a_status_that_was_moved_by_hand_stays_and_the_row_is_due(emptied: Emptied) -> None:
    """Seen to fail without the status in the fence."""
    (id_,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            emptied.execute("UPDATE app.payment_requests SET status = 'expired'")
            done = await persisted(worker, batch, CONFIRMED)
            assert (done.written, done.refused) == (frozenset(), Counter(status_moved=1))
            row = request_of(emptied, id_)
            assert (row["status"], row["reconcile_lease_epoch"]) == ("expired", 1)
            assert is_due_and_free(row)

    asyncio.run(story())
    assert history_of(emptied, id_) == []


def test_a_row_that_a_commit_touched_is_not_written_but_decided_again(emptied: Emptied) -> None:
    """Seen to fail without `next_reconcile_at = due_at` in the fence."""
    (paid,) = insert(emptied, address_canonical="0xPAID")
    (other,) = insert(emptied)
    chain = Chain()

    async def story() -> None:
        async with store(emptied) as worker, store(emptied) as scanner:
            cursor = await born(scanner, chain)
            batch = await claimed(worker)
            await committed(scanner, cursor, chain.mine(ether("0xpaid", 10, "t"), time=now()))
            done = await persisted(worker, batch, decided(Status.EXPIRED, Reason.EXPIRED))
            assert (done.written, done.refused) == ({other}, Counter(touched=1))
            assert is_due_and_free(request_of(emptied, paid))
            assert ids_of(await claimed(worker)) == [paid]

    asyncio.run(story())
    assert history_of(emptied, paid) == []


def test_a_row_that_a_rollback_touched_is_not_written_but_decided_again(emptied: Emptied) -> None:
    """Seen to fail when the rollback does not touch (the stale confirmation is written)."""
    (paid,) = insert(emptied, address_canonical="0xpaid")
    chain = Chain()

    async def story() -> None:
        async with store(emptied) as worker, store(emptied) as scanner:
            cursor = await born(scanner, chain)
            chain.mine()
            chain.mine(ether("0xpaid", 10, "t"), time=now())
            cursor = (await committed(scanner, cursor, *chain.blocks)).cursor
            batch = await claimed(worker)
            other = chain.branch(100)
            other.mined(2)
            await rolled_back(scanner, cursor, chain.fork_to(other, 100))
            done = await persisted(worker, batch, CONFIRMED)
            assert (done.written, done.refused) == (frozenset(), Counter(touched=1))
            assert is_due_and_free(request_of(emptied, paid))

    asyncio.run(story())
    assert history_of(emptied, paid) == []


@pytest.mark.parametrize("order", ["touch renew persist", "renew touch persist", "touch persist"])
def test_no_order_of_touch_and_renewal_hides_the_touch(emptied: Emptied, order: str) -> None:
    """Seen to fail (the first one) when renewal writes next_reconcile_at and the due time that the fence expects."""
    (id_,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            for step in order.split():
                match step:
                    case "touch":
                        emptied.execute(f"UPDATE app.payment_requests r SET next_reconcile_at = {leases.TOUCHED}")
                    case "renew":
                        batch = await leases.renew(worker, batch, lease_seconds=60)
                        assert ids_of(batch) == [id_]
                    case "persist":
                        done = await persisted(worker, batch, CONFIRMED)
                        assert (done.written, done.refused) == (frozenset(), Counter(touched=1))

    asyncio.run(story())
    assert is_due_and_free(request_of(emptied, id_))


def test_a_touch_after_the_persist_makes_the_row_due_again(emptied: Emptied) -> None:
    (id_,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            assert (await persisted(worker, await claimed(worker), CONFIRMED)).written == {id_}
            assert request_of(emptied, id_)["next_reconcile_at"] is None
            emptied.execute(f"UPDATE app.payment_requests r SET next_reconcile_at = {leases.TOUCHED}")
            assert ids_of(await claimed(worker)) == [id_]

    asyncio.run(story())


def test_a_persist_that_waits_for_a_commit_sees_its_touch(emptied: Emptied) -> None:
    """The statement began before the commit, and reads each row again once it has the lock.

    Seen to fail when the fence is checked only in `locked`, before the lock.
    """
    (paid,) = insert(emptied, address_canonical="0xpaid")
    chain = Chain()

    async def story() -> None:
        async with (
            store(emptied, "worker") as worker,
            Stepped(emptied.url, before="COMMIT", name="scanner") as scanner,
            store(emptied) as helper,
        ):
            cursor = await born(helper, chain)
            batch = await claimed(worker)
            committing = asyncio.create_task(
                committed(scanner, cursor, chain.mine(ether("0xpaid", 10, "t"), time=now()))
            )
            await scanner.reached()
            persisting = asyncio.create_task(persisted(worker, batch, decided(Status.EXPIRED, Reason.EXPIRED)))
            await until_blocked(emptied.url, "worker")
            scanner.go()
            await committing
            done = await persisting
            assert (done.written, done.refused) == (frozenset(), Counter(touched=1))

    asyncio.run(story())
    assert request_of(emptied, paid)["status"] == "pending"
    assert is_due_and_free(request_of(emptied, paid))


def test_a_persist_that_waits_for_a_take_over_is_refused(emptied: Emptied) -> None:
    (id_,) = insert(emptied)

    async def story() -> None:
        async with (
            store(emptied, "zombie") as zombie,
            Stepped(emptied.url, before="COMMIT", in_transaction=True) as taker,
        ):
            await born(zombie, Chain())
            stale = await claimed(zombie, owner=OWNER)
            emptied.execute("UPDATE app.payment_requests SET reconcile_lease_until = now(), next_reconcile_at = now()")
            taking = asyncio.create_task(claimed(taker, owner=OTHER))
            await taker.reached()
            persisting = asyncio.create_task(persisted(zombie, stale, CONFIRMED))
            await until_blocked(emptied.url, "zombie")
            taker.go()
            assert ids_of(await taking) == [id_]
            assert (await persisting).refused == Counter(lease_lost=1)

    asyncio.run(story())
    row = request_of(emptied, id_)
    assert (row["status"], row["reconcile_lease_owner"], row["reconcile_lease_epoch"]) == ("pending", OTHER, 2)


def test_a_claim_skips_a_row_that_is_being_persisted(emptied: Emptied) -> None:
    (id_,) = insert(emptied)

    async def story() -> None:
        async with Stepped(emptied.url, before="COMMIT") as worker, store(emptied) as taker:
            await born(taker, Chain())
            batch = await claimed(worker, owner=OWNER)
            emptied.execute("UPDATE app.payment_requests SET reconcile_lease_until = now()")
            persisting = asyncio.create_task(persisted(worker, batch, CONFIRMED))
            await worker.reached()
            assert ids_of(await claimed(taker, owner=OTHER)) == []
            worker.go()
            assert (await persisting).written == {id_}

    asyncio.run(story())
    assert request_of(emptied, id_)["status"] == "confirmed"


def test_two_persists_of_the_same_rows_in_opposite_order_do_not_deadlock(emptied: Emptied) -> None:
    """Seen to fail (40P01, the statement is sent again) when `locked` does not lock in the order of the ids."""
    ids = insert(emptied, 2)
    url = without(emptied.url, "hashjoin", "mergejoin")  # so that a join goes by the array, in its order

    async def story() -> None:
        async with (
            Stepped(url, name="forwards") as forwards,
            Stepped(url, name="backwards") as backwards,
            store(emptied) as helper,
        ):
            await born(helper, Chain())
            batch = await claimed(helper)
            assert ids_of(batch) == ids
            with emptied.connect(autocommit=False) as holder:
                holder.execute("SELECT 1 FROM app.payment_requests WHERE id = %s FOR UPDATE", [ids[1]])
                reversed_batch = replace(batch, claims=batch.claims[::-1])
                two = asyncio.create_task(persisted(backwards, reversed_batch, UNCHANGED))
                await until_blocked(emptied.url, "backwards")
                one = asyncio.create_task(persisted(forwards, batch, UNCHANGED))
                await until_blocked(emptied.url, "forwards")
            done = [await one, await two]
            assert sum((each.refused for each in done), Counter()) == Counter(lease_lost=2)
            assert frozenset().union(*(each.written for each in done)) == set(ids)
            sent = [
                statement for each in (forwards, backwards) for statement in each.sent if "WITH locked" in statement
            ]
            assert len(sent) == 2

    asyncio.run(story())


# what is handed back


def test_a_row_without_an_outcome_is_handed_back_due(emptied: Emptied) -> None:
    """Seen to fail (it stays leased) when the hand-back takes only the decided rows."""
    known, unknown = insert(emptied, 2)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            done = await persisted(worker, batch, {known: CONFIRMED})
            assert (done.written, done.refused) == ({known}, Counter())
            assert is_due_and_free(request_of(emptied, unknown))
            assert request_of(emptied, unknown)["reconcile_lease_epoch"] == 1

    asyncio.run(story())


def test_a_batch_without_any_outcome_is_handed_back_due(emptied: Emptied) -> None:
    ids = insert(emptied, 2)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            assert (await persisted(worker, await claimed(worker), {})).written == frozenset()
            assert ids_of(await claimed(worker, owner=OTHER)) == ids

    asyncio.run(story())


def test_hand_back_leaves_the_leases_of_others(emptied: Emptied) -> None:
    """Seen to fail without owner and epoch in the hand-back."""
    taken, again, kept = insert(emptied, 3)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            emptied.execute("UPDATE app.payment_requests SET reconcile_lease_owner = %s WHERE id = %s", [OTHER, taken])
            emptied.execute("UPDATE app.payment_requests SET reconcile_lease_epoch = 9 WHERE id = %s", [again])
            before = [request_of(emptied, id_) for id_ in (taken, again)]
            done = await persisted(worker, batch, {})
            assert done.refused == Counter()
            assert [request_of(emptied, id_) for id_ in (taken, again)] == before
            assert is_due_and_free(request_of(emptied, kept))

    asyncio.run(story())


def test_a_deleted_request_is_a_lost_lease(emptied: Emptied) -> None:
    gone, kept = insert(emptied, 2)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            emptied.execute("DELETE FROM app.payment_requests WHERE id = %s", [gone])
            done = await persisted(worker, batch, CONFIRMED)
            assert (done.written, done.refused) == ({kept}, Counter(lease_lost=1))

    asyncio.run(story())
    assert history_of(emptied, gone) == []


# heights that are reached already


def test_a_due_height_that_was_reached_meanwhile_makes_the_row_due_at_once(emptied: Emptied) -> None:
    """Seen to fail (a wait for the safety net) without the touch after the commit."""
    reached, ahead = insert(emptied, 2)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain(first=100))  # scanned: 99
            batch = await claimed(worker)
            await persisted(
                worker,
                batch,
                {
                    reached: decided(Status.PENDING, seconds=600, height=99),
                    ahead: decided(Status.PENDING, seconds=600, height=100),
                },
            )
            assert is_due_and_free(request_of(emptied, reached))
            assert request_of(emptied, reached)["reconcile_due_height"] is None
            assert request_of(emptied, ahead)["reconcile_due_height"] == 100
            assert not is_due_and_free(request_of(emptied, ahead))

    asyncio.run(story())


def test_a_height_that_is_reached_while_the_persist_commits_is_not_missed(emptied: Emptied) -> None:
    """The block's touch looked before the persist committed, the persist's touch before the block's transaction did.

    Seen to fail without the touch that follows the block's COMMIT.
    """
    (id_,) = insert(emptied)
    chain = Chain(first=100)

    async def story() -> None:
        async with (
            Stepped(emptied.url, before="COMMIT", name="scanner") as scanner,
            store(emptied) as worker,
        ):
            cursor = await born(worker, chain)
            batch = await claimed(worker)
            committing = asyncio.create_task(committed(scanner, cursor, chain.mine()))
            await scanner.reached()
            await persisted(worker, batch, decided(Status.PENDING, seconds=600, height=100))
            assert request_of(emptied, id_)["reconcile_due_height"] == 100
            scanner.go()
            assert (await committing).touched == 1
            assert is_due_and_free(request_of(emptied, id_))

    asyncio.run(story())


@pytest.mark.parametrize("tag", ["safe", "finalized"])
def test_where_a_tag_confirms_the_due_height_is_compared_with_the_tag(emptied: Emptied, tag: Against) -> None:
    """Seen to fail when it is compared with the scan."""
    (id_,) = insert(emptied)
    chain = Chain(first=100)

    async def story() -> None:
        async with store(emptied) as worker:
            cursor = await born(worker, chain)
            cursor = (await committed(worker, cursor, *chain.mined(5), due_against=tag)).cursor
            batch = await claimed(worker)
            look = decided(Status.PENDING, seconds=600, height=102)
            await persisted(worker, batch, look, due_against=tag)
            assert request_of(emptied, id_)["reconcile_due_height"] == 102
            for height, is_touched in ((101, False), (102, True)):
                kept = await cursors.keep(
                    worker,
                    cursor,
                    Tags(104, **{tag: chain.blocks[height - 100].header}),
                    lease_seconds=30,
                    due_against=tag,
                )
                assert kept is not None
                assert is_due_and_free(request_of(emptied, id_)) is is_touched

    asyncio.run(story())
