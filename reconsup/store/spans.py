"""Spans: blocks older than the tail, read once for all requests that need them, from the tail's first block down.

One span a network at a time, and not of one contract or address: whatever credit its blocks hold is matched as a
commit would match it. The requests that it serves are its members (`store.joining` says how one becomes a member).
Whatever changes a span or its members locks the cursor first, then the span, then requests in id order. A reader's
write is fenced as a scanner's is: next height, next hash, lease owner and epoch. A block is believed because its hash
is the one that the block above, in the end the tail's first one, calls its parent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, LiteralString, Protocol, TypeVar

from reconsup.chain.block import Block
from reconsup.payments.request import Network
from reconsup.store import refusals
from reconsup.store.database import Database, Row, Transaction
from reconsup.store.errors import StoreRejected
from reconsup.store.leases import TOUCHED
from reconsup.store.ledger import credit_columns
from reconsup.store.matching import PAID_BY_CREDITS, settle

CLOSED_AT_ONCE = 2000
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Span:
    """A row of `app.chain_spans`. `next_height` is read next, downwards, and must have the hash `next_hash`.

    `from_height` is, as guessed from the blocks read so far, the lowest that has to be read. `is_free`: nobody reads it
    now, and it may be begun. `is_needed`: it has open members. `age_seconds` by the database's clock.
    """

    network: Network
    from_height: int
    to_height: int
    next_height: int
    next_hash: str
    owner: str | None
    epoch: int
    is_free: bool
    is_needed: bool
    age_seconds: float

    @property
    def is_read(self) -> bool:
        """Whether all of it was read, and what is left is to close it."""
        return self.next_height < self.from_height

    @property
    def is_unbegun(self) -> bool:
        """Whether nothing of it was read yet: requests may still join."""
        return self.next_height == self.to_height

    @property
    def blocks_left(self) -> int:
        """How many blocks are probably still to be read."""
        return max(0, self.next_height - self.from_height + 1)


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step did: how many settlements it wrote and requests it touched, and which PostgreSQL refuses to touch."""

    settlements: int
    touched: int
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Closed:
    """What closing did. `admitted`: requests whose past is read now; `is_over`: the span is gone."""

    admitted: int
    is_over: bool


class _FencedError(Exception):
    """The span is not ours, or not where we thought, or its network stopped: roll back."""


async def read(database: Database, network: Network, *, join_seconds: float) -> Span | None:
    """The network's span as it stands, without a lease; None if there is none, or the network is stopped.

    It is not free to be begun before it was left alone for `join_seconds` (or is thirty times as old): others, of the
    batches after the one that opened it, should join it.
    """
    rows = await database.fetch(_READ, {"chain": network.chain, "network": network.name, "join": join_seconds})
    return _span(network, rows[0]) if rows else None


async def take(database: Database, span: Span, *, owner: str, lease_seconds: float) -> bool:
    """Take the lease of a span that nobody reads; False if somebody was faster."""
    parameters = _key(span) | {"owner": owner, "lease": lease_seconds}

    async def work(transaction: Transaction) -> bool:
        return bool(await transaction.rows(_TAKE, parameters))

    return await database.transact(work)


async def free(database: Database, network: Network, owner: str) -> None:
    """Give the lease back, if it is still ours."""
    await database.fetch(_FREE, {"chain": network.chain, "network": network.name, "owner": owner})


async def step(database: Database, span: Span, blocks: Sequence[Block], *, lease_seconds: float) -> Stepped | None:
    """Settle what some blocks hold, linked and lowest first, the highest being the next one; None if fenced.

    Touches the requests that get a settlement. Renews the lease. Raises StoreRejected where PostgreSQL refuses a
    settlement, or the touch of a request that somebody has leased.
    """
    lowest, highest = blocks[0], blocks[-1]
    assert (highest.height, highest.block_hash) == (span.next_height, span.next_hash)
    spacing = (highest.time - lowest.time).total_seconds() / max(1, len(blocks) - 1)
    moved = {
        "lowest": lowest.height,
        "lowest_time": lowest.time,
        "hash_after": lowest.parent_hash,
        "spacing": max(spacing, 0.01),
        "lease": lease_seconds,
    }
    columns = credit_columns(blocks)

    async def work(transaction: Transaction, *, is_careful: bool = False) -> Stepped:
        await _lock(transaction, span)
        if not await transaction.rows(_ADVANCE, _fence(span) | moved):
            raise _FencedError
        paid = await transaction.rows(_PAID, _key(span) | columns)
        if not paid:
            return Stepped(0, 0)
        ids = sorted({row.id for row in paid})
        few = {row.position - 1 for row in paid}
        touched, refused = await _touch(transaction, ids, is_careful=is_careful)
        credits_ = {name: [column[at] for at in sorted(few)] for name, column in columns.items()}
        settled = await transaction.rows(_SETTLE, _key(span) | credits_)
        return Stepped(len(settled), touched, refused)

    return await _careful_if_refused(database, work)


