"""Every statement goes by its index and touches so many pages a row, whatever PostgreSQL knows of the table.

A worker's whole road, a scanner's and a monitor's, at 50,000 and at a million requests of one network and as many
of another; with statistics that are fresh, missing or of another day, and planned both for the values at hand and
for any. Counts, never times. The claim has a file of its own.
"""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import LiteralString

import pytest

from reconsup.chain.block import Block, Header
from reconsup.payments.request import Reason, Status
from reconsup.payments.settlement import Orphaning
from reconsup.store import admission, audit, backlog, findings, leases, refusals, spans, view
from reconsup.store import cursor as cursors
from reconsup.store.persist import persist
from reconsup.store.spans import Span
from tests.support.bulk import FORGOTTEN, OF_ONE_ROW, STATISTICS, Bulk, Statistics, address_of
from tests.support.ledgers import (
    NETWORK,
    OTHER,
    OWNER,
    SCANNER,
    Chain,
    commit,
    decided,
    ether,
    hash_of,
    ids_of,
    now,
    rolled_back,
)
from tests.support.plans import Mode, Plan, Planned

pytestmark = pytest.mark.service

BATCH = 200
DISCARDED_MAX = 10 * BATCH
FEW = 20  # pages of what does nothing
SMALL = {
    "chain_cursors",
    "chain_spans",
    "chain_blocks",
    "request_balances",
}  # tables that stay small, and may be read whole


@dataclass(frozen=True, slots=True)
class Expected:
    """The indexes by which a function goes to the requests, all of them and no other, and the pages that each of its
    statements may touch.
    """

    indexes: frozenset[str]
    pages_max: int


def by(*indexes: str, pages_max: int) -> Expected:
    return Expected(frozenset(indexes), pages_max)


PKEY = "payment_requests_pkey"
MATCH = "reconsup_match_idx"
DUE_HEIGHT = "reconsup_due_height_idx"
BY_OWNER = "reconsup_lease_owner_idx"
AUDIT = "reconsup_audit_idx"

# By function. Pages: those of one statement; each row of a batch costs up to a hundred, because it is found by its
# id once or twice, and an update that finds no room on its page writes to each index.
EXPECTED: dict[str, Expected] = {
    "admit": by(PKEY, MATCH, pages_max=50 * BATCH),  # all of them join a span
    "read the span": by("reconsup_span_idx", pages_max=3 * FEW),
    "step": by(PKEY, MATCH, pages_max=80 * BATCH),
    "close": by(PKEY, "reconsup_span_idx", pages_max=80 * BATCH),
    "look again": by(PKEY, MATCH, pages_max=15 * BATCH),
    "view": by(PKEY, MATCH, pages_max=50 * BATCH),
    "repair": by(PKEY, pages_max=10 * FEW),
    "renew": by(PKEY, pages_max=80 * BATCH),
    "persist": by(PKEY, pages_max=80 * BATCH),
    "release": by(PKEY, BY_OWNER, pages_max=80 * BATCH),
    "bury": by(PKEY, BY_OWNER, pages_max=80 * BATCH),
    "commit": by(PKEY, MATCH, DUE_HEIGHT, pages_max=120 * BATCH),
    "touch due": by(PKEY, DUE_HEIGHT, pages_max=FEW),
    "roll back": by(PKEY, pages_max=80 * BATCH),
    "find the refused": by(PKEY, "reconsup_claim_idx", pages_max=80 * BATCH),
    "tell of the refused": by(PKEY, pages_max=20 * FEW),
    "claim a suspect": by(PKEY, "reconsup_suspect_idx", pages_max=150),
    "sweep": by(PKEY, "reconsup_forgotten_idx", pages_max=100 * FORGOTTEN),
    "audit": by(AUDIT, pages_max=30 * BATCH),
    "audit before expiry": by(AUDIT, pages_max=30 * BATCH),
    "mark": by(PKEY, pages_max=80 * BATCH),
    "open a case": by(PKEY, MATCH, pages_max=20 * FEW),
    "record a finding": by(PKEY, MATCH, pages_max=20 * FEW),
}

# Where a million rows may still be gone through, as measured: PostgreSQL cannot know that what it looks for is rare.
UNBOUNDED: set[tuple[str, Statistics]] = {
    ("find the refused", OF_ONE_ROW),  # as the claim, which it is
    ("audit", OF_ONE_ROW),
    ("audit before expiry", OF_ONE_ROW),
}


