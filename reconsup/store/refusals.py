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

FOUND_MAX = 16  # more are found at the next claim


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

    At most FOUND_MAX; none where so many are refused and no row was met that is not: that is no row's fault, somebody
    locked the table against us. Tries the claim's own UPDATE on ever smaller parts of the batch, each taken back.
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
        parts = [[str(id_) for (id_,) in rows]]
        refused: dict[str, str] = {}
        is_some_writable = False
        while parts and len(refused) < FOUND_MAX:
            part = parts.pop()
            words = await transaction.attempt(_TRY, parameters | {"ids": part})
            if words is None:
                is_some_writable = True
            elif len(part) == 1:
                refused[part[0]] = words
            else:
                parts += [part[len(part) // 2 :], part[: len(part) // 2]]
        if len(refused) < FOUND_MAX or is_some_writable:
            return refused
        for part in parts:  # one of each that was not come to
            if await transaction.attempt(_TRY, parameters | {"ids": part[-1:]}) is None:
                return refused
        return {}

    return await database.transact(work)


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
