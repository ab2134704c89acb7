"""A database with as many requests as one likes, and with the statistics of other days kept, to be put back.

Of ten requests of the served network five are due, two are leased by somebody, two are to be looked at later, one is
at rest. Beside them are as many of another network, all of them leased. Due times and due heights have nothing to do
with the order in which the rows lie on disk.
"""

from dataclasses import dataclass
from typing import Any, Literal

from reconsup.payments.request import Network
from tests.support import postgres
from tests.support.ledgers import CHAIN_ID, GENESIS, NETWORK, hash_of
from tests.support.postgres import Postgres

# What PostgreSQL knows: everything; nothing (never analysed); what was true when there were ten rows, or one; when a
# thousand were there and nothing was due or leased; when all were of another network, and leased.
Statistics = Literal["fresh", "none", "of ten rows", "of nothing due", "of another network", "of one row"]
STATISTICS: tuple[Statistics, ...] = ("fresh", "none", "of ten rows", "of nothing due", "of another network")
OF_ONE_ROW: Statistics = "of one row"

LEASED = Network("ethereum", "leased")  # every row of it is leased
FEW_ROWS = 1000  # with which old statistics were made
FIRST_HEIGHT = 100
BLOCKS = 64
CREDITS_PER_BLOCK = 200
SUSPECTS = 3
FORGOTTEN = 5


@dataclass(frozen=True, slots=True)
class Bulk(postgres.Database):
    """The database, and how many requests the served network has."""

    size: int

    def remember(self, statistics: Statistics) -> None:
        """Put back what PostgreSQL knew on that day, as ANALYZE wrote it then.

        Dead rows are taken away first, from the indexes too: VACUUM leaves them there as long as they are few, and each
        test would walk over those of the last.
        """
        name = _name(statistics)
        with self.connect() as connection:
            for (table,) in connection.execute(_TABLES).fetchall():
                connection.execute(f"VACUUM (INDEX_CLEANUP on) app.{table}")
            connection.execute("SET allow_system_table_mods = on")
            connection.execute(f"DELETE FROM pg_statistic {_OF_APP}")
            connection.execute(f"INSERT INTO pg_statistic SELECT * FROM kept.{name}_columns")
            connection.execute(
                f"""UPDATE pg_class c
                    SET relpages = k.relpages, reltuples = k.reltuples, relallvisible = k.relallvisible
                    FROM kept.{name}_tables k WHERE k.oid = c.oid"""
            )


def address_of(number: int) -> str:
    """The address of the request with this number."""
    return f"0x{number:040x}"


def load(server: Postgres, template: str, size: int) -> Bulk:
    """Make the database; it stays until the server ends. Without autovacuum: nobody analyses behind our back."""
    database = server.create(template)
    bulk = Bulk(database.name, database.direct_url, database.direct_url, size)
    with bulk.connect() as connection:
        connection.execute("CREATE SCHEMA kept; SET allow_system_table_mods = on; SET synchronous_commit = off")
        for (table,) in connection.execute(_TABLES).fetchall():
            connection.execute(f"ALTER TABLE app.{table} SET (autovacuum_enabled = off)".encode())

        def insert(network: str, first: int, last: int, kind: str) -> None:
            values = {"network": network, "first": first, "last": last, "kind": kind, "chain_id": CHAIN_ID}
            connection.execute(_REQUESTS, values | {"all": size})

        def keep(statistics: str) -> None:
            for statement in _keep(statistics):
                connection.execute(statement.encode())

        keep("none")
        for statistics, network, rows, kind in (
            ("of one row", NETWORK, 1, "due"),
            ("of ten rows", NETWORK, 10, "due"),
            ("of nothing due", NETWORK, FEW_ROWS, "later"),
            ("of another network", LEASED, FEW_ROWS, "leased"),
        ):
            insert(network.name, 1, rows, kind)
            connection.execute("ANALYZE")
            keep(statistics)
            connection.execute("TRUNCATE app.payment_requests CASCADE")
        insert(NETWORK.name, 1, size, "mixed")
        insert(LEASED.name, size + 1, 2 * size, "leased")
        _surround(connection, size)
        connection.execute("ANALYZE")
        keep("fresh")
    return bulk


def insert_due(database: postgres.Database, count: int, *, analysed: Literal["when there was no row", "now"]) -> None:
    """So many due requests in an empty database whose cursor is born, without autovacuum."""
    with database.connect() as connection:
        connection.execute("ALTER TABLE app.payment_requests SET (autovacuum_enabled = off)")
        values = {"first_height": FIRST_HEIGHT, "blocks": 1, "networks": [NETWORK.name], "tip_hash": hash_of("tip")}
        connection.execute(_CURSORS, values | {"chain_id": CHAIN_ID, "genesis": GENESIS})
        connection.execute("VACUUM ANALYZE")
        values = {"network": NETWORK.name, "first": 1, "last": count, "kind": "due", "chain_id": CHAIN_ID}
        connection.execute(_REQUESTS, values | {"all": count})
        if analysed == "now":
            connection.execute("ANALYZE")


def _surround(connection: Any, size: int) -> None:
    """The few odd ones among the requests, and the other tables."""
    values = {"size": size, "suspects": SUSPECTS, "forgotten": FORGOTTEN, "chain_id": CHAIN_ID, "genesis": GENESIS}
    values |= {"first_height": FIRST_HEIGHT, "blocks": BLOCKS, "credits": CREDITS_PER_BLOCK}
    values |= {
        "networks": [NETWORK.name, LEASED.name, "empty"],
        "tip_hash": hash_of("block", FIRST_HEIGHT + BLOCKS - 1),
    }
    for statement in _OTHERS:
        connection.execute(statement, values)
    for height in range(FIRST_HEIGHT, FIRST_HEIGHT + BLOCKS):
        hashes = {"height": height, "hash": hash_of("block", height), "parent": hash_of("block", height - 1)}
        connection.execute(_BLOCK, values | hashes)


