"""One process of the real program hangs, in each way it can: it is killed, says where it was, and work goes on."""

import os
import signal
from pathlib import Path

import pytest

from tests.story.conftest import Town
from tests.story.test_stopping import alive, family
from tests.support import plants
from tests.support.program import Program, wait_for

pytestmark = [pytest.mark.service, pytest.mark.story, pytest.mark.planted]

ORPHAN_SECONDS = 8.0
LIMITS = {
    "RECONSUP_WATCHDOG_SECONDS": "4",  # with less, a busy machine was seen to have a second one starve
    "RECONSUP_BOOT_SECONDS": "4",
    "PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS": "2",
    "RECONSUP_RPC_TIMEOUT_SECONDS": "0.5",
}


@pytest.mark.parametrize(
    ("plant", "event", "cause", "number", "words"),
    [
        ("boot", "process_not_ready_in_time", "boot", "SIGABRT", "uvloop"),
        ("database", "process_hangs", "hang", "SIGABRT", "uvloop"),
        ("rpc", "process_hangs", "hang", "SIGABRT", "uvloop"),
        ("busy", "process_hangs", "hang", "SIGABRT", "run_in_circles"),
        ("stopped", "process_hangs", "hang", "SIGKILL", ""),
        ("busy-monitor", "process_hangs", "hang", "SIGABRT", "run_in_circles"),
        ("monitor", "process_hangs", "hang", "SIGABRT", "asyncio"),
    ],
)
def test_a_process_that_hangs_is_killed_and_replaced(
    town: Town, tmp_path: Path, plant: str, event: str, cause: str, number: str, words: str
) -> None:
    ids = town.requests(4)
    code = plants.code(plant, tmp_path / "sprung")
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=2, code=code, **LIMITS) as program:
        (told,) = wait_for(event, lambda: program.events(event), 30)
        left = wait_for("it left", lambda: [e for e in program.events("process_left") if e["pid"] == told["pid"]])
        town.pay(ids)
        wait_for("all are confirmed", lambda: town.statuses().get("confirmed") == 4, 30)
        program.wait_ready()

        assert (left[0]["cause"], left[0]["signal"]) == (cause, number)
        assert told["seconds"] >= 2
        assert words in left[0].get("stacks", "")
        assert len(program.events(event)) == 1, "nobody else was taken for hanging"
        if "monitor" not in plant:
            assert program.metric("reconsup_worker_restarts_total", cause=cause) == 1
        if plant in ("database", "rpc"):
            stuck = [e["loop"] for e in program.events("loop_stuck") if e.get("worker_id") == told["worker_id"]]
            assert told["loop"] in stuck
        assert program.stop() == 0
    assert town.leases() == []


@pytest.mark.parametrize("plant", ["busy", "busy-monitor"])
def test_who_is_in_a_busy_loop_does_not_outlive_a_killed_supervisor(town: Town, tmp_path: Path, plant: str) -> None:
    """Nobody is left to kill it, and its event loop hears nothing. Seen to fail without `end_if_orphaned`."""
    sprung = tmp_path / "sprung"
    code = plants.code(plant, sprung)
    with Program(
        town.database.url, town.rpc_urls, folder=town.folder, workers=1, code=code, RECONSUP_DRAIN_SECONDS="2"
    ) as program:
        wait_for("it is busy", sprung.exists)
        pids = family(program.process.pid)
        program.process.kill()
        program.process.wait()
        try:
            wait_for("nobody is left", lambda: not any(alive(pid) for pid in pids), ORPHAN_SECONDS)
        finally:
            for pid in filter(alive, pids):
                os.kill(pid, signal.SIGKILL)
