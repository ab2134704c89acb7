"""What PostgreSQL's own catalogue says about a database, as lines that can be compared.

Everything a migration can change: schemas, tables with their storage options, columns with type, default,
identity and comment, constraints, indexes with their validity. Not the order of columns.
"""

from typing import Any

import psycopg

_LINES = """
SELECT 'schema ' || nspname
  FROM pg_namespace WHERE left(nspname, 3) <> 'pg_' AND nspname <> 'information_schema'
UNION ALL
SELECT format('%s %s.%s %s', CASE c.relkind WHEN 'r' THEN 'table' WHEN 'S' THEN 'sequence' ELSE c.relkind::text END,
              n.nspname, c.relname, coalesce(c.reloptions::text, ''))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind <> 'i' AND n.nspname = ANY (ARRAY['app', 'public'])
UNION ALL
SELECT format('column %s.%s.%s %s%s default %s %s%s', n.nspname, c.relname, a.attname,
              format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN ' not null' ELSE '' END,
              coalesce(pg_get_expr(d.adbin, d.adrelid), 'none'), a.attidentity,
              coalesce(col_description(c.oid, a.attnum), ''))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
 WHERE c.relkind = 'r' AND n.nspname = ANY (ARRAY['app', 'public']) AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT format('constraint %s.%s.%s %s %s', n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid), k.convalidated)
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = ANY (ARRAY['app', 'public'])
UNION ALL
SELECT format('index %s %s', pg_get_indexdef(i.indexrelid),
              CASE WHEN i.indisvalid AND i.indisready THEN '' ELSE 'INVALID' END)
  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = ANY (ARRAY['app', 'public'])
"""

_BOOKKEEPING = ("reconsup_schema_version", "reconsup_schema_objects")


def catalogue(connection: psycopg.Connection[Any]) -> set[str]:
    """Return one line for each object outside PostgreSQL's own schemas."""
    rows = connection.execute(_LINES).fetchall()
    return {str(line).rstrip() for (line,) in rows}


def without_bookkeeping(lines: set[str]) -> set[str]:
    """Leave out the version table and the notes on whose is what."""
    return {line for line in lines if not any(name in line for name in _BOOKKEEPING)}


def files(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """Return the file number of each table in schema app: another one means that the table was rewritten."""
    rows = connection.execute(
        "SELECT relname, pg_relation_filenode(oid) FROM pg_class"
        " WHERE relkind = 'r' AND relnamespace = 'app'::regnamespace"
    )
    return {str(name): int(number) for name, number in rows}
