"""What the monitor reads from the database: nothing that a claim would not take, nothing missing, never dear."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest

from reconsup.payments.request import Network
from reconsup.store import backlog
from reconsup.store.backlog import Backlog, Census, Host
from reconsup.store.database import Database
from reconsup.store.errors import StoreUnavailable
from tests.support.postgres import Database as Fresh
from tests.support.postgres import insert_request

pytestmark = pytest.mark.service

T = TypeVar("T")
LOCAL = Network("ethereum", "local")
OTHER = Network("ethereum", "other")


def ask(database: Fresh, work: Callable[[Database], Awaitable[T]]) -> T:
    """Run one read over a connection of the program's own kind."""

    async def run() -> T:
        async with Database(database.url, application_name="reconsup/test", lease_seconds=15) as connected:
            return await work(connected)

    return asyncio.run(run())


def read(database: Fresh, *networks: Network) -> Backlog:
    return ask(database, lambda connected: backlog.read(connected, networks))


def census(database: Fresh, *networks: Network) -> Census:
    return ask(database, lambda connected: backlog.census(connected, networks))


def insert(database: Fresh, **columns: Any) -> str:
    with database.connect() as connection:
        return insert_request(connection, **columns)


def insert_cursor(database: Fresh, **columns: Any) -> None:
    values = {
        "chain": "ethereum",
        "network": "local",
        "chain_id": 31337,
        "genesis_hash": "0x00",
        "next_height": 101,
        "tip_hash": "0x64",
        "tip_time": datetime.now(UTC) - timedelta(seconds=40),
        "head_height": 105,
        "tail_start": 1,
        **columns,
    }
    names = ", ".join(values)
    places = ", ".join(f"%({name})s" for name in values)
    database.execute(f"INSERT INTO app.chain_cursors ({names}) VALUES ({places})", values)


def test_due_is_exactly_what_a_claim_would_take(database: Fresh) -> None:
    """Seen to fail when the lease, the status or the time is left out of the conditions."""
    insert_cursor(database)
    ago = datetime.now(UTC) - timedelta(seconds=90)
    insert(database, next_reconcile_at=ago)
    insert(database, status="confirmed")
    insert(database, reconcile_crashes=2)
    insert(database, next_reconcile_at=None)
    insert(database, next_reconcile_at=datetime.now(UTC) + timedelta(hours=1))
    insert(database, status="failed")
    insert(database, network="other")
    insert(database, chain="bitcoin")
    lease = {"reconcile_lease_owner": "h-0#ab", "next_reconcile_at": ago - timedelta(hours=1)}
    insert(database, reconcile_lease_until=datetime.now(UTC) + timedelta(hours=1), **lease)
    insert(database, reconcile_lease_until=ago, **lease | {"next_reconcile_at": ago})

    found = read(database, LOCAL)

    assert found.due == 4
    assert 90 <= found.oldest_due_seconds < 150


@pytest.mark.parametrize("cursor", [None, {"stop_reason": "fork"}, {"tip_time": None}])
def test_nothing_is_due_where_nothing_can_be_claimed(database: Fresh, cursor: dict[str, Any] | None) -> None:
    """A network that is unborn or stopped grants no lease. Seen to fail without the cursor's conditions."""
    if cursor is not None:
        insert_cursor(database, **cursor)
    insert(database)

    found = read(database, LOCAL)

    assert (found.due, found.oldest_due_seconds) == (0, 0.0)


def test_each_served_network_is_told_as_its_cursor_shows_it(database: Fresh) -> None:
    now = datetime.now(UTC)
    insert_cursor(database, scan_lease_owner="h-1#ab", scan_lease_until=now + timedelta(hours=1))
    insert_cursor(
        database,
        network="other",
        stop_reason="fork below finality",
        scan_lease_owner="h-2#cd",
        scan_lease_until=now - timedelta(seconds=1),
        tip_time=now + timedelta(hours=1),
        unproven_height=100,
    )
    insert_cursor(database, network="not-served")

    local, other, unborn = read(database, LOCAL, OTHER, Network("ethereum", "unborn")).networks

    assert (local.network, local.head, local.scanned, local.holder) == (LOCAL, 105, 100, "h-1#ab")
    assert local.lag_seconds is not None
    assert 40 <= local.lag_seconds < 100
    assert (other.stop_reason, other.holder, other.lag_seconds) == ("fork below finality", None, 0.0)
    assert (local.proven, other.proven, unborn.proven) == (True, False, None)
    assert (unborn.network.name, unborn.head, unborn.scanned, unborn.lag_seconds) == ("unborn", None, None, None)


def test_endpoints_are_at_odds_only_where_somebody_saw_them_so(database: Fresh) -> None:
    """The gauge was 1 for every network for ever: GREATEST(NULL, 0) is 0. Seen to fail with it."""
    insert_cursor(database)
    insert_cursor(database, network="other", disagreed_at=datetime.now(UTC) - timedelta(seconds=40))

    local, other, unborn = read(database, LOCAL, OTHER, Network("ethereum", "unborn")).networks

    assert (local.disagreed_seconds, unborn.disagreed_seconds, unborn.heard_seconds) == (None, None, None)
    assert other.disagreed_seconds is not None
    assert 40 <= other.disagreed_seconds < 100
    assert local.heard_seconds is not None


def test_old_blocks_that_requests_wait_for_are_told_with_their_network(database: Fresh) -> None:
    insert_cursor(database)
    insert_cursor(database, network="other")
    database.execute(
        "INSERT INTO app.chain_spans (chain, network, from_height, to_height, next_height, next_hash)"
        " VALUES ('ethereum', 'other', 10, 99, 49, '0x1')"
    )

    networks = read(database, LOCAL, OTHER, Network("ethereum", "unborn")).networks

    assert [network.span_blocks_left for network in networks] == [0, 40, None]


