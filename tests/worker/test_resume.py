"""`reconsup chain NETWORK resume`: what it starts, what becomes of the money, and what it refuses to do."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from reconsup import resume
from reconsup.demo.anvil import Anvil
from reconsup.settings import load
from tests.support.deep import Memory, final_chain
from tests.support.desk import Desk, Shop, open_shop
from tests.support.postgres import Database
from tests.support.proxy import proxy_before

pytestmark = pytest.mark.service

AWAY = "http://127.0.0.1:1"


class Answer:
    """What the command said, and its exit code."""

    def __init__(self) -> None:
        self.code = -1
        self.said: list[str] = []
        self.complaints: list[str] = []

    @property
    def text(self) -> str:
        return "\n".join(self.said + self.complaints)


async def command(database_url: str, *urls: str, height: int | None = None, name: str = "local", **env: str) -> Answer:
    """Give the command, in a thread as in a process of its own."""
    settings = load(
        {
            "DATABASE_URL": database_url,
            "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": json.dumps({"local": list(urls)}),
            "RECONSUP_RPC_TIMEOUT_SECONDS": "5",
            **env,
        },
        {},
    )
    answer = Answer()
    answer.code = await asyncio.to_thread(
        resume.run, settings, name, height, answer.said.append, answer.complaints.append
    )
    return answer


def events(shop: Shop) -> list[dict[str, Any]]:
    return shop._all("SELECT * FROM app.chain_events ORDER BY id")


async def confirmed(shop: Shop, blocks: int, seconds_apart: int = 1) -> tuple[str, str]:
    """A request that is paid and confirmed, `blocks` blocks deep: its id, and its payment."""
    id_ = await shop.request()
    tx_hash = await shop.pay(id_, to_mine=0)
    await shop.chain.mine(blocks, seconds_apart)
    await shop.work()
    assert shop.status(id_) == "confirmed"
    return id_, tx_hash


async def stopped(shop: Shop, depth: int) -> None:
    """Take back more than is final, and let the scanner find out."""
    await shop.chain.reorg(depth)
    await shop.desk.scan()
    assert "below what is final" in shop.cursor()["stop_reason"]


def test_the_network_goes_on_from_the_fork_and_the_money_that_is_gone_is_taken_back(database: Database) -> None:
    """With proof, and confirmed again when it is mined again. What was paid below the fork is not touched."""

    async def run(anvil: Anvil) -> None:
        async with open_shop(database, anvil, blocks=3) as shop:
            kept, _ = await confirmed(shop, 2)
            id_, tx_hash = await confirmed(shop, 6)
            old, (settlement,) = shop.cursor(), shop.settlements(id_).values()
            raw = await shop.chain.raw(tx_hash)
            await stopped(shop, 7)
            row = shop.row(kept)
            answer = await command(database.url, anvil.url)
            assert answer.code == 0, answer.text
            fork = old["next_height"] - 1 - 7
            assert f"goes on above block {fork} " in answer.text
            _expect_started(shop, old, fork)
            await shop.desk.scan()  # it lost its lease
            await shop.desk.work()
            assert shop.scanned() == await shop.chain.height()
            assert shop.status(id_) == "reorged"
            assert shop.entries(id_)[-1]["proof"]["block_hash"] == settlement["block_hash"]
            assert shop.row(kept) == row
            await shop.chain.reorg(1, [(raw, 0)])
            await shop.chain.mine(2)
            await shop.desk.work()
            assert shop.reasons(id_)[-2:] == ["payment_reorged", "payment_reconfirmed"]

    with final_chain() as anvil:
        asyncio.run(run(anvil))


def _expect_started(shop: Shop, old: dict[str, Any], fork: int) -> None:
    cursor = shop.cursor()
    assert (cursor["stop_reason"], cursor["stopped_at"]) == (None, None)
    assert (cursor["scan_lease_owner"], cursor["scan_lease_epoch"]) == (None, old["scan_lease_epoch"] + 1)
    assert cursor["next_height"] == fork + 1
    assert (cursor["finalized_height"], cursor["finalized_tag_height"], cursor["safe_height"]) == (fork, None, None)
    told = events(shop)
    assert [(each["event"], each["height"]) for each in told] == [
        ("stopped", old["next_height"] - 1),
        ("resumed", fork),
    ]
    assert told[0]["who"] == shop.desk.owner.partition("#")[0]
    assert told[1]["who"] == resume._who()
    assert told[1]["detail"]["orphaned_settlements"] == 1


def test_a_stopped_network_expires_nothing_and_a_resumed_one_does(database: Database) -> None:
    async def run(anvil: Anvil) -> None:
        async with open_shop(database, anvil, blocks=20) as shop:
            start = await shop.now()
            await shop.desk.scan()
            await stopped(shop, 8)
            id_ = await shop.request(created_at=start - timedelta(minutes=2), expires_at=start - timedelta(minutes=1))
            await shop.chain.mine(5)
            await shop.work()
            assert (shop.status(id_), shop.row(id_)["reconcile_lease_epoch"]) == ("pending", 0)
            assert (await command(database.url, anvil.url)).code == 0
            await shop.desk.scan()  # it lost its lease
            await shop.work()
            assert shop.status(id_) == "expired"

    with final_chain() as anvil:
        asyncio.run(run(anvil))


def test_below_the_tail_a_height_is_asked_for_and_every_settlement_is_compared(
    database: Database, anvil: Anvil
) -> None:
    """What still stands stays confirmed, what is gone is taken back with its proof, and read again where it came back.

    Seen to fail when what still stands is taken for gone (there is no height to propose then); (nothing refused) when
    the highest settlement below HEIGHT is not asked for.
    """

    async def run() -> None:
        async with open_shop(database, anvil, blocks=5) as shop:
            standing, _ = await confirmed(shop, 30, 120)
            gone, tx_hash = await confirmed(shop, 90, 120)
            raw = await shop.chain.raw(tx_hash)
            (one,), (two,) = shop.settlements(standing).values(), shop.settlements(gone).values()
            low, high = one["block_height"], two["block_height"]
            tail_start = shop.cursor()["tail_start"]
            assert high < tail_start - 5
            await stopped(shop, shop.scanned() - low - 3)
            fork = low + 3
            await _expect_refusals(shop, anvil.url, low, high, tail_start)
            answer = await command(database.url, anvil.url, height=low - 2)
            assert answer.code == 0, answer.text
            assert (shop.scanned(), shop.cursor()["tail_start"]) == (low - 2, low - 1)
            await shop.desk.scan()  # it lost its lease
            await shop.work()
            assert shop.scanned() == await shop.chain.height()
            assert [shop.status(id_) for id_ in (standing, gone)] == ["confirmed", "reorged"]
            assert shop.reasons(standing)[-1] == "payment_confirmed"
            proof = shop.entries(gone)[-1]["proof"]
            assert (proof["height"], proof["block_hash"]) == (high, two["block_hash"])
            assert proof["new_hash"] == (await shop.chain.call("eth_getBlockByNumber", hex(high), False))["hash"]
            assert fork < high
            await shop.chain.call("eth_sendRawTransaction", raw)
            await shop.mine_at(shop.row(gone)["created_at"])
            await shop.chain.mine(2)
            await shop.work()
            assert shop.reasons(gone)[-1] == "payment_reconfirmed"

    asyncio.run(run())


async def _expect_refusals(shop: Shop, url: str, low: int, high: int, tail_start: int) -> None:
    """Without a height, with one in what is gone, and with one above a settlement that is gone: nothing is changed."""
    before = shop.cursor(), shop.rows(), events(shop)
    database = shop.database
    for height, words in (
        (None, f"--from {low}"),
        (tail_start, "which is gone"),
        (high + 1, f"block {high}, which holds a settlement, is gone too"),
    ):
        answer = await command(database.url, url, height=height)
        assert (answer.code, answer.said) == (64, []), answer.text
        assert words in answer.text
    assert (shop.cursor(), shop.rows(), events(shop)) == before


def test_a_height_above_the_fork_is_refused_and_one_below_is_taken(database: Database) -> None:
    async def run(anvil: Anvil) -> None:
        async with open_shop(database, anvil, blocks=3) as shop:
            kept, _ = await confirmed(shop, 2)
            await shop.chain.mine(8)
            await shop.work()
            fork = shop.scanned() - 6
            await stopped(shop, 6)
            answer = await command(database.url, anvil.url, height=fork + 1)
            assert answer.code == 64
            assert f"above block {fork}, where the chains part" in answer.text
            assert (await command(database.url, anvil.url, height=2)).code == 0
            assert shop.scanned() == 2
            await shop.desk.scan()  # it lost its lease
            await shop.work()
            assert (shop.scanned(), shop.status(kept)) == (await shop.chain.height(), "confirmed")
            assert shop.reasons(kept)[-1] == "payment_confirmed"

    with final_chain() as anvil:
        asyncio.run(run(anvil))


def test_endpoints_that_do_not_agree_start_nothing(database: Database) -> None:
    """One still shows the stored chain. Seen to fail (started) when the first endpoint's word is enough."""

    async def run(anvil: Anvil) -> None:
        async with open_shop(database, anvil, blocks=10) as shop:
            await shop.desk.scan()
            memory.append(Memory(proxy, anvil))
            await stopped(shop, 5)
            memory[0].show()
            before = shop.cursor()
            answer = await command(database.url, anvil.url, proxy.url)
            assert answer.code == 76
            assert "do not agree about where the chains part" in answer.text
            assert shop.cursor() == before
            assert (await command(database.url, AWAY)).code == 76
            both = {"RECONSUP_RPC_QUORUM_JSON": '{"local": 2}'}
            assert (await command(database.url, AWAY, anvil.url, **both)).code == 76
            assert shop.cursor() == before
            answer = await command(database.url, AWAY, anvil.url)
            assert (answer.code, "not asked" in answer.said[0]) == (0, True)

    memory: list[Memory] = []
    with final_chain() as anvil, proxy_before(anvil.url) as proxy:
        asyncio.run(run(anvil))


