"""Walking back over many blocks: how often the endpoint is asked, and that the scan lease lasts that long."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from reconsup.demo.anvil import Anvil
from reconsup.store import cursor as cursors
from reconsup.worker import scanner as scanner_module
from tests.support.desk import Shop, open_shop
from tests.support.postgres import Database
from tests.support.proxy import Proxy
from tests.worker.conftest import everything

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def slow() -> Iterator[Anvil]:
    """A chain that calls nothing final for two thousand blocks."""
    with Anvil(options=["--slots-in-an-epoch", "1000"]) as anvil:
        yield anvil


@pytest.fixture
def anvil(slow: Anvil) -> Iterator[Anvil]:
    snapshot = slow.rpc("evm_snapshot")
    yield slow
    assert slow.rpc("evm_revert", snapshot) is True


async def orphaned(shop: Shop, depth: int) -> None:
    """Scan, then replace so many blocks."""
    while shop.scanned() < await shop.chain.height():
        await shop.desk.scan()
    await shop.chain.reorg(depth)


@pytest.mark.parametrize(("depth", "requests", "calls"), [(1, 6, 13), (500, 11, 620)])
def test_a_walk_back_costs_few_requests(
    database: Database, anvil: Anvil, proxy: Proxy, depth: int, requests: int, calls: int
) -> None:
    """All that one turn asks: head, the block that does not hang, who it is, and the headers down to the fork.

    One by one they were 509 requests at a depth of 500, and at a depth of 1 as many as now.
    """

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=510, tail_blocks=1024) as shop:
            await shop.desk.scan()
            await orphaned(shop, depth)
            await shop.chain.mine()
            proxy.requests.clear()
            assert await shop.desk.scanner.turn() == 0
            assert shop.scanned() == 510 - depth
            assert len(proxy.requests) <= requests
            assert sum(map(len, proxy.requests)) <= calls
            await shop.desk.scan()
            assert shop.scanned() == 511

    asyncio.run(run())


class Hours:
    """The scanner's clock; it shows a third of a lease more after each look of the walk at what it was given."""

    time = scanner_module.time.time

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def monotonic(self) -> float:
        return scanner_module_time() + self.ahead_seconds


scanner_module_time = scanner_module.time.monotonic


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_walk_that_makes_headway_keeps_the_lease_for_as_long_as_it_takes(
    database: Database, anvil: Anvil, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    """Each batch takes a third of a lease. And once somebody else has the lease the walk ends, and writes nothing.

    Seen to fail (the lease ended on the way, and another began the same walk) without the renewal.
    """
    hours = Hours()
    monkeypatch.setattr(scanner_module, "time", hours)

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=510, tail_blocks=1024) as shop:
            await shop.desk.scan()
            await orphaned(shop, 500)
            renewed: list[bool] = []

            async def renew(*given: Any, **figures: Any) -> bool:
                if is_taken and len(renewed) == 2:
                    given_away = "scan_lease_owner = 'other', scan_lease_epoch = scan_lease_epoch + 1"
                    shop.outsider.execute(f"UPDATE app.chain_cursors SET {given_away}")
                renewed.append(await genuine(*given, **figures))
                return renewed[-1]

            genuine = cursors.renew
            monkeypatch.setattr(cursors, "renew", renew)
            proxy.spoil = lambda _, answers: (_pass(hours, shop), answers)[1]
            before = everything(database)
            seconds = await shop.desk.scanner.turn()
            if is_taken:
                assert renewed == [True, True, False]
                assert everything(database) == before
                assert shop.cursor()["scan_lease_owner"] == "other"
            else:
                assert seconds == 0
                assert renewed == [True] * 7
                assert shop.scanned() == 10
                assert shop.cursor()["scan_lease_owner"] == shop.desk.owner

    asyncio.run(run())


def _pass(hours: Hours, shop: Shop) -> None:
    hours.ahead_seconds += shop.desk.watch.lease_seconds / 3