async def workers_road(planned: Planned) -> None:
    """What a worker does with a batch, and what is done when it leaves or dies."""

    async def claim() -> leases.Batch:
        work = leases.claim(planned, NETWORK, owner=OWNER, lease_seconds=30, limit=BATCH)
        batch = await planned.of("claim", work)
        assert len(batch.claims) == BATCH
        return batch

    batch = await claim()
    ids = ids_of(batch)
    await planned.of("admit", admission.admit(planned, batch))
    await planned.of("look again", admission.look_again(planned, batch))
    await planned.of("view", view.read(planned, NETWORK, ids, expiry_confirmations=12))
    await planned.of("repair", admission.repair(planned, batch, ids[:10]))
    batch = await planned.of("renew", leases.renew(planned, batch, lease_seconds=60))
    proof = Orphaning(height=1, block_hash="0x1", new_hash="0x2", scanned_height=2)
    look = decided(Status.PENDING, Reason.REORGED_AFTER_FINALITY, seconds=60.0, height=1, proof=proof)
    persisted = await planned.of("persist", persist(planned, batch, dict.fromkeys(ids[::2], look), worker_id="w"))
    assert len(persisted.written) == BATCH // 2  # the others are handed back
    assert persisted.is_due_again  # their height is reached
    await claim()
    assert (await planned.of("release", leases.release(planned, OWNER))).requests == BATCH
    await claim()
    assert (await planned.of("bury", leases.bury(planned, incarnation="0", owner=OWNER, row=None))).requests == BATCH


async def scanners_road(planned: Planned) -> None:
    """A block that pays a whole batch comes, and goes."""
    cursor = await cursors.take(planned, NETWORK, owner=SCANNER, lease_seconds=30)
    assert cursor is not None
    assert cursor.tip_time is not None
    chain = Chain(first=cursor.next_height)
    chain.parent = Header(cursor.scanned_height, cursor.tip_hash, cursor.tip_hash, cursor.tip_time)
    paid = (ether(address_of(10 * number + 3), 1000, number) for number in range(BATCH))
    chain.mine(*paid, time=now() + timedelta(seconds=2))
    done = await planned.of("commit", commit(planned, cursor, *chain.blocks))
    assert done is not None
    assert done.touched == done.settlements == BATCH
    assert await planned.of("touch due", cursors.touch_due(planned, NETWORK, "scanned")) == 0
    other = chain.branch(cursor.scanned_height)
    other.mined(2)
    fork = chain.fork_to(other, cursor.scanned_height)
    assert (await planned.of("roll back", rolled_back(planned, done.cursor, fork))).orphaned == BATCH


async def rare_roads(planned: Planned) -> None:
    """What is asked for now and then."""
    work = leases.claim(planned, NETWORK, owner=OTHER, lease_seconds=30, limit=1, suspects=True)
    assert len((await planned.of("claim a suspect", work)).claims) == 1
    work = refusals.find(planned, NETWORK, owner=OTHER, lease_seconds=30, limit=BATCH)
    assert await planned.of("find the refused", work) == {}
    told = refusals.tell(
        planned, {f"pr_{number:08}": "a check" for number in range(9, 100, 10)}, worker_id="w", owner=OTHER
    )
    await planned.of("tell of the refused", told)
    assert await planned.of("sweep", leases.sweep(planned, [NETWORK])) == FORGOTTEN


async def auditors_road(planned: Planned) -> None:
    """A page of requests is compared, a page is marked before it expires, and one of them got money without a log."""
    cursor = await cursors.take(planned, NETWORK, owner=SCANNER, lease_seconds=30)
    assert cursor is not None
    await planned.of("prepare", planned.fetch(_ADMITTED, {"last": f"pr_{3 * BATCH:08}"}))
    first = await planned.of("audit", audit.read_page(planned, NETWORK, None, limit=BATCH))
    assert first is not None
    second = await planned.of("audit", audit.read_page(planned, NETWORK, first.last, limit=BATCH))
    assert second is not None
    assert len({each.id for each in first.accounts + second.accounts}) == 2 * BATCH
    ended = now() + timedelta(days=2)
    due = await planned.of(
        "audit before expiry", audit.read_page(planned, NETWORK, None, limit=BATCH, ends_before=ended)
    )
    assert due is not None
    assert len(due.accounts) == BATCH
    assert await planned.of("mark", audit.mark(planned, cursor, due, due.accounts)) == BATCH
    case = await planned.of("open a case", findings.open_case(planned, cursor, second.accounts[0].id))
    assert case is not None
    money = findings.Found(f"{due.block_hash}:delta", 1000, due.height, due.block_hash)
    finding = findings.Finding(due.height, due.block_hash, (money,), 0, 0, 0)
    recorded = await planned.of("record a finding", findings.record(planned, cursor, case, finding))
    assert recorded == (money.evidence_ref,)