def test_what_cannot_be_resumed_is_said_in_a_sentence(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil, blocks=3) as shop:
            unborn = await command(database.url, anvil.url)
            await shop.desk.scan()
            unknown = await command(database.url, anvil.url, name="mainnet")
            running = await command(database.url, anvil.url)
            asked = await command(database.url, anvil.url, height=2)
            away = await command("postgresql://nobody@127.0.0.1:1/nothing", anvil.url)
            answers = [unborn, unknown, running, asked, away]
            assert [each.code for each in answers] == [64, 64, 0, 64, 69]
            for each, words in zip(
                answers, ["was never read", "no URL", "not stopped", "not stopped", "database"], strict=True
            ):
                assert len(each.said + each.complaints) == 1
                assert words in each.text
            assert shop.scanned() == 3
            assert events(shop) == []

    asyncio.run(run())


def test_the_scanner_that_found_the_stop_goes_on_after_the_resume(database: Database) -> None:
    """It still believes to hold the scan lease. Another worker's scanner, which does not, takes over as well."""

    async def run(anvil: Anvil) -> None:
        async with open_shop(database, anvil, blocks=10) as shop, Desk(database, anvil.url, slot=1) as other:
            await shop.desk.scan()
            await stopped(shop, 5)
            assert (await command(database.url, anvil.url)).code == 0
            assert await shop.desk.scanner.turn() > 0  # it lost its lease
            await shop.desk.scan()
            assert shop.scanned() == 10
            assert shop.cursor()["scan_lease_owner"] == shop.desk.owner
            await shop.chain.reorg(5)
            await shop.desk.scan()
            assert (await command(database.url, anvil.url)).code == 0
            await other.scan()
            assert shop.cursor()["scan_lease_owner"] == other.owner
            await shop.desk.scanner.turn()
            await other.scan()
            assert (shop.scanned(), shop.cursor()["stop_reason"]) == (10, None)

    with final_chain() as anvil:
        asyncio.run(run(anvil))
