"""How often the database is asked, and what becomes known of its answers."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from reconsup.fleet.scoreboard import Load
from reconsup.monitor import watch
from reconsup.monitor.status import Known
from reconsup.monitor.watch import Watch
from reconsup.payments.request import Network
from reconsup.store import backlog, migrate
from reconsup.store.backlog import Host
from reconsup.store.database import Database
from tests.monitor.test_backlog import insert_cursor
from tests.support.postgres import Database as Fresh
from tests.support.postgres import insert_request

pytestmark = pytest.mark.service

HOST = Host("host", "b1", 10, "1", 4, datetime(2026, 1, 1, tzinfo=UTC))


def look(url: str, known: Known, work: Callable[[Watch], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Database(url, application_name="reconsup/watch", lease_seconds=watch.WAIT_SECONDS) as connected:
            await work(Watch(connected, [Network("ethereum", "local")], HOST, known, seconds=0.5))

    asyncio.run(run())


async def once(each: Watch) -> None:
    await each.look()


def test_a_look_makes_known_how_things_are_and_that_we_are_alive(database: Fresh) -> None:
    known = Known(("local",), 20)
    with database.connect() as connection:
        insert_request(connection)

    look(database.url, known, once)

    assert known.problem is None
    assert known.fresh_backlog(time.monotonic()) is not None
    assert known.census is not None
    assert known.census.by_status == {"pending": 1}
    assert database.fetch("SELECT base, slots FROM app.reconsup_hosts") == [("host", 4)]


def test_an_outage_is_told_at_once_and_without_secrets(database: Fresh) -> None:
    known = Known(("local",), 20)
    look(database.url, known, once)

    look("postgresql://u:s3cr3t@127.0.0.1:1/x", known, once)

    assert known.problem is not None
    assert "s3cr3t" not in known.problem


def test_a_schema_that_is_behind_is_told_as_such_once_and_also_that_it_is_there_again(
    empty_database: Fresh,
) -> None:
    known = Known(("local",), 20)

    async def work(each: Watch) -> None:
        await each.look()
        await each.look()
        assert known.problem is not None
        assert "reconsup migrate" in known.problem
        await asyncio.to_thread(migrate.upgrade, empty_database.url, say=lambda _: None)
        await each.look()
        await each.look()

    with capture_logs() as logs:
        look(empty_database.url, known, work)

    assert known.problem is None
    assert [each["event"] for each in logs if "database" in each["event"] or "schema" in each["event"]] == [
        "schema_behind",
        "database_back",
    ]


def test_a_restart_is_not_taken_for_another_supervisor_and_one_that_lives_is(database: Fresh) -> None:
    """Seen to fail, with one line too many, when the row that we found at our own first look counts."""
    known = Known(("local",), 20)
    before, other = replace(HOST, pid=9, boot_id="b0"), replace(HOST, pid=11, boot_id="b2")

    async def work(each: Watch) -> None:
        await backlog.announce(each._database, before, fresh_seconds=20)
        with capture_logs() as told:
            await each.look()
            await each.look()
            assert told == []
            for _ in range(3):
                await backlog.announce(each._database, other, fresh_seconds=20)
                await each.look()
        assert [(line["event"], line["pid_of_the_other"]) for line in told] == [("worker_id_shared", 11)]

    look(database.url, known, work)


def test_all_rows_are_counted_for_a_small_share_of_the_time(database: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail when a census is taken at every look."""
    known = Known(("local",), 20)
    monkeypatch.setattr(watch, "CENSUS_SHARE", 100_000)
    taken = []

    async def work(each: Watch) -> None:
        for _ in range(3):
            await each.look()
            taken.append(known.census_at)

    look(database.url, known, work)

    assert len(set(taken)) == 1


def test_a_table_that_is_too_large_to_be_counted_spoils_nothing_else(
    database: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "_CENSUS", "SELECT pg_sleep(5)")
    monkeypatch.setattr(backlog, "CENSUS_SECONDS_MAX", 0.1)
    known = Known(("local",), 20)
    pauses = []

    async def work(each: Watch) -> None:
        pauses.extend([await each.look(), await each.look()])

    look(database.url, known, work)

    assert (known.problem, known.census) == (None, None)
    assert pauses == [0.5, 0.5]


def test_somebody_who_watches_sees_movement_and_a_late_answer_is_no_alarm() -> None:
    assert [watch.poll_seconds(each) for each in (0.1, 15)] == [0.1, 5]
    assert watch.fresh_seconds(15) == 20
    assert watch.fresh_seconds(0.1) > backlog.CENSUS_SECONDS_MAX


def test_the_supervisor_is_told_how_much_waits_and_nothing_while_nobody_knows(database: Fresh) -> None:
    """Seen to fail when an outage is told as no load: workers would leave while their work piles up."""
    known, told = Known(("local",), 20), list[Load]()
    with database.connect() as connection:
        insert_cursor(database)
        insert_request(connection, next_reconcile_at=datetime.now(UTC) - timedelta(seconds=90))

    async def run(url: str) -> None:
        async with Database(url, application_name="reconsup/watch", lease_seconds=watch.WAIT_SECONDS) as connected:
            network = Network("ethereum", "local")
            await Watch(connected, [network], HOST, known, seconds=0.5, tell_load=told.append).look()

    asyncio.run(run(database.url))
    asyncio.run(run("postgresql://u@127.0.0.1:1/x"))

    (load,) = told
    assert 90 <= load.oldest_due_seconds < 150
    assert 40 <= load.behind_seconds < 100
    assert 0 <= time.monotonic() - load.at < 20


def test_the_hosts_row_says_what_its_fleet_does_and_that_it_stopped(database: Fresh) -> None:
    said = {"state": "running", "workers": [{"slot": 0}]}

    async def run() -> list[str]:
        async with Database(
            database.url, application_name="reconsup/watch", lease_seconds=watch.WAIT_SECONDS
        ) as connected:
            each = Watch(connected, [], HOST, Known((), 20), seconds=0.5, announcement=lambda: said)
            states = []
            for step in (each.look, each.leave):
                await step()
                ((status,),) = database.fetch("SELECT status FROM app.reconsup_hosts")
                assert status == {**said, "state": status["state"]}
                states.append(status["state"])
            return states

    assert asyncio.run(run()) == ["running", "stopped"]


def test_nobody_waits_for_a_goodbye() -> None:
    """From a server that is there and says nothing. Seen to fail without its own time-out."""

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/x"
            async with Database(url, application_name="w", lease_seconds=15) as away:
                await Watch(away, [], HOST, Known((), 20), seconds=0.5).leave()

    started_at = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - started_at < 2
