"""Which schema revision this program needs, and which one a database has.

Every start asks this question, so it costs one statement and no import of alembic or SQLAlchemy (`migrate` is
the room that changes a schema). Must never write, and never guess: a revision that this program does not know
is named as such, it is neither "behind" nor "ready".
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, LiteralString

import psycopg

from reconsup.store.errors import SchemaBehind

if TYPE_CHECKING:  # it asks this room whether the schema is ours again
    from reconsup.store.database import Database

REVISIONS = (
    "0001_base",
    "0002_leases",
    "0003_chain",
    "0004_history",
    "0005_rare_rows",
    "0006_truth",
    "0007_fleet",
)  # oldest first; a test compares
EXPECTED_REVISION = REVISIONS[-1]
VERSION_TABLE: LiteralString = "reconsup_schema_version"  # in schema `app`

CURRENT: LiteralString = "SELECT version_num FROM app." + VERSION_TABLE


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The revision a database has (None: none of ours) beside the one this program needs."""

    current: str | None
    expected: str = EXPECTED_REVISION

    @property
    def is_ready(self) -> bool:
        """The database has exactly what this program needs."""
        return self.current == self.expected

    @property
    def is_behind(self) -> bool:
        """`reconsup migrate` would bring the database to what this program needs."""
        return not self.is_ready and (self.current is None or self.current in REVISIONS)

    def sentence(self) -> str:
        """Say how things stand and, unless all is well, what to do."""
        if self.is_ready:
            return f"the database schema is at {self.current}"
        if self.current is None:
            return f"the database has no reconsup schema yet ({self.expected} is needed): run `reconsup migrate`"
        if self.is_behind:
            return f"the database schema is at {self.current}, {self.expected} is needed: run `reconsup migrate`"
        return (
            f"the database schema is at {self.current}, which this reconsup does not know (it needs "
            f"{self.expected}): use the reconsup that made it, or a newer one"
        )


async def fetch_state(database: "Database") -> SchemaState:
    """Read the state. Raises StoreUnavailable."""
    try:
        rows = await database.fetch(CURRENT)
    except SchemaBehind:
        return SchemaState(None)
    return state_of(rows[0] if rows else None)


def read_state(connection: psycopg.Connection[object]) -> SchemaState:
    """Do what `fetch_state` does, over a plain connection in autocommit mode; its errors go through."""
    try:
        return state_of(connection.execute(CURRENT).fetchone())
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return SchemaState(None)


def state_of(row: object) -> SchemaState:
    """What a row of CURRENT says, or that there is none."""
    match row:
        case (str(revision),) | {"version_num": str(revision)}:
            return SchemaState(revision)
        case None:
            return SchemaState(None)
        case _:
            raise TypeError(f"unexpected row from app.{VERSION_TABLE}: {row!r}")
