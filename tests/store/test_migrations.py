"""Up and down on a database of our own, and what is said when that cannot be."""

import io
import re
from contextlib import redirect_stderr
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.conninfo import make_conninfo
from sqlalchemy import NullPool, create_engine

from reconsup.store import migrate, schema
from reconsup.store.ddl import MigrationError, MigrationRefused, Pace, Steps
from reconsup.store.revision import EXPECTED_REVISION, REVISIONS, VERSION_TABLE, SchemaState
from tests.support.catalogue import catalogue, without_bookkeeping
from tests.support.postgres import Database, Postgres, insert_request

pytestmark = pytest.mark.service

CURSOR = """
INSERT INTO app.chain_cursors (chain, network, chain_id, genesis_hash, next_height, tip_hash, tail_start)
VALUES ('ethereum', 'local', 1, '0x0', 1, '0x0', 0)
"""
HISTORY = """
INSERT INTO app.payment_request_transitions (payment_request_id, from_status, to_status, reason)
VALUES ('pr', 'pending', 'detected', 'payment_detected')
"""


@pytest.fixture
def database(unwatched: Database) -> Database:
    """As a migration leaves it: what is compared here must be reconsup's own."""
    return unwatched


def silent(_: str) -> None:
    """Say nothing."""


def lines(database: Database) -> set[str]:
    with database.connect() as connection:
        return catalogue(connection)


def test_migrations_lead_to_the_tables_of_the_schema_page(database: Database, empty_database: Database) -> None:
    """Object by object, down to defaults, constraints and storage options. Seen to fail with a column's default,
    an index's condition and a fill factor left out of the revisions."""
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(empty_database.url), poolclass=NullPool
    )
    empty_database.execute("CREATE SCHEMA app")
    schema.metadata.create_all(engine)

    described, migrated = lines(empty_database), lines(database)

    assert described == {line for line in migrated if VERSION_TABLE not in line}


def test_alembic_finds_nothing_to_change(database: Database) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database.url), poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == "app",
                "version_table": VERSION_TABLE,
                "version_table_schema": "app",
                "compare_server_default": True,
            },
        )

        assert compare_metadata(context, schema.metadata) == []


def test_the_program_knows_its_revisions() -> None:
    scripts = ScriptDirectory(str(migrate.migrations_folder()))

    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == REVISIONS
    assert scripts.get_current_head() == EXPECTED_REVISION


def test_up_and_down_again_leaves_nothing_behind(empty_database: Database) -> None:
    before = lines(empty_database)

    for _ in range(2):
        assert migrate.upgrade(empty_database.url, say=silent) == migrate.Migrated(None, EXPECTED_REVISION)
        assert migrate.downgrade(empty_database.url, "base", say=silent) == migrate.Migrated(EXPECTED_REVISION, None)
        assert before == lines(empty_database)


def test_a_database_in_sql_ascii_is_migrated_too(postgres: Postgres) -> None:
    """Where nobody chose an encoding, initdb takes this one. Seen to fail, with a traceback, on answers in bytes."""
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
        try:
            url = postgres.url_of("ascii")
            migrate.upgrade(url, say=silent)
            assert migrate.schema_state(url).is_ready
        finally:
            admin.execute("DROP DATABASE ascii WITH (FORCE)")


def test_each_revision_goes_down_to_where_it_came_from(empty_database: Database) -> None:
    """Seen to fail with a table and with an index left out of a downgrade."""
    seen: list[set[str]] = []
    for revision in REVISIONS:
        migrate.upgrade(empty_database.url, revision, say=silent)
        seen.append(without_bookkeeping(lines(empty_database)))

    for revision, expected in zip(REVISIONS[-2::-1], seen[-2::-1], strict=True):
        migrate.downgrade(empty_database.url, "-1", say=silent)
        assert migrate.schema_state(empty_database.url).current == revision
        assert without_bookkeeping(lines(empty_database)) == expected


