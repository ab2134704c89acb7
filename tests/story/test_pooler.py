"""The whole program behind a PgBouncer in transaction mode, with more connections than the pooler has."""

import asyncio
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from reconsup.demo.devchain import DevChain
from tests.story.conftest import Town
from tests.support.bouncer import POOL_SIZE, Bouncer, bouncer
from tests.support.load import Stream, settle
from tests.support.postgres import Postgres
from tests.support.program import Program, wait_for

pytestmark = [pytest.mark.service, pytest.mark.story, pytest.mark.direct]

SHORT = {"PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS": "2", "RECONSUP_RPC_TIMEOUT_SECONDS": "0.5"}


@pytest.fixture
def pooler(postgres: Postgres) -> Iterator[Bouncer]:
    with bouncer(postgres.url) as running:
        yield running


def test_two_hosts_under_load_behind_a_pooler_while_workers_are_killed(town: Town, pooler: Bouncer) -> None:
    """Ten connections of the program share four of the server; each payment is confirmed once."""
    url = pooler.url(town.database.direct_url)
    with (
        Program(url, town.rpc_urls, folder=town.folder, worker_id="host-a", workers=3, **SHORT) as one,
        Program(url, town.rpc_urls, folder=town.folder, worker_id="host-b", workers=2, **SHORT) as other,
        Stream(town) as stream,
    ):
        one.wait_ready()
        other.wait_ready()
        for slot in (0, 1):
            pid = wait_for("the slot is taken", lambda at=slot: one.pids().get(at))
            os.kill(pid, signal.SIGKILL)
            wait_for("it is taken again", lambda at=slot, old=pid: one.pids().get(at, old) != old)
            stream.wait_until_confirmed(5)
        clients = [each for each in pooler.show("CLIENTS") if each["database"] == town.database.name]
        servers = [each for each in pooler.show("SERVERS") if each["database"] == town.database.name]
        assert len(clients) >= 10
        assert 2 <= len(servers) <= POOL_SIZE
        settle(town, stream, one, other)
    assert "Traceback" not in one.log.read_text() + other.log.read_text()


def test_kill_9_behind_a_pooler_gives_the_rows_to_others_at_once(town: Town, pooler: Bouncer) -> None:
    """The lease is 30 s. What the dead one was asking goes on in the server, and holds up nobody."""
    ids = town.requests(20)
    url = pooler.url(town.database.direct_url)
    with Program(url, town.rpc_urls, folder=town.folder, workers=3) as program:
        program.wait_ready()
        wait_for("three workers", lambda: len(program.pids()) == 3)
        with psycopg.connect(town.database.direct_url) as blocker:
            # Whoever claims now stops at its view, which reads the history: it holds leases and waits.
            blocker.execute("LOCK TABLE app.payment_request_transitions IN ACCESS EXCLUSIVE MODE")
            town.pay(ids)
            owner = wait_for("leases are held", town.leases)[0][1]
            os.kill(program.pids()[int(owner.partition("#")[0].rpartition("-")[2])], signal.SIGKILL)
            wait_for("its leases are given back", lambda: owner not in dict(town.leases()).values(), 10)
            blocker.rollback()
        wait_for("all are confirmed", lambda: town.statuses() == {"confirmed": 20}, 15)
        assert program.stop() == 0


def test_a_whole_life_behind_a_pooler(town: Town, pooler: Bouncer) -> None:
    """Detected, confirmed, taken back by a reorg, paid again; and one that nobody pays expires."""
    (paid,) = town.requests(1)
    (forgotten,) = town.requests(1, expires_at=datetime.now(UTC) + timedelta(seconds=4))
    deep = {"PAYMENT_REQUEST_RECONCILER_EVM_MIN_CONFIRMATIONS": "3"}
    url = pooler.url(town.database.direct_url)

    def status(id_: str) -> str:
        ((found,),) = town.database.fetch("SELECT status FROM app.payment_requests WHERE id = %s", [id_])
        return str(found)

    async def take_back() -> None:
        async with DevChain(town.anvil.url) as chain:
            await chain.reorg(4)
            await chain.mine()

    async def let_time_pass() -> None:
        async with DevChain(town.anvil.url) as chain:
            await chain.set_next_block_time(await chain.block_time() + 60)
            await chain.mine(5)

    with Program(url, town.rpc_urls, folder=town.folder, **deep) as program:
        program.wait_ready()
        town.mine(2)
        town.pay([paid])
        wait_for("it is detected", lambda: status(paid) == "detected")
        town.mine(3)
        wait_for("it is confirmed", lambda: status(paid) == "confirmed")
        asyncio.run(take_back())
        wait_for("it is taken back", lambda: status(paid) == "reorged")
        town.pay([paid])
        town.mine(3)
        wait_for("it is confirmed again", lambda: status(paid) == "confirmed")
        asyncio.run(let_time_pass())
        wait_for("the other expires", lambda: status(forgotten) == "expired")
        assert program.stop() == 0
    told = "SELECT reason FROM app.payment_request_transitions WHERE payment_request_id = %s ORDER BY id"
    reasons = [reason for (reason,) in town.database.fetch(told, [paid])]
    assert [reason for reason in reasons if reason != "payment_detected"] == [
        "payment_confirmed", "payment_reorged", "payment_reconfirmed"
    ]  # fmt: skip
    assert town.database.fetch(told, [forgotten]) == [("payment_expired",)]
    assert town.leases() == []
