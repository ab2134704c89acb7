"""Bringing a database's schema up or down: alembic, driven from here, without an ini file.

Owns finding the revisions (a checkout's `migrations/`, a wheel's `reconsup/_migrations/`), the connection they
run on, and the words for whatever goes wrong. One migration at a time: a second connection holds an advisory lock in a
transaction of its own for as long as one runs; it has no snapshot, so no index build waits for it, and it works
through a pooler in transaction mode. Must never run unasked; `revision` tells whether it is needed.
"""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import DBAPIError

import reconsup
from reconsup.store.ddl import MigrationError, Pace, PgConnection, Steps
from reconsup.store.revision import REVISIONS, VERSION_TABLE, SchemaState, read_state

CONNECT_SECONDS = 10
LOCK_WAIT_SECONDS = 60.0
REVISION_FORM = re.compile(r"\w+|[+-]\d+")  # alembic's further forms (branches, ranges) have no use here
LOCK_KEY = 0x7265636F6E737570  # the letters of "reconsup"


class DatabaseAway(MigrationError):
    """Nobody answers at DATABASE_URL, or the server is starting, stopping or full."""


class AccessDenied(MigrationError):
    """The server answered and refused: password, user, database name, or a right that is missing."""


class UnknownRevision(MigrationError):
    """The revision asked for, or the one the database has, is not among ours."""


class AnotherMigration(MigrationError):
    """Somebody else is migrating this database."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration did: the revision before and after (None: no schema of ours)."""

    before: str | None
    after: str | None


def upgrade(
    database_url: str,
    revision: str = "head",
    *,
    say: Callable[[str], None] | None = None,
    pace: Pace | None = None,
) -> Migrated:
    """Bring the schema up to `revision` (`head`, a name, `+1`). A no-op when it is there or above already.

    `say` gets a sentence for each thing an operator may want to see; default: stderr. Raises MigrationError.
    """
    return _migrate(database_url, revision, command.upgrade, say, pace)


def downgrade(
    database_url: str,
    revision: str,
    *,
    say: Callable[[str], None] | None = None,
    pace: Pace | None = None,
) -> Migrated:
    """Take the schema down to `revision` (`base`, a name, `-1`): only what reconsup added goes, never a row.

    Raises MigrationError, e.g. where tables of our own hold requests.
    """
    return _migrate(database_url, revision, _downgrade, say, pace)


def schema_state(database_url: str) -> SchemaState:
    """Return what revision the database has and which one is needed. Raises DatabaseAway, AccessDenied."""
    with _connect(database_url) as connection, _explained():
        return read_state(connection)


def migrations_folder() -> Path:
    """Return the folder of the revisions: in an installed package, or in a source checkout."""
    package = Path(reconsup.__file__).parent
    for folder in (package / "_migrations", package.parent / "migrations"):
        if (folder / "env.py").exists():
            return folder
    raise MigrationError(f"the migrations are missing from {package}: install reconsup again")


def explain_connect(error: psycopg.OperationalError) -> DatabaseAway | AccessDenied:
    """Name why no connection came about. What libpq says holds host, port and user, never a password."""
    words = " ".join(str(error).split())
    passing = ("starting up", "shutting down", "recovery", "too many", "remaining connection slots", "not yet accept")
    if "FATAL:" in words and not any(each in words for each in passing):
        return AccessDenied(f"the database refused DATABASE_URL ({words}): check its user, password and name")
    return DatabaseAway(f"the database does not answer ({words}): start it, or check host and port in DATABASE_URL")


def _migrate(
    database_url: str,
    revision: str,
    go: Callable[[Config, str], None],
    say: Callable[[str], None] | None,
    pace: Pace | None,
) -> Migrated:
    """Run `go` alone on this database; `before` is what the database had once we were alone."""
    with (
        _explained(),
        _connect(database_url) as guard,
        _alone(guard),
        _alembic(database_url, say or _say_to_stderr, pace or Pace()) as (config, steps),
    ):
        before = read_state(steps.connection)
        if not (before.is_ready or before.is_behind):
            raise UnknownRevision(before.sentence())
        target = _target(revision, before.current)
        steps.prepare()
        try:
            go(config, target)
        except (CommandError, RevisionError) as error:
            raise _unknown(revision, str(error)) from error
        finally:
            with contextlib.suppress(psycopg.Error):  # a lost connection: the next run cleans up
                _clean_up(steps)
        return Migrated(before.current, read_state(steps.connection).current)


