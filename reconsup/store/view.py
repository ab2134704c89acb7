"""The view: everything that the decisions of one batch look at, read in one statement.

One statement is one snapshot: scanned height, tip, settlements and history of a batch belong together. The view is
taken after the claim, so whatever changes later touches the row and the persist is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, LiteralString

from reconsup.payments.decision import ChainView, Counted, Facts
from reconsup.payments.request import Network
from reconsup.payments.settlement import Orphaning, Settlement, transaction_of
from reconsup.store.database import Database, Row

BLOCK_SECONDS_UNKNOWN = 12.0
SPACING_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class View:
    """The chain and, by request id, its facts.

    `disowned`: requests of which another program marked a settlement of ours as not canonical although no proof
    says so; they are to be repaired before they are decided. `unreadable`: by id, what is wrong with a settlement that
    says it is ours and cannot be; its request has no facts.
    """

    chain: ChainView
    facts: dict[str, Facts]
    disowned: tuple[str, ...]
    unreadable: dict[str, str]


async def read(database: Database, network: Network, ids: Iterable[str], *, expiry_confirmations: int) -> View | None:
    """The view of some requests of a network; None while its cursor is unborn or has read no block."""
    rows = await database.fetch(
        _VIEW,
        {
            "chain": network.chain,
            "network": network.name,
            "ids": list(ids),
            "expiry_confirmations": expiry_confirmations,
            "spacing_blocks": SPACING_BLOCKS,
        },
    )
    if not rows:
        return None
    facts: dict[str, Facts] = {}
    disowned: list[str] = []
    unreadable: dict[str, str] = {}
    for id_, group in groupby(rows, key=lambda row: str(row.id)):
        first, *others = group
        settled = [row for row in (first, *others) if row.evidence_ref is not None]
        try:
            facts[id_] = _facts(first, settled)
        except (KeyError, TypeError, ValueError) as error:  # metadata is everybody's to write
            unreadable[id_] = f"settlement metadata: {type(error).__name__}: {error}"
            continue
        if settled and any(_is_disowned(row) for row in settled):
            disowned.append(id_)
    return View(_chain_view(rows[0]), facts, tuple(disowned), unreadable)


def _chain_view(row: Row) -> ChainView:
    return ChainView(
        chain_id=row.cursor_chain_id,
        scanned_height=row.scanned_height,
        tip_time=row.tip_time,
        tip_age_seconds=row.tip_age_seconds,
        block_seconds=BLOCK_SECONDS_UNKNOWN if row.block_seconds is None else max(0.0, row.block_seconds),
        expiry_time=row.expiry_time,
        safe_height=row.safe_height,
        finalized_height=row.finalized_tag_height,
    )


def _facts(first: Row, settled: list[Row]) -> Facts:
    """What is known of a request: from any row of it, and from those with a settlement."""
    return Facts(
        settlements=tuple(map(_settlement, settled)),
        shares_address=first.shares_address,
        was_confirmed=first.was_confirmed,
        confirmed_age_seconds=first.confirmed_age_seconds,
        counted=_counted(first.counted),
        audited_time=first.audited_time,
        unexplained_minor=first.unexplained_minor,
    )


def _counted(evidence: list[dict[str, Any]] | None) -> Counted | None:
    """What the entry counted by which a request came to its status; None where there is none."""
    if evidence is None:
        return None
    amounts: dict[str, int] = {}
    for each in evidence:
        if each["canonical"]:
            transaction = transaction_of(each["ref"], int(each["amount_minor"]))
            amounts[transaction] = amounts.get(transaction, 0) + int(each["amount_minor"])
    return Counted(amounts, frozenset((each["ref"], each["block_hash"]) for each in evidence if not each["canonical"]))


def _settlement(row: Row) -> Settlement:
    return Settlement(
        evidence_ref=row.evidence_ref,
        amount_minor=row.amount_minor,
        height=row.block_height,
        block_hash=row.block_hash,
        first_block_time=datetime.fromisoformat(row.first_block_time),
        orphaning=_orphaning(row),
    )


def _orphaning(row: Row) -> Orphaning | None:
    """The proof that took the settlement back; None where none names its very block.

    Whatever the flag says: it is everybody's to write, and mining the same block again removes the proof.
    """
    proof = row.reorg
    if proof is None or proof["block_hash"] != row.block_hash:
        return None
    return Orphaning(
        height=proof["height"],
        block_hash=proof["block_hash"],
        new_hash=proof["new_hash"],
        scanned_height=proof["scanned_height"],
    )


def _is_disowned(row: Row) -> bool:
    return not row.is_canonical and _orphaning(row) is None


# A settlement above the tail's start counts only while its very block is stored: after the chain's tables were made
# anew, or lost, it must be seen again first. LATERAL and OFFSET 0 as in matching: joined, all settlements were read.
_VIEW: LiteralString = """
WITH cursor AS MATERIALIZED (
  SELECT k.chain_id, k.next_height - 1 AS scanned_height, k.tail_start, k.tip_time, k.safe_height,
         k.finalized_tag_height,
         extract(epoch FROM now() - k.tip_time)::float8 AS tip_age_seconds,
         (SELECT b.block_time FROM app.chain_blocks b
          WHERE b.chain = k.chain AND b.network = k.network
            AND b.height = k.next_height - %(expiry_confirmations)s) AS expiry_time,
         (SELECT extract(epoch FROM k.tip_time - b.block_time)::float8 / (k.next_height - 1 - b.height)
          FROM app.chain_blocks b
          WHERE b.chain = k.chain AND b.network = k.network
            AND b.height BETWEEN k.next_height - 1 - %(spacing_blocks)s AND k.next_height - 2
          ORDER BY b.height LIMIT 1) AS block_seconds
  FROM app.chain_cursors k
  WHERE k.chain = %(chain)s AND k.network = %(network)s AND k.tip_time IS NOT NULL
)
SELECT r.id, k.chain_id AS cursor_chain_id, k.scanned_height, k.tip_time, k.tip_age_seconds, k.block_seconds,
       k.expiry_time, k.safe_height, k.finalized_tag_height,
       EXISTS (
         SELECT FROM app.payment_requests o
         WHERE o.chain = r.chain AND o.network = r.network AND o.chain_id IS NOT DISTINCT FROM r.chain_id
           AND lower(o.address_canonical) = lower(r.address_canonical)
           AND lower(coalesce(o.token_contract, '')) = lower(coalesce(r.token_contract, ''))
           AND o.id <> r.id
         OFFSET 0) AS shares_address,
       EXISTS (
         SELECT FROM app.payment_request_transitions t
         WHERE t.payment_request_id = r.id AND 'confirmed' IN (t.from_status, t.to_status)
         OFFSET 0) AS was_confirmed,
       CASE WHEN r.status = 'confirmed' THEN (
         SELECT extract(epoch FROM now() - max(t.created_at))::float8 FROM app.payment_request_transitions t
         WHERE t.payment_request_id = r.id AND t.to_status = 'confirmed' AND t.from_status <> 'confirmed'
       ) END AS confirmed_age_seconds,
       CASE WHEN r.status IN ('detected', 'confirmed', 'expired') THEN (
         SELECT t.evidence FROM app.payment_request_transitions t
         WHERE t.payment_request_id = r.id AND t.to_status = r.status AND t.from_status <> r.status
           AND t.reason NOT IN ('payment_late', 'payment_again')
         ORDER BY t.id DESC LIMIT 1) END AS counted,
       CASE WHEN r.reconcile_audited_height IS NOT NULL THEN (
         SELECT b.block_time FROM app.chain_blocks b
         WHERE b.chain = r.chain AND b.network = r.network AND b.height = r.reconcile_audited_height
           AND b.block_hash || ' ' || lower(r.address_canonical) = r.reconcile_audited_hash) END AS audited_time,
       CASE WHEN r.reconcile_audited_height IS NOT NULL THEN coalesce((
         SELECT n.unexplained_minor FROM app.request_balances n
         WHERE n.payment_request_id = r.id AND (n.height < k.tail_start OR EXISTS (
           SELECT FROM app.chain_blocks b WHERE b.chain = r.chain AND b.network = r.network
             AND b.height = n.height AND b.block_hash = n.block_hash))), 0) ELSE 0 END AS unexplained_minor,
       s.evidence_ref, s.amount_minor, s.block_height, s.block_hash, s.is_canonical,
       s.metadata ->> 'first_block_time' AS first_block_time, s.metadata -> 'reorg' AS reorg
FROM unnest(%(ids)s::text[]) AS wanted(id)
JOIN app.payment_requests r ON r.id = wanted.id
CROSS JOIN cursor k
LEFT JOIN LATERAL (
  SELECT * FROM app.payment_request_settlements o
  WHERE o.payment_request_id = r.id AND o.metadata ? 'first_block_time'
    AND o.block_hash IS NOT NULL AND o.block_height IS NOT NULL
    AND (NOT o.is_canonical OR o.metadata ? 'reorg' OR o.block_height < k.tail_start OR EXISTS (
      SELECT FROM app.chain_blocks b WHERE b.chain = r.chain AND b.network = r.network
        AND b.height = o.block_height AND b.block_hash = o.block_hash
      OFFSET 0))
  OFFSET 0) AS s ON true
ORDER BY r.id, s.block_height, s.evidence_ref
"""
