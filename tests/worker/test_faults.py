"""Each way in which a node can lie or break, one by one: what an operator sees of it, and that it costs time only.

While the fault lasts nothing is stored and no status moves; the first good answer after it goes on. Random mixtures of
them all are in test_any_chain.py; what may be wrong with an answer in detail, in tests/chain.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs

from reconsup.chain import rpc
from reconsup.demo.anvil import Anvil
from tests.support import faults
from tests.support.desk import Shop, open_shop
from tests.support.faults import Fault, always
from tests.support.liar import Node, node_before
from tests.support.postgres import Database
from tests.worker.conftest import everything

pytestmark = pytest.mark.service

TURNS = 4


@dataclass(frozen=True, slots=True)
class Sight:
    """What an operator sees: a line of the log with these words in it, and how the calls are counted."""

    event: str
    words: str = ""
    outcome: str = "ok"


BEHIND = Sight("endpoint_behind")
FAILED = "scan_failed"
SIGHTS: dict[Fault, Sight] = {
    faults.lagging: BEHIND,
    faults.head_that_goes_back: BEHIND,
    faults.null_block: Sight(FAILED, "is behind: it does not have block 3"),
    faults.null_receipts: Sight(FAILED, "is behind: it has no receipts for block 3"),
    faults.null_receipt: Sight(FAILED, "is behind: it has no receipts for block 3"),
    faults.empty_receipts: Sight(FAILED, "block 3: 0 receipts for 2 transactions"),
    faults.receipt_removed: Sight(FAILED, "block 3: 1 receipts for 2 transactions"),
    faults.block_without_transactions: Sight(FAILED, "block 3: 2 receipts for 0 transactions"),
    faults.dropped_item: Sight(FAILED, "sent 2 answers to 3 calls", "inconsistent"),
    faults.doubled_item: Sight(FAILED, "sent 4 answers to 3 calls", "inconsistent"),
    faults.wrong_id: Sight(FAILED, "not one for each call's id", "inconsistent"),
    faults.swapped_ids: Sight(FAILED, "a block is not an object"),
    faults.throttled: Sight(FAILED, "is throttling us (HTTP 429)", "throttled"),
    faults.throttled_for_a_while: Sight(FAILED, "is throttling us (HTTP 429)", "throttled"),
    faults.range_refused: Sight(FAILED, "Try with this block range", "error"),
    faults.too_large: Sight(FAILED, "refuses a request of this size (HTTP 413)", "error"),
    faults.unavailable: Sight(FAILED, "answered HTTP 503", "error"),
    faults.truncated: Sight(FAILED, "closed the connection before its answer was complete", "error"),
    faults.endless: Sight(FAILED, "sent more than 1 MiB in one answer", "error"),
    faults.slow: Sight(FAILED, "did not answer within", "timeout"),
}


@asynccontextmanager
async def shop_behind(database: Database, anvil: Anvil, **figures: Any) -> AsyncIterator[tuple[Shop, Node]]:
    """A shop on a chain of two blocks, one of them the token's, behind a node that is honest so far."""
    async with (
        node_before(anvil.url, random=Random(1)) as node,
        open_shop(database, anvil, url=node.url, blocks=1, **figures) as shop,
    ):
        await shop.token()
        yield shop, node


@pytest.fixture(autouse=True)
def _small_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "ANSWER_BYTES_MAX", 2**20)


async def two_paid(shop: Shop) -> list[str]:
    """Two requests, seen and then paid in one block, in coins and in tokens."""
    ids = [await shop.request(), await shop.token_request()]
    await shop.desk.work()
    await shop.pay(ids[0], to_mine=0)
    await shop.pay(ids[1], to_mine=1)
    return ids


def lines(logs: list[Any], event: str) -> Iterator[str]:
    """What the lines of an event say."""
    return (str(line.get("error", "")) for line in logs if line["event"] == event)


