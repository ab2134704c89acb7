"""The dead give their leases back: at once, once, and however long the database was away."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from reconsup.fleet.posix import MONITOR, Bell, Cause, Scoreboard, Seat
from reconsup.monitor import janitor, metrics
from reconsup.monitor.janitor import Janitor
from reconsup.payments.request import Network
from reconsup.store import burial, leases
from reconsup.store.database import RETRIES_MAX, Database
from reconsup.store.presence import Line, Presence
from tests.support.postgres import Database as Fresh
from tests.support.postgres import insert_request

pytestmark = pytest.mark.service

LOCAL = Network("ethereum", "local")
DEAD = "00000000000000aa"
LIVING = "00000000000000bb"
NOWHERE = "postgresql://127.0.0.1:1/nowhere"


def new_seat() -> Seat:
    scoreboard = Scoreboard("host")
    scoreboard.open(pid=os.getpid(), boot_id="0" * 16, started_at=time.time(), version="1", slots=2)
    lifeline, _ = os.pipe()
    return Seat(MONITOR, "host", "0" * 16, scoreboard, Bell(), lifeline, Path(tempfile.gettempdir()))


def die(seat: Seat, slot: int = 0, incarnation: str = DEAD, row: str | None = None) -> None:
    """What the supervisor does when it has reaped a killed worker."""
    cell = seat.scoreboard.cell(slot)
    cell.set_incarnation(incarnation)
    cell.set_row(row)
    seat.scoreboard.bury(slot, Cause.SIGNAL)


def leased(database: Fresh, owner: str, **columns: Any) -> str:
    lease_end = datetime.now(UTC) + timedelta(hours=1)
    with database.connect() as connection:
        return insert_request(
            connection,
            reconcile_lease_owner=owner,
            reconcile_lease_until=lease_end,
            next_reconcile_at=lease_end,
            reconcile_lease_epoch=7,
            **columns,
        )


def owners(database: Fresh) -> list[str | None]:
    return [owner for (owner,) in database.fetch("SELECT reconcile_lease_owner FROM app.payment_requests ORDER BY id")]


def with_janitor(
    seat: Seat,
    url: str,
    work: Callable[[Janitor], Awaitable[None]],
    *,
    sweep_seconds: float = 3600,
    retries_max: int = RETRIES_MAX,
) -> None:
    async def run() -> None:
        async with Database(
            url, application_name="reconsup/janitor", lease_seconds=3, retries_max=retries_max
        ) as connected:
            await work(Janitor(seat, connected, [LOCAL], sweep_seconds=sweep_seconds))

    asyncio.run(run())


async def once(keeper: Janitor) -> None:
    await keeper.work()


def test_only_the_dead_incarnation_gives_its_leases_back(database: Fresh) -> None:
    """Seen to fail when the owner is asked for without its incarnation."""
    seat = new_seat()
    mine = leased(database, f"host-0#{DEAD}")
    leased(database, f"host-0#{LIVING}")
    leased(database, f"other-0#{DEAD}")
    die(seat)

    with_janitor(seat, database.url, once)

    assert owners(database) == [None, f"host-0#{LIVING}", f"other-0#{DEAD}"]
    assert database.fetch(
        "SELECT next_reconcile_at <= now(), reconcile_lease_epoch, reconcile_crashes FROM app.payment_requests"
        " WHERE id = %s",
        (mine,),
    ) == [(True, 7, 1)]
    assert seat.scoreboard.dead() == []


def test_the_row_that_was_at_work_is_the_one_that_is_suspected(database: Fresh) -> None:
    seat = new_seat()
    rows = [leased(database, f"host-0#{DEAD}") for _ in range(3)]
    die(seat, row=rows[1])

    with_janitor(seat, database.url, once)

    assert database.fetch("SELECT reconcile_crashes FROM app.payment_requests ORDER BY id") == [(0,), (1,), (0,)]


def test_a_row_that_is_set_aside_is_an_alarm(
    database: Fresh, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the log and in the metrics; the others are due at once. Seen to fail (no line) when nobody looks."""
    counted: list[tuple[float, str]] = []
    monkeypatch.setattr(metrics.ROW_FAILURES, "inc", lambda *what: counted.append(what))
    seat = new_seat()
    poison = leased(database, f"host-0#{DEAD}", reconcile_crashes=3)
    other = leased(database, f"host-0#{DEAD}")
    die(seat, row=poison)

    with_janitor(seat, database.url, once)

    assert database.fetch("SELECT id FROM app.payment_requests WHERE next_reconcile_at <= now()") == [(other,)]
    lines = [line for line in capfd.readouterr().out.splitlines() if "row_set_aside" in line]
    assert len(lines) == 1
    assert poison in lines[0]
    assert counted == [(1, "set_aside")]


