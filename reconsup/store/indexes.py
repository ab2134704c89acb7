"""Indexes on tables that others are writing to: built and dropped CONCURRENTLY, so that no insert waits.

PostgreSQL leaves an INVALID index behind when such a build is interrupted. It is never used and never finished,
so one under our name is dropped first and built again. An index that equals ours, under whatever name, is kept
and used; one that has our name and is something else is not ours to drop, and the migration says so.
"""

from dataclasses import dataclass

import psycopg

from reconsup.store.ddl import LocksBusy, MigrationRefused, Steps

BUILD_TRIES_MAX = 3


@dataclass(frozen=True, slots=True)
class ConcurrentIndex:
    """An index on `app.table`; `definition` is exactly what pg_get_indexdef() says after the table's name."""

    name: str
    table: str
    definition: str

    @property
    def on(self) -> str:
        """What the index is, apart from its name."""
        return f"ON app.{self.table} {self.definition}"


@dataclass(frozen=True, slots=True)
class _Existing:
    name: str
    is_valid: bool
    definition: str  # from " ON " to the end


def build_index(steps: Steps, index: ConcurrentIndex) -> None:
    """Build the index unless a valid equal one is there; raise MigrationRefused when its name is taken."""
    existing = _existing(steps, index)
    namesake = next((e for e in existing if e.name == index.name), None)
    if namesake and namesake.is_valid:
        if steps.origin("index", index.name) == "made":
            return  # whatever way this server spells its definition
        if namesake.definition != index.on:
            raise MigrationRefused(
                f"app.{index.name} exists and is another index than reconsup's ({namesake.definition}): "
                "rename it, then run the same command again"
            )
    twin = next((e for e in existing if e.is_valid and e.definition == index.on), None)
    if twin:
        steps.say(f"index app.{twin.name} already does what app.{index.name} would do: kept")
        steps.note("index", twin.name, "found")
        return
    # Noted before it is built: an interrupted build leaves something that is ours.
    steps.note("index", index.name, "made")
    _build(steps, index, leftover=namesake is not None)


def drop_index(steps: Steps, index: ConcurrentIndex) -> None:
    """Drop the index if we made it."""
    if steps.origin("index", index.name) == "made":
        _without_timeouts(steps)
        steps.run(f"DROP INDEX CONCURRENTLY IF EXISTS app.{index.name}")
    steps.forget("index", index.name)
    for twin in _existing(steps, index):
        if twin.definition == index.on:
            steps.forget("index", twin.name)


def _build(steps: Steps, index: ConcurrentIndex, *, leftover: bool) -> None:
    _without_timeouts(steps)
    for _ in range(BUILD_TRIES_MAX):
        if leftover:
            steps.say(f"index app.{index.name} is left over from an interrupted build: dropped, built again")
            steps.run(f"DROP INDEX CONCURRENTLY IF EXISTS app.{index.name}")
        if steps.origin("table", index.table) == "found":
            steps.say(f"building index app.{index.name}: nobody waits for it; it waits for older transactions")
        try:
            steps.run(f"CREATE INDEX CONCURRENTLY {index.name} {index.on}")
        except (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
            leftover = True
        else:
            return
    raise LocksBusy(
        f"index app.{index.name} could not be built in {BUILD_TRIES_MAX} tries, others were in the way: "
        "run the same command again later"
    )


def _without_timeouts(steps: Steps) -> None:
    """Lift time-outs that a role or database may set: a build waits for others and takes its time.

    Only where one is set, because behind a pooler the setting could reach somebody else's session.
    """
    for name in ("statement_timeout", "lock_timeout"):
        if steps.fetch("SELECT current_setting(%s)", (name,)) != [("0",)]:
            steps.run(f"SET {name} = 0")


def _existing(steps: Steps, index: ConcurrentIndex) -> list[_Existing]:
    """Return the indexes of the table, and whatever has the index's name."""
    rows = steps.fetch(
        """
        SELECT c.relname, coalesce(i.indisvalid AND i.indisready AND i.indislive, true),
               coalesce(regexp_replace(pg_get_indexdef(i.indexrelid), '^CREATE (UNIQUE )?INDEX .*? ON ', '\\1ON '),
                        'not an index')
          FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
         WHERE i.indrelid = to_regclass(%s) OR c.relnamespace = 'app'::regnamespace AND c.relname = %s
         ORDER BY c.relname
        """,
        (f"app.{index.table}", index.name),
    )
    return [_Existing(str(name), bool(is_valid), str(definition)) for name, is_valid, definition in rows]
