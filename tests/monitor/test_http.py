"""The monitor as a process of its own, under the real supervisor, over a real database."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import promtool
from tests.support.postgres import Database as Fresh
from tests.support.postgres import insert_request

pytestmark = [pytest.mark.service, pytest.mark.story]

HOST = """
import os, signal, sys
from pathlib import Path
from reconsup import logs
from reconsup.fleet import supervisor
from reconsup.fleet.posix import WorkerState
from reconsup.monitor import http, janitor, metrics
from reconsup.settings import load

directory, url, address = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
settings = load({
    "DATABASE_URL": url,
    "RECONSUP_METRICS_ADDRESS": address,
    "RECONSUP_LOG_FORMAT": "json",
    "PAYMENT_REQUEST_RECONCILER_POLL_INTERVAL_SECONDS": "0.1",
    "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": '{"local": "http://127.0.0.1:1/s3cr3t"}',
}, {})
logs.configure("json")
http.RETRY_PORT_SECONDS = 0.1
janitor.FAREWELL_SECONDS = float(sys.argv[4])

def worker(seat):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    metrics.open(seat.metrics_directory, str(seat.slot))
    metrics.CLAIMED.inc(5)
    seat.cell.set_leases(1)
    seat.cell.set_state(WorkerState.READY)
    logs.get_logger().info("owner", slot=seat.slot, owner=seat.owner)
    signal.sigwait({signal.SIGTERM})
    return 0

