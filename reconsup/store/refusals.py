"""Rows that PostgreSQL refuses to write: found one by one, so that they do not hold back the others.

The table is another service's too. A check of its own that a row already breaks, or a trigger that raises, refuses
every UPDATE of that row, and with it the whole batch of a claim. Nothing can be noted on such a row: its history,
which is a table of ours, says what is wrong with it.
"""

from collections.abc import Mapping, Sequence
from typing import LiteralString

import orjson

from reconsup.payments.request import Network
from reconsup.store.database import Database, Transaction
from reconsup.store.leases import CANDIDATES, GRANT, LIMITED, ORDINARY, SUSPECT

FOUND_MAX = 16


async def find(
    database: Database,
    network: Network,
    *,
    owner: str,
    lease_seconds: float,
    limit: int,
    suspects: bool = False,
    without: Sequence[str] = (),
) -> dict[str, str]:
    """Which of the rows that such a claim would lease PostgreSQL refuses to write: id → its words.

    At most FOUND_MAX; there may be more. None at all where it takes no row of the network: then it is no row's fault,
    somebody locked the table against us. Tries the claim's own UPDATE, and takes each try back at once.
    """
    parameters = {
        "chain": network.chain,
        "network": network.name,
        "owner": owner,
        "lease": lease_seconds,
        "limit": limit,
        "without": list(without),
    }

    async def work(transaction: Transaction) -> dict[str, str]:
        rows = await transaction.rows(_SUSPECTS if suspects else _ORDINARY, parameters)
        refused = await among(transaction, _TRY, parameters, [str(id_) for (id_,) in rows])
        if len(refused) < FOUND_MAX:
            return refused
        for (id_,) in [*rows[-FOUND_MAX:], *await transaction.rows(_FAR_FROM_DUE, parameters | {"limit": FOUND_MAX})]:
            if await transaction.attempt(_TRY, parameters | {"ids": [id_]}) is None:
                return refused
        return {}

    return await database.transact(work)


async def among(
    transaction: Transaction, sql: LiteralString, parameters: Mapping[str, object], ids: Sequence[str]
) -> dict[str, str]:
    """Which rows make PostgreSQL refuse a statement on `ids`: id → its words; at most FOUND_MAX.

    Tries the statement on ever smaller parts of them, each taken back at once.
    """
    parts = [list(ids)]
    refused: dict[str, str] = {}
    while parts and len(refused) < FOUND_MAX:
        part = parts.pop()
        words = await transaction.attempt(sql, {**parameters, "ids": part})
        if words is None:
            continue
        if len(part) == 1:
            refused[part[0]] = words
        else:
            parts += [part[len(part) // 2 :], part[: len(part) // 2]]
    return refused


async def tell(database: Database, refused: Mapping[str, str], *, worker_id: str, owner: str) -> None:
    """Write into the history of each row what PostgreSQL says of it, unless it says so already."""
    await database.fetch(
        _TELL,
        {
            "ids": list(refused),
            "evidences": [orjson.dumps([{"error": words}]).decode() for words in refused.values()],
            "worker_id": worker_id,
            "owner": owner,
        },
    )


_DUE: LiteralString = LIMITED + "SELECT id FROM candidates"
_ORDINARY: LiteralString = CANDIDATES + ORDINARY + _DUE
_SUSPECTS: LiteralString = CANDIDATES + SUSPECT + _DUE
# Rows that cannot be written stay due and gather before all others. Those at the other end say whether any row can be.
_FAR_FROM_DUE: LiteralString = """
SELECT id FROM app.payment_requests
WHERE chain = %(chain)s AND network = %(network)s AND next_reconcile_at IS NOT NULL
  AND status IN ('pending', 'detected', 'confirmed', 'reorged', 'expired')
ORDER BY next_reconcile_at DESC, created_at DESC, id DESC
LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
"""
_TRY: LiteralString = GRANT + "WHERE r.id = ANY (%(ids)s::text[])"
_TELL: LiteralString = """
INSERT INTO app.payment_request_transitions
  (payment_request_id, from_status, to_status, reason, evidence, worker_id, lease_owner)
SELECT r.id, r.status, r.status, 'row_failed', e.evidence, %(worker_id)s, %(owner)s
FROM unnest(%(ids)s::text[], %(evidences)s::jsonb[]) AS e(id, evidence)
JOIN app.payment_requests r ON r.id = e.id
WHERE NOT EXISTS (SELECT FROM app.payment_request_transitions t
                  WHERE t.payment_request_id = e.id AND t.reason = 'row_failed' AND t.evidence = e.evidence
                  OFFSET 0)
"""
