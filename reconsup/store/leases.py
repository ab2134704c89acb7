"""Leases on payment requests: claim, renew, release; bury the dead; sweep up what nobody looks at.

A lease is (owner, epoch). Every grant raises the epoch, nothing ever lowers it, and every later write presents
both: a worker that lost its lease cannot write, whatever it believes. Clocks are the database's. Statuses in the
claim are literals, so that the partial index can always be proven to apply.

Lock order here as everywhere: cursor, then spans, then requests in id order. Only the claim skips locked rows, and
a give-back that has waited in vain.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString, TypedDict

from reconsup.payments.request import Network, PaymentRequest, Status
from reconsup.store.database import Database, Row, Transaction
from reconsup.store.errors import StoreUnavailable

TRUST_MARGIN_SECONDS_MIN = 0.05
DEATHS_ALONE_MAX = 3
SWEEP_ROWS = 1000
GHOST_SECONDS = 0.5
GHOST_LOOK_SECONDS_MIN = 0.002

# What makes a row worth looking at again at once, whoever holds it now (a holder's persist then fails its fence).
TOUCHED: LiteralString = """
  CASE WHEN r.reconcile_lease_owner IS NULL THEN LEAST(r.next_reconcile_at, now()) ELSE now() END"""

# The epoch of a row that is leased to `owner`, null for any other; in one expression, of which PostgreSQL expects
# nothing. Of the owner alone it expects next to no rows, because its statistics were taken when few were leased, and
# may then compare each row of a batch with every other (seen: ten seconds for 5000 rows).
HELD_EPOCH: LiteralString = " CASE WHEN r.reconcile_lease_owner = %(owner)s THEN r.reconcile_lease_epoch END "


@dataclass(frozen=True, slots=True)
class Claim:
    """One leased request. `due_at` is what the claim wrote into `next_reconcile_at`: a touch changes it."""

    request: PaymentRequest
    epoch: int
    due_at: datetime
    failures: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one claim granted. Past `trusted_until` (monotonic) the holder must not write or call any more."""

    network: Network
    owner: str
    claims: tuple[Claim, ...]
    claimed_at: float
    trusted_until: float


class Figures(TypedDict):
    """What a claim is made with: `store.refusals` asks about the same one."""

    owner: str
    lease_seconds: float
    limit: int
    suspects: bool
    without: Sequence[str]


@dataclass(frozen=True, slots=True)
class Released:
    """How many leases were given back. `set_aside`: ids of requests that are looked at no more: a person must act."""

    requests: int
    scans: int
    set_aside: tuple[str, ...] = ()


def trusted_until(sent_at: float, lease_seconds: float) -> float:
    """When (monotonic) the holder of a lease asked for at `sent_at` stops believing in it.

    It is before the database does: the grant was made after `sent_at`, and the margin is for the write to arrive.
    """
    return sent_at + lease_seconds - max(lease_seconds / 10, TRUST_MARGIN_SECONDS_MIN)


async def claim(
    database: Database,
    network: Network,
    *,
    owner: str,
    lease_seconds: float,
    limit: int,
    suspects: bool = False,
    without: Sequence[str] = (),
) -> Batch:
    """Lease at most `limit` due requests of a network that has a running cursor; one statement.

    `suspects`: those at which a worker died before, to be claimed alone (`limit` 1); otherwise all others.
    `without`: ids that are left out. Raises StoreRejected where PostgreSQL refuses to write one of the rows:
    `store.refusals` says which.
    """
    sent_at = time.monotonic()
    rows = await database.fetch(
        _CLAIM_SUSPECT if suspects else _CLAIM,
        {
            "chain": network.chain,
            "network": network.name,
            "owner": owner,
            "lease": lease_seconds,
            "limit": limit,
            "without": list(without),
        },
    )
    claims = tuple(_claim_of(row, network) for row in rows)
    return Batch(network, owner, claims, sent_at, trusted_until(sent_at, lease_seconds))


