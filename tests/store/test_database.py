"""The connection: what a caller is told when something is wrong."""

import asyncio
import socket
from urllib.parse import urlsplit, urlunsplit

import pytest

from reconsup.store.database import Database, Transaction
from reconsup.store.errors import SchemaBehind, StoreRefused, StoreRejected, StoreUnavailable
from tests.support import postgres
from tests.support.ledgers import MONEY_MAX, Emptied, claimed, store
from tests.support.postgres import insert_request
from tests.support.stepped import Stepped, until, until_blocked

pytestmark = pytest.mark.service

LOCK = "SELECT id FROM app.payment_requests WHERE id = %(id)s FOR NO KEY UPDATE"


def two_requests(database: postgres.Database) -> tuple[str, str]:
    with database.connect() as connection:
        return insert_request(connection), insert_request(connection)


def with_user(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}"))


# values


def test_amounts_are_exact_integers(emptied: Emptied) -> None:
    """Seen to fail without the loader (Decimal), and with `int(float(…))`."""

    async def story() -> None:
        async with store(emptied) as worker:
            ((amount, zero, listed),) = await worker.fetch(
                "SELECT %(most)s::numeric(78,0) AS a, 0::numeric(78,0) AS b, %(all)s::numeric[] AS c",
                {"most": MONEY_MAX, "all": [1, MONEY_MAX, None]},
            )
            assert (amount, zero, listed) == (MONEY_MAX, 0, [1, MONEY_MAX, None])
            assert {type(amount), type(zero), type(listed[1])} == {int}

    asyncio.run(story())


# refusals


@pytest.mark.direct
@pytest.mark.parametrize(
    ("user", "password"), [("reconsup", "not-the-password"), ("nobody_of_that_name", "not-the-password")]
)
def test_a_wrong_password_is_refused_in_one_sentence_without_it(emptied: Emptied, user: str, password: str) -> None:
    async def story() -> None:
        async with Database(with_user(emptied.url, user, password), application_name="t", lease_seconds=30) as worker:
            with pytest.raises(StoreRefused) as caught:
                await worker.fetch("SELECT 1")
            assert user in str(caught.value)
            assert password not in str(caught.value)
            assert "\n" not in str(caught.value)

    asyncio.run(story())


def test_a_database_of_another_name_is_refused(emptied: Emptied) -> None:
    async def story() -> None:
        url = emptied.url.replace(emptied.name, "no_such_database")
        async with Database(url, application_name="t", lease_seconds=30) as worker:
            with pytest.raises(StoreRefused, match="no_such_database"):
                await worker.fetch("SELECT 1")

    asyncio.run(story())


@pytest.mark.direct
def test_a_role_without_rights_is_refused(database: postgres.Database) -> None:
    """Seen to fail when InsufficientPrivilege is not translated."""
    role = f"guest_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'guest'")

    async def story() -> None:
        url = with_user(database.url, role, "guest")
        async with Database(url, application_name="t", lease_seconds=30) as worker:
            with pytest.raises(StoreRefused, match="permission denied"):
                await worker.fetch("SELECT 1 FROM app.payment_requests")
        database.execute(f"REVOKE CONNECT ON DATABASE {database.name} FROM PUBLIC")
        async with Database(url, application_name="t", lease_seconds=30) as worker:
            with pytest.raises(StoreRefused, match="permission denied"):
                await worker.fetch("SELECT 1")

    try:
        asyncio.run(story())
    finally:
        database.execute(f"DROP ROLE {role}")


def test_a_server_that_is_away_is_unavailable_not_refused(emptied: Emptied) -> None:
    async def story() -> None:
        with socket.socket() as held:  # bound and never listening: nobody else gets this port meanwhile
            held.bind(("127.0.0.1", 0))
            url = emptied.url.replace(str(urlsplit(emptied.url).port), str(held.getsockname()[1]))
            async with Database(url, application_name="t", lease_seconds=30) as worker:
                with pytest.raises(StoreUnavailable, match="refused") as caught:
                    await worker.fetch("SELECT 1")
                assert not isinstance(caught.value, StoreRefused)

    asyncio.run(story())


def test_a_database_that_is_read_only_is_unavailable(database: postgres.Database) -> None:
    """A server that was just demoted says so with an InternalError. Seen to fail when only XX000 was caught."""
    (id_, _) = two_requests(database)
    database.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")

    async def story() -> None:
        async with store(database) as worker:
            with pytest.raises(StoreUnavailable, match="read-only"):
                await worker.fetch("UPDATE app.payment_requests SET updated_at = now() WHERE id = %(id)s", {"id": id_})

    asyncio.run(story())


