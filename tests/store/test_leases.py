"""Leases: who gets a row, who keeps it, and what happens to it when its holder dies."""

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest

from reconsup.payments.request import Network, Status
from reconsup.store import cursor as cursors
from reconsup.store import leases
from reconsup.store.database import Database, Transaction
from reconsup.store.errors import StoreUnavailable
from reconsup.store.leases import Batch
from reconsup.store.persist import persist
from tests.support.ledgers import (
    LEASE_SECONDS,
    MONEY_MAX,
    NETWORK,
    OTHER,
    OWNER,
    SCANNER,
    Chain,
    Emptied,
    all_of,
    born,
    claimed,
    committed,
    cursor_of,
    decided,
    ids_of,
    now,
    request_of,
    store,
)
from tests.support.stepped import DEADLINE_SECONDS, Stepped, until_blocked, without

pytestmark = pytest.mark.service


def insert(database: Emptied, count: int = 1, **columns: Any) -> list[str]:
    return [database.insert(**columns) for _ in range(count)]


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


# claim


def test_a_claim_grants_the_row_and_returns_what_it_wrote(emptied: Emptied) -> None:
    (id_,) = insert(
        emptied,
        status="detected",
        expected_amount_minor=MONEY_MAX,
        token_standard="ERC20",
        token_contract="0xAbC",
        token_decimals=6,
    )

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            before = time.monotonic()
            batch = await claimed(worker, lease_seconds=30)
            after = time.monotonic()
            (claim,) = batch.claims
            row = request_of(emptied, id_)
            assert (row["reconcile_lease_owner"], row["reconcile_lease_epoch"]) == (OWNER, 1)
            assert row["reconcile_lease_until"] == row["next_reconcile_at"] == claim.due_at
            assert timedelta(seconds=25) < claim.due_at - now() <= timedelta(seconds=31)
            assert (claim.epoch, claim.failures) == (1, 0)
            assert (claim.request.id, claim.request.status, claim.request.network) == (id_, Status.DETECTED, "local")
            assert (claim.request.expected_amount_minor, claim.request.chain_id) == (MONEY_MAX, 31337)
            assert (claim.request.token_standard, claim.request.token_contract) == ("ERC20", "0xAbC")
            assert (claim.request.expires_at, claim.request.created_at) == (row["expires_at"], row["created_at"])
            assert not claim.request.admitted
            assert before + 27 <= batch.trusted_until <= after + 27
            assert before <= batch.claimed_at <= after

    asyncio.run(story())


def test_trust_ends_before_the_lease(emptied: Emptied) -> None:
    assert leases.trusted_until(100.0, 30.0) == 127.0
    assert leases.trusted_until(100.0, 0.2) == pytest.approx(100.15)  # at least 50 ms for the write to arrive
    assert emptied.fetch("SELECT count(*) FROM app.payment_requests") == [(0,)]


def test_two_claimers_get_disjoint_rows_and_neither_waits(emptied: Emptied) -> None:
    """Seen to fail (the second one blocks) without SKIP LOCKED."""
    ids = insert(emptied, 6)

    async def story() -> None:
        async with (
            Stepped(emptied.url, before="COMMIT", in_transaction=True) as slow,
            store(emptied) as quick,
        ):
            await ready(quick)
            first = asyncio.create_task(claimed(slow, owner=OWNER, limit=4))
            await slow.reached()
            async with asyncio.timeout(DEADLINE_SECONDS / 2):
                second = await claimed(quick, owner=OTHER, limit=4)
            slow.go()
            assert ids_of(await first) == ids[:4]
            assert ids_of(second) == ids[4:]
        assert emptied.fetch(
            "SELECT reconcile_lease_owner, count(*) FROM app.payment_requests GROUP BY 1 ORDER BY 1"
        ) == [(OWNER, 4), (OTHER, 2)]

    asyncio.run(story())


