"""Leases that are renewed, given back, or taken from the dead; and rows that nobody looks at."""

import asyncio
import os
import signal
import time
from datetime import timedelta

import pytest

from reconsup.payments.request import Network, Status
from reconsup.store import leases
from reconsup.store.database import Database
from reconsup.store.persist import persist
from tests.support.ledgers import (
    NETWORK,
    OTHER,
    OWNER,
    Chain,
    Emptied,
    all_of,
    born,
    claimed,
    cursor_of,
    decided,
    history_of,
    ids_of,
    now,
    request_of,
    store,
)
from tests.support.stepped import DEADLINE_SECONDS, Stepped, until_blocked, until_done_or_blocked

pytestmark = pytest.mark.service


def expire_leases(database: Emptied) -> None:
    """What time does; here the rows change instead, so that nobody has to wait."""
    database.execute(
        "UPDATE app.payment_requests SET reconcile_lease_until = now() - interval '1 ms', next_reconcile_at = "
        "least(next_reconcile_at, now() - interval '1 ms') WHERE reconcile_lease_owner IS NOT NULL"
    )


def touch(database: Emptied, id_: str) -> None:
    database.execute(f"UPDATE app.payment_requests r SET next_reconcile_at = {leases.TOUCHED} WHERE id = %s", [id_])


async def ready(database: Database) -> None:
    """A running cursor for the network."""
    await born(database, Chain())


# renew


def test_renewal_extends_the_lease_and_nothing_else(emptied: Emptied) -> None:
    """Seen to fail when it writes next_reconcile_at as the claim does."""
    id_ = emptied.insert()

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            batch = await claimed(worker, lease_seconds=10)
            before = request_of(emptied, id_)
            renewed = await leases.renew(worker, batch, lease_seconds=20)
            after = request_of(emptied, id_)
            assert after.pop("reconcile_lease_until") > before.pop("reconcile_lease_until")
            assert after == before
            assert renewed.claims == batch.claims
            assert renewed.trusted_until > batch.trusted_until

    asyncio.run(story())


def test_renewal_drops_what_was_lost(emptied: Emptied) -> None:
    """Seen to fail without the owner, and without the epoch, in the renewal's condition."""
    lost_to_other, lost_to_oneself, gone, kept = emptied.insert_many(4)

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            batch = await claimed(worker)
            emptied.execute(
                "UPDATE app.payment_requests SET reconcile_lease_owner = %s WHERE id = %s", [OTHER, lost_to_other]
            )
            emptied.execute(
                "UPDATE app.payment_requests SET reconcile_lease_epoch = reconcile_lease_epoch + 1 WHERE id = %s",
                [lost_to_oneself],
            )
            emptied.execute("DELETE FROM app.payment_requests WHERE id = %s", [gone])
            before = [request_of(emptied, id_) for id_ in (lost_to_other, lost_to_oneself)]
            assert ids_of(await leases.renew(worker, batch, lease_seconds=30)) == [kept]
            assert [request_of(emptied, id_) for id_ in (lost_to_other, lost_to_oneself)] == before

    asyncio.run(story())


def test_a_renewal_that_waited_for_a_take_over_gets_nothing(emptied: Emptied) -> None:
    emptied.insert()

    async def story() -> None:
        async with (
            store(emptied, "renewer") as renewer,
            Stepped(emptied.url, before="COMMIT", in_transaction=True) as taker,
        ):
            await ready(renewer)
            batch = await claimed(renewer, owner=OWNER)
            expire_leases(emptied)
            taking = asyncio.create_task(claimed(taker, owner=OTHER))
            await taker.reached()
            renewing = asyncio.create_task(leases.renew(renewer, batch, lease_seconds=30))
            await until_blocked(emptied.url, "renewer")
            taker.go()
            assert len((await taking).claims) == 1
            assert (await renewing).claims == ()

    asyncio.run(story())


def test_a_take_over_skips_a_row_that_is_being_renewed(emptied: Emptied) -> None:
    id_ = emptied.insert()

    async def story() -> None:
        async with (
            Stepped(emptied.url, before="COMMIT", in_transaction=True) as renewer,
            store(emptied) as taker,
        ):
            await ready(taker)
            batch = await claimed(taker, owner=OWNER)
            expire_leases(emptied)
            renewing = asyncio.create_task(leases.renew(renewer, batch, lease_seconds=30))
            await renewer.reached()
            assert ids_of(await claimed(taker, owner=OTHER)) == []
            renewer.go()
            assert ids_of(await renewing) == [id_]
            assert ids_of(await claimed(taker, owner=OTHER)) == []

    asyncio.run(story())


