"""From a block mined to the status committed, with the real program: a poll of a second, and the shortest sensible one.

Each payment is mined at a moment that has nothing to do with the polls. Measured is until the row says `confirmed` to
another connection that looks every two milliseconds (one confirmation is asked for). The calls a second beside it are
what the poll costs: each is one HTTP request for three small headers.
"""

import asyncio
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from reconsup.demo.anvil import Anvil
from reconsup.demo.devchain import DevChain
from reconsup.store import migrate
from tests.bench import stage
from tests.support.postgres import insert_request
from tests.support.program import Program

POLLS_SECONDS = (1.0, 0.05)  # below that a poll takes longer than the wait for it
PAYMENTS = 200
LOOK_SECONDS = 0.002
GIVE_UP_SECONDS = 20.0


def _wait_confirmed(connection: psycopg.Connection[Any], id_: str) -> float:
    """Milliseconds until the row says so."""
    started = time.monotonic()
    query = "SELECT status FROM app.payment_requests WHERE id = %s"
    while connection.execute(query, [id_]).fetchall() != [("confirmed",)]:
        assert time.monotonic() - started < GIVE_UP_SECONDS
        time.sleep(LOOK_SECONDS)
    return (time.monotonic() - started) * 1000


async def _payments(program: Program, connection: psycopg.Connection[Any], anvil: Anvil, poll: float) -> dict[str, Any]:
    chance = random.Random(poll)
    found = []
    async with DevChain(anvil.url) as chain:
        await chain.mine()
        calls, started = program.metric("reconsup_rpc_requests_total"), time.monotonic()
        for number in range(PAYMENTS):
            address = f"0x{0xFEED << 64 | number << 8 | int(poll):040x}"
            id_ = insert_request(connection, address_canonical=address, expected_amount_minor=1)
            await chain.send(address, 1)
            await asyncio.sleep(0.1 + chance.random() * poll)
            await chain.mine()
            found.append(_wait_confirmed(connection, id_))
        calls = program.metric("reconsup_rpc_requests_total") - calls
        per_second = calls / (time.monotonic() - started)
    figures = {"median ms": stage.median(found), "p99 ms": stage.percentile(found, 0.99)}
    return {"poll s": poll, "payments": PAYMENTS} | figures | {"RPC calls/s": per_second}


def measure(_: str) -> list[dict[str, Any]]:
    """One program for each poll."""
    found = []
    for poll in POLLS_SECONDS:
        # a database of its own for each: the first one's payments are not the second one's business
        with (
            tempfile.TemporaryDirectory(prefix="reconsup-bench-") as folder,
            stage.postgres() as url,
            Anvil(block_seconds=0) as anvil,
            psycopg.connect(url, autocommit=True) as connection,
        ):
            migrate.upgrade(url, say=lambda _: None)
            connection.execute("TRUNCATE app.chain_cursors, app.chain_blocks")
            waits = {"PAYMENT_REQUEST_RECONCILER_POLL_INTERVAL_SECONDS": f"{poll:g}"}
            with Program(url, {"local": anvil.url}, workers=2, folder=Path(folder), **waits) as program:
                program.wait_ready()
                found.append(asyncio.run(_payments(program, connection, anvil, poll)))
    return found


def show(found: list[dict[str, Any]]) -> None:
    """For people."""
    stage.table("block mined → status committed", list(found[0]), [list(each.values()) for each in found])


if __name__ == "__main__":
    stage.main(measure, show)
