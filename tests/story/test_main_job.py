"""The main job with real processes: payments confirmed once, hosts that share a database, workers that are killed."""

import os
import signal
import time

import psycopg
import pytest

from tests.story.conftest import Town
from tests.support import lease_history, promtool
from tests.support.program import Program, wait_for

pytestmark = [pytest.mark.service, pytest.mark.story]


def test_a_thousand_payments_over_a_hundred_blocks_cost_less_than_a_thousand_calls(town: Town) -> None:
    ids = town.requests(1000)
    town.pay(ids)
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=1) as program:
        wait_for("all are confirmed", lambda: town.statuses() == {"confirmed": 1000}, 60)
        program.wait_ready()
        calls = program.metric("reconsup_rpc_requests_total")
        print(f"1000 requests, 100 blocks: {calls:.0f} JSON-RPC calls")
        assert 100 < calls < 1000
        assert promtool.complaints(program.get("/metrics")[1]) == []


def test_two_hosts_on_one_database_confirm_each_request_once_and_never_hold_one_together(town: Town) -> None:
    """First one host holds everything there is, and is touched, as payments do, when the other comes; then both work.

    The history of leases fails the claim that would overlap another, and remembers that it did, whatever the program
    makes of it. Seen to fail (refusals, and the newcomer is never leased) when the expiry predicate was out.
    """
    ids = town.requests(10)
    few = {
        "PAYMENT_REQUEST_RECONCILER_BATCH_SIZE": "5",  # so that there is work for both
        "PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS": "120",
    }
    with (
        # its one worker has its hands full with ten, so the newcomer is the other host's
        Program(town.database.url, town.rpc_urls, folder=town.folder, worker_id="host-a", workers=1, **few) as one,
        psycopg.connect(town.database.url) as blocker,
    ):
        one.wait_ready()
        # Whoever claims now stops at its view, which reads the history: it holds leases and waits.
        blocker.execute("LOCK TABLE app.payment_request_transitions IN ACCESS EXCLUSIVE MODE")
        town.pay(ids)
        wait_for("host-a holds all", lambda: len(town.leases()) == 10)
        with Program(town.database.url, town.rpc_urls, folder=town.folder, worker_id="host-b", **few) as other:
            other.wait_ready()
            town.database.execute("UPDATE app.payment_requests SET next_reconcile_at = now()")
            (newcomer,) = town.requests(1)
            wait_for("host-b holds it", lambda: dict(town.leases()).get(newcomer, "").startswith("host-b"))
            assert sorted(id_ for id_, owner in town.leases() if owner.startswith("host-a")) == ids
            blocker.rollback()
            ids += [newcomer, *town.requests(189)]
            for start in range(10, 200, 50):
                town.pay(ids[start : start + 50], a_block=5)
            wait_for("all are confirmed", lambda: town.statuses() == {"confirmed": 200}, 60)
            assert (one.stop(), other.stop()) == (0, 0)
    told = [each for host in (one, other) for each in host.events("transition")]
    assert sorted(each["request_id"] for each in told if each["reason"] == "payment_confirmed") == sorted(ids)
    worked = {each["worker_id"] for host in (one, other) for each in host.events("cycle") if each["claimed"]}
    assert {"host-a-0"} < worked <= {"host-a-0", *(f"host-b-{slot}" for slot in range(16))}
    confirmations = town.database.fetch(
        "SELECT payment_request_id, count(*) FROM app.payment_request_transitions"
        " WHERE reason = 'payment_confirmed' GROUP BY 1"
    )
    assert sorted(confirmations) == [(id_, 1) for id_ in sorted(ids)]
    granted = lease_history.grants(town.database)
    assert {each.owner.rpartition("-")[0] for each in granted} == {"host-a", "host-b"}
    assert {each.request for each in granted} == set(ids)
    assert lease_history.complaints(town.database) == []
    assert town.leases() == []


def test_kill_9_of_a_worker_that_holds_leases_gives_its_rows_to_others_at_once(town: Town) -> None:
    """The lease is 30 s; without the janitor's give-back this was seen to take all of them."""
    ids = town.requests(40)
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=3) as program:
        program.wait_ready()
        wait_for("three workers", lambda: len(program.pids()) == 3)
        with psycopg.connect(town.database.url) as blocker:
            # Whoever claims now stops at its view, which reads the history: it holds leases and waits.
            blocker.execute("LOCK TABLE app.payment_request_transitions IN ACCESS EXCLUSIVE MODE")
            town.pay(ids)
            held = wait_for("leases are held", town.leases)
            owner = held[0][1]
            slot = int(owner.partition("#")[0].rpartition("-")[2])
            lost = {id_ for id_, holder in held if holder == owner}
            killed_pid = program.pids()[slot]
            os.kill(killed_pid, signal.SIGKILL)
            killed_at = time.monotonic()
            wait_for("its leases are given back", lambda: owner not in dict(town.leases()).values())
            blocker.rollback()
        wait_for("all are confirmed", lambda: town.statuses() == {"confirmed": 40})
        seconds = time.monotonic() - killed_at
        print(f"{len(lost)} leases of {owner}: given back and confirmed by others after {seconds:.2f} s, lease 30 s")
        assert seconds < 15
        owners = dict(
            town.database.fetch(
                "SELECT payment_request_id, lease_owner FROM app.payment_request_transitions"
                " WHERE reason = 'payment_confirmed'"
            )
        )
        assert all(owners[id_] != owner for id_ in lost)
        wait_for("the slot is taken again", lambda: program.pids().get(slot, killed_pid) != killed_pid)
        assert program.stop() == 0


def test_rows_of_other_chains_and_networks_are_never_written(town: Town) -> None:
    """Without the claim's network condition the first two rows were seen to be leased."""
    past = "now() - interval '1 day'"
    town.database.execute("SET timezone = 'UTC'")
    town.requests(1, network="sepolia", chain_id=11155111)
    town.requests(1, network="moonbase-typo")
    town.requests(1, chain="bitcoin", network="regtest", asset="BTC", address_canonical="bcrt1qxyz", chain_id=None)
    town.database.execute(
        f"UPDATE app.payment_requests SET created_at = {past}, expires_at = {past} + interval '1 hour'"
    )
    everything = "SELECT to_jsonb(r) FROM app.payment_requests r WHERE network <> 'local' ORDER BY id"
    before = town.database.fetch(everything)
    (served,) = town.requests(1)
    with Program(town.database.url, town.rpc_urls, folder=town.folder) as program:
        program.wait_ready()
        town.pay([served])
        town.mine(10)
        wait_for("the served one is confirmed", lambda: town.statuses().get("confirmed") == 1)
        wait_for("unserved rows are counted", lambda: program.metric("reconsup_unserved_requests") == 3)
        assert program.stop() == 0
    assert town.database.fetch(everything) == before
    assert len(before) == 3
