"""Money that leaves no log is seen: it is found by its balance, placed in its block, and settled once."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from reconsup.demo.anvil import Anvil
from reconsup.demo.devchain import DevChain
from reconsup.monitor import metrics
from reconsup.worker import auditor
from tests.support import hidden
from tests.support.desk import ETHER, POLICY, Desk, Shop, open_shop
from tests.support.postgres import Database
from tests.support.proxy import Proxy, Spoil, proxy_before
from tests.support.twin_nodes import Twins, twin_nodes
from tests.worker.conftest import everything
from tests.worker.test_starvation import TRIGGER

pytestmark = pytest.mark.service

SOON = timedelta(seconds=100)
SECOND = timedelta(seconds=1)

# How a whole ether comes to an address without a transaction to it. Each mines one block.
Way = Callable[[DevChain, str], Any]


async def split(chain: DevChain, address: str) -> None:
    await hidden.through(chain, hidden.SPLITTER, [address], ETHER)
    await chain.mine()


async def nested(chain: DevChain, address: str) -> None:
    """Two transfers to one address in one transaction."""
    await hidden.through(chain, hidden.WALLET, [address, address], ETHER)
    await chain.mine()


async def self_destruct(chain: DevChain, address: str) -> None:
    await hidden.through(chain, hidden.DESTRUCTOR, [address], ETHER)
    await chain.mine()


async def fee(chain: DevChain, address: str) -> None:
    """It is the fee recipient of a block whose only transaction leaves it an ether."""
    await chain.call("anvil_setCoinbase", address)
    await chain.call("anvil_setNextBlockBaseFeePerGas", "0x0")
    price = hex(ETHER // 21_000 + 1)
    tx = {"from": chain.accounts[1], "to": chain.accounts[2], "gas": hex(21_000)}
    await chain.call("eth_sendTransaction", tx | {"maxFeePerGas": price, "maxPriorityFeePerGas": price})
    await chain.mine()
    await chain.call("anvil_setCoinbase", "0x" + "00" * 20)


async def out_of_nowhere(chain: DevChain, address: str) -> None:
    """In the state of a block, and in no transaction: as a withdrawal of the beacon chain."""
    await chain.mine()
    await chain.call("anvil_setBalance", address, hex(ETHER))


WAYS: dict[str, tuple[Way, str]] = {  # and what the evidence is where the node can trace
    "a contract": (split, "trace"),
    "a wallet's contract": (nested, "trace"),
    "a self-destruct": (self_destruct, "trace"),
    "a fee": (fee, "delta"),
    "nothing": (out_of_nowhere, "delta"),  # with anvil that is a lie: its block's root knows nothing of it
}
NODES: dict[str, Spoil | None] = {
    "traces": None,
    "traces, proves nothing": hidden.refusing("eth_getProof"),
    "traces otherwise": hidden.refusing("debug_traceBlockByHash"),
    "does not trace": hidden.refusing(*hidden.TRACING),
    "no overrides": hidden.refusing(*hidden.TRACING, with_override=True),
    "no calls": hidden.refusing(*hidden.TRACING, "eth_call"),
}
CASES = [(way, "traces, proves nothing" if way == "nothing" else "traces") for way in WAYS] + [
    (way, node) for way in ("a wallet's contract", "a self-destruct") for node in NODES if node != "traces"
]


async def address_of(shop: Shop, id_: str) -> str:
    query = "SELECT lower(address_canonical) FROM app.payment_requests WHERE id = %s"
    ((address,),) = shop.database.fetch(query, [id_])
    return str(address)


def kinds(shop: Shop, id_: str) -> list[str]:
    return sorted(ref.split(":")[1] for ref in shop.settlements(id_))


@pytest.mark.parametrize(("way", "node"), CASES)
def test_money_without_a_log_is_found_in_its_block_settled_once_and_confirmed_by_depth(
    database: Database, anvil: Anvil, proxy: Proxy, way: str, node: str
) -> None:
    """Whatever the node can tell. Seen to fail (pending) without the audit."""
    send, kind = WAYS[way]
    proxy.spoil = NODES[node]

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=5, audit_blocks=1) as shop:
            await hidden.deploy(shop.chain)
            id_, other = await shop.request(expected_amount_minor=ETHER), await shop.request()
            await shop.work()
            await shop.chain.mine(3)
            await send(shop.chain, await address_of(shop, id_))
            paid_at = await shop.chain.height()
            await shop.work()
            assert shop.status(id_) == "detected"
            await shop.chain.mine()
            await shop.work()
            assert shop.status(id_) == "confirmed"
            assert shop.reasons(id_) == ["payment_detected", "payment_confirmed"]
            settled = shop.settlements(id_)
            assert {each["block_height"] for each in settled.values()} == {paid_at}
            assert sum(each["amount_minor"] for each in settled.values()) == held(anvil, shop.row(id_))
            expected = kind if node.startswith("traces") else "delta"
            assert set(kinds(shop, id_)) == {expected}
            assert (shop.status(other), shop.settlements(other)) == ("pending", {})

    asyncio.run(run())


def held(anvil: Anvil, row: dict[str, Any]) -> int:
    return int(anvil.rpc("eth_getBalance", row["address_canonical"], "latest"), 16)


def test_one_transaction_pays_two_requests_and_one_of_them_twice(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil, blocks=5, audit_blocks=1) as shop:
            await hidden.deploy(shop.chain)
            one, two = await shop.request(), await shop.request()
            await shop.work()
            addresses = [await address_of(shop, id_) for id_ in (one, two, one)]
            tx_hash = await hidden.through(shop.chain, hidden.WALLET, addresses, 3 * ETHER)
            await shop.pay(two, ETHER // 2)  # and one of the usual kind, in the same block
            await shop.work()
            assert set(shop.settlements(one)) == {f"{tx_hash}:trace:0.0", f"{tx_hash}:trace:0.2"}
            assert f"{tx_hash}:trace:0.1" in shop.settlements(two)
            assert total(shop, one) == 2 * ETHER
            assert total(shop, two) == ETHER + ETHER // 2
            for _ in range(3):
                await shop.chain.mine()
                await shop.work()
            assert (total(shop, one), total(shop, two)) == (2 * ETHER, ETHER + ETHER // 2)

    asyncio.run(run())


def total(shop: Shop, id_: str) -> int:
    return sum(int(each["amount_minor"]) for each in shop.settlements(id_).values() if each["is_canonical"])


def test_what_failed_or_moved_nothing_counts_for_nothing(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    """A reverted transaction with value, inside and outside; a contract made with value; a transfer of zero."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=5, audit_blocks=1) as shop:
            await hidden.deploy(shop.chain)
            id_ = await shop.request()
            address = await address_of(shop, id_)
            await shop.work()
            await hidden.through(shop.chain, hidden.FAILING, [address], ETHER)
            await hidden.through(shop.chain, hidden.SPLITTER, [address], 0)
            await shop.chain.send(None, ETHER, "0x")
            await shop.chain.send(address, 0)
            await shop.chain.mine(3)
            await shop.work()
            assert shop.settlements(id_) == {}
            assert database.fetch("SELECT count(*) FROM app.request_balances") == [(0,)]

    asyncio.run(run())


