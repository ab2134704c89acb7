"""Where the chain's own tags decide about depth: `safe` and `finalized`. One below the head here, and two."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from reconsup.demo.anvil import Anvil
from reconsup.payments.decision import Tag
from tests.support.desk import POLICY, open_shop
from tests.support.postgres import Database
from tests.support.proxy import proxy_before

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def tagged() -> Iterator[Anvil]:
    with Anvil(options=["--slots-in-an-epoch", "1"]) as anvil:
        yield anvil


@pytest.mark.parametrize(("tag", "expected"), [("safe", [1, 2]), ("finalized", [1, 1, 2])])
def test_a_payment_is_confirmed_when_the_tag_reaches_it(
    database: Database, tagged: Anvil, tag: Tag, expected: list[int]
) -> None:
    """By the touch that the advancing tag gives: nothing is made due by hand."""

    async def run() -> None:
        async with open_shop(database, tagged, policy=replace(POLICY, confirmations=tag)) as shop:
            id_ = await shop.request()
            await shop.pay(id_)
            seen = []
            for _ in expected:
                await shop.desk.work()
                seen.append(len(shop.reasons(id_)))
                await shop.chain.mine()
            assert seen == expected
            assert shop.reasons(id_) == ["payment_detected", "payment_confirmed"]

    asyncio.run(run())


def test_a_tag_that_moves_while_the_head_stands_still_confirms_too(database: Database, tagged: Anvil) -> None:
    """Seen to fail (detected) when a poll that finds our tip at the head does not write the tags."""

    async def run() -> None:
        with proxy_before(tagged.url) as proxy:
            policy = replace(POLICY, confirmations="finalized")
            async with open_shop(database, tagged, url=proxy.url, policy=policy) as shop:
                id_ = await shop.request()
                old = tagged.rpc("eth_getBlockByNumber", "finalized", False)
                await shop.pay(id_, to_mine=3)
                proxy.spoil = lambda requests, answers: [
                    {**answer, "result": old} if request["params"][:1] == ["finalized"] else answer
                    for request, answer in zip(requests, answers, strict=True)
                ]
                await shop.desk.work()
                assert shop.status(id_) == "detected"
                proxy.spoil = None
                await shop.desk.work()
                assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_a_tag_of_another_chain_than_ours_confirms_nothing(database: Database, tagged: Anvil) -> None:
    """The finalized block that is shown has another hash than the one we read at its height."""

    async def run() -> None:
        with proxy_before(tagged.url) as proxy:
            policy = replace(POLICY, confirmations="finalized")
            async with open_shop(database, tagged, url=proxy.url, policy=policy) as shop:
                id_ = await shop.request()
                await shop.desk.work()
                before = shop.cursor()["finalized_height"]
                await shop.pay(id_, to_mine=4)
                proxy.spoil = lambda requests, answers: [
                    {**answer, "result": answer["result"] | {"hash": "0x" + "5" * 64}}
                    if request["params"][:1] == ["finalized"]
                    else answer
                    for request, answer in zip(requests, answers, strict=True)
                ]
                await shop.desk.work()
                assert (shop.status(id_), shop.cursor()["finalized_height"]) == ("detected", before)

    asyncio.run(run())


def test_a_payment_that_left_the_tail_while_finality_stalls_is_not_confirmed(database: Database, tagged: Anvil) -> None:
    """Nobody can take it back any more without stopping the network; but the chain has not called it final.

    Seen to fail (confirmed) where what has left the tail counts as finalized.
    """

    async def run() -> None:
        with proxy_before(tagged.url) as proxy:
            policy = replace(POLICY, confirmations="finalized")
            async with open_shop(database, tagged, url=proxy.url, policy=policy) as shop:
                id_ = await shop.request()
                await shop.desk.work()
                old = tagged.rpc("eth_getBlockByNumber", "finalized", False)
                proxy.spoil = lambda requests, answers: [
                    {**answer, "result": old} if request["params"][:1] == ["finalized"] else answer
                    for request, answer in zip(requests, answers, strict=True)
                ]
                await shop.pay(id_, to_mine=0)
                await shop.chain.mine(160, 120)
                await shop.work()
                (settlement,) = shop.settlements(id_).values()
                cursor = shop.cursor()
                assert settlement["block_height"] < cursor["tail_start"] - 30
                assert cursor["finalized_height"] == cursor["tail_start"] - 1
                assert cursor["finalized_tag_height"] == int(old["number"], 16)
                await shop.chain.mine()
                await shop.desk.work()
                assert shop.status(id_) == "detected"
                proxy.spoil = None
                await shop.chain.mine()
                await shop.desk.work()
                assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_an_endpoint_without_tags_confirms_nothing_and_goes_on_scanning(database: Database, tagged: Anvil) -> None:
    async def run() -> None:
        with proxy_before(tagged.url) as proxy:
            policy = replace(POLICY, confirmations="safe")
            async with open_shop(database, tagged, url=proxy.url, policy=policy) as shop:
                proxy.spoil = lambda requests, answers: [
                    {"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32602, "message": "unknown tag"}}
                    if request["params"][:1] in (["safe"], ["finalized"])
                    else answer
                    for request, answer in zip(requests, answers, strict=True)
                ]
                id_ = await shop.request()
                await shop.pay(id_, to_mine=20)
                await shop.desk.work()
                assert shop.scanned() == await shop.chain.height()
                assert shop.status(id_) == "detected"

    asyncio.run(run())
