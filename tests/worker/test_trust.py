"""Leases that are lost, databases that go away, workers that meet: what is not held is not written."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from reconsup.demo.anvil import Anvil
from reconsup.payments.decision import decide
from reconsup.store import leases, ledger
from reconsup.store.errors import StoreUnavailable
from reconsup.worker import pause, reconciler
from tests.support.desk import LOCAL, Desk, open_shop
from tests.support.postgres import Database
from tests.support.stepped import until

pytestmark = pytest.mark.service


def while_deciding(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], object]) -> None:
    """Let something happen once, between the view and the write of a batch."""
    pending = [happen]

    def deciding(*arguments: Any) -> Any:
        if pending:
            pending.pop()()
        return decide(*arguments)

    monkeypatch.setattr(reconciler, "decide", deciding)


class Slow:
    """A clock that is moved by hand beside the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_seconds = 0.0
        for module in (reconciler, leases):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_seconds

    def time(self) -> float:
        return time.time()

    def pass_by(self, seconds: float) -> None:
        self.ahead_seconds += seconds


def end_connections(database: Database, name: str) -> int:
    """End the connections of an application, as a database that goes away does."""
    query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s"
    return len(database.fetch(query, [name]))


# trust in a lease


def test_a_step_that_was_slower_than_the_lease_writes_nothing(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hands back what it had and decides again.

    Seen to fail (confirmed in the first look, by a renewal of what was not trusted any more) without the question
    before the renewal.
    """
    slow = Slow(monkeypatch)

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.pay(id_, to_mine=2)
            await shop.desk.scan()
            while_deciding(monkeypatch, lambda: slow.pass_by(27.1))
            before = shop.row(id_)
            is_due_again = await shop.desk.reconciler.look_around()
            after = shop.row(id_)
            assert (after["status"], shop.reasons(id_)) == ("pending", [])
            assert is_due_again
            assert after["reconcile_lease_owner"] is None
            assert after["next_reconcile_at"] > before["next_reconcile_at"]
            await shop.desk.look()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_a_grant_that_was_slower_than_the_lease_is_not_worked_on(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail (admitted) without the question at the beginning."""
    slow = Slow(monkeypatch)
    real = leases.claim

    async def claim(*arguments: Any, **figures: Any) -> Any:
        batch = await real(*arguments, **figures)
        if batch.claims:
            slow.pass_by(27.1)
        return batch

    monkeypatch.setattr(leases, "claim", claim)

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.pay(id_, to_mine=2)
            await shop.desk.scan()
            assert await shop.desk.reconciler.look_around()
            row = shop.row(id_)
            assert (row["status"], row["reconcile_admitted_height"]) == ("pending", None)
            assert (row["reconcile_lease_owner"], row["reconcile_lease_epoch"]) == (None, 1)

    asyncio.run(run())


def test_long_work_is_renewed_at_a_third_of_the_lease(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what another worker took meanwhile is dropped."""
    slow = Slow(monkeypatch)

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            kept, taken = await shop.request(), await shop.request()
            await shop.pay(kept)
            await shop.pay(taken, to_mine=2)
            await shop.desk.scan()
            sql = (
                "UPDATE app.payment_requests SET reconcile_lease_owner = 'other#1',"
                " reconcile_lease_epoch = reconcile_lease_epoch + 1 WHERE id = %s"
            )

            def happen() -> None:
                slow.pass_by(10.1)
                database.execute(sql, [taken])

            while_deciding(monkeypatch, happen)
            assert await shop.desk.reconciler.look_around()
            assert (shop.status(kept), shop.status(taken)) == ("confirmed", "pending")
            assert shop.row(taken)["reconcile_lease_owner"] == "other#1"
            assert shop.reasons(taken) == []

    asyncio.run(run())


def test_a_row_that_the_chain_touched_while_it_was_decided_is_decided_again_at_once(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The payment arrives between the view and the write. Seen to fail (detected later) without the touch's fence."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.desk.scan()
            await shop.pay(id_)
            await shop.desk.scanner._stand_back()
            while_deciding(monkeypatch, lambda: with_its_own_loop(scanning_elsewhere(database, anvil)))
            assert await shop.desk.reconciler.look_around()
            assert shop.reasons(id_) == []
            await shop.desk.look()
            assert shop.reasons(id_) == ["payment_detected"]

    asyncio.run(run())


def test_a_height_that_was_reached_while_its_row_was_decided_is_looked_at_at_once(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody rings for it. Seen to fail (a poll later) when the persist does not say so."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.pay(id_)
            await shop.desk.scan()
            await shop.desk.scanner._stand_back()
            await shop.chain.mine()
            while_deciding(monkeypatch, lambda: with_its_own_loop(scanning_elsewhere(database, anvil)))
            assert await shop.desk.reconciler.look_around()
            assert shop.status(id_) == "detected"
            await shop.desk.look()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


async def scanning_elsewhere(database: Database, anvil: Anvil) -> None:
    async with Desk(database, anvil.url, slot=2) as desk:
        await desk.scan()


def with_its_own_loop(coroutine: Any) -> None:
    """Run to its end, in a thread of its own: the loop here is in the middle of something."""
    thread = threading.Thread(target=asyncio.run, args=[coroutine])
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


# a database that goes away


@pytest.mark.direct
@pytest.mark.parametrize("lost", ["the grant", "the write"])
def test_leases_of_which_nothing_was_heard_are_given_back(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The connection breaks after the claim, or before the write.

    Seen to fail (leased for half a minute) when it is not remembered that something may be held.
    """
    claim = leases.claim

    async def claim_unheard(*arguments: Any, **figures: Any) -> Any:
        monkeypatch.undo()
        await claim(*arguments, **figures)
        raise StoreUnavailable("the answer was lost")

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            ids = [await shop.request() for _ in range(3)]
            for id_ in ids:
                await shop.pay(id_)
            await shop.chain.mine()
            await shop.desk.scan()
            if lost == "the grant":
                monkeypatch.setattr(leases, "claim", claim_unheard)
            else:
                while_deciding(monkeypatch, lambda: end_connections(database, f"{shop.desk.owner}/look"))
            with pytest.raises(StoreUnavailable):
                await shop.desk.reconciler.look_around()
            assert {row["reconcile_lease_owner"] for row in shop.rows().values()} == {shop.desk.owner}
            await shop.desk.look()
            assert Counter(row["status"] for row in shop.rows().values()) == {"confirmed": 3}
            assert [shop.reasons(id_) for id_ in ids] == [["payment_confirmed"]] * 3

    asyncio.run(run())


def test_the_reconciler_waits_for_its_database_and_goes_on(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop itself: nothing but the drain ends it."""
    monkeypatch.setattr(pause, "AWAY_SECONDS", 0.01)

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.pay(id_, to_mine=2)
            await shop.desk.scan()
            while_deciding(monkeypatch, lambda: end_connections(database, f"{shop.desk.owner}/look"))
            working = asyncio.create_task(shop.desk.reconciler.run())
            await until(database.url, "SELECT 1 FROM app.payment_requests WHERE id = %s AND status = 'confirmed'", id_)
            shop.desk.pauses.stop()
            await working
            assert shop.reasons(id_) == ["payment_confirmed"]

    asyncio.run(run())


@pytest.mark.direct
def test_a_scanner_whose_commit_was_cut_reads_the_block_once_more(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the answer was lost before or after the COMMIT: each payment is there once."""
    commit = ledger.commit

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.desk.work()
            for is_lost_after in (False, True):
                await shop.pay(id_, 5)

                async def breaking(*arguments: Any, after: bool = is_lost_after, **figures: Any) -> Any:
                    monkeypatch.undo()
                    if after:
                        await commit(*arguments, **figures)
                    end_connections(database, f"{shop.desk.owner}/scan")
                    return await commit(*arguments, **figures)

                monkeypatch.setattr(ledger, "commit", breaking)
                before = shop.scanned()
                assert await shop.desk.scanner.turn() == 1.0
                assert shop.scanned() == before + is_lost_after
                assert await shop.desk.scan() > 0
                assert shop.scanned() == before + 1
            assert [each["amount_minor"] for each in shop.settlements(id_).values()] == [5, 5]

    asyncio.run(run())


# two of a kind


def test_of_two_scanners_one_commits_and_the_other_is_fenced(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first was thought dead: its lease was given to the second while its blocks were on their way.

    Seen to fail (the database rejects the block, which is there) without the fence of the cursor.
    """
    commit, done = ledger.commit, []

    async def run() -> None:
        async with open_shop(database, anvil) as shop, Desk(database, anvil.url, slot=1) as second:
            id_ = await shop.request()
            await shop.desk.work()
            await second.scan()
            assert shop.cursor()["scan_lease_owner"] == shop.desk.owner
            await shop.pay(id_)

            async def overtaken(*arguments: Any, **figures: Any) -> Any:
                monkeypatch.undo()
                database.execute("UPDATE app.chain_cursors SET scan_lease_until = now() - interval '1 second'")
                await second.scan()
                done.append(await commit(*arguments, **figures))
                return done[0]

            monkeypatch.setattr(ledger, "commit", overtaken)
            assert await shop.desk.scanner.turn() > 0
            assert done == [None]
            assert shop.cursor()["scan_lease_owner"] == second.owner
            assert shop.scanned() == await shop.chain.height()
            await shop.pay(id_, 5)
            await shop.desk.scan()  # it is not the holder any more, and knows
            assert shop.scanned() == await shop.chain.height() - 1
            await second.work()
            assert len(shop.settlements(id_)) == 2
            assert shop.reasons(id_) == ["payment_confirmed"]

    asyncio.run(run())


def test_a_freed_scan_lease_is_taken_over_by_whoever_asks_next(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop, Desk(database, anvil.url, slot=1) as second:
            await shop.desk.scan()
            await second.scan()
            shop.desk.pauses.stop()
            await shop.desk.scanner.run()  # the drain
            assert shop.cursor()["scan_lease_owner"] is None
            await shop.chain.mine()
            await second.scan()
            assert (shop.cursor()["scan_lease_owner"], shop.scanned()) == (second.owner, 2)

    asyncio.run(run())


def test_a_holder_whose_tip_is_the_head_renews_its_lease_at_a_third_of_it(database: Database, anvil: Anvil) -> None:
    """The endpoint's word that our tip is its head is progress; nothing is written before a third of the lease."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            await shop.desk.scan()
            taken = shop.cursor()
            assert await shop.desk.scanner.turn() == 10.0
            assert shop.cursor() == taken
            shop.desk.scanner._renewed_at -= 10.1
            await shop.desk.scanner.turn()
            assert shop.cursor()["scan_lease_until"] > taken["scan_lease_until"]
            assert shop.cursor()["scan_lease_epoch"] == taken["scan_lease_epoch"]

    asyncio.run(run())


def test_many_workers_confirm_each_request_once(database: Database, anvil: Anvil) -> None:
    """Four desks at the same time, small batches, one scanner among them."""

    async def run() -> None:
        async with open_shop(database, anvil, batch_size=7) as shop:
            ids = [await shop.request() for _ in range(60)]
            for id_ in ids:
                await shop.chain.send(shop.row(id_)["address_canonical"], 10**18)
            await shop.chain.mine(2)
            others = [Desk(database, anvil.url, slot=slot, batch_size=7) for slot in (1, 2, 3)]
            async with others[0], others[1], others[2]:
                desks = [shop.desk, *others]
                await asyncio.gather(*(desk.scan() for desk in desks))
                while any(row["status"] != "confirmed" for row in shop.rows().values()):
                    await asyncio.gather(*(desk.work() for desk in desks))
            assert [shop.reasons(id_) for id_ in ids] == [["payment_confirmed"]] * 60
            assert not any(row["reconcile_lease_owner"] for row in shop.rows().values())

    asyncio.run(run())


def test_a_draining_worker_begins_no_batch(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            await shop.request()
            await shop.desk.scan()
            before = shop.rows()
            shop.desk.pauses.stop()
            await shop.desk.reconciler.run()
            assert await shop.desk.reconciler.look_around() is False
            assert shop.rows() == before

    asyncio.run(run())


def test_only_networks_that_are_served_are_looked_at(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            await shop.request()
            await shop.desk.scan()
            before = shop.rows()
            shop.desk.reconciler._is_served = lambda network: network != LOCAL
            await shop.desk.look()
            assert shop.rows() == before

    asyncio.run(run())