@pytest.mark.parametrize("fault", SIGHTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_told_and_changes_nothing_and_the_next_good_answer_goes_on(
    database: Database, anvil: Anvil, fault: Fault
) -> None:
    async def run() -> None:
        seconds = 0.3 if fault is faults.slow else 5.0
        async with shop_behind(database, anvil, rpc_timeout_seconds=seconds) as (shop, node):
            ids = await two_paid(shop)
            before = everything(database)
            shop.desk.calls.clear()
            node.schedule = always(fault)
            with capture_logs() as logs:
                for _ in range(TURNS):
                    assert await shop.desk.scanner.turn() > 0
                    await shop.desk.look()
            assert everything(database) == before
            assert fault.__name__ in node.applied
            assert any(SIGHTS[fault].words in line for line in lines(logs, SIGHTS[fault].event)), logs
            assert SIGHTS[fault].outcome in {outcome for _, outcome in shop.desk.calls}
            await _goes_on(shop, node, ids)

    asyncio.run(run())


async def _goes_on(shop: Shop, node: Node, ids: list[str]) -> None:
    node.schedule = None
    await shop.chain.mine()
    await shop.desk.work()
    assert [shop.reasons(id_) for id_ in ids] == [["payment_confirmed"]] * len(ids)


def test_answers_in_another_order_are_no_fault(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with shop_behind(database, anvil) as (shop, node):
            ids = await two_paid(shop)
            await shop.chain.mine()
            node.schedule = always(faults.reordered_items)
            with capture_logs() as logs:
                await shop.desk.work()
            assert faults.reordered_items.__name__ in node.applied
            assert list(lines(logs, FAILED)) == []
            await _goes_on(shop, node, ids)

    asyncio.run(run())


def test_a_parent_that_is_not_there_proves_no_reorg(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with shop_behind(database, anvil) as (shop, node):
            ids = await two_paid(shop)
            await shop.chain.mine()
            await shop.desk.work()
            await shop.chain.mine(3)
            await shop.desk.scan()
            await shop.chain.reorg(2)
            before = everything(database)
            node.schedule = always(faults.null_parent)
            with capture_logs() as logs:
                assert await shop.desk.scanner.turn() > 0
            assert any("does not have block" in line for line in lines(logs, FAILED)), logs
            assert everything(database) == before
            await _goes_on(shop, node, ids)

    asyncio.run(run())


def test_the_node_of_another_chain_is_alarmed_and_not_listened_to(database: Database, anvil: Anvil) -> None:
    """The chain id is asked again after each failure: who answers next may be another."""

    async def run() -> None:
        async with shop_behind(database, anvil) as (shop, node):
            ids = await two_paid(shop)
            before = everything(database)
            node.schedule = always(faults.unavailable)
            await shop.desk.scanner.turn()
            node.schedule = always(faults.wrong_chain_id)
            with capture_logs() as logs:
                for _ in range(TURNS):
                    assert await shop.desk.scanner.turn() > 0
                    await shop.desk.look()
            (alarm,) = [line for line in logs if line["event"] == "wrong_chain"]
            assert (alarm["log_level"], alarm["chain_id"], alarm["expected_chain_id"]) == ("error", 1, 31337)
            assert "PAYMENT_REQUEST_EVM_RPC_URLS_JSON" in alarm["todo"]
            assert everything(database) == before
            await _goes_on(shop, node, ids)

    asyncio.run(run())


@pytest.mark.parametrize("fault", [faults.other_fork, faults.torn_between_forks], ids=lambda fault: fault.__name__)
def test_a_fork_that_is_behind_or_torn_proves_nothing(database: Database, fault: Fault) -> None:
    """Two nodes of one genesis behind one address; the second one's fork ends below our tip."""

    async def run(anvil: Anvil, other: Anvil) -> None:
        async with (
            node_before(anvil.url, other.url) as node,
            open_shop(database, anvil, url=node.url, blocks=4) as shop,
        ):
            other.rpc("anvil_mine", "0x4", "0x3")
            ids = await two_paid(shop)
            await shop.chain.mine()
            await shop.desk.work()
            await shop.chain.mine()
            before = everything(database)
            node.schedule = always(fault)
            with capture_logs() as logs:
                for _ in range(TURNS):
                    assert await shop.desk.scanner.turn() > 0
                    await shop.desk.look()
            assert [line["event"] for line in logs if line["event"] in (BEHIND.event, FAILED)], logs
            assert everything(database) == before
            await _goes_on(shop, node, ids)

    with ExitStack() as stack:
        options = ("--timestamp", "1800000000")
        anvils = [stack.enter_context(Anvil(block_seconds=0, options=options)) for _ in range(2)]
        asyncio.run(run(*anvils))
