"""A customer pays, or pays too little, too much, in parts: what becomes of the request, block by block."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from reconsup.demo.anvil import Anvil
from tests.support.desk import ETHER, POLICY, Shop, open_shop
from tests.support.postgres import Database

pytestmark = pytest.mark.service


@pytest.mark.parametrize("kind", ["request", "token_request"])
def test_a_payment_is_detected_in_its_block_and_confirmed_at_its_depth(
    database: Database, anvil: Anvil, kind: str
) -> None:
    """The token's row says its address and contract in checksummed letters, the chain in lower case."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await getattr(shop, kind)()
            await shop.desk.work()
            assert shop.status(id_) == "pending"
            tx_hash = await shop.pay(id_)
            await shop.desk.work()
            assert shop.status(id_) == "detected"
            await shop.chain.mine()
            await shop.desk.work()
            assert shop.status(id_) == "confirmed"
            assert shop.reasons(id_) == ["payment_detected", "payment_confirmed"]
            _expect_settled(shop, id_, tx_hash)

    asyncio.run(run())


def _expect_settled(shop: Shop, id_: str, tx_hash: str) -> None:
    row, (settlement,) = shop.row(id_), shop.settlements(id_).values()
    assert settlement["evidence_ref"] == (f"{tx_hash}:0" if row["token_contract"] else tx_hash)
    assert settlement["amount_minor"] == row["expected_amount_minor"]
    assert (settlement["block_height"], settlement["is_canonical"]) == (shop.scanned() - 1, True)
    assert row["next_reconcile_at"] is None  # nothing polls it any more
    assert (row["reconcile_lease_owner"], row["reconcile_due_height"], row["reconcile_error"]) == (None, None, None)
    confirmed = shop.entries(id_)[-1]
    assert (confirmed["from_status"], confirmed["to_status"], confirmed["confirmations"]) == (
        "detected",
        "confirmed",
        2,
    )
    assert confirmed["lease_owner"] == shop.desk.owner


def test_instalments_are_detected_and_confirmed_when_their_sum_is(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            seen = []
            for amount in (ETHER // 3, ETHER // 3, ETHER - 2 * (ETHER // 3), None):
                await (shop.pay(id_, amount) if amount else shop.chain.mine())
                await shop.desk.work()
                seen.append(shop.status(id_))
            assert seen == ["pending", "pending", "detected", "confirmed"]
            assert sum(each["amount_minor"] for each in shop.settlements(id_).values()) == ETHER
            assert shop.entries(id_)[-1]["amount_minor"] == ETHER

    asyncio.run(run())


@pytest.mark.parametrize(
    ("detected_bps", "confirmed_bps", "amount", "expected"),
    [
        (10_000, 10_000, ETHER - 1, "pending"),
        (10_000, 10_000, ETHER + 1, "confirmed"),
        (5_000, 9_900, ETHER // 2 - 1, "pending"),
        (5_000, 9_900, ETHER // 2, "detected"),
        (5_000, 9_900, ETHER // 100 * 99 - 1, "detected"),
        (5_000, 9_900, ETHER // 100 * 99, "confirmed"),
    ],
)
def test_a_sum_reaches_a_status_at_its_threshold_and_not_a_wei_below(
    database: Database, anvil: Anvil, detected_bps: int, confirmed_bps: int, amount: int, expected: str
) -> None:
    policy = replace(POLICY, detected_threshold_bps=detected_bps, confirmed_threshold_bps=confirmed_bps)

    async def run() -> None:
        async with open_shop(database, anvil, policy=policy) as shop:
            id_ = await shop.request()
            await shop.pay(id_, amount, to_mine=2)
            await shop.work()
            assert shop.status(id_) == expected
            assert [each["amount_minor"] for each in shop.settlements(id_).values()] == [amount]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("overrides", "amount", "expected"),
    [
        ({"expected_amount_minor": None}, 1, "confirmed"),
        ({"expected_amount_minor": 0}, 1, "confirmed"),
        ({"expected_amount_minor": 2**256 - 1}, 2**256 - 1, "confirmed"),
        ({"expected_amount_minor": 2**256 - 1}, 2**256 - 2, "pending"),
    ],
)
def test_any_amount_is_counted_exactly(
    database: Database, anvil: Anvil, overrides: dict[str, Any], amount: int, expected: str
) -> None:
    """An arithmetic that rounds at 28 digits would take 2^256 - 2 for enough."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.token_request(**overrides)
            await shop.pay(id_, amount, to_mine=2)
            await shop.work()
            assert shop.status(id_) == expected
            assert [each["amount_minor"] for each in shop.settlements(id_).values()] == [amount]

    asyncio.run(run())


def test_money_of_another_token_is_nobodys(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.token_request()
            address = shop.row(id_)["address_canonical"].lower()
            other = await shop.chain.deploy_token(10**12)
            await shop.chain.send_token(other, address, 5_000_000)
            await shop.chain.send(address, ETHER)
            await shop.chain.mine(2)
            await shop.work()
            assert shop.status(id_) == "pending"
            assert shop.settlements(id_) == {}

    asyncio.run(run())


def test_a_failed_request_gets_the_settlement_and_nothing_else(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request(status="failed")
            before = shop.row(id_)
            await shop.pay(id_, to_mine=2)
            await shop.work()
            assert [each["amount_minor"] for each in shop.settlements(id_).values()] == [ETHER]
            assert shop.row(id_) | {"next_reconcile_at": None} == before | {"next_reconcile_at": None}
            assert shop.reasons(id_) == []

    asyncio.run(run())


def test_a_confirmed_request_is_not_looked_at_again_whatever_comes(database: Database, anvil: Anvil) -> None:
    """More money on a confirmed request is a settlement, and one look that changes nothing."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.pay(id_, to_mine=2)
            await shop.work()
            epoch = shop.row(id_)["reconcile_lease_epoch"]
            await shop.chain.mine(20)
            await shop.desk.work()
            assert shop.row(id_)["reconcile_lease_epoch"] == epoch
            await shop.pay(id_, 5)
            await shop.desk.work()
            assert shop.row(id_)["reconcile_lease_epoch"] == epoch + 1
            assert (shop.status(id_), len(shop.settlements(id_))) == ("confirmed", 2)

    asyncio.run(run())