def test_a_second_upgrade_changes_nothing(database: Database) -> None:
    with database.connect() as connection:
        insert_request(connection)
    before = lines(database), database.fetch("SELECT xmin, * FROM app.payment_requests")

    assert migrate.upgrade(database.url, say=silent) == migrate.Migrated(EXPECTED_REVISION, EXPECTED_REVISION)

    assert before == (lines(database), database.fetch("SELECT xmin, * FROM app.payment_requests"))


def test_an_insert_of_the_other_service_gets_our_defaults(database: Database) -> None:
    with database.connect() as connection:
        insert_request(connection)

    assert database.fetch(
        "SELECT reconcile_lease_epoch, next_reconcile_at = created_at, reconcile_failures, reconcile_crashes,"
        " num_nonnulls(reconcile_lease_owner, reconcile_lease_until, reconcile_due_height,"
        " reconcile_admitted_height, reconcile_error) FROM app.payment_requests"
    ) == [(0, True, 0, 0, 0)]


def test_down_to_base_is_refused_while_our_tables_hold_rows(database: Database) -> None:
    """And nothing is changed on the way to the refusal. Seen to fail without the check before the first revision
    goes (the columns of the leases were gone by then)."""
    with database.connect() as connection:
        insert_request(connection)
    before = lines(database)

    with pytest.raises(MigrationRefused, match=r"drops app\.payment_requests, and there are rows: export and delete"):
        migrate.downgrade(database.url, "base", say=silent)

    assert before == lines(database)
    assert migrate.schema_state(database.url).is_ready
    assert database.fetch("SELECT count(*) FROM app.payment_requests") == [(1,)]


def test_a_row_that_came_after_the_question_is_seen_under_the_lock(database: Database) -> None:
    """Seen to fail with a plain DROP TABLE there."""
    with database.connect() as connection:
        insert_request(connection)
        steps = Steps(connection, say=silent, pace=Pace())

        assert steps.drop_empty_tables("payment_request_settlements", "payment_requests") == ["payment_requests"]
        assert steps.table_exists("payment_request_settlements")
        assert steps.has_rows("payment_requests")


def test_no_row_is_lost_on_the_way_down_and_up(database: Database) -> None:
    """The history stays when it holds rows; seen to fail with a plain DROP TABLE in its revision."""
    with database.connect() as connection:
        insert_request(connection, status="confirmed")
        insert_request(connection)
    database.execute(HISTORY)
    database.execute("UPDATE app.payment_requests SET reconcile_admitted_height = 7, next_reconcile_at = NULL")
    before = lines(database)

    migrate.downgrade(database.url, "0001_base", say=silent)
    assert database.fetch("SELECT count(*) FROM app.payment_request_transitions") == [(1,)]
    migrate.upgrade(database.url, say=silent)

    assert before == lines(database)
    assert database.fetch("SELECT status, next_reconcile_at IS NULL FROM app.payment_requests ORDER BY 1") == [
        ("confirmed", True),
        ("pending", False),
    ]
    assert database.fetch("SELECT count(*) FROM app.payment_request_transitions") == [(1,)]


def test_a_chain_memory_that_is_dropped_takes_its_admissions_along(database: Database) -> None:
    """A new memory starts at another height: a request admitted to the old one would miss what lies between.
    Seen to fail without the update in the downgrade."""
    with database.connect() as connection:
        insert_request(connection)
    database.execute("UPDATE app.payment_requests SET reconcile_admitted_height = 7")
    database.execute(CURSOR)

    migrate.downgrade(database.url, "0002_leases", say=silent)
    migrate.upgrade(database.url, say=silent)

    assert database.fetch("SELECT reconcile_admitted_height FROM app.payment_requests") == [(None,)]


def test_a_stranger_with_the_name_of_a_table_of_ours_is_left_alone(empty_database: Database) -> None:
    empty_database.execute("CREATE SCHEMA app")
    empty_database.execute("CREATE TABLE app.chain_blocks (mine int)")

    with pytest.raises(MigrationRefused, match=r"app\.chain_blocks exists and reconsup did not make it: rename it"):
        migrate.upgrade(empty_database.url, say=silent)

    empty_database.execute("ALTER TABLE app.chain_blocks RENAME TO mine")
    assert migrate.upgrade(empty_database.url, say=silent).after == EXPECTED_REVISION


