"""Persist: the decisions of a batch, written in one transaction by one who still holds the leases.

The fence of each row is its id, what it was decided from (status, end and amount), owner, epoch, and
`next_reconcile_at` still being what the claim wrote. So a worker is fenced against other workers (epoch), against the
chain that moved under it (touch), and against the service that changed the request meanwhile. A row whose fence does
not hold is not written: if it is still ours it is handed back due in the same transaction, and decided again. There
is no "or nobody holds it" branch: a stale worker would pass it after its successor released.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, LiteralString

import orjson

from reconsup.payments.decision import Decision
from reconsup.payments.request import Reason, Status
from reconsup.payments.settlement import Orphaning, Settlement
from reconsup.store.database import Database, Row, Transaction
from reconsup.store.leases import EXPECTED, EXPIRES, HELD_EPOCH, TOUCHED, Batch, Claim

Refusal = Literal["lease_lost", "status_moved", "touched"]
Against = Literal["scanned", "safe", "finalized"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that could not be decided: `error` goes into `reconcile_error` and, when it is news, into the history;
    the next look grows ever later.
    """

    error: str


@dataclass(frozen=True, slots=True)
class Persisted:
    """What became of a batch: the ids whose decision was written, and why others were not.

    `history`: by id, the entries that are new: (reason, evidence_ref). A late payment is told once.
    `is_due_again`: some of what was written is to be looked at again at once. `at`: when, by the database's clock.
    """

    written: frozenset[str]
    refused: Counter[Refusal]
    history: Mapping[str, tuple[tuple[Reason, str | None], ...]] = field(default_factory=dict)
    is_due_again: bool = False
    at: datetime | None = None


async def persist(
    database: Database,
    batch: Batch,
    outcomes: Mapping[str, Decision | Failure],
    *,
    worker_id: str,
    due_against: Against = "scanned",
) -> Persisted:
    """Write the outcome of each claim of the batch that has one; hand the others back due.

    After the commit a second statement touches those of its rows whose due height was passed meanwhile
    (`due_against` says by what: the scan, or a tag of the chain).
    """
    parameters = {"owner": batch.owner, "worker_id": worker_id} | _rows(batch, outcomes)

    async def work(transaction: Transaction) -> Persisted:
        (answer,) = await transaction.rows(_PERSIST, parameters)
        written, refused = _sorted(batch, outcomes, answer)
        of_batch = [claim for claim in batch.claims if claim.request.id in written]
        entries = _entries(of_batch, outcomes, frozenset(answer.failing))
        history: dict[str, list[tuple[Reason, str | None]]] = {id_: [] for id_ in written}
        if entries["of"]:
            for id_, reason, evidence_ref in await transaction.rows(_TELL, parameters | entries):
                history[id_].append((Reason(reason), evidence_ref))
        if len(written) < len(batch.claims):
            await transaction.send(_HAND_BACK, parameters)
        told = {id_: tuple(entries) for id_, entries in history.items()}
        return Persisted(written, refused, told, at=answer.written_at)

    persisted = await database.transact(work)
    looks = {id_: each.look for id_, each in outcomes.items() if isinstance(each, Decision)}
    is_due_again = any(look.seconds == 0 and id_ in persisted.written for id_, look in looks.items())
    if any(look.height is not None for look in looks.values()):
        reached = await database.fetch(
            _TOUCH_REACHED,
            {
                "chain": batch.network.chain,
                "network": batch.network.name,
                "ids": sorted(persisted.written),
                "against": due_against,
            },
        )
        is_due_again = is_due_again or bool(reached)
    return replace(persisted, is_due_again=is_due_again)


def _sorted(
    batch: Batch, outcomes: Mapping[str, Decision | Failure], answer: Row
) -> tuple[frozenset[str], Counter[Refusal]]:
    """The ids that were written, and why others were not: the answer of `_PERSIST`."""
    written = frozenset(answer.written)
    refused: Counter[Refusal] = Counter()
    if len(written) == len(batch.claims):
        return written, refused
    held, moved = frozenset(answer.held), frozenset(answer.moved)
    for claim in batch.claims:
        id_ = claim.request.id
        if id_ in written or id_ not in outcomes:
            continue
        if id_ not in held:
            refused["lease_lost"] += 1
        else:
            refused["status_moved" if id_ in moved else "touched"] += 1
    return written, refused


def _rows(batch: Batch, outcomes: Mapping[str, Decision | Failure]) -> dict[str, Any]:
    """The columns of the batch, one array each. Without an outcome, a row has no status to be written."""
    claims = batch.claims
    found = [outcomes.get(claim.request.id) for claim in claims]
    decisions = [each if isinstance(each, Decision) else None for each in found]
    failures = [each if isinstance(each, Failure) else None for each in found]
    return {
        "ids": [claim.request.id for claim in claims],
        "epochs": [claim.epoch for claim in claims],
        "due_ats": [claim.due_at for claim in claims],
        "expected": [claim.request.status for claim in claims],
        "ends": [claim.request.expires_at for claim in claims],
        "owed": [_text(claim.request.expected_amount_minor) for claim in claims],
        "statuses": [
            decision.status if decision else claim.request.status if failure else None
            for claim, decision, failure in zip(claims, decisions, failures, strict=True)
        ],
        "seconds": [decision.look.seconds if decision else None for decision in decisions],
        "heights": [decision.look.height if decision else None for decision in decisions],
        "errors": [failure.error if failure else None for failure in failures],
    }


