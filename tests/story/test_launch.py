"""The program works as PID 1 of a container and under a service manager, and is the very process that was started."""

import os
import signal

import pytest

from tests.story.conftest import Town
from tests.support import launcher
from tests.support.program import Program, wait_for

pytestmark = [pytest.mark.service, pytest.mark.story]


@pytest.mark.parametrize("launched", [pytest.param(None, id="chosen"), "pid1", "notify"])
def test_the_process_that_was_started_is_the_supervisor_and_its_workers_are_replaced(
    town: Town, launched: str | None
) -> None:
    """Signals reach it, a service manager takes it for the service, and its exit code is the service's.

    A bootloader or a shell that stays in between would be the process that was started.
    """
    ids = town.requests(4)
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=2, launched=launched) as program:
        program.wait_ready()
        (started,) = program.events("supervisor_started")
        assert launcher.outside(program.process.pid)[started["pid"]] == program.process.pid
        assert started["pid"] == (1 if launched == "pid1" else started["pid"])
        pid = wait_for("the slot is taken", lambda: program.pids().get(0))
        os.kill(pid, signal.SIGKILL)
        wait_for("it is taken again", lambda: program.pids().get(0, pid) != pid)
        town.pay(ids)
        wait_for("all are confirmed", lambda: town.statuses() == {"confirmed": 4})
        assert program.stop() == 0
    assert [line["signal"] for line in program.events("signal_received")] == ["SIGTERM"]