def test_states(empty_database: Database) -> None:
    assert migrate.schema_state(empty_database.url) == SchemaState(None)
    assert migrate.schema_state(empty_database.url).is_behind
    migrate.upgrade(empty_database.url, "0002_leases", say=silent)
    assert "is at 0002_leases, 0007_fleet is needed: run `reconsup migrate`" in sentence(empty_database)
    migrate.upgrade(empty_database.url, "+1", say=silent)
    migrate.upgrade(empty_database.url, say=silent)
    assert migrate.schema_state(empty_database.url).is_ready
    empty_database.execute(f"UPDATE app.{VERSION_TABLE} SET version_num = '0099_future'")
    state = migrate.schema_state(empty_database.url)
    assert (state.is_ready, state.is_behind) == (False, False)
    assert "0099_future, which this reconsup does not know" in sentence(empty_database)
    with pytest.raises(migrate.UnknownRevision, match="0099_future"):
        migrate.upgrade(empty_database.url, say=silent)


def sentence(database: Database) -> str:
    return migrate.schema_state(database.url).sentence()


def test_an_unknown_revision_is_named(database: Database) -> None:
    for go in (migrate.upgrade, migrate.downgrade):
        for revision in ("nonsense", "-9", "+9", "", "a:b"):
            with pytest.raises(migrate.UnknownRevision, match=rf"no way to '{re.escape(revision)}'.* are 0001_base, "):
                go(database.url, revision, say=silent)

    assert migrate.schema_state(database.url).is_ready


def test_an_unknown_revision_leaves_an_empty_database_empty(empty_database: Database) -> None:
    before = lines(empty_database)

    with pytest.raises(migrate.UnknownRevision):
        migrate.upgrade(empty_database.url, "nonsense", say=silent)

    assert before == lines(empty_database)


@pytest.mark.parametrize("go", [migrate.upgrade, migrate.schema_state])
@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"password": "very-wrong"}, migrate.AccessDenied, "password authentication failed"),
        ({"dbname": "nowhere"}, migrate.AccessDenied, 'database "nowhere" does not exist'),
        ({"port": 1}, migrate.DatabaseAway, "start it, or check host and port"),
    ],
)
def test_a_database_that_cannot_be_reached(
    postgres: Postgres, go: Any, change: dict[str, Any], kind: type[MigrationError], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        go(make_conninfo(postgres.url, **change))

    assert "very-wrong" not in str(caught.value)


@pytest.mark.direct
def test_a_user_without_the_right_is_told(empty_database: Database) -> None:
    empty_database.execute("DROP ROLE IF EXISTS weak")
    empty_database.execute("CREATE ROLE weak LOGIN PASSWORD 'weak'")

    with pytest.raises(migrate.AccessDenied, match="migrate as the owner of the tables"):
        migrate.upgrade(make_conninfo(empty_database.url, user="weak", password="weak"), say=silent)


def test_two_at_once_are_one_after_the_other(empty_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits its turn and says who is at work when that takes too long; seen to fail without the
    advisory lock."""
    monkeypatch.setattr(migrate, "LOCK_WAIT_SECONDS", 0.3)
    with empty_database.connect() as other, other.transaction():
        other.execute(f"SELECT pg_advisory_xact_lock({migrate.LOCK_KEY})")
        with pytest.raises(migrate.AnotherMigration, match="another `reconsup migrate`"):
            migrate.upgrade(empty_database.url, say=silent)

    assert migrate.upgrade(empty_database.url, say=silent).after == EXPECTED_REVISION


def test_by_default_stderr_is_told(empty_database: Database) -> None:
    empty_database.execute("CREATE SCHEMA app")
    migrate.upgrade(empty_database.url, "0001_base")
    with empty_database.connect() as connection:
        insert_request(connection, address_canonical="0xAB")
        insert_request(connection, address_canonical="0xab")

    with redirect_stderr(io.StringIO()) as told:
        migrate.upgrade(empty_database.url)

    assert "share the address 0xab, in letters of different case" in told.getvalue()
