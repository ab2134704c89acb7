"""How a migration changes a database that others are using.

The only hands that the files in `migrations/` have. Each step is a short transaction of its own, can be repeated,
and gives way: a lock that is not free at once is waited for a quarter of a second and asked for again later, so
that nobody queues behind us. Rows are changed in small batches, indexes built CONCURRENTLY (`indexes`).
Whatever a step makes is noted as `made` in `app.reconsup_schema_objects` in the same transaction; what was there
already is noted as `found`. Must never drop, rename or rewrite anything that is not noted as made.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import psycopg
from alembic.runtime.migration import MigrationContext

PgConnection = psycopg.Connection[tuple[object, ...]]

# What a column of ours may be called by PostgreSQL in a database that another service made.
TEXT = ("text", "varchar")
BIGINT = ("int8",)
INTEGER = ("int4",)
NUMERIC = ("numeric",)
INSTANT = ("timestamptz",)
JSON = ("jsonb",)
BOOLEAN = ("bool",)
TEXT_LENGTH_MIN = 255  # a varchar shorter than this may cut a lease owner or a token's evidence

_OBJECTS = """
CREATE TABLE IF NOT EXISTS app.reconsup_schema_objects (
    kind text NOT NULL,
    name text NOT NULL,
    origin text NOT NULL CHECK (origin IN ('made', 'found')),
    noted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, name)
)
"""


class MigrationError(Exception):
    """A migration cannot go on; the message is a sentence for the operator. What was done so far stays done."""


class MigrationRefused(MigrationError):
    """The database holds something that the migration must not touch, or cannot build on."""


class LocksBusy(MigrationError):
    """Others kept a table locked for as long as we were willing to ask for it."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient and how gentle the steps are."""

    lock_timeout_ms: int = 250
    pause_seconds: float = 0.25  # doubled at every try
    pause_seconds_max: float = 8.0
    give_up_seconds: float = 180.0
    window_rows: int = 2000  # rows looked at per statement and commit


@dataclass(frozen=True, slots=True)
class AddedColumn:
    """A column of ours on a table that may be somebody else's.

    `definition` is what ADD COLUMN gets. `later_default` is set by a second command, so that rows which
    exist keep null.
    """

    name: str
    definition: str
    types: tuple[str, ...]
    later_default: str | None = None

    @property
    def has_default(self) -> bool:
        """Others insert without knowing the column, and the row must get a value."""
        return self.later_default is not None or "DEFAULT" in self.definition


