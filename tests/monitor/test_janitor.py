"""The dead give their leases back: at once, once, and however long the database was away."""

import asyncio
import os
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
from reconsup.store.database import Database
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
    seat: Seat, url: str, work: Callable[[Janitor], Awaitable[None]], *, sweep_seconds: float = 3600
) -> None:
    async def run() -> None:
        async with Database(url, application_name="reconsup/janitor", lease_seconds=3) as connected:
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


def test_while_the_database_is_away_it_asks_ever_more_rarely() -> None:
    seat = new_seat()
    die(seat)
    pauses = []

    async def work(keeper: Janitor) -> None:
        pauses.extend([await keeper.work() for _ in range(8)])

    with_janitor(seat, NOWHERE, work)

    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.4, janitor.RETRY_SECONDS_MAX)


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


def test_a_row_that_nobody_may_write_does_not_keep_the_janitor_from_the_next_dead(database: Fresh) -> None:
    """Nor does it end the monitor. Seen to fail (StoreRejected leaves the loop) when only absence is expected."""
    seat = new_seat()
    refused = leased(database, f"host-0#{DEAD}")
    leased(database, f"host-1#{LIVING}")
    die(seat, 0, DEAD)
    die(seat, 1, LIVING)
    _refuse(database, refused)
    with_janitor(seat, database.url, once)
    assert owners(database) == [f"host-0#{DEAD}", None]
    assert seat.scoreboard.dead() == []


def test_a_sweep_that_is_refused_does_not_end_the_monitor(database: Fresh, capfd: pytest.CaptureFixture[str]) -> None:
    """Seen to fail (StoreRejected leaves the loop) when only absence is expected."""
    with database.connect() as connection:
        _refuse(database, insert_request(connection, next_reconcile_at=None))
    with_janitor(new_seat(), database.url, once, sweep_seconds=0)
    assert "requests_not_swept" in capfd.readouterr().out


def _refuse(database: Fresh, id_: str) -> None:
    """Let PostgreSQL refuse every UPDATE of a row, as a check does that the row broke before it was made."""
    database.execute(f"ALTER TABLE app.payment_requests ADD CONSTRAINT theirs CHECK (id <> '{id_}') NOT VALID")
