"""The history of leases bites where a lease is broken, and only there."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from reconsup.payments.request import Status
from reconsup.store import leases
from reconsup.store.database import Database
from tests.support import lease_history, postgres
from tests.support.ledgers import OTHER, OWNER, Chain, Emptied, born, claimed, decided, persisted, store
from tests.support.postgres import insert_request

pytestmark = pytest.mark.service

Program = psycopg.Connection[tuple[Any, ...]]

ID = "pr_1"
ROW = " WHERE id = 'pr_1'"
LEASE = "UPDATE app.payment_requests SET "
GRANT = LEASE + (
    "reconcile_lease_owner = %(owner)s, reconcile_lease_until = now() + make_interval(secs => %(seconds)s),"
    " reconcile_lease_epoch = reconcile_lease_epoch + 1" + ROW
)
RELEASE = LEASE + "reconcile_lease_owner = NULL, reconcile_lease_until = NULL" + ROW


def grant(program: Program, owner: str = OWNER, seconds: float = 30.0) -> None:
    """What a claim does to the row, without asking whether it may."""
    program.execute(GRANT, {"owner": owner, "seconds": seconds})


@pytest.fixture
def watched(unwatched: postgres.Database) -> postgres.Database:
    """A database with one request, of which nobody asks afterwards whether its history is right."""
    lease_history.install(unwatched)
    with unwatched.connect() as other_service:
        insert_request(other_service, id=ID)
    return unwatched


@pytest.fixture
def program(watched: postgres.Database) -> Iterator[Program]:
    """A connection like the program's own: what it does to leases is not done by hand."""
    with psycopg.connect(watched.url, autocommit=True) as connection:
        yield connection


# it bites


def test_a_second_grant_while_the_first_is_held_is_an_error_of_its_own_transaction(
    watched: postgres.Database, program: Program
) -> None:
    """Seen to fail without the exclusion constraint."""
    grant(program, OWNER)
    before = watched.fetch("SELECT reconcile_lease_owner, reconcile_lease_epoch FROM app.payment_requests")
    with pytest.raises(errors.ExclusionViolation, match="never_two_at_the_same_request"):
        grant(program, OTHER)
    assert watched.fetch("SELECT reconcile_lease_owner, reconcile_lease_epoch FROM app.payment_requests") == before
    assert [each.owner for each in lease_history.grants(watched)] == [OWNER]
    assert lease_history.complaints(watched) == ["1 refusals"]  # however the program takes it


def test_not_even_by_the_same_owner(program: Program) -> None:
    grant(program, OWNER)
    with pytest.raises(errors.ExclusionViolation):
        grant(program, OWNER)


def test_the_lease_of_a_renewal_counts(program: Program) -> None:
    """Seen to fail when a renewal does not move the end."""
    grant(program, seconds=0.001)
    program.execute(LEASE + "reconcile_lease_until = now() + interval '1 hour'" + ROW)
    program.execute("SELECT pg_sleep(0.002)")  # the first end has passed
    with pytest.raises(errors.ExclusionViolation):
        grant(program, OTHER)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("reconcile_lease_epoch = 9, reconcile_lease_owner = 'x'", "the epoch of pr_1 went from 7 to 9"),
        ("reconcile_lease_epoch = 6, reconcile_lease_owner = 'x'", "the epoch of pr_1 went from 7 to 6"),
        ("reconcile_lease_epoch = 6", "the epoch of pr_1 went from 7 to 6"),
        ("reconcile_lease_owner = 'x'", "the owner of pr_1 went from host-0#00000000000000aa to x in epoch 7"),
        (
            "reconcile_lease_owner = NULL, reconcile_lease_until = NULL, reconcile_lease_epoch = 0",
            "the epoch of pr_1 went from 7 to 0",
        ),
        (
            "reconcile_lease_owner = NULL, reconcile_lease_until = NULL, reconcile_lease_epoch = 8",
            "the epoch of pr_1 went from 7 to 8",
        ),
        ("reconcile_lease_owner = NULL", "pr_1 has half a lease"),
        ("reconcile_lease_until = NULL", "pr_1 has half a lease"),
    ],
    ids=[
        "a gap", "an epoch that goes back with a grant", "and under the holder", "an owner swapped without a grant",
        "an epoch reset at release", "an epoch raised for nobody", "an end without an owner", "an owner without an end",
    ],
)  # fmt: skip
def test_what_no_grant_explains_is_refused(
    watched: postgres.Database, program: Program, change: str, complaint: str
) -> None:
    """Seen to fail for each when its branch of the trigger is taken out."""
    watched.execute(LEASE + "reconcile_lease_epoch = 6")
    grant(program, OWNER)
    with pytest.raises(errors.RaiseException, match=f"lease history: {complaint}"):
        program.execute(LEASE + change + ROW)
    assert lease_history.complaints(watched) == ["1 refusals"]


