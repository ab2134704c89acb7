"""No bare word about a balance settles money or lets a request expire, where a proof or another node can be had."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from reconsup import check, settings
from reconsup.demo.anvil import Anvil
from reconsup.monitor import metrics
from tests.support import hidden
from tests.support.desk import ETHER, Shop, open_shop
from tests.support.liars import both, telling, traced
from tests.support.postgres import Database
from tests.support.proxy import Proxy, Spoil, change, proxy_before
from tests.support.twin_nodes import away
from tests.worker.test_audit import SECOND, SOON, address_of, held, split, total

pytestmark = pytest.mark.service

PROVES_NOTHING = hidden.refusing("eth_getProof")


@pytest.fixture
def second(anvil: Anvil) -> Iterator[Proxy]:
    """Another endpoint of the same chain."""
    with proxy_before(anvil.url) as running:
        yield running


@asynccontextmanager
async def audited(database: Database, anvil: Anvil, *proxies: Proxy) -> AsyncIterator[Shop]:
    """A shop that is audited at each block, on a chain whose first block is long past."""
    async with open_shop(database, anvil, url=[each.url for each in proxies], blocks=2, audit_blocks=1) as shop:
        await hidden.deploy(shop.chain)
        await shop.mine_at(await shop.now() + timedelta(minutes=20))
        await shop.chain.mine()
        yield shop


async def paid_unseen(shop: Shop) -> tuple[str, str, datetime]:
    """A request that a contract pays: its id, address and end."""
    now = await shop.now()
    id_ = await shop.request(created_at=now, expires_at=now + SOON)
    await shop.work()
    await split(shop.chain, await address_of(shop, id_))
    return id_, await address_of(shop, id_), now + SOON


async def pass_by(shop: Shop, end: datetime) -> None:
    """Let a request's end pass, deep enough to expire."""
    await shop.mine_at(end + SECOND)
    await shop.chain.mine(4)


def named(logs: list[Any], event: str) -> list[Any]:
    return [log for log in logs if log["event"] == event]


async def work(shop: Shop, times: int = 3) -> list[Any]:
    """Work a few times; what was logged."""
    with capture_logs() as logs:
        for _ in range(times):
            await shop.work()
    return list(logs)


# one endpoint


def test_a_balance_that_a_node_invents_settles_nothing_and_is_told(
    database: Database, anvil: Anvil, proxy: Proxy
) -> None:
    """In the call for all, in the one for this address and beside the proof. Seen to fail (confirmed) when what is told
    is not compared with what is proven.
    """

    async def run() -> None:
        async with audited(database, anvil, proxy) as shop:
            id_ = await shop.request()
            await shop.work()
            address, now = await address_of(shop, id_), await shop.chain.height()
            await shop.chain.mine(3)
            proxy.spoil = telling(
                anvil, address, lambda height, true: true + ETHER * (height > now + 1), lambda _, true: true
            )
            logs = await work(shop)
            assert (shop.status(id_), shop.settlements(id_)) == ("pending", {})
            assert database.fetch("SELECT count(*) FROM app.request_balances") == [(0,)]
            (alarm,) = named(logs, "balance_audit_failed")
            assert f"tells a balance of {ETHER} and proves 0" in alarm["error"]
            proxy.spoil = None
            await split(shop.chain, address)
            await shop.chain.mine()
            logs = await work(shop)
            assert (shop.status(id_), total(shop, id_)) == ("confirmed", ETHER)
            assert [log["proven"] for log in named(logs, "money_without_a_log")] == [True]

    asyncio.run(run())


