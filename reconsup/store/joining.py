"""Who joins a span: requests whose past is older than the tail, in the admission that found it so.

A member's `reconcile_span_height` is the tail's start at the moment it joined. From there up all is covered by that
very admission, which reads the tail under the cursor's lock, and by the commits since; below, by the span. So rows may
join only while nothing of the span was read: then its top is moved up to the present tail, and its end down to the
oldest of them. Who comes later waits (WAITING) for the next one.

What a span hangs on is the parent of the tail's first block: the block below the tail is final, no reorg reaches it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, LiteralString

from reconsup.payments.request import Network, PaymentRequest, Status
from reconsup.store.database import Row, Transaction
from reconsup.store.leases import HELD_EPOCH, Claim

WAITING = -1  # in place of a member's height
READ_DAYS_MAX = 400
CLOCK_SLACK = timedelta(minutes=15)  # as in store.matching
OPEN = (Status.PENDING, Status.DETECTED, Status.REORGED)


def is_too_old(request: PaymentRequest, tip_time: datetime) -> bool:
    """Whether no span is opened for the request: a request lives a month, so such a time is a mistake in the row.

    One row from 1970 would have the whole chain read.
    """
    return request.status in OPEN and request.created_at < tip_time - timedelta(days=READ_DAYS_MAX)


@dataclass(frozen=True, slots=True)
class Joining:
    """The rows of an admission whose past is older than the tail, and the height that they are to be marked with."""

    parameters: Mapping[str, Any]
    mark: int


async def open_for(
    transaction: Transaction, network: Network, *, owner: str, claims: Sequence[Claim]
) -> Joining | None:
    """Open a span for those of the claimed requests that need one, or join the one that nothing was read of yet.

    To be called under the cursor's lock and before any request is locked; `mark` comes after. None: nobody needs one.
    Rows that are wrong in themselves need none: no credit could be theirs.
    """
    key = {"chain": network.chain, "network": network.name}
    rows = await transaction.rows(_TAIL, key)
    if not rows:
        return None
    (tail,) = rows
    needy = [claim for claim in claims if _needs(claim.request, tail)]
    if not needy or tail.below_hash is None:
        return None
    parameters = key | {
        "owner": owner,
        "ids": [claim.request.id for claim in needy],
        "epochs": [claim.epoch for claim in needy],
        "to_height": tail.tail_start - 1,
        "to_hash": tail.below_hash,
    }
    is_opened = bool(await transaction.rows(_OPEN, parameters))
    return Joining(parameters, tail.tail_start if is_opened else WAITING)


async def mark(transaction: Transaction, joining: Joining) -> None:
    """Make the rows members of the span, or let them wait for the next one. They are locked by the admission."""
    await transaction.send(_MARK, {**joining.parameters, "mark": joining.mark})


def _needs(request: PaymentRequest, tail: Row) -> bool:
    return (
        request.status in OPEN
        and tail.tail_start > 0
        and request.created_at - CLOCK_SLACK <= tail.start_time
        and not is_too_old(request, tail.tip_time)
        and request.error(chain_id=tail.chain_id, shares_address=False) is None
    )


_OF_NETWORK: LiteralString = " s.chain = %(chain)s AND s.network = %(network)s "

# What is below the tail hangs on its first block or, while it is empty, on the cursor's tip. `below_hash` is null where
# the tail's first block is not stored: nothing could be believed then.
_TAIL: LiteralString = """
SELECT k.chain_id, k.tail_start, k.tip_time, coalesce(b.block_time, k.tip_time) AS start_time,
       CASE WHEN k.next_height = k.tail_start THEN k.tip_hash ELSE b.parent_hash END AS below_hash
FROM app.chain_cursors k
LEFT JOIN app.chain_blocks b ON b.chain = k.chain AND b.network = k.network AND b.height = k.tail_start
WHERE k.chain = %(chain)s AND k.network = %(network)s AND k.tip_time IS NOT NULL
"""

# Rows that the worker still holds, that no other row shares its address with, and that are no members already.
_JOINING: LiteralString = (
    """
FROM unnest(%(ids)s::text[], %(epochs)s::bigint[]) AS mine(id, epoch)
JOIN app.payment_requests r ON r.id = mine.id AND"""
    + HELD_EPOCH
    + """= mine.epoch
WHERE NOT EXISTS (
  SELECT FROM app.payment_requests o
  WHERE o.chain = r.chain AND o.network = r.network AND o.chain_id IS NOT DISTINCT FROM r.chain_id
    AND lower(o.address_canonical) = lower(r.address_canonical)
    AND lower(coalesce(o.token_contract, '')) = lower(coalesce(r.token_contract, ''))
    AND o.id <> r.id
  OFFSET 0)"""
)
_IS_MEMBER: LiteralString = " coalesce(r.reconcile_span_height >= 0, false) "
_OPEN: LiteralString = (
    """
INSERT INTO app.chain_spans AS s (chain, network, from_height, to_height, next_height, next_hash, until_time)
SELECT %(chain)s, %(network)s, 0, %(to_height)s, %(to_height)s, %(to_hash)s,
       min(r.created_at) - interval '15 minutes'"""
    + _JOINING
    + """
  AND NOT ("""
    + _IS_MEMBER
    + "AND EXISTS (SELECT FROM app.chain_spans s WHERE"
    + _OF_NETWORK
    + """))
HAVING count(*) > 0
ON CONFLICT (chain, network) DO UPDATE
SET to_height = excluded.to_height, next_height = excluded.next_height, next_hash = excluded.next_hash,
    until_time = least(s.until_time, excluded.until_time), updated_at = now()
WHERE s.next_height = s.to_height
RETURNING 1
"""
)
_MARK: LiteralString = (
    """
UPDATE app.payment_requests r SET reconcile_span_height = %(mark)s
WHERE r.id = ANY (ARRAY(
    SELECT r.id"""
    + _JOINING
    + """))
  AND (%(mark)s >= 0 OR NOT"""
    + _IS_MEMBER
    + """)
"""
)
