"""A worker that was stopped for three lease times goes on where it was, with decisions of long ago in its hands."""

import asyncio
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from reconsup.demo.devchain import DevChain
from tests.story.conftest import Town
from tests.support.postgres import Postgres
from tests.support.program import Program, wait_for
from tests.support.wrong_clocks import monotonic_clock_standing_still

pytestmark = [pytest.mark.service, pytest.mark.story, pytest.mark.direct]

LEASE_SECONDS = 2
SHORT = {"PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS": "2", "RECONSUP_RPC_TIMEOUT_SECONDS": "0.5"}
VIEW = "AS tip_age_seconds"  # words of the statement after which a worker decides
ROWS = 1500  # so that deciding takes a while
TRIES_MAX = 20


@dataclass(frozen=True)
class Zombie:
    """A stopped worker: it has read its view and not begun to write."""

    pid: int
    owner: str
    backend: int
    held: int


@pytest.mark.parametrize("refuses", ["trust", pytest.param("fence", marks=pytest.mark.planted)])
def test_a_worker_stopped_for_three_leases_writes_nothing(town: Town, postgres: Postgres, refuses: str) -> None:
    """It was about to confirm what the chain has taken back meanwhile.

    With its own clock it does not even try. With one that stood still while it was stopped (a paused virtual machine)
    it trusts its leases, and the fence refuses. Seen to fail without the question before the persist (the first), and
    (nothing is counted as refused; the status alone still keeps the rows right) without owner, epoch and due_at in the
    persist (the second).
    """
    town.database.execute(f"ALTER DATABASE {town.database.name} SET log_statement = 'all'")
    log = postgres.server.path / "postgres.log"
    ids = town.requests(ROWS)
    paid = ids[:20]
    clocks = monotonic_clock_standing_still(town.folder) if refuses == "fence" else {}
    big = {"PAYMENT_REQUEST_RECONCILER_BATCH_SIZE": "5000"}
    with Program(town.database.direct_url, town.rpc_urls, folder=town.folder, **SHORT, **big, **clocks) as program:
        program.wait_ready()
        zombie = stop_while_deciding(town, program, paid)
        try:
            take_over(town, zombie, paid)
            before = rows_of(town)
            refused = program.metric("reconsup_writes_refused_total", reason="lease_lost")
            told = len(log.read_text(errors="replace"))
        finally:
            os.kill(zombie.pid, signal.SIGCONT)
        wait_for(
            "its writes are refused",
            lambda: program.metric("reconsup_writes_refused_total", reason="lease_lost") >= refused + zombie.held,
        )
        assert rows_of(town) == before
        statement = first_statement(log.read_text(errors="replace")[told:], zombie.backend)
        assert statement.startswith("BEGIN" if refuses == "fence" else "WITH held AS")
        assert program.stop() == 0
    assert rows_of(town) == before
    assert town.leases() == []


def stop_while_deciding(town: Town, program: Program, paid: list[str]) -> Zombie:
    """Stop a worker that holds all leases, just when its view was answered: the database says that it was."""
    town.pay(paid)
    for _ in range(TRIES_MAX):
        zombie = try_to_stop(town, program)
        if zombie is not None:
            return zombie
        wait_for("all leases are back", lambda: not town.leases())
        town.database.execute("UPDATE app.payment_requests SET status = 'pending', next_reconcile_at = now()")
    raise AssertionError("it was never caught between its view and its write")


def try_to_stop(town: Town, program: Program) -> Zombie | None:
    with psycopg.connect(town.database.direct_url) as blocker, town.database.connect() as watcher:
        # Whoever claims now waits at its view, which reads the history.
        blocker.execute("LOCK TABLE app.payment_request_transitions IN ACCESS EXCLUSIVE MODE")
        watcher.execute("UPDATE app.payment_requests SET next_reconcile_at = now() WHERE reconcile_lease_owner IS NULL")
        waiting = (
            "SELECT pid, client_port, application_name FROM pg_stat_activity WHERE state = 'active'"
            f" AND wait_event_type = 'Lock' AND query LIKE '%{VIEW}%'"
        )
        ((backend, port, name), *_) = wait_for(
            "a worker waits at its view", lambda: watcher.execute(waiting).fetchall()
        )
        held = [owner for _, owner in town.leases() if owner.endswith(name.partition("/")[2])]
        pid = program.pids()[int(held[0].partition("#")[0].rpartition("-")[2])]
        blocker.rollback()
        is_answered = (
            f"SELECT 1 FROM pg_stat_activity WHERE pid = {backend} AND query LIKE '%{VIEW}%' AND state = 'idle'"
        )
        deadline = time.monotonic() + 2
        while not watcher.execute(is_answered).fetchall() and time.monotonic() < deadline:
            pass
        os.kill(pid, signal.SIGSTOP)
        wait_for("it has stopped", lambda: is_stopped(pid))
        if watcher.execute(is_answered).fetchall() and is_all_read(port) and len(held) > ROWS / 2:
            return Zombie(pid, held[0], backend, len(held))
        os.kill(pid, signal.SIGCONT)
        return None


def is_all_read(port: int) -> bool:
    """Whether nothing is under way on a connection: what the worker does with the answer, it does without a pause."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    queues = [words[4] for words in lines if f"{port:04X}" in (words[1][-4:], words[2][-4:])]
    assert len(queues) >= 2, "both ends of it are on this machine"
    return set(queues) == {"00000000:00000000"}


def is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"


def take_over(town: Town, zombie: Zombie, paid: list[str]) -> None:
    """The others confirm what it was to confirm, the chain takes it back, they write that too; three leases pass."""
    stopped_at = time.monotonic()
    wait_for("the others confirm", lambda: town.statuses().get("confirmed") == len(paid))

    async def take_back() -> None:
        async with DevChain(town.anvil.url) as chain:
            await chain.reorg(3)
            await chain.mine()

    asyncio.run(take_back())
    wait_for("the others see it taken back", lambda: town.statuses().get("reorged") == len(paid))
    wait_for("three leases have passed", lambda: time.monotonic() > stopped_at + 3 * LEASE_SECONDS)
    assert zombie.owner not in dict(town.leases()).values()
    wait_for("the others have written all they had", lambda: not town.leases())


def rows_of(town: Town) -> list[tuple[object, ...]]:
    """Statuses and history."""
    return [
        *town.database.fetch("SELECT id, status FROM app.payment_requests ORDER BY id"),
        *town.database.fetch("SELECT id, payment_request_id, reason, lease_owner FROM app.payment_request_transitions"),
    ]


def first_statement(log: str, backend: int) -> str:
    """The first statement that a backend was sent in this part of PostgreSQL's log, but for claims: in every tenth
    cycle one for suspects comes before the give-back.
    """
    sent = rf"\[{backend}\] LOG:  (?:statement|execute <unnamed>): (.*?)(?=^\d{{4}}-|\Z)"
    statements = (" ".join(found.split()) for found in re.findall(sent, log, re.MULTILINE | re.DOTALL))
    return next(statement for statement in statements if not statement.startswith("WITH candidates"))
