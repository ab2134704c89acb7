"""What the monitor reads: how much is waiting, how far the scans are, what cannot be processed; and the host's row.

`read` is cheap at any size of table (index ranges, counted up to a limit) and runs at every poll. `census` looks at
every row: the caller runs it rarely, and it gives up after a few seconds rather than weigh on the database.
Nothing here locks or changes a payment request.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from reconsup.payments.request import ETHEREUM, Network
from reconsup.store.database import Database, Transaction

DUE_COUNTED_MAX = 100_000  # a network; more are shown as so many
STOPPED = "stopped"  # the state of a host that left because somebody said so
CENSUS_SECONDS_MAX = 4.0  # less than the connection waits for a lock, which is retried


@dataclass(frozen=True, slots=True)
class NetworkState:
    """One served network as its cursor shows it. `lag_seconds` is the age of the last block read, by the database's
    clock; `holder` the lease owner that reads it now; `proven`: every block of the tail was proven complete, None while
    none was read; `heard_seconds`: how long ago it was noted what an endpoint shows, new blocks or none; `take` of the
    scan lease notes nothing; `disagreed_seconds`: how long ago two endpoints showed different blocks;
    `span_blocks_left`: blocks older than the tail that requests wait for, as guessed, 0 when none does. Everything is
    None where no cursor is born yet.
    """

    network: Network
    head: int | None = None
    scanned: int | None = None
    lag_seconds: float | None = None
    holder: str | None = None
    stop_reason: str | None = None
    proven: bool | None = None
    span_blocks_left: int | None = None
    heard_seconds: float | None = None
    disagreed_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What could be claimed now, and the networks it is on. `oldest_due_seconds` is 0 when nothing is due."""

    due: int
    oldest_due_seconds: float
    networks: tuple[NetworkState, ...]


@dataclass(frozen=True, slots=True)
class Census:
    """Every row once. `by_status`: of served networks; `unserved`: open rows of all others; `row_errors`: by the kind
    of error (what stands before the colon), of served networks; `nobodys`: those of `unserved` that no other host that
    was alive in the last ten minutes serves either.
    """

    by_status: dict[str, int]
    unserved: int
    row_errors: dict[str, int]
    nobodys: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """One supervisor, as other hosts see it. `boot_id` is None on a system that has none."""

    base: str
    boot_id: str | None
    pid: int
    version: str
    slots: int
    started_at: datetime


async def read(database: Database, networks: Sequence[Network]) -> Backlog:
    """The backlog and the scans of the served networks, one statement."""
    rows = await database.fetch(_READ, _served(networks) | {"limit": DUE_COUNTED_MAX})
    return Backlog(
        due=sum(row.due for row in rows),
        oldest_due_seconds=max((row.oldest_due_seconds for row in rows), default=0.0),
        networks=tuple(
            NetworkState(
                network=Network(row.chain, row.network),
                head=row.head_height,
                scanned=row.scanned_height,
                span_blocks_left=row.span_blocks_left,
                lag_seconds=row.lag_seconds,
                heard_seconds=row.heard_seconds,
                disagreed_seconds=row.disagreed_seconds,
                holder=row.holder,
                stop_reason=row.stop_reason,
                proven=row.proven,
            )
            for row in rows
        ),
    )


async def census(database: Database, networks: Sequence[Network]) -> Census:
    """Count every row; StoreUnavailable when that takes longer than CENSUS_SECONDS_MAX."""

    async def work(transaction: Transaction) -> Census:
        await transaction.send(_LIMIT_TIME, {"limit": f"{int(CENSUS_SECONDS_MAX * 1000)}ms"})
        by_status: dict[str, int] = {}
        row_errors: dict[str, int] = {}
        unserved = nobodys = 0
        for row in await transaction.rows(_CENSUS, _served(networks) | {"evm": ETHEREUM}):
            if not row.is_served:
                count = row.rows if row.status in ("pending", "detected", "reorged") else 0
                unserved += count
                nobodys += 0 if row.is_elsewhere else count
                continue
            by_status[row.status] = by_status.get(row.status, 0) + row.rows
            if row.error is not None:
                row_errors[row.error] = row_errors.get(row.error, 0) + row.rows
        return Census(by_status, unserved, row_errors, nobodys)

    return await database.transact(work)


async def announce(
    database: Database, host: Host, status: Mapping[str, object] | None = None, *, fresh_seconds: float
) -> int | None:
    """Write the host's row: it is alive now, and so is its fleet (`status`).

    The pid of another supervisor that uses this base, if one was seen in the last `fresh_seconds`: two of one name
    overwrite each other here. Two containers of one machine have the same pid and boot id, but did not start together.
    """
    rows = await database.fetch(
        _ANNOUNCE,
        {
            "base": host.base,
            "boot_id": host.boot_id,
            "pid": host.pid,
            "version": host.version,
            "slots": host.slots,
            "started_at": host.started_at,
            "status": None if status is None else json.dumps(status),
            "fresh": fresh_seconds,
        },
    )
    return rows[0].other_pid if rows else None


