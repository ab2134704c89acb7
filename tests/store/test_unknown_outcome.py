"""The connection dies at COMMIT, or at a single statement: whether it was done, the one who sent it cannot know.

Nobody tries it again blindly. What is sent next is right in both cases: nothing is written, granted or counted twice,
and nothing stays leased.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import pytest

from reconsup.payments.request import Reason, Status
from reconsup.store import admission, leases, ledger
from reconsup.store import cursor as cursors
from reconsup.store.errors import StoreUnavailable
from tests.support.ledgers import (
    LEASE_SECONDS,
    NETWORK,
    OTHER,
    OWNER,
    SCANNER,
    Chain,
    Emptied,
    born,
    claimed,
    commit,
    committed,
    decided,
    ether,
    hash_of,
    history_of,
    ids_of,
    is_due_and_free,
    now,
    persisted,
    request_of,
    settlements_of,
    store,
)
from tests.support.road import Loss, Road, road_to
from tests.support.stepped import Stepped

pytestmark = pytest.mark.service

CONFIRMED = decided(Status.CONFIRMED, Reason.CONFIRMED)
ADDRESS = "0x" + "ab" * 20
either_way = pytest.mark.parametrize("loss", ["never sent", "done"])


def sent(worker: Stepped, words: str) -> int:
    return len([statement for statement in worker.sent if words in statement])


async def lost(road: Road, doing: Awaitable[Any]) -> None:
    """It ends as a database that is away, because the road broke, once."""
    with pytest.raises(StoreUnavailable):
        await doing
    assert road.broken == 1


@either_way
def test_a_decision_of_which_nothing_was_heard_is_told_once(emptied: Emptied, loss: Loss) -> None:
    """It is not sent again by itself; sent again by hand, it is written once or refused.

    Seen to fail (sent again behind its back) when OperationalError is among what is retried, and (told twice) when all
    of the fence is out: owner, epoch, status and touch cover for each other here.
    """
    id_ = emptied.insert()

    async def story() -> None:
        async with road_to(emptied.url) as road, Stepped(road.url, name="worker") as worker:
            await born(worker, Chain())
            batch = await claimed(worker)
            road.breaks(loss, after="WITH locked")
            await lost(road, persisted(worker, batch, CONFIRMED))
            assert sent(worker, "WITH locked") == 1
            row = request_of(emptied, id_)
            is_done = loss == "done"
            assert (row["status"], row["reconcile_lease_owner"]) == (
                ("confirmed", None) if is_done else ("pending", OWNER)
            )
            assert len(history_of(emptied, id_)) == is_done
            again = await persisted(worker, batch, CONFIRMED)
            assert (again.written, again.refused) == (
                (frozenset(), Counter(lease_lost=1)) if is_done else ({id_}, Counter())
            )

    asyncio.run(story())
    assert [entry["reason"] for entry in history_of(emptied, id_)] == ["payment_confirmed"]
    assert request_of(emptied, id_)["reconcile_lease_owner"] is None


@either_way
def test_a_decision_of_which_nothing_was_heard_is_not_written_over_its_successors(emptied: Emptied, loss: Loss) -> None:
    """The worker hears nothing, its leases are given back, another decides, and then it tries once more."""
    id_ = emptied.insert()

    async def story() -> None:
        async with (
            road_to(emptied.url) as road,
            store(emptied) as other,
            Stepped(road.url, name="worker") as worker,
        ):
            await born(other, Chain())
            batch = await claimed(worker)
            road.breaks(loss, after="WITH locked")
            await lost(road, persisted(worker, batch, decided(Status.DETECTED, Reason.DETECTED, seconds=0.0)))
            given_back = await leases.release_requests(other, OWNER)
            assert given_back == (loss == "never sent")
            theirs = await claimed(other, owner=OTHER)
            assert [claim.epoch for claim in theirs.claims] == [2]
            assert (await persisted(other, theirs, CONFIRMED)).written == {id_}
            assert (await persisted(worker, batch, CONFIRMED)).refused == Counter(lease_lost=1)

    asyncio.run(story())
    told = [(entry["from_status"], entry["to_status"], entry["lease_epoch"]) for entry in history_of(emptied, id_)]
    assert (
        told
        == {
            "never sent": [("pending", "confirmed", 2)],
            "done": [("pending", "detected", 1), ("detected", "confirmed", 2)],
        }[loss]
    )


@either_way
def test_a_touch_that_was_lost_behind_its_commit_is_made_by_the_next_block(emptied: Emptied, loss: Loss) -> None:
    """The decision waits for a height that is reached already; the statement which sees that was cut off."""
    id_ = emptied.insert()
    chain = Chain()

    async def story() -> None:
        async with road_to(emptied.url) as road, store(emptied) as scanner, Stepped(road.url) as worker:
            cursor = (await committed(scanner, await born(scanner, chain), *chain.mined(2))).cursor
            batch = await claimed(worker)
            road.breaks(loss, after="reached AS MATERIALIZED", at="reached AS MATERIALIZED")
            waits = decided(Status.PENDING, seconds=600.0, height=cursor.scanned_height)
            await lost(road, persisted(worker, batch, waits))
            assert request_of(emptied, id_)["reconcile_lease_owner"] is None
            assert is_due_and_free(request_of(emptied, id_)) == (loss == "done")
            await committed(scanner, cursor, chain.mine())
            assert ids_of(await claimed(scanner)) == [id_]

    asyncio.run(story())


@either_way
def test_a_grant_of_which_nothing_was_heard_is_given_back_by_its_owner(emptied: Emptied, loss: Loss) -> None:
    """Nobody waits for its end, and its epoch is not used again. Seen to fail when the release sets the epoch back."""
    id_ = emptied.insert()

    async def story() -> None:
        async with road_to(emptied.url) as road, Stepped(road.url) as worker:
            await born(worker, Chain())
            road.breaks(loss, after="WITH candidates", at="WITH candidates")
            await lost(road, claimed(worker))
            is_done = loss == "done"
            assert request_of(emptied, id_)["reconcile_lease_epoch"] == is_done
            assert await leases.release_requests(worker, OWNER) == is_done
            assert is_due_and_free(request_of(emptied, id_))
            assert [claim.epoch for claim in (await claimed(worker)).claims] == [1 + is_done]

    asyncio.run(story())


@either_way
def test_leases_that_were_perhaps_given_back_can_be_given_back_again(emptied: Emptied, loss: Loss) -> None:
    """The drain's last act, cut off; what another holds by now is left alone."""
    mine = emptied.insert()

    async def story() -> None:
        async with road_to(emptied.url) as road, store(emptied) as other, Stepped(road.url) as worker:
            await born(other, Chain())
            await claimed(worker)
            road.breaks(loss, after="UPDATE app.chain_spans")
            await lost(road, leases.release(worker, OWNER))
            theirs = await claimed(other, owner=OTHER)
            assert ids_of(theirs) == ([mine] if loss == "done" else [])
            assert (await leases.release(worker, OWNER)).requests == (loss == "never sent")
            assert ids_of(await leases.renew(other, theirs, lease_seconds=30)) == ids_of(theirs)

    asyncio.run(story())


