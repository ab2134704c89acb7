"""`make binary`, `make shiv`: one file that unpacks itself once and becomes the program, whatever it finds there.

What the program then does: test_onefile_at_work.py, and all stories with RECONSUP_TEST_PROGRAM=binary or shiv.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.load import kill
from tests.support.onefile import HASH, Packed, folders, packed_as, works
from tests.support.program import wait_for

pytestmark = [pytest.mark.long, pytest.mark.service]


@pytest.fixture(params=["binary", "shiv"])
def packed(request: pytest.FixtureRequest) -> Packed:
    return packed_as(request.param)


def test_it_unpacks_once_into_a_folder_of_its_own(packed: Packed, tmp_path: Path) -> None:
    home = tmp_path / "a" / "b"
    assert works(packed.version(home))
    (folder,) = folders(home)
    before = {each: (each.stat().st_ino, each.stat().st_mtime_ns) for each in (folder, *folder.rglob("*"))}
    assert works(packed.version(home))
    assert folders(home) == [folder]
    assert {each: (each.stat().st_ino, each.stat().st_mtime_ns) for each in (folder, *folder.rglob("*"))} == before


def test_what_systemd_gives_a_service_is_where_it_unpacks(packed: Packed, tmp_path: Path) -> None:
    """No HOME, and of several folders the first."""
    done = packed.run("--version", CACHE_DIRECTORY=f"{tmp_path}:/elsewhere", TMPDIR="/proc")
    assert works(done)
    assert len(folders(tmp_path)) == 1


def test_many_first_starts_at_once_all_work(packed: Packed, tmp_path: Path) -> None:
    """Who comes second runs what the first one unpacked."""
    environment = {"RECONSUP_HOME": str(tmp_path)}
    command = [*packed.command, "--version"]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(8)]
    assert [one.communicate(timeout=60)[0].split()[0] for one in started] == [b"reconsup"] * 8
    assert len(folders(tmp_path)) == 1


def test_a_start_that_was_killed_while_it_unpacked_leaves_nothing_to_the_next(packed: Packed, tmp_path: Path) -> None:
    """Killed at several moments: nothing half done is ever run, and what was left goes."""
    for tick in range(5):
        command = [*packed.command, "--version"]
        process = subprocess.Popen(command, env={"RECONSUP_HOME": str(tmp_path)}, stdout=subprocess.DEVNULL)
        wait_for("it unpacks", lambda at=process: folders(tmp_path) or at.poll() is not None)
        time.sleep(tick * 0.05)
        kill(process.pid, signal.SIGKILL)
        process.wait()
    assert works(packed.version(tmp_path))
    assert len(folders(tmp_path)) == 1


def lose(packed: Packed, folder: Path) -> None:
    (folder / packed.victim).unlink()


def cut(packed: Packed, folder: Path) -> None:
    os.truncate(folder / packed.victim, 1000)


def open_up(_: Packed, folder: Path) -> None:
    folder.chmod(0o777)


@pytest.mark.parametrize("damage", [lose, cut, open_up])
def test_a_folder_that_is_not_whole_is_unpacked_anew(
    packed: Packed, tmp_path: Path, damage: Callable[[Packed, Path], None]
) -> None:
    """A cleaner of temporary files, a full disk, others who may write. Seen to fail without the look at each file."""
    assert works(packed.version(tmp_path))
    (folder,) = folders(tmp_path)
    damage(packed, folder)
    assert works(packed.version(tmp_path))
    assert folders(tmp_path) == [folder]
    assert (folder / packed.victim).stat().st_size > 1000
    assert not folder.stat().st_mode & 0o022


def test_the_shiv_is_unpacked_anew_where_it_was_not_all_on_the_disk(tmp_path: Path) -> None:
    """After a loss of power files may have their length and not their contents. Seen to fail without the mark."""
    packed = packed_as("shiv")
    assert works(packed.version(tmp_path))
    (folder,) = folders(tmp_path)
    (folder / ".whole").unlink()
    (folder / packed.victim).write_bytes(bytes((folder / packed.victim).stat().st_size))
    assert works(packed.version(tmp_path))
    assert (folder / ".whole").exists()
    assert folders(tmp_path) == [folder]


def test_versions_that_nobody_runs_go_when_a_new_one_comes(packed: Packed, tmp_path: Path) -> None:
    """And what a start left that was killed while it unpacked. Seen to fail (all go) without the lock."""
    gone = packed.old.replace(HASH, HASH[::-1])
    for name in (packed.old, gone, packed.unfinished, "something-else"):
        (tmp_path / name / "_internal").mkdir(parents=True)
    in_use = os.open(tmp_path / packed.old, os.O_RDONLY)
    fcntl.flock(in_use, fcntl.LOCK_SH)
    assert works(packed.version(tmp_path))
    os.close(in_use)
    left = {path.name for path in folders(tmp_path)}
    assert {packed.old, "something-else"} < left
    assert len(left) == 3


def test_neither_of_them_takes_away_what_the_other_one_unpacked(tmp_path: Path) -> None:
    for name in ("binary", "shiv"):
        assert works(packed_as(name).version(tmp_path))
    assert len(folders(tmp_path)) == 2


def test_a_folder_that_others_may_write_to_is_refused(packed: Packed, tmp_path: Path) -> None:
    """They could put a program of theirs in its place. Seen to fail (it runs) without the look at owner and mode."""
    tmp_path.chmod(0o777)
    done = packed.version(tmp_path)
    assert (done.returncode, done.stdout) == (78, "")
    assert "set RECONSUP_HOME to a folder of yours" in done.stderr
    assert "others may write there" in done.stderr


def test_what_it_unpacks_nobody_else_may_write_to_whatever_the_umask(packed: Packed, tmp_path: Path) -> None:
    """Seen to fail for the shiv without a umask of its own."""
    home = tmp_path / "home"
    before = os.umask(0)
    try:
        assert works(packed.version(home))
    finally:
        os.umask(before)
    assert [each for each in (home, *home.rglob("*")) if not each.is_symlink() and each.stat().st_mode & 0o022] == []


def test_a_binary_that_was_cut_short_says_so(tmp_path: Path) -> None:
    """The shiv's end is where Python looks for its beginning: Python itself complains."""
    packed = packed_as("binary")
    copy = packed.copied(tmp_path / "copy", packed.path.read_bytes()[:-1000])
    done = copy.version(tmp_path / "home")
    assert (done.returncode, done.stderr) == (70, "reconsup: this file was cut short: copy it again\n")