_ADMITTED: LiteralString = """
UPDATE app.payment_requests SET reconcile_admitted_height = 1
WHERE chain = 'ethereum' AND network = 'local' AND id <= %(last)s
"""


async def road_down(planned: Planned) -> None:
    """The span that the batch opened: a block that pays them all, one that is older than all, and its end."""

    async def read() -> Span:
        span = await planned.of("read the span", spans.read(planned, NETWORK, join_seconds=0))
        assert span is not None
        return span

    assert await spans.take(planned, await read(), owner=OWNER, lease_seconds=30)
    paid = tuple(ether(address_of(10 * number + 3), 1000, f"old {number}") for number in range(BATCH))
    for credits_, time in ((paid, now()), ((), now() - timedelta(days=300))):
        span = await read()
        header = Header(span.next_height, span.next_hash, hash_of("below"), time)
        work = spans.step(planned, span, [Block(header, credits_, proven=False)], lease_seconds=30)
        done = await planned.of("step", work)
        assert done is not None
        assert done.settlements == done.touched == len(credits_)
    closed = await planned.of("close", spans.close(planned, await read()))
    assert closed is not None
    assert (closed.admitted > 0, closed.is_over) == (True, True)


def plans_of(bulk: Bulk, mode: Mode) -> dict[str, list[Plan]]:
    """The plans of everything in `EXPECTED`, by function."""

    async def story() -> list[Plan]:
        async with Planned(bulk, mode) as planned:
            await workers_road(planned)
            await road_down(planned)
            await scanners_road(planned)
            await rare_roads(planned)
            await auditors_road(planned)
            return planned.plans

    found = defaultdict(list)
    for plan in asyncio.run(story()):
        found[plan.function].append(plan)
    return found


@pytest.mark.parametrize("mode", ["custom", "generic"])
@pytest.mark.parametrize("statistics", [*STATISTICS, OF_ONE_ROW])
def test_every_statement_goes_by_its_index_whatever_postgresql_knows(
    bulk: Bulk, statistics: Statistics, mode: Mode
) -> None:
    """Seen to fail when the burial joins what it has locked, when the due heights that are reached have no lower bound,
    when a persist asks by the index of the due heights or reads the history without OFFSET 0, and when the view joins
    its settlements without LATERAL, when what is told of the refused looks into the history without OFFSET 0: each
    time a whole table was read.
    """
    bulk.remember(statistics)
    plans = plans_of(bulk, mode)
    for function, expected in EXPECTED.items():
        for plan in plans[function]:
            print(f"{function:16} {plan.pages:8} pages {plan.discarded:8} rows discarded: {plan.shape}")
        if (function, statistics) in UNBOUNDED:
            assert max(plan.pages for plan in plans[function]) <= 2 * bulk.size
            continue
        used = set().union(*(plan.indexes for plan in plans[function]))
        shapes = [plan.shape for plan in plans[function]]
        assert used == expected.indexes, (function, shapes)
        assert max(plan.pages for plan in plans[function]) <= expected.pages_max, (function, shapes)
        assert max(plan.discarded for plan in plans[function]) <= DISCARDED_MAX, (function, shapes)
        assert max(plan.sorted_rows for plan in plans[function]) <= BATCH, (function, shapes)
        if bulk.size >= 1_000_000 or function in ("view", "persist", "tell of the refused"):
            assert set().union(*(plan.read_whole for plan in plans[function])) <= SMALL, (function, shapes)


@pytest.mark.parametrize("mode", ["custom", "generic"])
@pytest.mark.parametrize("statistics", STATISTICS)
def test_the_monitors_reading_counts_no_further_than_it_says(bulk: Bulk, statistics: Statistics, mode: Mode) -> None:
    """It locks nothing. A table smaller than what it counts may be read from end to end; it may also read and sort
    all that is due, if that is fewer pages.
    """
    bulk.remember(statistics)

    async def story() -> Plan:
        async with Planned(bulk, mode) as planned:
            await planned.of("backlog", backlog.read(planned, [NETWORK]))
            (plan,) = planned.plans
            return plan

    plan = asyncio.run(story())
    print(f"{plan.pages:8} pages: {plan.shape}")
    assert "LockRows" not in plan.shape
    assert plan.pages <= 1.1 * backlog.DUE_COUNTED_MAX
    assert plan.indexes == {"reconsup_claim_idx"} or 2 * bulk.size <= backlog.DUE_COUNTED_MAX
