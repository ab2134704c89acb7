"""The life of a worker process: what it does before it is ready, and last."""

import os
from datetime import UTC, datetime, timedelta

import pytest
import uvloop

from reconsup.fleet.posix import Bell, Scoreboard, Seat, WorkerState
from reconsup.settings import load
from reconsup.store import database as store
from reconsup.worker import process
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
