"""What /status and `--all --json` tell in the tests of how it is shown: a host in good health, and one that is not."""

from typing import Any

AT = "2026-01-02T03:04:05.500000+00:00"


def worker(slot: int, **fields: Any) -> dict[str, Any]:
    return {
        "slot": slot,
        "worker_id": f"pay-1-{slot}",
        "incarnation": f"{slot:016x}",
        "pid": 4712 + slot,
        "state": "ready",
        "restarts": 0,
        "leases": 200,
        "last_cycle": "2026-01-02T03:04:05.100000+00:00",
        "causes": {},
        "memory_bytes": 88 << 20,
        "beat_seconds_ago": 0.31,
        "loop": "scan mainnet",
        "ready_seconds": 0.043,
        "age_seconds": 270_000.0,
        **fields,
    }


def network(**fields: Any) -> dict[str, Any]:
    return {
        "head": 21_034_567,
        "scanned": 21_034_567,
        "span_blocks_left": 0,
        "lag_seconds": 4.2,
        "at_head": True,
        "disagrees": False,
        "holder": "pay-1-1#0000000000000001",
        "stop_reason": None,
        "proven": True,
        **fields,
    }


def host(*workers: dict[str, Any], **parts: Any) -> dict[str, Any]:
    shown = list(workers) or [worker(0), worker(1)]
    return {
        "supervisor": {
            "pid": 4711,
            "state": "running",
            "version": "0.1.0",
            "started_at": "2025-12-30T00:00:00+00:00",
            "base": "pay-1",
            "workers_ready": 2,
            "workers_wanted": len(shown),
            "watchdog_seconds": 60.0,
            "ready": True,
            "problem": None,
        }
        | parts.pop("supervisor", {}),
        "workers": shown,
        "backlog": {
            "due": 12,
            "oldest_due_seconds": 3.41,
            "by_status": {"confirmed": 9120, "detected": 3, "pending": 120},
            "unserved": 0,
            "row_errors": {},
            "counted_seconds_ago": 40.2,
        },
        "networks": {"mainnet": network()},
        "database": {"answers": True, "problem": None},
        "at": AT,
        **parts,
    }


SICK = host(
    worker(0),
    worker(1, beat_seconds_ago=41.0, restarts=3, causes={"signal": 1, "hang": 2}),
    worker(
        2,
        pid=None,
        incarnation=None,
        state="parked",
        restarts=5,
        causes={"crash": 6},
        leases=0,
        memory_bytes=None,
        beat_seconds_ago=None,
        loop=None,
        ready_seconds=None,
        age_seconds=None,
        last_cycle=None,
    ),
    worker(512, worker_id="pay-1-spare", state="booting", leases=0, last_cycle=None, loop=None, age_seconds=1.2),
    supervisor={"workers_wanted": 3},
    backlog={
        "due": 100000,
        "oldest_due_seconds": 7300.0,
        "by_status": {"pending": 400_000},
        "unserved": 3,
        "row_errors": {"failed": 2, "set_aside": 1},
        "counted_seconds_ago": 4000.0,
    },
    networks={
        "base": network(scanned=21_034_000, lag_seconds=1100.0, at_head=False),
        "mainnet": network(disagrees=True, at_head=False),
        "polygon": network(at_head=False, lag_seconds=90.0, holder=None),
        "sepolia": network(stop_reason="reorg below what is final (block 33)", at_head=False, proven=False),
        "unborn": network(**dict.fromkeys(network())),
    },
)

# A supervisor of before this command, and one whose database never answered.
OLD = {
    "supervisor": {"pid": 7, "state": "running", "version": "0.0.9", "started_at": "2026-01-01T00:00:00+00:00"},
    "workers": [
        {
            "slot": 0,
            "worker_id": "h-0",
            "incarnation": None,
            "pid": None,
            "state": "backoff",
            "restarts": 1,
            "leases": 0,
            "last_cycle": None,
        }
    ],
    "backlog": {"due": None, "oldest_due_seconds": None, "by_status": None},
    "networks": {"mainnet": {"head": None, "scanned": None, "lag_seconds": None, "holder": None}},
    "database": {"answers": False, "problem": "connection refused"},
}