directory.mkdir(exist_ok=True)
roles = supervisor.Roles(worker=worker, monitor=lambda seat: http.run(seat, settings), probe=lambda seat: 0)
options = supervisor.Options(base="host", version="0.1.0", metrics_directory=directory)
sys.exit(supervisor.run(supervisor.Setup(roles, 2, 2), options, lambda: None))
"""


class Host:
    """A supervisor with two workers that only wait, and the real monitor."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    def get(self, path: str) -> tuple[int, str]:
        """Status code and body; 0 if nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def status(self) -> Any:
        return json.loads(self.get("/status")[1] or "{}")

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def events(self, name: str) -> list[dict[str, Any]]:
        whole = self.log.read_text().rpartition("\n")[0]  # the last line may be on its way
        return [event for line in whole.splitlines() if (event := json.loads(line))["event"] == name]


@contextmanager
def host(
    tmp_path: Path, url: str, *, port: int, is_listening: bool = True, farewell_seconds: float = 0.5
) -> Iterator[Host]:
    address = f"127.0.0.1:{port}" if is_listening else ""
    arguments = [str(tmp_path / "metrics"), url, address, str(farewell_seconds)]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen([sys.executable, "-c", HOST, *arguments], stderr=stderr, text=True)
    try:
        yield Host(process, port, log)
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What `condition` returns once that is true; fails after a while."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return found


def insert_leased(database: Fresh, owner: str) -> None:
    end = datetime.now(UTC) + timedelta(hours=1)
    with database.connect() as connection:
        insert_request(connection, reconcile_lease_owner=owner, reconcile_lease_until=end, next_reconcile_at=end)


def owners(database: Fresh) -> list[Any]:
    return [owner for (owner,) in database.fetch("SELECT reconcile_lease_owner FROM app.payment_requests")]


def test_the_four_pages_a_killed_worker_and_a_clean_end(database: Fresh, tmp_path: Path) -> None:
    with host(tmp_path, database.url, port=free_port()) as fleet:
        assert until(lambda: fleet.get("/readyz") == (200, "ready\n"))
        assert fleet.get("/healthz") == (200, "ok\n")
        assert fleet.get("/other")[0] == 404
        victim = until(lambda: [each for each in fleet.status()["workers"] if each["state"] == "ready"])[0]
        assert (victim["worker_id"], victim["leases"]) == (f"host-{victim['slot']}", 1)

        insert_leased(database, f"{victim['worker_id']}#{victim['incarnation']}")
        os.kill(victim["pid"], signal.SIGKILL)
        until(lambda: owners(database) == [None])
        until(lambda: [each["state"] for each in fleet.status()["workers"]] == ["ready", "ready"])

        (crash,) = fleet.status()["crashes"]
        assert {name: crash[name] for name in ("slot", "worker_id", "pid", "cause", "exit_code", "signal", "row")} == {
            "slot": victim["slot"],
            "worker_id": victim["worker_id"],
            "pid": victim["pid"],
            "cause": "signal",
            "exit_code": None,
            "signal": "SIGKILL",
            "row": None,
        }
        assert 0 <= crash["seconds_ago"] < 20
        assert abs(datetime.fromisoformat(crash["at"]) - datetime.now(UTC)) < timedelta(seconds=20)
        shown = fleet.get("/")[1]
        assert "signal (SIGKILL)" in shown
        assert "Nothing has happened yet." in shown, "the history was read for the first who looked"

        page = fleet.get("/metrics")[1]
        assert "reconsup_requests_claimed_total 15.0" in page
        assert 'reconsup_workers{state="ready"} 2.0' in page
        assert f'reconsup_worker_restarts_total{{cause="signal",slot="{victim["slot"]}"}} 1.0' in page
        assert 'reconsup_leases_released_total{cause="signal"} 1.0' in page
        assert 'reconsup_chain_stopped{network="local"} 0.0' in page
        assert (
            fleet.status()["supervisor"].items()
            >= {
                "pid": fleet.process.pid,
                "state": "running",
                "version": "0.1.0",
                "base": "host",
                "workers_ready": 2,
                "workers_wanted": 2,
                "ready": True,
            }.items()
        )
        assert promtool.complaints(page) == []
        (tmp_path / "metrics" / "counter_9.db").write_bytes(b"no such thing")
        for _ in range(3):
            page = fleet.get("/metrics")[1]
            assert "reconsup_metrics_files_damaged 1.0" in page
            assert "reconsup_requests_claimed_total 15.0" in page
        assert [event["file"] for event in fleet.events("metrics_file_damaged")] == ["counter_9.db"]
        assert database.fetch("SELECT pid, slots FROM app.reconsup_hosts") == [(fleet.process.pid, 2)]
        assert fleet.terminate() == 0
    assert fleet.get("/healthz")[0] == 0
    assert "s3cr3t" not in fleet.log.read_text()
    assert "Traceback" not in fleet.log.read_text()


def test_a_port_that_is_taken_and_a_database_that_is_away_stop_nothing(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as rival:
        rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rival.bind(("127.0.0.1", port))
        rival.listen()
        with host(tmp_path, "postgresql://u:s3cr3t@127.0.0.1:1/x", port=port) as fleet:
            (told,) = until(lambda: fleet.events("not_listening"))
            assert "--metrics-address" in told["todo"]
            rival.close()

            assert until(lambda: fleet.get("/healthz")[0] == 200)
            code, reason = fleet.get("/readyz")
            assert (code, reason.startswith("database: ")) == (503, True)
            assert fleet.status()["backlog"]["due"] is None
            assert 'reconsup_workers{state="ready"}' in fleet.get("/metrics")[1]
            assert "reconsup_due_requests" not in fleet.get("/metrics")[1]
            assert len(fleet.events("not_listening")) == 1
            assert fleet.terminate() == 0
    assert "s3cr3t" not in fleet.log.read_text()
    assert "Traceback" not in fleet.log.read_text()


def test_without_an_address_nobody_listens_and_the_dead_are_buried_all_the_same(
    database: Fresh, tmp_path: Path
) -> None:
    with host(tmp_path, database.url, port=free_port(), is_listening=False) as fleet:
        owner_of = until(lambda: all_owners(fleet))
        until(lambda: len(fleet.events("process_ready")) == 3)
        (worker_id, pid), *_ = [
            (event["worker_id"], event["pid"])
            for event in fleet.events("process_ready")
            if event["worker_id"] in owner_of
        ]
        insert_leased(database, owner_of[worker_id])
        insert_leased(database, "somebody-else")

        os.kill(pid, signal.SIGKILL)
        until(lambda: sorted(owners(database), key=str) == [None, "somebody-else"])

        assert fleet.get("/healthz")[0] == 0
        assert fleet.terminate() == 0


def test_the_monitor_does_not_leave_before_the_last_death_is_settled(database: Fresh, tmp_path: Path) -> None:
    """TERM finds it in the middle of a burial. Seen to fail without the janitor's farewell."""
    with host(tmp_path, database.url, port=free_port(), farewell_seconds=3.5) as fleet:
        owner_of = until(lambda: all_owners(fleet))
        insert_leased(database, owner_of["host-0"])
        with database.connect(autocommit=False) as blocker:
            blocker.execute("SELECT FROM app.payment_requests FOR UPDATE")
            fleet.process.send_signal(signal.SIGTERM)
            # the probe, then both workers, which leave their leases behind; then it is told to leave itself
            until(lambda: len(fleet.events("process_left")) == 3)
            until(lambda: fleet.get("/healthz")[0] == 0)
            blocker.rollback()
        assert fleet.process.wait(20) == 0

    assert owners(database) == [None]
    assert [event["worker_id"] for event in fleet.events("monitor_stopped")] == ["host-monitor"]


def all_owners(fleet: Host) -> dict[str, str] | None:
    """The lease owners of both workers, once they have told."""
    told = {str(event["owner"]).partition("#")[0]: str(event["owner"]) for event in fleet.events("owner")}
    return told if len(told) == 2 else None


def test_the_monitor_leaves_when_its_supervisor_is_killed(database: Fresh, tmp_path: Path) -> None:
    with host(tmp_path, database.url, port=free_port()) as fleet:
        until(lambda: fleet.get("/readyz")[0] == 200)

        fleet.process.kill()

        until(lambda: fleet.get("/healthz")[0] == 0)
        until(lambda: fleet.events("monitor_stopped"))