def test_missing_tables_say_which_command_to_run(empty_database: postgres.Database) -> None:
    async def story() -> None:
        async with store(empty_database) as worker:
            with pytest.raises(SchemaBehind, match="reconsup migrate"):
                await claimed(worker)

    asyncio.run(story())


def test_a_missing_column_says_which_command_to_run(database: postgres.Database) -> None:
    database.execute("ALTER TABLE app.payment_requests DROP COLUMN reconcile_crashes")

    async def story() -> None:
        async with store(database) as worker:
            with pytest.raises(SchemaBehind, match="reconsup migrate"):
                await claimed(worker)
            assert await worker.fetch("SELECT 1 AS one") == [(1,)]

    asyncio.run(story())


@pytest.mark.parametrize("text", ["a\0b", "not-a-status"])
def test_a_value_that_postgresql_will_not_have_is_rejected(emptied: Emptied, text: str) -> None:
    (id_, _) = two_requests(emptied)

    async def story() -> None:
        async with store(emptied) as worker:
            with pytest.raises(StoreRejected):
                await worker.fetch(
                    "UPDATE app.payment_requests SET status = %(text)s WHERE id = %(id)s", {"text": text, "id": id_}
                )
            assert await worker.fetch("SELECT 1 AS one") == [(1,)]

    asyncio.run(story())


# connections


@pytest.mark.direct
def test_a_connection_that_was_ended_is_made_again(emptied: Emptied) -> None:
    async def story() -> None:
        async with store(emptied, "ended") as worker:
            await worker.fetch("SELECT 1")
            emptied.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ended'")
            with pytest.raises(StoreUnavailable):
                await worker.fetch("SELECT 1")
            assert await worker.fetch("SELECT 1 AS one") == [(1,)]

    asyncio.run(story())


def test_a_connection_that_dies_within_a_transaction_writes_nothing(emptied: Emptied) -> None:
    (id_, _) = two_requests(emptied)

    async def story() -> None:
        async with Stepped(emptied.url, before="COMMIT", name="dies") as worker:

            async def work(transaction: Transaction) -> None:
                await transaction.send("UPDATE app.payment_requests SET status = 'failed'")

            doomed = asyncio.create_task(worker.transact(work))
            await worker.reached()
            emptied.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dies'")
            worker.go()
            with pytest.raises(StoreUnavailable):
                await doomed
        assert emptied.fetch("SELECT DISTINCT status FROM app.payment_requests") == [("pending",)]
        assert id_

    asyncio.run(story())


def test_a_cancelled_statement_ends_on_the_server_too(emptied: Emptied) -> None:
    """Seen to fail (the next statement stands in the transaction that failed) when the connection is kept."""
    (id_, _) = two_requests(emptied)

    async def story() -> None:
        async with store(emptied, "holder") as holder, store(emptied, "cancelled") as worker:

            async def lock(transaction: Transaction) -> list[object]:
                return await transaction.rows(LOCK, {"id": id_})

            async def hold(transaction: Transaction) -> None:
                await transaction.rows(LOCK, {"id": id_})
                waiting = asyncio.create_task(worker.transact(lock))
                await until_blocked(emptied.url, "cancelled")
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                await until(
                    emptied.url,
                    "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'cancelled' "
                    "AND state = 'active')",
                )

            await holder.transact(hold)
            assert await worker.fetch("SELECT 1 AS one") == [(1,)]

    asyncio.run(story())


def test_work_that_raises_leaves_nothing_behind(emptied: Emptied) -> None:
    """Seen to fail (the next statement would be part of it) without the rollback."""
    two_requests(emptied)

    async def story() -> None:
        async with store(emptied, "raises") as worker:

            async def work(transaction: Transaction) -> None:
                await transaction.send("UPDATE app.payment_requests SET status = 'failed'")
                raise LookupError("our own")

            with pytest.raises(LookupError, match="our own"):
                await worker.transact(work)
            assert await worker.fetch("SELECT DISTINCT status FROM app.payment_requests") == [("pending",)]
            assert emptied.fetch("SELECT state FROM pg_stat_activity WHERE application_name = 'raises'") == [("idle",)]

    asyncio.run(story())
