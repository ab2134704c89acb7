"""A process that hangs, in each way it can, is seen to hang; one that only waits is not. Real processes, real services.

Who kills it is the supervisor; here nobody does, so that the signs it kills by can be looked at.
"""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from reconsup.demo.anvil import Anvil
from tests.support.lone import Cell, Lone
from tests.support.postgres import Database
from tests.support.program import wait_for
from tests.support.proxy import Proxy, Reply, proxy_before
from tests.support.silent_road import road_to

pytestmark = [pytest.mark.service, pytest.mark.story, pytest.mark.direct, pytest.mark.planted]

WATCHDOG_SECONDS = 2.0
HEALTHY_SECONDS = 0.9 * WATCHDOG_SECONDS  # a healthy process must not come near; the machine is busy


def settings(database_url: str, rpc_url: str, **more: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": json.dumps({"local": rpc_url}),
        "PAYMENT_REQUEST_RECONCILER_POLL_INTERVAL_SECONDS": "0.2",
        "PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS": "2",
        "RECONSUP_RPC_TIMEOUT_SECONDS": "0.5",
        "RECONSUP_WATCHDOG_SECONDS": f"{WATCHDOG_SECONDS:g}",
        "RECONSUP_LOG_FORMAT": "json",
        "RECONSUP_METRICS_ADDRESS": "",
        **more,
    }


@pytest.fixture
def proxy(anvil: Anvil) -> Iterator[Proxy]:
    with proxy_before(anvil.url) as running:
        yield running


def be_ready(lone: Lone) -> None:
    """Wait until it works: the scanner holds the cursor."""
    wait_for("it is ready", lambda: lone.cell().state == "ready")
    lone.wait_logged("scan_lease_taken")


@pytest.mark.long  # as all that tests/story/test_watchdog.py shows from end to end
@pytest.mark.parametrize(
    ("plant", "loop", "where"),
    [
        ("boot", "boot", "wait_for_ever"),
        ("database", "reconciler", "ask_for_ever"),
        ("rpc", "scanner-local", "wait_for_ever"),
    ],
)
def test_a_worker_that_waits_for_ever_falls_silent_and_says_where_it_hangs(
    database: Database, anvil: Anvil, tmp_path: Path, plant: str, loop: str, where: str
) -> None:
    """Its event loop is well, and its other loops go round. The log says where it hangs before it is killed for it,
    and the stacks come when it is. Seen to fail with a ticker that writes its own time.
    """
    with Lone(settings(database.url, anvil.url), tmp_path, plant=plant) as lone:
        told = lone.wait_logged("loop_stuck")
        assert told["loop"] == loop
        assert WATCHDOG_SECONDS / 2 <= told["silent_seconds"] < WATCHDOG_SECONDS
        assert where in told["stack"]
        cell = lone.wait_for_silence(WATCHDOG_SECONDS)
        assert (cell.loop, cell.state) == (loop, "booting" if plant == "boot" else "ready")
        end = lone.end(signal.SIGABRT)
        assert end.code == -signal.SIGABRT
        assert end.stacks is not None
        assert "Fatal Python error: Aborted" in end.stacks
        assert end.is_swept
        assert len(lone.events("loop_stuck")) == 1


@pytest.mark.long
def test_a_worker_in_a_busy_loop_falls_silent_and_its_stacks_say_where(
    database: Database, anvil: Anvil, tmp_path: Path
) -> None:
    """It can say nothing itself any more. Asked by an operator (USR2) it answers, and goes on. Seen to fail (no stacks)
    without `stacks.open_in` in the worker.
    """
    with Lone(settings(database.url, anvil.url), tmp_path, plant="busy") as lone:
        lone.wait_for_silence(WATCHDOG_SECONDS)
        lone.send(signal.SIGUSR2)
        wait_for("USR2 is answered", lambda: "in run_in_circles" in lone.log.read_text())
        assert lone.cell().silent_seconds
        end = lone.end(signal.SIGABRT)
        assert end.code == -signal.SIGABRT
        assert "in run_in_circles" in str(end.stacks)
        assert lone.events("loop_stuck") == []


def test_a_stopped_worker_falls_silent_and_one_that_goes_on_is_well_again(
    database: Database, anvil: Anvil, tmp_path: Path
) -> None:
    """Seen to fail (every loop was told as stuck) without what `Heart._forgive` does."""
    with Lone(settings(database.url, anvil.url), tmp_path) as lone:
        be_ready(lone)
        lone.send(signal.SIGSTOP)
        lone.wait_for_silence(2 * WATCHDOG_SECONDS)
        lone.send(signal.SIGCONT)
        lone.wait_logged("event_loop_blocked")
        assert lone.longest_silence(0.5) < HEALTHY_SECONDS
        assert lone.events("loop_stuck") == []
        assert lone.end(signal.SIGTERM).code == 0


@pytest.mark.long
def test_a_worker_that_is_stopped_and_aborted_dies_when_it_is_killed(
    database: Database, anvil: Anvil, tmp_path: Path
) -> None:
    """SIGABRT waits until it is continued; SIGKILL waits for nothing. There are no stacks, and no file is left."""
    with Lone(settings(database.url, anvil.url), tmp_path, plant="stopped") as lone:
        lone.wait_for_silence(WATCHDOG_SECONDS)
        end = lone.end(signal.SIGABRT, signal.SIGKILL)
        assert (end.code, end.stacks, end.is_swept) == (-signal.SIGKILL, None, True)


