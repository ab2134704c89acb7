"""The demo's look into the database: it writes the requests, as a payment service would, and reads everything else.

A plain synchronous connection beside reconsup's own. Must never write anything but new requests.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, LiteralString, Self

import psycopg

from reconsup.demo.cast import Asset, Order
from reconsup.demo.token import DECIMALS

NETWORK = "local"
TIMEOUT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the history."""

    id: int
    request_id: str
    from_status: str
    to_status: str
    reason: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class Held:
    """The requests that one lease owner holds: (id, epoch)."""

    owner: str
    rows: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """What the settlements of one request say: the canonical sum in minor units, and how many rows there are."""

    canonical_minor: int
    canonical: int
    orphaned: int


class Books:
    """The connection, open until the with block ends."""

    def __init__(self, database_url: str) -> None:
        self._connection = psycopg.connect(
            database_url,
            autocommit=True,
            connect_timeout=TIMEOUT_SECONDS,
            options=f"-c statement_timeout={TIMEOUT_SECONDS * 1000}",
            application_name="reconsup-demo",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def open_orders(
        self, orders: Sequence[Order], *, chain_id: int, token_contract: str, soon_seconds: float
    ) -> datetime:
        """Insert the requests; returns when those that end soon expire (they were made a while ago, it seems)."""
        ((now,),) = self._rows("SELECT now()")
        soon: datetime = now + timedelta(seconds=soon_seconds)
        for order in orders:
            is_token = order.asset is Asset.USDT
            self._connection.execute(
                _INSERT,
                {
                    "id": order.id,
                    "network": NETWORK,
                    "asset": order.asset,
                    "expected": order.expected_minor,
                    "address": order.address,
                    "index": order.number,
                    "chain_id": chain_id,
                    "standard": "ERC20" if is_token else None,
                    "contract": token_contract if is_token else None,
                    "decimals": DECIMALS if is_token else None,
                    "created_at": soon - timedelta(minutes=2) if order.ends_soon else now,
                    "expires_at": soon if order.ends_soon else now + timedelta(minutes=30),
                },
            )
        return soon

    def statuses(self) -> dict[str, str]:
        """The status of each request."""
        return dict(self._rows("SELECT id, status FROM app.payment_requests ORDER BY id"))

    def scanned_height(self) -> int | None:
        """How far the chain is read; None before the first block."""
        rows = self._rows("SELECT next_height - 1 FROM app.chain_cursors WHERE tip_time IS NOT NULL")
        return int(rows[0][0]) if rows else None

    def entries(self) -> list[Entry]:
        """The whole history, oldest first."""
        return [Entry(*row) for row in self._rows(_ENTRIES)]

    def held(self) -> list[Held]:
        """Who holds leases on requests at this moment, the one with most first."""
        rows: dict[str, list[tuple[str, int]]] = {}
        for owner, id_, epoch in self._rows(_HELD):
            rows.setdefault(owner, []).append((id_, epoch))
        held = [Held(owner, tuple(each)) for owner, each in rows.items()]
        return sorted(held, key=lambda each: -len(each.rows))

    def holds_scan(self, owner: str) -> bool:
        """Whether this owner reads the chain for everybody."""
        return bool(self._rows("SELECT 1 FROM app.chain_cursors WHERE scan_lease_owner = %s", owner))

    def is_at_rest(self, incarnation: str) -> bool:
        """Whether no statement of a worker is running (a statement on its way may yet commit)."""
        return not self._rows(_RUNNING, f"reconsup/{incarnation}")

    def waiting(self, held: Held) -> int:
        """How many of those requests nobody has taken up since: leased still, or due and not leased again."""
        ids, epochs = [id_ for id_, _ in held.rows], [epoch for _, epoch in held.rows]
        ((count,),) = self._rows(_WAITING, ids, epochs, held.owner)
        return int(count)

    def taken_over(self, held: Held) -> tuple[int, tuple[str, ...]]:
        """How many of those requests others were granted since, and which workers wrote about them since."""
        ids, epochs = [id_ for id_, _ in held.rows], [epoch for _, epoch in held.rows]
        ((count, workers),) = self._rows(_TAKEN_OVER, ids, epochs)
        return int(count), tuple(workers)

    def settlements(self) -> dict[str, Settled]:
        """What each request has got on chain."""
        return {id_: Settled(int(minor), ok, orphaned) for id_, minor, ok, orphaned in self._rows(_SETTLED)}

    def leases_left(self) -> int:
        """How many leases, of requests and of the scan, anybody holds."""
        ((count,),) = self._rows(_LEASES_LEFT)
        return int(count)

    def reorg_proof(self, id_: str) -> tuple[int, str, str] | None:
        """Height, old and new hash of the block whose loss moved a request to `reorged`."""
        rows = self._rows(_PROOF, id_)
        return (int(rows[0][0]), str(rows[0][1]), str(rows[0][2])) if rows else None

    def _rows(self, sql: LiteralString, *parameters: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, parameters or None).fetchall()


def histories(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """The reasons of each request's entries, oldest first."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        found.setdefault(entry.request_id, []).append(entry.reason)
    return found


def by_reason(entries: Sequence[Entry]) -> Counter[str]:
    """How many entries have which reason."""
    return Counter(entry.reason for entry in entries)


_INSERT: LiteralString = """
INSERT INTO app.payment_requests
  (id, chain, network, asset, status, expected_amount_minor, address_canonical, address_scheme, derivation_index,
   chain_id, token_standard, token_contract, token_decimals, created_at, expires_at)
VALUES (%(id)s, 'ethereum', %(network)s, %(asset)s, 'pending', %(expected)s, %(address)s, 'evm_bip44', %(index)s,
        %(chain_id)s, %(standard)s, %(contract)s, %(decimals)s, %(created_at)s, %(expires_at)s)
"""
_ENTRIES: LiteralString = """
SELECT id, payment_request_id, from_status, to_status, reason, coalesce(worker_id, '?')
FROM app.payment_request_transitions ORDER BY id
"""
_HELD: LiteralString = """
SELECT reconcile_lease_owner, id, reconcile_lease_epoch FROM app.payment_requests
WHERE reconcile_lease_owner IS NOT NULL AND reconcile_lease_until > now() ORDER BY id
"""
_RUNNING: LiteralString = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND state = 'active'"
_HELD_THEN: LiteralString = """
FROM app.payment_requests r JOIN unnest(%s::text[], %s::bigint[]) AS h(id, epoch) ON h.id = r.id
"""
_WAITING: LiteralString = (
    "SELECT count(*)"
    + _HELD_THEN
    + """WHERE r.reconcile_lease_epoch = h.epoch
  AND (r.reconcile_lease_owner = %s OR r.reconcile_lease_owner IS NULL AND r.next_reconcile_at <= now())
"""
)
_TAKEN_OVER: LiteralString = (
    """
SELECT count(DISTINCT r.id) FILTER (WHERE r.reconcile_lease_epoch > h.epoch),
       coalesce(array_agg(DISTINCT t.worker_id ORDER BY t.worker_id) FILTER (WHERE t.lease_epoch > h.epoch), '{}')
"""
    + _HELD_THEN
    + "LEFT JOIN app.payment_request_transitions t ON t.payment_request_id = r.id"
)
_SETTLED: LiteralString = """
SELECT payment_request_id, coalesce(sum(amount_minor) FILTER (WHERE is_canonical), 0),
       count(*) FILTER (WHERE is_canonical), count(*) FILTER (WHERE NOT is_canonical)
FROM app.payment_request_settlements GROUP BY payment_request_id
"""
_LEASES_LEFT: LiteralString = """
SELECT (SELECT count(*) FROM app.payment_requests WHERE reconcile_lease_owner IS NOT NULL)
     + (SELECT count(*) FROM app.chain_cursors WHERE scan_lease_owner IS NOT NULL)
"""
_PROOF: LiteralString = """
SELECT proof ->> 'height', proof ->> 'block_hash', proof ->> 'new_hash'
FROM app.payment_request_transitions WHERE payment_request_id = %s AND reason = 'payment_reorged'
"""