# release


def test_release_gives_back_everything_of_its_owner_and_nothing_else(emptied: Emptied) -> None:
    """Seen to fail without the owner's condition (the other's lease goes too)."""
    mine, too = emptied.insert_many(2)

    async def story() -> None:
        async with store(emptied) as worker:
            await born(worker, Chain(), owner=OWNER)
            sepolia = Network("ethereum", "sepolia")
            await born(worker, Chain(), owner=OTHER, network=sepolia)
            emptied.execute(
                "INSERT INTO app.chain_spans (chain, network, from_height, to_height, next_height, next_hash, "
                "lease_owner, lease_until) VALUES ('ethereum', 'local', 1, 2, 2, '0x', %s, now())",
                [OWNER],
            )
            assert ids_of(await claimed(worker, owner=OWNER, limit=2)) == [mine, too]
            others = emptied.insert()
            await claimed(worker, owner=OTHER)
            before = request_of(emptied, others)

            released = await leases.release(worker, OWNER)

            assert (released.requests, released.scans) == (2, 1)
            for id_ in (mine, too):
                row = request_of(emptied, id_)
                assert (row["reconcile_lease_owner"], row["reconcile_lease_until"]) == (None, None)
            assert request_of(emptied, others) == before
            assert cursor_of(emptied)["scan_lease_owner"] is None
            assert cursor_of(emptied, sepolia)["scan_lease_owner"] == OTHER
            assert emptied.fetch("SELECT lease_owner, lease_until FROM app.chain_spans") == [(None, None)]
            assert ids_of(await claimed(worker, owner=OTHER)) == [mine, too]  # due at once

    asyncio.run(story())


def test_release_does_not_delay_a_row_that_was_touched(emptied: Emptied) -> None:
    """Seen to fail with `now()` in place of LEAST."""
    id_ = emptied.insert()

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            await claimed(worker)
            touch(emptied, id_)
            touched_at = request_of(emptied, id_)["next_reconcile_at"]
            await leases.release(worker, OWNER)
            assert request_of(emptied, id_)["next_reconcile_at"] == touched_at

    asyncio.run(story())


def test_a_renewal_that_comes_after_the_release_gets_nothing(emptied: Emptied) -> None:
    emptied.insert()

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            batch = await claimed(worker)
            await leases.release(worker, OWNER)
            assert (await leases.renew(worker, batch, lease_seconds=30)).claims == ()

    asyncio.run(story())


# the dead


def test_the_row_at_which_a_worker_died_counts_it_and_the_others_do_not(emptied: Emptied) -> None:
    """Seen to fail when the count goes to the whole batch."""
    poison, *others = emptied.insert_many(3)

    async def story() -> None:
        async with store(emptied) as janitor:
            await born(janitor, Chain(), owner=OWNER)
            await claimed(janitor)
            buried = await leases.bury(janitor, incarnation="00000000000000aa", owner=OWNER, row=poison)
            assert (buried.requests, buried.scans) == (3, 1)
            assert [request_of(emptied, id_)["reconcile_crashes"] for id_ in (poison, *others)] == [1, 0, 0]
            assert ids_of(await claimed(janitor, owner=OTHER)) == others  # suspects are claimed alone
            assert ids_of(await claimed(janitor, owner=OTHER, suspects=True, limit=1)) == [poison]

    asyncio.run(story())


def test_a_death_by_order_counts_for_no_row(emptied: Emptied) -> None:
    """Its rows had no part in it. Seen to fail when the charge is not asked for."""
    ids = emptied.insert_many(2)

    async def story() -> None:
        async with store(emptied) as janitor:
            await ready(janitor)
            await claimed(janitor)
            buried = await leases.bury(
                janitor, incarnation="00000000000000aa", owner=OWNER, row=ids[0], is_charged=False
            )
            assert buried.requests == 2
            assert ids_of(await claimed(janitor)) == ids
            assert [request_of(emptied, id_)["reconcile_crashes"] for id_ in ids] == [0, 0]

    asyncio.run(story())


