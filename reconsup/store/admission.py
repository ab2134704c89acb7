"""Admission: what the tail holds for a request that the scan has never met, read without a gap.

One READ COMMITTED transaction of several statements, never one statement: the cursor's row is locked first, and the
joins that follow take their snapshots after that lock. A commit updates the cursor first and then joins. So either
the commit came first, and the tail holds its credits, or it comes later, and its own join sees the request.

The lock is the commit's own kind: for it PostgreSQL lets them queue. Shared locks would not queue but overtake a
commit that waits: with a dozen admissions at a time, none was ever had for it.
"""

from collections.abc import Sequence
from typing import LiteralString

from reconsup.store import joining
from reconsup.store.database import Database, Transaction
from reconsup.store.leases import HELD_EPOCH, Batch
from reconsup.store.matching import PAID_IN_TAIL, settle


async def admit(database: Database, batch: Batch) -> frozenset[str]:
    """Look up the past of the batch's requests in the tail; the ids whose whole past has now been read.

    Settles what the tail holds for them, also where the past is longer than the tail: then a span is opened that reads
    the rest (`store.joining`). Only rows still leased by this batch are written.
    """
    claims = [claim for claim in batch.claims if not claim.request.admitted]
    parameters = {
        "chain": batch.network.chain,
        "network": batch.network.name,
        "owner": batch.owner,
        "ids": [claim.request.id for claim in claims],
        "epochs": [claim.epoch for claim in claims],
    }

    async def work(transaction: Transaction) -> frozenset[str]:
        await transaction.send(_LOCK_CURSOR, parameters)
        joins = await joining.open_for(transaction, batch.network, owner=batch.owner, claims=claims)
        admitted = await transaction.rows(_ADMIT, parameters)
        await transaction.send(_SETTLE_TAIL, parameters)
        if joins is not None:
            await joining.mark(transaction, joins)
        return frozenset(id_ for (id_,) in admitted)

    return await database.transact(work)


async def look_again(database: Database, batch: Batch) -> None:
    """Settle once more what the tail holds for the requests of a batch, admitted or not.

    For rows that are about to expire: a correction by hand (address, token, a twin that is gone) may have made a
    credit theirs after its block was committed.
    """
    parameters = {
        "chain": batch.network.chain,
        "network": batch.network.name,
        "owner": batch.owner,
        "ids": [claim.request.id for claim in batch.claims],
        "epochs": [claim.epoch for claim in batch.claims],
    }

    async def work(transaction: Transaction) -> None:
        await transaction.send(_LOCK_CURSOR, parameters)
        await transaction.send(_SETTLE_TAIL, parameters)

    await database.transact(work)


async def repair(database: Database, batch: Batch, ids: Sequence[str]) -> int:
    """Make settlements canonical again that another program disowned without a proof; how many.

    Only where our chain still holds their block, and of requests that are still leased by this batch.
    """
    wanted = frozenset(ids)
    claims = [claim for claim in batch.claims if claim.request.id in wanted]
    parameters = {
        "chain": batch.network.chain,
        "network": batch.network.name,
        "owner": batch.owner,
        "ids": [claim.request.id for claim in claims],
        "epochs": [claim.epoch for claim in claims],
    }

    async def work(transaction: Transaction) -> int:
        await transaction.send(_LOCK_CURSOR, parameters)
        ours = [id_ for (id_,) in await transaction.rows(_LOCK_OURS, parameters)]
        return len(await transaction.rows(_REPAIR, parameters | {"ids": ours}))

    return await database.transact(work)


_SETTLE_TAIL: LiteralString = settle(PAID_IN_TAIL)

_LOCK_CURSOR: LiteralString = """
SELECT 1 FROM app.chain_cursors WHERE chain = %(chain)s AND network = %(network)s FOR NO KEY UPDATE
"""

# Those of the batch that are still leased by it, locked in id order.
_LOCK_OURS: LiteralString = (
    """
  SELECT r.id FROM app.payment_requests r
  JOIN unnest(%(ids)s::text[], %(epochs)s::bigint[]) AS m(id, epoch) ON m.id = r.id
  WHERE"""
    + HELD_EPOCH
    + """= m.epoch
  ORDER BY r.id FOR NO KEY UPDATE OF r"""
)

# The past is read when the block below the tail is older than the request's first block can be. Before the first
# commit the tail is empty, and the cursor's tip is that block below it.
_ADMIT: LiteralString = (
    "WITH mine AS MATERIALIZED ("
    + _LOCK_OURS
    + """), tail AS (
  SELECT k.next_height, k.tail_start, coalesce(
    (SELECT b.block_time FROM app.chain_blocks b
     WHERE b.chain = k.chain AND b.network = k.network AND b.height = k.tail_start), k.tip_time) AS start_time
  FROM app.chain_cursors k WHERE k.chain = %(chain)s AND k.network = %(network)s)
UPDATE app.payment_requests r SET reconcile_admitted_height = tail.next_height - 1
FROM mine, tail
WHERE r.id = mine.id AND (tail.tail_start = 0 OR tail.start_time < r.created_at - interval '15 minutes')
RETURNING r.id
"""
)

_REPAIR: LiteralString = """
UPDATE app.payment_request_settlements s SET is_canonical = true, updated_at = now()
FROM app.chain_cursors k
WHERE k.chain = %(chain)s AND k.network = %(network)s
  AND s.payment_request_id = ANY(%(ids)s::text[]) AND NOT s.is_canonical AND s.metadata ? 'first_block_time'
  AND s.metadata -> 'reorg' ->> 'block_hash' IS DISTINCT FROM s.block_hash
  AND (s.block_height < k.tail_start OR EXISTS (
    SELECT FROM app.chain_blocks b WHERE b.chain = k.chain AND b.network = k.network
      AND b.height = s.block_height AND b.block_hash = s.block_hash))
RETURNING 1
"""
