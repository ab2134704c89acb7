"""The one files at work: signals, the pid that was started, the folder, and machines that have next to nothing."""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from reconsup.__main__ import HELD
from tests.story.conftest import Town
from tests.story.test_entry import assert_clean, starting
from tests.support import launcher
from tests.support.load import kill
from tests.support.onefile import Packed, folders, packed_as, works
from tests.support.pid_one import as_pid_one
from tests.support.postgres import Database
from tests.support.program import Program, wait_for

pytestmark = [pytest.mark.long, pytest.mark.service, pytest.mark.story]


@pytest.fixture(params=["binary", "shiv"])
def packed(request: pytest.FixtureRequest) -> Packed:
    return packed_as(request.param)


@pytest.mark.parametrize("before", [(), as_pid_one()], ids=["as-any", "as-pid-1"])
def test_a_signal_that_comes_while_it_unpacks_is_heard_when_the_program_can(
    packed: Packed, tmp_path: Path, before: Sequence[str]
) -> None:
    """Seen to fail for both without the block at their very beginning: it dies of it, and as PID 1 it is lost."""
    home = tmp_path / "home"
    with starting(tmp_path, "--workers", "2", way=packed.command, before=before, RECONSUP_HOME=str(home)) as start:
        wait_for("it unpacks", lambda: is_unpacking(home))
        held = blocked(start.pid)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
            os.kill(start.pid, number)
        code, text = start.end()
    assert code == 0, text
    assert text.count('"event":"signal_received"') == 2
    assert '"event":"supervisor_stopped"' in text
    assert_clean(text)
    assert held == {*HELD}


def is_unpacking(home: Path) -> bool:
    """Whether what is there has not got its name yet."""
    return home.exists() and any(each.name.startswith(".") or each.suffix == ".tmp" for each in folders(home))


def blocked(pid: int) -> set[int]:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [int(line.split()[1], 16) for line in status if line.startswith("SigBlk:")]
    return {number for number in signal.valid_signals() if mask & 1 << (number - 1)}


@pytest.mark.parametrize("around", ["bare", "bare+pid1"])
def test_it_does_all_its_work_where_nothing_is_that_it_does_not_need(
    packed: Packed, town: Town, empty_database: Database, around: str
) -> None:
    """The binary: where there is the C library, /proc, /dev and /tmp. The shiv: a Python without packages. No HOME.

    All but /tmp is read-only there. It tells its version, migrates, checks, runs, replaces who is killed, and drains.
    """
    bare = launcher.named(f"{packed.name}+{around}")
    assert bare.run("--version", environment=os.environ).stdout.split()[0] == "reconsup"
    for action in (["upgrade"], ["downgrade", "base"], ["upgrade"], ["current"]):
        done = bare.run("migrate", *action, environment=os.environ | {"DATABASE_URL": empty_database.url})
        assert done.returncode == 0, done.stderr
    assert empty_database.fetch("SELECT count(*) FROM app.payment_requests") == [(0,)]
    settings = {
        "DATABASE_URL": town.database.url,
        "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": json.dumps(town.rpc_urls),
    }
    checked = bare.run("check", environment=os.environ | settings)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    ids = town.requests(4)
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=2, launched=bare.name) as program:
        program.wait_ready()
        pid = wait_for("the slot is taken", lambda: program.pids().get(0))
        kill(pid, signal.SIGKILL)
        wait_for("it is taken again", lambda: program.pids().get(0, pid) != pid)
        town.pay(ids)
        wait_for("all are confirmed", lambda: town.statuses() == {"confirmed": 4})
        assert program.stop() == 0
    assert town.leases() == []
    assert_clean(program.log.read_text())


def test_it_goes_on_when_its_folder_is_taken_away(packed: Packed, town: Town, tmp_path: Path) -> None:
    """All is in memory before the first fork: killed workers are replaced, payments confirmed, a drain ends with 0."""
    ids = town.requests(4)
    home = tmp_path / "home"
    with Program(
        town.database.url, town.rpc_urls, folder=town.folder, workers=2, launched=packed.name, RECONSUP_HOME=str(home)
    ) as program:
        program.wait_ready()
        (folder,) = folders(home)
        folder.rename(tmp_path / "gone")
        for death in range(4):
            slot = death % 2
            pid = wait_for("the slot is taken", lambda at=slot: program.pids().get(at))
            kill(pid, signal.SIGKILL)
            wait_for("it is taken again", lambda at=slot, old=pid: program.pids().get(at, old) != old)
        town.pay(ids)
        wait_for("all are confirmed", lambda: town.statuses() == {"confirmed": 4})
        assert program.stop() == 0
    assert_clean(program.log.read_text())


def test_its_folder_is_locked_as_long_as_one_process_of_it_lives_and_survives_kill_9(
    packed: Packed, town: Town, tmp_path: Path
) -> None:
    """Cleaners of /tmp that know flock, and other versions, keep off; the next start runs what is there.

    Seen to fail for the shiv when the folder is closed again.
    """
    home = tmp_path / "home"
    with Program(
        town.database.url, town.rpc_urls, folder=town.folder, workers=1, launched=packed.name, RECONSUP_HOME=str(home)
    ) as program:
        program.wait_ready()
        (folder,) = folders(home)
        before = folder.stat().st_ino
        at = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(at, fcntl.LOCK_EX | fcntl.LOCK_NB)
        program.process.kill()
        program.process.wait()
    wait_for("nobody of it is left", lambda: is_free(at))
    os.close(at)
    assert works(packed.version(home))
    assert [each.stat().st_ino for each in folders(home)] == [before]


def is_free(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def test_ctrl_c_at_a_terminal_is_one_signal(packed: Packed, town: Town, tmp_path: Path) -> None:
    """The whole group gets it; nothing between the terminal and the supervisor sends it once more."""
    log = tmp_path / "log"
    settings = {"DATABASE_URL": town.database.url, "RECONSUP_METRICS_ADDRESS": "", "RECONSUP_HOME": str(tmp_path / "h")}
    command = [*packed.command, "--workers", "1"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=settings, stderr=out, start_new_session=True)
        wait_for("it is ready", lambda: log.read_text().count('"process_ready"') == 2)
        os.killpg(process.pid, signal.SIGINT)
        began = time.monotonic()
        assert process.wait(20) == 0
    assert log.read_text().count('"signal_received"') == 1
    assert time.monotonic() - began < 10


def test_the_pid_that_a_service_manager_started_is_the_supervisors(packed: Packed, town: Town) -> None:
    """WATCHDOG_PID names it, NotifyAccess=main lets it speak; READY and WATCHDOG come, and the manager judges that."""
    name = f"{packed.name}+notify"
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=1, launched=name) as program:
        program.wait_ready()
        assert program.manager is not None
        (started,) = program.events("supervisor_started")
        assert started["pid"] == program.process.pid
        told = program.manager
        wait_for("it tells that it lives", lambda: any("WATCHDOG" in each.said for each in told.messages))
        assert program.stop() == 0
    assert {each.pid for each in told.messages} == {program.process.pid}
