"""A database that another service made, with its rows, taken over in place while that service goes on."""

import asyncio
import threading
from collections.abc import Iterator

import psycopg
import pytest

from reconsup.store import migrate
from reconsup.store.ddl import MigrationRefused, Pace
from reconsup.store.revision import EXPECTED_REVISION, REVISIONS
from reconsup.store.twins import CaseTwins, fetch_case_twins
from tests.support import other_service
from tests.support.catalogue import catalogue, files
from tests.support.postgres import Database, Postgres, insert_request

pytestmark = pytest.mark.service

ROWS = 5000
BRISK = Pace(lock_timeout_ms=50, pause_seconds=0.05, pause_seconds_max=0.1, give_up_seconds=20, window_rows=300)
THEIRS = """
SELECT id, wallet_account_id, chain, network, asset, status, expected_amount_minor, address_canonical, address_scheme,
       derivation_index, chain_id, token_standard, token_contract, token_decimals, metadata, expires_at, created_at,
       updated_at, reconcile_lease_owner, reconcile_lease_until, webhook_url
  FROM app.payment_requests ORDER BY id
"""


@pytest.fixture
def database(unwatched: Database) -> Database:
    """As a migration leaves it: what is compared here must be reconsup's own."""
    return unwatched


@pytest.fixture(scope="module")
def other_template(postgres: Postgres) -> Iterator[str]:
    """Name of a database of the other service with some requests, to be copied."""
    made = postgres.create()
    with made.connect() as connection:
        other_service.make_tables(connection, rows=200)
    yield made.name
    postgres.drop(made)


@pytest.fixture
def other(postgres: Postgres, other_template: str) -> Iterator[Database]:
    """A database of the other service, fresh, with 200 requests."""
    copy = postgres.create(other_template)
    yield copy
    postgres.drop(copy)


@pytest.fixture
def big_other(empty_database: Database) -> Database:
    """The same with 5,000 requests."""
    with empty_database.connect() as connection:
        other_service.make_tables(connection, rows=ROWS)
    return empty_database


class Service(threading.Thread):
    """The other service at work: it inserts and reads, one transaction each, and waits for no lock above 2 s."""

    def __init__(self, database: Database) -> None:
        super().__init__(daemon=True)
        self.database = database
        self.inserted: list[str] = []
        self.error: Exception | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            with self.database.connect() as connection:
                connection.execute("SET lock_timeout = '2s'")
                while not self._ended.is_set():
                    self.inserted.append(insert_request(connection, wallet_account_id="w2"))
                    connection.execute("SELECT count(*) FROM app.payment_requests WHERE status = 'pending'")
        except psycopg.Error as error:
            self.error = error

    def __enter__(self) -> "Service":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join(10)
        assert not self.is_alive()
        assert self.error is None


def silent(_: str) -> None:
    """Say nothing."""


def lines(database: Database) -> set[str]:
    with database.connect() as connection:
        return catalogue(connection)


def test_nothing_of_theirs_is_dropped_renamed_or_rewritten(other: Database) -> None:
    """Seen to fail with a lease column of theirs dropped and made anew, and with a table rewritten by a default."""
    before, rows = lines(other), other.fetch(THEIRS)
    with other.connect() as connection:
        numbers = files(connection)

    migrate.upgrade(other.url, say=silent, pace=BRISK)

    assert before <= lines(other)
    assert rows == other.fetch(THEIRS)
    with other.connect() as connection:
        assert numbers.items() <= files(connection).items()


def test_what_is_missing_is_added(other: Database, database: Database) -> None:
    """All that our own tables have is there afterwards, except what theirs do in their way. Seen to fail with
    indexes built on tables of our own only."""
    theirs = (
        "column app.payment_requests.wallet_account_id ",  # not null there
        "constraint app.payment_requests.payment_requests_status_check ",  # has another name there
        "constraint app.payment_requests.payment_requests_metadata_check ",
        "constraint app.payment_request_settlements.payment_request_settlements_metadata_check ",
        "index CREATE INDEX payment_request_settlements_depth_idx ",
    )

    migrate.upgrade(other.url, say=silent, pace=BRISK)

    missing = lines(database) - lines(other)
    assert [line for line in sorted(missing) if not line.startswith(theirs)] == []
    assert len(missing) == len(theirs)


