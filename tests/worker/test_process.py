"""The life of a worker process: what it does before it is ready."""

import os

import pytest
import uvloop

from reconsup.fleet.posix import Bell, Scoreboard, Seat, WorkerState
from reconsup.settings import load
from reconsup.worker import process
from tests.support.program import free_port


def test_a_worker_that_finds_no_database_leaves_with_69_before_its_boot_deadline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    """Killed at the boot deadline it would cost a restart each time, and be waited for ever longer."""
    monkeypatch.setattr(process, "DATABASE_PATIENCE_SECONDS", 0.0)
    lifeline, write_end = os.pipe()
    seat = Seat(0, "host", "0" * 16, Scoreboard("host", 1), Bell(), lifeline, tmp_path)
    settings = load({"DATABASE_URL": f"postgresql://me:pass@127.0.0.1:{free_port()}/x"}, {})

    assert uvloop.run(process._Worker(seat, settings).run()) == 69
    assert seat.scoreboard.child_state(0) is not WorkerState.READY
    os.close(write_end)
    os.close(lifeline)
