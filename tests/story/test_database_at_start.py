"""The database is away when the program starts: it waits for the start time, says what to do, and leaves with 69."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.phoenix import phoenix
from tests.support.postgres import Database
from tests.support.program import free_port
from tests.support.silent_road import road_to

pytestmark = [pytest.mark.service, pytest.mark.story, pytest.mark.direct]

START_SECONDS = 2.0
OVERRUN_SECONDS = 2.0  # a second, and one for a machine that runs other tests beside
# A name server that does not answer is a thread that does not end.
NO_NAMES = """
import socket, time
asked = socket.getaddrinfo
def silent(host, *rest, **options):
    if host == "db.example":
        time.sleep(30)
    return asked(host, *rest, **options)
socket.getaddrinfo = silent
from reconsup.cli import main
main()
"""


@dataclass
class Try:
    """A start, and what came of it."""

    process: subprocess.Popen[str]
    text: str = ""

    def seconds(self) -> float:
        """From the supervisor's start to its end."""
        lines = [json.loads(line) for line in self.text.splitlines() if line.startswith("{")]
        at = {line["event"]: datetime.fromisoformat(line["timestamp"]) for line in lines}
        return (at["supervisor_stopped"] - at["supervisor_started"]).total_seconds()


def start(url: str, code: str | None = None, lease_seconds: float = 30) -> Try:
    """`reconsup run`; with the default lease, so that no time-out of a statement helps."""
    environment = {
        "DATABASE_URL": url,
        "RECONSUP_START_SECONDS": f"{START_SECONDS:g}",
        "RECONSUP_METRICS_ADDRESS": "",
        "RECONSUP_LOG_FORMAT": "json",
        "PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS": f"{lease_seconds:g}",
    }
    program = ["-m", "reconsup.cli"] if code is None else ["-c", code]
    return Try(
        subprocess.Popen(
            [sys.executable, *program, "run", "--workers", "1"],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of a listener that accepts nobody: the kernel takes connections, and nothing is ever said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener.getsockname()[1]


ADVICE = {
    "refuses": "did not answer within 2 s: start it, or correct DATABASE_URL",
    "mute": "did not answer within 2 s: start it, or correct DATABASE_URL",
    "dead": "did not answer within 2 s: start it, or correct DATABASE_URL",
    "not ready": "was not ready within 2 s: look into its log",
    "wrong password": "did not let us in within 2 s: correct DATABASE_URL",
    "full": "had no connection left within 2 s: end others",
    "no name": "did not answer within 2 s: start it, or correct DATABASE_URL",
}


@pytest.mark.parametrize("names", [("mute", "full", "no name"), pytest.param(tuple(ADVICE), marks=pytest.mark.long)])
def test_whatever_is_wrong_with_it_the_start_ends_in_time_with_69_and_what_to_do(
    database: Database, mute: int, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """Seen to fail when the probe waits for the attempt at hand (mute), and for the name server (no name)."""
    database.execute("DROP ROLE IF EXISTS crowded")
    database.execute("CREATE ROLE crowded LOGIN PASSWORD 'x' CONNECTION LIMIT 0")
    server = database.direct_url.rpartition("@")[2]
    urls = {
        "refuses": f"postgresql://me:hunter2@127.0.0.1:{free_port()}/x",
        "mute": f"postgresql://me:hunter2@127.0.0.1:{mute}/x",
        "wrong password": f"postgresql://crowded:hunter2@{server}",
        "full": f"postgresql://crowded:x@{server}",
        "no name": "postgresql://me:hunter2@db.example/x",
    }
    with ExitStack() as stack:
        if "dead" in names:
            road = stack.enter_context(road_to(database.direct_url))
            road.set_dead(True)
            urls["dead"] = road.url(database.direct_url)
        if "not ready" in names:
            other = stack.enter_context(phoenix(tmp_path / "pg"))
            stack.enter_context(other.rising())
            urls["not ready"] = other.database.url
        tries = {name: start(urls[name], NO_NAMES if name == "no name" else None) for name in names}
        for each in tries.values():
            each.text = each.process.communicate(timeout=60)[0]
    database.execute("DROP ROLE crowded")
    for name, each in tries.items():
        print(f"{name}: {each.seconds():.2f} s")
    for name, each in tries.items():
        assert each.process.returncode == 69, (name, each.text)
        assert "Traceback" not in each.text, (name, each.text)
        assert "hunter2" not in each.text, name
        assert START_SECONDS - 0.2 <= each.seconds() <= START_SECONDS + OVERRUN_SECONDS, name
    assert [name for name, each in tries.items() if ADVICE[name] not in each.text] == []