def _entries(
    claims: list[Claim], outcomes: Mapping[str, Decision | Failure], failing: Collection[str]
) -> dict[str, Any]:
    """The columns of the history entries, one array each. `failing`: ids whose error is news."""
    columns: dict[str, list[Any]] = {
        name: []
        for name in (
            "of", "froms", "tos", "reasons", "refs", "amounts", "expecteds", "depths", "evidences", "proofs", "grants"
        )
    }  # fmt: skip

    def add(claim: Claim, to_status: Status, reason: Reason, **told: Any) -> None:
        entry = {
            "of": claim.request.id,
            "froms": claim.request.status,
            "tos": to_status,
            "reasons": reason,
            "expecteds": _text(claim.request.expected_amount_minor),
            "grants": claim.epoch,
            "refs": None,
            "amounts": None,
            "depths": None,
            "proofs": None,
        } | told
        for name, column in columns.items():
            column.append(entry[name])

    for claim in claims:
        outcome = outcomes[claim.request.id]
        if isinstance(outcome, Failure):
            if claim.request.id in failing:
                add(claim, claim.request.status, Reason.ROW_FAILED, evidences=_json([{"error": outcome.error}]))
            continue
        if outcome.reason is not None:
            add(
                claim, outcome.status, outcome.reason, amounts=str(outcome.amount_minor), depths=outcome.confirmations,
                evidences=_json([_as_json(each) for each in outcome.evidence]),
                proofs=_json(_proof_as_json(outcome.proof)) if outcome.proof else None,
            )  # fmt: skip
        for late in outcome.late:
            reason = Reason.LATE if outcome.status == Status.EXPIRED else Reason.AGAIN
            add(
                claim, outcome.status, reason, refs=late.evidence_ref, amounts=str(late.amount_minor),
                depths=outcome.confirmations, evidences=_json([_as_json(late)]),
                froms=outcome.status,  # it does not move the request: what did must stay the last that did
            )  # fmt: skip
    return columns


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _text(amount_minor: int | None) -> str | None:
    return None if amount_minor is None else str(amount_minor)


def _as_json(settlement: Settlement) -> dict[str, Any]:
    """Amounts as text: a JSON number would lose digits in most readers."""
    return {
        "ref": settlement.evidence_ref,
        "amount_minor": str(settlement.amount_minor),
        "height": settlement.height,
        "block_hash": settlement.block_hash,
        "canonical": settlement.is_canonical,
    }


def _proof_as_json(proof: Orphaning) -> dict[str, Any]:
    """In the form that it has in a settlement's metadata."""
    return {
        "height": proof.height,
        "block_hash": proof.block_hash,
        "new_hash": proof.new_hash,
        "scanned_height": proof.scanned_height,
    }


# While nobody can say whose money it is, none is settled.
_IS_NOBODYS: LiteralString = """ l.error IN (
          'ambiguous_address', 'chain_id_mismatch', 'token_contract_missing', 'token_contract_invalid',
          'address_invalid') """