@pytest.mark.direct
def test_a_statement_of_the_dead_that_still_runs_is_ended_first(database: Fresh) -> None:
    """A killed client's statement may commit after its successor has the row."""
    seat = new_seat()
    leased(database, f"host-0#{DEAD}")
    die(seat)
    with database.connect(application_name=f"reconsup/{DEAD}", autocommit=False) as ghost:
        ghost.execute("UPDATE app.payment_requests SET status = 'expired'")

        with_janitor(seat, database.url, once)

        with pytest.raises(psycopg.OperationalError):
            ghost.execute("COMMIT")
    assert database.fetch("SELECT status, reconcile_lease_owner FROM app.payment_requests") == [("pending", None)]


def test_a_death_is_crossed_out_only_when_its_leases_are_free(database: Fresh) -> None:
    """Seen to fail when the acknowledgement comes before the burial."""
    seat = new_seat()
    leased(database, f"host-0#{DEAD}")
    die(seat)

    with_janitor(seat, NOWHERE, once)
    assert [death.incarnation for death in seat.scoreboard.dead()] == [DEAD]

    with_janitor(seat, database.url, once)
    assert seat.scoreboard.dead() == []
    assert owners(database) == [None]


def test_while_the_database_is_away_it_does_not_try_by_itself(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One asks for all of the process, once a second. Seen to fail (a connection a look) when nobody is asked first."""
    tried = []
    connect = Line.connect
    monkeypatch.setattr(Line, "connect", lambda *what, **how: (tried.append(what), connect(*what, **how))[1])
    seat = new_seat()
    die(seat)

    async def run() -> None:
        async with (
            Presence(NOWHERE, application_name="reconsup/janitor") as presence,
            Database(NOWHERE, application_name="reconsup/janitor", lease_seconds=3, presence=presence) as database,
        ):
            keeper = Janitor(seat, database, [LOCAL], sweep_seconds=3600)
            pauses = {await keeper.work() for _ in range(50)}
            assert pauses == {janitor.LOOK_SECONDS}

    asyncio.run(run())
    assert len(tried) <= 3
    assert len(seat.scoreboard.dead()) == 1
    assert capfd.readouterr().out.count("database_away") == 1


def test_a_ring_wakes_it_and_a_give_back_rings_for_the_others(database: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail (on the deadline) when it does not listen, and when it does not ring."""
    monkeypatch.setattr(janitor, "LOOK_SECONDS", 60.0)
    seat = new_seat()
    leased(database, f"host-0#{DEAD}")
    worker_ear = seat.bell.listen()

    async def work(keeper: Janitor) -> None:
        bell, rung = asyncio.Event(), asyncio.Event()
        asyncio.get_running_loop().add_reader(worker_ear.fileno(), rung.set)
        bell.set()
        running = asyncio.create_task(keeper.run(bell))
        while bell.is_set():  # noqa: ASYNC110 - until it has looked; an Event tells only when it is set
            await asyncio.sleep(0)
        die(seat)
        bell.set()
        await asyncio.wait_for(rung.wait(), 10)
        running.cancel()

    with_janitor(seat, database.url, work)

    assert owners(database) == [None]


def test_its_farewell_buries_who_is_left_and_ends_in_time_without_a_database(
    database: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(janitor, "FAREWELL_SECONDS", 0.5)
    seat = new_seat()
    for slot in range(3):
        leased(database, f"host-{slot}#{DEAD}")
        die(seat, slot)

    async def farewell(keeper: Janitor) -> None:
        await keeper.farewell()

    started_at = time.monotonic()
    with_janitor(seat, NOWHERE, farewell)
    assert 0.4 < time.monotonic() - started_at < 5
    assert len(seat.scoreboard.dead()) == 3

    monkeypatch.setattr(janitor, "FAREWELL_SECONDS", 10)
    with_janitor(seat, database.url, farewell)
    assert owners(database) == [None, None, None]


def test_its_farewell_is_over_as_soon_as_all_are_buried(database: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain waits for it. Seen to fail (it slept) with a pause after the last burial."""
    monkeypatch.setattr(janitor, "LOOK_SECONDS", 60.0)
    monkeypatch.setattr(janitor, "RETRY_SECONDS_MIN", 60.0)
    seat, ends = new_seat(), []
    leased(database, f"host-0#{DEAD}")
    die(seat, 0)

    async def farewell(keeper: Janitor) -> None:
        async with asyncio.timeout(30) as patience:
            await keeper.farewell()
        ends.append(patience.expired())

    monkeypatch.setattr(janitor, "FAREWELL_SECONDS", 3600.0)
    with_janitor(seat, database.url, farewell)
    assert (owners(database), ends) == ([None], [False])


def test_the_sweep_makes_forgotten_rows_of_served_networks_due(database: Fresh) -> None:
    seat = new_seat()
    forgotten: dict[str, Any] = {"next_reconcile_at": None}
    with database.connect() as connection:
        swept = insert_request(connection, **forgotten)
        for columns in (
            {"network": "other"},
            {"status": "confirmed"},
            {"reconcile_error": "set_aside"},
        ):
            insert_request(connection, **forgotten, **columns)
    ear = seat.bell.listen()
    ear.drain()

    with_janitor(seat, database.url, once, sweep_seconds=0)

    due = database.fetch("SELECT id FROM app.payment_requests WHERE next_reconcile_at <= now()")
    assert due == [(swept,)]
    assert ear.drain()


def test_it_sweeps_only_when_it_is_time(database: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.5)
    with database.connect() as connection:
        insert_request(connection, next_reconcile_at=None)

    with_janitor(new_seat(), database.url, once, sweep_seconds=600)

    assert database.fetch("SELECT next_reconcile_at FROM app.payment_requests") == [(None,)]


def test_only_the_row_that_nobody_may_write_is_left_of_the_dead(
    database: Fresh, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither its other rows nor the next dead wait. Seen to fail (all are left) when the first refusal ends it."""
    seat = new_seat()
    rows = [leased(database, f"host-0#{DEAD}") for _ in range(5)]
    leased(database, f"host-1#{LIVING}")
    die(seat, 0, DEAD, row=rows[1])
    die(seat, 1, LIVING)
    _refuse(database, rows[3])
    with_janitor(seat, database.url, once)
    assert owners(database) == [None, None, None, f"host-0#{DEAD}", None, None]
    crashes = database.fetch("SELECT reconcile_crashes FROM app.payment_requests ORDER BY id")
    assert crashes == [(0,), (1,), (0,), (0,), (0,), (1,)]
    assert seat.scoreboard.dead() == []
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "leases_left" in line]
    assert rows[3] in line


def test_a_row_that_somebody_has_locked_holds_up_nobody(database: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other rows are free, and the next dead's; it is tried again until it is free too, and only then crossed out.

    Seen to fail (nothing is free) when a burial waits for the lock and gives up, and (it is charged twice) when a later
    try does not remember that the row that was at work is free already.
    """
    monkeypatch.setattr(janitor, "RETRY_SECONDS_MIN", 0.0)
    seat = new_seat()
    rows = [leased(database, f"host-0#{DEAD}") for _ in range(3)]
    leased(database, f"host-1#{LIVING}")
    die(seat, 0, DEAD, row=rows[0])
    die(seat, 1, LIVING)

    async def work(keeper: Janitor) -> None:
        with database.connect(autocommit=False) as somebody:
            somebody.execute("SELECT FROM app.payment_requests WHERE id = %s FOR UPDATE", [rows[2]])
            await keeper.work()
            assert owners(database) == [None, None, f"host-0#{DEAD}", None]
            assert [death.incarnation for death in seat.scoreboard.dead()] == [DEAD]
            began_at = time.monotonic()
            await keeper.work()
            assert time.monotonic() - began_at < 0.4  # it does not wait for it again
            somebody.rollback()
        await keeper.work()

    with_janitor(seat, database.url, work, retries_max=0)
    assert owners(database) == [None] * 4
    assert seat.scoreboard.dead() == []
    crashes = database.fetch("SELECT reconcile_crashes FROM app.payment_requests ORDER BY id")
    assert crashes == [(1,), (0,), (0,), (1,)]


def test_a_cursor_that_somebody_has_locked_keeps_no_request(database: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail (the request is not free) when the scan lease is waited for."""
    monkeypatch.setattr(janitor, "RETRY_SECONDS_MIN", 0.0)
    seat = new_seat()
    leased(database, f"host-0#{DEAD}")
    database.execute(
        "INSERT INTO app.chain_cursors (chain, network, chain_id, genesis_hash, tip_hash, next_height, tail_start,"
        " scan_lease_owner, scan_lease_until) "
        "VALUES ('ethereum', 'local', 1, '0x0', '0x0', 0, 0, %s, now() + interval '1 h')",
        [f"host-0#{DEAD}"],
    )
    die(seat)

    async def work(keeper: Janitor) -> None:
        with database.connect(autocommit=False) as somebody:
            somebody.execute("SELECT FROM app.chain_cursors FOR UPDATE")
            await keeper.work()
            assert owners(database) == [None]
            assert len(seat.scoreboard.dead()) == 1
            somebody.rollback()
        await keeper.work()

    with_janitor(seat, database.url, work, retries_max=0)
    assert database.fetch("SELECT scan_lease_owner FROM app.chain_cursors") == [(None,)]
    assert seat.scoreboard.dead() == []


def test_more_rows_that_nobody_may_write_than_one_try_can_find(
    database: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on where it was, and comes to the end. Seen to fail when it begins anew each time."""
    monkeypatch.setattr(janitor, "RETRY_SECONDS_MIN", 0.0)
    monkeypatch.setattr(burial, "TRIES_MAX", 6)
    seat = new_seat()
    rows = [leased(database, f"host-0#{DEAD}") for _ in range(9)]
    die(seat)
    database.execute(
        "ALTER TABLE app.payment_requests ADD CONSTRAINT theirs"
        f" CHECK (id NOT IN ({', '.join(repr(id_) for id_ in rows[:7])})) NOT VALID"
    )
    with_janitor(seat, database.url, _until_nobody_is_left(seat))
    assert owners(database) == [f"host-0#{DEAD}"] * 7 + [None] * 2
    assert seat.scoreboard.dead() == []


def _until_nobody_is_left(seat: Seat) -> Callable[[Janitor], Awaitable[None]]:
    async def work(keeper: Janitor) -> None:
        for _ in range(20):
            await keeper.work()
            if not seat.scoreboard.dead():
                return

    return work


@pytest.mark.direct
@pytest.mark.parametrize("what", ["all", "refused"])
def test_a_monitor_that_is_killed_at_any_statement_of_a_burial_loses_nobody(database: Fresh, what: str) -> None:
    """The next one finishes it, and no row is charged twice. Seen to fail when the note is crossed out first."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.mortal_janitor", database.url, what],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [json.loads(line.removeprefix("SAID ")) for line in done.stdout.splitlines() if line.startswith("SAID ")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(said) > (10 if what == "refused" else 5)
    for each in said:
        assert each["dead"], each
        assert each["left"] == 0, each
        rows = [["row-0", False, 0], ["row-1", False, 1], ["row-2", False, 0]]
        assert each["rows"] == [["refused", True, 0]] * (what == "refused") + rows, each


def test_a_sweep_leaves_out_only_what_is_locked_or_refused(
    database: Fresh, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page by page. Seen to fail (nothing is swept) when one statement is all there is."""
    monkeypatch.setattr(burial, "ROWS_MAX", 2)
    with database.connect() as connection:
        rows = [insert_request(connection, next_reconcile_at=None) for _ in range(7)]
    _refuse(database, rows[1])
    seat = new_seat()

    async def work(keeper: Janitor) -> None:
        keeper._sweep_at = 0.0
        with database.connect(autocommit=False) as somebody:
            somebody.execute("SELECT FROM app.payment_requests WHERE id = %s FOR UPDATE", [rows[4]])
            for _ in range(10):
                await keeper.work()
                if keeper._sweep_at > time.monotonic():
                    break

    with_janitor(seat, database.url, work, retries_max=0)
    left = database.fetch("SELECT id FROM app.payment_requests WHERE next_reconcile_at IS NULL ORDER BY id")
    assert left == [(rows[1],), (rows[4],)]
    said = capfd.readouterr().out
    assert rows[1] in next(line for line in said.splitlines() if "requests_not_swept" in line)
    assert "requests=5" in next(line for line in said.splitlines() if "requests_swept" in line)


def test_a_large_sweep_lets_the_dead_in_between(database: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail when the whole sweep is one turn."""
    monkeypatch.setattr(leases, "SWEEP_ROWS", 2)
    monkeypatch.setattr(janitor, "SWEEP_ROWS", 2)
    with database.connect() as connection:
        for _ in range(5):
            insert_request(connection, next_reconcile_at=None)
    seat = new_seat()

    async def work(keeper: Janitor) -> None:
        keeper._sweep_at = 0.0
        assert await keeper.work() == 0
        leased(database, f"host-0#{DEAD}")
        die(seat)
        assert await keeper.work() == 0
        assert seat.scoreboard.dead() == []
        await keeper.work()

    with_janitor(seat, database.url, work)
    assert database.fetch("SELECT count(*) FROM app.payment_requests WHERE next_reconcile_at IS NULL") == [(0,)]


def _refuse(database: Fresh, id_: str) -> None:
    """Let PostgreSQL refuse every UPDATE of a row, as a check does that the row broke before it was made."""
    database.execute(f"ALTER TABLE app.payment_requests ADD CONSTRAINT theirs CHECK (id <> '{id_}') NOT VALID")