async def renew(database: Database, batch: Batch, *, lease_seconds: float) -> Batch:
    """Extend the leases of a batch, one statement; what does not come back is lost and dropped.

    `next_reconcile_at` is not written: a touch that happened meanwhile must stay visible to the persist.
    """
    sent_at = time.monotonic()
    rows = await database.fetch(
        _RENEW,
        {
            "owner": batch.owner,
            "ids": [claim.request.id for claim in batch.claims],
            "epochs": [claim.epoch for claim in batch.claims],
            "lease": lease_seconds,
        },
    )
    held = {id_ for (id_,) in rows}
    claims = tuple(claim for claim in batch.claims if claim.request.id in held)
    return Batch(batch.network, batch.owner, claims, sent_at, trusted_until(sent_at, lease_seconds))


async def release(database: Database, owner: str) -> Released:
    """Give back every lease of an owner, due at once, and free its scan and span leases."""

    async def work(transaction: Transaction) -> Released:
        scans = await transaction.rows(_FREE_SCANS, {"owner": owner})
        await transaction.send(_FREE_SPANS, {"owner": owner})
        requests = await transaction.rows(_RELEASE, {"owner": owner})
        return Released(len(requests), len(scans))

    return await database.transact(work)


async def release_requests(database: Database, owner: str) -> int:
    """Give back the request leases of an owner that goes on working (an answer of the database was lost).

    Who has them locked is most likely what was sent before, so that is waited for; but not always: somebody's forgotten
    transaction would keep the owner from all other rows. What is locked for so long, its lease's end frees.
    """
    try:
        return len(await database.fetch(_RELEASE, {"owner": owner}))
    except StoreUnavailable:
        return len(await database.fetch(_RELEASE_UNLOCKED, {"owner": owner}))


async def bury(
    database: Database, *, incarnation: str, owner: str, row: str | None, is_charged: bool = True
) -> Released:
    """Give back the leases of a worker that is known to be dead (it was reaped).

    First its connections are ended, also the idle ones: what a killed client sent last may yet be read and commit.
    Not so behind a pooler: there a connection's name only says who used it last, and it may be another program's by
    now. What the dead one sent is fenced as ever; a claim of its that is executed after this costs one lease.
    `row` is the id it was working on, if it noted one: that row, or else every row it held, counts a
    crash, unless the worker was told to stop (`is_charged` False: the rows had no part in its death). A row at
    which workers died alone three times is set aside and looked at no more; its history says so.
    """
    if await database.is_direct():
        await end_ghosts(database, incarnation)

    async def work(transaction: Transaction) -> Released:
        scans = await transaction.rows(_FREE_SCANS, {"owner": owner})
        await transaction.send(_FREE_SPANS, {"owner": owner})
        requests = await transaction.rows(
            _BURY, {"owner": owner, "row": row, "is_charged": is_charged, "deaths_max": 1 + DEATHS_ALONE_MAX}
        )
        set_aside = tuple(each.id for each in requests if each.is_set_aside)
        if set_aside:
            await transaction.send(TELL_SET_ASIDE, {"owner": owner, "ids": list(set_aside)})
        return Released(len(requests), len(scans), set_aside)

    return await database.transact(work)


async def end_ghosts(database: Database, incarnation: str) -> None:
    """End an incarnation's connections and wait until they are gone, GHOST_SECONDS at most.

    By asking again: the wait that pg_terminate_backend offers looks only every 100 ms, most of a take-over's time.
    """
    gives_up_at = time.monotonic() + GHOST_SECONDS
    for attempt in itertools.count():
        if not await database.fetch(_END_GHOSTS, {"application": f"reconsup/{incarnation}"}):
            return
        if time.monotonic() > gives_up_at:
            return
        await asyncio.sleep(GHOST_LOOK_SECONDS_MIN * 2 ** min(attempt, 5))


async def sweep(database: Database, networks: list[Network]) -> int:
    """Make open rows that nothing would ever look at due again (somebody changed them by hand); how many.

    At most SWEEP_ROWS: then there may be more. `burial.sweep_rest` is for when one of them cannot be written.
    """
    served = {"chains": [each.chain for each in networks], "networks": [each.name for each in networks]}
    return len(await database.fetch(_SWEEP, served | {"limit": SWEEP_ROWS}))


