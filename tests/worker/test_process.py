"""The life of a worker process: what it does before it is ready, and last."""

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvloop
from structlog.testing import capture_logs

from reconsup.fleet.posix import Bell, Scoreboard, Seat, WorkerState
from reconsup.settings import Settings, load
from reconsup.store import database as store
from reconsup.store.revision import SchemaState
from reconsup.worker import pause, process
from tests.support.postgres import Database, insert_request
from tests.support.program import free_port


def test_a_worker_that_finds_no_database_leaves_with_69_before_its_boot_deadline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    """Killed at the boot deadline it would cost a restart each time, and be waited for ever longer."""
    monkeypatch.setattr(process, "DATABASE_PATIENCE_SECONDS", 0.0)
    lifeline, write_end = os.pipe()
    seat = Seat(0, "host", "0" * 16, Scoreboard("host"), Bell(), lifeline, tmp_path)
    settings = load({"DATABASE_URL": f"postgresql://me:pass@127.0.0.1:{free_port()}/x"}, {})

    assert uvloop.run(process._Worker(seat, settings).run()) == 69
    assert seat.scoreboard.child_state(0) is not WorkerState.READY
    os.close(write_end)
    os.close(lifeline)


def test_a_worker_leaves_before_its_boot_deadline_however_short_that_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its patience is half of what it has. Seen to fail (it never left) with a patience of 30 s."""
    monkeypatch.setattr(pause, "AWAY_SECONDS", 0.05)
    url = f"postgresql://me:pass@127.0.0.1:{free_port()}/x"
    settings = load({"DATABASE_URL": url, "RECONSUP_BOOT_SECONDS": "2"}, {})

    assert lifetime(tmp_path, settings) == (69, WorkerState.EMPTY, pytest.approx(1, abs=0.8))


@pytest.mark.service
def test_a_worker_that_meets_another_schema_is_never_ready_and_says_what_to_do(
    empty_database: Database, tmp_path: Path
) -> None:
    """With a new DATABASE_URL it must prove it before the others are replaced. Seen to fail with SELECT 1."""
    with capture_logs() as logged:
        code, state, _ = lifetime(tmp_path, load({"DATABASE_URL": empty_database.url}, {}))

    assert (code, state) == (69, WorkerState.EMPTY)
    assert [event["todo"] for event in logged if event["event"] == "schema_behind"] == [
        SchemaState(None).sentence(),
    ]


def lifetime(folder: Path, settings: Settings) -> tuple[int, WorkerState, float]:
    """A worker's exit code, what it said of itself, and how long it lived."""
    lifeline, write_end = os.pipe()
    seat = Seat(0, "host", "0" * 16, Scoreboard("host"), Bell(), lifeline, folder)
    started = time.monotonic()

    async def live() -> int:
        async with asyncio.timeout(10):
            return await process._Worker(seat, settings).run()

    try:
        code = uvloop.run(live())
    finally:
        os.close(write_end)
        os.close(lifeline)
    return code, seat.scoreboard.child_state(0), time.monotonic() - started


@pytest.mark.service
def test_a_lease_that_nobody_may_give_back_does_not_make_a_drain_a_crash(
    database: Database, tmp_path: os.PathLike[str]
) -> None:
    """The row may not be written any more since it was leased. Seen to fail (StoreRejected ends the process) when only
    a database that is away is expected.
    """
    lifeline, write_end = os.pipe()
    seat = Seat(0, "host", "0" * 16, Scoreboard("host"), Bell(), lifeline, tmp_path)
    with database.connect() as connection:
        until = datetime.now(UTC) + timedelta(hours=1)
        insert_request(
            connection, reconcile_lease_owner=seat.owner, reconcile_lease_until=until, reconcile_lease_epoch=7
        )
    database.execute("ALTER TABLE app.payment_requests ADD CONSTRAINT theirs CHECK (asset = '') NOT VALID")

    async def drain() -> int:
        async with store.Database(database.url, application_name="reconsup/0", lease_seconds=3) as connected:
            return await process._Worker(seat, load({"DATABASE_URL": database.url}, {}))._give_back(connected)

    assert uvloop.run(drain()) == 69
    os.close(write_end)
    os.close(lifeline)
