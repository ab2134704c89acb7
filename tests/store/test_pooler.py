"""A PgBouncer in transaction mode between us and PostgreSQL changes nothing, except whom a burial may end.

`make test-pooler` runs nearly all tests behind one; here is what is special there.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import psycopg
import pytest

from reconsup.payments.request import Status
from reconsup.store import leases
from reconsup.store.database import Database, Transaction
from tests.store import test_waits as waits
from tests.store.test_waits import IDS, Scene
from tests.support.bouncer import Bouncer, bouncer
from tests.support.ledgers import (
    LEASE_SECONDS,
    OTHER,
    OWNER,
    Chain,
    Emptied,
    born,
    claimed,
    decided,
    persisted,
    request_of,
    store,
)
from tests.support.postgres import Database as PgDatabase
from tests.support.postgres import Postgres, insert_request
from tests.support.stepped import Stepped, until, until_blocked

pytestmark = [pytest.mark.service, pytest.mark.direct]

DEAD = OWNER.partition("#")[2]
WHO = "SELECT pg_backend_pid(), current_setting('application_name')"


@pytest.fixture(scope="module")
def pooler(postgres: Postgres) -> Iterator[Bouncer]:
    with bouncer(postgres.url, pool_size=2) as running:
        yield running


@pytest.fixture
def pooled(emptied: Emptied, pooler: Bouncer) -> Emptied:
    """The program's way leads through the pooler, the test's own past it."""
    return replace(emptied, url=pooler.url(emptied.direct_url))


def test_statements_of_one_client_run_on_several_connections(pooled: Emptied) -> None:
    """Otherwise this would not be transaction mode, and the other tests here would show nothing."""

    async def story() -> None:
        async with store(pooled, "one") as one, store(pooled, "other") as other:
            ((first, _),) = await one.fetch(WHO)

            async def hold(transaction: Transaction) -> None:
                ((theirs, _),) = await transaction.rows(WHO)
                assert theirs == first
                assert await one.fetch(WHO) != [(first, "one")]

            await other.transact(hold)

    asyncio.run(story())


@pytest.mark.parametrize(
    "do",
    [
        waits.do_persist,
        waits.do_hand_back,
        waits.do_renew,
        waits.do_release,
        waits.do_bury,
        waits.do_admit,
        waits.do_commit,
        waits.do_commit_height,
        waits.do_roll_back,
        waits.do_touch_due,
        waits.do_sweep,
    ],
    ids=lambda do: do.__name__[3:],
)
def test_everything_works_among_clients_who_share_connections(
    pooled: Emptied, do: Callable[[Scene, Database], Awaitable[int]]
) -> None:
    """The others leave the one of two connections that they get another time-out, isolation and name each time."""
    is_done = False

    async def disturb(name: str) -> None:
        async with Database(pooled.url, application_name=name, lease_seconds=9) as other:

            async def work(transaction: Transaction) -> None:
                await transaction.send("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                await transaction.send("SELECT 1")

            while not is_done:
                await other.transact(work)

    async def story() -> None:
        nonlocal is_done
        scene = Scene()
        await scene.set(pooled)
        pooled.execute(waits.BEFORE.get(do, "SELECT 1"))
        others = [asyncio.create_task(disturb(name)) for name in ("x", "y", "z")]
        async with store(pooled, "worker") as worker:
            assert await do(scene, worker) == len(IDS)
        is_done = True
        await asyncio.gather(*others)

    asyncio.run(story())


def test_a_pooler_is_told_from_postgresql_itself(pooled: Emptied) -> None:
    """Seen to fail (both are direct) when is_direct always says so."""

    async def story() -> None:
        async with (
            store(pooled) as behind,
            Database(pooled.direct_url, application_name="t", lease_seconds=9) as direct,
        ):
            assert not await behind.is_direct()
            assert await direct.is_direct()

    asyncio.run(story())


def test_a_burial_leaves_alone_who_uses_the_dead_workers_connection_now(pooled: Emptied) -> None:
    """Another program's client, which gives no name, keeps the name that the connection had.

    Seen to fail (the payment service's transaction is ended in its middle) when burials end connections there too.
    """
    id_ = pooled.insert()

    async def story() -> None:
        async with store(pooled, f"reconsup/{DEAD}") as dying, store(pooled, "janitor") as janitor:
            await born(janitor, Chain(), owner=OWNER)
            await claimed(dying)
            with psycopg.connect(pooled.url, autocommit=True) as theirs, theirs.transaction():
                ((_, name),) = theirs.execute(WHO).fetchall()
                assert name == f"reconsup/{DEAD}"
                theirs.execute("UPDATE app.payment_requests SET metadata = '{}' WHERE id <> %s", [id_])
                released = await leases.bury(janitor, incarnation=DEAD, owner=OWNER, row=id_)
                assert (released.requests, released.scans) == (1, 1)
                theirs.execute("SELECT 1")
        assert request_of(pooled, id_)["reconcile_crashes"] == 1

    asyncio.run(story())


def test_a_killed_workers_open_transaction_ends_with_its_client(pooled: Emptied) -> None:
    """Nobody ends it by name there: the pooler itself does, and its locks are free for the burial."""
    id_ = pooled.insert()

    async def story() -> None:
        async with (
            Stepped(pooled.url, before="COMMIT", name=f"reconsup/{DEAD}") as ghost,
            store(pooled, "janitor") as janitor,
        ):
            await born(janitor, Chain())
            batch = await claimed(ghost)
            writing = asyncio.create_task(persisted(ghost, batch, decided(Status.DETECTED, seconds=9.0)))
            await ghost.reached()
            hang_up(ghost)
            assert (await leases.bury(janitor, incarnation=DEAD, owner=OWNER, row=id_)).requests == 1
            assert request_of(pooled, id_)["status"] == "pending"
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    asyncio.run(story())


def hang_up(worker: Database) -> None:
    """What the kernel does when a process is killed."""
    assert worker._connection is not None
    with socket.socket(fileno=socket.dup(worker._connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


SLOW_GRANTS = """
CREATE FUNCTION app.wait() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END $$;
CREATE TRIGGER wait BEFORE UPDATE ON app.payment_requests FOR EACH ROW
WHEN (NEW.reconcile_lease_epoch <> OLD.reconcile_lease_epoch) EXECUTE FUNCTION app.wait();
"""


@pytest.mark.parametrize("road", ["direct", "pooled"])
def test_a_claim_of_the_dead_that_is_running_at_the_burial(database: PgDatabase, pooler: Bouncer, road: str) -> None:
    """Ended where it can be; behind a pooler it is a grant to nobody, which ends like any lease and costs no more."""
    url = database.direct_url if road == "direct" else pooler.url(database.direct_url)
    database.execute(SLOW_GRANTS)
    with database.connect() as outsider:
        id_ = insert_request(outsider)
        outsider.execute("SELECT pg_advisory_lock(7)")

        async def story() -> None:
            async with (
                Database(url, application_name=f"reconsup/{DEAD}", lease_seconds=LEASE_SECONDS) as ghost,
                Database(url, application_name="janitor", lease_seconds=LEASE_SECONDS) as janitor,
            ):
                await born(janitor, Chain())
                claiming = asyncio.create_task(claimed(ghost, lease_seconds=0.5))
                await until_blocked(database.direct_url, f"reconsup/{DEAD}")
                hang_up(ghost)
                assert (await leases.bury(janitor, incarnation=DEAD, owner=OWNER, row=None)).requests == 0
                outsider.execute("SELECT pg_advisory_unlock(7)")
                await until(database.direct_url, IS_ALL_QUIET)
                if road == "pooled":
                    assert outsider.execute(LEASES).fetchall() == [(OWNER, 1)]
                    await until(
                        database.direct_url, "SELECT 1 FROM app.payment_requests WHERE next_reconcile_at < now()"
                    )
                batch = await claimed(janitor, owner=OTHER)
                assert [(claim.request.id, claim.epoch) for claim in batch.claims] == [(id_, 1 + (road == "pooled"))]
                await asyncio.gather(claiming, return_exceptions=True)

        asyncio.run(story())


LEASES = "SELECT reconcile_lease_owner, reconcile_lease_epoch FROM app.payment_requests"
IS_ALL_QUIET = """
SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'
                           AND pid <> pg_backend_pid())"""