def test_a_free_row_gets_no_owner_without_an_epoch(program: Program) -> None:
    with pytest.raises(errors.RaiseException, match="went from nobody to x in epoch 0"):
        program.execute(LEASE + "reconcile_lease_owner = 'x', reconcile_lease_until = now()" + ROW)


@pytest.mark.parametrize("early", [0, 1])
def test_a_lease_may_be_taken_over_at_its_end_and_not_a_microsecond_before(program: Program, early: int) -> None:
    """Everything in one transaction, so that now() is the same. Seen to fail with clock_timestamp() in its place."""
    with program.transaction():
        grant(program, OWNER)
        program.execute(f"{LEASE} reconcile_lease_until = now() + {early} * interval '1 microsecond' {ROW}")
        if early:
            with pytest.raises(errors.ExclusionViolation), program.transaction():
                grant(program, OTHER)
        else:
            grant(program, OTHER)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("UPDATE app.payment_requests SET reconcile_lease_epoch = 9", "pr_1 has epoch 9 and owner"),
        ("UPDATE app.payment_requests SET reconcile_lease_until = now()", "and nobody granted that"),
        ("DELETE FROM lease_history.grants WHERE epoch = 2", "and nobody granted that"),
        (LEASE + "reconcile_lease_owner = NULL, reconcile_lease_until = NULL", "owner nobody; granted was 2, until"),
        ("UPDATE lease_history.grants SET epoch = 0 WHERE epoch = 1", "pr_1, epoch 2: after epoch 0"),
        ("UPDATE lease_history.grants SET begins = '2026-01-01' WHERE epoch = 2", "pr_1, epoch 2: after epoch 1"),
    ],
)
def test_the_whole_of_it_is_looked_at_without_the_trigger(
    watched: postgres.Database, program: Program, change: str, complaint: str
) -> None:
    """As if the trigger had been off, or wrong. Seen to fail for each when its part of the query is taken out."""
    for owner in (OWNER, OTHER):
        program.execute(RELEASE)
        grant(program, owner)
    assert lease_history.complaints(watched) == []
    watched.execute("ALTER TABLE app.payment_requests DISABLE TRIGGER lease_history")
    watched.execute("ALTER TABLE lease_history.grants DROP CONSTRAINT never_two_at_the_same_request")
    watched.execute(change)
    assert complaint in " ".join(lease_history.complaints(watched))


# it does not cry wolf


def test_a_claim_that_began_before_the_release_may_have_the_row_after_it(database: postgres.Database) -> None:
    """Its now() lies before the release; the row's lock put it after. Seen to fail when each grant begins at now()."""
    with (
        database.connect() as other_service,
        psycopg.connect(database.url, autocommit=True) as holder,
        psycopg.connect(database.url, autocommit=True) as taker,
    ):
        insert_request(other_service, id=ID)
        grant(holder, OWNER)
        with taker.transaction():
            ((began,),) = taker.execute("SELECT now()").fetchall()
            holder.execute(RELEASE)
            grant(taker, OTHER)
    first, second = lease_history.grants(database)
    assert began < first.ends <= second.begins


def test_a_release_that_began_before_its_grant_did_leaves_no_time_behind(database: postgres.Database) -> None:
    """The janitor's statement waited for the claim's lock. Seen to fail (it ends before it begins) with now() there."""
    with (
        database.connect() as other_service,
        psycopg.connect(database.url, autocommit=True) as holder,
        psycopg.connect(database.url, autocommit=True) as janitor,
    ):
        insert_request(other_service, id=ID)
        with janitor.transaction():
            janitor.execute("SELECT now()")
            grant(holder, OWNER)
            janitor.execute(RELEASE)
        grant(holder, OTHER)
    assert [(each.epoch, each.owner) for each in lease_history.grants(database)] == [(1, OWNER), (2, OTHER)]


