"""Leases: who gets a row, and that its epoch only ever grows."""

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest

from reconsup.payments.request import Network, Status
from reconsup.store import cursor as cursors
from reconsup.store import leases
from reconsup.store.database import Database
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
    decided,
    ids_of,
    now,
    request_of,
    store,
)
from tests.support.stepped import Stepped, until_done_or_blocked, without

pytestmark = pytest.mark.service


def expire_leases(database: Emptied) -> None:
    """What time does; here the rows change instead, so that nobody has to wait."""
    database.execute(
        "UPDATE app.payment_requests SET reconcile_lease_until = now() - interval '1 ms', next_reconcile_at = "
        "least(next_reconcile_at, now() - interval '1 ms') WHERE reconcile_lease_owner IS NOT NULL"
    )


async def ready(database: Database) -> None:
    """A running cursor for the network."""
    await born(database, Chain())


# claim


def test_a_claim_grants_the_row_and_returns_what_it_wrote(emptied: Emptied) -> None:
    id_ = emptied.insert(
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
    ids = emptied.insert_many(6)

    async def story() -> None:
        async with (
            Stepped(emptied.url, before="COMMIT", in_transaction=True) as slow,
            store(emptied, "quick") as quick,
        ):
            await ready(quick)
            first = asyncio.create_task(claimed(slow, owner=OWNER, limit=4))
            await slow.reached()
            second = asyncio.create_task(claimed(quick, owner=OTHER, limit=4))
            await until_done_or_blocked(emptied.url, "quick", second)
            assert second.done()
            slow.go()
            assert ids_of(await first) == ids[:4]
            assert ids_of(await second) == ids[4:]
        assert emptied.fetch(
            "SELECT reconcile_lease_owner, count(*) FROM app.payment_requests GROUP BY 1 ORDER BY 1"
        ) == [(OWNER, 4), (OTHER, 2)]

    asyncio.run(story())


def test_a_claim_that_meets_another_never_takes_its_rows(emptied: Emptied) -> None:
    """Also if it had to wait for it. Seen to fail (refused by the history of leases) without any lock clause: then both
    find the rows free, and the second one's UPDATE goes by their ids alone.
    """
    ids = emptied.insert_many(3)

    async def story() -> None:
        async with (
            Stepped(emptied.url, before="COMMIT", in_transaction=True) as slow,
            store(emptied, "quick") as quick,
        ):
            await ready(quick)
            first = asyncio.create_task(claimed(slow, owner=OWNER))
            await slow.reached()
            second = asyncio.create_task(claimed(quick, owner=OTHER))
            await until_done_or_blocked(emptied.url, "quick", second)
            slow.go()
            assert (ids_of(await first), ids_of(await second)) == (ids, [])

    asyncio.run(story())


def test_an_open_child_insert_does_not_hide_its_request(emptied: Emptied) -> None:
    """Seen to fail (no row) with FOR UPDATE in place of FOR NO KEY UPDATE."""
    id_ = emptied.insert()

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
        url = without(emptied.direct_url, "indexscan", "bitmapscan")
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
    id_ = emptied.insert(**columns)
    ordinary = emptied.insert()

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
    id_ = emptied.insert(status=status)

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            assert ids_of(await claimed(worker)) == [id_]

    asyncio.run(story())


@pytest.mark.parametrize(
    "columns",
    [
        {"reconcile_lease_owner": OTHER, "reconcile_lease_until": now() + timedelta(hours=1)},
        {"status": "failed"},
        {"network": "mainnet"},
        {"reconcile_crashes": 1},
    ],
    ids=lambda columns: next(iter(columns)),
)
def test_rows_that_cannot_be_claimed_do_not_use_up_the_limit(emptied: Emptied, columns: dict[str, Any]) -> None:
    """They come first in the order of the claim. Seen to fail for each when its condition stands outside the limited
    query: whoever comes after them is never looked at.
    """
    emptied.insert_many(5, next_reconcile_at=now() - timedelta(hours=1), **columns)
    ordinary = emptied.insert()

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            assert ids_of(await claimed(worker, limit=2)) == [ordinary]

    asyncio.run(story())


@pytest.mark.parametrize(
    "methods_off",
    [(), ("hashjoin", "mergejoin"), ("hashjoin", "mergejoin", "hashagg", "sort", "material")],
    ids=["as planned", "nested loops", "the limited query inside"],
)
def test_a_claim_leases_no_more_rows_than_its_limit_whatever_the_plan(
    emptied: Emptied, methods_off: tuple[str, ...]
) -> None:
    """With stale statistics PostgreSQL may run a limited subquery once for each row outside; each time it skips what is
    leased already and finds others. The last plan is that one, forced.

    Seen to fail there (100 rows leased) when the limited query stands in an IN and not in a CTE.
    """
    emptied.insert_many(100)

    async def story() -> None:
        url = without(emptied.direct_url, *methods_off)
        async with Database(url, application_name="t", lease_seconds=LEASE_SECONDS) as worker:
            await ready(worker)
            assert len((await claimed(worker, limit=10)).claims) == 10

    asyncio.run(story())
    assert emptied.fetch("SELECT count(*) FROM app.payment_requests WHERE reconcile_lease_owner = %s", [OWNER]) == [
        (10,)
    ]


def test_no_cursor_grants_nothing(emptied: Emptied) -> None:
    """Seen to fail without the EXISTS on the cursor."""
    emptied.insert()

    async def story() -> None:
        async with store(emptied) as worker:
            assert ids_of(await claimed(worker)) == []
            await born(worker, Chain(), network=Network("ethereum", "mainnet"))
            assert ids_of(await claimed(worker)) == []

    asyncio.run(story())


def test_a_cursor_that_has_seen_no_block_grants_nothing(emptied: Emptied) -> None:
    """A chain that is read from its very first block has no time yet. Seen to fail without `tip_time IS NOT NULL`."""
    id_ = emptied.insert()
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
    id_ = emptied.insert()

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
    emptied.insert(expected_amount_minor="NaN")

    async def story() -> None:
        async with store(emptied) as worker:
            await ready(worker)
            (claim,) = (await claimed(worker)).claims
            assert claim.request.error(chain_id=31337, shares_address=False) == "amount_negative"

    asyncio.run(story())


# the epoch


def test_a_lease_that_ended_is_granted_again_with_the_next_epoch(emptied: Emptied) -> None:
    id_ = emptied.insert()

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
    id_ = emptied.insert()

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
