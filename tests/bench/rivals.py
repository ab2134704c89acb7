"""The queue libraries that Python users would take, beside ours: no-op jobs a second, one process each.

The same embedded PostgreSQL with the same durable settings for all (fsync on), a fresh database for each run, all jobs
enqueued and the tables vacuumed before the clock starts; it stops when the last job is finished in the database. Each
library runs with the fastest of its documented settings that we found, and with its defaults.

The rivals are not part of reconsup's own environment. They are compared for what they have in common with it, which is
throughput: they run a job once and are done with it, reconsup looks at a request again and again, and its looks are
fenced (owner, epoch, touch), which theirs are not.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
import uvloop

from reconsup.store import embedded, migrate
from reconsup.store.database import Database
from reconsup.worker.process import BATCHES_IN_HAND
from tests.bench import stage
from tests.support.ledgers import Chain, born, committed

RUNS = 3
INSTALL = "pip install --require-hashes -r packaging/requirements-bench.txt"

# Takes the address of a fresh database and how many jobs; returns the seconds from the start to the last one finished.
Contest = Callable[[str, int], Awaitable[float]]


@dataclass(frozen=True)
class Contestant:
    """Who, by which packages (the first has the version) and with which settings."""

    name: str
    packages: tuple[str, ...]
    settings: str
    contest: Contest
    share: float = 1.0  # of the jobs: less for who is slow, else one rival takes most of the bench's time


async def ours_first(url: str, jobs: int) -> float:
    """The first look at new requests: each is also admitted, in one more transaction a batch."""
    return await _ours(url, jobs, is_first=True)


async def ours(url: str, jobs: int) -> float:
    """A later look, which is what nearly all are."""
    return await _ours(url, jobs, is_first=False)


async def _ours(url: str, jobs: int, *, is_first: bool) -> float:
    migrate.upgrade(url, say=lambda _: None)
    chain = Chain()
    async with AsyncExitStack() as stack:
        databases = [
            await stack.enter_async_context(Database(url, application_name="bench", lease_seconds=stage.LEASE_SECONDS))
            for _ in range(BATCHES_IN_HAND)
        ]
        await committed(databases[0], await born(databases[0], chain), *chain.mined(stage.BLOCKS))
        with stage.connect(url) as connection:
            stage.fill(connection, jobs)
            if is_first:
                connection.execute("UPDATE app.payment_requests SET reconcile_admitted_height = NULL")
        _settle_down(url)
        reconciler = stage.reconciler(databases)
        started = time.perf_counter()
        while await reconciler.look_around():
            pass
        seconds = time.perf_counter() - started
    done = "next_reconcile_at > now() AND reconcile_lease_owner IS NULL AND reconcile_admitted_height IS NOT NULL"
    _expect(url, f"SELECT count(*) FROM app.payment_requests WHERE {done}", jobs)
    return seconds


async def procrastinate(url: str, jobs: int, *, concurrency: int, connections: int) -> float:
    """Its worker claims and finishes jobs one by one, so many at a time."""
    from procrastinate import App, PsycopgConnector  # an optional dependency

    app = App(connector=PsycopgConnector(conninfo=url, min_size=connections, max_size=connections))

    @app.task(name="nothing")
    async def nothing() -> None:
        pass

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await nothing.batch_defer_async(*({} for _ in range(jobs)))
        _settle_down(url)
        started = time.perf_counter()
        await app.run_worker_async(
            wait=False, concurrency=concurrency, listen_notify=False, install_signal_handlers=False
        )
        seconds = time.perf_counter() - started
    _expect(url, "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'", jobs)
    return seconds


async def pgqueuer(url: str, jobs: int, *, is_asyncpg: bool, batch: int) -> float:
    """Its worker claims and finishes jobs in batches."""
    import asyncpg  # optional dependencies
    from pgqueuer import PgQueuer
    from pgqueuer.models import Job

    if is_asyncpg:
        connection = await asyncpg.connect(url)
        queuer = PgQueuer.from_asyncpg_connection(connection)
    else:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
        queuer = PgQueuer.from_psycopg_connection(connection)
    await queuer.qm.queries.install()
    await queuer.qm.queries.optimize_autovacuum()  # as its guide to performance says; it also leaves room in the pages
    left = jobs

    @queuer.entrypoint("nothing")
    async def nothing(_: Job) -> None:
        nonlocal left
        left -= 1
        if not left:
            queuer.shutdown.set()  # what is buffered is written before `run` returns

    await queuer.qm.queries.enqueue(["nothing"] * jobs, [None] * jobs, [0] * jobs)
    _settle_down(url)
    started = time.perf_counter()
    await queuer.run(batch_size=batch)
    seconds = time.perf_counter() - started
    await connection.close()
    _expect(url, "SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'", jobs)
    _expect(url, "SELECT count(*) FROM pgqueuer", 0)
    return seconds


def _settle_down(url: str) -> None:
    """As after a quiet hour: vacuumed, analysed, written out."""
    with stage.connect(url) as connection:
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")


def _expect(url: str, query: str, count: int) -> None:
    with psycopg.connect(url) as connection:
        found = connection.execute(query).fetchall()
        assert found == [(count,)], f"{found} instead of {count}: {query}"


PGQUEUER = ("pgqueuer", "asyncpg")
PROCRASTINATE = ("procrastinate",)

# Of each rival its own defaults, and the fastest of what its documentation offers. Tried: pgqueuer with batches of 10
# to 500, 1 and 5 consumers, either driver, a pool; procrastinate with 1 to 100 at a time over 4 to 32 connections.
CONTESTANTS = (
    Contestant("reconsup", ("reconsup",), f"batch {stage.BATCH}, psycopg", ours),
    Contestant("reconsup, first look", ("reconsup",), "the same, and each is admitted", ours_first),
    Contestant("pgqueuer, fastest", PGQUEUER, "batch 500, asyncpg", partial(pgqueuer, is_asyncpg=True, batch=500)),
    Contestant("pgqueuer, defaults", PGQUEUER, "batch 10, asyncpg", partial(pgqueuer, is_asyncpg=True, batch=10)),
    Contestant("pgqueuer, our driver", PGQUEUER, "batch 100, psycopg", partial(pgqueuer, is_asyncpg=False, batch=100)),
    Contestant(
        "procrastinate, fastest",
        PROCRASTINATE,
        "10 at a time, 4 connections",
        partial(procrastinate, concurrency=10, connections=4),
        share=0.2,
    ),
    Contestant(
        "procrastinate, defaults",
        PROCRASTINATE,
        "1 at a time, 4 connections",
        partial(procrastinate, concurrency=1, connections=4),
        share=0.2,
    ),
)


def installed(package: str) -> str | None:
    """Its version; None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_once(server: embedded.Server, contestant: Contestant, jobs_at_most: int) -> float:
    """One run in a fresh database: jobs a second."""
    jobs = int(jobs_at_most * contestant.share)
    name = "contest"
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            url = server.url.removesuffix(f"/{embedded.DATABASE}") + f"/{name}"
            seconds = uvloop.run(contestant.contest(url, jobs))
            return jobs / seconds
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def result_of(contestant: Contestant, rounds: list[dict[str, float]], jobs: int) -> dict[str, Any]:
    """What the table and the JSON say of one contestant."""
    return {
        "name": contestant.name,
        "version": installed(contestant.packages[0]),
        "settings": contestant.settings,
        "jobs": int(jobs * contestant.share),
        "jobs_per_second": round(median(each[contestant.name] for each in rounds)),
        "of_ours": round(median(each[contestant.name] / each["reconsup"] for each in rounds), 4),
        "runs": [round(each[contestant.name]) for each in rounds],
    }


