"""What the role that reconsup connects as must be allowed, and what of it is missing. Never changes anything.

`NEEDS` is compared by a test with the statements in this room. The owner of the tables has it all; a role of its own
is given it with the statements that `missing` returns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import LiteralString

from reconsup.store.database import Database

# Of the service's own table only the columns that are reconsup's are written: a GRANT on them is enough.
WRITTEN_COLUMNS = (
    "next_reconcile_at",
    "reconcile_admitted_height",
    "reconcile_audited_hash",
    "reconcile_audited_height",
    "reconcile_crashes",
    "reconcile_due_height",
    "reconcile_error",
    "reconcile_failures",
    "reconcile_lease_epoch",
    "reconcile_lease_owner",
    "reconcile_lease_until",
    "reconcile_span_height",
    "status",
    "updated_at",
)
NEEDS: Mapping[str, tuple[str, ...]] = {
    "chain_blocks": ("SELECT", "INSERT", "DELETE"),
    "chain_credits": ("SELECT", "INSERT", "DELETE"),
    "chain_cursors": ("SELECT", "INSERT", "UPDATE"),
    "chain_events": ("INSERT",),
    "chain_spans": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "payment_request_settlements": ("SELECT", "INSERT", "UPDATE"),
    "payment_request_transitions": ("SELECT", "INSERT"),
    "payment_requests": ("SELECT", "UPDATE"),
    "reconsup_hosts": ("SELECT", "INSERT", "UPDATE"),
    "reconsup_schema_version": ("SELECT",),
    "request_balances": ("SELECT", "INSERT", "UPDATE"),
}


@dataclass(frozen=True, slots=True)
class Rights:
    """`role` is who we are, `grants` the statements that would give it what it lacks, `hides_rows` whether a row policy
    may hide payment requests from it.
    """

    role: str
    grants: tuple[str, ...]
    hides_rows: bool


async def missing(database: Database) -> Rights:
    """Look what the role lacks; tables that are not there yet lack nothing. Raises StoreUnavailable."""
    ((role, quoted, may_enter, hides_rows),) = await database.fetch(_ROLE)
    needs = [(table, privilege) for table, privileges in NEEDS.items() for privilege in privileges]
    rows = await database.fetch(
        _MISSING,
        {
            "tables": [table for table, _ in needs],
            "privileges": [privilege for _, privilege in needs],
            "written": list(WRITTEN_COLUMNS),
        },
    )
    lacking: dict[str, list[str]] = {}
    for row in rows:
        lacking.setdefault(row.table_name, []).append(row.privilege)
    grants = [] if may_enter else [f"GRANT USAGE ON SCHEMA app TO {quoted}"]
    grants += [f"GRANT {', '.join(privileges)} ON app.{table} TO {quoted}" for table, privileges in lacking.items()]
    return Rights(role, tuple(grants), hides_rows)


@dataclass(frozen=True, slots=True)
class Room:
    """How many connections the role may have at a time on this server and database, and whether it may write there."""

    connections_max: int
    is_read_only: bool


async def room(database: Database) -> Room:
    """Look what the server gives. Raises StoreUnavailable."""
    ((connections_max, is_read_only),) = await database.fetch(_ROOM)
    return Room(connections_max, is_read_only)


_ROLE: LiteralString = """
SELECT current_user::text AS role, quote_ident(current_user) AS quoted,
       COALESCE((SELECT has_schema_privilege(n.oid, 'USAGE') FROM pg_namespace n WHERE n.nspname = 'app'), true)
         AS may_enter,
       COALESCE((SELECT row_security_active(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = 'app' AND c.relname = 'payment_requests'), false)
         AS hides_rows
"""

# By oid: a name would be refused where the schema may not be entered.
_MISSING: LiteralString = """
SELECT need.table_name, need.privilege
FROM unnest(%(tables)s::text[], %(privileges)s::text[]) WITH ORDINALITY AS need(table_name, privilege, place)
JOIN pg_class c ON c.relname = need.table_name
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'app'
WHERE NOT has_table_privilege(c.oid, need.privilege)
  AND (need.privilege = 'DELETE' OR EXISTS (
    SELECT FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      AND (need.table_name <> 'payment_requests' OR need.privilege <> 'UPDATE' OR a.attname = ANY (%(written)s::text[]))
      AND NOT has_column_privilege(c.oid, a.attnum, need.privilege)))
ORDER BY need.place
"""

# -1: no limit of its own. PostgreSQL keeps some connections for superusers, and since 16 some for others.
_ROOM: LiteralString = """
SELECT LEAST(
         current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - COALESCE(current_setting('reserved_connections', true), '0')::int,
         (SELECT NULLIF(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
         (SELECT NULLIF(datconnlimit, -1) FROM pg_database WHERE datname = current_database())) AS connections_max,
       current_setting('transaction_read_only')::bool AS is_read_only
"""
