"""What the balance audit finds: one request's case is opened, explained elsewhere (worker.auditor), and recorded.

Fenced as store.audit says. Between the two transactions the chain is asked; whatever changed meanwhile (the lease, a
block, the request's address, a settlement) makes the second write nothing, and the next audit begins anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from reconsup.store.audit import AUDITED, COUNTED, LOCK_CURSOR, MARK, NOTED, SETTLED, are_stored, fence
from reconsup.store.cursor import Cursor
from reconsup.store.database import Database, Row, Transaction
from reconsup.store.leases import TOUCHED
from reconsup.store.matching import PAID_TO_ONE, settle


@dataclass(frozen=True, slots=True)
class Known:
    """What an earlier audit noted of a request, at a block that is still ours."""

    height: int
    difference_minor: int
    unexplained_minor: int
    nonce: int


@dataclass(frozen=True, slots=True)
class Case:
    """A request whose balance wants an explanation.

    `credits`: what is known to have arrived, by height; `settled_minor`: what our settlements sum up to. `blocks`: the
    hashes of the stored ones, from the one before the request's first block on (`is_past_stored`) or from the lowest.
    """

    id: str
    address: str
    settled_minor: int
    credits: dict[int, int]
    known: Known | None
    blocks: dict[int, str]
    is_past_stored: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Money that left no log, in its block. `evidence_ref` is `tx_hash:trace:PATH` or `block_hash:delta`."""

    evidence_ref: str
    amount_minor: int
    height: int
    block_hash: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What a case came to, up to a block: money to be settled, and what the balance then still differs by.

    `difference_minor` is explained: it was there before the request, or the address spent it. `unexplained_minor` is
    not. `is_complete`: all up to here was looked at.
    """

    height: int
    block_hash: str
    found: tuple[Found, ...]
    difference_minor: int
    unexplained_minor: int
    nonce: int
    is_complete: bool = True


async def open_case(database: Database, cursor: Cursor, id_: str) -> Case | None:
    """Everything that an explanation of a request's balance needs; None if it is not to be had now.

    What the tail holds for the request is settled first: a correction by hand may have made a credit its own after its
    block was committed, and that is no money without a log.
    """
    parameters = fence(cursor) | {"id": id_, "ids": [id_]}

    async def work(transaction: Transaction) -> Case | None:
        locked = await transaction.rows(LOCK_CURSOR, parameters)
        if not locked or not await transaction.rows(_LOCK_REQUEST, parameters):
            return None
        if await transaction.rows(_SETTLE_ONE, parameters):
            await transaction.send(_TOUCH, parameters)
        return await _read(transaction, parameters)

    return await database.transact(work)


async def record(database: Database, cursor: Cursor, case: Case, finding: Finding) -> tuple[str, ...] | None:
    """Write what a case came to, and touch its request; the evidence that was settled. A complete one is its mark.

    None, and nothing is written, if the scan lease is not ours any more, a block is not, or the request or what is
    known of it has changed meanwhile.
    """
    blocks = {finding.height: finding.block_hash} | {each.height: each.block_hash for each in finding.found}
    parameters = fence(cursor) | {
        "id": case.id,
        "ids": [case.id],
        "addresses": [case.address],
        "heights": list(blocks),
        "hashes": list(blocks.values()),
        "height": finding.height,
        "hash": finding.block_hash,
        "refs": [each.evidence_ref for each in finding.found],
        "amounts": [each.amount_minor for each in finding.found],
        "found_heights": [each.height for each in finding.found],
        "found_hashes": [each.block_hash for each in finding.found],
        "difference": finding.difference_minor,
        "unexplained": finding.unexplained_minor,
        "nonce": finding.nonce,
    }

    async def work(transaction: Transaction) -> tuple[str, ...] | None:
        if not await transaction.rows(LOCK_CURSOR, parameters) or not await are_stored(transaction, parameters):
            return None
        if not await transaction.rows(_LOCK_REQUEST, parameters):
            return None
        if not _is_same(case, await _read(transaction, parameters), finding.height):
            return None
        settled = await transaction.rows(_SETTLE, parameters) if finding.found else []
        await transaction.send(_NOTE, parameters)
        await transaction.send(MARK if finding.is_complete else _TOUCH, parameters)
        return tuple(ref for (ref,) in settled)

    return await database.transact(work)


async def _read(transaction: Transaction, parameters: dict[str, Any]) -> Case:
    """The case as it stands, the cursor's row and the request's being locked."""
    ((id_, address, begins_at, settled, height, difference, unexplained, nonce),) = await transaction.rows(
        _CASE, parameters
    )
    credits_ = await transaction.rows(_CREDITS, parameters | {"address": address})
    rows = await transaction.rows(_BLOCKS, parameters)
    known = None if height is None else Known(height, difference, unexplained, nonce)
    before = _height_before(rows, begins_at)
    return Case(
        id=id_,
        address=address,
        settled_minor=settled,
        credits=dict(credits_),
        known=known,
        blocks={row.height: row.block_hash for row in rows if before is None or row.height >= before},
        is_past_stored=before is not None,
    )


def _height_before(rows: Sequence[Row], begins_at: datetime) -> int | None:
    """The height of the block before the request's first; None if that is not stored. The chain's first has none."""
    older = [row.height for row in rows if row.block_time < begins_at]
    if older:
        return int(max(older))
    return 0 if rows and rows[0].height == 0 else None


def _is_same(case: Case, now: Case, height: int) -> bool:
    """Whether the case, up to a height, is still what it was when it was opened."""

    def up_to(one: Case) -> tuple[object, ...]:
        later = sum(amount for at, amount in one.credits.items() if at > height)
        known = {at: amount for at, amount in one.credits.items() if at <= height}
        return one.address, one.settled_minor - later, known, one.known

    return up_to(case) == up_to(now)


# Not one of two requests that share an address: a credit would belong to neither.
_LOCK_REQUEST: LiteralString = (
    """
