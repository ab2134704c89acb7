"""What was decided is out of date when it is written: it is refused, decided again, and the end is right.

The real reconciler on a real chain; the world changes in the moment before its write.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from reconsup.demo.anvil import Anvil
from reconsup.store import leases, persist
from tests.support.desk import ETHER, Desk, Shop, open_shop
from tests.support.postgres import Database

pytestmark = pytest.mark.service


class Refused:
    """Lets something happen before the next write of a batch, once; notes what of that batch was refused."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_reason: dict[str, int] = {}
        self._happen: Callable[[], Awaitable[object]] | None = None
        real = persist.persist

        async def late(*arguments: Any, **figures: Any) -> persist.Persisted:
            happen, self._happen = self._happen, None
            if happen is None:
                return await real(*arguments, **figures)
            await happen()
            done = await real(*arguments, **figures)
            self.by_reason = dict(done.refused)
            return done

        monkeypatch.setattr(persist, "persist", late)

    def before_the_write(self, happen: Callable[[], Awaitable[object]]) -> None:
        self._happen = happen


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Refused:
    return Refused(monkeypatch)


def expect_at_rest(shop: Shop, id_: str) -> None:
    """Decided again from what is there now: nobody holds it, and nothing is left to be looked at."""
    query = "SELECT reconcile_lease_owner, next_reconcile_at <= now() FROM app.payment_requests WHERE id = %s"
    assert shop.database.fetch(query, [id_]) in ([(None, False)], [(None, None)])


def touch(shop: Shop) -> None:
    shop.outsider.execute("UPDATE app.payment_requests SET next_reconcile_at = now()")


async def taking_back(shop: Shop, blocks: int) -> None:
    """The chain takes its newest blocks back, and the scanner sees it."""
    await shop.chain.reorg(blocks)
    await shop.desk.scan()


# a rollback between view and write


@pytest.mark.parametrize("is_detected_before", [False, True], ids=["pending", "detected"])
def test_a_confirmation_of_money_that_was_just_taken_back_is_never_written(
    database: Database, anvil: Anvil, refused: Refused, is_detected_before: bool
) -> None:
    """Seen to fail (confirmed, and at rest for ever) without next_reconcile_at in the fence."""

    async def run() -> None:
        async with open_shop(database, anvil, blocks=3) as shop:
            id_ = await shop.request()
            await shop.desk.work()
            await shop.pay(id_)
            if is_detected_before:
                await shop.desk.work()
                assert shop.status(id_) == "detected"
            await shop.chain.mine()
            await shop.desk.scan()
            refused.before_the_write(lambda: taking_back(shop, 2))
            assert await shop.desk.reconciler.look_around()
            assert refused.by_reason == {"touched": 1}
            await shop.desk.look()
            assert "payment_confirmed" not in shop.reasons(id_)
            assert shop.status(id_) == ("reorged" if is_detected_before else "pending")
            expect_at_rest(shop, id_)
            await shop.pay(id_, to_mine=2)
            await shop.work()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_a_confirmed_request_whose_money_goes_while_it_is_looked_at_is_reorged(
    database: Database, anvil: Anvil, refused: Refused
) -> None:
    """The stale decision says: all is well, never look again.

    Seen to fail (confirmed for ever, without money) without next_reconcile_at in the fence.
    """

    async def run() -> None:
        async with open_shop(database, anvil, blocks=3) as shop:
            id_ = await shop.request()
            await shop.pay(id_, to_mine=2)
            await shop.desk.work()
            assert shop.status(id_) == "confirmed"
            touch(shop)
            refused.before_the_write(lambda: taking_back(shop, 2))
            assert await shop.desk.reconciler.look_around()
            assert refused.by_reason == {"touched": 1}
            await shop.desk.look()
            assert shop.reasons(id_) == ["payment_confirmed", "payment_reorged"]
            assert shop.entries(id_)[-1]["proof"] is not None
            expect_at_rest(shop, id_)

    asyncio.run(run())


def test_a_reorg_of_money_that_is_mined_again_meanwhile_is_never_written(
    database: Database, anvil: Anvil, refused: Refused
) -> None:
    """Decided from the rollback; before the write the new branch's blocks arrive with the same payment.

    Seen to fail (reorged) without next_reconcile_at in the fence.
    """

    async def run() -> None:
        async with open_shop(database, anvil, blocks=3) as shop:
            id_ = await shop.request()
            raw = await shop.chain.raw(await shop.pay(id_, to_mine=2))
            await shop.desk.work()
            assert shop.status(id_) == "confirmed"
            await shop.chain.reorg(2, [(raw, 0)])
            assert await shop.desk.scanner.turn() == 0  # back to the fork, and no farther
            refused.before_the_write(shop.desk.scan)
            assert await shop.desk.reconciler.look_around()
            assert refused.by_reason == {"touched": 1}
            await shop.desk.look()
            assert (shop.status(id_), shop.reasons(id_)) == ("confirmed", ["payment_confirmed"])
            expect_at_rest(shop, id_)

    asyncio.run(run())