async def _touch(transaction: Transaction, ids: list[str], *, is_careful: bool) -> tuple[int, dict[str, str]]:
    """Touch requests; how many, and (`is_careful`) which PostgreSQL refuses to write: as a commit does, and why."""
    locked = await transaction.rows(_LOCK_REQUESTS, {"ids": ids})
    writable = [row.id for row in locked]
    refused: dict[str, str] = {}
    if is_careful:
        refused = await refusals.among(transaction, _TOUCH_THESE, {}, writable)
        if len(refused) >= refusals.FOUND_MAX or any(row.is_leased and row.id in refused for row in locked):
            raise StoreRejected(next(iter(refused.values())))
        writable = [id_ for id_ in writable if id_ not in refused]
    return len(await transaction.rows(_TOUCH_THESE, {"ids": writable})), refused


async def close(database: Database, span: Span) -> Closed | None:
    """Admit members of a span that was read, some at a time, and delete it when there are no more; None if fenced.

    A span that nobody needs any more is deleted too; it admits nobody. Touches its members, and who waits for the next
    one. A row that PostgreSQL refuses to write keeps its mark: once it is put right, its next look opens another span.
    """

    async def work(transaction: Transaction, *, is_careful: bool = False) -> Closed:
        await _lock(transaction, span)
        fenced = await transaction.rows(_FENCED, _fence(span))
        if not fenced or (fenced[0].is_needed and not span.is_read):
            raise _FencedError
        parameters = _key(span) | {"is_read": span.is_read, "limit": CLOSED_AT_ONCE}
        members = [str(id_) for (id_,) in await transaction.rows(_MEMBERS, parameters)]
        refused: dict[str, str] = {}
        if is_careful:
            refused = await refusals.among(transaction, _CLOSE_THESE, parameters, members)
            if len(refused) >= refusals.FOUND_MAX:
                raise StoreRejected(next(iter(refused.values())))
        others = [id_ for id_ in members if id_ not in refused]
        done = await transaction.rows(_CLOSE_THESE, parameters | {"ids": others})
        is_over = len(members) < CLOSED_AT_ONCE
        if is_over:
            await transaction.send(_DELETE, _key(span))
        return Closed(sum(row.is_admitted for row in done), is_over)

    return await _careful_if_refused(database, work)


class _Work(Protocol[T_co]):
    async def __call__(self, transaction: Transaction, *, is_careful: bool = False) -> T_co: ...


async def _careful_if_refused(database: Database, work: _Work[T_co]) -> T_co | None:
    """Run the work; once more, carefully, where PostgreSQL refuses a row; None if it was fenced."""
    try:
        try:
            return await database.transact(work)
        except StoreRejected:
            return await database.transact(partial(work, is_careful=True))
    except _FencedError:
        return None


async def _lock(transaction: Transaction, span: Span) -> None:
    if not await transaction.rows(_LOCK_CURSOR, _key(span)):
        raise _FencedError


def _key(span: Span) -> dict[str, Any]:
    return {"chain": span.network.chain, "network": span.network.name}


def _fence(span: Span) -> dict[str, Any]:
    return _key(span) | {
        "next_height": span.next_height,
        "next_hash": span.next_hash,
        "owner": span.owner,
        "epoch": span.epoch,
    }


def _span(network: Network, row: Row) -> Span:
    return Span(
        network=network,
        from_height=row.from_height,
        to_height=row.to_height,
        next_height=row.next_height,
        next_hash=row.next_hash,
        owner=row.owner,
        epoch=row.lease_epoch,
        is_free=row.is_free,
        is_needed=row.is_needed,
        age_seconds=row.age_seconds,
    )


_OF_NETWORK: LiteralString = " s.chain = %(chain)s AND s.network = %(network)s "
_OF_REQUESTS: LiteralString = " r.chain = %(chain)s AND r.network = %(network)s "
_FENCE: LiteralString = (
    _OF_NETWORK
    + """AND s.next_height = %(next_height)s AND s.next_hash = %(next_hash)s
  AND s.lease_owner = %(owner)s AND s.lease_epoch = %(epoch)s """
)
_LOCK_CURSOR: LiteralString = """
SELECT 1 FROM app.chain_cursors
WHERE chain = %(chain)s AND network = %(network)s AND stop_reason IS NULL FOR NO KEY UPDATE
"""

