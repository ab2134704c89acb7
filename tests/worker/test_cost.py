"""What a block costs in HTTP requests, and how much is asked for at once."""

import asyncio

import pytest

from reconsup.demo.anvil import Anvil
from tests.support.desk import Desk, open_shop
from tests.support.postgres import Database
from tests.support.proxy import Answers, Proxy
from tests.worker.conftest import NUMBER, RECEIPTS, lagging

pytestmark = pytest.mark.service


def test_a_range_of_blocks_is_one_http_request(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    """And following the head one more; a poll that finds nothing new is one."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=100) as shop:
            id_ = await shop.request()
            await shop.pay(id_, to_mine=1)
            proxy.requests.clear()
            await shop.desk.scan()
            reads = [methods for methods in proxy.requests if RECEIPTS in methods]
            assert [len(methods) for methods in reads] == [100, 30]  # the tail: 50 blocks, then 15
            await shop.desk.work()  # and what is older than it, for the request
            proxy.requests.clear()
            await shop.desk.work()
            assert proxy.requests == [[NUMBER] * 3]
            proxy.requests.clear()
            await shop.chain.mine()
            await shop.desk.work()
            assert proxy.requests == [[NUMBER] * 3, [NUMBER, RECEIPTS]]

    asyncio.run(run())


def test_whoever_queues_for_the_scan_lease_asks_the_chain_nothing(
    database: Database, anvil: Anvil, proxy: Proxy
) -> None:
    """But once, who it is: then it may decide about what others have scanned."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop, Desk(database, proxy.url, slot=1) as queuing:
            id_ = await shop.request()
            await shop.pay(id_, to_mine=2)
            await shop.desk.scan()
            for _ in range(3):
                await queuing.scan()
            assert proxy.requests == [["eth_chainId", NUMBER]]
            await queuing.look()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_after_a_failure_less_is_asked_for_and_then_more_again(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    """A node that lags behind its own head gives what it has."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=40) as shop:
            real = lagging(30, anvil)

            def spoil(requests: Answers, answers: Answers) -> Answers:
                is_head = requests[0]["params"][:1] == ["latest"]
                return answers if is_head else real(requests, answers)

            await shop.desk.scanner.turn()
            assert shop.scanned() == 40
            await shop.chain.mine(40)
            proxy.spoil = spoil
            for _ in range(6):
                await shop.desk.scanner.turn()
            assert 44 <= shop.scanned() <= 50
            proxy.spoil = None
            await shop.desk.scan()
            assert shop.scanned() == 80

    asyncio.run(run())
