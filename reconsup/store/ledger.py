"""The ledger: blocks go in, their credits become settlements, and a reorg takes both back.

Both are one READ COMMITTED transaction of several statements, never one statement: each later one needs a snapshot
taken after the cursor's row lock was had. The commit updates the cursor and then joins; an admission (store.admission)
locks the cursor and then joins. So whichever comes second sees the other's rows, and no payment falls between them.
A fenced scanner changes no cursor row, sends nothing more and commits nothing.

Lock order: cursor, then spans, then requests in id order, then settlements.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, LiteralString

from reconsup.chain.block import Block, Fork
from reconsup.store import refusals
from reconsup.store.cursor import (
    DUE_HEIGHT,
    FENCE,
    HEAD_AND_SAFE,
    Cursor,
    Tags,
    fence,
    finalized,
    tag_parameters,
    touch_due,
)
from reconsup.store.database import Database, Transaction
from reconsup.store.errors import StoreRejected
from reconsup.store.leases import TOUCHED
from reconsup.store.matching import PAID_BY_BLOCKS, settle
from reconsup.store.persist import Against


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit did: the cursor after it, and how many requests it touched and settlements it wrote.

    `refused`: requests that it pays and could not touch, because PostgreSQL refuses to write them: id → its words.
    """

    cursor: Cursor
    touched: int
    settlements: int
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback did: the cursor after it, and how many requests it touched and settlements it orphaned."""

    cursor: Cursor
    touched: int
    orphaned: int


class _FencedError(Exception):
    """The cursor was not ours, or not where we thought: roll back."""


async def commit(
    database: Database,
    cursor: Cursor,
    blocks: Sequence[Block],
    tags: Tags,
    *,
    lease_seconds: float,
    tail_blocks: int,
    due_against: Against,
) -> Committed | None:
    """Store consecutive blocks that hang on the cursor's tip; None if the cursor is not ours or moved meanwhile.

    Touches the requests that their credits match, whatever their status or admission, and those that waited for
    a height now reached; writes the settlements; prunes the tail. Raises StoreRejected where PostgreSQL refuses a
    settlement, or a touch of a request that somebody has leased: rather no block than a payment that is not seen.
    """
    first, last = blocks[0], blocks[-1]
    assert first.height == cursor.next_height
    assert first.parent_hash == cursor.tip_hash
    span = {
        "chain": cursor.network.chain,
        "network": cursor.network.name,
        "chain_id": cursor.chain_id,
        "first": first.height,
        "last": last.height,
    }
    unproven = max((each.height for each in blocks if not each.proven), default=cursor.unproven_height)
    moved = {"tip_after": last.block_hash, "time_after": last.time, "next_after": last.height + 1, "unproven": unproven}

    async def work(transaction: Transaction, *, is_careful: bool = False) -> Committed:
        if not await transaction.rows(_ADVANCE, fence(cursor) | moved | {"lease": lease_seconds}):
            raise _FencedError
        await transaction.send(_INSERT_BLOCKS, span | _block_columns(blocks))
        await transaction.send(_INSERT_CREDITS, span | credit_columns(blocks))
        tail = await transaction.rows(_TAIL, span | tag_parameters(tags) | {"tail_blocks": tail_blocks})
        ((tail_start, finalized_height),) = tail
        touched, refused = await _touch(transaction, span | {"against": due_against}, is_careful=is_careful)
        settled = await transaction.rows(_SETTLE_BLOCKS, span)
        # Last: were there more blocks than the tail holds, credits would be gone before they were matched.
        await _prune(transaction, span | {"tail_start": tail_start})
        after = replace(
            cursor,
            next_height=last.height + 1,
            tip_hash=last.block_hash,
            tip_time=last.time,
            tail_start=tail_start,
            unproven_height=unproven,
            finalized_height=finalized_height,
        )
        return Committed(after, touched, len(settled), refused)

    try:
        try:
            done = await database.transact(work)
        except StoreRejected:
            done = await database.transact(partial(work, is_careful=True))
    except _FencedError:
        return None
    return replace(done, touched=done.touched + await touch_due(database, cursor.network, due_against))


async def _prune(transaction: Transaction, parameters: dict[str, Any]) -> None:
    await transaction.send(_PRUNE_BLOCKS, parameters)
    await transaction.send(_PRUNE_CREDITS, parameters)


async def _touch(
    transaction: Transaction, parameters: dict[str, Any], *, is_careful: bool
) -> tuple[int, dict[str, str]]:
    """Touch the requests that the blocks pay; how many, and which PostgreSQL refuses to write (`is_careful`).

    Such a row is left as it is: nobody can claim it either, and when it can be written again its next look finds the
    settlement. But while somebody has it leased, a decision that does not know of the money might yet be written.
    """
    if not is_careful:
        return len(await transaction.rows(_TOUCH, parameters)), {}
    paid = await transaction.rows(_PAID, parameters)
    refused = await refusals.among(transaction, _TOUCH_THESE, parameters, [row.id for row in paid])
    leased = [row.id for row in paid if row.is_leased and row.id in refused]
    if leased or len(refused) >= refusals.FOUND_MAX:
        raise StoreRejected(next(iter(refused.values())))
    others = [row.id for row in paid if row.id not in refused]
    return len(await transaction.rows(_TOUCH_THESE, parameters | {"ids": others})), refused


async def roll_back(database: Database, cursor: Cursor, fork: Fork, *, lease_seconds: float) -> RolledBack | None:
    """Take the scan back to a proven fork; None if the cursor is not ours, moved, or the fork lies below finality.

    Settlements of orphaned blocks become non-canonical and keep the proof; their requests are touched.
    """
    assert fork.orphaned
    span = {"chain": cursor.network.chain, "network": cursor.network.name, "fork": fork.height}
    orphans = span | orphan_columns(fork.orphaned, cursor.scanned_height)
    # Of the blocks below the fork it is not known which was the last unproven one: perhaps the highest.
    unproven = None if cursor.unproven_height is None else min(cursor.unproven_height, fork.height)
    moved = {"tip_after": fork.block_hash, "time_after": fork.time, "fork": fork.height, "unproven": unproven}

    async def work(transaction: Transaction) -> RolledBack:
        if not await transaction.rows(_RETREAT, fence(cursor) | moved | {"lease": lease_seconds}):
            raise _FencedError
        touched, orphaned = await take_back(transaction, orphans)
        after = replace(
            cursor,
            next_height=fork.height + 1,
            tip_hash=fork.block_hash,
            tip_time=fork.time,
            unproven_height=unproven,
        )
        return RolledBack(after, touched, orphaned)

    try:
        return await database.transact(work)
    except _FencedError:
        return None


async def take_back(transaction: Transaction, parameters: dict[str, Any]) -> tuple[int, int]:
    """Orphan the settlements of blocks that are gone, touch their requests, drop the tail above the fork; how many
    requests and settlements. `parameters`: chain, network, fork, and `orphan_columns`. Whoever calls has the cursor.
    """
    touched = await transaction.rows(_TOUCH_ORPHANED, parameters)
    orphaned = await transaction.rows(_ORPHAN, parameters)
    await transaction.send(_DROP_CREDITS, parameters)
    await transaction.send(_DROP_BLOCKS, parameters)
    return len(touched), len(orphaned)


def orphan_columns(orphaned: Sequence[tuple[int, str, str]], scanned_height: int) -> dict[str, Any]:
    """(height, old hash, new hash) of blocks that are gone, one array each, and where the scan stood."""
    return {
        "heights": [height for height, _, _ in orphaned],
        "old_hashes": [old_hash for _, old_hash, _ in orphaned],
        "new_hashes": [new_hash for _, _, new_hash in orphaned],
        "scanned": scanned_height,
    }


def _block_columns(blocks: Sequence[Block]) -> dict[str, Any]:
    return {
        "heights": [block.height for block in blocks],
        "hashes": [block.block_hash for block in blocks],
        "parents": [block.parent_hash for block in blocks],
        "times": [block.time for block in blocks],
    }


def credit_columns(blocks: Sequence[Block]) -> dict[str, Any]:
    """All credits of some blocks, one array for each column of `app.chain_credits`."""
    credits_ = [(block, credit) for block in blocks for credit in block.credits]
    return {
        "heights": [block.height for block, _ in credits_],
        "hashes": [block.block_hash for block, _ in credits_],
        "times": [block.time for block, _ in credits_],
        "refs": [credit.evidence_ref for _, credit in credits_],
        "transactions": [credit.tx_hash for _, credit in credits_],
        "addresses": [credit.address for _, credit in credits_],
        "contracts": [credit.token_contract for _, credit in credits_],
        "amounts": [credit.amount_minor for _, credit in credits_],
    }


_ADVANCE: LiteralString = (
    """