@either_way
def test_a_burial_of_which_nothing_was_heard_counts_once(emptied: Emptied, loss: Loss) -> None:
    """The janitor buries again until it hears. Seen to fail (two deaths) when it does not go by the owner."""
    id_ = emptied.insert()

    async def story() -> None:
        async with road_to(emptied.url) as road, Stepped(road.url) as janitor:
            await born(janitor, Chain())
            await claimed(janitor)
            road.breaks(loss, after="UPDATE app.chain_spans")
            await lost(road, leases.bury(janitor, incarnation="0", owner=OWNER, row=id_))
            again = await leases.bury(janitor, incarnation="0", owner=OWNER, row=id_)
            assert again.requests == (loss == "never sent")
            row = request_of(emptied, id_)
            assert (row["reconcile_crashes"], is_due_and_free(row)) == (1, True)

    asyncio.run(story())


@either_way
def test_a_block_of_which_nothing_was_heard_is_stored_once(emptied: Emptied, loss: Loss) -> None:
    """Sent again it is refused by the cursor, which has moved; the scanner takes the cursor anew and goes on.

    Seen to fail (StoreRejected, the block is there) without next_height and tip in the cursor's fence.
    """
    id_ = emptied.insert(address_canonical=ADDRESS)
    chain = Chain()
    chain.mine(ether(ADDRESS, 7, "one"), time=now())

    async def story() -> None:
        async with road_to(emptied.url) as road, Stepped(road.url) as scanner:
            cursor = await born(scanner, chain)
            road.breaks(loss, after="SET next_height")
            await lost(road, commit(scanner, cursor, *chain.blocks))
            assert sent(scanner, "SET next_height") == 1
            is_done = loss == "done"
            assert len(settlements_of(emptied, id_)) == is_done
            assert (await commit(scanner, cursor, *chain.blocks) is None) == is_done
            taken = await cursors.take(scanner, NETWORK, owner=SCANNER, lease_seconds=LEASE_SECONDS)
            assert taken is not None
            assert taken.next_height == 101
            await committed(scanner, taken, chain.mine(ether(ADDRESS, 8, "two")))

    asyncio.run(story())
    assert {ref: row["amount_minor"] for ref, row in settlements_of(emptied, id_).items()} == {
        hash_of("one"): 7,
        hash_of("two"): 8,
    }


