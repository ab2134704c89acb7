"""A PostgreSQL that can be shut down and comes back at the same address with the same data."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from reconsup.store import embedded, migrate
from tests.support.postgres import Database, binaries

# What was committed must be there after a crash of the server; after one of the machine nobody asks here.
SETTINGS = {"fsync": "off"}


class Phoenix:
    """One server; its maintenance database is the test's."""

    def __init__(self, server: embedded.Server) -> None:
        self._server = server
        self.database = Database(embedded.DATABASE, server.url, server.url)

    @property
    def pid(self) -> int:
        """The postmaster."""
        return int(self._server._process.pid)

    def fall(self, *, immediate: bool) -> None:
        """Shut it down: fast (sessions are ended), or immediate (as a crash: the log is replayed at the next start)."""
        process = self._server._process
        process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        process.wait(embedded.STOP_SECONDS)

    @contextmanager
    def rising(self) -> Iterator[None]:
        """It crashed, and replays its log for as long as the with block: it answers that it is starting up."""
        with psycopg.connect(self._server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE much AS SELECT g, repeat('x', 100) AS x FROM generate_series(1, 300000) g")
        self.fall(immediate=True)
        self._spawn()
        startup = self._startup()
        os.kill(startup, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(startup, signal.SIGCONT)

    def _startup(self) -> int:
        """The process that replays the log."""
        deadline = time.monotonic() + embedded.START_SECONDS
        while time.monotonic() < deadline:
            with suppress(FileNotFoundError, ProcessLookupError):
                for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                    if b"startup" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        return int(pid)
        raise AssertionError("it replays nothing")

    def _spawn(self) -> None:
        path, folder = self._server.path, binaries() or embedded._binaries()
        settings = {**embedded._SETTINGS, **SETTINGS, "port": str(self._server.port)}
        process = embedded._spawn(path, folder, embedded._Runner.choose(path, folder), settings)
        self._server._process, self._server.pid = process, process.pid

    def rise(self) -> None:
        """Start it again on the same port."""
        deadline = time.monotonic() + embedded.START_SECONDS
        while True:
            self._spawn()
            if (words := embedded._wait_ready(self._server.path, self._server._process, deadline)) is None:
                return
            assert "shared memory block" in words, words  # its predecessor's backends are not all gone
            time.sleep(0.05)


@contextmanager
def phoenix(folder: Path) -> Iterator[Phoenix]:
    """A migrated server for the length of a with block."""
    folder.mkdir()
    folder.chmod(0o711)
    with embedded.start(folder, settings=SETTINGS, binaries=binaries()) as server:
        migrate.upgrade(server.url, say=lambda _: None)
        yield Phoenix(server)