class Steps:
    """The steps of a migration, over one connection in autocommit mode."""

    def __init__(self, connection: PgConnection, *, say: Callable[[str], None], pace: Pace) -> None:
        assert connection.autocommit
        self.connection = connection
        self.say = say
        self.pace = pace

    # -- whose is it

    def prepare(self) -> None:
        """Make the schema and the notes, unless they are there."""
        with self.connection.transaction():
            # Not IF NOT EXISTS: that asks for the right to create schemas even where none is missing.
            made_schema = not self.fetch("SELECT 1 FROM pg_namespace WHERE nspname = 'app'")
            if made_schema:
                self.run("CREATE SCHEMA app")
            self.run(_OBJECTS)
            if made_schema:
                self.note("schema", "app", "made")

    def origin(self, kind: str, name: str) -> str | None:
        """Return 'made', 'found', or None when nothing is noted."""
        rows = self.fetch("SELECT origin FROM app.reconsup_schema_objects WHERE kind = %s AND name = %s", (kind, name))
        return str(rows[0][0]) if rows else None

    def note(self, kind: str, name: str, origin: str) -> None:
        """Note whose an object is; the first note stands."""
        self.run(
            "INSERT INTO app.reconsup_schema_objects (kind, name, origin) VALUES (%s, %s, %s)"
            " ON CONFLICT (kind, name) DO NOTHING",
            (kind, name, origin),
        )

    def forget(self, kind: str, name: str) -> None:
        """Take a note away."""
        self.run("DELETE FROM app.reconsup_schema_objects WHERE kind = %s AND name = %s", (kind, name))

    # -- statements, put together from names and texts in this package, never from input

    def run(self, statement: str, values: Sequence[object] = ()) -> int:
        """Execute one statement and return how many rows it changed."""
        return self.connection.execute(statement, values or None).rowcount

    def fetch(self, query: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """Execute a query and return its rows."""
        return self.connection.execute(query, values or None).fetchall()

    def short(self, table: str, work: Callable[[], None]) -> None:
        """Do `work` in one transaction under a short lock time-out, again and again until it gets its locks.

        Raises LocksBusy, naming who is in the way of `table`, when the patience is used up.
        """
        deadline = time.monotonic() + self.pace.give_up_seconds
        pause = self.pace.pause_seconds
        while True:
            try:
                with self.connection.transaction():
                    self.run(f"SET LOCAL lock_timeout = {self.pace.lock_timeout_ms}")
                    self.run("SET LOCAL statement_timeout = 0")
                    return work()
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                if time.monotonic() + pause > deadline:
                    raise LocksBusy(self._busy_sentence(table)) from error
                self.say(f"app.{table} is locked by another session; trying again in {pause:.2g} s")
                time.sleep(pause)
                pause = min(pause * 2, self.pace.pause_seconds_max)

    def _busy_sentence(self, table: str) -> str:
        holders = self.fetch(
            """
            SELECT DISTINCT a.pid, coalesce(nullif(a.application_name, ''), 'no name'), coalesce(a.state, '?')
              FROM pg_locks l JOIN pg_stat_activity a USING (pid)
             WHERE l.relation = to_regclass(%s) AND l.granted AND a.pid <> pg_backend_pid()
             ORDER BY a.pid LIMIT 5
            """,
            (f"app.{table}",),
        )
        who = "; ".join(f"pid {pid}, {name}, {state}" for pid, name, state in holders) or "gone by now"
        return (
            f"app.{table} was locked by other sessions for {self.pace.give_up_seconds:g} s ({who}): let them "
            "finish or end them, then run the same command again; nothing is half done"
        )

    # -- tables

    def table_exists(self, table: str) -> bool:
        """Tell whether `app.table` is there."""
        return self.fetch("SELECT to_regclass(%s)", (f"app.{table}",)) != [(None,)]

    def create_table(self, table: str, *statements: str) -> None:
        """Make a table and what belongs to it. Raises MigrationRefused where a stranger has its name."""

        def work() -> None:
            if not self.table_exists(table):
                for statement in statements:
                    self.run(statement)
                self.note("table", table, "made")
            elif self.origin("table", table) != "made":
                raise MigrationRefused(
                    f"app.{table} exists and reconsup did not make it: rename it, then run the same command again"
                )

        self.short(table, work)

    def keep_table(self, table: str) -> None:
        """Go on with a table that is there: found, unless it is noted as made by us already."""
        self.note("table", table, "found")

    def has_rows(self, table: str) -> bool:
        """Tell whether the table holds any row."""
        return bool(self.fetch(f"SELECT 1 FROM app.{table} LIMIT 1"))

    def drop_table(self, table: str) -> None:
        """Drop a table that we made; leave one that we found."""
        self.short(table, lambda: self._drop_if_made(table))

    def drop_empty_tables(self, *tables: str) -> list[str]:
        """Drop those of the tables that we made, if all of these are empty; return those with rows.

        One transaction that locks first: no row can come in between the look and the drop.
        """
        full: list[str] = []

        def work() -> None:
            ours = [t for t in tables if self.origin("table", t) == "made" and self.table_exists(t)]
            for table in ours:
                self.run(f"LOCK TABLE app.{table} IN ACCESS EXCLUSIVE MODE")
            full[:] = [table for table in ours if self.has_rows(table)]
            if not full:
                for table in tables:
                    self._drop_if_made(table)

        self.short(tables[0], work)
        return full

    def _drop_if_made(self, table: str) -> None:
        if self.origin("table", table) == "made":
            self.run(f"DROP TABLE IF EXISTS app.{table}")
        self.forget("table", table)

    def require_unique(self, table: str, *columns: str) -> None:
        """Raise MigrationRefused unless exactly these columns are unique together: ON CONFLICT relies on it."""
        found = self.fetch(
            """
            SELECT 1 FROM pg_index i
             WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
               AND (SELECT array_agg(a.attname::text ORDER BY a.attname) FROM pg_attribute a
                     WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[:i.indnkeyatts - 1])) = %s
            """,
            (f"app.{table}", sorted(columns)),
        )
        if not found:
            raise MigrationRefused(
                f"app.{table} exists, but ({', '.join(columns)}) is not unique in it; it was left as it is"
            )

    # -- columns

    def column_faults(self, table: str, wanted: Mapping[str, tuple[str, ...]]) -> list[str]:
        """Compare the columns of a table with what we need; return one phrase for each that will not do."""
        have = {
            str(name): (str(kind), cast(int, length))
            for name, kind, length in self.fetch(
                "SELECT a.attname, t.typname, CASE WHEN t.typname = 'varchar' THEN a.atttypmod - 4 ELSE -1 END"
                " FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
                " WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped",
                (f"app.{table}",),
            )
        }
        faults = []
        for name, types in wanted.items():
            kind, length = have.get(name, ("missing", -1))
            if kind not in types:
                faults.append(f"{table}.{name} is {kind}, not {types[0]}")
            elif 0 <= length < TEXT_LENGTH_MIN and name.endswith(("owner", "_ref", "_error")):
                faults.append(f"{table}.{name} is varchar({length}), too short")
        return faults

    def require_columns(self, table: str, wanted: Mapping[str, tuple[str, ...]]) -> None:
        """Raise MigrationRefused, with everything that is wrong, unless the table has these columns."""
        if faults := self.column_faults(table, wanted):
            raise MigrationRefused(
                f"app.{table} exists, but reconsup cannot work with it: {', '.join(faults)}; it was left as it is"
            )

    def add_columns(self, table: str, columns: Sequence[AddedColumn]) -> None:
        """Add those of the columns that are missing, defaults last, in one transaction."""

        def work() -> None:
            missing = [c for c in columns if not self._has_column(table, c.name)]
            for column in columns:
                self.note("column", f"{table}.{column.name}", "made" if column in missing else "found")
            self.require_columns(table, {c.name: c.types for c in columns if c not in missing})
            self._require_defaults(table, [c.name for c in columns if c.has_default and c not in missing])
            if missing:
                added = ", ".join(f"ADD COLUMN {c.name} {c.definition}" for c in missing)
                self.run(f"ALTER TABLE app.{table} {added}")
            for column in missing:
                if column.later_default is not None:
                    self.run(f"ALTER TABLE app.{table} ALTER COLUMN {column.name} SET DEFAULT {column.later_default}")

        self.short(table, work)

    def _require_defaults(self, table: str, names: Sequence[str]) -> None:
        without = self.fetch(
            "SELECT attname FROM pg_attribute"
            " WHERE attrelid = to_regclass(%s) AND attname = ANY (%s) AND NOT atthasdef",
            (f"app.{table}", list(names)),
        )
        if without:
            raise MigrationRefused(
                f"{', '.join(f'app.{table}.{name}' for (name,) in without)} exists without a default: give it one, "
                "then run the same command again"
            )

    def drop_columns(self, table: str, columns: Sequence[AddedColumn]) -> None:
        """Drop those of the columns that we made."""

        def work() -> None:
            ours = [
                c.name
                for c in columns
                if self.origin("column", f"{table}.{c.name}") == "made" and self._has_column(table, c.name)
            ]
            if ours:
                self.run(f"ALTER TABLE app.{table} " + ", ".join(f"DROP COLUMN {name}" for name in ours))
            for column in columns:
                self.forget("column", f"{table}.{column.name}")

        self.short(table, work)

    def _has_column(self, table: str, name: str) -> bool:
        return bool(
            self.fetch(
                "SELECT 1 FROM pg_attribute"
                " WHERE attrelid = to_regclass(%s) AND attname = %s AND attnum > 0 AND NOT attisdropped",
                (f"app.{table}", name),
            )
        )

    # -- rows

    def update_requests(self, what: str, *, assign: str, where: str) -> int:
        """Update rows of `payment_requests`, window by window of ids, a commit each; return how many.

        Rows that somebody has locked are passed over and come again at the end. `where` must not hold any
        more for a row that was updated: so an interrupted run goes on where it was.
        """
        changed, windows = self._update_windows(self._windows(), assign, where)
        deadline = time.monotonic() + self.pace.give_up_seconds
        pause = self.pace.pause_seconds
        while windows:
            if time.monotonic() + pause > deadline:
                raise LocksBusy(self._busy_sentence("payment_requests"))
            self.say(f"{what}: some rows are locked by another session; trying again in {pause:.2g} s")
            time.sleep(pause)
            pause = min(pause * 2, self.pace.pause_seconds_max)
            more, windows = self._update_windows(windows, assign, where)
            changed += more
            if more:
                deadline = time.monotonic() + self.pace.give_up_seconds
        return changed

    def _windows(self) -> Sequence[tuple[str, str]]:
        """Cut the primary key into ranges (after, up to] of `window_rows` rows, in its own order."""
        windows: list[tuple[str, str]] = []
        after = ""
        while True:
            ((upto,),) = self.fetch(
                "SELECT max(id) FROM (SELECT id FROM app.payment_requests WHERE id > %s ORDER BY id LIMIT %s) w",
                (after, self.pace.window_rows),
            )
            if upto is None:
                return windows
            windows.append((after, str(upto)))
            after = str(upto)

    def _update_windows(
        self, windows: Sequence[tuple[str, str]], assign: str, where: str
    ) -> tuple[int, list[tuple[str, str]]]:
        changed, unfinished = 0, []
        for window in windows:
            changed += self.run(
                f"""
                WITH batch AS MATERIALIZED (
                    SELECT id FROM app.payment_requests WHERE id > %s AND id <= %s AND {where}
                     ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
                UPDATE app.payment_requests r SET {assign} FROM batch WHERE r.id = batch.id
                """,
                window,
            )
            left = f"SELECT 1 FROM app.payment_requests WHERE id > %s AND id <= %s AND {where} LIMIT 1"
            if self.fetch(left, window):
                unfinished.append(window)
        return changed, unfinished


def steps_of(context: MigrationContext) -> Steps:
    """Return the steps that `migrate` handed to the revision which is running."""
    assert context.config is not None
    steps = context.config.attributes["steps"]
    assert isinstance(steps, Steps)
    return steps