UPDATE app.chain_cursors k
SET next_height = %(next_after)s, tip_hash = %(tip_after)s, tip_time = %(time_after)s,
    unproven_height = %(unproven)s,
    scan_lease_until = now() + make_interval(secs => %(lease)s), updated_at = now()
WHERE"""
    + FENCE
    + "AND k.stop_reason IS NULL RETURNING 1"
)
_INSERT_BLOCKS: LiteralString = """
INSERT INTO app.chain_blocks (chain, network, height, block_hash, parent_hash, block_time)
SELECT %(chain)s, %(network)s, b.*
FROM unnest(%(heights)s::bigint[], %(hashes)s::text[], %(parents)s::text[], %(times)s::timestamptz[]) AS b
"""
_INSERT_CREDITS: LiteralString = """
INSERT INTO app.chain_credits (chain, network, height, block_hash, block_time, evidence_ref, tx_hash, address,
                               token_contract, amount_minor)
SELECT %(chain)s, %(network)s, c.*
FROM unnest(%(heights)s::bigint[], %(hashes)s::text[], %(times)s::timestamptz[], %(refs)s::text[],
            %(transactions)s::text[], %(addresses)s::text[], %(contracts)s::text[], %(amounts)s::numeric[]) AS c
"""

# The tail keeps so many blocks, and at least an hour of chain time. What has left it is final.
_TAIL: LiteralString = (
    """
