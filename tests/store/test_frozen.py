"""A process that is stopped (SIGSTOP, a paused virtual machine) in the middle of any transaction holds up nobody.

The others get its locks within its time-outs, nothing of it is written, and when it goes on it is told that its
connection is gone. Stopped before each transaction's COMMIT, where it holds most; before each of its statements in the
long run.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from reconsup.payments.request import Reason, Status
from reconsup.store import admission, leases
from reconsup.store import cursor as cursors
from reconsup.store.cursor import Tags
from reconsup.store.database import Database, Transaction
from reconsup.store.persist import persist
from tests.store import test_waits as waits
from tests.store.test_waits import IDS, Scene
from tests.support.freezer import Errand, Freezer
from tests.support.ledgers import (
    LEASE_SECONDS,
    NETWORK,
    SCANNER,
    Emptied,
    all_of,
    decided,
    everything,
    store,
)
from tests.support.stepped import until

pytestmark = [pytest.mark.service, pytest.mark.direct]

FROZEN_LEASE_SECONDS = 1.2  # so its idle time-out is 0.4 s
BOUND_SECONDS = FROZEN_LEASE_SECONDS / 3 + 1.0  # the second is for a busy machine


async def do_tell(scene: Scene, worker: Database) -> None:
    """A persist that also writes history, and hands one row back."""
    outcomes = all_of(scene.batch, decided(Status.DETECTED, Reason.DETECTED, seconds=9.0, amount_minor=1))
    del outcomes[IDS[0]]
    await persist(worker, scene.batch, outcomes, worker_id="w")


async def do_look_again(scene: Scene, worker: Database) -> None:
    await admission.look_again(worker, scene.batch)


async def do_repair(scene: Scene, worker: Database) -> None:
    await admission.repair(worker, scene.batch, IDS)


async def do_take(_: Scene, worker: Database) -> None:
    await cursors.take(worker, NETWORK, owner=SCANNER, lease_seconds=LEASE_SECONDS)


async def do_keep(scene: Scene, worker: Database) -> None:
    await cursors.keep(worker, scene.cursor, Tags(101), lease_seconds=LEASE_SECONDS, due_against="scanned")


async def do_release_scanner(_: Scene, worker: Database) -> None:
    await leases.release(worker, SCANNER)


async def do_bury_scanner(_: Scene, worker: Database) -> None:
    await leases.bury(worker, incarnation="0", owner=SCANNER, row=None)


# How many statements each sends, COMMIT among them. (A burial asks who is there, and ends ghosts, before it begins.)
STATEMENTS: dict[Callable[[Scene, Database], Awaitable[Any]], tuple[int, int]] = {
    waits.do_commit: (1, 9),
    waits.do_roll_back: (1, 6),
    waits.do_admit: (1, 4),
    do_look_again: (1, 3),
    do_repair: (1, 3),
    waits.do_persist: (1, 2),
    do_tell: (1, 4),
    waits.do_release: (1, 4),
    do_release_scanner: (1, 4),
    waits.do_bury: (3, 6),
    do_bury_scanner: (3, 6),
    do_take: (1, 2),
    do_keep: (1, 2),
}
AT_COMMIT = [(do, last) for do, (_, last) in STATEMENTS.items()]
EARLIER = [(do, at) for do, (first, last) in STATEMENTS.items() for at in range(first, last)]
EVERYTHING = """
SELECT 1 FROM (SELECT 1 FROM app.chain_cursors FOR UPDATE) AS a,
              (SELECT 1 FROM app.payment_requests ORDER BY id FOR UPDATE) AS b,
              (SELECT 1 FROM app.payment_request_settlements FOR UPDATE) AS c"""

IS_GONE = "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = %s)"


@pytest.fixture(scope="module")
def freezer() -> Iterator[Freezer]:
    with Freezer() as running:
        yield running


def name_of(value: object) -> str:
    return value.__name__[3:] if callable(value) else str(value)


@pytest.mark.parametrize(
    ("do", "at"), [*AT_COMMIT, *(pytest.param(*each, marks=pytest.mark.long) for each in EARLIER)], ids=name_of
)
def test_a_stopped_process_holds_up_nobody(
    emptied: Emptied, freezer: Freezer, do: Callable[[Scene, Database], Awaitable[Any]], at: int
) -> None:
    """Seen to fail (nobody gets its locks) without the idle time-out in BEGIN."""
    scene = Scene()

    async def story() -> str:
        await scene.set(emptied)
        if do is do_repair:
            emptied.execute("UPDATE app.payment_request_settlements SET is_canonical = false")
        before = everything(emptied)
        child = freezer.start(Errand(emptied.url, FROZEN_LEASE_SECONDS, do, scene, at))
        began = time.monotonic()
        try:
            async with store(emptied, "other", lease_seconds=9) as other:

                async def lock(transaction: Transaction) -> int:
                    return len(await transaction.rows(EVERYTHING))

                assert await other.transact(lock) > 0
            await until(emptied.url, IS_GONE, f"frozen-{child}")
            seconds = time.monotonic() - began
        finally:
            said = freezer.finish(child)
        assert everything(emptied) == before
        assert seconds < BOUND_SECONDS
        return said

    assert asyncio.run(story()).startswith("StoreUnavailable")
