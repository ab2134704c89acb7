"""A network's cursor: how far it is read, what its tip was, and who may read on (the scan lease).

The scan lease is taken by a plain guarded UPDATE and renewed only by progress: a commit, or an endpoint's answer
that our tip is its head. Whoever has neither for one lease frees it and stands back. The cursor is born once, when
chain id and genesis are known; both are pinned in it.
"""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from reconsup.chain.block import Header
from reconsup.payments.request import Network
from reconsup.store import refusals
from reconsup.store.database import Database, Row, Transaction
from reconsup.store.errors import StoreRejected
from reconsup.store.leases import TOUCHED
from reconsup.store.persist import Against

NO_PARENT = "0x" + "0" * 64


@dataclass(frozen=True, slots=True)
class Cursor:
    """A row of `app.chain_cursors`, as its holder (or, with `owner` None, a reader) saw it.

    `tip_time` is None while nothing was read of a chain that is read from its first block. `unproven_height` is not
    below the highest block that was read and not proven complete; None: there was none.
    """

    network: Network
    chain_id: int
    genesis_hash: str
    next_height: int
    tip_hash: str
    tip_time: datetime | None
    finalized_height: int | None
    tail_start: int
    unproven_height: int | None
    stop_reason: str | None
    owner: str | None
    epoch: int

    @property
    def scanned_height(self) -> int:
        """The highest block that was read; -1 before the first."""
        return self.next_height - 1

    @property
    def is_proven(self) -> bool:
        """Whether every block of the tail was proven complete."""
        return self.unproven_height is None or self.unproven_height < self.tail_start


@dataclass(frozen=True, slots=True)
class Tags:
    """What the endpoint calls its head, and the blocks behind its tags (None: it has no such tag)."""

    head_height: int
    safe: Header | None = None
    finalized: Header | None = None


async def read(database: Database, network: Network) -> Cursor | None:
    """The cursor as it stands, without a lease; None while it is unborn."""
    rows = await database.fetch(_READ, _key(network))
    return _cursor(network, rows[0], owner=None) if rows else None


async def birth(
    database: Database, network: Network, *, chain_id: int, genesis_hash: str, parent: Header | None
) -> bool:
    """Insert the cursor unless it exists: reading begins above `parent` (None: at the first block).

    False if it existed: somebody else saw at the same time that there was none.
    """
    born = await database.fetch(
        _BIRTH,
        _key(network)
        | {
            "chain_id": chain_id,
            "genesis_hash": genesis_hash,
            "next_height": parent.height + 1 if parent else 0,
            "tip_hash": parent.block_hash if parent else NO_PARENT,
            "tip_time": parent.time if parent else None,
        },
    )
    return bool(born)


async def take(database: Database, network: Network, *, owner: str, lease_seconds: float) -> Cursor | None:
    """Take the scan lease if nobody has it; None if somebody does or there is no cursor.

    One's own may be taken again, with a new epoch: it is held without being known when an answer was lost.
    """

    async def work(transaction: Transaction) -> list[Row]:
        return await transaction.rows(_TAKE, _key(network) | {"owner": owner, "lease": lease_seconds})

    rows = await database.transact(work)
    return _cursor(network, rows[0], owner=owner) if rows else None


async def keep(
    database: Database, cursor: Cursor, tags: Tags, *, lease_seconds: float, due_against: Against
) -> Cursor | None:
    """Renew the scan lease on the endpoint's word that our tip is its head; None if it was lost.

    A tag that advanced touches the requests that wait for it.
    """

    async def work(transaction: Transaction) -> Cursor | None:
        kept = await transaction.rows(_KEEP, fence(cursor) | tag_parameters(tags) | {"lease": lease_seconds})
        return _cursor(cursor.network, kept[0], owner=cursor.owner) if kept else None

    kept = await database.transact(work)
    if kept is not None and due_against != "scanned":
        await touch_due(database, cursor.network, due_against)
    return kept


