"""The chain takes blocks back: what follows it, what does not move, and where everything stops."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from reconsup.demo import token
from reconsup.demo.anvil import Anvil
from tests.support.deep import Memory, final_chain
from tests.support.desk import ETHER, POLICY, Shop, open_shop
from tests.support.postgres import Database
from tests.support.proxy import Proxy, proxy_before

pytestmark = pytest.mark.service

DEPTH = POLICY.expiry_confirmations


async def confirmed(shop: Shop, id_: str, blocks: int = 2) -> str:
    """Have it paid in full, `blocks` blocks deep, and confirmed; the transaction's hash."""
    tx_hash = await shop.pay(id_, to_mine=blocks)
    await shop.work()
    assert shop.status(id_) == "confirmed"
    return tx_hash


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_payment_that_is_mined_again_elsewhere_is_taken_back_and_confirmed_again(
    database: Database, depth: int
) -> None:
    """Mined again behind another transfer, so that its log has another number: another evidence_ref, one payment.

    On an anvil of its own: on one that had served other tests, the payment was seen to be mined again without a log.
    """

    async def run(anvil: Anvil) -> None:
        async with open_shop(database, anvil, blocks=5, policy=replace(POLICY, confirmations=1)) as shop:
            id_ = await shop.token_request()
            tx_hash = await confirmed(shop, id_, depth)
            raw = await shop.chain.raw(tx_hash)
            old = shop.settlements(id_)[f"{tx_hash}:0"]
            await shop.chain.reorg(depth)
            await shop.desk.work()
            assert shop.status(id_) == "reorged"
            _expect_proof(shop, id_, old)
            await shop.chain.mine()
            await _mine_again(shop, tx_hash, raw)
            await shop.desk.work()
            assert shop.status(id_) == "confirmed"
            assert shop.reasons(id_) == ["payment_confirmed", "payment_reorged", "payment_reconfirmed"]
            settled = shop.settlements(id_)
            assert [settled[f"{tx_hash}:{index}"]["is_canonical"] for index in (0, 1)] == [False, True]
            assert shop.entries(id_)[-1]["amount_minor"] == shop.row(id_)["expected_amount_minor"]
            times = {each["metadata"]["first_block_time"] for each in settled.values()}
            assert len(times) == 1  # when it was first seen does not change

    with Anvil() as own:
        asyncio.run(run(own))


async def _mine_again(shop: Shop, tx_hash: str, raw: str) -> None:
    """Replace the newest block by one with a transfer of nothing and then the payment."""
    await shop.chain.reorg(1, [(await _transfer_of_nothing(shop), 0), (raw, 0)])
    receipt = await shop.chain.receipt(tx_hash)
    assert receipt, "anvil left the payment out"
    assert [log["logIndex"] for log in receipt["logs"]] == ["0x1"], receipt


async def _transfer_of_nothing(shop: Shop) -> dict[str, str]:
    return {
        "from": shop.chain.accounts[1],
        "to": await shop.token(),
        "data": token.transfer("0x" + "12" * 20, 0),
        "gas": hex(200_000),
    }


def _expect_proof(shop: Shop, id_: str, old: dict[str, Any]) -> None:
    """The history says which block went and which one stands there now; so does the settlement."""
    entry = shop.entries(id_)[-1]
    (settlement,) = shop.settlements(id_).values()
    proof = entry["proof"]
    assert entry["reason"] == "payment_reorged"
    assert (proof["height"], proof["block_hash"]) == (old["block_height"], old["block_hash"])
    assert proof["new_hash"] != old["block_hash"]
    assert settlement["metadata"]["reorg"] == proof
    assert (settlement["is_canonical"], settlement["block_hash"]) == (False, old["block_hash"])


def test_a_payment_that_comes_back_is_detected_and_confirmed_by_its_new_depth(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil, blocks=3) as shop:
            id_ = await shop.request()
            raw = await shop.chain.raw(await confirmed(shop, id_, 3))
            await shop.chain.reorg(3, [(raw, 2)])
            assert await shop.desk.scanner.turn() == 0  # back to the fork, and no farther
            await shop.desk.look()
            assert shop.status(id_) == "reorged"
            await shop.desk.work()
            assert shop.status(id_) == "detected"
            await shop.chain.mine()
            await shop.desk.work()
            assert shop.reasons(id_) == [
                "payment_confirmed", "payment_reorged", "payment_detected", "payment_reconfirmed"
            ]  # fmt: skip
            (settlement,) = shop.settlements(id_).values()
            assert (settlement["is_canonical"], settlement["block_height"]) == (True, shop.scanned() - 1)
            assert "reorg" not in settlement["metadata"]

    asyncio.run(run())


