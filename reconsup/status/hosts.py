"""What `reconsup status --all --json` prints, made of what the database knows.

The shape is a contract with scripts: fields are added, never renamed. What is not known is null.
"""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from reconsup.store.hosts import Everyone, HostRow, Scan

FORGOTTEN_SECONDS = 86_400.0  # a host that was not seen for so long is not shown to people


def told(everyone: Everyone) -> dict[str, Any]:
    """All hosts that ever worked on the database, with what they hold now."""
    leases, living = _leases_by_base(everyone), _living(everyone)
    strangers = [held for held in everyone.held if base_of(held.owner) not in living]
    lost = [scan for scan in everyone.scans if scan.owner is not None and base_of(scan.owner) not in living]
    ends = [*(each.ends_in_seconds for each in strangers), *(each.ends_in_seconds or 0.0 for each in lost)]
    return {
        "at": _moment(everyone.at),
        "hosts": [_host(row, leases.get(row.base, 0), everyone.scans) for row in everyone.hosts],
        "networks": [_network(scan) for scan in everyone.scans],
        "unknown_owners": {
            "owners": sorted({each.owner for each in strangers} | {each.owner for each in lost if each.owner}),
            "leases": sum(held.leases for held in strangers),
            "scans": [scan.network for scan in lost],
            "end_in_seconds": round(max(ends), 3) if ends else None,
        },
    }


def recent(everyone: Mapping[str, Any]) -> dict[str, Any]:
    """The same without the hosts that are gone for more than a day."""
    hosts = [host for host in everyone["hosts"] if host["seen_seconds_ago"] <= FORGOTTEN_SECONDS]
    return {**everyone, "hosts": hosts}


def base_of(owner: str) -> str:
    """The host of a lease owner, `BASE-SLOT#INCARNATION`."""
    return owner.partition("#")[0].rpartition("-")[0]


def _leases_by_base(everyone: Everyone) -> dict[str, int]:
    counts: dict[str, int] = {}
    for held in everyone.held:
        counts[base_of(held.owner)] = counts.get(base_of(held.owner), 0) + held.leases
    return counts


def _living(everyone: Everyone) -> Collection[str]:
    return {row.base for row in everyone.hosts if not row.is_gone}


def _host(row: HostRow, leases: int, scans: Collection[Scan]) -> dict[str, Any]:
    fleet = row.status or {}
    workers = fleet.get("workers")
    workers = [each for each in workers if isinstance(each, dict)] if isinstance(workers, list) else None
    memory = [each.get("memory_bytes") for each in workers or ()]
    sizes = [size for size in memory if isinstance(size, int)]
    return {
        "base": row.base,
        "boot_id": row.boot_id,
        "pid": row.pid,
        "version": row.version,
        "slots": row.slots,
        "started_at": _moment(row.started_at),
        "last_seen_at": _moment(row.last_seen_at),
        "seen_seconds_ago": round(row.seen_seconds_ago, 3),
        "gone": row.is_gone,
        "state": fleet.get("state"),
        "workers_ready": None if workers is None else sum(each.get("state") == "ready" for each in workers),
        "workers_wanted": fleet.get("workers_wanted") or row.slots,
        "restarts": None if workers is None else sum(each.get("restarts") or 0 for each in workers),
        "memory_bytes": sum(sizes) if sizes else None,
        "leases": leases,
        "scans": [scan.network for scan in scans if scan.holder is not None and base_of(scan.holder) == row.base],
        "networks": fleet.get("networks"),
        "workers": workers,
    }


def _network(scan: Scan) -> dict[str, Any]:
    return {
        "chain": scan.chain,
        "network": scan.network,
        "head": scan.head,
        "scanned": scan.scanned,
        "lag_seconds": None if scan.lag_seconds is None else round(scan.lag_seconds, 3),
        "holder": scan.holder,
        "stop_reason": scan.stop_reason,
    }


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()