def test_serving_nothing_finds_nothing(database: Fresh) -> None:
    insert(database)

    assert read(database) == Backlog(0, 0.0, ())
    assert census(database) == Census({}, 1, {}, nobodys=1)


def test_a_census_counts_every_row_once(database: Fresh) -> None:
    for status, error in (
        ("pending", None),
        ("pending", "failed: no such thing: really"),
        ("pending", "failed: something else"),
        ("confirmed", "set_aside"),
        ("failed", None),
    ):
        insert(database, status=status, reconcile_error=error)
    insert(database, network="other", status="reorged", reconcile_error="set_aside")
    insert(database, chain="bitcoin", network="local", status="detected")
    insert(database, chain="bitcoin", network="local", status="expired")

    assert census(database, LOCAL) == Census(
        by_status={"pending": 3, "confirmed": 1, "failed": 1},
        unserved=2,
        row_errors={"failed": 2, "set_aside": 1},
        nobodys=2,
    )


def test_requests_that_another_host_serves_are_not_nobodys(database: Fresh) -> None:
    """Hosts may serve different networks. Seen to fail without the look at the time, and without the one at the chain.

    A host that is gone serves nothing, and nobody serves a Bitcoin network that has the name of an EVM one.
    """
    for chain, network in (("ethereum", "other"), ("ethereum", "lost"), ("bitcoin", "other"), ("ethereum", "typo")):
        insert(database, chain=chain, network=network)
    insert(database, network="typo", status="confirmed")
    for base, networks, seconds_ago in (("host-b", '["other"]', 0), ("host-c", '["lost"]', 700), ("host-d", None, 0)):
        database.execute(
            "INSERT INTO app.reconsup_hosts (base, pid, version, slots, started_at, status, last_seen_at) VALUES"
            " (%s, 7, '0.1.0', 1, now(), jsonb_build_object('networks', %s::jsonb), now() - make_interval(secs => %s))",
            [base, networks, seconds_ago],
        )

    found = census(database, LOCAL)

    assert (found.unserved, found.nobodys) == (4, 3)


def test_a_census_gives_up_rather_than_weigh_on_the_database(database: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a lock it would wait for ever. Seen to fail without its own time limit."""
    monkeypatch.setattr(backlog, "CENSUS_SECONDS_MAX", 0.1)
    with database.connect(autocommit=False) as blocker:
        blocker.execute("LOCK TABLE app.payment_requests IN ACCESS EXCLUSIVE MODE")

        with pytest.raises(StoreUnavailable, match="statement timeout"):
            census(database, LOCAL)


def test_the_reading_of_every_poll_uses_the_claim_index(database: Fresh) -> None:
    """However many rows there are, it looks at those that are due."""
    insert_cursor(database)
    database.execute(
        """INSERT INTO app.payment_requests (id, chain, network, asset, status, address_canonical, address_scheme,
                                             derivation_index, expires_at, next_reconcile_at)
           SELECT 'r' || n, 'ethereum', CASE WHEN n % 2 = 0 THEN 'local' ELSE 'else' END, 'ETH', 'pending', 'a' || n,
                  'evm_bip44', n, now() + interval '1 hour', now() + make_interval(secs => n - 20)
           FROM generate_series(1, 20000) n"""
    )
    database.execute("ANALYZE app.payment_requests")
    parameters = {"chains": ["ethereum"], "networks": ["local"], "limit": backlog.DUE_COUNTED_MAX}

    ((plan,),) = database.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {backlog._READ}", parameters)

    nodes = list(_nodes(plan[0]["Plan"]))
    (index,) = [node for node in nodes if node.get("Index Name") == "reconsup_claim_idx"]
    assert index["Actual Rows"] <= 20
    assert not [
        node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] == "payment_requests"
    ]


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in _nodes(child))]


def host(**fields: Any) -> Host:
    return Host(
        **{
            "base": "host",
            "boot_id": "b1",
            "pid": 10,
            "version": "1",
            "slots": 4,
            "started_at": datetime(2026, 1, 1, tzinfo=UTC),
            **fields,
        }
    )


def announce(database: Fresh, each: Host, fresh_seconds: float = 60, status: Any = None) -> int | None:
    return ask(database, lambda connected: backlog.announce(connected, each, status, fresh_seconds=fresh_seconds))


def test_a_host_has_one_row_that_says_when_it_was_last_alive(database: Fresh) -> None:
    assert announce(database, host()) is None
    assert announce(database, host(slots=8), status={"workers": [{"state": "ready"}]}) is None

    (row,) = database.fetch(
        "SELECT base, boot_id, pid, version, slots, last_seen_at > now() - '9 s'::interval, status"
        " FROM app.reconsup_hosts"
    )
    assert row == ("host", "b1", 10, "1", 8, True, {"workers": [{"state": "ready"}]})


def test_two_supervisors_of_one_name_notice_each_other(database: Fresh) -> None:
    """Two containers of one machine, each with pid 1: seen to fail when only pid and boot id are compared."""
    announce(database, host())
    assert announce(database, host(started_at=datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC))) == 10

    assert announce(database, host(pid=11)) == 10
    assert announce(database, host(boot_id="b2")) == 11
    assert announce(database, host(pid=12), fresh_seconds=0) is None


def test_a_database_that_is_away_is_an_expected_outcome() -> None:
    async def run() -> None:
        async with Database("postgresql://127.0.0.1:1/x", application_name="reconsup/test", lease_seconds=3) as away:
            await backlog.read(away, [LOCAL])

    with pytest.raises(StoreUnavailable):
        asyncio.run(run())