def _claim_of(row: Row, network: Network) -> Claim:
    """A row of `_COLUMNS` as a claim."""
    (
        id_,
        status,
        asset,
        address,
        expected,
        chain_id,
        standard,
        contract,
        expires_at,
        created_at,
        admitted,
        epoch,
        due_at,
        failures,
    ) = row
    request = PaymentRequest(
        id=id_,
        network=network.name,
        asset=asset,
        address=address,
        status=Status(status),
        expected_amount_minor=expected,
        chain_id=chain_id,
        token_standard=standard,
        token_contract=contract,
        expires_at=expires_at,
        created_at=created_at,
        admitted=admitted is not None,
    )
    return Claim(request, epoch, due_at, failures)


# NaN is a value of numeric and no amount; a negative one is a row error, which is what such a row must become.
# An infinite time is one of timestamptz; Python has none, so it becomes one that is very far away.
EXPECTED: LiteralString = " CASE WHEN r.expected_amount_minor = 'NaN' THEN -1 ELSE r.expected_amount_minor END "
EXPIRES: LiteralString = " LEAST(GREATEST(r.expires_at, '1970-01-01 00:00Z'), '9000-01-01 00:00Z') "
_COLUMNS: LiteralString = (
    """
  r.id, r.status, r.asset, r.address_canonical,"""
    + EXPECTED
    + """AS expected,
  r.chain_id, r.token_standard, r.token_contract,"""
    + EXPIRES
    + """AS expires_at,
  LEAST(GREATEST(r.created_at, '1970-01-01 00:00Z'), '9000-01-01 00:00Z') AS created_at,
  r.reconcile_admitted_height,
  r.reconcile_lease_epoch, r.next_reconcile_at, r.reconcile_failures"""
)

# Every condition stands inside the locking query, before LIMIT. A cursor that is unborn, or stopped, or that has no
# block below it and read none, grants nothing; that EXISTS is uncorrelated and evaluated once. The UPDATE goes by the
# ids alone: joined, and with a limit that PostgreSQL does not know when it plans, it was seen to read the whole table.
CANDIDATES: LiteralString = """
WITH candidates AS MATERIALIZED (
  SELECT id FROM app.payment_requests
  WHERE chain = %(chain)s AND network = %(network)s
    AND next_reconcile_at IS NOT NULL AND next_reconcile_at <= now()
    AND status IN ('pending', 'detected', 'confirmed', 'reorged', 'expired')
    AND (reconcile_lease_until IS NULL OR reconcile_lease_until <= now())
    AND id <> ALL (%(without)s::text[])
    AND EXISTS (SELECT FROM app.chain_cursors k WHERE k.chain = %(chain)s AND k.network = %(network)s
                AND k.stop_reason IS NULL AND k.tip_time IS NOT NULL)
    AND """
ORDINARY: LiteralString = "reconcile_crashes = 0"
SUSPECT: LiteralString = "reconcile_crashes > 0"
LIMITED: LiteralString = """
  ORDER BY next_reconcile_at, created_at, id
  LIMIT %(limit)s
  FOR NO KEY UPDATE SKIP LOCKED)
"""
GRANT: LiteralString = """
UPDATE app.payment_requests r
SET reconcile_lease_owner = %(owner)s,
    reconcile_lease_until = now() + make_interval(secs => %(lease)s),
    reconcile_lease_epoch = r.reconcile_lease_epoch + 1,
    next_reconcile_at = now() + make_interval(secs => %(lease)s)
"""
_RETURN: LiteralString = "WHERE r.id = ANY (ARRAY(SELECT id FROM candidates)) RETURNING " + _COLUMNS
_CLAIM: LiteralString = CANDIDATES + ORDINARY + LIMITED + GRANT + _RETURN
_CLAIM_SUSPECT: LiteralString = CANDIDATES + SUSPECT + LIMITED + GRANT + _RETURN

# What `held` has locked stays as it was read: the UPDATE goes by its ids alone.
_RENEW: LiteralString = (
    """
WITH held AS MATERIALIZED (
  SELECT r.id FROM app.payment_requests r
  JOIN unnest(%(ids)s::text[], %(epochs)s::bigint[]) AS mine(id, epoch) ON mine.id = r.id
  WHERE"""
    + HELD_EPOCH
    + """= mine.epoch
  ORDER BY r.id FOR NO KEY UPDATE OF r)
UPDATE app.payment_requests r
SET reconcile_lease_until = now() + make_interval(secs => %(lease)s)
WHERE r.id = ANY (ARRAY(SELECT id FROM held))
RETURNING r.id
"""
)

