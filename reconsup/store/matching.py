"""Which credit belongs to which request, and how that becomes a settlement: said once, for commit, admission and span.

A credit belongs to the one request of its network with its address, token and chain id that is not younger than its
block (clocks may differ by a quarter of an hour). A token request that does not say which token is owed nothing yet:
the chain's own coin, above all, is not it. Each join is a LATERAL with OFFSET 0, which PostgreSQL does not
flatten: it must go from each row of the small side through the other's address index, also while statistics are
missing or stale. Flattened, it was seen to compare every credit of a block with every request of the network.
"""

from typing import LiteralString

from reconsup.store.leases import HELD_EPOCH

_CHAIN_ID: LiteralString = """(
  SELECT k.chain_id FROM app.chain_cursors k WHERE k.chain = %(chain)s AND k.network = %(network)s)"""
_BELONGS: LiteralString = (
    """
    AND r.chain_id = """
    + _CHAIN_ID
    + """
    AND lower(coalesce(r.token_contract, '')) = c.token_contract
    AND (r.token_contract IS NULL) = (r.token_standard IS NULL)
    AND (c.token_contract <> '' OR r.asset = 'ETH')
    AND c.block_time >= r.created_at - interval '15 minutes'
  OFFSET 0) """
)

_TO_REQUESTS: LiteralString = (
    """
CROSS JOIN LATERAL (
  SELECT r.* FROM app.payment_requests r
  WHERE r.chain = c.chain AND r.network = c.network AND lower(r.address_canonical) = c.address"""
    + _BELONGS
    + "AS r"
)

# From the credits c of the blocks `first` to `last` to their requests r.
PAID_BY_BLOCKS: LiteralString = (
    """
FROM app.chain_credits c"""
    + _TO_REQUESTS
    + """
WHERE c.chain = %(chain)s AND c.network = %(network)s AND c.height BETWEEN %(first)s AND %(last)s"""
)

# From credits c that are not stored (`ledger.credit_columns`) to their requests r; `c.position` begins at 1.
PAID_BY_CREDITS: LiteralString = (
    """
FROM (
  SELECT %(chain)s::text AS chain, %(network)s::text AS network, u.*
  FROM unnest(%(heights)s::bigint[], %(hashes)s::text[], %(times)s::timestamptz[], %(refs)s::text[],
              %(transactions)s::text[], %(addresses)s::text[], %(contracts)s::text[], %(amounts)s::numeric[])
    WITH ORDINALITY AS u(height, block_hash, block_time, evidence_ref, tx_hash, address, token_contract, amount_minor,
                         position)) AS c"""
    + _TO_REQUESTS
    + "\nWHERE true"
)

_IN_TAIL: LiteralString = (
    """
CROSS JOIN LATERAL (
  SELECT c.* FROM app.chain_credits c
  WHERE r.chain = %(chain)s AND r.network = %(network)s
    AND c.chain = r.chain AND c.network = r.network AND c.address = lower(r.address_canonical)"""
    + _BELONGS
    + "AS c WHERE true"
)

# From the requests r with these `ids`, still leased with these `epochs`, to their credits c in the whole tail.
PAID_IN_TAIL: LiteralString = (
    """
FROM unnest(%(ids)s::text[], %(epochs)s::bigint[]) AS mine(id, epoch)
JOIN app.payment_requests r
  ON r.id = mine.id AND"""
    + HELD_EPOCH
    + "= mine.epoch"
    + _IN_TAIL
)

# The same for one request, whoever has it leased: for whoever has its row and the cursor's locked.
PAID_TO_ONE: LiteralString = " FROM (SELECT q.* FROM app.payment_requests q WHERE q.id = %(id)s) AS r" + _IN_TAIL


def settle(paid: LiteralString) -> LiteralString:
    """The statement that writes the settlements of one of the two joins above, new or again.

    A credit that belongs to two requests settles neither. A payment that is mined again, also under another log
    index, keeps the time at which it was first seen: whether it was in time must not change. An old reorg proof
    goes, so that it can never speak for a block that it does not name. A row that says this already is not written.
    """
    return _INSERT + paid + _ALONE + _SEEN_ONCE + _ON_CONFLICT


_INSERT: LiteralString = """
INSERT INTO app.payment_request_settlements AS s
  (payment_request_id, evidence_ref, amount_minor, confirmations, block_height, block_hash, is_canonical, metadata,
   first_seen_at, last_seen_at)
SELECT r.id, c.evidence_ref, c.amount_minor,
       greatest(0, (SELECT k.next_height FROM app.chain_cursors k
                    WHERE k.chain = %(chain)s AND k.network = %(network)s) - c.height),
       c.height, c.block_hash, true,
       jsonb_build_object('first_block_time', coalesce(
         (SELECT min(o.metadata ->> 'first_block_time') FROM app.payment_request_settlements o
          WHERE o.payment_request_id = r.id AND split_part(o.evidence_ref, ':', 1) = c.tx_hash),
         to_char(c.block_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))),
       now(), now()"""
_ALONE: LiteralString = """
  AND NOT EXISTS (
    SELECT FROM app.payment_requests twin
    WHERE twin.chain = c.chain AND twin.network = c.network AND lower(twin.address_canonical) = c.address
      AND twin.chain_id = r.chain_id
      AND lower(coalesce(twin.token_contract, '')) = c.token_contract
      AND c.block_time >= twin.created_at - interval '15 minutes'
      AND twin.id <> r.id
    OFFSET 0)"""
# From a block on that the operator names, native transfers are read from logs (chain.decode). Where that was set late,
# blocks above it have been read the other way: of one block a request's native money is not settled in both.
_SEEN_ONCE: LiteralString = """
  AND NOT (c.token_contract = '' AND EXISTS (
    SELECT FROM app.payment_request_settlements o
    WHERE o.payment_request_id = r.id AND o.block_hash = c.block_hash
      AND o.metadata ? 'first_block_time' AND o.metadata -> 'reorg' ->> 'block_hash' IS DISTINCT FROM o.block_hash
      AND CASE WHEN c.evidence_ref = c.tx_hash THEN o.evidence_ref ~ ('^' || c.tx_hash || ':[0-9]+$')
               ELSE o.evidence_ref IN (c.tx_hash, c.block_hash || ':delta')
                 OR o.evidence_ref LIKE c.tx_hash || ':trace:%%' END
    OFFSET 0))
ORDER BY r.id, c.evidence_ref"""
_ON_CONFLICT: LiteralString = """
ON CONFLICT (payment_request_id, evidence_ref) DO UPDATE
SET amount_minor = excluded.amount_minor, confirmations = excluded.confirmations,
    block_height = excluded.block_height, block_hash = excluded.block_hash, is_canonical = true,
    metadata = CASE WHEN octet_length((s.metadata - 'reorg' || excluded.metadata)::text) <= 4096
                    THEN s.metadata - 'reorg' || excluded.metadata ELSE excluded.metadata END,
    last_seen_at = now(), updated_at = now()
WHERE s.block_hash IS DISTINCT FROM excluded.block_hash OR NOT s.is_canonical
   OR s.amount_minor <> excluded.amount_minor OR s.metadata ? 'reorg' OR NOT s.metadata ? 'first_block_time'
"""