def a_host(base: str, **fields: Any) -> dict[str, Any]:
    return {
        "base": base,
        "boot_id": None,
        "pid": 4711,
        "version": "0.1.0",
        "slots": 2,
        "started_at": "2025-12-30T00:00:00+00:00",
        "last_seen_at": AT,
        "seen_seconds_ago": 1.2,
        "gone": False,
        "state": "running",
        "workers_ready": 2,
        "workers_wanted": 2,
        "restarts": 0,
        "memory_bytes": 176 << 20,
        "leases": 400,
        "scans": ["mainnet"],
        "networks": ["mainnet", "sepolia"],
        "workers": [],
        **fields,
    }


def a_network(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "chain": "ethereum",
        "network": name,
        "head": 105,
        "scanned": 100,
        "lag_seconds": 4.2,
        "holder": "pay-1-1#0000000000000001",
        "stop_reason": None,
        **fields,
    }


EVERYONE = {
    "at": AT,
    "hosts": [
        a_host("pay-1"),
        a_host("pay-2", workers_ready=1, restarts=4, scans=[], leases=17),
        a_host("pay-3", gone=True, seen_seconds_ago=260.0, scans=[], leases=14),
        a_host("pay-4", gone=True, state="stopped", seen_seconds_ago=7300.0, scans=[], leases=0),
    ],
    "networks": [
        a_network("holesky", holder=None),
        a_network("mainnet"),
        a_network("polygon", stop_reason="reorg below what is final (block 33)", holder=None),
        a_network("sepolia", holder=None),
    ],
    "unknown_owners": {"owners": ["pay-3-0#ab"], "leases": 14, "scans": [], "end_in_seconds": 12.3},
}


def a_transition(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": number,
        "request_id": f"pr_{number:08}",
        "from_status": "pending",
        "to_status": "confirmed",
        "reason": "payment_confirmed",
        "amount_minor": "1500000000000000000",
        "expected_amount_minor": "1000000000000000000",
        "confirmations": 3,
        "error": None,
        "worker_id": "pay-1-0",
        "at": "2026-01-02T03:04:01+00:00",
        "seconds_ago": 4.5,
        "network": "mainnet",
        "asset": "ETH",
        "token_decimals": None,
        "is_native": True,
        **fields,
    }


def a_crash(slot: int, **fields: Any) -> dict[str, Any]:
    return {
        "slot": slot,
        "worker_id": f"pay-1-{slot}",
        "pid": 4720 + slot,
        "cause": "signal",
        "exit_code": None,
        "signal": "SIGKILL",
        "row": None,
        "at": "2026-01-02T03:01:00+00:00",
        "seconds_ago": 185.5,
        **fields,
    }


CRASHES = [
    a_crash(2, cause="crash", exit_code=70, signal=None, row="pr_00000042"),
    a_crash(1, cause="hang", signal="SIGABRT", at="2026-01-01T23:59:00+00:00", seconds_ago=11105.5),
]
USDT = {"asset": "USDT", "token_decimals": 6, "is_native": False, "network": "base"}
RECENT = {
    "transitions": [
        a_transition(9),
        a_transition(8, **USDT, amount_minor="2500000", expected_amount_minor="5000000", to_status="detected",
                     reason="payment_detected"),
        a_transition(7, from_status="confirmed", to_status="reorged", reason="payment_reorged", worker_id="pay-2-0"),
        a_transition(6, to_status="pending", reason="row_failed", error="ambiguous_address", amount_minor=None,
                     expected_amount_minor=None, asset=None, network=None),
        a_transition(5, to_status="expired", reason="payment_expired", amount_minor="0",
                     at="2026-01-01T03:04:01+00:00", seconds_ago=86404.5),
    ],
    "hosts": [
        {"base": "pay-1", "pid": 4711, "version": "0.1.0", "seen_seconds_ago": 1.0, "state": "running",
         "workers_wanted": 2, "slots": 2, "workers_ready": 2, "networks": ["mainnet"], "gone": False},
        {"base": "pay-2", "pid": 99, "version": "0.1.0", "seen_seconds_ago": 1.4, "state": "running",
         "workers_wanted": 4, "slots": 4, "workers_ready": 3, "networks": ["mainnet", "base"], "gone": False},
        {"base": "pay-3", "pid": 98, "version": "0.1.0", "seen_seconds_ago": 400.0, "state": "running",
         "workers_wanted": 2, "slots": 2, "workers_ready": 2, "networks": ["mainnet"], "gone": True},
    ],
    "seconds_ago": 1.5,
    "problem": None,
}  # fmt: skip
