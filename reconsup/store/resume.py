"""A stopped network begins anew on another chain: one transaction, which is one rollback with proof.

It fences whoever believes to hold the scan (the lease's epoch goes up, its owner is cleared), orphans what the chain
does not hold any more, drops the tail above, moves the cursor, abandons a span, touches the requests, clears the stop
and says so in `app.chain_events`. Before it nothing is written, after it all is: a command that died is given again.

Lock order: cursor, then spans, then requests in id order, then settlements.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

from reconsup.chain.block import Fork, Header
from reconsup.payments.request import Network
from reconsup.store.cursor import Cursor
from reconsup.store.database import Database, Transaction
from reconsup.store.leases import TOUCHED
from reconsup.store.ledger import ORPHANED, orphan_columns, take_back

SettledBlock = tuple[int, str]  # height and hash of a block in which we know of a credit


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a resume did: how many requests it touched and settlements it orphaned."""

    touched: int
    orphaned: int


class _MovedError(Exception):
    """The network is not where it was when the endpoints were asked: roll back."""


async def settled_blocks(database: Database, network: Network) -> list[SettledBlock]:
    """The blocks of the settlements that stand, lowest first: samples of the chain that we knew, the whole way down."""
    return [(row.block_height, row.block_hash) for row in await database.fetch(_SETTLED, _key(network))]


async def resume(
    database: Database,
    cursor: Cursor,
    point: Header | Fork,
    orphaned: Sequence[tuple[int, str, str]],
    *,
    asked: Collection[SettledBlock] | None,
    head_height: int,
    who: str,
) -> Resumed | None:
    """Start a stopped network above `point`, which is on both chains; None if it moved or was started meanwhile.

    `orphaned`: (height, old hash, new hash) of the blocks that are gone, lowest first. `asked`: the settlements' blocks
    that the endpoints were asked about, where the stored tail does not say which are gone: None where it does.
    """
    parameters = _key(cursor.network) | orphan_columns(orphaned, cursor.scanned_height)
    moved = {
        "next_height": cursor.next_height,
        "tip_hash": cursor.tip_hash,
        "tip_after": point.block_hash,
        "time_after": point.time,
        "head": head_height,
    }
    told = {"who": who, "scanned": cursor.scanned_height, "reason": cursor.stop_reason}
    parameters["fork"] = point.height

    async def work(transaction: Transaction) -> Resumed:
        before = await transaction.rows(_MOVE, parameters | moved)
        if not before:
            raise _MovedError
        if asked is not None and not set(await _settled_above(transaction, parameters)) <= set(asked):
            raise _MovedError
        await transaction.send(_ABANDON_SPAN, parameters)
        await transaction.send(_LOCK_REQUESTS, parameters)
        await transaction.send(_FORGET_SPAN, parameters)
        done = Resumed(*await take_back(transaction, parameters))
        await transaction.send(
            _TELL,
            parameters | moved | told | {"touched": done.touched, "orphaned": done.orphaned},
        )
        return done

    try:
        return await database.transact(work)
    except _MovedError:
        return None


async def _settled_above(transaction: Transaction, parameters: dict[str, Any]) -> list[SettledBlock]:
    rows = await transaction.rows(_SETTLED, parameters)
    return [(row.block_height, row.block_hash) for row in rows if row.block_height > parameters["fork"]]


def _key(network: Network) -> dict[str, Any]:
    return {"chain": network.chain, "network": network.name}


_SETTLED: LiteralString = """
SELECT DISTINCT s.block_height, s.block_hash FROM app.payment_request_settlements s
WHERE s.is_canonical AND s.metadata ? 'first_block_time' AND s.block_height IS NOT NULL AND s.block_hash IS NOT NULL
  AND (SELECT q.chain = %(chain)s AND q.network = %(network)s FROM app.payment_requests q
       WHERE q.id = s.payment_request_id)
ORDER BY 1, 2
"""

# The tags begin anew: what the old chain called safe or final above the fork says nothing of the new one.
_MOVE: LiteralString = """
UPDATE app.chain_cursors k
SET next_height = %(fork)s + 1, tip_hash = %(tip_after)s, tip_time = %(time_after)s, head_height = %(head)s,
    safe_height = CASE WHEN k.safe_height <= %(fork)s THEN k.safe_height END,
    unproven_height = CASE WHEN k.unproven_height > %(fork)s THEN %(fork)s ELSE k.unproven_height END,
    finalized_tag_height = CASE WHEN k.finalized_tag_height <= %(fork)s THEN k.finalized_tag_height END,
    finalized_height = CASE WHEN k.finalized_height <= %(fork)s THEN k.finalized_height ELSE %(fork)s END,
    tail_start = CASE WHEN k.tail_start <= %(fork)s THEN k.tail_start ELSE %(fork)s + 1 END,
    audited_height = CASE WHEN k.audited_height <= %(fork)s THEN k.audited_height END,
    audited_hash = CASE WHEN k.audited_height <= %(fork)s THEN k.audited_hash END,
    stop_reason = NULL, stopped_at = NULL,
    scan_lease_owner = NULL, scan_lease_until = NULL, scan_lease_epoch = k.scan_lease_epoch + 1, updated_at = now()
WHERE k.chain = %(chain)s AND k.network = %(network)s AND k.stop_reason IS NOT NULL
  AND k.next_height = %(next_height)s AND k.tip_hash = %(tip_hash)s
RETURNING 1
"""
_ABANDON_SPAN: LiteralString = "DELETE FROM app.chain_spans WHERE chain = %(chain)s AND network = %(network)s"
# All that will be written, at once: in two statements the ids would not be in order.
_LOCK_REQUESTS: LiteralString = (
    """
SELECT 1 FROM app.payment_requests r
WHERE r.id = ANY (ARRAY(
    SELECT q.id FROM app.payment_requests q
    WHERE q.chain = %(chain)s AND q.network = %(network)s AND q.reconcile_span_height IS NOT NULL
    UNION ALL
    SELECT s.payment_request_id FROM app.payment_request_settlements s WHERE"""
    + ORPHANED
    + """))
ORDER BY r.id FOR NO KEY UPDATE OF r
"""
)
# Touched, they ask for another span at once: their next look may be hours away.
_FORGET_SPAN: LiteralString = (
    "UPDATE app.payment_requests r SET reconcile_span_height = NULL, next_reconcile_at ="
    + TOUCHED
    + " WHERE r.chain = %(chain)s AND r.network = %(network)s AND r.reconcile_span_height IS NOT NULL"
)
_TELL: LiteralString = """
INSERT INTO app.chain_events (chain, network, event, height, who, detail)
VALUES (%(chain)s, %(network)s, 'resumed', %(fork)s, %(who)s, jsonb_build_object(
  'block_hash', %(tip_after)s::text, 'scanned_height', %(scanned)s::bigint, 'tip_hash', %(tip_hash)s::text,
  'stop_reason', %(reason)s::text, 'orphaned_settlements', %(orphaned)s::int, 'touched_requests', %(touched)s::int))
"""
