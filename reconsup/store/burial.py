"""What is done where not everything can be: a burial, a sweep, that waits for no lock and leaves out what is refused.

`leases.bury` and `leases.sweep` are one statement each for all rows, and wait for who is at work on one. Somebody's
forgotten transaction, or a trigger that refuses one row, would keep all others from being freed; these free the others.
What they leave is told to the caller, who tries again, rarely.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

from reconsup.payments.request import Network
from reconsup.store import leases
from reconsup.store.database import Database, Row, Transaction
from reconsup.store.leases import Released

TRIES_MAX = 64  # in one transaction, to find rows that are refused
ROWS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Rest:
    """What came of it. `left`: leases that may be had later; `refused`: ids of rows that nobody may write → why.

    `is_sighted`: the dead was seen to hold the row it was at work on, so no other row is charged with its death.
    """

    released: Released
    refused: Mapping[str, str]
    left: int
    is_sighted: bool


@dataclass(frozen=True, slots=True)
class Swept:
    """A page of a sweep. `last`: the id to go on after; None: there is no more."""

    requests: int
    refused: Mapping[str, str]
    last: str | None


async def bury_rest(
    database: Database,
    *,
    incarnation: str,
    owner: str,
    row: str | None,
    is_charged: bool,
    is_sighted: bool = False,
    without: Sequence[str] = (),
) -> Rest:
    """As `leases.bury`, of what nobody has locked, ROWS_MAX requests at most.

    `is_sighted` and `without` (ids that are known to be refused) are what an earlier one of the same dead has found.
    """
    if await database.is_direct():
        await leases.end_ghosts(database, incarnation)
    parameters: dict[str, Any] = {
        "owner": owner,
        "row": row,
        "without": list(without),
        "limit": ROWS_MAX,
        "is_charged": is_charged,
        "deaths_max": 1 + leases.DEATHS_ALONE_MAX,
    }

    async def work(transaction: Transaction) -> Rest:
        scans = await transaction.rows(_FREE_SCANS, parameters)
        await transaction.send(_FREE_SPANS, parameters)
        ((holds_row,),) = await transaction.rows(_HOLDS, parameters)
        free = [str(id_) for (id_,) in await transaction.rows(_FREE, parameters)]
        buried, refused = await _all_but_refused(
            transaction, _BURY, parameters | {"is_sighted": is_sighted or holds_row}, free
        )
        set_aside = tuple(each.id for each in buried if each.is_set_aside)
        if set_aside:
            await transaction.send(leases.TELL_SET_ASIDE, {"owner": owner, "ids": list(set_aside)})
        ((left,),) = await transaction.rows(_LEFT, parameters | {"without": [*without, *refused]})
        return Rest(Released(len(buried), len(scans), set_aside), refused, left, is_sighted or holds_row)

    return await database.transact(work)


async def sweep_rest(database: Database, networks: Sequence[Network], *, after: str = "") -> Swept:
    """As `leases.sweep`, of what nobody has locked: the next ROWS_MAX requests in the order of their ids."""
    parameters: dict[str, Any] = {
        "chains": [each.chain for each in networks],
        "networks": [each.name for each in networks],
        "after": after,
        "limit": ROWS_MAX,
    }

    async def work(transaction: Transaction) -> Swept:
        ids = [str(id_) for (id_,) in await transaction.rows(_FORGOTTEN, parameters)]
        swept, refused = await _all_but_refused(transaction, _TOUCH, parameters, ids)
        return Swept(len(swept), refused, ids[-1] if len(ids) == ROWS_MAX else None)

    return await database.transact(work)


async def _all_but_refused(
    transaction: Transaction, sql: LiteralString, parameters: Mapping[str, Any], ids: Sequence[str]
) -> tuple[list[Row], dict[str, str]]:
    """Run a statement on ever smaller parts of `ids`, until only those are left out that are refused; both.

    After TRIES_MAX the parts that were not tried yet are left out too, for another time.
    """
    parts = [list(ids)] if ids else []
    done: list[Row] = []
    refused: dict[str, str] = {}
    for _ in range(TRIES_MAX):
        if not parts:
            break
        part = parts.pop()
        outcome = await transaction.rows_unless_refused(sql, {**parameters, "ids": part})
        if not isinstance(outcome, str):
            done += outcome
        elif len(part) == 1:
            refused[part[0]] = outcome
        else:
            parts += [part[len(part) // 2 :], part[: len(part) // 2]]
    return done, refused


def _unlocked(table: LiteralString, owner: LiteralString, until: LiteralString) -> LiteralString:
    """Free what an owner holds of a table with one row a network."""
    statement: LiteralString = """
WITH free AS MATERIALIZED (
  SELECT chain, network FROM TABLE WHERE OWNER = %(owner)s FOR NO KEY UPDATE SKIP LOCKED)
UPDATE TABLE t SET OWNER = NULL, UNTIL = NULL FROM free
WHERE t.chain = free.chain AND t.network = free.network AND t.OWNER = %(owner)s
RETURNING t.network
"""
    return statement.replace("TABLE", table).replace("OWNER", owner).replace("UNTIL", until)


_FREE_SCANS: LiteralString = _unlocked("app.chain_cursors", "scan_lease_owner", "scan_lease_until")
_FREE_SPANS: LiteralString = _unlocked("app.chain_spans", "lease_owner", "lease_until")
_HOLDS: LiteralString = """
SELECT EXISTS (SELECT FROM app.payment_requests WHERE id = %(row)s AND reconcile_lease_owner = %(owner)s)
"""
_FREE: LiteralString = """
SELECT id FROM app.payment_requests
WHERE reconcile_lease_owner = %(owner)s AND id <> ALL (%(without)s::text[])
ORDER BY id LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
"""
_DEATHS: LiteralString = """r.reconcile_crashes + (
      %(is_charged)s AND (%(row)s::text IS NULL OR r.id = %(row)s OR NOT %(is_sighted)s))::int"""
_BURY: LiteralString = (
    leases.BURIED.replace("DEATHS", _DEATHS) + "WHERE r.id = ANY (%(ids)s::text[])" + leases.BURIED_ROWS
)
_LEFT: LiteralString = """
SELECT (SELECT count(*) FROM app.payment_requests
        WHERE reconcile_lease_owner = %(owner)s AND id <> ALL (%(without)s::text[]))
     + (SELECT count(*) FROM app.chain_cursors WHERE scan_lease_owner = %(owner)s)
     + (SELECT count(*) FROM app.chain_spans WHERE lease_owner = %(owner)s)
"""
_FORGOTTEN: LiteralString = (
    leases.FORGOTTEN + " AND r.id > %(after)s ORDER BY r.id LIMIT %(limit)s FOR NO KEY UPDATE OF r SKIP LOCKED"
)
_TOUCH: LiteralString = (
    "UPDATE app.payment_requests r SET next_reconcile_at ="
    + leases.TOUCHED
    + " WHERE r.id = ANY (%(ids)s::text[]) RETURNING r.id"
)