async def touch_due(database: Database, network: Network, due_against: Against) -> int:
    """Touch the requests whose due height is reached; how many.

    In a transaction of its own, after the cursor's: a persist that set a due height meanwhile either shows here, or
    sees the cursor as it stands now. A row that PostgreSQL refuses to write is left out: it waits for its safety net,
    and the claim will name it.
    """
    parameters = _key(network) | {"against": due_against}

    async def touch_others(transaction: Transaction) -> int:
        ids = [str(id_) for (id_,) in await transaction.rows(_DUE, parameters)]
        refused = await refusals.among(transaction, _TOUCH_THESE, {}, ids)
        others = [id_ for id_ in ids if id_ not in refused]
        return len(await transaction.rows(_TOUCH_THESE, {"ids": others}))

    try:
        return len(await database.fetch(_TOUCH_DUE, parameters))
    except StoreRejected:
        with suppress(StoreRejected):  # too many such rows: all wait for their safety nets
            return await database.transact(touch_others)
    return 0


async def note_disagreement(database: Database, network: Network, *, is_over: bool = False) -> None:
    """Note that endpoints of a network showed different blocks just now, or that they agree again."""
    await database.fetch(_AGREE if is_over else _DISAGREE, _key(network))


async def free(database: Database, cursor: Cursor) -> None:
    """Give the scan lease back, if it is still ours."""
    await database.fetch(_FREE, fence(cursor))


async def renew(database: Database, cursor: Cursor, *, lease_seconds: float) -> bool:
    """Renew the scan lease in the midst of a long walk that makes headway. False if it was lost."""
    return bool(await database.fetch(_RENEW, fence(cursor) | {"lease": lease_seconds}))


async def stop(database: Database, cursor: Cursor, reason: str) -> bool:
    """Stop the network: nothing of it is leased or read from now on. False if the cursor moved meanwhile.

    What was decided before, from the chain as it was then, may still be written.
    """
    return bool(await database.fetch(_STOP, fence(cursor) | {"reason": reason} | _teller(cursor)))


async def start_again(database: Database, cursor: Cursor) -> bool:
    """Clear the stop, because the endpoint shows the stored tip again. False if the cursor moved meanwhile."""
    return bool(await database.fetch(_START_AGAIN, fence(cursor) | _teller(cursor)))


async def stored_hashes(database: Database, cursor: Cursor) -> dict[int, str]:
    """Height → hash of every block of the tail, of the one below it, and of the tip."""
    rows = await database.fetch(_STORED, _key(cursor.network))
    return dict(rows) | {cursor.scanned_height: cursor.tip_hash}


def fence(cursor: Cursor) -> dict[str, Any]:
    """The parameters that a guarded write on the cursor presents."""
    return _key(cursor.network) | {
        "next_height": cursor.next_height,
        "tip_hash": cursor.tip_hash,
        "owner": cursor.owner,
        "epoch": cursor.epoch,
    }


def tag_parameters(tags: Tags) -> dict[str, Any]:
    """The parameters of `HEAD_AND_SAFE` and `finalized`."""
    return {
        "head_height": tags.head_height,
        "safe": tags.safe.height if tags.safe else None,
        "safe_hash": tags.safe.block_hash if tags.safe else None,
        "finalized": tags.finalized.height if tags.finalized else None,
        "finalized_hash": tags.finalized.block_hash if tags.finalized else None,
    }


def _key(network: Network) -> dict[str, Any]:
    return {"chain": network.chain, "network": network.name}


def _teller(cursor: Cursor) -> dict[str, Any]:
    """Who an event of the network is told by, and where its scan stood."""
    assert cursor.owner is not None
    return {"who": cursor.owner.partition("#")[0], "scanned": cursor.scanned_height}


