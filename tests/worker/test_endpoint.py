"""Endpoints that are away, behind, throttled, broken or somebody else's: they delay, and change nothing.

The node behind the proxy is a real one; the proxy spoils its answers.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from reconsup.demo.anvil import Anvil
from reconsup.worker import logbook
from reconsup.worker import scanner as scanner_module
from tests.support.desk import Desk, open_shop
from tests.support.postgres import Database
from tests.support.proxy import Answers, Proxy, Reply, Spoil, change, refuse
from tests.worker.conftest import NUMBER, RECEIPTS, everything, lagging

pytestmark = pytest.mark.service


def hide(edit: Callable[[Any], Any]) -> Spoil:
    """Spoil what is asked with transactions: whole blocks, not headers."""

    def spoil(requests: Answers, answers: Answers) -> Answers:
        return [
            {**answer, "result": edit(answer["result"])}
            if request["method"] == NUMBER and request["params"][1]
            else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    return spoil


def drop_one(requests: Answers, answers: Answers) -> Answers:
    """The last answer of a batch of blocks is missing."""
    return answers[:-1] if requests[0]["method"] == NUMBER and requests[0]["params"][1] else answers


def on_blocks(reply: Any) -> Spoil:
    """Answer a request for blocks with something else."""

    def spoil(requests: Answers, answers: Answers) -> Any:
        return reply if requests[-1]["method"] == RECEIPTS else answers

    return spoil


def without_logs(receipts: Any) -> Any:
    return [receipt | {"logs": []} for receipt in receipts][:-1]


FAULTS = {
    "null block": hide(lambda _: None),
    "null receipts": change(RECEIPTS, lambda _: None),
    "empty receipts": change(RECEIPTS, lambda _: []),
    "a receipt is missing": change(RECEIPTS, without_logs),
    "a null among the receipts": change(RECEIPTS, lambda receipts: [None for _ in receipts]),
    "another block's receipts": change(RECEIPTS, lambda all_: [each | {"blockHash": "0x" + "5" * 64} for each in all_]),
    "a block without its transactions": hide(lambda block: block | {"transactions": []}),
    "dropped answer": drop_one,
    "http 429": on_blocks(Reply(status=429, headers={"Retry-After": "7"})),
    "away": lambda *_: Reply(status=503),
    "http 503": on_blocks(Reply(status=503)),
    "not json": on_blocks(Reply(body=b"<html>")),
    "cut": on_blocks(Reply(body=b'[{"id": 1', cut=True)),
    "one error for all": on_blocks({"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "internal"}}),
    "-32005": refuse(RECEIPTS, -32005, "too many requests"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_answer_changes_nothing_and_the_next_good_one_does(
    database: Database, anvil: Anvil, proxy: Proxy, fault: str
) -> None:
    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url) as shop:
            id_ = await shop.token_request()
            await shop.desk.work()
            await shop.pay(id_, to_mine=2)
            before = everything(database)
            proxy.spoil = FAULTS[fault]
            for _ in range(3):
                assert await shop.desk.scanner.turn() > 0
                await shop.desk.look()
            assert everything(database) == before
            proxy.spoil = None
            await shop.desk.work()
            assert shop.reasons(id_) == ["payment_confirmed"]

    asyncio.run(run())


def test_a_pause_that_the_endpoint_asks_for_is_kept(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url) as shop:
            await shop.desk.scan()
            await shop.chain.mine()
            proxy.spoil = FAULTS["http 429"]
            assert await shop.desk.scanner.turn() == 7

    asyncio.run(run())


def test_who_waits_for_the_scan_lease_does_not_say_that_the_scan_is_back(
    database: Database, anvil: Anvil, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator saw "scan_back" at every hand-over of an outage, and after it "scan_failed" once more.

    Its next outage is told, however long it waited. Seen to fail (a line too many, and one too few) when whoever does
    not hold the lease begins to count anew, and when only the first failure of a row is told.
    """

    def events() -> list[str]:
        return [each["event"] for each in told if each["event"] in ("scan_failed", "scan_back")]

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url) as shop, Desk(database, anvil.url, slot=1) as holder:
            proxy.spoil = FAULTS["away"]
            await shop.desk.scanner.turn()
            assert events() == ["scan_failed"]
            await holder.scan()
            proxy.spoil = None
            await shop.desk.scanner.turn()
            assert events() == ["scan_failed"]
            proxy.spoil = FAULTS["away"]
            database.execute("UPDATE app.chain_cursors SET scan_lease_owner = NULL, scan_lease_until = NULL")
            await shop.desk.scanner.turn()
            assert events() == ["scan_failed"]
            monkeypatch.setattr(logbook, "AGAIN_SECONDS", 0.0)
            await shop.desk.scanner.turn()
            assert events() == ["scan_failed"] * 2
            proxy.spoil = None
            await shop.desk.scanner.turn()
            assert events() == ["scan_failed"] * 2 + ["scan_back"]

    with structlog.testing.capture_logs() as told:
        asyncio.run(run())