_FREE_SCANS: LiteralString = """
UPDATE app.chain_cursors SET scan_lease_owner = NULL, scan_lease_until = NULL
WHERE scan_lease_owner = %(owner)s RETURNING network
"""
_FREE_SPANS: LiteralString = """
UPDATE app.chain_spans SET lease_owner = NULL, lease_until = NULL WHERE lease_owner = %(owner)s
"""

_HELD: LiteralString = """
WITH held AS MATERIALIZED (
  SELECT id FROM app.payment_requests WHERE reconcile_lease_owner = %(owner)s
  ORDER BY id FOR NO KEY UPDATE"""
_GIVE_BACK: LiteralString = """)
UPDATE app.payment_requests r
SET reconcile_lease_owner = NULL, reconcile_lease_until = NULL,
    next_reconcile_at = LEAST(r.next_reconcile_at, now())
WHERE r.id = ANY (ARRAY(SELECT id FROM held))
RETURNING r.id
"""
_RELEASE: LiteralString = _HELD + _GIVE_BACK
_RELEASE_UNLOCKED: LiteralString = _HELD + " SKIP LOCKED" + _GIVE_BACK
# DEATHS: how many workers died at the row, with the one that is charged now, if it is.
BURIED: LiteralString = """
UPDATE app.payment_requests r
SET reconcile_lease_owner = NULL, reconcile_lease_until = NULL, reconcile_crashes = DEATHS,
    next_reconcile_at = CASE WHEN DEATHS >= %(deaths_max)s THEN NULL ELSE LEAST(r.next_reconcile_at, now()) END,
    reconcile_error = CASE WHEN DEATHS >= %(deaths_max)s THEN 'set_aside' ELSE r.reconcile_error END
"""
BURIED_ROWS: LiteralString = " RETURNING r.id, r.reconcile_crashes >= %(deaths_max)s AS is_set_aside"
_DEATHS: LiteralString = """r.reconcile_crashes + (
      %(is_charged)s AND (%(row)s::text IS NULL OR r.id = %(row)s
                          OR NOT EXISTS (SELECT FROM held WHERE id = %(row)s)))::int"""
_BURY: LiteralString = (
    _HELD + ")" + BURIED.replace("DEATHS", _DEATHS) + "WHERE r.id = ANY (ARRAY(SELECT id FROM held))" + BURIED_ROWS
)
# A statement of its own: a give-back must not wait for somebody who has locked the history.
TELL_SET_ASIDE: LiteralString = """
INSERT INTO app.payment_request_transitions
  (payment_request_id, from_status, to_status, reason, evidence, lease_owner, lease_epoch)
SELECT r.id, r.status, r.status, 'row_set_aside',
       jsonb_build_array(jsonb_build_object('error', 'workers died at it', 'crashes', r.reconcile_crashes)),
       %(owner)s, r.reconcile_lease_epoch
FROM app.payment_requests r WHERE r.id = ANY (%(ids)s::text[])
"""
# Who is still there; a backend leaves this view after it has rolled back and let go of its locks.
_END_GHOSTS: LiteralString = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = %(application)s AND datname = current_database() AND pid <> pg_backend_pid()
"""

FORGOTTEN: LiteralString = """
  SELECT r.id FROM app.payment_requests r
  WHERE r.next_reconcile_at IS NULL AND r.status IN ('pending', 'detected', 'reorged')
    AND r.reconcile_error IS DISTINCT FROM 'set_aside'
    AND EXISTS (SELECT FROM unnest(%(chains)s::text[], %(networks)s::text[]) AS served(chain, network)
                WHERE served.chain = r.chain AND served.network = r.network OFFSET 0)
"""
_SWEEP: LiteralString = (
    "WITH forgotten AS MATERIALIZED ("
    + FORGOTTEN
    + """
  ORDER BY r.id LIMIT %(limit)s FOR NO KEY UPDATE OF r)
UPDATE app.payment_requests r SET next_reconcile_at ="""
    + TOUCHED
    + """
WHERE r.id = ANY (ARRAY(SELECT id FROM forgotten))
RETURNING r.id
"""
)