def test_a_file_with_one_wrong_byte_says_so_and_runs_nothing(packed: Packed, tmp_path: Path) -> None:
    """Seen to fail without the checksums."""
    data = bytearray(packed.path.read_bytes())
    data[len(data) // 2] ^= 1
    home = tmp_path / "home"
    done = packed.copied(tmp_path / "copy", bytes(data)).version(home)
    assert (done.returncode, done.stdout) == (78, "")
    assert "this file is damaged: copy it again" in done.stderr
    assert folders(home) == []


def test_a_python_of_another_version_is_told_so_in_a_sentence(tmp_path: Path) -> None:
    """Here the file is another one, and the Python the same. Seen to fail (ModuleNotFoundError) without the look."""
    packed, path = packed_as("shiv"), tmp_path / "other.pyz"
    with zipfile.ZipFile(packed.path) as old, zipfile.ZipFile(path, "w") as new:
        for name in ("pyz_unpack.py", "environment.json"):
            new.writestr(name, old.read(name))
        start = old.read("__main__.py").decode()
        new.writestr("__main__.py", start.replace(f"cpython-{sys.version_info[0]}{sys.version_info[1]}", "cpython-399"))
    done = packed.copied(path, path.read_bytes()).version(tmp_path / "home")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("reconsup: this file needs Python 3.99 (cpython-399-")
    assert done.stderr.endswith(
        ": start it with python3.99, or take the one file that needs no Python (`make binary`)\n"
    )


def test_what_is_around_does_not_get_in(packed: Packed, tmp_path: Path) -> None:
    """Seen to fail for the shiv without -I and -S: what PYTHONPATH names came before what is in the file.

    Nor do shiv's own doors into the program open.
    """
    for name in ("sitecustomize", "usercustomize", "signal", "zipfile", "json", "sqlalchemy", "reconsup", "_bootstrap"):
        (tmp_path / f"{name}.py").write_text("print('planted')\n")
    shiv = {f"SHIV_{name}": str(tmp_path) for name in ("PREPEND_PYTHONPATH", "ENTRY_POINT", "INTERPRETER", "MODULE")}
    home = tmp_path / "home"
    done = packed.run("--help", RECONSUP_HOME=str(home), PYTHONPATH=str(tmp_path), PYTHONSTARTUP="/x", **shiv)
    assert done.returncode == 0, done.stderr
    assert "migrate" in done.stdout
    assert "planted" not in done.stdout.removeprefix("planted\n" if packed.name == "shiv" else "")


def test_what_is_not_in_it_says_so_in_a_sentence(packed: Packed, tmp_path: Path) -> None:
    home = {"RECONSUP_HOME": str(tmp_path)}
    demo = packed.run("demo", **home)
    assert (demo.returncode, demo.stderr.count("\n")) == (64, 1)
    assert "`make demo`" in demo.stderr
    embedded = packed.run("migrate", **home, DATABASE_URL="embedded:/nowhere/pg")
    assert embedded.returncode == 69
    assert "set DATABASE_URL to a postgresql:// address" in embedded.stderr
