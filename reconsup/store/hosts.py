"""What the database knows of all hosts together: their rows, who holds leases, who reads which network.

Three cheap statements, each its own look: the leases are counted along the index of owners, which holds as many rows
as are leased, however many requests there are. Nothing here locks or changes anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from reconsup.store.backlog import STOPPED
from reconsup.store.database import Database

GONE_SECONDS = 20.0  # for a host that does not say how often it looks


@dataclass(frozen=True, slots=True)
class HostRow:
    """A host as it announced itself last. `status` is what it said of its fleet (`monitor.status.announcement`)."""

    base: str
    boot_id: str | None
    pid: int
    version: str
    slots: int
    started_at: datetime
    last_seen_at: datetime
    seen_seconds_ago: float
    status: Mapping[str, Any] | None

    @property
    def is_gone(self) -> bool:
        """Whether nobody works there: it stopped, or was not heard of for longer than it takes to be heard of."""
        fresh, state = ((self.status or {}).get(name) for name in ("fresh_seconds", "state"))
        return is_gone(state, fresh, self.seen_seconds_ago)

    @property
    def networks(self) -> int:
        """How many networks it serves; 0 where it does not say."""
        told = (self.status or {}).get("networks")
        return len(told) if isinstance(told, list) else 0


@dataclass(frozen=True, slots=True)
class Held:
    """How many requests one lease owner holds; the last lease ends in `ends_in_seconds` (below 0: it has ended)."""

    owner: str
    leases: int
    ends_in_seconds: float


@dataclass(frozen=True, slots=True)
class Scan:
    """A network and who reads it. `owner` is who took the scan lease last, also where it ended without being taken."""

    chain: str
    network: str
    head: int | None
    scanned: int | None
    lag_seconds: float | None
    stop_reason: str | None
    owner: str | None
    ends_in_seconds: float | None

    @property
    def holder(self) -> str | None:
        """Who reads it now."""
        return self.owner if self.ends_in_seconds is not None and self.ends_in_seconds > 0 else None


@dataclass(frozen=True, slots=True)
class Everyone:
    """All of it. `at` is the database's clock."""

    at: datetime
    hosts: tuple[HostRow, ...]
    held: tuple[Held, ...]
    scans: tuple[Scan, ...]


def is_gone(state: object, fresh_seconds: object, seen_seconds_ago: float) -> bool:
    """Whether nobody works at a host that said this of itself when it was last seen."""
    fresh = fresh_seconds if isinstance(fresh_seconds, int | float) else GONE_SECONDS
    return state == STOPPED or seen_seconds_ago > fresh


async def read(database: Database) -> Everyone:
    """Look at all hosts. Raises StoreUnavailable, SchemaBehind."""
    ((at,),) = await database.fetch("SELECT now()")
    hosts = await rows(database)
    held = [Held(row.owner, row.leases, row.ends_in_seconds) for row in await database.fetch(_HELD)]
    scans = [Scan(*row) for row in await database.fetch(_SCANS)]
    return Everyone(at, tuple(hosts), tuple(held), tuple(scans))


async def rows(database: Database) -> list[HostRow]:
    """The hosts alone, in order of name."""
    return [
        HostRow(
            base=row.base,
            boot_id=row.boot_id,
            pid=row.pid,
            version=row.version,
            slots=row.slots,
            started_at=row.started_at,
            last_seen_at=row.last_seen_at,
            seen_seconds_ago=row.seen_seconds_ago,
            status=row.status if isinstance(row.status, dict) else None,
        )
        for row in await database.fetch(_HOSTS)
    ]


_HOSTS: LiteralString = """
SELECT base, boot_id, pid, version, slots, started_at, last_seen_at, status,
       GREATEST(extract(epoch FROM now() - last_seen_at), 0)::float8 AS seen_seconds_ago
FROM app.reconsup_hosts ORDER BY base
"""

_HELD: LiteralString = """
SELECT reconcile_lease_owner AS owner, count(*)::int8 AS leases,
       COALESCE(extract(epoch FROM max(reconcile_lease_until) - now()), 0)::float8 AS ends_in_seconds
FROM app.payment_requests WHERE reconcile_lease_owner IS NOT NULL GROUP BY 1 ORDER BY 1
"""

_SCANS: LiteralString = """
SELECT k.chain, k.network, k.head_height,
       CASE WHEN k.tip_time IS NOT NULL THEN k.next_height - 1 END AS scanned,
       CASE WHEN k.tip_time IS NOT NULL THEN GREATEST(extract(epoch FROM now() - k.tip_time), 0) END::float8
         AS lag_seconds,
       k.stop_reason, k.scan_lease_owner, extract(epoch FROM k.scan_lease_until - now())::float8 AS ends_in_seconds
FROM app.chain_cursors k ORDER BY k.chain, k.network
"""
