"""Persist: only who still holds the lease, on a row that nobody moved or touched since, writes a decision."""

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from reconsup.payments.request import Reason, Status
from reconsup.payments.settlement import Orphaning, Settlement
from reconsup.store import leases
from tests.support.ledgers import (
    OTHER,
    OWNER,
    Chain,
    Emptied,
    born,
    claimed,
    committed,
    decided,
    ether,
    history_of,
    ids_of,
    is_due_and_free,
    now,
    persisted,
    request_of,
    rolled_back,
    store,
    with_epochs,
)
from tests.support.stepped import Stepped, until_blocked, without

pytestmark = pytest.mark.service

CONFIRMED = decided(Status.CONFIRMED, Reason.CONFIRMED)
UNCHANGED = decided(Status.PENDING, seconds=60.0)


def settlement(ref: str = "0xref", amount_minor: int = 1, orphaning: Orphaning | None = None) -> Settlement:
    return Settlement(ref, amount_minor, 100, "0xblock", now(), orphaning)


def test_who_lost_the_lease_to_another_writes_nothing(emptied: Emptied) -> None:
    """Seen to fail without the owner and the epoch in the UPDATE (the status alone does not help)."""
    id_ = emptied.insert()

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
    id_ = emptied.insert()

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
    id_ = emptied.insert()

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
    id_ = emptied.insert()

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
    id_ = emptied.insert()

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


@pytest.mark.parametrize(
    "change",
    ["expires_at = expires_at + interval '1 day'", "expected_amount_minor = 5", "expected_amount_minor = NULL"],
)
def test_a_request_that_was_changed_while_it_was_decided_is_decided_again(emptied: Emptied, change: str) -> None:
    """The service gave the customer another day just then.

    Seen to fail (expired) without end and amount in the fence.
    """
    id_ = emptied.insert()

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            emptied.execute(f"UPDATE app.payment_requests SET {change}")
            done = await persisted(worker, batch, decided(Status.EXPIRED, Reason.EXPIRED))
            assert (done.written, done.refused) == (frozenset(), Counter(touched=1))
            assert request_of(emptied, id_)["status"] == "pending"
            assert is_due_and_free(request_of(emptied, id_))
            assert (await persisted(worker, await claimed(worker), CONFIRMED)).written == {id_}

    asyncio.run(story())


@pytest.mark.parametrize(
    "columns", [{"expected_amount_minor": "NaN"}, {"expected_amount_minor": None}, {"expires_at": "infinity"}], ids=str
)
def test_values_that_python_has_no_word_for_are_no_change(emptied: Emptied, columns: dict[str, Any]) -> None:
    """Seen to fail (refused at every look) when the fence compares them as they are."""
    id_ = emptied.insert(**columns)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            assert (await persisted(worker, await claimed(worker), CONFIRMED)).written == {id_}

    asyncio.run(story())


def test_a_row_that_a_commit_touched_is_not_written_but_decided_again(emptied: Emptied) -> None:
    """Seen to fail without `next_reconcile_at = due_at` in the fence."""
    paid = emptied.insert(address_canonical="0xPAID")
    other = emptied.insert()
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
    paid = emptied.insert(address_canonical="0xpaid")
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
    id_ = emptied.insert()

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


def test_a_touch_is_seen_also_when_the_lease_had_ended(emptied: Emptied) -> None:
    """A worker that is late, and whose row nobody took, still holds it; what it decided is older than the payment.

    The time that the claim wrote has passed, so nothing but now() is another one. Seen to fail (the stale decision is
    written) when a touch takes the earlier of both times for a leased row, as it does for a free one.
    """
    paid = emptied.insert(address_canonical="0xpaid")
    chain = Chain()

    async def story() -> None:
        async with store(emptied) as worker, store(emptied) as scanner:
            cursor = await born(scanner, chain)
            batch = await claimed(worker)
            ((ended_at,),) = emptied.fetch(
                "UPDATE app.payment_requests SET reconcile_lease_until = now(), next_reconcile_at = now()"
                " RETURNING next_reconcile_at"
            )
            late = replace(batch, claims=(replace(batch.claims[0], due_at=ended_at),))
            await committed(scanner, cursor, chain.mine(ether("0xpaid", 10, "t"), time=now()))
            done = await persisted(worker, late, decided(Status.EXPIRED, Reason.EXPIRED))
            assert (done.written, done.refused) == (frozenset(), Counter(touched=1))

    asyncio.run(story())
    assert request_of(emptied, paid)["status"] == "pending"


def test_a_touch_after_the_persist_makes_the_row_due_again(emptied: Emptied) -> None:
    id_ = emptied.insert()

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
    paid = emptied.insert(address_canonical="0xpaid")
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
    id_ = emptied.insert()

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
    id_ = emptied.insert()

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
    ids = emptied.insert_many(2)
    url = without(emptied.direct_url, "hashjoin", "mergejoin")  # so that a join goes by the array, in its order

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
