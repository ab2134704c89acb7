"""A real supervisor with toy children, under real signals (tests/support/toy_fleet.py)."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.support.toy_fleet import Play
from tests.support.toy_stage import is_alive, on_stage

pytestmark = pytest.mark.story

KILL, TERM, INT, QUIT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT


def test_a_killed_worker_is_replaced_in_its_slot_by_another_incarnation(tmp_path: Path) -> None:
    with on_stage(tmp_path, Play(workers=2)) as stage:
        before = stage.until_ready(2)
        os.kill(before[1], KILL)
        old, new = stage.until_told("ready", slot=1, count=2)
        (death,) = stage.until_logged("process_left", worker_id="toy-1")
        stage.send(TERM)

        assert stage.end() == 0
        assert old["pid"] != new["pid"]
        assert old["owner"] != new["owner"]
        assert re.fullmatch("toy-1#[0-9a-f]{16}", new["owner"])
        assert (death["cause"], death["signal"], death["level"]) == ("signal", "SIGKILL", "warning")
        assert f"toy-1#{death['incarnation']}" == old["owner"]
        assert stage.logged("process_forked", worker_id="toy-1")[1]["restarts"] == 1
        assert {each["pid"] for each in stage.told("ready", slot=0)} == {before[0]}


@pytest.mark.parametrize("number", [TERM, INT])
def test_drain_leaves_no_process_and_the_monitor_leaves_last(tmp_path: Path, number: signal.Signals) -> None:
    with on_stage(tmp_path, Play(workers=3)) as stage:
        stage.until_ready(3)
        stage.send(number)

        assert stage.end() == 0
        assert [each["slot"] for each in stage.told("left")][-1] == -1
        assert sorted(each["slot"] for each in stage.told("draining", cause="TERM")) == [-1, 0, 1, 2]
        assert [each["phase"] for each in stage.logged("phase")] == ["running", "draining", "done"]


def test_a_signal_to_the_whole_group_is_one_signal_and_not_the_childrens(tmp_path: Path) -> None:
    """As a terminal's Ctrl-C. Seen to fail without setsid: the monitor, which must leave last, leaves first."""
    with on_stage(tmp_path, Play(workers=2)) as stage:
        stage.until_ready(2)
        os.killpg(stage.supervisor.pid, TERM)

        assert stage.end() == 0
        assert [each["slot"] for each in stage.told("draining")][-1] == -1
        assert [each["slot"] for each in stage.told("left")][-1] == -1
        assert all(each["sid"] == each["pid"] for each in stage.told("born"))


def test_who_does_not_leave_in_time_is_killed(tmp_path: Path) -> None:
    with on_stage(tmp_path, Play(workers=2, worker=["stubborn", "idle"], limits={"drain_seconds": 0.3})) as stage:
        stage.until_ready(2)
        started_at = time.monotonic()
        stage.send(TERM)

        assert stage.end() == 0
        assert time.monotonic() - started_at >= 0.3
        assert len(stage.told("ignored", signal=TERM)) == 1
        assert len(stage.logged("process_not_gone_in_time", worker_id="toy-0")) == 1
        assert [each["cause"] for each in stage.logged("process_left", worker_id="toy-0")] == ["drain"]
        assert [each["cause"] for each in stage.logged("process_left", worker_id="toy-1")] == ["clean"]


def test_a_second_signal_stops_now_and_one_that_came_twice_does_not(tmp_path: Path) -> None:
    """Seen to fail without `SignalNotes.end`: a signal in the last milliseconds became the exit code."""
    limits = {"drain_seconds": 600, "again_seconds": 0.5}
    with on_stage(tmp_path, Play(workers=2, worker="stubborn", limits=limits)) as stage:
        stage.until_ready(2)
        asked_at = time.monotonic()
        while stage.supervisor.poll() is None and time.monotonic() < asked_at + 10:
            stage.send(TERM)
            time.sleep(0.02)  # between two signals, not for something to happen

        assert stage.end() == 0
        assert time.monotonic() - asked_at >= 0.5
        assert {each["cause"] for each in stage.logged("killed")} == {"stop"}
        # each was told once, however often the supervisor was
        assert sorted(each["slot"] for each in stage.told("ignored", signal=TERM)) == [0, 1]
        # and the monitor had its time
        assert len(stage.told("left", slot=-1)) == 1