def test_a_grant_a_release_and_a_grant_may_share_one_now(database: postgres.Database) -> None:
    with database.connect() as other_service, psycopg.connect(database.url, autocommit=True) as worker:
        insert_request(other_service, id=ID)
        with worker.transaction():
            for owner in (OWNER, OTHER, OWNER):
                grant(worker, owner)
                worker.execute(RELEASE)
    assert [each.epoch for each in lease_history.grants(database)] == [1, 2, 3]


def test_a_holder_may_be_late_as_long_as_nobody_took_over(database: postgres.Database) -> None:
    """It renews after the end, and gives back after the end, which does not make its time any longer.

    Seen to fail when a release ends the grant at its own time in any case.
    """
    with database.connect() as other_service, psycopg.connect(database.url, autocommit=True) as worker:
        insert_request(other_service, id=ID)
        grant(worker, seconds=0.001)
        worker.execute("SELECT pg_sleep(0.002)")
        worker.execute(LEASE + "reconcile_lease_until = now() + interval '1 ms'" + ROW)
        ((promised,),) = worker.execute("SELECT reconcile_lease_until FROM app.payment_requests").fetchall()
        worker.execute("SELECT pg_sleep(0.002)")
        worker.execute(RELEASE)
        assert [each.ends for each in lease_history.grants(database)] == [promised]
        grant(worker, OTHER)
    assert len(lease_history.grants(database)) == 2


def test_what_is_done_by_hand_needs_no_grant_and_history_begins_anew_there(database: postgres.Database) -> None:
    with database.connect() as other_service, psycopg.connect(database.url, autocommit=True) as worker:
        insert_request(other_service, id=ID, reconcile_lease_owner="theirs", reconcile_lease_until="2026-01-01")
        grant(worker, OWNER)
        other_service.execute(LEASE + "reconcile_lease_owner = 'x', reconcile_lease_epoch = 9")
        with pytest.raises(errors.ExclusionViolation):
            grant(worker, OTHER)
        other_service.execute(LEASE + "reconcile_lease_until = now()")
        grant(worker, OTHER)
        assert [(each.epoch, each.owner) for each in lease_history.grants(database)][-2:] == [(9, "x"), (10, OTHER)]
        other_service.execute("DELETE FROM app.payment_requests")
        assert lease_history.grants(database) == []
    lease_history.forget(database)


def test_many_workers_in_each_others_way_never_overlap(emptied: Emptied) -> None:
    """Leases so short that they end in the middle of the work; four connections that do whatever comes.

    Seen to fail (StoreRejected) without the expiry predicate of the claim.
    """
    emptied.insert_many(12)

    async def work(number: int, worker: Database) -> None:
        chance = random.Random(number)
        while len(lease_history.grants(emptied)) < 800:
            batch = await claimed(worker, owner=f"host-{number}#{chance.randrange(3)}", limit=3, lease_seconds=0.01)
            match chance.randrange(5):
                case 0:
                    await leases.release_requests(worker, batch.owner)
                case 1:
                    batch = await leases.renew(worker, batch, lease_seconds=0.02)
                    await persisted(worker, batch, decided(Status.PENDING, seconds=0.0))
                case 2:
                    await leases.bury(worker, incarnation="nobody", owner=batch.owner, row=None, is_charged=False)
                case 3:
                    await persisted(worker, batch, decided(Status.PENDING, seconds=0.0))
                # or it is forgotten, and the lease simply ends

    async def story() -> None:
        async with store(emptied) as one, store(emptied) as two, store(emptied) as three, store(emptied) as four:
            await born(one, Chain())
            await asyncio.gather(*(work(*each) for each in enumerate((one, two, three, four))))

    asyncio.run(story())
    assert lease_history.complaints(emptied) == []
    assert len({each.owner for each in lease_history.grants(emptied)}) == 12