def _name(statistics: str) -> str:
    return statistics.replace(" ", "_")


def _keep(statistics: str) -> tuple[str, str]:
    name = _name(statistics)
    return (
        f"CREATE TABLE kept.{name}_columns AS SELECT * FROM pg_statistic {_OF_APP}",
        f"CREATE TABLE kept.{name}_tables AS SELECT oid, relpages, reltuples, relallvisible FROM pg_class "
        "WHERE relnamespace = 'app'::regnamespace AND relkind IN ('r', 'i')",
    )


_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'app'"
_OF_APP = "WHERE starelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'app'::regnamespace)"

# The number of a request decides what it is.
_REQUESTS = """
INSERT INTO app.payment_requests (id, chain, network, asset, status, expected_amount_minor, address_canonical,
  address_scheme, derivation_index, chain_id, expires_at, created_at, reconcile_lease_owner, reconcile_lease_until,
  reconcile_lease_epoch, next_reconcile_at, reconcile_due_height)
SELECT 'pr_' || lpad(n::text, 8, '0'), 'ethereum', %(network)s, 'ETH',
  CASE WHEN becomes = 'at rest' THEN 'confirmed' ELSE 'pending' END, 1000, '0x' || lpad(to_hex(n), 40, '0'),
  'evm_bip44', n, %(chain_id)s, now() + interval '1 day', now() - interval '2 hours' + mixed * interval '1 ms',
  CASE WHEN becomes = 'leased' THEN 'other-' || n / 500 || '#00000000000000aa' END,
  CASE WHEN becomes = 'leased' THEN now() + interval '1 day' END, n %% 5,
  CASE becomes WHEN 'due' THEN now() - interval '1 hour' + mixed * interval '1 ms' WHEN 'at rest' THEN NULL
          ELSE now() + interval '1 day' + mixed * interval '1 ms' END,
  CASE WHEN becomes = 'later' THEN 1000 + mixed END
FROM (SELECT n, n * 7919::bigint %% %(all)s AS mixed,
        CASE WHEN %(kind)s <> 'mixed' THEN %(kind)s WHEN n %% 10 < 5 THEN 'due' WHEN n %% 10 < 7 THEN 'leased'
             WHEN n %% 10 < 9 THEN 'later' ELSE 'at rest' END AS becomes
      FROM generate_series(%(first)s::int, %(last)s::int) AS n) AS each
"""
_CURSORS = """
INSERT INTO app.chain_cursors (chain, network, chain_id, genesis_hash, next_height, tip_hash, tip_time, tail_start,
                               finalized_height)
SELECT 'ethereum', unnest(%(networks)s::text[]), %(chain_id)s, %(genesis)s, %(first_height)s + %(blocks)s, %(tip_hash)s,
       now(), %(first_height)s, %(first_height)s
"""
_OTHERS = (
    # due, but a worker died at them
    """UPDATE app.payment_requests SET reconcile_crashes = 1
       WHERE id IN (SELECT 'pr_' || lpad((n * 10)::text, 8, '0') FROM generate_series(1, %(suspects)s) AS n)""",
    # open, and never to be looked at
    """UPDATE app.payment_requests SET next_reconcile_at = NULL
       WHERE id IN (SELECT 'pr_' || lpad((n * 10 + 1)::text, 8, '0') FROM generate_series(1, %(forgotten)s) AS n)""",
    # those at rest were paid
    """INSERT INTO app.payment_request_settlements (payment_request_id, evidence_ref, amount_minor, confirmations,
         block_height, block_hash, metadata, first_seen_at, last_seen_at)
       SELECT 'pr_' || lpad(n::text, 8, '0'), 'tx' || n, 1000, 9, n %% 90, 'old' || n / 100,
         '{"first_block_time": "2026-01-01T00:00:00Z"}', now(), now()
       FROM generate_series(9, %(size)s::int, 10) AS n""",
    """INSERT INTO app.payment_request_transitions (payment_request_id, from_status, to_status, reason)
       SELECT 'pr_' || lpad(n::text, 8, '0'), 'pending', 'confirmed', 'payment_confirmed'
       FROM generate_series(9, %(size)s::int, 10) AS n""",
    _CURSORS,
    # to addresses that nobody asked about
    """INSERT INTO app.chain_credits (chain, network, height, block_hash, block_time, evidence_ref, tx_hash, address,
         token_contract, amount_minor)
       SELECT 'ethereum', network, height, 'block' || height, now(), 'tx' || height || '_' || n, 'tx' || n,
         '0xeee' || n, '', 1
       FROM unnest(%(networks)s::text[]) AS network,
         generate_series(%(first_height)s::int, %(first_height)s + %(blocks)s - 1) AS height,
         generate_series(1, %(credits)s::int) AS n""",
)
_BLOCK = """
INSERT INTO app.chain_blocks (chain, network, height, block_hash, parent_hash, block_time)
SELECT 'ethereum', unnest(%(networks)s::text[]), %(height)s, %(hash)s, %(parent)s,
       now() - (%(first_height)s + %(blocks)s - %(height)s) * interval '12 s'
"""