def test_a_payment_that_was_mined_again_before_anybody_looked_leaves_the_status(
    database: Database, anvil: Anvil
) -> None:
    """Rolled back and read again: at the look nothing is missing, so there is nothing to prove."""

    async def run() -> None:
        async with open_shop(database, anvil, blocks=3) as shop:
            id_ = await shop.request()
            raw = await shop.chain.raw(await confirmed(shop, id_, 3))
            await shop.chain.reorg(3, [(raw, 2)])
            await shop.desk.work()
            assert shop.reasons(id_) == ["payment_confirmed"]
            (settlement,) = shop.settlements(id_).values()
            assert (settlement["is_canonical"], settlement["block_height"]) == (True, shop.scanned())

    asyncio.run(run())


def test_what_the_chain_leaves_is_detected_at_once(database: Database, anvil: Anvil) -> None:
    """Two steps, one after the other: nobody waits for a poll in between.

    Seen to fail (reorged) when the cycle does not say that a row is due again.
    """

    async def run() -> None:
        async with open_shop(database, anvil, policy=replace(POLICY, detected_threshold_bps=5_000)) as shop:
            id_ = await shop.request()
            await shop.pay(id_, ETHER // 2)
            await shop.pay(id_, ETHER // 2, to_mine=2)
            await shop.desk.work()
            await shop.chain.reorg(2)
            await shop.desk.work()
            assert shop.reasons(id_) == ["payment_confirmed", "payment_reorged", "payment_detected"]

    asyncio.run(run())


def test_a_detected_payment_that_vanishes_is_reorged(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.pay(id_)
            await shop.desk.work()
            await shop.chain.reorg(1)
            await shop.desk.work()
            assert shop.reasons(id_) == ["payment_detected", "payment_reorged"]

    asyncio.run(run())


def test_a_payment_that_never_comes_back_expires_once_it_had_time_to(database: Database, anvil: Anvil) -> None:
    """Seen to fail (expired at once) without the time that an orphaned credit is given to be mined again."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            now = await shop.now()
            id_ = await shop.request(expires_at=now)
            await shop.chain.set_next_block_time(int(now.timestamp()))
            await confirmed(shop, id_, 2)
            await shop.chain.mine(DEPTH + 1)
            await shop.desk.scan()
            orphaned_at = shop.scanned()
            await shop.chain.call("anvil_rollback", DEPTH + 3)
            await shop.mine_at(now + timedelta(seconds=60))  # deep enough behind its end, from the very first
            await shop.chain.mine(DEPTH + 2)
            await shop.work()
            seen = [shop.status(id_)]
            while shop.status(id_) == "reorged":
                await shop.chain.mine()
                await shop.work()
                seen.append(shop.status(id_))
            assert seen == ["reorged"] * DEPTH + ["expired"]
            assert shop.scanned() == orphaned_at + DEPTH
            assert shop.reasons(id_)[-1] == "payment_expired"

    asyncio.run(run())


def test_a_reorg_of_other_blocks_changes_no_request(database: Database, anvil: Anvil) -> None:
    """Whole rows are compared. Nothing is due; only what the reorg touched would be looked at."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            ids = [await shop.request(), await shop.token_request(), await shop.request(), await shop.request()]
            for id_ in ids[:2]:
                await confirmed(shop, id_)
            await shop.pay(ids[2], 5)  # not enough
            await shop.work()
            await shop.chain.mine(5)
            await shop.desk.work()
            rows, settled = shop.rows(), [shop.settlements(id_) for id_ in ids]
            before = shop.cursor()
            await shop.chain.reorg(4)
            await shop.desk.work()
            assert shop.cursor()["tip_hash"] != before["tip_hash"]
            assert shop.scanned() == before["next_height"] - 1
            assert shop.rows() == rows
            assert [shop.settlements(id_) for id_ in ids] == settled

    asyncio.run(run())


def test_a_reorg_during_a_long_absence_is_found(database: Database, anvil: Anvil) -> None:
    """The head is farther away than a walk by single headers would go."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await confirmed(shop, id_)
            await shop.chain.reorg(2)
            await shop.chain.mine(300)
            shop.desk.calls.clear()
            await shop.desk.work()
            assert shop.scanned() == await shop.chain.height()
            assert shop.reasons(id_)[-1] == "payment_reorged"
            assert sum(method == "eth_getBlockByNumber" for method, _ in shop.desk.calls) < 1500

    asyncio.run(run())


# below what is final


def test_a_reorg_below_what_is_final_stops_the_network_until_the_old_chain_is_shown_again(database: Database) -> None:
    """Seen to fail (no alarm, only refused rollbacks) when the walk back goes on below what is final."""

    async def run(anvil: Anvil, proxy: Proxy) -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=3) as shop:
            paid, unpaid = await shop.request(), await shop.request()
            await confirmed(shop, paid, 6)
            assert shop.cursor()["finalized_height"] == shop.scanned() - 2
            memory = Memory(proxy, anvil)
            await shop.chain.reorg(3)
            await _expect_stop(shop, unpaid)
            memory.show()
            assert await shop.desk.scanner.turn() == 0  # started again
            assert shop.cursor()["stop_reason"] is None
            await shop.work()
            assert shop.row(unpaid)["reconcile_lease_epoch"] > 1
            assert shop.status(paid) == "confirmed"
            memory.forget()
            await _expect_stop(shop, unpaid)

    with final_chain() as anvil, proxy_before(anvil.url) as proxy:
        asyncio.run(run(anvil, proxy))


async def _expect_stop(shop: Shop, unpaid: str) -> None:
    """The alarm is on the cursor; nothing else is written, and nothing is leased."""
    shop.make_due()
    before, cursor = shop.rows(), shop.cursor()
    for _ in range(3):
        await shop.desk.scan()
        await shop.desk.look()
    after = shop.cursor()
    assert "below what is final" in str(after["stop_reason"])
    assert (after["next_height"], after["tip_hash"]) == (cursor["next_height"], cursor["tip_hash"])
    assert shop.rows() == before
    assert shop.row(unpaid)["reconcile_lease_owner"] is None


def test_a_reorg_down_to_what_is_final_is_followed(database: Database) -> None:
    """Its neighbour: nothing final was taken back."""

    async def run(anvil: Anvil) -> None:
        async with open_shop(database, anvil, blocks=8) as shop:
            await shop.desk.scan()
            assert shop.cursor()["finalized_height"] == 6
            await shop.chain.reorg(2)
            await shop.desk.scan()
            assert (shop.scanned(), shop.cursor()["stop_reason"]) == (8, None)

    with final_chain() as anvil:
        asyncio.run(run(anvil))


def test_a_stopped_network_is_one_row_of_alarm_and_few_calls(database: Database) -> None:
    async def run(anvil: Anvil) -> None:
        async with open_shop(database, anvil, blocks=8) as shop:
            await shop.desk.scan()
            await shop.chain.reorg(5)
            await shop.desk.scan()
            stopped = shop.cursor()["stopped_at"]
            shop.desk.calls.clear()
            assert await shop.desk.scanner.turn() > 0
            assert len(shop.desk.calls) == 1
            assert shop.cursor()["stopped_at"] == stopped

    with final_chain() as anvil:
        asyncio.run(run(anvil))


def test_what_was_read_ahead_before_a_reorg_is_not_stored_after_it(database: Database, anvil: Anvil) -> None:
    """Seen to fail (the payment is confirmed, and then reorged) when the head in hand is not compared with it."""

    async def run() -> None:
        async with open_shop(database, anvil, blocks=5, policy=replace(POLICY, confirmations=1)) as shop:
            await shop.work()
            id_ = await shop.request()
            await shop.chain.mine(52)
            await shop.pay(id_)
            assert await shop.desk.scanner.turn() == 0  # fifty blocks; the three others are read meanwhile
            ahead = shop.desk.scanner._ahead
            assert ahead is not None
            assert ahead._task is not None
            await asyncio.wait([ahead._task])
            await shop.chain.reorg(1)
            await shop.work()
            await shop.work()
            assert shop.scanned() == await shop.chain.height()
            assert shop.settlements(id_) == {}
            assert shop.reasons(id_) == []

    asyncio.run(run())
