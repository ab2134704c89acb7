"""What the database tells of all hosts together: who is there, who holds leases, who reads which network."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reconsup.status import hosts as shape
from reconsup.store import hosts
from reconsup.store.backlog import Host, announce
from reconsup.store.database import Database
from reconsup.store.hosts import Everyone
from tests.monitor.test_backlog import insert_cursor
from tests.support.postgres import Database as Fresh
from tests.support.postgres import insert_request

pytestmark = pytest.mark.service

FLEET = {"state": "running", "fresh_seconds": 20.0, "networks": ["local"], "workers_wanted": 2, "workers": []}


def read(database: Fresh) -> Everyone:
    async def run() -> Everyone:
        async with Database(database.url, application_name="reconsup/test", lease_seconds=6) as connected:
            return await hosts.read(connected)

    return asyncio.run(run())


def is_there(database: Fresh, base: str, seen_seconds_ago: float = 0, status: Any = FLEET) -> None:
    async def run() -> None:
        async with Database(database.url, application_name="reconsup/test", lease_seconds=6) as connected:
            host = Host(base, "b1", 10, "1", 2, datetime(2026, 1, 1, tzinfo=UTC))
            await announce(connected, host, status, fresh_seconds=20)

    asyncio.run(run())
    database.execute(
        "UPDATE app.reconsup_hosts SET last_seen_at = now() - make_interval(secs => %s) WHERE base = %s",
        [seen_seconds_ago, base],
    )


def lease(database: Fresh, owner: str, count: int, seconds: float = 300) -> None:
    with database.connect() as connection:
        for _ in range(count):
            until = datetime.now(UTC) + timedelta(seconds=seconds)
            insert_request(connection, reconcile_lease_owner=owner, reconcile_lease_until=until)


def test_leases_and_scans_are_laid_to_the_host_whose_worker_has_them(database: Fresh) -> None:
    """A base may have dashes; the spare seat is of its host."""
    is_there(database, "pay-1")
    is_there(database, "pay-1-b")
    lease(database, "pay-1-0#aa", 2)
    lease(database, "pay-1-spare#ab", 1)
    lease(database, "pay-1-b-11#ac", 4)
    until = datetime.now(UTC) + timedelta(hours=1)
    insert_cursor(database, scan_lease_owner="pay-1-b-0#ad", scan_lease_until=until)
    insert_cursor(database, network="over", scan_lease_owner="pay-1-0#ad", scan_lease_until=until - timedelta(hours=2))

    told = shape.told(read(database))

    assert [(host["base"], host["leases"], host["scans"], host["gone"]) for host in told["hosts"]] == [
        ("pay-1", 3, [], False),
        ("pay-1-b", 4, ["local"], False),
    ]
    assert told["unknown_owners"] == {"owners": [], "leases": 0, "scans": [], "end_in_seconds": None}
    assert [(each["network"], each["holder"], each["scanned"]) for each in told["networks"]] == [
        ("local", "pay-1-b-0#ad", 100),
        ("over", None, 100),
    ]


def test_leases_of_hosts_that_are_gone_are_told_apart(database: Fresh) -> None:
    """Seen to fail when every host in the table counts as living."""
    is_there(database, "here")
    is_there(database, "gone", 21)
    is_there(database, "stopped", 0, {**FLEET, "state": "stopped"})
    lease(database, "here-0#aa", 1)
    lease(database, "gone-0#ab", 2, 30)
    lease(database, "never-0#ac", 3, 100)
    insert_cursor(database, scan_lease_owner="never-0#ac", scan_lease_until=datetime.now(UTC) - timedelta(seconds=5))

    told = shape.told(read(database))
    strangers = told["unknown_owners"]

    assert {host["base"]: host["gone"] for host in told["hosts"]} == {"here": False, "gone": True, "stopped": True}
    assert (strangers["leases"], strangers["scans"]) == (5, ["local"])
    assert strangers["owners"] == ["gone-0#ab", "never-0#ac"]
    assert 80 < strangers["end_in_seconds"] <= 100


@pytest.mark.parametrize(
    ("seen_seconds_ago", "status", "is_gone"),
    [(19, FLEET, False), (21, FLEET, True), (21, FLEET | {"fresh_seconds": 60}, False), (19, None, False),
     (21, None, True), (19, ["what?"], False), (19, {"fresh_seconds": "x", "workers": 7}, False)],
)  # fmt: skip
def test_a_host_is_gone_when_it_was_not_heard_of_for_three_of_its_looks(
    database: Fresh, seen_seconds_ago: float, status: Any, is_gone: bool
) -> None:
    """Whatever it is that an older or newer host wrote about itself, it is no error."""
    is_there(database, "host", seen_seconds_ago, status)

    (host,) = shape.told(read(database))["hosts"]

    assert host["gone"] is is_gone
    assert host["workers_wanted"] == 2


def test_people_are_not_shown_a_host_that_is_gone_for_more_than_a_day(database: Fresh) -> None:
    is_there(database, "yesterday", 86_000)
    is_there(database, "long-ago", 90_000)
    told = shape.told(read(database))

    assert [host["base"] for host in told["hosts"]] == ["long-ago", "yesterday"]
    assert [host["base"] for host in shape.recent(told)["hosts"]] == ["yesterday"]
    assert json.loads(json.dumps(told)) == told


def test_the_leases_are_counted_along_the_index_of_owners(database: Fresh) -> None:
    database.execute(
        """INSERT INTO app.payment_requests (id, chain, network, asset, status, address_canonical, address_scheme,
             derivation_index, expires_at, reconcile_lease_owner, reconcile_lease_until)
           SELECT 'r' || n, 'ethereum', 'local', 'ETH', 'pending', 'a' || n, 'evm_bip44', n, now() + interval '1 hour',
                  CASE WHEN n <= 100 THEN 'h-0#ab' END, CASE WHEN n <= 100 THEN now() + interval '1 minute' END
           FROM generate_series(1, 20000) n"""
    )
    database.execute("ANALYZE app.payment_requests")
    plan = "\n".join(row for (row,) in database.fetch(f"EXPLAIN {hosts._HELD}"))

    assert "reconsup_lease_owner_idx" in plan, plan