def test_clean_requests_are_compared_without_a_write(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    """Only the cursor notes the sweep; a partly paid request is clean as well."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=5, audit_blocks=4) as shop:
            ids = [await shop.request() for _ in range(3)]
            await shop.pay(ids[0], ETHER // 2)
            await shop.work()
            before = everything(database)
            for mined, audited in ((3, 6), (1, 10)):
                await shop.chain.mine(mined)
                await shop.desk.scan()
                rows = everything(database)[:3]
                await shop.desk.audit()
                assert everything(database)[:3] == rows == before[:3]
                assert shop.cursor()["audited_height"] == audited
            assert proxy.requests.count(["eth_call"]) == 2

    asyncio.run(run())


def test_three_thousand_requests_are_compared_in_one_call(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    """Before they expire each is proven: a call for each in its life, fifty in a batch; and one for 500 of them."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=5, audit_blocks=1) as shop:
            await hidden.deploy(shop.chain)
            now = await shop.now()
            paid = await shop.request(created_at=now, expires_at=now + SOON)
            database.execute(MANY, {"model": paid, "count": 2999})
            await shop.desk.scan()
            await split(shop.chain, await address_of(shop, paid))
            await shop.desk.scan()
            proxy.requests.clear()
            await shop.desk.audit()
            assert [calls for calls in proxy.requests if "eth_call" in calls] == [["eth_call"]]
            assert len(proxy.requests) <= 10  # the one that differs was looked for, and proven
            await shop.mine_at(now + SOON + SECOND)
            await shop.chain.mine(2)
            await shop.desk.scan()
            proxy.requests.clear()
            await shop.desk.audit()
            assert proxy.requests.count(["eth_call"]) == 1  # a sweep was due as well
            assert proxy.requests.count(["eth_getBlockByHash"]) == 6
            assert proxy.requests.count(["eth_getProof"] * 50) == 60
            assert len(proxy.requests) == 1 + 6 + 60
            marked = "SELECT count(*) FROM app.payment_requests WHERE reconcile_audited_height = %s"
            assert database.fetch(marked, [shop.scanned()]) == [(3000,)]

    asyncio.run(run())


MANY = """
WITH ready AS (UPDATE app.payment_requests SET reconcile_admitted_height = 0 WHERE id = %(model)s RETURNING *)
INSERT INTO app.payment_requests (id, chain, network, asset, status, expected_amount_minor, address_canonical,
  address_scheme, derivation_index, chain_id, expires_at, created_at, reconcile_admitted_height)
SELECT 'many_' || n, chain, network, asset, status, expected_amount_minor, '0xdd' || lpad(to_hex(n), 38, '0'),
  address_scheme, 100000 + n, chain_id, expires_at, created_at, 0
FROM ready, generate_series(1, %(count)s) AS n
"""


def test_pages_end_where_they_should(database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five requests in pages of two, three of the same end, one without end, one that is not to be audited yet."""
    monkeypatch.setattr(
        auditor.audit.read_page, "__kwdefaults__", {"limit": 2, "ends_before": None, "grace_seconds": 0.0}
    )

    async def run() -> None:
        async with open_shop(database, anvil, blocks=5, audit_blocks=1) as shop:
            await hidden.deploy(shop.chain)
            ids = [await shop.request() for _ in range(4)] + [await shop.request(expires_at="infinity")]
            await shop.work()
            addresses = [await address_of(shop, id_) for id_ in ids]
            changes = "reconcile_admitted_height = NULL, next_reconcile_at = NULL"
            database.execute(f"UPDATE app.payment_requests SET {changes} WHERE id = %s", [ids[1]])
            await hidden.through(shop.chain, hidden.SPLITTER, addresses, len(ids) * ETHER)
            await shop.chain.mine()
            await shop.desk.scan()
            await shop.desk.audit()
            assert [total(shop, id_) for id_ in ids] == [ETHER, 0, ETHER, ETHER, ETHER]

    asyncio.run(run())


def test_a_row_that_nobody_may_write_does_not_hold_back_the_audit_of_the_others(
    database: Database, anvil: Anvil
) -> None:
    """Neither when money is found for it, nor when it is marked. Seen to fail (nobody confirmed, nobody expired)."""

    async def run() -> None:
        async with open_shop(database, anvil, blocks=5, audit_blocks=1) as shop:
            await hidden.deploy(shop.chain)
            now = await shop.now()
            ids = [await shop.request(created_at=now, expires_at=now + SOON) for _ in range(6)]
            await shop.work()
            for id_ in ids[:3]:
                await split(shop.chain, await address_of(shop, id_))
            act = "RAISE EXCEPTION 'not with me'"
            database.execute(
                TRIGGER.format(id=ids[0], act=act).replace(f"'{ids[0]}'", f"ANY ('{{{ids[0]},{ids[5]}}}')")
            )
            await shop.chain.mine()
            with capture_logs() as logs:
                await shop.desk.work()
            assert [log["request_id"] for log in logs if log["event"] == "row_refused" and "audit" in log["todo"]] == [
                ids[0]
            ]
            assert [shop.status(id_) for id_ in ids[:3]] == ["pending", "confirmed", "confirmed"]
            await shop.mine_at(now + SOON + SECOND)
            await shop.chain.mine(3)
            await shop.desk.work()
            assert [shop.status(id_) for id_ in ids[3:]] == ["expired", "expired", "pending"]
            database.execute("DROP TRIGGER theirs ON app.payment_requests")
            await shop.chain.mine()
            await shop.work()
            await shop.work()
            assert (shop.status(ids[0]), shop.status(ids[5])) == ("confirmed", "expired")

    asyncio.run(run())


# a node that keeps little


@pytest.mark.parametrize("is_pruned_by", ["anvil", "proxy"])
def test_a_plain_full_node_is_enough(database: Database, proxy: Proxy, anvil: Anvil, is_pruned_by: str) -> None:
    """The request is older than what it keeps states of; the money is not."""

    async def run(node: Anvil, url: str) -> None:
        async with open_shop(database, node, url=url, blocks=5, audit_blocks=10) as shop:
            await hidden.deploy(shop.chain)
            id_ = await shop.request()
            await shop.work()
            await shop.chain.mine(30)
            await shop.work()
            await split(shop.chain, await address_of(shop, id_))
            paid_at = await shop.chain.height()
            await shop.chain.mine(10)
            await shop.work()
            assert shop.status(id_) == "confirmed"
            assert [each["block_height"] for each in shop.settlements(id_).values()] == [paid_at]

    if is_pruned_by == "proxy":
        proxy.spoil = hidden.forgetful(anvil, 20)
        asyncio.run(run(anvil, proxy.url))
    else:
        with Anvil(options=["--prune-history", "20"]) as own:
            asyncio.run(run(own, own.url))


def test_a_balance_that_cannot_be_placed_holds_back_the_expiry_with_an_alarm_and_no_confirmation(
    database: Database, anvil: Anvil, proxy: Proxy
) -> None:
    """It arrived while nobody looked, in a block whose state the node has forgotten.

    Seen to fail (expired) without the question whether all is explained.
    """
    proxy.spoil = hidden.forgetful(anvil, 5)

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=5, audit_blocks=64) as shop:
            await hidden.deploy(shop.chain)
            now = await shop.now()
            id_, paid, empty = [await shop.request(created_at=now, expires_at=now + SOON) for _ in range(3)]
            await shop.work()
            for each in (id_, paid):
                await split(shop.chain, await address_of(shop, each))
            await shop.chain.mine(10)
            await shop.pay(paid)
            await shop.mine_at(now + SOON + SECOND)
            await shop.chain.mine(3)
            with capture_logs() as logs:
                await shop.work()
                await shop.work()
            assert [log["unexplained_minor"] for log in logs if log["event"] == "unexplained_balance"] == [str(ETHER)]
            assert (shop.status(id_), shop.row(id_)["reconcile_error"]) == ("pending", "unexplained_balance")
            assert (shop.status(empty), shop.status(paid)) == ("expired", "confirmed")
            assert shop.settlements(id_) == {}
            proxy.spoil = None
            await shop.chain.send(await address_of(shop, id_), ETHER)
            await shop.chain.mine(2)
            await shop.work()
            assert shop.status(id_) == "pending"  # what it got now came after its end
            assert shop.row(id_)["reconcile_error"] == "unexplained_balance"

    asyncio.run(run())


# the chain takes it back


@pytest.mark.parametrize("node", ["traces", "does not trace"])
def test_money_that_a_reorg_takes_away_is_taken_back_and_counts_again_when_it_is_mined_again(
    database: Database, node: str
) -> None:
    """Mined again after the request's end: it was first seen in time, and stays so.

    Seen to fail (pending) when a difference does not inherit its first time. On an anvil of its own: on one that had
    served other tests, a call was seen to be mined again without what it had done.
    """

    async def run(anvil: Anvil, proxy: Proxy) -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=5, audit_blocks=1) as shop:
            await hidden.deploy(shop.chain)
            now = await shop.now()
            id_ = await shop.request(created_at=now, expires_at=now + SOON)
            await shop.work()
            address = await address_of(shop, id_)
            tx_hash = await hidden.through(shop.chain, hidden.SPLITTER, [address], ETHER)
            await shop.chain.mine(2)
            await shop.work()
            assert shop.status(id_) == "confirmed"
            raw = await shop.chain.raw(tx_hash)
            await shop.chain.reorg(2)
            await shop.work()
            assert shop.status(id_) == "reorged"
            assert total(shop, id_) == 0
            await shop.mine_at(now + SOON + SECOND)
            await shop.chain.call("eth_sendRawTransaction", raw)
            await shop.chain.mine(2)
            await shop.work()
            assert shop.status(id_) == "confirmed"
            assert total(shop, id_) == ETHER
            assert shop.reasons(id_) == ["payment_confirmed", "payment_reorged", "payment_reconfirmed"]
            assert len({each["metadata"]["first_block_time"] for each in shop.settlements(id_).values()}) == 1

    with Anvil() as own, proxy_before(own.url) as proxy:
        proxy.spoil = NODES[node]
        asyncio.run(run(own, proxy))


def test_the_same_blocks_come_back_bring_their_money_back(database: Database, anvil: Anvil) -> None:
    """The chain goes to another branch and returns: a proof says that the evidence is gone, and its very block is here.

    So it stands in the database then (anvil cannot mine the same block twice). Seen to fail (pending, unexplained) when
    the note of the earlier audit is believed although its own block belies it.
    """

    async def run() -> None:
        async with open_shop(database, anvil, blocks=5, audit_blocks=1) as shop:
            await hidden.deploy(shop.chain)
            id_ = await shop.request()
            await shop.work()
            await split(shop.chain, await address_of(shop, id_))
            await shop.work()
            ((ref, settled),) = shop.settlements(id_).items()
            height, block_hash = settled["block_height"], settled["block_hash"]
            proof = {"height": height, "block_hash": block_hash, "new_hash": "0x", "scanned_height": height}
            database.execute(
                "UPDATE app.payment_request_settlements SET is_canonical = false, metadata = metadata || %s::jsonb",
                [json.dumps({"reorg": proof})],
            )
            await shop.chain.mine()
            await shop.work()
            assert shop.reasons(id_) == ["payment_detected", "payment_reorged", "payment_confirmed"]
            assert shop.settlements(id_).keys() == {ref}
            assert total(shop, id_) == ETHER

    asyncio.run(run())


def test_a_chain_that_comes_back_to_its_old_blocks_does_not_expire_what_they_paid(database: Database) -> None:
    """The audit's mark is of a block that is ours again, and its settlement has been taken back.

    Seen to fail (expired, though it was paid in time) when a rollback leaves the mark.
    """

    async def run(nodes: Twins) -> None:
        async with open_shop(database, nodes.a, url=nodes.at_a.url, blocks=5, audit_blocks=1) as shop:
            await hidden.deploy(shop.chain)
            now = await shop.now()
            id_ = await shop.request(created_at=now, expires_at=now + SOON)
            await shop.chain.mine()
            nodes.follow()
            await shop.desk.work()
            await split(shop.chain, await address_of(shop, id_))
            await shop.mine_at(now + SOON + SECOND)
            await shop.desk.scan()
            await shop.desk.audit()
            assert total(shop, id_) == ETHER
            nodes.part(0, 3)
            nodes.at_a.leads_to(nodes.b.url)
            await shop.desk.scan()
            assert total(shop, id_) == 0
            nodes.at_a.leads_to(nodes.a.url)
            await shop.chain.mine(10)
            await shop.desk.scan()
            await shop.desk.look()
            assert shop.status(id_) == "pending"
            await shop.desk.work()
            assert (shop.status(id_), total(shop, id_)) == ("confirmed", ETHER)

    with twin_nodes() as nodes:
        asyncio.run(run(nodes))


# an address that is not fresh, and one that does not only receive


def test_what_was_there_before_the_request_is_not_money_for_it(database: Database, anvil: Anvil) -> None:
    """Seen to fail (confirmed by it) when the first balance is taken for a payment."""

    async def run() -> None:
        async with open_shop(database, anvil, blocks=1, audit_blocks=1) as shop:
            await hidden.deploy(shop.chain)
            example = await shop.request()
            address = await address_of(shop, example)
            database.execute("DELETE FROM app.payment_requests")
            await split(shop.chain, address)
            await shop.mine_at(await shop.now() + timedelta(minutes=20))
            id_ = await shop.request(address_canonical=address)
            await shop.work()
            await shop.chain.mine(2)
            await shop.work()
            assert (shop.status(id_), shop.settlements(id_)) == ("pending", {})
            assert database.fetch("SELECT difference_minor, unexplained_minor FROM app.request_balances") == [
                (ETHER, 0)
            ]
            await split(shop.chain, address)
            await shop.chain.mine()
            await shop.work()
            assert (shop.status(id_), total(shop, id_)) == ("confirmed", ETHER)

    asyncio.run(run())


@pytest.mark.parametrize("is_swept_at_once", [False, True])
@pytest.mark.parametrize("node", ["traces", "does not trace"])
def test_an_address_that_sends_its_money_on_is_accounted_for(
    database: Database, anvil: Anvil, proxy: Proxy, node: str, is_swept_at_once: bool
) -> None:
    """Half of it came with a log, half without; all of it is sent on before the request's end, to the last wei.

    The address is not fresh either. Sent on between two audits its money shows nothing but its nonce, which is asked
    for before it may expire. Seen to fail (expired) without the comparison of nonces.
    """
    proxy.spoil = NODES[node]

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=5, audit_blocks=1) as shop:
            await hidden.deploy(shop.chain)
            now = await shop.now()
            address = shop.chain.accounts[7].lower()
            before = int(await shop.chain.call("eth_getBalance", address, "latest"), 16)
            id_ = await shop.request(created_at=now, expires_at=now + SOON, address_canonical=address)
            await shop.work()
            await shop.chain.mine()
            if not is_swept_at_once:
                await shop.pay(id_, ETHER // 2)
                await shop.work()
            await hidden.through(shop.chain, hidden.SPLITTER, [address], ETHER // 2)
            await shop.chain.mine()
            if not is_swept_at_once:
                await shop.work()
            await send_on(shop, address, ETHER // 2 if is_swept_at_once else ETHER)
            await shop.mine_at(now + SOON + SECOND)
            await shop.chain.mine(3)
            await shop.work()
            assert held(anvil, shop.row(id_)) == before
            expected = ETHER // 2 if is_swept_at_once else ETHER
            assert total(shop, id_) == expected
            assert shop.reasons(id_)[-1] == ("payment_underpaid_expired" if is_swept_at_once else "payment_confirmed")

    asyncio.run(run())


async def send_on(shop: Shop, address: str, amount_wei: int) -> None:
    """Send on so much, gas included, and mine."""
    price = 2 * 10**9
    tx = {"from": address, "to": shop.chain.accounts[3], "gas": hex(21_000), "gasPrice": hex(price)}
    await shop.chain.call("anvil_setNextBlockBaseFeePerGas", hex(10**9))
    await shop.chain.call("eth_sendTransaction", tx | {"value": hex(amount_wei - 21_000 * price)})
    await shop.chain.mine()


# before it expires


def test_no_native_request_expires_before_its_audit(
    database: Database, anvil: Anvil, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail (expired, though it was paid) when the decision does not ask for the mark.

    Each failure of the audit is counted, from the first one on; the alarm comes with the fourth.
    """
    failures: list[str] = []
    monkeypatch.setattr(metrics.AUDIT_FAILURES, "inc", lambda _, network: failures.append(network))

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=5) as shop:
            await hidden.deploy(shop.chain)
            now = await shop.now()
            times = {"created_at": now, "expires_at": now + SOON}
            paid, empty, token = [
                await shop.request(**times),
                await shop.request(**times),
                await shop.token_request(**times),
            ]
            await shop.work()
            await split(shop.chain, await address_of(shop, paid))
            await shop.mine_at(now + SOON + SECOND)
            await shop.chain.mine(5)
            proxy.spoil = hidden.refusing("eth_call", "eth_getBalance", "eth_getTransactionCount")
            with capture_logs() as logs:
                for _ in range(4):
                    await shop.work()
            alarms = [log for log in logs if log["event"] == "balance_audit_failed"]
            assert len(alarms) == 1
            assert "RECONSUP_BALANCE_AUDIT_JSON" in alarms[0]["todo"]
            assert failures == ["local"] * 4
            assert (shop.status(paid), shop.status(empty), shop.status(token)) == ("pending", "pending", "expired")
            assert shop.row(empty)["reconcile_error"] is None
            proxy.spoil = None
            with capture_logs() as logs:
                await shop.work()
            assert any(log["event"] == "balance_audit_back" for log in logs)
            assert (shop.status(paid), shop.status(empty)) == ("confirmed", "expired")

    asyncio.run(run())


@pytest.mark.parametrize(("standard", "contract"), [("", ""), (None, ""), ("", None)])
def test_a_native_request_with_empty_texts_for_its_token_does_not_expire_unaudited(
    database: Database, anvil: Anvil, standard: str | None, contract: str | None
) -> None:
    """Seen to fail (expired, though it was paid): where only nulls were native to the audit, and where half is null,
    to which nothing is matched, and which was no row error.
    """

    async def run() -> None:
        async with open_shop(database, anvil, blocks=5) as shop:
            await hidden.deploy(shop.chain)
            now = await shop.now()
            ends = {"created_at": now, "expires_at": now + SOON}
            token = {"token_standard": standard, "token_contract": contract, "token_decimals": None}
            inside, plain = await shop.request(**ends, **token), await shop.request(**ends, **token)
            await shop.work()
            await shop.chain.send(await address_of(shop, plain), ETHER)
            await split(shop.chain, await address_of(shop, inside))
            await shop.mine_at(now + SOON + SECOND)
            await shop.chain.mine(5)
            await shop.work()
            found = {(row["status"], row["reconcile_error"]) for row in shop.rows().values()}
            served = ("confirmed", None) if standard == contract else ("pending", "token_contract_missing")
            assert found == {served}

    asyncio.run(run())


def test_a_mark_whose_block_a_reorg_took_away_is_void(database: Database, anvil: Anvil) -> None:
    """Seen to fail (expired) when the mark is believed by its height alone."""

    async def run() -> None:
        async with open_shop(database, anvil, blocks=5) as shop:
            now = await shop.now()
            id_ = await shop.request(created_at=now, expires_at=now + SOON)
            await shop.desk.work()
            await shop.mine_at(now + SOON + SECOND)
            await shop.chain.mine(4)
            await shop.desk.scan()
            await shop.desk.audit()
            assert shop.row(id_)["reconcile_audited_height"] == shop.scanned()
            await shop.chain.reorg(1)
            await shop.chain.mine()
            await shop.desk.scan()
            await shop.desk.look()
            assert shop.status(id_) == "pending"
            await shop.desk.audit()
            await shop.desk.look()
            assert shop.status(id_) == "expired"

    asyncio.run(run())


def test_a_mark_of_another_address_is_void(database: Database, anvil: Anvil) -> None:
    """It was marked, and before it was looked at somebody corrected its address, to one that a contract had paid.

    Seen to fail (expired, though it was paid) when the mark is of a block alone.
    """

    async def run() -> None:
        async with open_shop(database, anvil, blocks=5) as shop:
            await hidden.deploy(shop.chain)
            now = await shop.now()
            id_ = await shop.request(created_at=now, expires_at=now + SOON)
            await shop.desk.work()
            right = "0x" + "c0" * 20
            await split(shop.chain, right)
            await shop.mine_at(now + SOON + SECOND)
            await shop.chain.mine(4)
            await shop.desk.scan()
            await shop.desk.audit()
            assert shop.row(id_)["reconcile_audited_height"] == shop.scanned()
            database.execute("UPDATE app.payment_requests SET address_canonical = %s", [right])
            await shop.desk.look()
            assert shop.status(id_) == "pending"
            await shop.desk.work()
            assert (shop.status(id_), total(shop, id_)) == ("confirmed", ETHER)

    asyncio.run(run())


def test_with_the_audit_switched_off_a_request_expires_as_before(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil, blocks=5, policy=replace(POLICY, audits_balances=False)) as shop:
            now = await shop.now()
            id_ = await shop.request(created_at=now, expires_at=now + SOON)
            await shop.mine_at(now + SOON + SECOND)
            await shop.chain.mine(3)
            await shop.work()
            assert (shop.status(id_), shop.row(id_)["reconcile_audited_height"]) == ("expired", None)

    asyncio.run(run())


# the auditor dies, or is not the one any more


@pytest.mark.parametrize("comes", ["death", "another holder", "stop", "reorg", "payment", "address"])
def test_what_changes_between_the_question_and_the_write_leaves_nothing_half_written(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch, comes: str
) -> None:
    """The next audit finds it, once. Seen to fail without each of: lease, stop, block, settlements and address."""

    async def run() -> None:
        async with (
            open_shop(database, anvil, blocks=5, audit_blocks=1) as shop,
            Desk(database, anvil.url, slot=1, audit_blocks=1) as other,
        ):
            await hidden.deploy(shop.chain)
            id_ = await shop.request()
            await shop.work()
            await split(shop.chain, await address_of(shop, id_))
            await shop.desk.scan()
            real = auditor.findings.record

            async def record(*arguments: Any) -> Any:
                monkeypatch.setattr(auditor.findings, "record", real)
                await meanwhile(shop, other, id_, comes)
                return await real(*arguments)

            monkeypatch.setattr(auditor.findings, "record", record)
            with suppress(Died):
                await shop.desk.audit()
            assert shop.settlements(id_).keys() <= {"0xbyhand"}
            assert database.fetch("SELECT count(*) FROM app.request_balances") == [(0,)]
            await put_right(shop, other, comes)
            await shop.chain.mine()
            await shop.work()
            assert total(shop, id_) == (0 if comes == "reorg" else ETHER)

    asyncio.run(run())


class Died(BaseException):
    pass


async def meanwhile(shop: Shop, other: Desk, id_: str, comes: str) -> None:
    match comes:
        case "death":
            raise Died
        case "another holder":
            shop.database.execute("UPDATE app.chain_cursors SET scan_lease_until = now()")
            await other.scan()
        case "stop":
            shop.database.execute("UPDATE app.chain_cursors SET stop_reason = 'for a test'")
        case "reorg":
            await shop.chain.reorg(1)
            await shop.chain.mine()
            await shop.desk.scan()
        case "payment":
            height, block_hash = shop.cursor()["next_height"] - 1, shop.cursor()["tip_hash"]
            shop.database.execute(
                "INSERT INTO app.payment_request_settlements (payment_request_id, evidence_ref, amount_minor,"
                " confirmations, block_height, block_hash, metadata, first_seen_at, last_seen_at)"
                " VALUES (%s, '0xbyhand', 1, 1, %s, %s, %s::jsonb, now(), now())",
                [id_, height, block_hash, '{"first_block_time": "2020-01-01T00:00:00Z"}'],
            )
        case "address":
            shop.database.execute(
                "UPDATE app.payment_requests SET address_canonical = %s WHERE id = %s", ["0x" + "5c" * 20, id_]
            )


async def put_right(shop: Shop, other: Desk, comes: str) -> None:
    match comes:
        case "another holder":
            await other.audit()
        case "stop":
            shop.database.execute("UPDATE app.chain_cursors SET stop_reason = NULL")
        case "payment":
            shop.database.execute("DELETE FROM app.payment_request_settlements WHERE evidence_ref = '0xbyhand'")
        case "address":
            await split(shop.chain, "0x" + "5c" * 20)