@pytest.mark.parametrize(("is_held_by_another", "turns_expected"), [(False, 1), (True, 2)])
def test_a_ring_wakes_who_waits_for_the_scan_lease_and_nobody_else(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch, is_held_by_another: bool, turns_expected: int
) -> None:
    """It may tell that the lease is free. It must not cut short a pause that an endpoint asked for."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop, Desk(database, anvil.url, slot=1) as holder:
            if is_held_by_another:
                await holder.scan()
            await shop.desk.scanner.turn()
            turns: list[None] = []
            waiting = asyncio.Event()

            async def turn() -> float:
                turns.append(None)
                waiting.set()
                return 60.0

            monkeypatch.setattr(shop.desk.scanner, "turn", turn)
            scanning = asyncio.create_task(shop.desk.scanner.run())
            await waiting.wait()
            shop.desk.pauses.ring()
            for _ in range(20):
                await asyncio.sleep(0)  # whoever was woken gets its turn
            assert len(turns) == turns_expected
            shop.desk.pauses.stop()
            await scanning

    asyncio.run(run())


# heads


def older_head(back: int, anvil: Anvil) -> Spoil:
    """The head of a node that is `back` blocks behind; everything else is answered as it is."""

    def spoil(requests: Answers, answers: Answers) -> Answers:
        height = int(anvil.rpc("eth_blockNumber"), 16) - back
        block = anvil.rpc(NUMBER, hex(height), False)
        return [
            {**answer, "result": block} if request["params"][:1] == ["latest"] else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    return spoil


@pytest.mark.parametrize("node", [older_head, lagging])
def test_a_head_that_goes_back_demotes_nothing_and_writes_nothing(
    database: Database, anvil: Anvil, proxy: Proxy, node: Callable[[int, Anvil], Spoil]
) -> None:
    """Seen to fail (reorged) when a walk back begins at a head below our tip."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=5) as shop:
            id_ = await shop.request()
            await shop.pay(id_, to_mine=4)
            await shop.work()
            await shop.chain.reorg(2)  # the endpoint will not show it: its head is lower than our tip
            before = everything(database)
            proxy.spoil = node(1, anvil)
            for _ in range(3):
                assert await shop.desk.scanner.turn() > 0
                await shop.desk.look()
            assert everything(database) == before
            assert shop.status(id_) == "confirmed"
            proxy.spoil = None
            await shop.desk.work()
            assert shop.scanned() == await shop.chain.height()

    asyncio.run(run())


def no_parents(requests: Answers, answers: Answers) -> Answers:
    """The node does not have the headers below its head: what a walk back asks for."""
    return [
        {**answer, "result": None}
        if request["method"] == NUMBER
        and request["params"][1] is False
        and request["params"][0] not in ("latest", "safe", "finalized", "0x0")
        else answer
        for request, answer in zip(requests, answers, strict=True)
    ]


