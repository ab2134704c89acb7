"""Two or three hands on the same row, step by step and in every order: what each of them is told, and what is left."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from itertools import permutations

import psycopg
import pytest

from reconsup.payments.request import Reason, Status
from reconsup.store import admission, leases, refusals
from reconsup.store.database import Database
from reconsup.store.leases import Batch
from tests.support.ledgers import (
    NETWORK,
    OTHER,
    OWNER,
    Chain,
    Emptied,
    born,
    claimed,
    decided,
    history_of,
    ids_of,
    is_due_and_free,
    persisted,
    request_of,
    settlements_of,
    store,
)
from tests.support.stepped import Stepped, until_blocked, until_done_or_blocked

pytestmark = pytest.mark.service

CONFIRMED = decided(Status.CONFIRMED, Reason.CONFIRMED)
UNCHANGED = decided(Status.PENDING, seconds=60.0)
ADDRESS = "0x" + "ab" * 20
INCARNATION = OWNER.partition("#")[2]
NEXT_INCARNATION = OWNER.partition("#")[0] + "#00000000000000dd"

TOUCH = f"UPDATE app.payment_requests r SET next_reconcile_at = {leases.TOUCHED}"
THEIR_SETTLEMENT = """
INSERT INTO app.payment_request_settlements
  (payment_request_id, evidence_ref, amount_minor, confirmations, first_seen_at, last_seen_at)
