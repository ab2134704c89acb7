"""A stream of requests, paid on a real chain, that goes on while a test makes trouble; and what must be true after it.

The payment service does not lose a request because the database was away: it tries again until its row is in.
"""

import asyncio
import contextlib
import os
import threading
from pathlib import Path
from typing import Any, Self

import psycopg

from reconsup.demo.devchain import DevChain
from tests.story.conftest import Town
from tests.support.postgres import request_row, request_statement
from tests.support.program import Program, wait_for

PAY_SECONDS = 0.05
UNPAID_EVERY = 5


class Stream:
    """Inside the `with`, a request a moment is made, and most are paid, until `stop`. Then `settle` judges."""

    def __init__(self, town: Town) -> None:
        self.paid: list[str] = []
        self.unpaid: list[str] = []
        self._town = town
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No more requests, no more payments."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self._error:
            raise self._error

    def wait_for_more(self, count: int, seconds: float = 20.0) -> None:
        """Wait until so many more were paid: the trouble that follows meets a working program."""
        enough = len(self.paid) + count
        wait_for(f"{count} more are paid", lambda: self._error or len(self.paid) >= enough, seconds)

    def wait_until_confirmed(self, count: int, seconds: float = 30.0) -> None:
        """Wait until so many more are confirmed: it goes on."""
        enough = self._confirmed() + count
        wait_for(f"{count} more are confirmed", lambda: self._error or self._confirmed() >= enough, seconds)

    def _confirmed(self) -> int:
        return self._town.statuses().get("confirmed", 0)

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            self._error = error

    async def _live(self) -> None:
        number = 0
        async with DevChain(self._town.anvil.url) as chain:
            while not self._stop.is_set():
                row = request_row(**self._town.asset(number))
                await self._insert(row)
                number += 1
                if number % UNPAID_EVERY == 0:
                    self.unpaid.append(row["id"])
                    continue
                if row["token_contract"]:
                    await chain.send_token(
                        row["token_contract"], row["address_canonical"], row["expected_amount_minor"]
                    )
                else:
                    await chain.send(row["address_canonical"], row["expected_amount_minor"])
                await chain.mine(1)
                self.paid.append(row["id"])
                await asyncio.sleep(PAY_SECONDS)

    async def _insert(self, row: dict[str, Any]) -> None:
        while True:
            try:
                with self._town.database.connect(connect_timeout=2) as connection:
                    connection.execute(request_statement(row), row)
            except psycopg.errors.UniqueViolation:
                return  # the answer was lost, the row was not
            except psycopg.OperationalError:
                await asyncio.sleep(0.05)
            else:
                return


def settle(town: Town, stream: Stream, *programs: Program) -> None:
    """Nothing is wrong: exactly the paid are confirmed, once each; and after the drain nothing is left behind."""
    stream.stop()
    town.mine(2)
    confirmed = len(stream.paid)
    wait_for("all paid are confirmed", lambda: town.statuses().get("confirmed") == confirmed, 60)
    pids = [pid for program in programs for pid in _family(program.process.pid)]
    assert [program.stop() for program in programs] == [0] * len(programs)
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    statuses = dict(town.database.fetch("SELECT id, status FROM app.payment_requests"))
    assert statuses == dict.fromkeys(stream.paid, "confirmed") | dict.fromkeys(stream.unpaid, "pending")
    told = town.database.fetch(
        "SELECT payment_request_id, count(*) FROM app.payment_request_transitions"
        " WHERE reason = 'payment_confirmed' GROUP BY 1"
    )
    assert dict(told) == dict.fromkeys(stream.paid, 1)
    others = "SELECT reason FROM app.payment_request_transitions WHERE reason <> 'payment_confirmed'"
    assert {reason for (reason,) in town.database.fetch(others)} <= {"payment_detected"}
    settled = "SELECT payment_request_id, count(*) FROM app.payment_request_settlements WHERE is_canonical GROUP BY 1"
    assert dict(town.database.fetch(settled)) == dict.fromkeys(stream.paid, 1)
    assert town.leases() == []
    assert town.database.fetch("SELECT scan_lease_owner FROM app.chain_cursors") == [(None,)]


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def backends(town: Town) -> dict[str, list[int]]:
    """The server's processes that serve reconsup, by application_name."""
    found: dict[str, list[int]] = {}
    query = "SELECT application_name, pid FROM pg_stat_activity WHERE application_name LIKE 'reconsup/%%'"
    for name, pid in town.database.fetch(query, []):
        found.setdefault(str(name), []).append(int(pid))
    return found


def kill(pid: int, number: int) -> None:
    """Send a signal to a process that this test started, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