_DELETE: LiteralString = "DELETE FROM app.chain_spans s WHERE" + _OF_NETWORK
_IS_NEEDED: LiteralString = (
    """ EXISTS (
    SELECT FROM app.payment_requests r WHERE"""
    + _OF_REQUESTS
    + """AND r.reconcile_span_height >= 0 AND r.status IN ('pending', 'detected', 'reorged')) AS is_needed """
)
_READ: LiteralString = (
    """
SELECT s.from_height, s.to_height, s.next_height, s.next_hash, s.lease_epoch,
       CASE WHEN s.lease_until > now() THEN s.lease_owner END AS owner,
       extract(epoch FROM now() - s.created_at)::float8 AS age_seconds,
       (s.lease_until IS NULL OR s.lease_until <= now()) AND (
         s.next_height <> s.to_height OR s.updated_at <= now() - make_interval(secs => %(join)s)
         OR s.created_at <= now() - make_interval(secs => 30 * %(join)s)) AS is_free,"""
    + _IS_NEEDED
    + "FROM app.chain_spans s JOIN app.chain_cursors k USING (chain, network) WHERE"
    + _OF_NETWORK
    + "AND k.stop_reason IS NULL"
)
_TAKE: LiteralString = (
    """
UPDATE app.chain_spans s
SET lease_owner = %(owner)s, lease_until = now() + make_interval(secs => %(lease)s), lease_epoch = s.lease_epoch + 1
WHERE"""
    + _OF_NETWORK
    + "AND (s.lease_until IS NULL OR s.lease_until <= now()) RETURNING 1"
)
_FREE: LiteralString = (
    "UPDATE app.chain_spans s SET lease_owner = NULL, lease_until = NULL WHERE"
    + _OF_NETWORK
    + "AND s.lease_owner = %(owner)s"
)

# It is read when a block is older than anything that a member could be paid in, or is the first of all.
_ADVANCE: LiteralString = (
    """
UPDATE app.chain_spans s
SET next_height = %(lowest)s - 1, next_hash = %(hash_after)s,
    from_height = CASE WHEN %(lowest)s = 0 OR %(lowest_time)s < s.until_time THEN %(lowest)s
      ELSE greatest(0, least(%(lowest)s - 1, %(lowest)s
        - ceil(extract(epoch FROM %(lowest_time)s - s.until_time) / %(spacing)s::numeric)))::bigint END,
    lease_until = now() + make_interval(secs => %(lease)s), updated_at = now()
WHERE"""
    + _FENCE
    + "RETURNING 1"
)
_FENCED: LiteralString = "SELECT" + _IS_NEEDED + "FROM app.chain_spans s WHERE" + _FENCE + "FOR NO KEY UPDATE OF s"

# What is settled already, by the commit of another time or an earlier span, touches nobody again.
_PAID: LiteralString = (
    "SELECT r.id, c.position"
    + PAID_BY_CREDITS
    + """
  AND NOT EXISTS (
    SELECT FROM app.payment_request_settlements o
    WHERE o.payment_request_id = r.id AND o.evidence_ref = c.evidence_ref AND o.block_hash = c.block_hash
      AND o.amount_minor = c.amount_minor AND o.is_canonical
      AND o.metadata ? 'first_block_time' AND NOT o.metadata ? 'reorg'
    OFFSET 0)"""
)
_LOCK_REQUESTS: LiteralString = """
SELECT r.id, coalesce(r.reconcile_lease_until > now(), false) AS is_leased FROM app.payment_requests r
WHERE r.id = ANY (%(ids)s::text[]) AND r.status <> 'failed'
ORDER BY r.id FOR NO KEY UPDATE OF r
"""
_TOUCH_THESE: LiteralString = (
    "UPDATE app.payment_requests r SET next_reconcile_at ="
    + TOUCHED
    + " WHERE r.id = ANY (%(ids)s::text[]) RETURNING r.id"
)
_SETTLE: LiteralString = settle(PAID_BY_CREDITS) + " RETURNING 1"

_MEMBERS: LiteralString = (
    "SELECT r.id FROM app.payment_requests r WHERE"
    + _OF_REQUESTS
    + "AND r.reconcile_span_height IS NOT NULL ORDER BY r.id LIMIT %(limit)s FOR NO KEY UPDATE OF r"
)
# Admitted is who the span was read far enough for, and who joined before it began: what somebody changed by hand since
# begins anew.
_CLOSE_THESE: LiteralString = (
    """
UPDATE app.payment_requests r
SET reconcile_admitted_height = CASE
      WHEN %(is_read)s AND r.reconcile_span_height BETWEEN 0 AND s.to_height + 1
        AND (s.from_height = 0 OR r.created_at - interval '15 minutes' >= s.until_time)
        AND r.status IN ('pending', 'detected', 'reorged')
      THEN k.next_height - 1 ELSE r.reconcile_admitted_height END,
    reconcile_span_height = NULL,
    next_reconcile_at = CASE WHEN r.status IN ('pending', 'detected', 'reorged') THEN"""
    + TOUCHED
    + """ ELSE r.next_reconcile_at END
FROM app.chain_spans s JOIN app.chain_cursors k USING (chain, network)
WHERE"""
    + _OF_NETWORK
    + """AND r.id = ANY (%(ids)s::text[])
RETURNING r.reconcile_admitted_height IS NOT NULL AS is_admitted
"""
)
