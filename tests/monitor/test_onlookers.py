"""What people look at is asked for while they look, once for all of them, and never otherwise."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from reconsup.monitor import watch
from reconsup.monitor.onlookers import FAILED_SECONDS, Onlookers
from reconsup.monitor.watch import Watch
from reconsup.payments.request import Network
from reconsup.store import recent
from tests.monitor.test_status import known
from tests.monitor.test_watch import HOST
from tests.support.postgres import Database as Fresh
from tests.support.stepped import Stepped

pytestmark = pytest.mark.service


class Awaited(Onlookers):
    """It says when the watch, at rest between its looks, began to wait for somebody."""

    is_awaited = False

    async def due(self) -> None:
        self.is_awaited = True
        await super().due()


def watched(database: Fresh, pause: float, work: Callable[[Onlookers, Stepped], Awaitable[None]]) -> None:
    """Let a watch run, which looks by itself once and then rests."""

    async def run() -> None:
        onlookers = Awaited(pause)
        async with Stepped(database.url, name="reconsup/watch") as connected:
            each = Watch(connected, [Network("ethereum", "local")], HOST, known(), seconds=30.0, onlookers=onlookers)
            running = asyncio.create_task(each.run())
            await until(lambda: onlookers.is_awaited)
            try:
                await work(onlookers, connected)
            finally:
                running.cancel()
                await asyncio.wait([running])

    asyncio.run(run())


def count(database: Stepped, part: str) -> int:
    return sum(part in sent for sent in database.sent)


def histories(database: Stepped) -> int:
    return count(database, "payment_request_transitions")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the database's own record of what it sent rings no bell
            await asyncio.sleep(0.01)


def test_while_nobody_looks_nothing_is_asked_and_who_comes_is_told_at_once(database: Fresh) -> None:
    """Seen to fail when the watch reads the history at each of its looks."""

    async def work(onlookers: Onlookers, connected: Stepped) -> None:
        assert histories(connected) == 0
        began = time.monotonic()
        await onlookers.look(is_worth_waiting=True)
        assert time.monotonic() - began < watch.POLL_SECONDS_MAX
        assert onlookers.recent is not None
        assert histories(connected) == 1

    watched(database, 0.3, work)


def test_a_hundred_who_look_all_the_time_cost_one_statement_every_few_seconds(database: Fresh) -> None:
    """Seen to fail without the pause."""

    async def work(onlookers: Onlookers, connected: Stepped) -> None:
        began = time.monotonic()
        while (spent := time.monotonic() - began) < 1.0:
            await asyncio.gather(*(onlookers.look(is_worth_waiting=True) for _ in range(100)))
            await asyncio.sleep(0.01)
        assert 2 <= histories(connected) <= 1 + spent / 0.3
        asked = histories(connected)
        await asyncio.sleep(0.4)  # the last look of all was answered; now nobody looks
        assert histories(connected) <= asked + 1

    watched(database, 0.3, work)


def test_a_history_that_cannot_be_read_is_told_with_its_reason_and_left_alone_for_a_while(database: Fresh) -> None:
    """Somebody holds the table. Seen to fail without the statement's own time-out: the watch waits for the lock."""
    with database.connect(autocommit=False) as blocker, capture_logs() as logs:
        blocker.execute("LOCK TABLE app.payment_request_transitions")

        async def work(onlookers: Onlookers, connected: Stepped) -> None:
            began = time.monotonic()
            await onlookers.look(is_worth_waiting=True)
            await until(lambda: onlookers.problem)
            assert time.monotonic() - began < recent.SECONDS_MAX + 1
            assert onlookers.recent is None
            for _ in range(3):
                await onlookers.look(is_worth_waiting=True)
                await asyncio.sleep(0.1)
            assert histories(connected) == 1

        watched(database, 0.05, work)
    assert [log["again_seconds"] for log in logs if log["event"] == "history_not_read"] == [FAILED_SECONDS]
    assert not [log for log in logs if log["event"] == "database_away"]
