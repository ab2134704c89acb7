"""The connection breaks at the COMMIT of a batch: the worker cannot know, and the rows are right all the same."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from reconsup.demo.anvil import Anvil
from reconsup.store import leases
from reconsup.store.errors import StoreUnavailable
from tests.support.desk import Desk, Shop, open_shop
from tests.support.postgres import Database
from tests.support.road import LOSSES, Loss, Road, road_to

pytestmark = pytest.mark.service

LEASE_SECONDS = 6.0  # so a silent client's transaction is ended after two


async def paid(shop: Shop, desk: Desk, count: int = 3) -> list[str]:
    """So many requests, paid and deep enough, of which nobody has decided anything; the desk may look at them."""
    await shop.desk.scan()
    await desk.scan()
    ids = [await shop.request() for _ in range(count)]
    for id_ in ids:
        await shop.pay(id_)
    await shop.chain.mine()
    await shop.desk.scan()
    return ids


async def break_at_commit(road: Road, desk: Desk, loss: Loss) -> None:
    """Look, and hear nothing of the write."""
    road.breaks(loss, after="WITH locked")
    with pytest.raises(StoreUnavailable):
        await desk.reconciler.look_around()
    assert road.broken == 1


def expect_what_was_done(shop: Shop, desk: Desk, loss: Loss) -> None:
    """All of the batch or nothing of it."""
    found = {(row["status"], row["reconcile_lease_owner"]) for row in shop.rows().values()}
    assert found == ({("confirmed", None)} if loss == "done" else {("pending", desk.owner)})


def expect_confirmed_once(shop: Shop, ids: list[str]) -> None:
    assert [shop.reasons(id_) for id_ in ids] == [["payment_confirmed"]] * len(ids)
    left: dict[str, Any] = {"status": "confirmed", "reconcile_lease_owner": None, "next_reconcile_at": None}
    assert [{name: row[name] for name in left} for row in shop.rows().values()] == [left] * len(ids)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_worker_that_hears_nothing_of_its_write_gives_back_and_decides_again(
    database: Database, anvil: Anvil, loss: Loss
) -> None:
    """Each payment is told once, and nothing is leased until the lease's end.

    `silent`: the server does not know either, and keeps the rows locked until its own time-out. Seen to fail (leased
    until the end) when it is not remembered that leases may be held.
    """

    async def run() -> None:
        async with (
            open_shop(database, anvil) as shop,
            road_to(database.url) as road,
            Desk(replace(database, url=road.url), anvil.url, slot=1, lease_seconds=LEASE_SECONDS) as desk,
        ):
            ids = await paid(shop, desk)
            began = time.monotonic()
            await break_at_commit(road, desk, loss)
            expect_what_was_done(shop, desk, loss)
            await desk.look()
            assert time.monotonic() - began < LEASE_SECONDS
            expect_confirmed_once(shop, ids)

    asyncio.run(run())


@pytest.mark.parametrize("loss", LOSSES)
def test_a_worker_that_dies_before_it_hears_of_its_write_is_buried_and_another_goes_on(
    database: Database, anvil: Anvil, loss: Loss
) -> None:
    """The janitor ends what is left of its connections first, so that nothing is waited for."""

    async def run() -> None:
        async with (
            open_shop(database, anvil) as shop,
            road_to(database.url) as road,
            Desk(replace(database, url=road.url), anvil.url, slot=1, lease_seconds=LEASE_SECONDS) as desk,
        ):
            ids = await paid(shop, desk)
            for connected in desk.reconciler._databases:
                connected._application_name = "reconsup/00000000000000aa"
                await connected.close()
            await break_at_commit(road, desk, loss)
            buried = await leases.bury(
                shop.desk.reconciler._databases[0],
                incarnation="00000000000000aa",
                owner=desk.owner,
                row=None,
                is_charged=False,
            )
            assert buried.requests == (0 if loss == "done" else len(ids))
            await shop.desk.look()
            expect_confirmed_once(shop, ids)

    asyncio.run(run())


def test_a_silent_server_that_did_it_is_not_asked_to_do_it_again(database: Database, anvil: Anvil) -> None:
    """Three times in a row the answer is lost, each time after the COMMIT: one entry a payment, none more."""

    async def run() -> None:
        async with (
            open_shop(database, anvil) as shop,
            road_to(database.url) as road,
            Desk(replace(database, url=road.url), anvil.url, slot=1, batch_size=1) as desk,
        ):
            ids = await paid(shop, desk, 6)  # two in hand at each look
            for _ in range(3):
                road.broken = 0
                await break_at_commit(road, desk, "done")
            await desk.look()
            expect_confirmed_once(shop, ids)

    asyncio.run(run())