UPDATE app.chain_cursors k
SET tail_start = tail.start,"""
    + HEAD_AND_SAFE
    + finalized("tail.start - 1")
    + """
FROM (
  SELECT greatest(c.tail_start, least(
    c.next_height - %(tail_blocks)s::bigint,
    (SELECT min(b.height) FROM app.chain_blocks b WHERE b.chain = c.chain AND b.network = c.network
       AND b.block_time >= c.tip_time - interval '1 hour'))) AS start
  FROM app.chain_cursors c WHERE c.chain = %(chain)s AND c.network = %(network)s) AS tail
WHERE k.chain = %(chain)s AND k.network = %(network)s
RETURNING k.tail_start, k.finalized_height
"""
)
# A number, not a subquery: of an unknown number PostgreSQL expects a third of the table to be below it.
_BELOW_TAIL: LiteralString = " WHERE chain = %(chain)s AND network = %(network)s AND height < %(tail_start)s"
_PRUNE_BLOCKS: LiteralString = "DELETE FROM app.chain_blocks" + _BELOW_TAIL
_PRUNE_CREDITS: LiteralString = "DELETE FROM app.chain_credits" + _BELOW_TAIL

# Those that the blocks pay, in the blocks' own transaction: a decision that does not know of the money must not stand.
# Those that only waited for a height are touched after it: a row that cannot be written would hold up every block.
# Rows are locked by a list of ids and by nothing that is joined: when a row changed while its lock was waited for,
# PostgreSQL evaluates the conditions on it once more, and a join was seen to lose all rows but the first there.
_PAID: LiteralString = (
    """
  SELECT r.id, coalesce(r.reconcile_lease_until > now(), false) AS is_leased FROM app.payment_requests r
  WHERE r.status <> 'failed' AND r.id = ANY (ARRAY(
    SELECT r.id"""
    + PAID_BY_BLOCKS
    + """))
  ORDER BY r.id FOR NO KEY UPDATE OF r"""
)
_SET_TOUCHED: LiteralString = (
    """