WITH locked AS MATERIALIZED (
  SELECT r.* FROM app.payment_requests r WHERE r.id = %(id)s FOR NO KEY UPDATE OF r)
SELECT 1 FROM locked r WHERE"""
    + AUDITED
    + """AND NOT EXISTS (
    SELECT FROM app.payment_requests twin
    WHERE twin.chain = r.chain AND twin.network = r.network
      AND lower(twin.address_canonical) = lower(r.address_canonical)
      AND coalesce(twin.token_contract, '') = '' AND twin.id <> r.id
    OFFSET 0)"""
)
_SETTLE_ONE: LiteralString = settle(PAID_TO_ONE) + " RETURNING 1"
_CASE: LiteralString = (
    "SELECT r.id, lower(r.address_canonical), \n"
    "       LEAST(GREATEST(r.created_at, '1970-01-02 00:00Z'), '9000-01-01 00:00Z') - interval '15 minutes',"
    + SETTLED
    + """, n.height, n.difference_minor, n.unexplained_minor, n.nonce
FROM app.chain_cursors k JOIN app.payment_requests r ON r.id = %(id)s"""
    + NOTED
    + "WHERE k.chain = %(chain)s AND k.network = %(network)s"
)
# What is known to have arrived: what the scan read, whoever's it was, and what the audit found.
_CREDITS: LiteralString = (
    """
SELECT c.height, sum(c.amount_minor) FROM (
  SELECT c.height, c.amount_minor FROM app.chain_credits c
  WHERE c.chain = %(chain)s AND c.network = %(network)s AND c.address = %(address)s AND c.token_contract = ''
  UNION ALL
  SELECT o.block_height, o.amount_minor FROM app.payment_request_settlements o, app.chain_cursors k
  WHERE k.chain = %(chain)s AND k.network = %(network)s AND o.payment_request_id = %(id)s
    AND o.block_height >= k.tail_start AND o.evidence_ref ~ ':(trace:[0-9.]+|delta)$' AND"""
    + COUNTED
    + """) AS c
GROUP BY c.height
"""
)
_BLOCKS: LiteralString = """
SELECT b.height, b.block_hash, b.block_time
FROM app.chain_blocks b WHERE b.chain = %(chain)s AND b.network = %(network)s ORDER BY b.height
"""

# The same payment mined again keeps the time at which it was first seen: by its transaction, or where there is none to
# name, by an equal amount that a reorg took away.
_SETTLE: LiteralString = """
INSERT INTO app.payment_request_settlements AS s
  (payment_request_id, evidence_ref, amount_minor, confirmations, block_height, block_hash, is_canonical, metadata,
   first_seen_at, last_seen_at)
SELECT %(id)s, f.ref, f.amount, greatest(0, k.next_height - f.height), f.height, f.hash, true,
       jsonb_build_object('first_block_time', coalesce(
         (SELECT min(o.metadata ->> 'first_block_time') FROM app.payment_request_settlements o
          WHERE o.payment_request_id = %(id)s AND (
            split_part(o.evidence_ref, ':', 1) = split_part(f.ref, ':', 1)
            OR (o.metadata -> 'reorg' ->> 'block_hash' = o.block_hash AND o.amount_minor = f.amount
                AND (o.evidence_ref LIKE '%%:delta' OR f.ref LIKE '%%:delta' AND o.evidence_ref LIKE '%%:trace:%%')))),
         to_char(b.block_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))),
       now(), now()
FROM unnest(%(refs)s::text[], %(amounts)s::numeric[], %(found_heights)s::bigint[], %(found_hashes)s::text[])
  AS f(ref, amount, height, hash)
JOIN app.chain_cursors k ON k.chain = %(chain)s AND k.network = %(network)s
JOIN app.chain_blocks b ON b.chain = k.chain AND b.network = k.network AND b.height = f.height AND b.block_hash = f.hash
ORDER BY f.ref
ON CONFLICT (payment_request_id, evidence_ref) DO UPDATE
SET amount_minor = excluded.amount_minor, confirmations = excluded.confirmations,
    block_height = excluded.block_height, block_hash = excluded.block_hash, is_canonical = true,
    metadata = excluded.metadata, last_seen_at = now(), updated_at = now()
RETURNING s.evidence_ref
"""
_NOTE: LiteralString = """
INSERT INTO app.request_balances AS n
  (payment_request_id, height, block_hash, difference_minor, unexplained_minor, nonce)
VALUES (%(id)s, %(height)s, %(hash)s, %(difference)s, %(unexplained)s, %(nonce)s)
ON CONFLICT (payment_request_id) DO UPDATE
SET height = excluded.height, block_hash = excluded.block_hash, difference_minor = excluded.difference_minor,
    unexplained_minor = excluded.unexplained_minor, nonce = excluded.nonce, updated_at = now()
"""
_TOUCH: LiteralString = (
    "UPDATE app.payment_requests r SET next_reconcile_at ="
    + TOUCHED
    + " WHERE r.id = ANY (%(ids)s::text[]) RETURNING r.id"
)