def test_only_open_rows_become_due(big_other: Database) -> None:
    """Seen to fail with the default given in ADD COLUMN: every confirmed request of the past was due at once."""
    migrate.upgrade(big_other.url, say=silent, pace=BRISK)

    due = big_other.fetch(
        "SELECT status, count(*) FILTER (WHERE next_reconcile_at <= now()), count(next_reconcile_at), count(*),"
        " count(*) FILTER (WHERE (reconcile_lease_epoch, reconcile_failures, reconcile_crashes) = (0, 0, 0))"
        " FROM app.payment_requests GROUP BY 1 ORDER BY 1"
    )
    assert due == [
        ("confirmed", 0, 0, 2000, 2000),
        ("detected", 500, 500, 500, 500),
        ("expired", 0, 0, 1000, 1000),
        ("failed", 0, 0, 500, 500),
        ("pending", 500, 500, 500, 500),
        ("reorged", 500, 500, 500, 500),
    ]


def test_a_downgrade_takes_away_only_what_reconsup_added(other: Database) -> None:
    """Twice, and from every revision. Seen to fail with lease columns that were found being dropped too."""
    before, rows = lines(other), other.fetch(THEIRS)

    for revision in (*REVISIONS, EXPECTED_REVISION):
        migrate.upgrade(other.url, revision, say=silent, pace=BRISK)
        migrate.downgrade(other.url, "base", say=silent, pace=BRISK)

        assert before == lines(other)
    assert rows == other.fetch(THEIRS)


def test_a_service_without_lease_columns_gets_and_loses_ours(other: Database) -> None:
    other.execute("ALTER TABLE app.payment_requests DROP reconcile_lease_owner, DROP reconcile_lease_until")
    before = lines(other)

    migrate.upgrade(other.url, say=silent, pace=BRISK)
    assert "column app.payment_requests.reconcile_lease_owner text default none" in lines(other)
    migrate.downgrade(other.url, "base", say=silent, pace=BRISK)

    assert before == lines(other)


def test_a_history_with_rows_survives_the_way_to_base_and_back(other: Database) -> None:
    """It stays, noted as ours, and goes once it is empty. Seen to fail with the notes dropped at base."""
    before = lines(other)
    migrate.upgrade(other.url, say=silent, pace=BRISK)
    other.execute(
        "INSERT INTO app.payment_request_transitions (payment_request_id, from_status, to_status, reason)"
        " VALUES ('old_000001', 'pending', 'detected', 'payment_detected')"
    )

    migrate.downgrade(other.url, "base", say=silent, pace=BRISK)
    migrate.upgrade(other.url, say=silent, pace=BRISK)
    assert other.fetch("SELECT count(*) FROM app.payment_request_transitions") == [(1,)]

    other.execute("DELETE FROM app.payment_request_transitions")
    migrate.downgrade(other.url, "base", say=silent, pace=BRISK)
    assert before == lines(other)


def test_the_service_goes_on_inserting_all_the_time(big_other: Database) -> None:
    """Up, down and up again under its inserts and reads: none fails, none is lost, each is found by the claim."""
    with Service(big_other) as service:
        for _ in range(2):
            migrate.upgrade(big_other.url, say=silent, pace=BRISK)
            migrate.downgrade(big_other.url, "base", say=silent, pace=BRISK)
        migrate.upgrade(big_other.url, say=silent, pace=BRISK)

    assert len(service.inserted) > 0
    assert big_other.fetch(
        "SELECT count(*), count(next_reconcile_at) FROM app.payment_requests WHERE id = ANY (%s)", (service.inserted,)
    ) == [(len(service.inserted), len(service.inserted))]
    assert big_other.fetch("SELECT count(*) FROM app.payment_requests") == [(ROWS + len(service.inserted),)]


def test_an_index_of_theirs_that_does_the_same_is_kept(other: Database) -> None:
    other.execute("CREATE INDEX ix_match ON app.payment_requests (chain, network, lower(address_canonical))")
    before = lines(other)
    said: list[str] = []

    migrate.upgrade(other.url, say=said.append, pace=BRISK)

    assert "index app.ix_match already does what app.reconsup_match_idx would do: kept" in said
    assert not any("reconsup_match_idx" in line for line in lines(other))
    migrate.downgrade(other.url, "base", say=silent, pace=BRISK)
    assert before == lines(other)


