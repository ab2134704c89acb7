"""What people are shown of the database: the end of the history, the hosts; cheaply, whatever stands there."""

import asyncio
import json
from typing import Any

import pytest

from reconsup.store import hosts, recent
from reconsup.store.database import Database
from reconsup.store.recent import HOSTS_MAX, TRANSITIONS_MAX, Recent
from tests.store.test_hosts import FLEET, is_there
from tests.support.postgres import Database as Fresh
from tests.support.postgres import insert_request

pytestmark = pytest.mark.service


def read(database: Fresh) -> Recent:
    async def run() -> Recent:
        async with Database(database.url, application_name="reconsup/test", lease_seconds=6) as connected:
            return await recent.read(connected)

    return asyncio.run(run())


def insert_history(database: Fresh, *, count: int = 1, **fields: Any) -> None:
    row = {"payment_request_id": "gone", "from_status": "pending", "to_status": "confirmed",
           "reason": "payment_confirmed", **fields}  # fmt: skip
    names, places = ", ".join(row), ", ".join(f"%({name})s" for name in row)
    database.execute(
        f"INSERT INTO app.payment_request_transitions ({names}) SELECT {places} FROM generate_series(1, {count})", row
    )


def test_the_newest_entries_come_first_with_what_their_requests_say_of_the_amount(database: Fresh) -> None:
    with database.connect() as connection:
        ether = insert_request(connection)
        token = insert_request(
            connection, asset="USDT", token_standard="ERC20", token_contract="0xaa", token_decimals=6
        )
    insert_history(database, count=TRANSITIONS_MAX + 5)
    insert_history(database, payment_request_id=ether, amount_minor=10**30, expected_amount_minor=10**18,
                   confirmations=3, worker_id="host-0")  # fmt: skip
    insert_history(database, payment_request_id=token, reason="row_failed", to_status="pending",
                   evidence=json.dumps([{"error": "failed: x"}]))  # fmt: skip

    failed, confirmed, *older = read(database).transitions

    assert len(older) == TRANSITIONS_MAX - 2
    assert {each["network"] for each in older} == {None}, "the history outlives its request"
    assert (failed["request_id"], failed["reason"], failed["error"]) == (token, "row_failed", "failed: x")
    assert (failed["asset"], failed["token_decimals"], failed["is_native"]) == ("USDT", 6, False)
    assert (confirmed["amount_minor"], confirmed["expected_amount_minor"]) == (str(10**30), str(10**18))
    assert (confirmed["network"], confirmed["is_native"], confirmed["worker_id"]) == ("local", True, "host-0")
    assert 0 <= confirmed["seconds_ago"] < 60


@pytest.mark.parametrize("status", [None, ["what?"], {"workers": 7, "fresh_seconds": "x"}, {"workers": [7, None]}, "x"])
def test_whatever_a_host_wrote_about_itself_is_no_error(database: Fresh, status: Any) -> None:
    is_there(database, "host", 0, status)

    (host,) = read(database).hosts

    assert (host["base"], host["gone"], host["workers_ready"] or 0) == ("host", False, 0)


def test_the_hosts_are_told_as_the_command_tells_them(database: Fresh) -> None:
    workers = [{"state": "ready"}, {"state": "backoff"}, {"state": "ready"}]
    is_there(database, "here", 0, FLEET | {"workers": workers})
    is_there(database, "gone", 21)
    is_there(database, "stopped", 0, FLEET | {"state": "stopped"})
    is_there(database, "long-ago", 90_000)

    told = {host["base"]: host for host in read(database).hosts}

    assert {base: host["gone"] for base, host in told.items()} == {"gone": True, "here": False, "stopped": True}
    assert (told["here"]["workers_ready"], told["here"]["workers_wanted"]) == (2, 2)

    async def rows() -> list[hosts.HostRow]:
        async with Database(database.url, application_name="reconsup/test", lease_seconds=6) as connected:
            return await hosts.rows(connected)

    assert {row.base: row.is_gone for row in asyncio.run(rows()) if row.base in told} == {
        base: host["gone"] for base, host in told.items()
    }


def test_a_long_history_and_many_hosts_cost_no_more_than_short_ones(database: Fresh) -> None:
    """Seen to fail when the history is joined before it is limited, and when it is ordered by its time."""
    insert_history(database, count=20_000)
    database.execute(
        "INSERT INTO app.reconsup_hosts (base, pid, version, slots, started_at, last_seen_at)"
        " SELECT 'h' || n, 1, '1', 1, now(), now() FROM generate_series(1, 500) n"
    )
    database.execute(
        "INSERT INTO app.payment_requests (id, chain, network, asset, status, address_canonical, address_scheme,"
        " derivation_index, expires_at) SELECT 'r' || n, 'ethereum', 'local', 'ETH', 'pending', 'a' || n, 'x', n, now()"
        " FROM generate_series(1, 20000) n"
    )
    database.execute("ANALYZE")
    values = {"transitions": TRANSITIONS_MAX, "hosts": HOSTS_MAX, "text": 200}
    ((plan,),) = database.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {recent._RECENT}", values)

    whole = json.dumps(plan)
    assert "payment_request_transitions_pkey" in whole
    assert plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"] < 150, whole
    assert len(read(database).hosts) == HOSTS_MAX
