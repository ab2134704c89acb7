"""Endpoints that show another chain than the one we read: not served, and no reason to take anything back."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from reconsup.demo.anvil import Anvil
from tests.support.desk import Desk, open_shop
from tests.support.postgres import Database
from tests.support.proxy import Proxy, Reply, proxy_before
from tests.worker.conftest import everything

pytestmark = pytest.mark.service


@contextmanager
def other_chain(chain_id: int) -> Iterator[Anvil]:
    with Anvil(chain_id=chain_id, options=["--timestamp", "1700000000"]) as anvil:
        yield anvil


@pytest.mark.parametrize("chain_id", [11155111, 31337])
def test_an_endpoint_of_another_chain_is_not_served_until_it_is_put_right(
    database: Database, anvil: Anvil, chain_id: int
) -> None:
    """With another chain id, and with the same one on another first block.

    Seen to fail when the cursor is taken without comparing; and (rows claimed) when a network is served before its
    endpoint has shown who it is.
    """

    async def run(proxy: Proxy, other: Anvil) -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.desk.work()
            await shop.desk.scanner._stand_back()
            await shop.pay(id_, to_mine=2)
            shop.make_due()
            before = everything(database)
            proxy._upstream = other.url
            async with Desk(database, proxy.url, slot=1) as wrong:
                for _ in range(3):
                    await wrong.look()
                    assert await wrong.scanner.turn() > 0
                    assert not wrong.scanner.is_served
                assert everything(database) == before
                assert shop.cursor()["scan_lease_owner"] is None
                proxy._upstream = anvil.url
                rings = wrong.bell.rings
                await wrong.work()
                assert wrong.bell.rings > rings
                assert shop.status(id_) == "confirmed"

    with other_chain(chain_id) as other, proxy_before(anvil.url) as proxy:
        asyncio.run(run(proxy, other))


@pytest.mark.parametrize(("chain_id", "with_outage"), [(11155111, False), (31337, False), (31337, True)])
def test_an_endpoint_that_becomes_another_chain_takes_nothing_back(
    database: Database, anvil: Anvil, chain_id: int, with_outage: bool
) -> None:
    """Its blocks have nothing in common with ours, but that is no reorg.

    Seen to fail (network stopped) when a walk back begins without asking who the endpoint is, and (served) when
    nobody asks again after an outage.
    """

    async def run(proxy: Proxy, other: Anvil) -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=5) as shop:
            id_ = await shop.request()
            await shop.pay(id_, to_mine=2)
            await shop.work()
            before = everything(database)
            if with_outage:  # then it is asked who it is, also where its head is lower than our tip
                proxy.spoil = lambda *_: Reply(status=503)
                await shop.desk.scanner.turn()
                proxy.spoil = None
            else:
                other.rpc("anvil_mine", 20)
            proxy._upstream = other.url
            for _ in range(3):
                assert await shop.desk.scanner.turn() > 0
                shop.make_due()
                await shop.desk.look()
            assert everything(database) == before
            assert not shop.desk.scanner.is_served
            assert shop.cursor()["scan_lease_owner"] is None
            proxy._upstream = anvil.url
            await shop.chain.mine()
            await shop.desk.work()
            assert shop.scanned() == await shop.chain.height()

    with other_chain(chain_id) as other, proxy_before(anvil.url) as proxy:
        asyncio.run(run(proxy, other))