def test_another_index_under_our_name_is_not_ours_to_drop(other: Database) -> None:
    for table in ("payment_requests", "wallet_accounts"):
        other.execute(f"CREATE INDEX reconsup_claim_idx ON app.{table} (id)")
        with pytest.raises(MigrationRefused, match=r"app\.reconsup_claim_idx exists and is another index .* rename it"):
            migrate.upgrade(other.url, say=silent, pace=BRISK)
        other.execute(f"ALTER INDEX app.reconsup_claim_idx RENAME TO ix_{table}")

    assert migrate.upgrade(other.url, say=silent, pace=BRISK).after == EXPECTED_REVISION


def test_a_database_that_reconsup_cannot_work_with_is_refused_unchanged(other: Database) -> None:
    """With all that is wrong at once."""
    requests, settlements = "ALTER TABLE app.payment_requests ", "ALTER TABLE app.payment_request_settlements "
    other.execute(settlements + "DROP CONSTRAINT payment_request_settlements_pkey")
    assert refused(other) == (
        "app.payment_request_settlements exists, but (payment_request_id, evidence_ref) is not unique in it; "
        "it was left as it is"
    )
    other.execute(settlements + "DROP is_canonical CASCADE, ALTER evidence_ref TYPE varchar(66)")
    assert "evidence_ref is varchar(66), too short, payment_request_settlements.is_canonical is missing" in refused(
        other
    )
    other.execute(requests + "ALTER created_at TYPE timestamp")
    other.execute(requests + "RENAME asset TO currency")
    assert refused(other) == (
        "app.payment_requests exists, but reconsup cannot work with it: payment_requests.asset is missing, not text, "
        "payment_requests.created_at is timestamp, not timestamptz; it was left as it is"
    )


def refused(database: Database) -> str:
    before = lines(database)
    with pytest.raises(MigrationRefused) as caught:
        migrate.upgrade(database.url, say=silent, pace=BRISK)
    assert before == lines(database)
    return str(caught.value)


def test_a_lease_column_that_will_not_do_is_refused(other: Database) -> None:
    other.execute("ALTER TABLE app.payment_requests ALTER reconcile_lease_owner TYPE varchar(64)")
    with pytest.raises(MigrationRefused, match=r"reconcile_lease_owner is varchar\(64\), too short"):
        migrate.upgrade(other.url, say=silent, pace=BRISK)

    other.execute("ALTER TABLE app.payment_requests ALTER reconcile_lease_owner TYPE varchar")
    other.execute("ALTER TABLE app.payment_requests ADD next_reconcile_at timestamptz")
    with pytest.raises(MigrationRefused, match=r"app\.payment_requests\.next_reconcile_at exists without a default"):
        migrate.upgrade(other.url, say=silent, pace=BRISK)

    other.execute("ALTER TABLE app.payment_requests ALTER next_reconcile_at SET DEFAULT now()")
    assert migrate.upgrade(other.url, say=silent, pace=BRISK).after == EXPECTED_REVISION
    migrate.downgrade(other.url, "base", say=silent, pace=BRISK)


def test_addresses_that_differ_only_in_case_are_listed(other: Database) -> None:
    """By the migration and by `check`; a bitcoin address in other letters is another address."""
    with other.connect() as connection:
        for chain, address in (("ethereum", "0xFACE"), ("ethereum", "0xface"), ("bitcoin", "1A"), ("bitcoin", "1a")):
            insert_request(
                connection, id=f"{chain}-{address}", chain=chain, address_canonical=address, wallet_account_id="w2"
            )
    said: list[str] = []

    migrate.upgrade(other.url, say=said.append, pace=BRISK)

    expected = CaseTwins("local", "0xface", ("ethereum-0xFACE", "ethereum-0xface"))
    assert [line for line in said if "warning" in line] == [
        f"warning: {expected.sentence()}: neither will be settled until one of them is changed"
    ]
    assert _listed(other) == (expected,)


def _listed(database: Database) -> tuple[CaseTwins, ...]:
    async def read() -> tuple[CaseTwins, ...]:
        async with await psycopg.AsyncConnection.connect(database.url) as connection:
            return await fetch_case_twins(connection)

    return asyncio.run(read())