def test_quit_stops_now(tmp_path: Path) -> None:
    with on_stage(tmp_path, Play(workers=2, worker="stubborn", limits={"drain_seconds": 600})) as stage:
        stage.until_ready(2)
        stage.send(QUIT)

        assert stage.end() == 0
        assert stage.told("ignored") == []
        assert len(stage.told("left", slot=-1)) == 1


def test_all_parked_gives_up_with_70(tmp_path: Path) -> None:
    with on_stage(tmp_path, Play(workers=2, worker="exit:78")) as stage:
        assert stage.end() == 70
        assert len(stage.told("born", slot=0)) == len(stage.told("born", slot=1)) == 1
        # it may be told before it can listen
        assert stage.logged("process_left")[-1]["worker_id"] == "toy-monitor"
        assert stage.logged("process_left")[-1]["cause"] == "clean"
        (told,) = stage.logged("gave_up")
        assert told["exit_code"] == 70
        assert "start again" in told["todo"]


def test_a_crash_loop_is_parked_and_the_others_go_on(tmp_path: Path) -> None:
    with on_stage(tmp_path, Play(workers=2, worker=["raise", "idle"])) as stage:
        (parked,) = stage.until_logged("process_left", worker_id="toy-0", next="parked: it is not started again")
        assert parked["level"] == "error"
        assert "send HUP" in parked["todo"]
        assert stage.logged("process_left", worker_id="toy-0")[0]["next"] == "starts again at once"
        assert stage.supervisor.poll() is None
        assert len(stage.told("born", slot=0)) == 6
        assert len(stage.told("born", slot=1)) == 1
        crash = stage.logged("process_crashed", worker_id="toy-0")[0]
        stage.send(TERM)

        assert stage.end() == 0
        assert "RuntimeError: the toy is broken" in crash["exception"]
        assert {each["exit_code"] for each in stage.logged("process_left", worker_id="toy-0")} == {70}


@pytest.mark.parametrize("code", [69, 78])
def test_probe_decides_whether_anybody_starts(tmp_path: Path, code: int) -> None:
    with on_stage(tmp_path, Play(probe=f"exit:{code}")) as stage:
        assert stage.end() == code
        assert [each["slot"] for each in stage.told("born")] == [-2]


def test_term_while_probing_is_a_clean_end(tmp_path: Path) -> None:
    with on_stage(tmp_path, Play(probe="silent")) as stage:
        stage.until_told("silent")
        stage.send(TERM)

        assert stage.end() == 0
        assert [each["slot"] for each in stage.told("born")] == [-2]


def test_a_dependency_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with on_stage(tmp_path, Play(workers=1, worker="exit-until:69:database")) as stage:
        stage.until_logged("process_left", worker_id="toy-0", cause="dependency")
        (tmp_path / "database").touch()
        stage.until_ready(1)
        stage.send(TERM)

        assert stage.end() == 0


def test_a_worker_that_is_not_ready_in_time_is_killed_and_replaced(tmp_path: Path) -> None:
    with on_stage(tmp_path, Play(workers=2, worker=["silent", "idle"], limits={"boot_seconds": 0.5})) as stage:
        stage.until_told("silent", count=2)
        stage.send(TERM)

        assert stage.end() == 0
        assert stage.logged("process_not_ready_in_time", worker_id="toy-0")
        assert stage.logged("process_left", worker_id="toy-0")[0]["cause"] == "boot"
        assert stage.logged("process_left", worker_id="toy-0")[0]["cause"] == "boot"
        assert len(stage.told("born", slot=1)) == 1


def test_a_predecessors_readiness_does_not_count(tmp_path: Path) -> None:
    """Seen to fail when the cell is not cleared before the fork."""
    with on_stage(tmp_path, Play(workers=1, worker="silent-the-second-time", limits={"boot_seconds": 0.5})) as stage:
        os.kill(stage.until_ready(1)[0], KILL)

        killed = stage.until_logged("process_left", worker_id="toy-0", count=2)
        assert [each["cause"] for each in killed] == ["signal", "boot"]
        assert len(stage.logged("process_ready", worker_id="toy-0")) == 1


@pytest.mark.parametrize("part", ["idle", "stubborn-orphan", "silent"])
def test_a_killed_supervisor_leaves_no_orphan(tmp_path: Path, part: str) -> None:
    """Seen to fail without the parent-death signal (silent), and without the lifeline (stubborn-orphan)."""
    with on_stage(tmp_path, Play(workers=2, worker=part)) as stage:
        for slot in (0, 1):  # whichever comes last
            stage.until_told(part if part == "silent" else "ready", slot=slot)
        stage.until_told("ready", slot=-1)
        stage.supervisor.kill()

        stage.until_nobody_is_left()
        if part == "idle":
            assert len(stage.told("left")) == 3
        if part == "stubborn-orphan":
            assert sorted(each["slot"] for each in stage.told("orphaned")) == [0, 1]


