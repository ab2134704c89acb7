"""The balance audit's side of the database: what each open native request should hold, and who is explained.

A native request is *explained* at a block when its address holds what our settlements up to that block sum up to, and
what is known to have been there before or to have been taken away (`request_balances`). Nothing is written about
requests that are: the cursor notes how far all of them were compared, and only a request whose end is reached gets a
mark of its own, without which it does not expire. What becomes of the others is told in store.findings.

Everything that the audit writes is fenced by the scan lease: the cursor's row is locked first (FOR NO KEY UPDATE, as a
commit does), still held by the same owner and epoch, not stopped, and each block that is spoken of is the one in
`chain_blocks`. So no credit can be settled by a commit and by the audit: whichever comes second sees the other.
Lock order: cursor, then requests in id order, then settlements, then request_balances.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, LiteralString

from reconsup.payments.request import Network
from reconsup.store import refusals
from reconsup.store.cursor import Cursor
from reconsup.store.database import Database, Transaction
from reconsup.store.errors import StoreRejected
from reconsup.store.leases import TOUCHED

PAGE_ACCOUNTS = 5_000


@dataclass(frozen=True, slots=True)
class Standing:
    """How a network stands. `swept_height`: up to where all were compared, None where no block of that is ours.

    `expiry_time`: the time of the block that is deep enough to expire by (None: not kept).
    """

    height: int
    block_hash: str
    head_height: int | None
    swept_height: int | None
    expiry_time: datetime | None


@dataclass(frozen=True, slots=True)
class Account:
    """An open native request, and what its address should hold: in all, and of that what nobody can explain."""

    id: str
    address: str
    expected_minor: int
    unexplained_minor: int
    nonce: int


@dataclass(frozen=True, slots=True)
class Page:
    """Accounts in the order of their ends, all as they should be at one scanned block.

    `last`: end (in PostgreSQL's words: it may be infinite) and id of the last request that was gone through; None if
    there are no more.
    """

    height: int
    block_hash: str
    accounts: tuple[Account, ...]
    last: tuple[str, str] | None


async def standing(database: Database, network: Network, *, expiry_confirmations: int) -> Standing | None:
    """How the network stands; None while its cursor is unborn, stopped or has read no block."""
    rows = await database.fetch(
        _STANDING,
        {"chain": network.chain, "network": network.name, "expiry_confirmations": expiry_confirmations},
    )
    return Standing(*rows[0]) if rows else None


async def read_page(
    database: Database,
    network: Network,
    after: tuple[str, str] | None = None,
    *,
    limit: int = PAGE_ACCOUNTS,
    ends_before: datetime | None = None,
    grace_seconds: float = 0.0,
) -> Page | None:
    """The accounts among the next `limit` requests behind `after`, which is the last page's `last`.

    With `ends_before`: those that end before and have no mark to expire by. One statement is one snapshot: what each
    should hold belongs to the block that the page names. None while the network's cursor is unborn, stopped or has read
    no block.
    """
    rows = await database.fetch(
        _DUE_PAGE if ends_before else _PAGE,
        {
            "chain": network.chain,
            "network": network.name,
            "limit": limit,
            "after_end": after[0] if after else "-infinity",
            "after_id": after[1] if after else "",
            "until": ends_before or "infinity",
            "grace": grace_seconds,
        },
    )
    if not rows:
        return None
    accounts = tuple(
        Account(row.id, row.address, row.expected, row.unexplained, row.nonce) for row in rows if row.is_wanted
    )
    last = (rows[-1].ends_at, rows[-1].id) if len(rows) == limit else None
    return Page(rows[0].height, rows[0].tip_hash, accounts, last)


async def mark(database: Database, cursor: Cursor, page: Page, accounts: Sequence[Account]) -> int:
    """Note on requests that they are explained at the page's block, and touch them; how many.

    A request that PostgreSQL refuses to write is left out, and so is one whose address was changed meanwhile.
    """
    parameters = fence(cursor) | {
        "heights": [page.height],
        "hashes": [page.block_hash],
        "height": page.height,
        "hash": page.block_hash,
        "ids": [each.id for each in accounts],
        "addresses": [each.address for each in accounts],
    }

    async def work(transaction: Transaction, *, is_careful: bool = False) -> int:
        if not await transaction.rows(LOCK_CURSOR, parameters) or not await are_stored(transaction, parameters):
            return 0
        without: dict[str, str] = {}
        if is_careful:
            without = await refusals.among(transaction, MARK, parameters, parameters["ids"])
            if len(without) >= refusals.FOUND_MAX:
                raise StoreRejected(next(iter(without.values())))
        kept = [each for each in accounts if each.id not in without]
        named = {"ids": [each.id for each in kept], "addresses": [each.address for each in kept]}
        return len(await transaction.rows(MARK, parameters | named))

    try:
        return await database.transact(work)
    except StoreRejected:
        return await database.transact(partial(work, is_careful=True))


async def note_sweep(database: Database, cursor: Cursor, height: int, block_hash: str) -> bool:
    """Note that all open native requests were compared at a block; False if it, or the lease, is not ours any more."""
    parameters = fence(cursor) | {"height": height, "hash": block_hash}
    return bool(await database.fetch(_NOTE_SWEEP, parameters))


def fence(cursor: Cursor) -> dict[str, Any]:
    """The parameters of `LOCK_CURSOR`, that every write of the audit presents."""
    return {
        "chain": cursor.network.chain,
        "network": cursor.network.name,
        "owner": cursor.owner,
        "epoch": cursor.epoch,
    }


async def are_stored(transaction: Transaction, parameters: Mapping[str, Any]) -> bool:
    """Whether our chain holds all the blocks of `heights` and `hashes`."""
    ((stored,),) = await transaction.rows(_STORED, dict(parameters))
    return bool(stored == len(parameters["heights"]))


_OF_NETWORK: LiteralString = " k.chain = %(chain)s AND k.network = %(network)s "
_HELD: LiteralString = (
    _OF_NETWORK + "AND k.scan_lease_owner = %(owner)s AND k.scan_lease_epoch = %(epoch)s AND k.stop_reason IS NULL "
)
_IS_STORED: LiteralString = """ EXISTS (
  SELECT FROM app.chain_blocks b WHERE b.chain = k.chain AND b.network = k.network"""
LOCK_CURSOR: LiteralString = "SELECT 1 FROM app.chain_cursors k WHERE" + _HELD + "FOR NO KEY UPDATE"
_STORED: LiteralString = """
SELECT count(*) FROM app.chain_blocks b
JOIN unnest(%(heights)s::bigint[], %(hashes)s::text[]) AS own(height, block_hash)
  ON b.height = own.height AND b.block_hash = own.block_hash
WHERE b.chain = %(chain)s AND b.network = %(network)s
"""

# What the audit can say something of: what a native credit could belong to (store.matching), once its past is read.
AUDITED: LiteralString = """
  r.chain = %(chain)s AND r.network = %(network)s AND coalesce(r.token_standard, '') = ''
  AND coalesce(r.token_contract, '') = '' AND (r.token_contract IS NULL) = (r.token_standard IS NULL)
  AND r.asset = 'ETH' AND r.status IN ('pending', 'detected', 'reorged') AND r.reconcile_admitted_height IS NOT NULL
  AND lower(r.address_canonical) ~ '^0x[0-9a-f]{40}$' """

# The settlements that a decision counts (store.view), and their sum.
COUNTED: LiteralString = """
  o.metadata ? 'first_block_time' AND o.block_hash IS NOT NULL AND o.block_height IS NOT NULL
  AND o.metadata -> 'reorg' ->> 'block_hash' IS DISTINCT FROM o.block_hash
  AND (o.block_height < k.tail_start OR EXISTS (
    SELECT FROM app.chain_blocks b WHERE b.chain = k.chain AND b.network = k.network
      AND b.height = o.block_height AND b.block_hash = o.block_hash
    OFFSET 0)) """
SETTLED: LiteralString = (
    """ coalesce((
  SELECT sum(o.amount_minor) FROM app.payment_request_settlements o
  WHERE o.payment_request_id = r.id AND"""
    + COUNTED
    + "), 0) "
)
# What an earlier audit noted n of a request; void if it was at a block that a reorg took away.
NOTED: LiteralString = (
    """
  LEFT JOIN LATERAL (
    SELECT n.* FROM app.request_balances n
    WHERE n.payment_request_id = r.id AND (n.height < k.tail_start OR"""
    + _IS_STORED
    + " AND b.height = n.height AND b.block_hash = n.block_hash)) OFFSET 0) AS n ON true "
)

_STANDING: LiteralString = (
    """
SELECT k.next_height - 1, k.tip_hash, k.head_height,
       CASE WHEN"""
    + _IS_STORED
    + """ AND b.height = k.audited_height AND b.block_hash = k.audited_hash) THEN k.audited_height END,
       (SELECT b.block_time FROM app.chain_blocks b
        WHERE b.chain = k.chain AND b.network = k.network AND b.height = k.next_height - %(expiry_confirmations)s)
FROM app.chain_cursors k WHERE"""
    + _OF_NETWORK
    + "AND k.stop_reason IS NULL AND"
    + _IS_STORED
    + " AND b.height = k.next_height - 1)"
)

# The page itself is what the index holds, in its order and no further: of every condition that is not in it PostgreSQL
# may believe that it is rare, and then it would rather read and sort the whole table (seen).
_PAGE_OF: LiteralString = (
    """
SELECT k.next_height - 1 AS height, k.tip_hash, r.id, r.ends_at, r.address, a.is_wanted, a.expected, a.unexplained,
       a.nonce
FROM app.chain_cursors k
LEFT JOIN LATERAL (
  SELECT r.*, r.expires_at::text AS ends_at, lower(r.address_canonical) AS address FROM app.payment_requests r
  WHERE r.chain = %(chain)s AND r.network = %(network)s AND coalesce(r.token_standard, '') = ''
    AND r.status IN ('pending', 'detected', 'reorged')
    AND (r.expires_at, r.id) > (%(after_end)s::timestamptz, %(after_id)s)
    AND r.expires_at BETWEEN %(after_end)s::timestamptz AND %(until)s::timestamptz
  ORDER BY r.expires_at, r.id LIMIT %(limit)s) AS r ON true
LEFT JOIN LATERAL (
  SELECT r.chain_id = k.chain_id AND"""
    + AUDITED
)
_AND_SUMS: LiteralString = (
    "AS is_wanted,"
    + SETTLED
    + """+ coalesce(n.difference_minor + n.unexplained_minor, 0) AS expected,
         coalesce(n.unexplained_minor, 0) AS unexplained, coalesce(n.nonce, 0) AS nonce
  FROM (SELECT) AS one"""
    + NOTED
    + "OFFSET 0) AS a ON true WHERE"
    + _OF_NETWORK
    + "AND k.stop_reason IS NULL AND"
    + _IS_STORED
    + " AND b.height = k.next_height - 1 OFFSET 0) ORDER BY r.expires_at, r.id"
)
_PAGE: LiteralString = _PAGE_OF + _AND_SUMS
_DUE_PAGE: LiteralString = (
    _PAGE_OF
    + """
    AND r.expires_at < %(until)s::timestamptz - make_interval(secs => %(grace)s)
    AND NOT EXISTS (
      SELECT FROM app.chain_blocks b
      WHERE b.chain = k.chain AND b.network = k.network AND b.height = r.reconcile_audited_height
        AND b.block_hash || ' ' || lower(r.address_canonical) = r.reconcile_audited_hash
        AND b.block_time > r.expires_at + make_interval(secs => %(grace)s)
      OFFSET 0) """
    + _AND_SUMS
)

# Of a block and of an address: should somebody correct the address, it says nothing any more.
MARK: LiteralString = (
    """
WITH own AS MATERIALIZED (
  SELECT r.* FROM app.payment_requests r WHERE r.id = ANY (%(ids)s::text[]) ORDER BY r.id FOR NO KEY UPDATE OF r)
UPDATE app.payment_requests r
SET reconcile_audited_height = %(height)s,
    reconcile_audited_hash = %(hash)s || ' ' || lower(r.address_canonical),
    next_reconcile_at ="""
    + TOUCHED
    + """
WHERE r.id = ANY (ARRAY(
  SELECT r.id FROM own r WHERE lower(r.address_canonical) = ANY (%(addresses)s::text[]) AND"""
    + AUDITED
    + """))
RETURNING r.id
"""
)
_NOTE_SWEEP: LiteralString = (
    "UPDATE app.chain_cursors k SET audited_height = %(height)s, audited_hash = %(hash)s WHERE"
    + _HELD
    + "AND"
    + _IS_STORED
    + " AND b.height = %(height)s AND b.block_hash = %(hash)s) RETURNING 1"
)