def _cursor(network: Network, row: Row, *, owner: str | None) -> Cursor:
    chain_id, genesis_hash, next_height, tip_hash, tip_time, finalized, tail_start, unproven, stop_reason, epoch = row
    return Cursor(
        network=network,
        chain_id=chain_id,
        genesis_hash=genesis_hash,
        next_height=next_height,
        tip_hash=tip_hash,
        tip_time=tip_time,
        finalized_height=finalized,
        tail_start=tail_start,
        unproven_height=unproven,
        stop_reason=stop_reason,
        owner=owner,
        epoch=epoch,
    )


_COLUMNS: LiteralString = """
  k.chain_id, k.genesis_hash, k.next_height, k.tip_hash, k.tip_time, k.finalized_height, k.tail_start,
  k.unproven_height, k.stop_reason, k.scan_lease_epoch"""
_OF_NETWORK: LiteralString = " k.chain = %(chain)s AND k.network = %(network)s "
FENCE: LiteralString = (
    _OF_NETWORK
    + """AND k.next_height = %(next_height)s AND k.tip_hash = %(tip_hash)s
  AND k.scan_lease_owner = %(owner)s AND k.scan_lease_epoch = %(epoch)s """
)

# A tag counts only where its hash is the one we stored; finalized never goes down. `finalized_tag_height` is the tag's
# own and confirms payments; `finalized_height` rules what may be taken back, and counts what left the tail as well.
HEAD_AND_SAFE: LiteralString = """
  head_height = %(head_height)s::bigint,
  safe_height = coalesce(
    (SELECT b.height FROM app.chain_blocks b WHERE b.chain = k.chain AND b.network = k.network
       AND b.height = %(safe)s::bigint AND b.block_hash = %(safe_hash)s::text), k.safe_height)"""
_FINALIZED_TAG: LiteralString = """
    (SELECT b.height FROM app.chain_blocks b WHERE b.chain = k.chain AND b.network = k.network
       AND b.height = %(finalized)s::bigint AND b.block_hash = %(finalized_hash)s::text))"""


def finalized(floor: LiteralString) -> LiteralString:
    """What an UPDATE sets both to; `floor` is the least that `finalized_height` may be."""
    return (
        """,
  finalized_tag_height = greatest(k.finalized_tag_height,"""
        + _FINALIZED_TAG
        + """,
  finalized_height = greatest(k.finalized_height, """
        + floor
        + ","
        + _FINALIZED_TAG
    )


# The height that due heights are compared with: the scan's, or that of the tag which the policy names. Of a column that
# is below something unknown PostgreSQL expects a third of all rows, and may read the whole table; of one that is also
# above something it expects next to none. So whoever asks for `<=` this also asks for `>= 0`.
DUE_HEIGHT: LiteralString = (
    """ (SELECT CASE %(against)s WHEN 'safe' THEN k.safe_height WHEN 'finalized' THEN k.finalized_tag_height
            ELSE k.next_height - 1 END
    FROM app.chain_cursors k WHERE"""
    + _OF_NETWORK
    + ")"
)
_DUE: LiteralString = (
    """
  SELECT r.id FROM app.payment_requests r
  WHERE r.chain = %(chain)s AND r.network = %(network)s AND r.status <> 'failed'
    AND r.reconcile_due_height >= 0 AND r.reconcile_due_height <="""
    + DUE_HEIGHT
    + """
  ORDER BY r.id FOR NO KEY UPDATE OF r"""
)
_WAKE: LiteralString = "UPDATE app.payment_requests r SET reconcile_due_height = NULL, next_reconcile_at =" + TOUCHED
_TOUCH_DUE: LiteralString = (
    "WITH due AS MATERIALIZED (" + _DUE + ") " + _WAKE + " WHERE r.id = ANY (ARRAY(SELECT id FROM due)) RETURNING r.id"
)
_TOUCH_THESE: LiteralString = _WAKE + " WHERE r.id = ANY (%(ids)s::text[]) RETURNING r.id"

