"""Janitors that die by SIGKILL in the midst of a burial, one before each statement, and the one that comes after them.

`python -m tests.support.mortal_janitor URL` prints a JSON line for each: before which statement it died, who was still
noted as dead then, and how all rows were after its successor. It forks, so it is a process of its own, with one thread.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from reconsup import logs
from reconsup.fleet.posix import MONITOR, Bell, Cause, Scoreboard, Seat
from reconsup.monitor.janitor import Janitor
from reconsup.store.database import Database
from tests.support import lease_history
from tests.support.freezer import Freezing
from tests.support.postgres import insert_request

ROWS = 3
REFUSED = "refused"
STATEMENTS_MAX = 40
TRIGGER = f"""
CREATE FUNCTION app.theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
CREATE TRIGGER theirs BEFORE UPDATE ON app.payment_requests FOR EACH ROW WHEN (OLD.id = '{REFUSED}')
EXECUTE FUNCTION app.theirs()
"""


class Dying(Freezing):
    """A Database that kills its own process before a statement."""

    def _step(self) -> None:
        self._seen += 1
        if self._seen == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def new_seat() -> Seat:
    """A supervisor's scoreboard, which outlives each janitor."""
    scoreboard = Scoreboard("host")
    scoreboard.open(pid=os.getpid(), boot_id="0" * 16, started_at=time.time(), version="1", slots=2)
    lifeline, _ = os.pipe()
    return Seat(MONITOR, "host", "0" * 16, scoreboard, Bell(), lifeline, Path(tempfile.gettempdir()))


def lease(connection: psycopg.Connection[Any], owner: str, *, id_: str) -> None:
    """A request that this owner holds for an hour."""
    until = datetime.now(UTC) + timedelta(hours=1)
    insert_request(
        connection, id=id_, reconcile_lease_owner=owner, reconcile_lease_until=until, next_reconcile_at=until
    )


def bury(seat: Seat, database: Database) -> None:
    """One round of a janitor's work."""

    async def work() -> None:
        async with database:
            await Janitor(seat, database, [], sweep_seconds=3600).work()

    asyncio.run(work())


def die_at(seat: Seat, url: str, statement: int, *, at_the_note: bool) -> bool:
    """Let a child bury, and die; False if it came to its end."""
    child = os.fork()
    if child == 0:
        if at_the_note:
            # it dies there, with everything committed
            seat.scoreboard.acknowledge = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        bury(seat, Dying(url, name="reconsup/mortal", lease_seconds=3, at=statement))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def main() -> None:
    url, has_refused = sys.argv[1], sys.argv[2] == "refused"
    logs.configure("json")
    seat = new_seat()
    statement, has_ended = 0, False
    with psycopg.connect(url, autocommit=True, options=lease_history.BY_HAND) as connection:
        if has_refused:
            connection.execute(TRIGGER)
        while not has_ended:
            statement += 1
            assert statement < STATEMENTS_MAX
            incarnation = f"{statement:016x}"
            owner = f"host-0#{incarnation}"
            connection.execute("DELETE FROM app.payment_requests")
            ids = [f"row-{number}" for number in range(ROWS)] + [REFUSED] * has_refused
            for id_ in ids:
                lease(connection, owner, id_=id_)
            seat.scoreboard.cell(0).set_incarnation(incarnation)
            seat.scoreboard.cell(0).set_row("row-1")
            seat.scoreboard.bury(0, Cause.SIGNAL)
            has_ended = not die_at(seat, url, statement, at_the_note=False)
            if has_ended:  # statement by statement, and then once between the last one and the note
                seat.scoreboard.bury(0, Cause.SIGNAL)
                assert die_at(seat, url, 0, at_the_note=True)
            dead = [death.incarnation for death in seat.scoreboard.dead()]
            bury(seat, Database(url, application_name="reconsup/next", lease_seconds=3))
            rows = connection.execute(
                "SELECT id, reconcile_lease_owner IS NOT NULL, reconcile_crashes FROM app.payment_requests ORDER BY id"
            ).fetchall()
            said = {"statement": statement, "dead": dead, "rows": rows, "left": len(seat.scoreboard.dead())}
            print("SAID " + json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