def test_answers_of_two_nodes_that_disagree_prove_nothing(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    """Headers of a reorged chain, and then a parent that is not there: nothing is written."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=5) as shop:
            id_ = await shop.request()
            await shop.pay(id_, to_mine=4)
            await shop.work()
            await shop.chain.reorg(4)
            await shop.chain.mine()
            before = everything(database)
            proxy.spoil = no_parents
            for _ in range(3):
                assert await shop.desk.scanner.turn() > 0
            await shop.desk.look()
            assert everything(database) == before
            proxy.spoil = None
            await shop.desk.work()
            assert shop.status(id_) == "reorged"

    asyncio.run(run())


def test_a_block_that_hangs_on_another_one_proves_nothing_while_the_head_hangs_on_ours(
    database: Database, anvil: Anvil, proxy: Proxy
) -> None:
    """Two nodes behind one address: one gives the head, another one a block beside it.

    Seen to fail (asked again without a pause) when this is taken for a success.
    """

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=5) as shop:
            await shop.desk.scan()
            await shop.chain.mine()
            before = everything(database)
            proxy.spoil = hide(lambda block: block | {"parentHash": "0x" + "5" * 64})
            assert await shop.desk.scanner.turn() > 0
            assert everything(database) == before
            proxy.spoil = None
            await shop.desk.scan()
            assert shop.scanned() == 6

    asyncio.run(run())


# away


def test_an_endpoint_that_is_away_at_the_start_is_waited_for(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    """Nothing is decided before the endpoint has shown which chain it is."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url) as shop:
            id_ = await shop.request()
            await shop.pay(id_, to_mine=2)
            before = shop.rows()
            proxy.spoil = lambda *_: Reply(status=503)
            waits = [await shop.desk.scanner.turn() for _ in range(6)]
            assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]  # and no longer than a third of the lease
            await shop.desk.look()
            assert (shop.rows(), database.fetch("SELECT 1 FROM app.chain_cursors")) == (before, [])
            proxy.spoil = None
            await shop.desk.work()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_a_long_outage_is_survived(database: Database) -> None:
    """Hours of it: the wait must not outgrow a float. Seen to fail (OverflowError) with a bare 2 ** failures."""

    async def run() -> None:
        async with Desk(database, "http://127.0.0.1:9") as desk:
            desk.scanner._failures = 5000
            assert await desk.scanner.turn() == 10.0
            assert desk.calls[-1][1] == "error"

    asyncio.run(run())


def test_an_outage_in_the_middle_loses_nothing(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url) as shop:
            first, second = await shop.request(), await shop.request()
            await shop.pay(first, to_mine=2)
            await shop.desk.scan()
            proxy.spoil = lambda *_: Reply(status=502)
            await shop.pay(second, to_mine=2)
            assert await shop.desk.scanner.turn() > 0
            await shop.desk.look()  # what was scanned before is decided meanwhile
            assert (shop.status(first), shop.status(second)) == ("confirmed", "pending")
            proxy.spoil = None
            await shop.desk.work()
            assert shop.status(second) == "confirmed"

    asyncio.run(run())


@pytest.mark.parametrize("trouble", ["away", "behind", "torn"])
def test_whoever_makes_no_progress_for_one_lease_frees_the_scan_lease_and_stands_back(
    database: Database, anvil: Anvil, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """Seen to fail, for each kind of trouble, without the question after the turn."""
    spoils: dict[str, Spoil] = {
        "away": lambda *_: Reply(status=503),
        "behind": older_head(2, anvil),
        "torn": no_parents,
    }

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=5) as shop, Desk(database, anvil.url, slot=1) as b:
            await shop.desk.scan()
            if trouble == "torn":
                await shop.chain.reorg(2)
            proxy.spoil = spoils[trouble]
            await shop.desk.scanner.turn()
            assert shop.cursor()["scan_lease_owner"] == shop.desk.owner
            later(monkeypatch, 29.9)
            assert await shop.desk.scanner.turn() >= shop.desk.watch.poll_interval_seconds
            assert shop.cursor()["scan_lease_owner"] is None
            await b.scan()
            assert shop.cursor()["scan_lease_owner"] == b.owner

    asyncio.run(run())


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the scanner's clock show a later time."""
    clock = scanner_module.time

    class Later:
        time = clock.time

        @staticmethod
        def monotonic() -> float:
            return clock.monotonic() + seconds

    monkeypatch.setattr(scanner_module, "time", Later)