# `locked` locks the whole batch in id order, reads the newest version of each row, and says which part of the
# fence holds. The UPDATE repeats the fence on the row itself: that is what counts. While nobody could say whose money
# it was, none was settled: once such a row is put right, the tail, or a span, is read again for it.
_PERSIST: LiteralString = (
    """
WITH locked AS MATERIALIZED (
  SELECT r.id, d.epoch, d.due_at, d.expected_status, d.ends_at, d.owed, d.status, d.look_seconds, d.look_height,
         d.error,
         r.status = d.expected_status AS is_status, r.reconcile_error AS error_before,
         coalesce("""
    + HELD_EPOCH
    + """= d.epoch, false) AS is_held
  FROM unnest(%(ids)s::text[], %(epochs)s::bigint[], %(due_ats)s::timestamptz[], %(expected)s::text[],
              %(ends)s::timestamptz[], %(owed)s::numeric[], %(statuses)s::text[], %(seconds)s::float8[],
              %(heights)s::bigint[], %(errors)s::text[])
    AS d(id, epoch, due_at, expected_status, ends_at, owed, status, look_seconds, look_height, error)
  JOIN app.payment_requests r ON r.id = d.id
  ORDER BY r.id FOR NO KEY UPDATE OF r
), written AS (
  UPDATE app.payment_requests r
  SET status = l.status,
      reconcile_lease_owner = NULL,
      reconcile_lease_until = NULL,
      next_reconcile_at = now() + CASE
        WHEN l.error IS NULL THEN make_interval(secs => l.look_seconds)
        ELSE make_interval(secs => least(3600, 15 * 2 ^ least(r.reconcile_failures, 12))) END,
      reconcile_due_height = l.look_height,
      reconcile_admitted_height = CASE
        WHEN"""
    + _IS_NOBODYS
    + """THEN NULL
        ELSE r.reconcile_admitted_height END,
      reconcile_span_height = CASE
        WHEN"""
    + _IS_NOBODYS
    + """OR l.status IN ('confirmed', 'expired') THEN NULL
        ELSE r.reconcile_span_height END,
      reconcile_failures = CASE WHEN l.error IS NULL THEN 0 ELSE r.reconcile_failures + 1 END,
      reconcile_crashes = 0,
      reconcile_error = l.error,
      updated_at = CASE WHEN r.status = l.status THEN r.updated_at ELSE now() END
  FROM locked l
  WHERE r.id = l.id
    AND l.status IS NOT NULL
    AND"""
    + HELD_EPOCH
    + """= l.epoch
    AND r.status = l.expected_status
    AND r.next_reconcile_at = l.due_at
    AND"""
    + EXPIRES
    + """= l.ends_at
    AND"""
    + EXPECTED
    + """IS NOT DISTINCT FROM l.owed
  RETURNING r.id
)
SELECT clock_timestamp() AS written_at,
       ARRAY(SELECT id FROM written) AS written,
       ARRAY(SELECT l.id FROM locked l LEFT JOIN written w ON w.id = l.id WHERE l.is_held AND w.id IS NULL) AS held,
       ARRAY(SELECT l.id FROM locked l WHERE l.is_held AND NOT l.is_status) AS moved,
       ARRAY(SELECT l.id FROM locked l JOIN written w ON w.id = l.id
             WHERE l.error IS NOT NULL AND l.error IS DISTINCT FROM l.error_before) AS failing
"""
)

_TELL: LiteralString = """
INSERT INTO app.payment_request_transitions
  (payment_request_id, from_status, to_status, reason, evidence_ref, amount_minor, expected_amount_minor,
   confirmations, evidence, proof, worker_id, lease_owner, lease_epoch)
SELECT e.id, e.from_status, e.to_status, e.reason, e.evidence_ref, e.amount_minor, e.expected_amount_minor,
       e.confirmations, e.evidence, e.proof, %(worker_id)s, %(owner)s, e.epoch
FROM unnest(%(of)s::text[], %(froms)s::text[], %(tos)s::text[], %(reasons)s::text[], %(refs)s::text[],
            %(amounts)s::numeric[], %(expecteds)s::numeric[], %(depths)s::int[], %(evidences)s::jsonb[],
            %(proofs)s::jsonb[], %(grants)s::bigint[])
  WITH ORDINALITY AS e(id, from_status, to_status, reason, evidence_ref, amount_minor, expected_amount_minor,
                       confirmations, evidence, proof, epoch, position)
WHERE e.reason NOT IN ('payment_reorged_after_finality', 'payment_again') OR NOT EXISTS (
  SELECT FROM app.payment_request_transitions t
  WHERE t.payment_request_id = e.id AND t.reason = e.reason
    AND (t.proof = e.proof OR t.evidence_ref = e.evidence_ref)
  OFFSET 0)
ORDER BY e.position
ON CONFLICT (payment_request_id, evidence_ref) WHERE reason = 'payment_late' DO NOTHING
RETURNING payment_request_id, reason, evidence_ref
"""

_HAND_BACK: LiteralString = (
    """
UPDATE app.payment_requests r
SET reconcile_lease_owner = NULL, reconcile_lease_until = NULL,
    next_reconcile_at = LEAST(r.next_reconcile_at, now())
FROM unnest(%(ids)s::text[], %(epochs)s::bigint[]) AS m(id, epoch)
WHERE r.id = m.id AND"""
    + HELD_EPOCH
    + """= m.epoch
"""
)

# Coalesce keeps it from the index of the due heights, by which every request that waits was seen to be looked at.
_TOUCH_REACHED: LiteralString = (
    """
WITH cursor AS (
  SELECT CASE %(against)s WHEN 'safe' THEN safe_height WHEN 'finalized' THEN finalized_tag_height
         ELSE next_height - 1 END AS height
  FROM app.chain_cursors WHERE chain = %(chain)s AND network = %(network)s
), reached AS MATERIALIZED (
  SELECT r.id FROM app.payment_requests r, cursor k
  WHERE r.id = ANY(%(ids)s::text[]) AND coalesce(r.reconcile_due_height <= k.height, false)
  ORDER BY r.id FOR NO KEY UPDATE OF r)
UPDATE app.payment_requests r SET reconcile_due_height = NULL, next_reconcile_at ="""
    + TOUCHED
    + """
WHERE r.id = ANY (ARRAY(SELECT id FROM reached))
RETURNING r.id
"""
)
