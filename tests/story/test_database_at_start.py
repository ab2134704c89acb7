"""The database is away when the program starts: it waits for the start time, says what to do, and leaves with 69."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
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
OVERRUN_SECONDS = 1.0
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


def test_whatever_is_wrong_with_it_the_start_ends_in_time_with_69_and_what_to_do(
    database: Database, mute: int, tmp_path: Path
) -> None:
    """Seen to fail (by 4 s, and by 30) when the probe waits for the attempt at hand, and for the name server."""
    database.execute("DROP ROLE IF EXISTS crowded")
    database.execute("CREATE ROLE crowded LOGIN PASSWORD 'x' CONNECTION LIMIT 0")
    server = database.direct_url.rpartition("@")[2]
    with road_to(database.direct_url) as road, phoenix(tmp_path / "pg") as other, other.rising():
        road.set_dead(True)
        began = time.monotonic()
        tries = {
            "refuses": start(f"postgresql://me:hunter2@127.0.0.1:{free_port()}/x"),
            "mute": start(f"postgresql://me:hunter2@127.0.0.1:{mute}/x"),
            "dead": start(road.url(database.direct_url)),
            "not ready": start(other.database.url),
            "wrong password": start(f"postgresql://crowded:hunter2@{server}"),
            "full": start(f"postgresql://crowded:x@{server}"),
            "no name": start("postgresql://me:hunter2@db.example/x", NO_NAMES),
        }
        for each in tries.values():
            each.text = each.process.communicate(timeout=60)[0]
        print(f"{len(tries)} starts in {time.monotonic() - began:.1f} s")
    database.execute("DROP ROLE crowded")
    for name, each in tries.items():
        print(f"{name}: {each.seconds():.2f} s")
    for name, each in tries.items():
        assert each.process.returncode == 69, (name, each.text)
        assert "Traceback" not in each.text, (name, each.text)
        assert "hunter2" not in each.text, name
        assert START_SECONDS - 0.2 <= each.seconds() <= START_SECONDS + OVERRUN_SECONDS, name
    expected = {
        "refuses": "did not answer within 2 s: start it, or correct DATABASE_URL",
        "mute": "did not answer within 2 s: start it, or correct DATABASE_URL",
        "dead": "did not answer within 2 s: start it, or correct DATABASE_URL",
        "not ready": "was not ready within 2 s: look into its log",
        "wrong password": "did not let us in within 2 s: correct DATABASE_URL",
        "full": "had no connection left within 2 s: end others",
        "no name": "did not answer within 2 s: start it, or correct DATABASE_URL",
    }
    assert {name: expected[name] in each.text for name, each in tries.items()} == dict.fromkeys(expected, True)
