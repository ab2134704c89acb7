"""A scan over two real nodes of one chain: fail-over, disagreement, and no status that only one of them supports."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from reconsup.demo.anvil import Anvil
from reconsup.monitor import metrics
from tests.support.desk import POLICY, Desk, Shop, open_shop
from tests.support.postgres import Database
from tests.support.proxy import Proxy, Reply, change
from tests.support.twin_nodes import Twins, away, twin_nodes
from tests.worker.conftest import NUMBER, RECEIPTS, everything
from tests.worker.test_proof import lie, unknown_type

pytestmark = pytest.mark.service

HEAD, WITNESS = [NUMBER] * 3, [NUMBER] * 2


@pytest.fixture
def twins() -> Iterator[Twins]:
    with twin_nodes() as running:
        yield running


def over(database: Database, twins: Twins, story: Callable[[Shop], Awaitable[object]], **figures: Any) -> None:
    """Run a story in a shop on the chain of a, whose desk speaks to both."""

    async def run() -> None:
        async with open_shop(database, twins.a, url=twins.urls, blocks=1, **figures) as shop:
            twins.follow()
            await story(shop)

    asyncio.run(run())


async def paid(shop: Shop, twins: Twins, blocks: int = 1) -> str:
    """A request that is paid in a block of both nodes."""
    id_ = await shop.request()
    await shop.desk.look()
    await shop.pay(id_, to_mine=blocks)
    twins.follow()
    return id_


def reads(proxy: Proxy) -> int:
    """How often blocks were read from a node."""
    return sum(RECEIPTS in methods for methods in proxy.requests)


# cost


def test_a_second_endpoint_costs_one_small_request_a_commit_and_none_while_nothing_is_new(
    database: Database, twins: Twins
) -> None:
    async def story(shop: Shop) -> None:
        await shop.desk.work()
        twins.clear()
        await shop.chain.mine()
        twins.follow()
        await shop.desk.work()
        assert twins.at_a.requests == [HEAD, [NUMBER, RECEIPTS]]
        assert twins.at_b.requests == [WITNESS]
        twins.clear()
        await shop.desk.work()
        assert (twins.at_a.requests, twins.at_b.requests) == ([HEAD], [])

    over(database, twins, story)


# fail-over

FAULTS = {
    "away": away,
    "a receipt is missing": change(RECEIPTS, lambda receipts: receipts[:-1]),
    "null receipts": change(RECEIPTS, lambda _: None),
    "throttling": lambda *_: Reply(429, headers={"Retry-After": "3600"}),
    "no JSON": lambda *_: Reply(body=b"<html>"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_payment_is_confirmed_through_the_other_endpoint_without_a_pause(
    database: Database, twins: Twins, fault: str
) -> None:
    """And where none gives the block whole, the status waits."""

    async def story(shop: Shop) -> None:
        await shop.desk.work()
        id_ = await paid(shop, twins, 2)
        before = everything(database)
        twins.at_a.spoil = twins.at_b.spoil = FAULTS[fault]
        for _ in range(3):
            await shop.desk.scan()
            await shop.desk.look()
        assert everything(database) == before
        shop.desk.skipped_seconds += 5000
        twins.at_b.spoil = None
        while await shop.desk.scanner.turn() == 0:
            pass
        await shop.desk.look()
        assert shop.status(id_) == "confirmed"

    over(database, twins, story)


def test_after_a_time_out_the_other_endpoint_is_asked_at_once(database: Database, twins: Twins) -> None:
    """Seen to fail (half a second's wait, then ever longer) without the question for another one in Scanner._failed."""

    async def story(shop: Shop) -> None:
        await shop.desk.work()
        id_ = await paid(shop, twins, 2)
        twins.at_a.delay_seconds = 2.0
        assert await shop.desk.scanner.turn() == 0
        await shop.desk.work()
        assert shop.status(id_) == "confirmed"

    over(database, twins, story, rpc_timeout_seconds=0.3)


def test_a_head_that_goes_back_is_left_for_the_other_endpoint(database: Database, twins: Twins) -> None:
    async def story(shop: Shop) -> None:
        await shop.chain.mine(3)
        twins.follow()
        await shop.desk.work()
        old = twins.a.rpc(NUMBER, "0x5", False)
        twins.at_a.spoil = change(NUMBER, lambda _: old)
        twins.b.rpc("anvil_mine", 1, 1)
        await shop.desk.scan()
        assert shop.scanned() == 10

    over(database, twins, story)


def test_an_endpoint_of_another_chain_beside_a_right_one_leaves_the_network_served(
    database: Database, twins: Twins
) -> None:
    """At the first start too, once the cursor is there."""

    async def story(shop: Shop) -> None:
        await shop.desk.work()
        with Anvil(chain_id=5, options=["--timestamp", "1600000000"]) as other:
            twins.at_a._upstream = other.url
            id_ = await shop.request()
            await shop.pay(id_, to_mine=2)
            twins.follow()
            async with Desk(database, twins.urls, slot=1) as second:
                for desk in (shop.desk, second):
                    await desk.scan()
                    assert desk.scanner.is_served
                await second.look()
            assert shop.status(id_) == "confirmed"

    over(database, twins, story)


def test_no_cursor_is_born_while_the_endpoints_show_different_chains(database: Database, twins: Twins) -> None:
    """Whichever stands first. Seen to fail (born with chain id 5) when only the first one is asked."""

    async def run(other: Anvil) -> None:
        for upstreams in ((other.url, twins.b.url), (twins.a.url, other.url)):
            twins.at_a._upstream, twins.at_b._upstream = upstreams
            async with Desk(database, twins.urls) as desk:
                with capture_logs() as logs:
                    for _ in range(3):
                        assert await desk.scanner.turn() > 0
                assert [log["event"] for log in logs].count("endpoints_disagree") == 1
                assert not desk.scanner.is_served
                assert database.fetch("SELECT 1 FROM app.chain_cursors") == []
        twins.at_a._upstream, twins.at_b._upstream = twins.a.url, twins.b.url
        async with Desk(database, twins.urls) as desk:
            await desk.scan()
            assert database.fetch("SELECT chain_id FROM app.chain_cursors") == [(31337,)]

    with Anvil(chain_id=5) as other:
        other.rpc("anvil_mine", 5)
        asyncio.run(run(other))


def test_no_cursor_is_born_on_a_block_that_another_endpoint_does_not_have(database: Database, twins: Twins) -> None:
    """It could never be left again: the other fork would look like a reorg below what is final."""

    async def run() -> None:
        twins.part(80, 80)
        async with Desk(database, twins.urls) as desk:
            for _ in range(3):
                assert await desk.scanner.turn() > 0
            assert database.fetch("SELECT 1 FROM app.chain_cursors") == []
            twins.at_a.spoil = away
            await desk.scan()
            assert database.fetch("SELECT next_height FROM app.chain_cursors") == [(86,)]

    asyncio.run(run())


# two forks


def test_a_disagreement_is_on_the_cursor_for_the_gauge_until_they_agree_again(database: Database, twins: Twins) -> None:
    """Seen to fail (a gauge that never falls) when the agreement is not noted."""

    async def story(shop: Shop) -> None:
        await shop.desk.scan()
        assert shop.cursor()["disagreed_at"] is None
        await shop.chain.mine()
        twins.b.rpc("anvil_mine", "0x1", "0x7")
        await shop.desk.scan()
        assert shop.cursor()["disagreed_at"] is not None
        twins.at_b.spoil = away
        for _ in range(3):
            await shop.desk.scan()
        assert shop.cursor()["disagreed_at"] is None

    over(database, twins, story)


@pytest.mark.parametrize("ending", ["b comes over", "b goes away", "a goes away", "a comes over"])
def test_while_two_endpoints_show_different_forks_nothing_is_written(
    database: Database, twins: Twins, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No flip-flop either: blocks are read from one of them only, and it is told once.

    Seen to fail (a's payment is confirmed, b's then brings a reorg) without Nodes.agree_on_blocks.
    """

    async def story(shop: Shop) -> None:
        await shop.desk.work()
        id_ = await shop.request()
        await shop.desk.look()
        await shop.pay(id_, to_mine=4)  # on a only
        twins.part(0, 4)
        before = everything(database)
        twins.clear()
        counted: list[str] = []
        monkeypatch.setattr(metrics.RPC_DISAGREEMENTS, "inc", lambda _, network: counted.append(network))
        with capture_logs() as logs:
            for _ in range(8):
                assert await shop.desk.scanner.turn() > 0
                await shop.desk.look()
        assert everything(database) == before
        assert counted == ["local"] * 8
        assert (reads(twins.at_a), reads(twins.at_b)) == (8, 0)
        assert [log["event"] for log in logs].count("endpoints_disagree") == 1
        _end(ending, twins)
        await shop.desk.scan()
        shop.make_due()
        await shop.desk.look()
        is_paid = ending.startswith("b")
        assert shop.status(id_) == ("confirmed" if is_paid else "pending")
        tip = (twins.a if is_paid else twins.b).rpc(NUMBER, "latest", False)
        assert shop.cursor()["tip_hash"] == tip["hash"]

    over(database, twins, story)


def _end(ending: str, twins: Twins) -> None:
    match ending:
        case "b comes over":
            twins.at_b._upstream = twins.a.url
        case "b goes away":
            twins.at_b.spoil = away
        case "a goes away":
            twins.at_a.spoil = away
        case "a comes over":
            twins.at_a._upstream = twins.b.url


def test_a_reorg_that_another_endpoint_does_not_show_takes_nothing_back_until_it_does(
    database: Database, twins: Twins
) -> None:
    """Seen to fail (reorged on one endpoint's word) without Nodes.agree_on_fork."""

    async def story(shop: Shop) -> None:
        await shop.desk.work()
        id_ = await paid(shop, twins, 2)
        await shop.work()
        assert shop.status(id_) == "confirmed"
        await shop.chain.reorg(2)
        await shop.chain.mine()
        before = everything(database)
        with capture_logs() as logs:
            for _ in range(4):
                assert await shop.desk.scanner.turn() > 0
        assert everything(database) == before
        assert [log["event"] for log in logs].count("endpoints_disagree") == 1
        twins.follow()
        await shop.work()
        assert shop.status(id_) == "reorged"

    over(database, twins, story)


def test_a_network_is_not_stopped_by_one_endpoint_while_another_one_shows_what_is_final(
    database: Database,
) -> None:
    """Seen to fail (stopped) without the question in Scanner._walk_back."""

    async def story(shop: Shop) -> None:
        await shop.chain.mine(10)
        twins.follow()
        await shop.desk.scan()
        assert shop.cursor()["finalized_height"] == 14
        await shop.chain.reorg(6)
        await shop.chain.mine()
        for _ in range(3):
            assert await shop.desk.scanner.turn() > 0
        assert shop.cursor()["stop_reason"] is None
        twins.follow()
        await shop.desk.scan()
        assert "below what is final" in shop.cursor()["stop_reason"]

    with twin_nodes(options=["--slots-in-an-epoch", "1"]) as twins:
        over(database, twins, story)


def test_a_network_that_one_endpoint_stopped_while_the_other_was_away_says_so_when_that_one_is_back(
    database: Database,
) -> None:
    """Both are there and disagree: a person must know of it. Seen to fail (silence) when only the one is asked."""

    async def story(shop: Shop) -> None:
        await shop.chain.mine(10)
        twins.follow()
        await shop.desk.scan()
        twins.at_b.spoil = away
        await shop.chain.reorg(6)
        await shop.chain.mine()
        await shop.desk.scan()
        assert "below what is final" in shop.cursor()["stop_reason"]
        twins.at_b.spoil = None
        with capture_logs() as logs:
            for _ in range(3):
                await shop.desk.scanner.turn()
        assert [each["event"] for each in logs].count("endpoints_disagree") == 1
        assert shop.cursor()["stop_reason"] is not None

    with twin_nodes(options=["--slots-in-an-epoch", "1"]) as twins:
        over(database, twins, story)


def test_a_node_that_stopped_on_a_block_the_chain_gave_up_does_not_hold_the_network_back(
    database: Database, twins: Twins
) -> None:
    """It read that block for us, and its head stands still. The other one's grows by 32: then it has no say any more.

    Seen to fail (the scan stands still, and nobody is told) without Nodes.compare_heads.
    """

    async def story(shop: Shop) -> None:
        await shop.desk.scan()
        await shop.chain.mine()  # on a only, which then stands still
        await shop.desk.scan()
        assert shop.scanned() == 7
        twins.part(0, 2)
        with capture_logs() as logs:
            for _ in range(6):
                twins.b.rpc("anvil_mine", 6, 1)
                shop.desk.skipped_seconds += 30
                await shop.desk.scan()
            assert [log["event"] for log in logs].count("endpoints_disagree") == 1
        shop.desk.skipped_seconds += 600
        for _ in range(3):
            await shop.desk.scan()
        assert shop.cursor()["tip_hash"] == twins.b.rpc(NUMBER, "latest", False)["hash"]

    over(database, twins, story)


def test_a_quorum_of_two_stores_what_both_show_and_waits_for_the_slower_one(database: Database, twins: Twins) -> None:
    async def story(shop: Shop) -> None:
        await shop.desk.scan()
        id_ = await shop.request()
        await shop.pay(id_, to_mine=2)  # on a only
        before = everything(database)
        for _ in range(3):
            assert await shop.desk.scanner.turn() > 0
        assert everything(database) == before
        twins.follow()
        await shop.desk.work()
        assert shop.status(id_) == "confirmed"

    over(database, twins, story, quorum=2)


def test_a_block_that_cannot_be_proven_counts_as_proven_where_both_give_it_alike(
    database: Database, twins: Twins
) -> None:
    """Seen to fail (the network is shown as unproven) without Nodes.vouched; with one endpoint it is unproven."""

    async def story(shop: Shop) -> None:
        await shop.desk.work()
        twins.at_a.spoil = twins.at_b.spoil = lie(unknown_type)
        id_ = await paid(shop, twins, 2)
        await shop.desk.work()
        assert (shop.status(id_), shop.cursor()["unproven_height"]) == ("confirmed", None)
        twins.at_b.spoil = away
        await paid(shop, twins, 1)
        await shop.desk.work()
        assert shop.cursor()["unproven_height"] == shop.scanned()

    over(database, twins, story)


def test_what_one_endpoint_calls_final_confirms_nothing_where_a_quorum_is_asked_for(
    database: Database, twins: Twins
) -> None:
    """Nor does it stop the network at the next reorg. Seen to fail (confirmed, then stopped) on the word of one."""

    def final_at_once(requests: Any, answers: Any) -> Any:
        latest = twins.a.rpc(NUMBER, "latest", False)
        return [
            {**answer, "result": latest} if request["params"][:1] == ["finalized"] else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    async def story(shop: Shop) -> None:
        await shop.desk.work()
        id_ = await paid(shop, twins)
        twins.at_a.spoil = final_at_once
        await shop.desk.work()
        assert (shop.status(id_), shop.cursor()["finalized_tag_height"]) == ("detected", 0)
        twins.at_a.spoil = None
        await shop.chain.reorg(1)
        await shop.chain.mine()
        twins.follow()
        await shop.desk.work()
        assert (shop.status(id_), shop.cursor()["stop_reason"]) == ("reorged", None)

    over(database, twins, story, quorum=2, policy=replace(POLICY, confirmations="finalized"))