def main() -> int:
    """Print the table; rivals that are not installed are left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    stage.silence()
    logging.getLogger("procrastinate").setLevel(logging.ERROR)  # it warns of an app in the main module
    contestants = [each for each in CONTESTANTS if all(map(installed, each.packages))]
    results: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="reconsup-bench-") as folder,
        embedded.start(Path(folder) / "pg", settings=stage.SETTINGS) as server,
    ):
        # in turn, so that a noisy minute meets all; ratios are those of a round
        rounds = [{each.name: run_once(server, each, given.jobs) for each in contestants} for _ in range(RUNS)]
    print(f"{given.jobs} no-op jobs, one process, the same durable PostgreSQL; median of {RUNS} rounds")
    print(f"  {'':<24}{'version':<9}{'jobs':>6}{'jobs/s':>9}{'of ours':>9}   settings")
    for each in contestants:
        results.append(result := result_of(each, rounds, given.jobs))
        print(
            f"  {each.name:<24}{result['version']:<9}{result['jobs']:>6}{result['jobs_per_second']:>9,}"
            f"{result['of_ours']:>9.3f}   {each.settings}"
        )
    if missing := sorted({name for each in CONTESTANTS for name in each.packages if not installed(name)}):
        print(f"not installed, so left out: {', '.join(missing)}. To bench them too: {INSTALL}")
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