def _target(revision: str, current: str | None) -> str:
    """Turn `+1` or `-1` into the name of a revision, or `base`; alembic counts from different places."""
    if not REVISION_FORM.fullmatch(revision):
        raise _unknown(revision, "a name, `head`, `base`, +1 or -1 is needed")
    if revision[0] not in "+-":
        return revision
    index = (0 if current is None else REVISIONS.index(current) + 1) + int(revision)
    if not 0 <= index <= len(REVISIONS):
        raise _unknown(revision, f"the database is at {current or 'base'}")
    return REVISIONS[index - 1] if index else "base"


def _downgrade(config: Config, revision: str) -> None:
    """Ask each revision whether it can go, before the first one does."""
    steps = config.attributes["steps"]
    current = read_state(steps.connection).current
    if current is not None:
        for script in ScriptDirectory.from_config(config).iterate_revisions(current, revision):
            if hasattr(script.module, "before_downgrade"):
                script.module.before_downgrade(steps)
    command.downgrade(config, revision)


@contextlib.contextmanager
def _alembic(database_url: str, say: Callable[[str], None], pace: Pace) -> Iterator[tuple[Config, Steps]]:
    """Prepare alembic on a connection of its own."""
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: _connect(database_url),  # libpq itself reads the URL: all its forms are good
        poolclass=NullPool,
        pool_reset_on_return=None,  # nothing to reset, and on a lost connection it would log a traceback
        isolation_level="AUTOCOMMIT",
    )
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        config = Config()
        config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
        steps = Steps(driver, say=say, pace=pace)
        config.attributes.update(connection=connection, steps=steps)
        yield config, steps


def _connect(database_url: str) -> PgConnection:
    try:
        return psycopg.connect(
            database_url,
            autocommit=True,
            prepare_threshold=None,
            connect_timeout=CONNECT_SECONDS,
            application_name="reconsup/migrate",
            client_encoding="UTF8",  # else a database in SQL_ASCII answers in bytes
        )
    except psycopg.OperationalError as error:
        raise explain_connect(error) from error
    except psycopg.ProgrammingError as error:
        raise AccessDenied(f"DATABASE_URL is not a PostgreSQL address ({error}): postgresql://…") from error


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what the database may answer to a migration into sentences."""
    try:
        with _unwrapped():
            yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise AccessDenied(
            f"the database user lacks a right ({_first_line(error)}): migrate as the owner of the tables in schema app"
        ) from error
    except psycopg.errors.DiskFull as error:
        raise MigrationError(
            f"the database's disk is full ({_first_line(error)}): make room, then run the same command again"
        ) from error
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
        raise MigrationError(
            f"a step of the migration was cut short ({_first_line(error)}): run the same command again, "
            "it goes on where it was"
        ) from error
    except psycopg.OperationalError as error:
        raise DatabaseAway(
            f"the database went away during the migration ({_first_line(error)}): run the same command again, "
            "it goes on where it was"
        ) from error
    except psycopg.Error as error:
        raise MigrationError(f"the database refused a step of the migration ({_first_line(error)})") from error


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """Let out what psycopg said where SQLAlchemy wrapped it (alembic's own statements)."""
    try:
        yield
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise error.orig from error
        raise


@contextlib.contextmanager
def _alone(guard: PgConnection) -> Iterator[None]:
    """Hold the right to migrate; wait for it without a snapshot that would hold up the other's index builds."""
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        with guard.transaction():
            guard.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            # Without a parameter: with one, the SELECT's portal stays open and with it a snapshot (measured: an
            # index build on the other connection then waits for this one, and this one for it).
            row = guard.execute(f"SELECT pg_try_advisory_xact_lock({LOCK_KEY})").fetchone()
            if row == (True,):
                yield
                return
        if time.monotonic() > deadline:
            raise AnotherMigration(
                f"another `reconsup migrate` has been at work on this database for {LOCK_WAIT_SECONDS:.0f} s: "
                "let it finish, then run the same command again"
            )
        time.sleep(0.2)


def _clean_up(steps: Steps) -> None:
    """Leave no trace of our own housekeeping where there is no schema of ours (any more)."""
    if read_state(steps.connection).current is not None:
        return
    with steps.connection.transaction():
        steps.run(f"DROP TABLE IF EXISTS app.{VERSION_TABLE}")
        if steps.fetch("SELECT 1 FROM app.reconsup_schema_objects WHERE kind <> 'schema'"):
            return  # e.g. a history that holds rows stays, and with it the note that it is ours
        made_schema = steps.origin("schema", "app") == "made"
        steps.run("DROP TABLE app.reconsup_schema_objects")
        if made_schema and not steps.fetch("SELECT 1 FROM pg_class WHERE relnamespace = 'app'::regnamespace LIMIT 1"):
            steps.run("DROP SCHEMA app")


def _unknown(revision: str, reason: str) -> UnknownRevision:
    return UnknownRevision(f"there is no way to '{revision}' ({reason}): the revisions are {', '.join(REVISIONS)}")


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _say_to_stderr(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
