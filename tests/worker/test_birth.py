"""Where reading begins, and that whoever waited for it is woken."""

import asyncio

import pytest
from structlog.testing import capture_logs

from reconsup.demo.anvil import Anvil
from tests.support.desk import Desk, open_shop
from tests.support.postgres import Database
from tests.support.proxy import Answers, Proxy
from tests.worker.conftest import NUMBER

pytestmark = pytest.mark.service


@pytest.mark.parametrize(("blocks", "first"), [(100, 36), (64, 0), (3, 0)])
def test_reading_begins_a_tail_below_the_head_and_no_lower_than_the_chain(
    database: Database, anvil: Anvil, blocks: int, first: int
) -> None:
    async def run() -> None:
        async with open_shop(database, anvil, blocks=blocks, tail_blocks=64) as shop:
            await shop.desk.scan()
            cursor = shop.cursor()
            genesis = anvil.rpc(NUMBER, "0x0", False)
            assert (cursor["chain_id"], cursor["genesis_hash"]) == (31337, genesis["hash"])
            assert (cursor["tail_start"], shop.scanned()) == (first, blocks)
            ((lowest, parent),) = database.fetch("SELECT height, parent_hash FROM app.chain_blocks ORDER BY 1 LIMIT 1")
            below = anvil.rpc(NUMBER, hex(first - 1), False)["hash"] if first else "0x" + "0" * 64
            assert (lowest, parent) == (first, below)

    asyncio.run(run())


def test_nothing_is_born_while_the_block_below_is_not_there(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=10, tail_blocks=5) as shop:

            def spoil(requests: Answers, answers: Answers) -> Answers:
                is_parent = requests[0]["params"][:1] == ["0x4"]
                return [answers[0] | {"result": None}] if is_parent else answers

            proxy.spoil = spoil
            for _ in range(2):
                assert await shop.desk.scanner.turn() > 0
            assert database.fetch("SELECT 1 FROM app.chain_cursors") == []
            proxy.spoil = None
            await shop.desk.scan()
            assert shop.scanned() == 10

    asyncio.run(run())


def test_the_workers_are_woken_when_there_is_something_to_decide(database: Database, anvil: Anvil) -> None:
    """When the network is served, and at the first block of a chain that is read from its start.

    Seen to fail (one ring) without the ring at the first commit.
    """

    async def run() -> None:
        async with open_shop(database, anvil, blocks=5) as shop:
            id_ = await shop.request()
            await shop.desk.look()
            assert shop.row(id_)["reconcile_lease_epoch"] == 0
            rings = shop.desk.bell.rings
            await shop.desk.scan()
            assert shop.desk.bell.rings == rings + 2
            await shop.chain.mine()
            await shop.desk.scan()
            assert shop.desk.bell.rings == rings + 2  # nothing for anybody in it
            await shop.desk.look()
            assert shop.row(id_)["reconcile_lease_epoch"] == 1

    asyncio.run(run())


def test_a_cursor_is_born_once_however_many_see_that_there_is_none(database: Database, anvil: Anvil) -> None:
    """And told once. Seen to fail (four births told) when whoever saw that there is none tells."""

    async def run() -> None:
        async with open_shop(database, anvil, blocks=5) as shop:
            others = [Desk(database, anvil.url, slot=slot) for slot in (1, 2, 3)]
            async with others[0], others[1], others[2]:
                desks = [shop.desk, *others]
                with capture_logs() as log:
                    await asyncio.gather(*(desk.scanner.turn() for desk in desks))
                assert [line["event"] for line in log].count("cursor_born") == 1
                assert all(desk.scanner.is_served for desk in desks)
                assert shop.cursor()["scan_lease_epoch"] == 1
                assert shop.scanned() == 5

    asyncio.run(run())
