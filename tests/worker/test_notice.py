"""How fast money is noticed: from the block that brought it, by the database's clock, once a request."""

import asyncio
from datetime import timedelta

import pytest

from reconsup.demo.anvil import Anvil
from reconsup.monitor import metrics
from tests.support.desk import ETHER, open_shop
from tests.support.postgres import Database

pytestmark = pytest.mark.service


def test_a_payment_s_notice_is_measured_once_from_its_block(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the confirmation after it nor a reorg measures it again. Seen to fail when every transition is measured.

    The block is ten minutes old by the database's clock, as after an outage.
    """
    seen: list[tuple[float, str]] = []
    monkeypatch.setattr(metrics.NOTICE_SECONDS, "observe", lambda seconds, network: seen.append((seconds, network)))

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.desk.work()
            await shop.pay(id_)
            paid_at = await shop.now()
            database.execute(
                "UPDATE app.payment_requests SET created_at = created_at - interval '1 hour' WHERE id = %s", [id_]
            )
            await shop.desk.work()
            (entry,) = shop.entries(id_)
            ((seconds, network),) = seen
            expected = (entry["created_at"] - paid_at).total_seconds()
            assert network == "local"
            assert expected - 5 <= seconds <= expected + 5
            await shop.chain.mine()
            await shop.desk.work()
            assert shop.reasons(id_) == ["payment_detected", "payment_confirmed"]
            assert len(seen) == 1

    asyncio.run(run())


def test_a_request_that_came_after_its_payment_is_measured_from_the_request(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could have noticed it before. Seen to fail (600 s) without the look at the request's own time."""
    seen: list[float] = []
    monkeypatch.setattr(metrics.NOTICE_SECONDS, "observe", lambda seconds, _: seen.append(seconds))

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            head = await shop.now()
            address = "0x" + "cd" * 20
            await shop.chain.set_next_block_time(int(head.timestamp()) + 1)
            await shop.chain.send(address, ETHER)
            await shop.chain.mine()
            created_at = head + timedelta(minutes=10)
            await shop.request(address_canonical=address, created_at=created_at)
            await shop.chain.set_next_block_time(int(created_at.timestamp()) + 1)
            await shop.chain.mine()
            await shop.desk.work()
            ((now,),) = database.fetch("SELECT now()")
            assert len(seen) == 1
            assert seen[0] <= (now - created_at).total_seconds()

    asyncio.run(run())