def test_an_open_child_insert_does_not_hide_its_request(emptied: Emptied) -> None:
    """Seen to fail (no row) with FOR UPDATE in place of FOR NO KEY UPDATE."""
    (id_,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            with emptied.connect(autocommit=False) as other_service:
                other_service.execute(
                    "INSERT INTO app.payment_request_settlements (payment_request_id, evidence_ref, amount_minor, "
                    "confirmations, first_seen_at, last_seen_at) VALUES (%s, 'theirs', 1, 0, now(), now())",
                    [id_],
                )
                assert ids_of(await claimed(worker)) == [id_]
                other_service.rollback()

    asyncio.run(story())


def test_the_longest_due_come_first_then_the_oldest_then_by_id(emptied: Emptied) -> None:
    """Also when PostgreSQL does not go by the index, whose order it is.

    Seen to fail without ORDER BY, and when it begins with created_at or leaves it out.
    """
    hour, base = timedelta(hours=1), now()
    for id_, created_hours_ago, due_hours_ago in (("b", 1, 2), ("z", 0, 3), ("x", 9, 1), ("y", 2, 2), ("a", 1, 2)):
        emptied.insert(
            id=id_, created_at=base - created_hours_ago * hour, next_reconcile_at=base - due_hours_ago * hour
        )

    async def story() -> None:
        url = without(emptied.url, "indexscan", "bitmapscan")
        async with Database(url, application_name="t", lease_seconds=LEASE_SECONDS) as worker:
            await ready(worker)
            got = []
            while batch := ids_of(await claimed(worker, limit=1)):
                assert len(batch) == 1
                got += batch
            assert got == ["z", "y", "a", "b", "x"]

    asyncio.run(story())


@pytest.mark.parametrize(
    "columns",
    [
        {"network": "mainnet"},
        {"chain": "bitcoin", "network": "local", "chain_id": None},
        {"status": "failed"},
        {"next_reconcile_at": None},
        {"next_reconcile_at": now() + timedelta(hours=1)},
        {"reconcile_lease_owner": OTHER, "reconcile_lease_until": now() + timedelta(hours=1)},
        {"reconcile_crashes": 1},
    ],
    ids=lambda columns: next(iter(columns)),
)
def test_a_row_that_is_not_ours_to_claim_is_left_alone(emptied: Emptied, columns: dict[str, Any]) -> None:
    """Seen to fail for each when its condition is taken out."""
    (id_,) = insert(emptied, **columns)
    (ordinary,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            await born(worker, Chain(), network=Network("ethereum", "mainnet"))
            await born(worker, Chain(), network=Network("bitcoin", "local"))
            before = request_of(emptied, id_)
            assert ids_of(await claimed(worker)) == [ordinary]
            assert request_of(emptied, id_) == before

    asyncio.run(story())


@pytest.mark.parametrize("status", ["pending", "detected", "confirmed", "reorged", "expired"])
def test_every_status_but_failed_is_looked_at_when_due(emptied: Emptied, status: str) -> None:
    (id_,) = insert(emptied, status=status)

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            assert ids_of(await claimed(worker)) == [id_]

    asyncio.run(story())


def test_rows_that_cannot_be_claimed_do_not_use_up_the_limit(emptied: Emptied) -> None:
    """Seen to fail when the lease condition stands outside the limited query."""
    insert(emptied, 5, reconcile_lease_owner=OTHER, reconcile_lease_until=now() + timedelta(hours=1),
           next_reconcile_at=now() - timedelta(hours=1))  # fmt: skip
    (ordinary,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            assert ids_of(await claimed(worker, limit=2)) == [ordinary]

    asyncio.run(story())


def test_no_cursor_grants_nothing(emptied: Emptied) -> None:
    """Seen to fail without the EXISTS on the cursor."""
    insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            assert ids_of(await claimed(worker)) == []
            await born(worker, Chain(), network=Network("ethereum", "mainnet"))
            assert ids_of(await claimed(worker)) == []

    asyncio.run(story())


def test_a_cursor_that_has_seen_no_block_grants_nothing(emptied: Emptied) -> None:
    """A chain that is read from its very first block has no time yet. Seen to fail without `tip_time IS NOT NULL`."""
    (id_,) = insert(emptied)
    chain = Chain(first=0)

    async def story() -> None:
        async with store(emptied) as worker:
            await cursors.birth(worker, NETWORK, chain_id=31337, genesis_hash="0x0", parent=None)
            assert ids_of(await claimed(worker)) == []
            cursor = await cursors.take(worker, NETWORK, owner=SCANNER, lease_seconds=30)
            assert cursor is not None
            block = chain.mine()
            emptied.execute("UPDATE app.chain_cursors SET tip_hash = %s", [block.parent_hash])
            cursor = await cursors.take(worker, NETWORK, owner=SCANNER, lease_seconds=30)
            assert cursor is not None
            await committed(worker, cursor, block)
            assert ids_of(await claimed(worker)) == [id_]

    asyncio.run(story())


def test_a_stopped_cursor_grants_nothing_until_it_starts_again(emptied: Emptied) -> None:
    """Seen to fail without `stop_reason IS NULL`."""
    (id_,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            cursor = await born(worker, Chain())
            assert await cursors.stop(worker, cursor, "a reorg below what is final")
            assert ids_of(await claimed(worker)) == []
            assert await cursors.start_again(worker, cursor)
            assert ids_of(await claimed(worker)) == [id_]

    asyncio.run(story())


def test_an_amount_that_is_no_number_comes_as_a_negative_one(emptied: Emptied) -> None:
    """Such a row must be a row error, not the end of every worker. Seen to fail (ValueError) without the CASE."""
    insert(emptied, expected_amount_minor="NaN")

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            (claim,) = (await claimed(worker)).claims
            assert claim.request.error(chain_id=31337, shares_address=False) == "amount_negative"

    asyncio.run(story())


# the epoch


def test_a_lease_that_ended_is_granted_again_with_the_next_epoch(emptied: Emptied) -> None:
    (id_,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            (first,) = (await claimed(worker, owner=OWNER)).claims
            assert (await claimed(worker, owner=OTHER)).claims == ()
            expire_leases(emptied)
            (second,) = (await claimed(worker, owner=OTHER)).claims
            assert (first.request.id, first.epoch) == (id_, 1)
            assert (second.request.id, second.epoch) == (id_, 2)

    asyncio.run(story())


def test_no_way_of_giving_back_resets_the_epoch(emptied: Emptied) -> None:
    """Seen to fail when release, bury or persist set it to 0."""
    (id_,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            for epoch in range(1, 9, 4):
                for give_back in (_release, _release_requests, _bury, _persist):
                    batch = await claimed(worker, suspects=request_of(emptied, id_)["reconcile_crashes"] > 0)
                    assert [claim.epoch for claim in batch.claims] == [epoch]
                    await give_back(worker, batch)
                    assert request_of(emptied, id_)["reconcile_lease_owner"] is None
                    assert request_of(emptied, id_)["reconcile_lease_epoch"] == epoch
                    epoch += 1

    asyncio.run(story())


async def _release(database: Database, batch: Batch) -> None:
    await leases.release(database, batch.owner)


async def _release_requests(database: Database, batch: Batch) -> None:
    await leases.release_requests(database, batch.owner)


async def _bury(database: Database, batch: Batch) -> None:
    await leases.bury(database, incarnation="00000000000000aa", owner=batch.owner, row=None)


async def _persist(database: Database, batch: Batch) -> None:
    done = await persist(database, batch, all_of(batch, decided(Status.PENDING, seconds=0.0)), worker_id="host-0")
    assert len(done.written) == 1


# renew


def test_renewal_extends_the_lease_and_nothing_else(emptied: Emptied) -> None:
    """Seen to fail when it writes next_reconcile_at as the claim does."""
    (id_,) = insert(emptied)

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
    lost_to_other, lost_to_oneself, gone, kept = insert(emptied, 4)

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
    insert(emptied)

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
    (id_,) = insert(emptied)

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
    mine, too = insert(emptied, 2)

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
            (others,) = insert(emptied)
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
    (id_,) = insert(emptied)

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
    insert(emptied)

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
    poison, *others = insert(emptied, 3)

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
    ids = insert(emptied, 2)

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
    ids = insert(emptied, 3)

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
    (id_,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as janitor:
            await ready(janitor)
            for deaths in range(1, 5):
                assert ids_of(await claimed(janitor, suspects=deaths > 1, limit=1)) == [id_]
                await leases.bury(janitor, incarnation="00000000000000aa", owner=OWNER, row=id_)
                row = request_of(emptied, id_)
                assert row["reconcile_crashes"] == deaths
                assert (row["reconcile_error"], row["next_reconcile_at"] is None) == (
                    ("set_aside", True) if deaths == 4 else (None, False)
                )
            assert ids_of(await claimed(janitor, suspects=True)) == []
            assert await leases.sweep(janitor, [NETWORK]) == 0

    asyncio.run(story())


def test_a_persist_clears_the_suspicion(emptied: Emptied) -> None:
    """Seen to fail when persist leaves reconcile_crashes."""
    (id_,) = insert(emptied, reconcile_crashes=3)

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            batch = await claimed(worker, suspects=True, limit=1)
            await _persist(worker, batch)
            assert request_of(emptied, id_)["reconcile_crashes"] == 0

    asyncio.run(story())


def test_burying_twice_counts_once(emptied: Emptied) -> None:
    """The janitor repeats what it got no answer to."""
    (id_,) = insert(emptied)

    async def story() -> None:
        async with store(emptied) as janitor:
            await ready(janitor)
            await claimed(janitor)
            for _ in range(2):
                await leases.bury(janitor, incarnation="00000000000000aa", owner=OWNER, row=id_)
            assert request_of(emptied, id_)["reconcile_crashes"] == 1

    asyncio.run(story())


def test_the_dead_workers_connections_are_ended_before_its_leases_are_given_back(emptied: Emptied) -> None:
    """Seen to fail (the burial waits for the ghost's lock) when they are left alone."""
    (id_,) = insert(emptied)

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
            async with asyncio.timeout(DEADLINE_SECONDS / 2):
                buried = await leases.bury(janitor, incarnation="00000000000000aa", owner=OWNER, row=id_)
            assert buried.requests == 1
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
    forgotten = [
        insert(emptied, status=status, next_reconcile_at=None)[0] for status in ("pending", "detected", "reorged")
    ]
    left = [
        *insert(emptied, status="confirmed", next_reconcile_at=None),
        *insert(emptied, status="expired", next_reconcile_at=None),
        *insert(emptied, status="failed", next_reconcile_at=None),
        *insert(emptied, next_reconcile_at=None, reconcile_error="set_aside"),
        *insert(emptied, next_reconcile_at=None, network="mainnet"),
        *insert(emptied, next_reconcile_at=None, chain="bitcoin", chain_id=None),
        *insert(emptied, next_reconcile_at=now() + timedelta(hours=1)),
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
    (id_,) = insert(emptied, next_reconcile_at=None, reconcile_error="ambiguous_address")

    async def story() -> None:
        async with store(emptied) as janitor:
            assert await leases.sweep(janitor, [NETWORK]) == 1
            assert request_of(emptied, id_)["next_reconcile_at"] is not None

    asyncio.run(story())


# the scan lease


def test_one_scanner_holds_the_cursor_until_its_lease_ends(emptied: Emptied) -> None:
    """Seen to fail without the condition on scan_lease_until."""

    async def story() -> None:
        async with store(emptied) as worker:
            first = await born(worker, Chain(), owner=OWNER)
            assert await cursors.take(worker, NETWORK, owner=OTHER, lease_seconds=30) is None
            emptied.execute("UPDATE app.chain_cursors SET scan_lease_until = now() - interval '1 ms'")
            second = await cursors.take(worker, NETWORK, owner=OTHER, lease_seconds=30)
            assert second is not None
            assert (first.epoch, second.epoch, second.owner) == (1, 2, OTHER)
            await cursors.free(worker, first)  # too late: it is not its any more
            assert cursor_of(emptied)["scan_lease_owner"] == OTHER
            await cursors.free(worker, second)
            assert cursor_of(emptied)["scan_lease_owner"] is None
            assert cursor_of(emptied)["scan_lease_epoch"] == 2

    asyncio.run(story())


def test_a_scanner_may_take_its_own_lease_again(emptied: Emptied) -> None:
    """It holds it without knowing when an answer was lost. Seen to fail (a whole lease is waited for) without that."""

    async def story() -> None:
        async with store(emptied) as worker:
            first = await born(worker, Chain(), owner=OWNER)
            again = await cursors.take(worker, NETWORK, owner=OWNER, lease_seconds=30)
            assert again is not None
            assert (first.epoch, again.epoch) == (1, 2)

    asyncio.run(story())


def test_a_cursor_is_born_once(emptied: Emptied) -> None:
    async def story() -> None:
        async with store(emptied) as worker:
            chain = Chain(first=50)
            await born(worker, chain)
            await cursors.birth(worker, NETWORK, chain_id=1, genesis_hash="0xother", parent=Chain(first=9).parent)
            cursor = await cursors.read(worker, NETWORK)
            assert cursor is not None
            assert (cursor.chain_id, cursor.next_height, cursor.tip_hash) == (31337, 50, chain.parent.block_hash)
            assert (cursor.tail_start, cursor.finalized_height, cursor.scanned_height) == (50, 49, 49)
            assert cursor.tip_time == chain.parent.time
            assert await cursors.read(worker, Network("ethereum", "mainnet")) is None
            assert (
                await cursors.take(worker, Network("ethereum", "mainnet"), owner=OWNER, lease_seconds=LEASE_SECONDS)
                is None
            )

    asyncio.run(story())


def test_taking_waits_no_longer_than_its_lock_time_out(emptied: Emptied) -> None:
    """Seen to fail (nobody tells what it waits for) as a bare statement."""

    async def story() -> None:
        async with store(emptied) as holder, store(emptied, lease_seconds=0.3) as taker:
            await ready(holder)

            async def hold(transaction: Transaction) -> None:
                await transaction.rows("SELECT 1 FROM app.chain_cursors FOR UPDATE")
                with pytest.raises(StoreUnavailable, match="55P03"):
                    await cursors.take(taker, NETWORK, owner=SCANNER, lease_seconds=30)

            await holder.transact(hold)

    asyncio.run(story())