_READ: LiteralString = "SELECT" + _COLUMNS + " FROM app.chain_cursors k WHERE" + _OF_NETWORK
_BIRTH: LiteralString = """
INSERT INTO app.chain_cursors (chain, network, chain_id, genesis_hash, next_height, tip_hash, tip_time, tail_start,
                               finalized_height)
VALUES (%(chain)s, %(network)s, %(chain_id)s, %(genesis_hash)s, %(next_height)s, %(tip_hash)s, %(tip_time)s,
        %(next_height)s, %(next_height)s - 1)
ON CONFLICT (chain, network) DO NOTHING RETURNING 1
"""
_TAKE: LiteralString = (
    """
UPDATE app.chain_cursors k
SET scan_lease_owner = %(owner)s, scan_lease_until = now() + make_interval(secs => %(lease)s),
    scan_lease_epoch = k.scan_lease_epoch + 1
WHERE"""
    + _OF_NETWORK
    + """AND (k.scan_lease_until IS NULL OR k.scan_lease_until <= now() OR k.scan_lease_owner = %(owner)s)
RETURNING"""
    + _COLUMNS
)
_KEEP: LiteralString = (
    """
UPDATE app.chain_cursors k
SET scan_lease_until = now() + make_interval(secs => %(lease)s), updated_at = now(),"""
    + HEAD_AND_SAFE
    + finalized("NULL")
    + " WHERE"
    + FENCE
    + "RETURNING"
    + _COLUMNS
)
_DISAGREE: LiteralString = "UPDATE app.chain_cursors k SET disagreed_at = now() WHERE" + _OF_NETWORK
_AGREE: LiteralString = (
    "UPDATE app.chain_cursors k SET disagreed_at = NULL WHERE" + _OF_NETWORK + "AND k.disagreed_at IS NOT NULL"
)
_FREE: LiteralString = (
    "UPDATE app.chain_cursors k SET scan_lease_owner = NULL, scan_lease_until = NULL WHERE"
    + _OF_NETWORK
    + "AND k.scan_lease_owner = %(owner)s AND k.scan_lease_epoch = %(epoch)s"
)
_RENEW: LiteralString = (
    "UPDATE app.chain_cursors k SET scan_lease_until = now() + make_interval(secs => %(lease)s) WHERE"
    + FENCE
    + "RETURNING 1"
)
_STOP: LiteralString = (
    """
WITH stopped AS (
  UPDATE app.chain_cursors k SET stop_reason = %(reason)s, stopped_at = now(), updated_at = now() WHERE"""
    + FENCE
    + """AND k.stop_reason IS NULL RETURNING k.finalized_height)
INSERT INTO app.chain_events (chain, network, event, height, who, detail)
SELECT %(chain)s, %(network)s, 'stopped', %(scanned)s::bigint, %(who)s,
       jsonb_build_object('reason', %(reason)s::text, 'tip_hash', %(tip_hash)s::text,
                          'finalized_height', stopped.finalized_height)
FROM stopped RETURNING 1"""
)
_START_AGAIN: LiteralString = (
    """
WITH started AS (
  UPDATE app.chain_cursors k SET stop_reason = NULL, stopped_at = NULL, updated_at = now() WHERE"""
    + FENCE
    + """AND k.stop_reason IS NOT NULL RETURNING 1)
INSERT INTO app.chain_events (chain, network, event, height, who, detail)
SELECT %(chain)s, %(network)s, 'started_again', %(scanned)s::bigint, %(who)s,
       jsonb_build_object('tip_hash', %(tip_hash)s::text)
FROM started RETURNING 1"""
)
_STORED: LiteralString = (
    "SELECT k.height, k.block_hash FROM app.chain_blocks k WHERE"
    + _OF_NETWORK
    + """
UNION ALL (
  SELECT k.height - 1, k.parent_hash FROM app.chain_blocks k WHERE"""
    + _OF_NETWORK
    + "AND k.height > 0 ORDER BY k.height LIMIT 1)"
)
