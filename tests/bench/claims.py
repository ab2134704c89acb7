"""What a claim costs: at 10 k, 100 k and 1 M open requests, when nothing is due, and while somebody holds a snapshot.

Open requests are not due for hours, but for a few that a claim finds; a million requests of networks that nobody
serves lie beside them. Each claim is rolled back by hand (its rows are made due again), so that all see the same.
"""

import asyncio
import time
from typing import Any

from reconsup.payments.request import Status
from reconsup.store import leases, persist
from reconsup.store.database import Database
from tests.bench import stage
from tests.bench.stage import LEASE_SECONDS, NETWORK, median, percentile
from tests.support.ledgers import decided

OPEN = (10_000, 100_000, 1_000_000)
UNSERVED = 1_000_000
UNSERVED_FIRST = 100_000_000
LIMIT = 200  # the default batch
DUE = 2_000
CLAIMS = 100
EMPTY_CLAIMS = 300
SNAPSHOT_SECONDS = 60
SNAPSHOT_ROWS = 20_000


async def _claim(database: Database, limit: int = LIMIT) -> leases.Batch:
    return await leases.claim(database, NETWORK, owner="bench#1", lease_seconds=LEASE_SECONDS, limit=limit)


async def _timed_claims(url: str, connection: stage.Connection, limit: int) -> list[float]:
    """Milliseconds of each of CLAIMS claims; what they took is due again, vacuumed, before the next ten."""
    found: list[float] = []
    async with Database(url, application_name="bench", lease_seconds=LEASE_SECONDS) as database:
        await database.fetch("SELECT 1")
        while len(found) < CLAIMS:
            for _ in range(DUE // LIMIT):
                started = time.perf_counter()
                batch = await _claim(database, limit)
                found.append((time.perf_counter() - started) * 1000)
                assert len(batch.claims) == limit
            connection.execute(
                "UPDATE app.payment_requests SET reconcile_lease_owner = NULL, reconcile_lease_until = NULL,"
                " next_reconcile_at = now() WHERE reconcile_lease_owner IS NOT NULL"
            )
            connection.execute("VACUUM app.payment_requests")
    return found


async def _timed_empty_claims(url: str) -> tuple[list[float], list[float]]:
    """Milliseconds of claims that find nothing: of ordinary rows, and of suspects."""
    found: tuple[list[float], list[float]] = ([], [])
    async with Database(url, application_name="bench", lease_seconds=LEASE_SECONDS) as database:
        for _ in range(EMPTY_CLAIMS):
            for suspects in (False, True):
                started = time.perf_counter()
                batch = await leases.claim(
                    database, NETWORK, owner="b#1", lease_seconds=LEASE_SECONDS, limit=LIMIT, suspects=suspects
                )
                found[suspects].append((time.perf_counter() - started) * 1000)
                assert not batch.claims
    return found


def by_size(url: str) -> list[dict[str, float]]:
    """The claim at each size, with the unserved million beside it."""
    results = []
    with stage.connect(url) as connection:
        stage.empty(connection)
        stage.fill(connection, UNSERVED, first=UNSERVED_FIRST, network="elsewhere")
        there = 0
        for rows in OPEN:
            stage.fill(connection, rows - there - (0 if there else DUE), first=DUE + there, due_seconds_ago=-6 * 3600)
            if not there:
                stage.fill(connection, DUE, first=0)
            there = rows
            stage.settle_down(connection)
            claims = asyncio.run(_timed_claims(url, connection, LIMIT))
            connection.execute("UPDATE app.payment_requests SET next_reconcile_at = now() + interval '6 hours'"
                               " WHERE network = 'local' AND next_reconcile_at <= now()")  # fmt: skip
            stage.settle_down(connection)
            empty, suspects = asyncio.run(_timed_empty_claims(url))
            connection.execute("UPDATE app.payment_requests SET next_reconcile_at = now() WHERE derivation_index < %s"
                               " AND network = 'local'", [DUE])  # fmt: skip
            results.append({
                "open": rows, "claim_ms": median(claims), "claim_p99_ms": percentile(claims, 0.99),
                "empty_ms": median(empty), "empty_p99_ms": percentile(empty, 0.99),
                "empty_suspects_ms": median(suspects),
            })  # fmt: skip
    return results


async def _cycle(database: Database) -> float:
    """Milliseconds of a claim; its rows are persisted, due again at once."""
    started = time.perf_counter()
    batch = await _claim(database)
    milliseconds = (time.perf_counter() - started) * 1000
    again = decided(Status.PENDING, seconds=0.0)
    outcomes = {claim.request.id: again for claim in batch.claims}
    await persist.persist(database, batch, outcomes, worker_id="bench")
    return milliseconds


async def _under_snapshot(url: str, connection: stage.Connection) -> list[dict[str, float]]:
    """The claim, second by second, while an idle REPEATABLE READ transaction keeps every dead row alive."""
    curve: list[dict[str, float]] = []
    with stage.connect(url) as holder:
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM app.payment_requests")
        async with Database(url, application_name="bench", lease_seconds=LEASE_SECONDS) as database:
            started = time.perf_counter()
            while (elapsed := time.perf_counter() - started) < SNAPSHOT_SECONDS:
                claims = [await _cycle(database)]
                while time.perf_counter() - started < elapsed + 5:
                    claims.append(await _cycle(database))
                connection.execute("VACUUM app.payment_requests")  # as autovacuum would, in vain
                curve.append({"second": round(elapsed), "claim_ms": median(claims), "cycles": len(claims)})
        holder.execute("ROLLBACK")
        connection.execute("VACUUM app.payment_requests")
        async with Database(url, application_name="bench", lease_seconds=LEASE_SECONDS) as database:
            after = [await _cycle(database) for _ in range(20)]
        curve.append({"second": -1, "claim_ms": median(after), "cycles": 20})
    return curve


def under_snapshot(url: str) -> list[dict[str, float]]:
    """The curve; its last point, at second -1, is after the snapshot was let go and the table vacuumed."""
    with stage.connect(url) as connection:
        stage.empty(connection)
        stage.fill(connection, SNAPSHOT_ROWS)
        stage.settle_down(connection)
        return asyncio.run(_under_snapshot(url, connection))


def measure(url: str) -> dict[str, Any]:
    """All of it."""
    sizes = by_size(url)
    ratio = sizes[-1]["claim_ms"] / sizes[0]["claim_ms"]
    return {"sizes": sizes, "claim at 1 M / at 10 k": ratio, "snapshot": under_snapshot(url)}


def show(found: dict[str, Any]) -> None:
    """For people."""
    stage.table(
        f"one claim of {LIMIT} rows, {UNSERVED:,} unserved rows beside; empty claims find nothing",
        list(found["sizes"][0]),
        [list(each.values()) for each in found["sizes"]],
    )
    print(f"  claim at 1 M / at 10 k: {found['claim at 1 M / at 10 k']:.2f} (at most 1.5)")
    stage.table(
        f"{SNAPSHOT_ROWS:,} rows claimed and persisted all the time, a snapshot held open (last line: after it ended)",
        list(found["snapshot"][0]),
        [list(each.values()) for each in found["snapshot"]],
    )


if __name__ == "__main__":
    stage.main(measure, show)
