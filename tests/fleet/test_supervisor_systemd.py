"""What systemd is told by a real supervisor, in which order; a service manager that listens."""

import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.fleet.test_supervisor import KILL, TERM
from tests.support.notify_server import NotifyServer
from tests.support.toy_fleet import Play
from tests.support.toy_stage import on_stage

pytestmark = pytest.mark.story

TTIN = signal.SIGTTIN
WATCHDOG_SECONDS = 0.6


def test_from_the_start_over_a_reload_to_the_end(tmp_path: Path) -> None:
    with (
        NotifyServer(watchdog_seconds=WATCHDOG_SECONDS) as manager,
        on_stage(tmp_path, Play(workers=2, probe="silent"), **manager.environment) as stage,
    ):
        stage.until_told("silent")
        manager.wait("EXTEND_TIMEOUT_USEC", count=2)
        assert manager.told("READY") == []
        stage.hup(Play(workers=2))  # nobody works with the old ones yet: they are in force at once
        manager.wait("READY", "1")
        stage.until_ready(2)
        before = time.monotonic()
        stage.hup(Play(workers=2, name="second"))
        manager.wait("READY", "1", count=2)
        stage.hup("refused: it is wrong")
        manager.wait("READY", "1", count=3)
        manager.wait("WATCHDOG", count=len(manager.told("WATCHDOG")) + 4)
        stage.send(TERM)
        manager.wait("STOPPING", "1")
        assert stage.end() == 0

        order = manager.words("READY", "RELOADING", "STOPPING")
        assert order == ["READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]
        (reloading, _) = manager.told("RELOADING")
        assert before <= int(reloading.fields["MONOTONIC_USEC"]) / 1e6 <= reloading.at
        pings = [each.at for each in manager.told("WATCHDOG")]
        assert max(later - ping for ping, later in pairwise(pings)) < WATCHDOG_SECONDS
        assert {each.pid for each in manager.messages()} == {stage.supervisor.pid}, "only the main process speaks"
        assert {each["systemd"] for each in stage.told("born")} == {0}
        assert "2 of 2 workers ready" in manager.told("STATUS")[-1].fields["STATUS"] or manager.told("STOPPING")


def test_the_watchdog_is_not_told_that_all_is_well_when_no_worker_is(tmp_path: Path) -> None:
    """Seen to fail when it is told at every turn of the loop."""
    with (
        NotifyServer(watchdog_seconds=0.3) as manager,
        on_stage(tmp_path, Play(workers=1, worker="silent-the-second-time"), **manager.environment) as stage,
    ):
        worker = stage.until_ready(1)[0]
        manager.wait("WATCHDOG", count=4)
        os.kill(worker, KILL)
        stage.until_told("silent")
        told = len(manager.told("WATCHDOG"))
        for turn in range(3):  # each is a turn of the loop
            stage.send(TTIN)
            stage.until_logged("signal_received", count=turn + 1)

        assert len(manager.told("WATCHDOG")) == told


def test_after_new_settings_the_spare_seat_is_not_shown_as_one_that_is_missing(tmp_path: Path) -> None:
    with NotifyServer() as manager, on_stage(tmp_path, Play(workers=1), **manager.environment) as stage:
        stage.until_ready(1)
        stage.hup(Play(workers=1, name="second"))
        stage.until_logged("process_left", worker_id="toy-spare")
        manager.wait("READY", count=2)
        stage.send(TERM)
        assert stage.end() == 0

    said = [each.fields["STATUS"] for each in manager.told("STATUS")]
    assert any("ready" in each for each in said)
    assert [each for each in said if "empty" in each] == []


def test_a_drain_asks_for_its_time_and_not_for_more(tmp_path: Path) -> None:
    play = Play(workers=1, worker="stubborn", limits={"drain_seconds": 2.5})
    with NotifyServer() as manager, on_stage(tmp_path, play, **manager.environment) as stage:
        stage.until_ready(1)
        asked_at = time.monotonic()
        stage.send(TERM)
        assert stage.end() == 0

        asked = [
            (each.at, int(each.fields["EXTEND_TIMEOUT_USEC"]) / 1e6) for each in manager.told("EXTEND_TIMEOUT_USEC")
        ]
        during = [(at, seconds) for at, seconds in asked if at >= asked_at]
        assert len(during) >= 2
        # the drain, the monitor's farewell, and a margin
        assert max(at + seconds for at, seconds in during) <= asked_at + 2.5 + 5 + 2.5


def test_a_manager_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    with NotifyServer(watchdog_seconds=0.3) as manager:
        environment = manager.environment
    with on_stage(tmp_path, Play(workers=1), **environment) as stage:
        stage.until_ready(1)
        stage.send(TERM)
        assert stage.end() == 0