UPDATE app.payment_requests r
SET reconcile_due_height = CASE WHEN r.reconcile_due_height > (SELECT"""
    + DUE_HEIGHT
    + """) THEN r.reconcile_due_height END,
    next_reconcile_at ="""
    + TOUCHED
)
_TOUCH: LiteralString = (
    "WITH touched AS MATERIALIZED ("
    + _PAID
    + ")"
    + _SET_TOUCHED
    + " WHERE r.id = ANY (ARRAY(SELECT id FROM touched)) RETURNING r.id"
)
_TOUCH_THESE: LiteralString = _SET_TOUCHED + " WHERE r.id = ANY (%(ids)s::text[]) RETURNING r.id"

_SETTLE_BLOCKS: LiteralString = settle(PAID_BY_BLOCKS) + " RETURNING 1"
_RETREAT: LiteralString = (
    """
UPDATE app.chain_cursors k
SET next_height = %(fork)s + 1, tip_hash = %(tip_after)s, tip_time = %(time_after)s,
    safe_height = CASE WHEN k.safe_height > %(fork)s THEN %(fork)s ELSE k.safe_height END,
    unproven_height = %(unproven)s,
    scan_lease_until = now() + make_interval(secs => %(lease)s), updated_at = now()
WHERE"""
    + FENCE
    + "AND k.stop_reason IS NULL AND %(fork)s >= coalesce(k.finalized_height, -1) RETURNING 1"
)
# Our settlements in the orphaned blocks. The request is looked up by its id for each, and not joined: without
# statistics PostgreSQL would rather read every request of the network.
ORPHANED: LiteralString = """
  s.block_hash = ANY(%(old_hashes)s::text[]) AND s.metadata ? 'first_block_time'
  AND (SELECT q.chain = %(chain)s AND q.network = %(network)s FROM app.payment_requests q
       WHERE q.id = s.payment_request_id)"""
# Their audit's mark goes: should the chain return to the very blocks that are gone, a commit settles again what they
# log, and nobody but another audit what they do not. Until then such a request must not expire.
_TOUCH_ORPHANED: LiteralString = (
    """
WITH orphaned AS MATERIALIZED (
  SELECT r.id FROM app.payment_requests r
  WHERE r.status <> 'failed' AND r.id = ANY (ARRAY(
    SELECT s.payment_request_id FROM app.payment_request_settlements s WHERE"""
    + ORPHANED
    + """))
  ORDER BY r.id FOR NO KEY UPDATE OF r)
UPDATE app.payment_requests r
SET reconcile_audited_height = NULL, reconcile_audited_hash = NULL, next_reconcile_at ="""
    + TOUCHED
    + """
WHERE r.id = ANY (ARRAY(SELECT id FROM orphaned))
RETURNING r.id
"""
)
_ORPHAN: LiteralString = (
    """
UPDATE app.payment_request_settlements s
SET is_canonical = false, updated_at = now(), metadata = (
  SELECT CASE WHEN octet_length((s.metadata || proof.of)::text) <= 4096 THEN s.metadata || proof.of
         ELSE proof.of || jsonb_build_object('first_block_time', s.metadata -> 'first_block_time') END
  FROM (SELECT jsonb_build_object('reorg', jsonb_build_object(
          'height', o.height, 'block_hash', o.old_hash, 'new_hash', o.new_hash,
          'scanned_height', %(scanned)s::bigint)) AS of
        FROM unnest(%(heights)s::bigint[], %(old_hashes)s::text[], %(new_hashes)s::text[])
          AS o(height, old_hash, new_hash)
        WHERE o.old_hash = s.block_hash) AS proof)
WHERE"""
    + ORPHANED
    + " RETURNING 1"
)
_ABOVE_FORK: LiteralString = " WHERE chain = %(chain)s AND network = %(network)s AND height > %(fork)s"
_DROP_BLOCKS: LiteralString = "DELETE FROM app.chain_blocks" + _ABOVE_FORK
_DROP_CREDITS: LiteralString = "DELETE FROM app.chain_credits" + _ABOVE_FORK