def _served(networks: Sequence[Network]) -> dict[str, object]:
    return {"chains": [each.chain for each in networks], "networks": [each.name for each in networks]}


# The due rows are those that a claim would take: the same conditions, the same index.
_READ: LiteralString = """
SELECT served.chain, served.network, k.head_height,
       CASE WHEN k.tip_time IS NOT NULL THEN COALESCE(
         (SELECT GREATEST(0, s.next_height - s.from_height + 1) FROM app.chain_spans s
          WHERE s.chain = served.chain AND s.network = served.network), 0) END AS span_blocks_left,
       CASE WHEN k.tip_time IS NOT NULL THEN k.next_height - 1 END AS scanned_height,
       CASE WHEN k.tip_time IS NOT NULL
            THEN GREATEST(extract(epoch FROM now() - k.tip_time), 0) END::float8 AS lag_seconds,
       CASE WHEN k.updated_at IS NOT NULL
            THEN GREATEST(extract(epoch FROM now() - k.updated_at), 0) END::float8 AS heard_seconds,
       CASE WHEN k.disagreed_at IS NOT NULL  -- GREATEST would make 0 of NULL, and an alarm of nothing
            THEN GREATEST(extract(epoch FROM now() - k.disagreed_at), 0) END::float8 AS disagreed_seconds,
       CASE WHEN k.scan_lease_until > now() THEN k.scan_lease_owner END AS holder,
       k.stop_reason,
       CASE WHEN k.next_height > k.tail_start THEN COALESCE(k.unproven_height < k.tail_start, true) END AS proven,
       due.due, due.oldest_due_seconds
FROM unnest(%(chains)s::text[], %(networks)s::text[]) AS served(chain, network)
LEFT JOIN app.chain_cursors k USING (chain, network)
CROSS JOIN LATERAL (
  SELECT count(*)::int8 AS due,
         COALESCE(GREATEST(extract(epoch FROM now() - min(next_reconcile_at)), 0), 0)::float8 AS oldest_due_seconds
  FROM (SELECT r.next_reconcile_at FROM app.payment_requests r
        WHERE r.chain = served.chain AND r.network = served.network
          AND r.next_reconcile_at IS NOT NULL AND r.next_reconcile_at <= now()
          AND r.status IN ('pending', 'detected', 'confirmed', 'reorged', 'expired')
          AND (r.reconcile_lease_until IS NULL OR r.reconcile_lease_until <= now())
          AND k.stop_reason IS NULL AND k.tip_time IS NOT NULL
        ORDER BY r.next_reconcile_at LIMIT %(limit)s) AS waiting) AS due
ORDER BY served.chain, served.network
"""

_LIMIT_TIME: LiteralString = "SELECT set_config('statement_timeout', %(limit)s, true)"
_CENSUS: LiteralString = """
SELECT EXISTS (SELECT FROM unnest(%(chains)s::text[], %(networks)s::text[]) AS served(chain, network)
               WHERE served.chain = g.chain AND served.network = g.network) AS is_served,
       g.chain = %(evm)s AND EXISTS (SELECT FROM app.reconsup_hosts h  -- they tell names of EVM networks
               WHERE h.last_seen_at > now() - interval '10 minutes'
               AND h.status->'networks' ? g.network) AS is_elsewhere,
       g.status, g.error, g.rows
FROM (SELECT chain, network, status, split_part(reconcile_error, ':', 1) AS error, count(*)::int8 AS rows
      FROM app.payment_requests GROUP BY 1, 2, 3, 4) AS g
"""

_ANNOUNCE: LiteralString = """
WITH other AS (
  SELECT pid FROM app.reconsup_hosts
  WHERE base = %(base)s
    AND (pid, boot_id, started_at) IS DISTINCT FROM (%(pid)s, %(boot_id)s, %(started_at)s::timestamptz)
    AND last_seen_at > now() - make_interval(secs => %(fresh)s)),
mine AS (
  INSERT INTO app.reconsup_hosts AS h (base, boot_id, pid, version, slots, started_at, status, last_seen_at)
  VALUES (%(base)s, %(boot_id)s, %(pid)s, %(version)s, %(slots)s, %(started_at)s, %(status)s::jsonb, now())
  ON CONFLICT (base) DO UPDATE
  SET boot_id = excluded.boot_id, pid = excluded.pid, version = excluded.version, slots = excluded.slots,
      started_at = excluded.started_at, status = excluded.status, last_seen_at = excluded.last_seen_at)
SELECT pid AS other_pid FROM other
"""