@either_way
def test_a_rollback_of_which_nothing_was_heard_is_made_once(emptied: Emptied, loss: Loss) -> None:
    """Its proof says what was scanned when the fork was found. Seen to fail without height and tip in the fence."""
    id_ = emptied.insert(address_canonical=ADDRESS)
    chain = Chain(first=100)
    chain.mine()
    chain.mine(ether(ADDRESS, 7, "one"), time=now())
    other = chain.branch(100)
    other.mined(2)
    fork = chain.fork_to(other, 100)

    async def story() -> None:
        async with road_to(emptied.url) as road, Stepped(road.url) as scanner:
            cursor = (await committed(scanner, await born(scanner, chain), *chain.blocks)).cursor
            road.breaks(loss, after="SET next_height")
            await lost(road, ledger.roll_back(scanner, cursor, fork, lease_seconds=30))
            again = await ledger.roll_back(scanner, cursor, fork, lease_seconds=30)
            assert (again is None) == (loss == "done")
            taken = await cursors.take(scanner, NETWORK, owner=SCANNER, lease_seconds=LEASE_SECONDS)
            assert taken is not None
            assert (taken.next_height, taken.tip_hash) == (101, fork.block_hash)
            await committed(scanner, taken, *other.blocks[1:])

    asyncio.run(story())
    (settlement,) = settlements_of(emptied, id_).values()
    assert (settlement["is_canonical"], settlement["metadata"]["reorg"]["scanned_height"]) == (False, 101)
    assert is_due_and_free(request_of(emptied, id_))


@either_way
def test_an_admission_of_which_nothing_was_heard_settles_once(emptied: Emptied, loss: Loss) -> None:
    chain = Chain(first=100)
    chain.mine()
    chain.mine(ether(ADDRESS, 7, "one"), time=now())

    async def story() -> None:
        async with road_to(emptied.url) as road, Stepped(road.url) as worker:
            await committed(worker, await born(worker, chain), *chain.blocks)
            id_ = emptied.insert(address_canonical=ADDRESS)
            batch = await claimed(worker)
            road.breaks(loss, after="WITH mine")
            await lost(road, admission.admit(worker, batch))
            assert len(settlements_of(emptied, id_)) == (loss == "done")
            assert await admission.admit(worker, batch) == {id_}
            assert list(settlements_of(emptied, id_)) == [hash_of("one")]

    asyncio.run(story())
