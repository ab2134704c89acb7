"""A real PgBouncer in transaction mode between a test and its PostgreSQL.

With few server connections and many clients, statements of one client really run on several of them, one after the
other. All other settings are the defaults: what PgBouncer refuses by default must not be sent.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from reconsup.store.embedded import _Runner
from tests.support import tools
from tests.support.program import free_port

POOL_SIZE = 4
START_SECONDS = 10.0
CONFIG = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
admin_users = {user}
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 500
logfile = {folder}/pgbouncer.log
"""


class Bouncer:
    """One running PgBouncer."""

    def __init__(self, process: subprocess.Popen[bytes], server_url: str, port: int, log: Path) -> None:
        self.process = process
        self.log = log
        self._server = urlsplit(server_url)
        self._port = port

    def url(self, url: str) -> str:
        """The address of a database of the server, by way of the pooler."""
        return url.replace(f":{self._server.port}/", f":{self._port}/")

    def show(self, what: str) -> list[dict[str, Any]]:
        """What the pooler's own console shows: CLIENTS, SERVERS, POOLS."""
        address = self._server._replace(path="/pgbouncer").geturl()
        with psycopg.connect(self.url(address), autocommit=True) as console:
            cursor = console.execute(f"SHOW {what}")  # type: ignore[arg-type]  # a word of this file's callers
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def freeze(self) -> None:
        """Stop it on the spot: what clients send now, it reads later."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def bouncer(server_url: str, *, pool_size: int = POOL_SIZE) -> Iterator[Bouncer]:
    """Run a PgBouncer before the server at `server_url` for the length of a with block."""
    program, environment = tools.pgbouncer()
    with tempfile.TemporaryDirectory(prefix="reconsup-test-pgbouncer-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        runner = _Runner.choose(folder, program.parent)  # it refuses to run as root, like PostgreSQL
        port = free_port()
        _configure(folder, server_url, port, pool_size)
        for path in (folder, folder / "users.txt", folder / "pgbouncer.ini"):
            runner.give(path)
        prefix = ["TERM" if word == "INT" else word for word in runner.prefix]  # INT would wait for its clients
        with _running([*prefix, str(program), "-q", str(folder / "pgbouncer.ini")], environment) as process:
            running = Bouncer(process, server_url, port, folder / "pgbouncer.log")
            _wait_ready(running, server_url)
            yield running


@contextmanager
def _running(command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)


def _configure(folder: Path, server_url: str, port: int, pool_size: int) -> None:
    server = urlsplit(server_url)
    config = CONFIG.format(
        host=server.hostname,
        port=server.port,
        listen_port=port,
        folder=folder,
        user=server.username,
        pool_size=pool_size,
    )
    (folder / "pgbouncer.ini").write_text(config)
    users = folder / "users.txt"
    users.touch(0o600)
    users.write_text(f'"{server.username}" "{server.password}"\n')


def _wait_ready(running: Bouncer, server_url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with psycopg.connect(running.url(server_url)):
                return
        except psycopg.OperationalError:
            said = running.log.read_text() if running.log.exists() else ""
            assert running.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.02)
