"""claim → decide → persist in batches of 500: the worker's loop beside the same statements without it.

Three drivers send the same SQL to the same PostgreSQL in turn:
- ours: the reconciler's own loop, decisions, log lines and metrics included;
- bare: psycopg in its pipeline mode, statements prepared, rows as plain tuples, nothing decided;
- pgbench: the C client, `-M prepared`, what is claimed handed on as text of arrays.
Two kinds of work: `look` (nothing happened, the row is put off) and `confirm` (a payment, with its history entry).
"""

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import uvloop

from reconsup.store import adapters, embedded, leases, persist, view
from reconsup.store.database import Database
from reconsup.worker.process import BATCHES_IN_HAND
from tests.bench import stage
from tests.bench.stage import BATCH, LEASE_SECONDS, NETWORK, median

ROWS = 30_000
STANDING = 200_000  # open requests that are not due: as in a real table, indexes pay
ROUNDS = 3
WORK = ("look", "confirm")
LOOK_SECONDS = 600.0
# of the length that a real one has
EVIDENCE = json.dumps(
    [{"ref": f"0x{1:064x}", "amount_minor": str(10**18), "height": 105, "block_hash": f"0x{2:064x}", "canonical": True}]
)

Driver = Callable[[str, str, int], None]


# ours


def ours(url: str, _: str, slot: int) -> None:
    """The worker's loop until nothing is due."""
    stage.silence()
    uvloop.run(_ours(url, slot))


async def _ours(url: str, slot: int) -> None:
    name = f"bench-{slot}"
    async with AsyncExitStack() as stack:
        databases = [
            await stack.enter_async_context(Database(url, application_name=name, lease_seconds=LEASE_SECONDS))
            for _ in range(BATCHES_IN_HAND)
        ]
        loop = stage.reconciler(databases, slot=slot)
        while await loop.look_around():
            pass


# bare


def bare(url: str, work: str, slot: int) -> None:
    """The same statements: claim; view, BEGIN, persist, (history,) COMMIT and the next claim in one pipeline."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=0) as connection:
        adapters.register(connection)
        claim = {
            "chain": NETWORK.chain,
            "network": NETWORK.name,
            "owner": f"bare-{slot}#{slot:016x}",
            "lease": LEASE_SECONDS,
            "limit": BATCH,
            "without": [],
        }
        rows = connection.execute(leases._CLAIM, claim).fetchall()
        while rows:
            with connection.pipeline():
                seen = connection.execute(view._VIEW, _view_of(rows))
                connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
                    connection.execute(f"SET LOCAL {name} = 10000")
                parameters = _persist_of(rows, work) | claim
                connection.execute(persist._PERSIST, parameters)
                if work == "confirm":
                    connection.execute(persist._TELL, parameters | _tell_of(rows))
                connection.execute("COMMIT")
                claimed = connection.execute(leases._CLAIM, claim)
                seen.fetchall()
                rows = claimed.fetchall()


def _view_of(rows: list[Any]) -> dict[str, Any]:
    return {
        "chain": NETWORK.chain,
        "network": NETWORK.name,
        "ids": [row[0] for row in rows],
        "expiry_confirmations": 12,
        "spacing_blocks": view.SPACING_BLOCKS,
    }


def _persist_of(rows: list[Any], work: str) -> dict[str, Any]:
    count = len(rows)
    return {
        "ids": [row[0] for row in rows],
        "epochs": [row[10] for row in rows],
        "due_ats": [row[11] for row in rows],
        "expected": ["pending"] * count,
        "ends": [row[7] for row in rows],
        "owed": [str(row[3]) for row in rows],
        "statuses": ["pending" if work == "look" else "confirmed"] * count,
        "seconds": [LOOK_SECONDS if work == "look" else None] * count,
        "heights": [None] * count,
        "errors": [None] * count,
    }


def _tell_of(rows: list[Any]) -> dict[str, Any]:
    count = len(rows)
    return {
        "worker_id": "bare",
        "of": [row[0] for row in rows],
        "froms": ["pending"] * count,
        "tos": ["confirmed"] * count,
        "reasons": ["payment_confirmed"] * count,
        "refs": [None] * count,
        "amounts": ["1000000000000000000"] * count,
        "expecteds": ["1000000000000000000"] * count,
        "depths": [15] * count,
        "evidences": [EVIDENCE] * count,
        "proofs": [None] * count,
        "grants": [row[10] for row in rows],
    }


# pgbench


def pgbench_script(work: str) -> str:
    """The same statements in pgbench's language: what is claimed becomes a variable, and that a parameter."""
    claim = leases._CLAIM.replace("UPDATE app.payment_requests r", ", granted AS (UPDATE app.payment_requests r", 1)
    claim = re.sub(r"\)\s*, granted", "), granted", claim)
    status = "pending" if work == "look" else "confirmed"

    def each(value: str) -> str:
        return f"array_agg({value})::text"

    columns = {
        "ids": each("id"), "epochs": each("reconcile_lease_epoch"), "due_ats": each("next_reconcile_at"),
        "expected": each("'pending'::text"), "ends": each("expires_at"), "owed": each("expected"),
        "statuses": each(f"'{status}'::text"),
        "seconds": each(f"{LOOK_SECONDS}::float8" if work == "look" else "NULL::float8"),
        "heights": each("NULL::bigint"), "errors": each("NULL::text"),
    }  # fmt: skip
    if work == "confirm":
        columns |= {
            "froms": each("'pending'::text"), "reasons": each("'payment_confirmed'::text"), "refs": each("NULL::text"),
            "amounts": each("1000000000000000000"), "depths": each("15"), "evidences": each(f"'{EVIDENCE}'::jsonb"),
            "proofs": each("NULL::jsonb"),
        }  # fmt: skip
    of_tell = {"of": "ids", "tos": "statuses", "expecteds": "amounts", "grants": "epochs"}
    tell = re.sub(r"%\((\w+)\)s", lambda found: f"%({of_tell.get(found[1], found[1])})s", persist._TELL)
    listed = ", ".join(f"{value} AS {name}" for name, value in columns.items())
    return "\n".join(
        [
            "\\set limit 500\n\\set lease 30\n\\set expiry_confirmations 12\n\\set spacing_blocks 64",
            f"{claim}) SELECT {listed} FROM granted \\gset",
            f"{view._VIEW};",
            "BEGIN ISOLATION LEVEL READ COMMITTED;",
            "SET LOCAL lock_timeout = 10000;",
            "SET LOCAL statement_timeout = 10000;",
            "SET LOCAL idle_in_transaction_session_timeout = 10000;",
            f"{persist._PERSIST};",
            f"{tell};" if work == "confirm" else "",
            "COMMIT;",
        ]
    )


