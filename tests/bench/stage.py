"""Where the figures are taken: a durable PostgreSQL of its own, filled with requests, and one worker's loop on it.

Durable: fsync and synchronous_commit are on, as they are where money is. The disk, the memory and the processors are
those of the machine, and others may use them: only ratios within one run mean anything elsewhere.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import structlog

from reconsup import logs
from reconsup.fleet.scoreboard import Scoreboard
from reconsup.payments.decision import Policy
from reconsup.store import embedded, migrate
from reconsup.store.database import Database
from reconsup.worker.pause import Pauses
from reconsup.worker.reconciler import Duty, Reconciler
from tests.support.ledgers import NETWORK, Chain, born, committed, hash_of

LEASE_SECONDS = 30.0
BATCH = 500
BLOCKS = 20
STANDING_FIRST = 10_000_000  # their numbers begin here
PAID_AT_HEIGHT = 105
SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "1h", "autovacuum": "off"}

Connection = psycopg.Connection[tuple[Any, ...]]


@contextmanager
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL with the finished schema and a chain of a few blocks; gone at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="reconsup-bench-") as folder,
        embedded.start(Path(folder) / "pg", settings=SETTINGS) as server,
    ):
        migrate.upgrade(server.url, say=lambda _: None)
        asyncio.run(_scan(server.url))
        yield server.url


async def _scan(url: str) -> None:
    chain = Chain()
    chain.mined(BLOCKS)
    async with Database(url, application_name="bench", lease_seconds=LEASE_SECONDS) as database:
        await committed(database, await born(database, chain), *chain.blocks)


def connect(url: str) -> Connection:
    """A connection of the bench's own, in autocommit mode."""
    return psycopg.connect(url, autocommit=True)


def fill(
    connection: Connection, rows: int, *, first: int = 1, network: str = NETWORK.name, due_seconds_ago: float = 1.0
) -> None:
    """So many open, admitted requests for 1 ETH, due since so long (negative: in the future)."""
    connection.execute(
        """INSERT INTO app.payment_requests
             (id, chain, network, asset, status, address_canonical, address_scheme, derivation_index, chain_id,
              expires_at, expected_amount_minor, reconcile_admitted_height, next_reconcile_at)
           SELECT 'pr_' || lpad(n::text, 12, '0'), 'ethereum', %(network)s, 'ETH', 'pending',
                  '0x' || lpad(to_hex(n), 40, '0'), 'evm_bip44', n, 31337, now() + interval '1 hour',
                  10::numeric ^ 18, 1, now() - make_interval(secs => %(ago)s)
           FROM generate_series(%(first)s, %(first)s + %(rows)s - 1) AS n""",
        {"rows": rows, "first": first, "network": network, "ago": due_seconds_ago},
    )


def pay(connection: Connection) -> None:
    """A settlement in full for every request, as the scan writes it."""
    block_hash = hash_of("main", PAID_AT_HEIGHT, ())
    connection.execute(
        """INSERT INTO app.payment_request_settlements
             (payment_request_id, evidence_ref, amount_minor, confirmations, block_height, block_hash, metadata,
              first_seen_at, last_seen_at)
           SELECT r.id, '0x' || encode(sha256(r.id::bytea), 'hex'), 10::numeric ^ 18, 1, b.height, b.block_hash,
                  '{"first_block_time": "2026-01-01T00:00:00Z"}', now(), now()
           FROM app.payment_requests r, app.chain_blocks b
           WHERE b.block_hash = %s AND r.derivation_index < %s""",
        [block_hash, STANDING_FIRST],
    )


def empty(connection: Connection, *, standing: int = 0) -> None:
    """No request, no settlement, no history; but so many open requests that are not due for hours."""
    connection.execute("TRUNCATE app.payment_request_settlements, app.payment_request_transitions")
    connection.execute("DELETE FROM app.payment_requests WHERE derivation_index < %s", [STANDING_FIRST])
    ((there,),) = connection.execute("SELECT count(*) FROM app.payment_requests").fetchall()
    if there != standing:
        connection.execute("TRUNCATE app.payment_requests CASCADE")
        fill(connection, standing, first=STANDING_FIRST, due_seconds_ago=-6 * 3600)


def settle_down(connection: Connection) -> None:
    """As after a quiet hour: vacuumed, analysed, written out."""
    connection.execute("VACUUM (ANALYZE) app.payment_requests")
    connection.execute("VACUUM (ANALYZE) app.payment_request_settlements")
    connection.execute("CHECKPOINT")


def silence() -> None:
    """Make every log line, as in production, and write none of them here."""
    logs.configure("json")
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())


def reconciler(databases: Sequence[Database], *, slot: int = 0, batch_size: int = BATCH) -> Reconciler:
    """One worker's loop over the requests, without its process."""
    duty = Duty(
        worker_id=f"bench-{slot}",
        owner=f"bench-{slot}#{slot:016x}",
        batch_size=batch_size,
        lease_seconds=LEASE_SECONDS,
        poll_interval_seconds=15.0,
        policies={NETWORK: Policy(audits_balances=False)},
    )
    cell = Scoreboard("bench").cell(slot)
    return Reconciler(duty, databases, cell, Pauses().pause(), is_served=lambda _: True)


def main(measure: Callable[[str], Any], show: Callable[[Any], None]) -> None:
    """One part of the bench, as a program: measure, print, and with --json FILE write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    with postgres() as url:
        found = measure(url)
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which that share of all lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(values: Iterable[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table for people."""
    cells = [[f"{cell:,.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    print(f"\n{title}", file=sys.stdout)
    for row in cells:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
