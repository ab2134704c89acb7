"""How the program stops, by every way that an operator, systemd or the kernel has."""

import os
import signal
from pathlib import Path

import psycopg
import pytest

from tests.story.conftest import Town
from tests.support.program import Program, wait_for

pytestmark = [pytest.mark.service, pytest.mark.story]


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_leaves_no_lease_and_no_process_and_exits_0(town: Town, number: signal.Signals) -> None:
    ids = town.requests(30)
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=2) as program:
        program.wait_ready()
        town.pay(ids)
        pids = family(program.process.pid)
        assert len(pids) == 4, "the supervisor, two workers, the monitor"
        program.process.send_signal(number)
        assert program.process.wait(20) == 0
    assert [pid for pid in pids if alive(pid)] == []
    assert town.leases() == []
    assert town.database.fetch("SELECT scan_lease_owner FROM app.chain_cursors") == [(None,)]


def test_ctrl_c_reaches_the_whole_group_and_is_still_a_drain(town: Town) -> None:
    """A terminal sends INT to every process of the group at once: seen from the supervisor that is one stop."""
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=2) as program:
        program.wait_ready()
        for pid in family(program.process.pid):
            os.kill(pid, signal.SIGINT)
        assert program.process.wait(20) == 0
    assert "Traceback" not in program.log.read_text()


def test_kill_9_of_the_supervisor_leaves_no_process(town: Town) -> None:
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=2) as program:
        program.wait_ready()
        pids = family(program.process.pid)
        program.process.kill()
        program.process.wait()
        wait_for("nobody is left", lambda: not any(alive(pid) for pid in pids))
    assert town.leases() == []


def test_a_worker_stuck_in_the_database_is_killed_at_the_drain_deadline(town: Town) -> None:
    ids = town.requests(5)
    environment = {"RECONSUP_DRAIN_SECONDS": "2", "PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS": "120"}
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=1, **environment) as program:
        program.wait_ready()
        with psycopg.connect(town.database.url) as blocker:
            blocker.execute("LOCK TABLE app.payment_request_transitions IN ACCESS EXCLUSIVE MODE")
            town.pay(ids)
            wait_for("leases are held", town.leases)
            program.process.send_signal(signal.SIGTERM)
            assert program.process.wait(20) == 0
            blocker.rollback()
    wait_for("the monitor gave its leases back before it left", lambda: town.leases() == [])


def test_there_is_no_listener_but_the_monitors(town: Town) -> None:
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=2) as program:
        program.wait_ready()
        supervisor, *children = family(program.process.pid)
        listening = {pid for pid in (supervisor, *children) if listens(pid)}
        workers = set(program.pids().values())
        assert len(workers) == 2
        assert not listening & workers
        assert len(listening) == 1


def listens(pid: int) -> bool:
    """Whether a process has a listening TCP socket."""
    inodes = {
        os.readlink(f"/proc/{pid}/fd/{fd}")[8:-1]
        for fd in os.listdir(f"/proc/{pid}/fd")
        if os.path.islink(f"/proc/{pid}/fd/{fd}") and os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:[")
    }
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[3] == "0A" and row[9] in inodes for row in rows)


def test_signals_that_mean_nothing_change_nothing(town: Town) -> None:
    """USR1 was seen to kill the supervisor on the spot: a log rotation."""
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=1) as program:
        program.wait_ready()
        before = program.pids()
        for number in (signal.SIGUSR1, signal.SIGPIPE, signal.SIGWINCH):
            program.process.send_signal(number)
        assert program.get("/readyz")[0] == 200
        assert program.pids() == before
        assert program.stop() == 0