def pgbench(url: str, work: str, slot: int) -> None:
    """pgbench with as many transactions as there are batches."""
    script = re.sub(r"%\((\w+)\)s", r":\1", pgbench_script(work)).replace("%%", "%")
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        names = [
            f"-Dchain={NETWORK.chain}",
            f"-Dnetwork={NETWORK.name}",
            f"-Downer=pgbench-{slot}",
            "-Dworker_id=pg",
            "-Dwithout={}",
        ]
        program = [str(embedded._binaries() / "pgbench"), "-n", "-M", "prepared", "-f", file.name, *names]
        done = subprocess.run(
            [*program, "-c", "1", "-t", str(ROWS // BATCH), url], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr, done.stderr


DRIVERS: dict[str, Driver] = {"ours": ours, "bare": bare, "pgbench": pgbench}


# one run


def prepare(connection: stage.Connection, work: str, rows: int) -> None:
    """The same rows again, all due."""
    stage.empty(connection, standing=STANDING)
    stage.fill(connection, rows)
    if work == "confirm":
        stage.pay(connection)
    stage.settle_down(connection)


def rows_a_second(connection: stage.Connection, url: str, name: str, work: str) -> float:
    """One driver, one process, over fresh rows."""
    prepare(connection, work, ROWS)
    started = time.perf_counter()
    DRIVERS[name](url, work, 0)
    seconds = time.perf_counter() - started
    ((left,),) = connection.execute(
        "SELECT count(*) FROM app.payment_requests WHERE (reconcile_lease_epoch <> 1"
        " OR reconcile_lease_owner IS NOT NULL OR (status = 'confirmed') <> %s) AND derivation_index < %s",
        [work == "confirm", stage.STANDING_FIRST],
    ).fetchall()
    assert left == 0, f"{name} left {left} rows"
    return ROWS / seconds


def measure(url: str) -> dict[str, Any]:
    """Rows a second of each driver, and the ratios between them, round by round."""
    found: dict[str, Any] = {}
    with stage.connect(url) as connection:
        for work in WORK:
            rounds = [{name: rows_a_second(connection, url, name, work) for name in DRIVERS} for _ in range(ROUNDS)]
            found[work] = {name: median(each[name] for each in rounds) for name in DRIVERS} | {
                "ours/bare": median(each["ours"] / each["bare"] for each in rounds),
                "bare/pgbench": median(each["bare"] / each["pgbench"] for each in rounds),
            }
    return found


def show(found: dict[str, Any]) -> None:
    """For people."""
    head = [*DRIVERS, "ours/bare", "bare/pgbench"]
    stage.table(
        f"claim → decide → persist, batches of {BATCH}, one process, rows/s (median of {ROUNDS} rounds in turn)",
        ["work", *head],
        [[work, *(found[work][name] for name in head)] for work in WORK],
    )


if __name__ == "__main__":
    stage.main(measure, show)
