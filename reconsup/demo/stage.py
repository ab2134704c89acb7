"""The parts, all real: a folder, PostgreSQL, a chain, and `reconsup run` as a user would start it.

Owns starting them and taking them down again, in reverse order, whatever happened in between. Should this process be
killed, the kernel ends the others: each asks for a signal at the death of its parent, and reconsup's workers watch
their supervisor. Every part that cannot be had is one sentence that says what to do.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from reconsup.demo.anvil import Anvil
from reconsup.demo.customers import BLOCK_SECONDS
from reconsup.demo.lifeline import dies_with_us, removed_with_us
from reconsup.settings import SETTINGS
from reconsup.store import embedded, migrate

WORKERS = 4
WORKER_BASE = "demo"
LEASE_SECONDS = 30
MIN_CONFIRMATIONS = 2
EXPIRY_CONFIRMATIONS = 3
LEAVE_SECONDS = 15.0  # more than the drain time below
_WORDS_MAX = 4

_FIGURES = {
    "PAYMENT_REQUEST_RECONCILER_WORKER_ID": WORKER_BASE,
    "PAYMENT_REQUEST_RECONCILER_POLL_INTERVAL_SECONDS": "0.3",
    "PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS": str(LEASE_SECONDS),
    "PAYMENT_REQUEST_RECONCILER_EVM_MIN_CONFIRMATIONS": str(MIN_CONFIRMATIONS),
    "PAYMENT_REQUEST_RECONCILER_EVM_FINALITY_MIN_CONFIRMATIONS": str(MIN_CONFIRMATIONS),
    "RECONSUP_EXPIRY_CONFIRMATIONS": str(EXPIRY_CONFIRMATIONS),
    "RECONSUP_DRAIN_SECONDS": "8",
    "RECONSUP_LOG_FORMAT": "json",
}

Check = Callable[[], None]


class StageError(Exception):
    """A part is missing or broken; the text says what to do."""


@dataclass(slots=True)
class Supervisor:
    """`reconsup run`, running. Its log is read for the last words only."""

    process: subprocess.Popen[bytes]
    metrics_port: int
    log: Path

    def require_alive(self) -> None:
        """Raise StageError if it has ended without being asked to."""
        code = self.process.poll()
        if code is not None:
            raise StageError(f"`reconsup run` ended by itself with exit code {code}{self.last_words()}")

    def stop(self) -> tuple[int, float] | None:
        """Ask it to drain; exit code and seconds, or None if it did not leave in time (it is killed then)."""
        asked_at = time.monotonic()
        self.process.terminate()
        try:
            code = self.process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # the workers too: nobody else is in its session
            self.process.wait()
            return None
        return code, time.monotonic() - asked_at

    def last_words(self) -> str:
        """The last warnings of its log, to be put behind a sentence."""
        return last_words(self.log)


def last_words(log: Path) -> str:
    """The last warnings of a supervisor's log, to be put behind a sentence."""
    words = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            if not line.startswith("{"):  # not a log line: something spoke before the log was set up
                words.append(line)
            continue
        if event.get("level") in ("warning", "error", "critical"):
            more = [str(event[name]) for name in ("error", "todo", "do") if event.get(name)]
            words.append(": ".join([str(event["event"]), *more]))
    return "".join(f"\n    {each}" for each in ("it said last:", *words[-_WORDS_MAX:])) if words else ""


@dataclass(slots=True)
class Stage:
    """What is there while the demo runs."""

    database_url: str = field(repr=False)
    anvil: Anvil
    supervisor: Supervisor


@contextmanager
def built(say: Callable[[str], None], check: Check) -> Iterator[Stage]:
    """Start all parts; everything is gone at the end. `check` may raise between two steps.

    Raises StageError, EmbeddedError, AnvilError or MigrationError, each with one sentence.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(_folder())
        check()
        options = ("--cache-path", str(folder / "anvil"))  # else it leaves things in the home folder
        anvil = stack.enter_context(Anvil(block_seconds=BLOCK_SECONDS, options=options))
        say(f"a chain of its own: anvil at {anvil.url}, a block a second")
        check()
        server = stack.enter_context(embedded.start(folder / "postgres", settings=embedded.THROWAWAY))
        say(f"a real PostgreSQL: process {server.pid}, port {server.port}")
        check()
        done = migrate.upgrade(server.url, say=lambda _: None)
        say(f"its schema: reconsup migrate, revision {done.after}")
        check()
        supervisor = stack.enter_context(_supervisor(folder, server.url, anvil.url))
        say(f"reconsup --workers {WORKERS}: process {supervisor.process.pid}")
        yield Stage(server.url, anvil, supervisor)


@contextmanager
def _folder() -> Iterator[Path]:
    try:
        made = tempfile.TemporaryDirectory(prefix="reconsup-demo-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StageError(
            f"there is no folder for temporary files ({error.strerror}): set TMPDIR to a folder that can be written"
        ) from error
    with made as path, removed_with_us(Path(path)):
        yield Path(path)


@contextmanager
def _supervisor(folder: Path, database_url: str, rpc_url: str) -> Iterator[Supervisor]:
    """Start `reconsup run`. At the end it drains; what does not leave is killed."""
    port = _free_port()
    path = folder / "reconsup.env"
    path.touch(mode=0o600)  # the database's password is in it
    path.write_text(env_file(database_url, rpc_url, port))
    log = folder / "reconsup.log"
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603  # ourselves, arguments of ours
            _command(path), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    supervisor = Supervisor(process, port, log)
    try:
        yield supervisor
    finally:
        if process.poll() is None:
            supervisor.stop()


def _command(env_file: Path) -> list[str]:
    arguments = ["run", "--workers", str(WORKERS), "--env-file", str(env_file)]
    if getattr(sys, "frozen", False):
        return [sys.executable, *arguments]
    return dies_with_us([sys.executable, "-m", "reconsup.cli", *arguments], signal.SIGTERM)  # it cleans up


def env_file(database_url: str, rpc_url: str, metrics_port: int) -> str:
    """Every setting, also those left at their default: what the caller's environment says must not matter here."""
    values = {setting.name: setting.default for setting in SETTINGS if setting.default}
    values |= _FIGURES | {
        "DATABASE_URL": database_url,
        "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": json.dumps({"local": rpc_url}),
        "RECONSUP_METRICS_ADDRESS": f"127.0.0.1:{metrics_port}",
    }
    return "".join(f"{name}='{value}'\n" for name, value in values.items())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