# a commit between view and write


def test_late_money_that_comes_while_a_request_expires_is_told(
    database: Database, anvil: Anvil, refused: Refused
) -> None:
    """Seen to fail (the money is silent) without next_reconcile_at in the fence."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            now = await shop.now()
            id_ = await shop.request(expires_at=now)
            await shop.mine_at(now + timedelta(seconds=10))
            await shop.chain.mine(3)
            await shop.desk.scan()
            await shop.desk.look()
            await shop.desk.audit()

            async def paying() -> None:
                await shop.pay(id_)
                await shop.desk.scan()

            refused.before_the_write(paying)
            assert await shop.desk.reconciler.look_around()
            assert refused.by_reason == {"touched": 1}
            await shop.desk.look()
            assert (shop.status(id_), shop.reasons(id_)) == ("expired", ["payment_expired", "payment_late"])
            expect_at_rest(shop, id_)

    asyncio.run(run())


def test_the_rest_of_an_instalment_that_comes_meanwhile_counts_at_once(
    database: Database, anvil: Anvil, refused: Refused
) -> None:
    """Seen to fail (pending, until its end) without next_reconcile_at in the fence."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.pay(id_, ETHER // 2)
            await shop.desk.scan()

            async def paying_the_rest() -> None:
                await shop.pay(id_, ETHER // 2, to_mine=2)
                await shop.desk.scan()

            refused.before_the_write(paying_the_rest)
            assert await shop.desk.reconciler.look_around()
            assert refused.by_reason == {"touched": 1}
            await shop.desk.look()
            assert shop.reasons(id_) == ["payment_confirmed"]

    asyncio.run(run())


# another worker between view and write


def test_a_worker_whose_row_went_round_to_the_same_status_is_refused(
    database: Database, anvil: Anvil, refused: Refused
) -> None:
    """Its lease ended; another saw the money go and half of it come back. The status is the one it decided from.

    Seen to fail (confirmed) without owner, epoch and next_reconcile_at in the fence: the status alone does not help.
    """

    async def run() -> None:
        async with open_shop(database, anvil, blocks=3) as shop, Desk(database, anvil.url, slot=1) as other:
            await shop.desk.scan()
            await other.scan()
            id_ = await shop.request()
            await shop.pay(id_)
            await shop.desk.work()
            await shop.chain.mine()
            await shop.desk.scan()

            async def overtaking() -> None:
                shop.outsider.execute(
                    "UPDATE app.payment_requests SET reconcile_lease_until = now(), next_reconcile_at = now()"
                )
                await shop.chain.reorg(2)
                await shop.desk.scan()
                await other.look()
                assert shop.status(id_) == "reorged"
                await shop.pay(id_)
                await shop.desk.scan()
                await other.look()
                assert shop.status(id_) == "detected"

            refused.before_the_write(overtaking)
            assert await shop.desk.reconciler.look_around()
            assert refused.by_reason == {"lease_lost": 1}
            assert shop.reasons(id_) == ["payment_detected", "payment_reorged", "payment_detected"]
            assert {entry["lease_owner"] for entry in shop.entries(id_)[1:]} == {other.owner}
            await shop.chain.mine()
            await shop.work()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_a_worker_that_was_buried_in_error_writes_nothing(database: Database, anvil: Anvil, refused: Refused) -> None:
    """Its leases were given back while it was deciding, and another confirmed. It is told once.

    Seen to fail (told twice) without the whole fence.
    """

    async def run() -> None:
        async with open_shop(database, anvil) as shop, Desk(database, anvil.url, slot=1) as other:
            await shop.desk.scan()
            await other.scan()
            id_ = await shop.request()
            await shop.pay(id_, to_mine=2)
            await shop.desk.scan()

            async def burying() -> None:
                await leases.bury(
                    other.reconciler._databases[0], incarnation="0", owner=shop.desk.owner, row=None, is_charged=False
                )
                await other.look()
                assert shop.status(id_) == "confirmed"

            refused.before_the_write(burying)
            assert await shop.desk.reconciler.look_around()
            assert refused.by_reason == {"lease_lost": 1}
            await shop.desk.look()
            assert shop.reasons(id_) == ["payment_confirmed"]
            expect_at_rest(shop, id_)

    asyncio.run(run())