@pytest.mark.parametrize("row", [None, "not-in-the-batch"])
def test_a_death_at_no_known_row_counts_for_the_whole_batch(emptied: Emptied, row: str | None) -> None:
    """Seen to fail when an unknown row counts for nobody."""
    ids = emptied.insert_many(3)

    async def story() -> None:
        async with store(emptied) as janitor:
            await ready(janitor)
            await claimed(janitor)
            await leases.bury(janitor, incarnation="00000000000000aa", owner=OWNER, row=row)
            assert [request_of(emptied, id_)["reconcile_crashes"] for id_ in ids] == [1, 1, 1]
            for id_ in ids:
                assert ids_of(await claimed(janitor, suspects=True, limit=1)) == [id_]

    asyncio.run(story())


def test_after_the_third_death_alone_a_row_is_set_aside(emptied: Emptied) -> None:
    """Seen to fail (one death early, one late) when the bound is moved by one."""
    id_ = emptied.insert()

    async def story() -> None:
        async with store(emptied) as janitor:
            await ready(janitor)
            for deaths in range(1, 5):
                assert ids_of(await claimed(janitor, suspects=deaths > 1, limit=1)) == [id_]
                released = await leases.bury(janitor, incarnation="00000000000000aa", owner=OWNER, row=id_)
                assert released.set_aside == ((id_,) if deaths == 4 else ())
                row = request_of(emptied, id_)
                assert row["reconcile_crashes"] == deaths
                assert (row["reconcile_error"], row["next_reconcile_at"] is None) == (
                    ("set_aside", True) if deaths == 4 else (None, False)
                )
            assert ids_of(await claimed(janitor, suspects=True)) == []
            assert await leases.sweep(janitor, [NETWORK]) == 0
            (entry,) = history_of(emptied, id_)
            assert (entry["reason"], entry["from_status"], entry["to_status"]) == (
                "row_set_aside",
                "pending",
                "pending",
            )
            assert entry["evidence"] == [{"error": "workers died at it", "crashes": 4}]
            assert (entry["lease_owner"], entry["lease_epoch"]) == (OWNER, 4)

    asyncio.run(story())


def test_a_persist_clears_the_suspicion(emptied: Emptied) -> None:
    """Seen to fail when persist leaves reconcile_crashes."""
    id_ = emptied.insert(reconcile_crashes=3)

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            batch = await claimed(worker, suspects=True, limit=1)
            await persist(worker, batch, all_of(batch, decided(Status.PENDING, seconds=0.0)), worker_id="host-0")
            assert request_of(emptied, id_)["reconcile_crashes"] == 0

    asyncio.run(story())


def test_burying_twice_counts_once(emptied: Emptied) -> None:
    """The janitor repeats what it got no answer to."""
    id_ = emptied.insert()

    async def story() -> None:
        async with store(emptied) as janitor:
            await ready(janitor)
            await claimed(janitor)
            for _ in range(2):
                await leases.bury(janitor, incarnation="00000000000000aa", owner=OWNER, row=id_)
            assert request_of(emptied, id_)["reconcile_crashes"] == 1

    asyncio.run(story())


def test_a_burial_does_not_wait_for_the_history(emptied: Emptied) -> None:
    """Somebody has locked that table, to change it, say: what the dead held is free at once.

    Seen to fail (it waits) when one statement buries and writes the history of rows that are set aside.
    """
    id_ = emptied.insert()

    async def story() -> None:
        async with store(emptied, "janitor") as janitor:
            await ready(janitor)
            await claimed(janitor)
            with emptied.connect(autocommit=False) as somebody:
                somebody.execute("LOCK TABLE app.payment_request_transitions IN ACCESS EXCLUSIVE MODE")
                burying = asyncio.create_task(leases.bury(janitor, incarnation="nobody", owner=OWNER, row=id_))
                await until_done_or_blocked(emptied.url, "janitor", burying)
                assert burying.done()
            assert (await burying).requests == 1

    asyncio.run(story())


@pytest.mark.direct
def test_a_connection_that_is_left_of_the_dead_does_not_cost_a_tenth_of_a_second(emptied: Emptied) -> None:
    """Seen to fail (never below 100 ms) with the wait of pg_terminate_backend itself."""

    async def story() -> float:
        async with store(emptied, "janitor") as janitor:
            await ready(janitor)
            with emptied.connect(application_name="reconsup/00000000000000aa") as ghost:
                ghost.execute("SELECT 1")
                began_at = time.monotonic()
                await leases.bury(janitor, incarnation="00000000000000aa", owner=OWNER, row=None)
                seconds = time.monotonic() - began_at
                assert emptied.fetch("SELECT FROM pg_stat_activity WHERE application_name LIKE 'reconsup/%'") == []
            return seconds

    assert min(asyncio.run(story()) for _ in range(5)) < 0.1


