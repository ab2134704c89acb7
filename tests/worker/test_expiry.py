"""When a request is over: by the chain's time, behind enough blocks, and only if all its past was read."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from reconsup.demo.anvil import Anvil
from reconsup.worker import reconciler
from tests.support.desk import ETHER, POLICY, Shop, open_shop, without
from tests.support.postgres import Database

pytestmark = pytest.mark.service

DEPTH = POLICY.expiry_confirmations
SOON = timedelta(seconds=100)
SECOND = timedelta(seconds=1)


async def ending_soon(shop: Shop) -> str:
    now = await shop.now()
    return await shop.request(created_at=now, expires_at=now + SOON)


async def let_it_end(shop: Shop, id_: str) -> None:
    """Mine the first block behind its end, and as many as it takes."""
    await shop.mine_at(shop.row(id_)["expires_at"] + SECOND)
    await shop.chain.mine(DEPTH - 1)


def test_it_expires_when_a_later_block_is_deep_enough_and_not_before(database: Database, anvil: Anvil) -> None:
    """Seen to fail one block too early when the barrier is one block less deep."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await ending_soon(shop)
            await shop.mine_at(shop.row(id_)["expires_at"])  # this very second is in time
            seen = []
            for blocks in (DEPTH, 1, 1, 1):
                await shop.chain.mine(blocks, seconds_apart=0 if blocks > 1 else 1)
                await shop.work()
                seen.append(shop.status(id_))
            assert seen == ["pending", "pending", "pending", "expired"]
            assert shop.reasons(id_) == ["payment_expired"]
            assert shop.row(id_)["next_reconcile_at"] is None

    asyncio.run(run())


def test_the_wall_clock_expires_nothing(database: Database, anvil: Anvil) -> None:
    """Its end is long past by any clock but the chain's."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            now = await shop.now()
            early = {"created_at": now - timedelta(hours=2), "expires_at": now - timedelta(hours=1)}
            id_ = await shop.request(**early)
            (genesis,) = [await shop.chain.call("eth_getBlockByNumber", "0x0", False)]
            assert int(genesis["timestamp"], 16) > early["expires_at"].timestamp()  # so admission is open for it
            for _ in range(2 * DEPTH):
                await shop.work()
            assert shop.scanned() == 1
            assert shop.status(id_) == "pending"
            await shop.chain.mine(DEPTH)
            await shop.work()
            assert shop.status(id_) == "expired"

    asyncio.run(run())


def test_grace_is_time_to_pay(database: Database, anvil: Anvil) -> None:
    policy = replace(POLICY, expiry_grace_seconds=50.0)

    async def run() -> None:
        async with open_shop(database, anvil, policy=policy) as shop:
            paid, unpaid = await ending_soon(shop), await ending_soon(shop)
            await let_it_end(shop, paid)
            await shop.work()
            assert (shop.status(paid), shop.status(unpaid)) == ("pending", "pending")
            await shop.chain.set_next_block_time(int((shop.row(paid)["expires_at"] + 50 * SECOND).timestamp()))
            await shop.pay(paid)
            await shop.chain.mine(DEPTH)
            await shop.work()
            assert (shop.status(paid), shop.status(unpaid)) == ("confirmed", "expired")

    asyncio.run(run())


def test_an_underpaid_request_expires_with_its_own_reason(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil, policy=replace(POLICY, detected_threshold_bps=5_000)) as shop:
            little, half = await ending_soon(shop), await ending_soon(shop)
            await shop.pay(little, ETHER // 4)
            await shop.pay(half, ETHER // 2)
            await shop.work()
            assert (shop.status(little), shop.status(half)) == ("pending", "detected")
            await let_it_end(shop, little)
            await shop.work()
            assert shop.reasons(little) == ["payment_underpaid_expired"]
            assert shop.reasons(half) == ["payment_detected", "payment_underpaid_expired"]
            assert shop.entries(half)[-1]["amount_minor"] == ETHER // 2

    asyncio.run(run())


def test_money_in_time_counts_however_late_it_is_scanned(database: Database, anvil: Anvil) -> None:
    """Seen to fail (expired) when the barrier is asked before the money."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await ending_soon(shop)
            await shop.desk.work()
            await shop.pay(id_)
            await let_it_end(shop, id_)
            await shop.chain.mine(60)
            await shop.work()
            assert shop.reasons(id_) == ["payment_confirmed"]

    asyncio.run(run())