def test_term_before_a_worker_can_listen_ends_that_worker_only(tmp_path: Path) -> None:
    with on_stage(tmp_path, Play(workers=2, worker=["term-itself", "idle"])) as stage:
        stage.until_logged("process_left", worker_id="toy-0", signal="SIGTERM", count=2)
        assert stage.supervisor.poll() is None
        stage.send(TERM)

        assert stage.end() == 0
        assert stage.told("survived") == []
        assert len(stage.logged("signal_received")) == 1


def test_term_to_one_worker_does_not_drain_the_fleet(tmp_path: Path) -> None:
    with on_stage(tmp_path, Play(workers=2)) as stage:
        before = stage.until_ready(2)
        os.kill(before[0], TERM)
        stage.until_told("ready", slot=0, count=2)

        assert stage.logged("signal_received") == []
        assert [each["slot"] for each in stage.told("draining")] == [0]
        assert is_alive(before[1])
        stage.send(TERM)
        assert stage.end() == 0


def test_the_dead_wait_for_a_monitor_that_dies_itself(tmp_path: Path) -> None:
    with on_stage(tmp_path, Play(workers=2, monitor="undertaker-that-dies")) as stage:
        workers = stage.until_ready(2)
        owner = stage.told("ready", slot=0)[0]["owner"]
        os.kill(workers[0], KILL)
        first, second = stage.until_told("dead", count=2)
        stage.until_told("ready", slot=0, count=2)
        stage.send(TERM)

        assert stage.end() == 0
        assert first["pid"] != second["pid"]
        assert first["owners"] == second["owners"] == [owner]
        assert second["rows"] == ["row-of-0"]
        assert len(stage.told("dead")) == 2


def test_at_the_end_the_monitor_still_sees_who_was_killed(tmp_path: Path) -> None:
    play = Play(workers=1, worker="stubborn", monitor="undertaker:yes", limits={"drain_seconds": 0.2})
    with on_stage(tmp_path, play) as stage:
        stage.until_ready(1)
        stage.send(TERM)

        assert stage.end() == 0
        assert stage.told("dead")[-1]["owners"] == [stage.told("ready", slot=0)[0]["owner"]]


def test_many_deaths_at_once_are_all_noticed(tmp_path: Path) -> None:
    with on_stage(tmp_path, Play(workers=8)) as stage:
        workers = stage.until_ready(8)
        open_before = len(os.listdir(f"/proc/{stage.supervisor.pid}/fd"))
        for slot in range(8):
            os.kill(workers[slot], KILL)
        for slot in range(8):
            stage.until_told("ready", slot=slot, count=2)
        assert len(os.listdir(f"/proc/{stage.supervisor.pid}/fd")) == open_before
        stage.send(TERM)

        assert stage.end() == 0
        # whoever is forked later has no more open than the first
        assert len({tuple(map(without_number, each["descriptors"])) for each in stage.told("born")}) == 1
        shared = [each for each in stage.told("born")[-1]["descriptors"] if "anon" in each]
        assert shared == ["anon_inode:[eventfd]", "anon_inode:[eventfd]"]


def without_number(descriptor: str) -> str:
    """Each has a file of its own for its stacks."""
    return re.sub(r"stacks-.*", "stacks", descriptor)


@pytest.mark.parametrize("twist", ["no-pidfd", "fork-fails"])
def test_an_unkind_system(tmp_path: Path, twist: str) -> None:
    with on_stage(tmp_path, Play(workers=1, twist=twist)) as stage:
        os.kill(stage.until_ready(1)[0], KILL)
        stage.until_told("ready", slot=0, count=2)
        stage.send(TERM)

        assert stage.end() == 0
        assert len(stage.logged("fork_failed")) == (2 if twist == "fork-fails" else 0)


def test_a_supervisor_with_a_thread_refuses_to_fork(tmp_path: Path) -> None:
    """Seen to fail without `assert_one_thread`."""
    with on_stage(tmp_path, Play(twist="thread")) as stage:
        assert stage.end() == 1
        assert stage.told() == []
        assert "fork with 2 threads" in (tmp_path / "log").read_text()