@pytest.mark.long
@pytest.mark.parametrize("plant", ["monitor", "busy-monitor"])
def test_a_monitor_that_hangs_falls_silent_too(database: Database, anvil: Anvil, tmp_path: Path, plant: str) -> None:
    """The leases of the dead wait for it. Seen to fail without the monitor's ticker."""
    with Lone(settings(database.url, anvil.url), tmp_path, plant=plant, is_monitor=True) as lone:
        cell = lone.wait_for_silence(WATCHDOG_SECONDS)
        assert cell.state == "ready"
        if plant == "monitor":
            assert cell.loop == "janitor"
            assert lone.wait_logged("loop_stuck")["loop"] == "janitor"
        assert "Aborted" in str(lone.end(signal.SIGABRT).stacks)


@pytest.mark.parametrize("is_monitor", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_healthy_process_beats_and_tells_its_memory(
    database: Database, anvil: Anvil, tmp_path: Path, is_monitor: bool
) -> None:
    with Lone(settings(database.url, anvil.url), tmp_path, is_monitor=is_monitor) as lone:
        wait_for("it is ready", lambda: lone.cell().state == "ready")
        if not is_monitor:
            be_ready(lone)
        assert lone.longest_silence(1.0) < HEALTHY_SECONDS
        cell = lone.cell()
        assert cell.loop in ("reconciler", "scanner-local", "spans-local", "auditor-local", "janitor", "watch")
        assert cell.memory_bytes == pytest.approx(resident(cell), rel=0.2)
        assert lone.events("loop_stuck") == []
        assert lone.end(signal.SIGTERM).code == 0


def resident(cell: Cell) -> int:
    return int(Path(f"/proc/{cell.pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.long
def test_a_worker_whose_endpoint_asks_for_ten_minutes_keeps_beating(
    database: Database, proxy: Proxy, tmp_path: Path
) -> None:
    """The scanner rests for ten minutes, three hundred watchdogs. Seen to fail without `pulse.rests` in the pauses,
    once the time-outs of its last statement are over too: for so long anybody is excused.
    """
    with Lone(settings(database.url, proxy.url), tmp_path) as lone:
        be_ready(lone)
        proxy.spoil = lambda *_: Reply(status=429, headers={"Retry-After": "600"})
        lone.wait_logged("scan_failed")
        assert lone.longest_silence(7 * WATCHDOG_SECONDS) < HEALTHY_SECONDS
        assert lone.end(signal.SIGTERM).code == 0


@pytest.mark.long
def test_a_worker_whose_endpoint_is_silent_keeps_beating(database: Database, proxy: Proxy, tmp_path: Path) -> None:
    """Each call ends with its time-out."""
    with Lone(settings(database.url, proxy.url), tmp_path) as lone:
        be_ready(lone)
        proxy.delay_seconds = 30
        lone.wait_logged("scan_failed")
        assert lone.longest_silence(2 * WATCHDOG_SECONDS) < HEALTHY_SECONDS
        assert lone.end(signal.SIGTERM).code == 0


@pytest.mark.long
@pytest.mark.parametrize("is_monitor", [False, True])
def test_a_process_whose_database_is_silent_keeps_beating(
    database: Database, anvil: Anvil, tmp_path: Path, is_monitor: bool
) -> None:
    """Making a connection may take six seconds, and a statement thirteen: longer than this watchdog. Seen to fail
    without what the database room says of its time-outs.
    """
    with (
        road_to(database.direct_url) as road,
        Lone(settings(road.url(database.direct_url), anvil.url), tmp_path, is_monitor=is_monitor) as lone,
    ):
        wait_for("it is ready", lambda: lone.cell().state == "ready")
        if not is_monitor:
            be_ready(lone)
        road.set_dead(True)
        assert lone.longest_silence(5 * WATCHDOG_SECONDS) < HEALTHY_SECONDS
        assert lone.events("loop_stuck") == []


@pytest.mark.long
def test_a_worker_whose_database_went_away_keeps_beating(database: Database, anvil: Anvil, tmp_path: Path) -> None:
    with Lone(settings(database.url, anvil.url), tmp_path) as lone:
        be_ready(lone)
        admin = database.direct_url.replace(database.name, "postgres")
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false")
            ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            connection.execute(ended, [database.name])
            assert lone.longest_silence(2 * WATCHDOG_SECONDS) < HEALTHY_SECONDS
            connection.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS true")
        lone.wait_logged("database_back")
        assert lone.end(signal.SIGTERM).code == 0


def test_a_worker_without_memory_dies_at_once_and_keeps_no_row_back(
    database: Database, anvil: Anvil, tmp_path: Path
) -> None:
    """It must not limp on: its leases are the janitor's. Seen to fail (a worker that works on) where a loop goes on
    after any error.
    """
    with Lone(settings(database.url, anvil.url, RECONSUP_MEMORY_MAX_MB="400"), tmp_path, plant="memory") as lone:
        end = lone.end()
        assert end.code == 70
        (told,) = lone.events("out_of_memory")
        assert (told["loop"], told["memory_max_mb"]) == ("reconciler", 400)
        assert "RECONSUP_MEMORY_MAX_MB" in told["todo"]