def test_enough_money_that_waits_for_its_depth_does_not_expire(database: Database, anvil: Anvil) -> None:
    """Seen to fail (expired) without the question whether enough is there."""

    async def run() -> None:
        async with open_shop(database, anvil, policy=replace(POLICY, confirmations=8)) as shop:
            id_ = await ending_soon(shop)
            await shop.pay(id_)
            await let_it_end(shop, id_)
            seen = []
            for _ in range(5):
                await shop.work()
                seen.append(shop.status(id_))
                await shop.chain.mine()
            assert seen == ["detected"] * 4 + ["confirmed"]
            assert shop.reasons(id_) == ["payment_detected", "payment_confirmed"]

    asyncio.run(run())


def test_late_money_is_recorded_once_and_the_status_stays(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await ending_soon(shop)
            await let_it_end(shop, id_)
            await shop.work()
            tx_hash = await shop.pay(id_)
            await shop.desk.work()
            await shop.chain.mine(DEPTH)
            shop.database.execute("UPDATE app.payment_requests SET next_reconcile_at = now()")  # somebody is curious
            await shop.desk.work()
            assert shop.status(id_) == "expired"
            assert shop.reasons(id_) == ["payment_expired", "payment_late"]
            late = shop.entries(id_)[-1]
            assert (late["evidence_ref"], late["amount_minor"]) == (tx_hash, ETHER)
            assert list(shop.settlements(id_)) == [tx_hash]

    asyncio.run(run())


def test_late_money_that_is_there_when_the_request_expires_is_told_with_it(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await ending_soon(shop)
            await shop.mine_at(shop.row(id_)["expires_at"] + SECOND)
            tx_hash = await shop.pay(id_, to_mine=DEPTH)
            await shop.work()
            assert shop.reasons(id_) == ["payment_expired", "payment_late"]
            assert shop.entries(id_)[0]["evidence"] == []
            assert [each["ref"] for each in shop.entries(id_)[1]["evidence"]] == [tx_hash]

    asyncio.run(run())


# a request's past


def test_a_payment_before_the_row_is_found_in_the_tail(database: Database, anvil: Anvil) -> None:
    """The address was handed out, and paid, before the service inserted the row.

    Seen to fail (expired) without the tail join in the admission.
    """

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            example = await shop.request()
            row = without(shop.row(example), ["id", "derivation_index", "next_reconcile_at"])
            shop.database.execute("DELETE FROM app.payment_requests")
            await shop.chain.send(row["address_canonical"], ETHER)
            await shop.chain.mine(5)
            await shop.desk.work()
            id_ = await shop.request(address_canonical=row["address_canonical"])
            await shop.desk.look()
            assert shop.reasons(id_) == ["payment_confirmed"]
            assert shop.row(id_)["reconcile_admitted_height"] == shop.scanned()

    asyncio.run(run())


def test_a_request_whose_past_is_not_read_yet_is_served_but_never_expires(database: Database, anvil: Anvil) -> None:
    """It is older than the tail, and nobody reads its span.

    Seen to fail (expired) when the decision does not ask whether it was admitted.
    """

    async def run() -> None:
        async with open_shop(database, anvil, blocks=10, tail_blocks=5) as shop:
            now = await shop.now()
            old = {"created_at": now - timedelta(minutes=30), "expires_at": now + SOON}
            paid, unpaid = await shop.request(**old), await shop.request(**old)
            young = await shop.request(created_at=now + timedelta(hours=1), expires_at=now + timedelta(hours=2))
            shop.desk.reads_spans = False
            await shop.work()
            assert shop.cursor()["tail_start"] == 5
            await let_it_end(shop, unpaid)
            await shop.chain.mine(30)
            await shop.work()
            assert shop.status(unpaid) == "pending"
            assert shop.row(unpaid)["reconcile_admitted_height"] is None
            assert shop.row(young)["reconcile_admitted_height"] is not None
            assert shop.row(unpaid)["reconcile_error"] is None
            assert await shop.pay(paid, to_mine=2)
            await shop.work()
            assert shop.status(paid) == "pending"  # it was paid after its end
            assert len(shop.settlements(paid)) == 1

    asyncio.run(run())


def test_a_request_older_than_the_tail_is_confirmed_when_it_is_paid_in_time(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil, blocks=10, tail_blocks=5) as shop:
            id_ = await shop.request(created_at=await shop.now() - timedelta(minutes=30))
            await shop.work()
            await shop.pay(id_, to_mine=2)
            await shop.work()
            assert shop.reasons(id_) == ["payment_confirmed"]

    asyncio.run(run())


@pytest.mark.parametrize("corrected", ["token", "settlement"])
def test_a_payment_that_became_its_own_after_the_block_was_read_is_found_before_it_expires(
    database: Database, anvil: Anvil, corrected: str
) -> None:
    """A wrong token put right by hand, a settlement deleted by hand: both were seen to expire, paid in time."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            now = await shop.now()
            id_ = await shop.token_request(created_at=now, expires_at=now + SOON)
            right = shop.row(id_)["token_contract"]
            await shop.work()
            assert shop.row(id_)["reconcile_admitted_height"] is not None
            if corrected == "token":
                database.execute("UPDATE app.payment_requests SET token_contract = '0xdead' WHERE id = %s", [id_])
                await shop.chain.send_token(right, shop.row(id_)["address_canonical"], 5_000_000)
                await shop.chain.mine()
            else:
                await shop.pay(id_)
            await shop.desk.scan()
            database.execute("DELETE FROM app.payment_request_settlements")
            database.execute("UPDATE app.payment_requests SET token_contract = %s WHERE id = %s", [right, id_])
            await let_it_end(shop, id_)
            await shop.work()
            await shop.work()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_a_request_whose_end_is_reached_while_another_expires_is_looked_at_once_more_too(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not over in the first view, but is in the second, which is taken after the tail was asked for the other.

    Seen to fail (expired, paid in time) when the second view's decisions are all written. Without the balance
    audit, which would find the money as well.
    """

    async def run() -> None:
        async with open_shop(database, anvil, policy=replace(POLICY, audits_balances=False)) as shop:
            now = await shop.now()
            other = await ending_soon(shop)
            id_ = await shop.request(created_at=now, expires_at=now + 2 * SOON)
            await shop.work()
            await shop.pay(id_)
            await shop.desk.scan()
            database.execute("DELETE FROM app.payment_request_settlements")
            await let_it_end(shop, other)
            await shop.desk.scan()
            real = reconciler.admission.look_again

            async def look_again(*arguments: Any) -> None:
                await real(*arguments)
                monkeypatch.setattr(reconciler.admission, "look_again", real)
                await let_it_end(shop, id_)
                await shop.desk.scan()

            monkeypatch.setattr(reconciler.admission, "look_again", look_again)
            shop.make_due()
            await shop.desk.look()
            assert shop.status(other) == "expired"
            await shop.work()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_money_in_a_block_that_is_not_stored_any_more_counts_only_once_it_is_seen_again(
    database: Database, anvil: Anvil
) -> None:
    """After the chain's tables were made anew; it was seen to be confirmed by blocks of another branch."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.pay(id_)
            await shop.desk.scan()
            database.execute("UPDATE app.chain_blocks SET block_hash = '0xother' WHERE height = %s", [shop.scanned()])
            await shop.chain.mine(5)
            await shop.work()
            assert shop.status(id_) == "pending"

    asyncio.run(run())
