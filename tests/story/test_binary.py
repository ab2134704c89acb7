"""`make binary`: one file that unpacks itself once and becomes the program, whatever it finds where it unpacks.

What the program then does, the stories show: RECONSUP_TEST_PROGRAM=binary.
"""

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.story.conftest import Town
from tests.support import launcher
from tests.support.load import kill
from tests.support.postgres import Database
from tests.support.program import Program, wait_for

pytestmark = [pytest.mark.long, pytest.mark.service]

OTHER_VERSION = "0123456789abcdef" * 2


@pytest.fixture
def binary() -> Path:
    return Path(launcher.named("binary").command[0])


def run(binary: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Nothing but this in the environment, nothing to write to where it stands."""
    return subprocess.run(
        [binary, *arguments], cwd="/", env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def version(binary: Path, home: Path) -> subprocess.CompletedProcess[str]:
    return run(binary, "--version", RECONSUP_HOME=str(home))


def works(done: subprocess.CompletedProcess[str]) -> bool:
    return (done.returncode, done.stderr, done.stdout.split()[0]) == (0, "", "reconsup")


def test_it_unpacks_once_into_a_folder_of_its_own(binary: Path, tmp_path: Path) -> None:
    home = tmp_path / "a" / "b"
    assert works(version(binary, home))
    (folder,) = home.iterdir()
    before = folder.stat().st_ino, (folder / "reconsup").stat().st_mtime_ns
    assert works(version(binary, home))
    assert [*home.iterdir()] == [folder]
    assert (folder.stat().st_ino, (folder / "reconsup").stat().st_mtime_ns) == before


def test_what_systemd_gives_a_service_is_where_it_unpacks(binary: Path, tmp_path: Path) -> None:
    """No HOME, and of several folders the first."""
    done = run(binary, "--version", CACHE_DIRECTORY=f"{tmp_path}:/elsewhere", TMPDIR="/proc")
    assert works(done)
    assert len([*tmp_path.iterdir()]) == 1


def test_many_first_starts_at_once_all_work(binary: Path, tmp_path: Path) -> None:
    """Who comes second runs what the first one unpacked."""
    environment = {"RECONSUP_HOME": str(tmp_path)}
    started = [subprocess.Popen([binary, "--version"], env=environment, stdout=subprocess.PIPE) for _ in range(8)]
    assert [one.communicate(timeout=60)[0].split()[0] for one in started] == [b"reconsup"] * 8
    assert len([*tmp_path.iterdir()]) == 1


def lose(folder: Path) -> None:
    (folder / "_internal" / "base_library.zip").unlink()


def cut(folder: Path) -> None:
    os.truncate(folder / "_internal" / "base_library.zip", 1000)


@pytest.mark.parametrize("damage", [lose, cut])
def test_a_folder_that_is_not_whole_is_unpacked_anew(
    binary: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A cleaner of temporary files, a full disk. Seen to fail without the look at each file."""
    assert works(version(binary, tmp_path))
    (folder,) = tmp_path.iterdir()
    damage(folder)
    assert works(version(binary, tmp_path))
    assert [*tmp_path.iterdir()] == [folder]


def test_versions_that_nobody_runs_go_when_a_new_one_comes(binary: Path, tmp_path: Path) -> None:
    """And what a start left that was killed while it unpacked. Seen to fail (all go) without the lock."""
    for name in (OTHER_VERSION, OTHER_VERSION[::-1], f".{OTHER_VERSION}.17", "something-else"):
        (tmp_path / name / "_internal").mkdir(parents=True)
    in_use = os.open(tmp_path / OTHER_VERSION, os.O_RDONLY)
    fcntl.flock(in_use, fcntl.LOCK_SH)
    assert works(version(binary, tmp_path))
    os.close(in_use)
    left = {path.name for path in tmp_path.iterdir()}
    assert {OTHER_VERSION, "something-else"} < left
    assert len(left) == 3


def test_a_folder_that_others_may_write_to_is_refused(binary: Path, tmp_path: Path) -> None:
    """They could put a program of theirs in its place. Seen to fail (it runs) without the look at owner and mode."""
    tmp_path.chmod(0o777)
    done = version(binary, tmp_path)
    assert (done.returncode, done.stdout) == (78, "")
    assert "set RECONSUP_HOME to a folder of yours" in done.stderr
    assert "others may write there" in done.stderr


def test_a_file_that_was_cut_short_says_so(binary: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(binary.read_bytes()[:-1000])
    copy.chmod(0o755)
    done = version(copy, tmp_path / "home")
    assert (done.returncode, done.stderr) == (70, "reconsup: this file was cut short: copy it again\n")


def test_a_file_with_one_wrong_byte_says_so_and_runs_nothing(binary: Path, tmp_path: Path) -> None:
    """Seen to fail without the checksums."""
    data = bytearray(binary.read_bytes())
    data[len(data) // 2] ^= 1
    copy, home = tmp_path / "copy", tmp_path / "home"
    copy.write_bytes(data)
    copy.chmod(0o755)
    done = version(copy, home)
    assert (done.returncode, done.stdout) == (78, "")
    assert "this file is damaged: copy it again" in done.stderr
    assert [*home.iterdir()] == []


def test_what_is_not_in_it_says_so_in_a_sentence() -> None:
    packed = launcher.named("binary")
    demo = packed.run("demo", environment={})
    assert (demo.returncode, demo.stderr.count("\n")) == (64, 1)
    assert "`make demo`" in demo.stderr
    embedded = packed.run("migrate", environment={"DATABASE_URL": "embedded:/nowhere/pg"})
    assert embedded.returncode == 69
    assert "set DATABASE_URL to a postgresql:// address" in embedded.stderr


def test_it_migrates_up_and_down(empty_database: Database) -> None:
    packed = launcher.named("binary")
    for action in (["upgrade"], ["downgrade", "base"], ["upgrade"], ["current"]):
        done = packed.run("migrate", *action, environment={"DATABASE_URL": empty_database.url})
        assert done.returncode == 0, done.stderr
    assert empty_database.fetch("SELECT count(*) FROM app.payment_requests") == [(0,)]


@pytest.mark.story
def test_it_goes_on_when_its_folder_is_taken_away(town: Town, tmp_path: Path) -> None:
    """All is in memory before the first fork: killed workers are replaced, payments confirmed, a drain ends with 0."""
    ids = town.requests(4)
    home = tmp_path / "home"
    with Program(
        town.database.url, town.rpc_urls, folder=town.folder, workers=2, launched="binary", RECONSUP_HOME=str(home)
    ) as program:
        program.wait_ready()
        (folder,) = home.iterdir()
        folder.rename(tmp_path / "gone")
        for death in range(4):
            slot = death % 2
            pid = wait_for("the slot is taken", lambda at=slot: program.pids().get(at))
            kill(pid, signal.SIGKILL)
            wait_for("it is taken again", lambda at=slot, old=pid: program.pids().get(at, old) != old)
        town.pay(ids)
        wait_for("all are confirmed", lambda: town.statuses() == {"confirmed": 4})
        assert program.stop() == 0
    assert "Traceback" not in program.log.read_text()


@pytest.mark.story
def test_ctrl_c_at_a_terminal_is_one_signal(town: Town, binary: Path, tmp_path: Path) -> None:
    """The whole group gets it; nothing between the terminal and the supervisor sends it once more."""
    log = tmp_path / "log"
    settings = {"DATABASE_URL": town.database.url, "RECONSUP_METRICS_ADDRESS": "", "RECONSUP_HOME": str(tmp_path / "h")}
    with log.open("wb") as out:
        process = subprocess.Popen([binary, "--workers", "1"], env=settings, stderr=out, start_new_session=True)
        wait_for("it is ready", lambda: log.read_text().count('"process_ready"') == 2)
        os.killpg(process.pid, signal.SIGINT)
        began = time.monotonic()
        assert process.wait(20) == 0
    assert log.read_text().count('"signal_received"') == 1
    assert time.monotonic() - began < 10