VALUES (%s, 'theirs', 1, 0, now(), now())
"""


def expire_leases(database: Emptied) -> None:
    """What time does; here the rows change instead, so that nobody has to wait."""
    database.execute("UPDATE app.payment_requests SET reconcile_lease_until = now(), next_reconcile_at = now()")


# claim × claim


def test_a_claim_that_is_overtaken_in_its_middle_takes_other_rows(emptied: Emptied) -> None:
    """Its snapshot says that a and b are free; another claims them and commits. It looks again, and takes c.

    A database cursor keeps the snapshot, and locks only when it is fetched from. Seen to fail (a and b) without the
    lock clause, and without the two conditions that are looked at again under the lock, until and next_reconcile_at
    (either alone suffices here).
    """
    for id_ in ("a", "b", "c"):
        emptied.insert(id=id_)
    figures = {"chain": NETWORK.chain, "network": NETWORK.name, "limit": 2, "without": []}

    async def story() -> None:
        async with store(emptied, "quick") as quick:
            await born(quick, Chain())
            with emptied.connect(autocommit=False, cursor_factory=psycopg.ClientCursor) as slow:
                slow.execute("DECLARE claiming NO SCROLL CURSOR FOR" + refusals._ORDINARY, figures)
                assert ids_of(await claimed(quick, owner=OTHER, limit=2)) == ["a", "b"]
                assert slow.execute("FETCH ALL FROM claiming").fetchall() == [("c",)]

    asyncio.run(story())


# release × renewal


def test_a_renewal_that_waited_for_the_release_gets_nothing(emptied: Emptied) -> None:
    """Two tasks of one worker, or its drain and its last batch. Seen to fail without the owner in the renewal."""
    id_ = emptied.insert()

    async def story() -> None:
        async with Stepped(emptied.url, before="COMMIT") as releaser, store(emptied, "renewer") as renewer:
            await born(renewer, Chain())
            batch = await claimed(renewer)
            releasing = asyncio.create_task(leases.release(releaser, OWNER))
            await releaser.reached()
            renewing = asyncio.create_task(leases.renew(renewer, batch, lease_seconds=30))
            await until_blocked(emptied.url, "renewer")
            releaser.go()
            assert (await releasing).requests == 1
            assert (await renewing).claims == ()

    asyncio.run(story())
    row = request_of(emptied, id_)
    assert is_due_and_free(row)
    assert row["reconcile_lease_until"] is None


def test_a_release_that_waited_for_the_renewal_gives_back_what_was_renewed(emptied: Emptied) -> None:
    """And what the renewer does with its batch afterwards is refused.

    Seen to fail (leased until its end) when the release skips locked rows.
    """
    id_ = emptied.insert()

    async def story() -> None:
        async with (
            Stepped(emptied.url, before="COMMIT", in_transaction=True) as renewer,
            store(emptied, "releaser") as releaser,
        ):
            await born(releaser, Chain())
            batch = await claimed(releaser)
            renewing = asyncio.create_task(leases.renew(renewer, batch, lease_seconds=60))
            await renewer.reached()
            releasing = asyncio.create_task(leases.release(releaser, OWNER))
            await until_done_or_blocked(emptied.url, "releaser", releasing)
            renewer.go()
            renewed = await renewing
            assert ids_of(renewed) == [id_]
            assert (await releasing).requests == 1
            assert is_due_and_free(request_of(emptied, id_))
            assert (await persisted(releaser, renewed, CONFIRMED)).refused == Counter(lease_lost=1)

    asyncio.run(story())
    assert is_due_and_free(request_of(emptied, id_))
    assert history_of(emptied, id_) == []


# the same slot's next incarnation


async def renewing(database: Database, batch: Batch) -> None:
    assert (await leases.renew(database, batch, lease_seconds=30)).claims == ()


async def persisting(database: Database, batch: Batch) -> None:
    assert (await persisted(database, batch, CONFIRMED)).refused == Counter(lease_lost=1)


async def admitting(database: Database, batch: Batch) -> None:
    assert await admission.admit(database, batch) == frozenset()


async def releasing(database: Database, batch: Batch) -> None:
    assert (await leases.release(database, batch.owner)).requests == 0


@pytest.mark.parametrize("is_buried", [True, False], ids=["buried", "its lease ended"])
@pytest.mark.parametrize("act", [renewing, persisting, admitting, releasing], ids=lambda act: act.__name__)
def test_the_next_incarnation_of_a_slot_is_not_disturbed_by_its_predecessor(
    emptied: Emptied, act: Callable[[Database, Batch], Awaitable[None]], is_buried: bool
) -> None:
    """Base and slot are the same, and nobody but the incarnation tells them apart.

    Even where the epoch is the same again (a fail-over lost the grants). Seen to fail for each act when the owner is
    compared without what follows the #.
    """
    id_ = emptied.insert()

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            before = await claimed(worker, owner=OWNER)
            if is_buried:
                await leases.bury(worker, incarnation=INCARNATION, owner=OWNER, row=None, is_charged=False)
            else:
                expire_leases(emptied)
            after = await claimed(worker, owner=NEXT_INCARNATION)
            assert ids_of(after) == [id_]
            for zombie in (before, replace(before, claims=after.claims)):
                row = request_of(emptied, id_)
                await act(worker, zombie)
                assert request_of(emptied, id_) == row
            assert (await persisted(worker, after, UNCHANGED)).written == {id_}

    asyncio.run(story())
    assert history_of(emptied, id_) == []


# touch × renewal × persist


@pytest.mark.parametrize("order", list(permutations(("touch", "renew", "persist"))), ids="-".join)
def test_a_touch_is_seen_in_whatever_order_it_comes(emptied: Emptied, order: tuple[str, ...]) -> None:
    """Before the persist it refuses it, after the persist it makes the row due again: the row is never at rest.

    Seen to fail (at rest, confirmed) without next_reconcile_at in the fence, and (every renewed batch is refused) when
    the renewal writes it as the claim does.
    """
    id_ = emptied.insert()
    is_refused = order.index("touch") < order.index("persist")

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            for step in order:
                if step == "touch":
                    emptied.execute(TOUCH)
                elif step == "renew":
                    renewed = await leases.renew(worker, batch, lease_seconds=60)
                    assert ids_of(renewed) == ([id_] if order.index("renew") < order.index("persist") else [])
                    batch = renewed if renewed.claims else batch
                else:
                    done = await persisted(worker, batch, CONFIRMED)
                    assert done.refused == (Counter(touched=1) if is_refused else Counter())
            row = request_of(emptied, id_)
            assert row["status"] == ("pending" if is_refused else "confirmed")
            assert len(history_of(emptied, id_)) == (not is_refused)
            assert is_due_and_free(row)
            assert ids_of(await claimed(worker)) == [id_]

    asyncio.run(story())


def test_a_touch_after_the_leases_end_is_seen_by_the_holder_that_is_late(emptied: Emptied) -> None:
    """The lease is over, nobody has taken the row yet, and its time is in the past already: the touch changes it still.

    Seen to fail (the stale decision is written) when a touch of a held row only ever makes its time earlier.
    """
    id_ = emptied.insert()

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            minute = timedelta(minutes=1)
            emptied.execute(  # what time does: also what the holder remembers is in the past
                "UPDATE app.payment_requests SET reconcile_lease_until = reconcile_lease_until - %s, "
                "next_reconcile_at = next_reconcile_at - %s",
                [minute, minute],
            )
            late = replace(batch, claims=tuple(replace(each, due_at=each.due_at - minute) for each in batch.claims))
            emptied.execute(TOUCH)
            assert (await persisted(worker, late, CONFIRMED)).refused == Counter(touched=1)
            assert is_due_and_free(request_of(emptied, id_))

    asyncio.run(story())
    assert history_of(emptied, id_) == []


# an open insert of the other service


def test_an_open_child_insert_holds_up_none_of_a_leases_acts(emptied: Emptied) -> None:
    """The other service's transaction shares the request's key, and stays open.

    Seen to fail (each waits for its end) with FOR UPDATE in place of FOR NO KEY UPDATE.
    """
    ids = emptied.insert_many(2)

    async def story() -> None:
        async with Stepped(emptied.url, name="worker") as worker:
            await born(worker, Chain())
            with emptied.connect(autocommit=False) as other_service:
                for id_ in ids:
                    other_service.execute(THEIR_SETTLEMENT, [id_])
                async with asyncio.timeout(4):
                    batch = await claimed(worker, limit=1)
                    assert ids_of(batch) == ids[:1]
                    batch = await leases.renew(worker, batch, lease_seconds=30)
                    assert await admission.admit(worker, batch) == set(ids[:1])
                    assert (await persisted(worker, batch, UNCHANGED)).written == set(ids[:1])
                    assert ids_of(await claimed(worker)) == ids[1:]
                    assert (await leases.release(worker, OWNER)).requests == 1
                    assert ids_of(await claimed(worker)) == ids[1:]
                    bury = leases.bury(worker, incarnation=INCARNATION, owner=OWNER, row=None, is_charged=False)
                    assert (await bury).requests == 1
                other_service.commit()
            assert worker.errors == []

    asyncio.run(story())
    assert [list(settlements_of(emptied, id_)) for id_ in ids] == [["theirs"]] * 2