@pytest.mark.direct
def test_a_connection_that_cannot_be_ended_does_not_hold_up_the_give_back(emptied: Emptied) -> None:
    """Its backend is frozen. Seen to fail (it never ends) when the burial waits until the ghost is gone."""

    async def story(backend_pid: int) -> float:
        async with store(emptied, "janitor") as janitor:
            await ready(janitor)
            os.kill(backend_pid, signal.SIGSTOP)
            try:
                began_at = time.monotonic()
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await leases.bury(janitor, incarnation="00000000000000aa", owner=OWNER, row=None)
                return time.monotonic() - began_at
            finally:
                os.kill(backend_pid, signal.SIGCONT)

    with emptied.connect(application_name="reconsup/00000000000000aa") as ghost:
        assert asyncio.run(story(ghost.info.backend_pid)) >= leases.GHOST_SECONDS


@pytest.mark.direct
def test_the_dead_workers_connections_are_ended_before_its_leases_are_given_back(emptied: Emptied) -> None:
    """Seen to fail (the burial waits for the ghost's lock) when they are left alone."""
    id_ = emptied.insert()

    async def story() -> None:
        async with (
            store(emptied, "janitor") as janitor,
            Stepped(emptied.url, before="COMMIT", name="reconsup/00000000000000aa") as ghost,
            store(emptied, "reconsup/00000000000000bb") as living,
        ):
            await ready(janitor)
            await living.fetch("SELECT 1")
            batch = await claimed(ghost)
            dying = asyncio.create_task(
                persist(ghost, batch, all_of(batch, decided(Status.PENDING, seconds=9.0)), worker_id="host-0")
            )
            await ghost.reached()
            burying = asyncio.create_task(leases.bury(janitor, incarnation="00000000000000aa", owner=OWNER, row=id_))
            await until_done_or_blocked(emptied.url, "janitor", burying)
            assert burying.done()
            assert (await burying).requests == 1
            assert request_of(emptied, id_)["reconcile_crashes"] == 1  # nothing of the ghost's was written
            assert emptied.fetch(
                "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'reconsup/%'"
            ) == [("reconsup/00000000000000bb",)]
            dying.cancel()
            await asyncio.gather(dying, return_exceptions=True)

    asyncio.run(story())


# the sweep


def test_the_sweep_makes_forgotten_open_rows_of_served_networks_due(emptied: Emptied) -> None:
    """Seen to fail for each condition that is taken out."""
    forgotten = [emptied.insert(status=status, next_reconcile_at=None) for status in ("pending", "detected", "reorged")]
    left = [
        emptied.insert(status="confirmed", next_reconcile_at=None),
        emptied.insert(status="expired", next_reconcile_at=None),
        emptied.insert(status="failed", next_reconcile_at=None),
        emptied.insert(next_reconcile_at=None, reconcile_error="set_aside"),
        emptied.insert(next_reconcile_at=None, network="mainnet"),
        emptied.insert(next_reconcile_at=None, chain="bitcoin", chain_id=None),
        emptied.insert(next_reconcile_at=now() + timedelta(hours=1)),
    ]

    async def story() -> None:
        async with store(emptied) as janitor:
            await ready(janitor)
            before = [request_of(emptied, id_) for id_ in left]
            assert await leases.sweep(janitor, [NETWORK]) == 3
            assert [request_of(emptied, id_) for id_ in left] == before
            assert ids_of(await claimed(janitor)) == forgotten
            assert await leases.sweep(janitor, [NETWORK]) == 0

    asyncio.run(story())


def test_a_row_with_an_error_that_was_set_due_by_hand_is_swept_too(emptied: Emptied) -> None:
    """Only `set_aside` keeps a row from being looked at. Seen to fail when any error does."""
    id_ = emptied.insert(next_reconcile_at=None, reconcile_error="ambiguous_address")

    async def story() -> None:
        async with store(emptied) as janitor:
            assert await leases.sweep(janitor, [NETWORK]) == 1
            assert request_of(emptied, id_)["next_reconcile_at"] is not None

    asyncio.run(story())