@pytest.mark.parametrize("fault", ["cut", "empty", "another account's", "no list", "of another block"])
def test_a_proof_that_does_not_come_out_settles_nothing_and_lets_nothing_expire(
    database: Database, anvil: Anvil, proxy: Proxy, fault: str
) -> None:
    """Seen to fail (expired) when a proof that does not come out counts as none."""

    def spoiled(answer: Any) -> Any:
        match fault:
            case "cut":
                return answer | {"accountProof": answer["accountProof"][:-1]}
            case "empty":
                return answer | {"accountProof": []}
            case "another account's":
                return anvil.rpc("eth_getProof", anvil.accounts[0], [], "latest")
            case "of another block":
                return anvil.rpc("eth_getProof", answer["address"], [], "0x2")
        return answer | {"accountProof": None}

    async def run() -> None:
        async with audited(database, anvil, proxy) as shop:
            id_, address, end = await paid_unseen(shop)
            await pass_by(shop, end)
            hide = telling(anvil, address, lambda *_: 0)
            proxy.spoil = both(hide, change("eth_getProof", spoiled))
            logs = await work(shop)
            assert shop.status(id_) == "pending"
            (alarm,) = named(logs, "balance_audit_failed")
            assert "balance does not come out" in alarm["error"]
            assert 'RECONSUP_BLOCK_PROOF_JSON={"local": false}' in alarm["error"]
            proxy.spoil = None
            await work(shop)
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_what_a_node_hides_lets_nothing_expire(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    """The money is what its proof says. Seen to fail (expired) when what is told is believed before an expiry."""

    async def run() -> None:
        async with audited(database, anvil, proxy) as shop:
            id_, address, end = await paid_unseen(shop)
            empty = await shop.request(expires_at=end)
            await pass_by(shop, end)
            proxy.spoil = telling(anvil, address, lambda *_: 0)
            logs = await work(shop)
            assert (shop.status(id_), shop.settlements(id_)) == ("pending", {})
            (alarm,) = named(logs, "balance_audit_failed")
            assert f"tells a balance of 0 and proves {ETHER}" in alarm["error"]
            proxy.spoil = None
            await work(shop)
            assert (shop.status(id_), shop.status(empty)) == ("confirmed", "expired")

    asyncio.run(run())


def test_a_node_that_says_that_the_money_was_there_before_is_not_believed(
    database: Database, anvil: Anvil, proxy: Proxy
) -> None:
    """Seen to fail (expired) when only what changed is proven, and not what it began with."""

    async def run() -> None:
        async with audited(database, anvil, proxy) as shop:
            id_, address, end = await paid_unseen(shop)
            await pass_by(shop, end)
            proxy.spoil = telling(anvil, address, lambda *_: ETHER)
            await work(shop)
            assert shop.status(id_) == "pending"
            assert database.fetch("SELECT count(*) FROM app.request_balances") == [(0,)]

    asyncio.run(run())


UNPROVABLE: dict[str, Spoil] = {
    "no eth_getProof": PROVES_NOTHING,
    "unknown header": change("eth_getBlockByHash", lambda block: block | {"novelty": "0x1", "extraData": "0x01"}),
}


@pytest.mark.parametrize("node", UNPROVABLE)
def test_one_node_that_can_prove_nothing_is_believed_and_that_is_told(
    database: Database, anvil: Anvil, proxy: Proxy, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Money is settled and what nobody paid expires, as from a node that proves it; once it is asked for a proof."""
    counted: list[tuple[float, str]] = []
    monkeypatch.setattr(metrics.BALANCES_UNPROVEN, "inc", lambda count, network: counted.append((count, network)))

    async def run() -> None:
        proxy.spoil = UNPROVABLE[node]
        async with audited(database, anvil, proxy) as shop:
            now = await shop.now()
            id_, empty = [await shop.request(created_at=now, expires_at=now + SOON) for _ in range(2)]
            await shop.work()
            await split(shop.chain, await address_of(shop, id_))
            await shop.chain.mine()
            logs = await work(shop)
            assert [log["proven"] for log in named(logs, "money_without_a_log")] == [False]
            await pass_by(shop, now + SOON)
            logs = await work(shop)
            assert len(named(logs, "balances_unproven")) == 1
            assert counted
            assert set(counted) == {(1, "local")}, "the one that waits to expire"
            assert (shop.status(id_), shop.status(empty)) == ("confirmed", "expired")
            if node == "no eth_getProof":
                assert sum("eth_getProof" in calls for calls in proxy.requests) == 1

    asyncio.run(run())


def test_check_says_whether_balances_are_proven(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    given = {"DATABASE_URL": database.url, "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": f'{{"local": "{proxy.url}"}}'}
    anvil.rpc("anvil_mine", "0x2")

    def line() -> str:
        lines: list[str] = []
        assert check.run(settings.load(given, {}), lines.append) == 0
        return next(each for each in lines if each.startswith("ok    balance audit"))

    assert "balances proven, " in line()
    proxy.spoil = PROVES_NOTHING
    assert "balances not proven, " in line()


# what a trace says beside a proven balance


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_trace_makes_no_more_of_a_payment_than_its_balance_shows(
    database: Database, anvil: Anvil, proxy: Proxy, second: Proxy, nodes: int
) -> None:
    """A wei arrives; the node traces an ether more, which the address is said to have sent on in the same block.

    The balances are true and proven. Seen to fail (confirmed) when the sum of the parts is believed.
    """

    async def run() -> None:
        async with audited(database, anvil, *[proxy, second][:nodes]) as shop:
            id_ = await shop.request()
            await shop.work()
            address = await address_of(shop, id_)
            await hidden.through(shop.chain, hidden.SPLITTER, [address], 1)
            await shop.chain.mine(3)
            proxy.spoil = traced([(hidden.SPLITTER, address, ETHER), (address, hidden.WALLET, ETHER)])
            logs = await work(shop)
            assert (shop.status(id_), shop.settlements(id_)) == ("pending", {})
            assert len(named(logs, "unexplained_balance" if nodes == 1 else "endpoints_disagree")) == 1

    asyncio.run(run())


# two endpoints


def test_of_two_endpoints_that_prove_the_one_that_lies_is_set_aside(
    database: Database, anvil: Anvil, proxy: Proxy, second: Proxy
) -> None:
    async def run() -> None:
        async with audited(database, anvil, proxy, second) as shop:
            id_, address, end = await paid_unseen(shop)
            await pass_by(shop, end)
            proxy.spoil = telling(anvil, address, lambda *_: 0)
            logs = await work(shop)
            assert (shop.status(id_), total(shop, id_)) == ("confirmed", ETHER)
            (told,) = named(logs, "endpoint_set_aside")
            assert (told["endpoint"], told["reason"]) == (proxy.url, "inconsistent")
            assert named(logs, "balance_audit_failed") == []

    asyncio.run(run())


@pytest.mark.parametrize("liar", [0, 1])
@pytest.mark.parametrize("lie", ["invents", "hides"])
def test_of_two_endpoints_that_prove_nothing_both_must_tell_the_same(
    database: Database, anvil: Anvil, proxy: Proxy, second: Proxy, lie: str, liar: int
) -> None:
    """Told once. Seen to fail (confirmed, expired) when no other endpoint is asked."""

    async def run() -> None:
        proxy.spoil = second.spoil = PROVES_NOTHING
        async with audited(database, anvil, proxy, second) as shop:
            id_, address, end = await paid_unseen(shop)
            other = await shop.request(created_at=await shop.now(), expires_at=end)
            await shop.chain.mine()
            await shop.desk.scan()
            since = shop.scanned()
            await (pass_by(shop, end) if lie == "hides" else shop.chain.mine(3))
            of = address if lie == "hides" else await address_of(shop, other)
            lies = telling(anvil, of, lambda height, _: ETHER if lie == "invents" and height > since else 0)
            (proxy, second)[liar].spoil = both(lies, PROVES_NOTHING)
            logs = await work(shop, 4)
            believed = lie == "invents" and liar == 1  # the first one that is asked sees nothing to be explained
            assert (shop.status(other), shop.settlements(other)) == ("pending", {})
            assert shop.status(id_) == ("pending" if lie == "hides" else shop.status(id_))
            assert len(named(logs, "endpoints_disagree")) == (not believed)
            proxy.spoil = second.spoil = PROVES_NOTHING
            await work(shop, 2)
            assert shop.status(id_) == "confirmed"
            if lie == "hides":
                assert shop.status(other) == "expired"

    asyncio.run(run())


def test_another_endpoint_that_is_away_holds_nothing_back(
    database: Database, anvil: Anvil, proxy: Proxy, second: Proxy
) -> None:
    """Where the first proves what it tells, and where it does not."""

    async def run() -> None:
        second.spoil = away
        async with audited(database, anvil, proxy, second) as shop:
            for spoil in (None, PROVES_NOTHING):
                proxy.spoil = spoil
                id_, _, _ = await paid_unseen(shop)
                await shop.chain.mine()
                logs = await work(shop)
                assert shop.status(id_) == "confirmed"
                assert [log["proven"] for log in named(logs, "money_without_a_log")] == [spoil is None]

    asyncio.run(run())


@pytest.mark.parametrize("nodes", [1, 2])
def test_money_in_the_very_block_in_which_its_address_spends_needs_two_nodes(
    database: Database, anvil: Anvil, proxy: Proxy, second: Proxy, nodes: int
) -> None:
    """What was spent is in no proof: with one node it is left to the operator, with two that say the same it counts."""

    async def run() -> None:
        async with audited(database, anvil, *[proxy, second][:nodes]) as shop:
            address = shop.chain.accounts[7].lower()
            id_ = await shop.request(address_canonical=address)
            await shop.work()
            before = held(anvil, shop.row(id_))
            await hidden.through(shop.chain, hidden.SPLITTER, [address], ETHER)
            await shop.chain.send(shop.chain.accounts[3], ETHER // 2, sender=address)
            await shop.chain.mine(2)
            logs = await work(shop)
            assert before < held(anvil, shop.row(id_)) < before + ETHER
            assert total(shop, id_) == (ETHER if nodes == 2 else 0)
            assert shop.status(id_) == ("confirmed" if nodes == 2 else "pending")
            assert [log["unexplained_minor"] for log in named(logs, "unexplained_balance")] == [str(ETHER)] * (
                2 - nodes
            )

    asyncio.run(run())
