"""What a processed request costs the database: statements, WAL, row versions. And what one at rest costs: nothing.

Counts, not times: they are the same on every machine.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

from reconsup.store.database import Database
from tests.bench import stage
from tests.bench.stage import BATCH, LEASE_SECONDS
from tests.bench.throughput import WORK, prepare

ROWS = 10_000
BATCHES = (50, 500, 5000)


def _writes(connection: stage.Connection) -> dict[str, float]:
    """Counters of the server so far. A backend adds its own when it leaves, so the workers' must have left."""
    while connection.execute("SELECT 1 FROM pg_stat_activity WHERE application_name = 'bench'").fetchall():
        time.sleep(0.01)
    connection.execute("SELECT pg_stat_force_next_flush()")
    ((wal,),) = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchall()
    ((updated, hot, inserted),) = connection.execute(
        "SELECT sum(n_tup_upd), sum(n_tup_hot_upd), sum(n_tup_ins) FROM pg_stat_user_tables"
    ).fetchall()
    return {"wal": float(wal), "updated": float(updated), "hot": float(hot), "inserted": float(inserted)}


async def _work_off(url: str, batch_size: int) -> tuple[int, int]:
    """Statements and batches until nothing is due."""
    async with AsyncExitStack() as stack:
        databases = [
            await stack.enter_async_context(Database(url, application_name="bench", lease_seconds=LEASE_SECONDS))
            for _ in range(2)
        ]
        loop = stage.reconciler(databases, batch_size=batch_size)
        while await loop.look_around():
            pass
        return sum(each.statements for each in databases), -(-ROWS // batch_size)


def per_request(url: str, work: str, batch_size: int = BATCH) -> dict[str, Any]:
    """Statements per batch, WAL bytes and row versions per request, over ROWS requests."""
    stage.silence()
    with stage.connect(url) as connection:
        prepare(connection, work, ROWS)
        before = _writes(connection)
        statements, batches = asyncio.run(_work_off(url, batch_size))
        after = {name: value - before[name] for name, value in _writes(connection).items()}
    return {
        "work": work,
        "batch": batch_size,
        "statements/batch": statements / batches,
        "WAL bytes/request": after["wal"] / ROWS,
        "row versions/request": (after["updated"] + after["inserted"]) / ROWS,
        "HOT %": 100 * after["hot"] / max(1.0, after["updated"]),
    }


def at_rest(url: str) -> dict[str, float]:
    """WAL bytes and row versions while a worker polls requests at which there is nothing to do: 50 polls."""

    async def poll() -> None:
        async with AsyncExitStack() as stack:
            databases = [
                await stack.enter_async_context(Database(url, application_name="bench", lease_seconds=LEASE_SECONDS))
                for _ in range(2)
            ]
            loop = stage.reconciler(databases)
            for _ in range(50):
                await loop.look_around()

    with stage.connect(url) as connection:
        prepare(connection, "look", ROWS)
        connection.execute("UPDATE app.payment_requests SET next_reconcile_at = now() + interval '1 hour'")
        stage.settle_down(connection)
        before = _writes(connection)
        asyncio.run(poll())
        after = _writes(connection)
    return {"row versions": after["updated"] - before["updated"], "WAL bytes": after["wal"] - before["wal"]}


def measure(url: str) -> dict[str, Any]:
    """All of it."""
    rows = [per_request(url, work) for work in WORK]
    rows += [per_request(url, "look", size) for size in BATCHES if size != BATCH]
    return {"per request": rows, "at rest": at_rest(url)}


def show(found: dict[str, Any]) -> None:
    """For people."""
    rows = found["per request"]
    stage.table("what a processed request costs the database", list(rows[0]), [list(each.values()) for each in rows])
    rest = found["at rest"]
    print(f"  {ROWS:,} requests at rest, 50 polls: {rest['row versions']:g} row versions, {rest['WAL bytes']:g} bytes")


if __name__ == "__main__":
    stage.main(measure, show)
