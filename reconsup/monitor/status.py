"""What the monitor knows, and how it is told: /status, /readyz, and the readings on /metrics. Pure.

`/status` is a contract with scripts: fields are added, never renamed. What is not known is null, and figures that
are too old count as not known: a number from before an outage looks like health.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from reconsup.fleet.scoreboard import CellView
from reconsup.fleet.slot import SPARE, Cause, WorkerState
from reconsup.store.backlog import Backlog, Census, NetworkState


@dataclass(frozen=True, slots=True)
class Fleet:
    """The scoreboard at one moment: the supervisor's facts and a cell for each worker slot.

    `restarts` are of all seats that there ever were: a counter of one that was given up does not vanish.
    """

    pid: int
    state: str
    version: str
    started_at: datetime
    workers: Sequence[CellView]
    restarts: Mapping[tuple[int, Cause], int] = field(default_factory=dict)
    deaths_overwritten: int = 0


@dataclass(slots=True)
class Known:
    """What the database said last, kept up to date by `monitor.watch`. Moments are monotonic seconds.

    `problem` is one sentence while the database does not answer, None while it does.
    """

    networks: tuple[str, ...]
    fresh_seconds: float
    backlog: Backlog | None = None
    backlog_at: float = float("-inf")
    census: Census | None = None
    census_at: float = float("-inf")
    problem: str | None = "the database was not asked yet"
    lease_seconds: float = 30.0

    def fresh_backlog(self, now: float) -> Backlog | None:
        """The last reading, unless it is too old to be believed."""
        return self.backlog if now - self.backlog_at <= self.fresh_seconds else None


def readiness(fleet: Fleet, known: Known, now: float) -> str | None:
    """None when this host does its work; otherwise why not, in one sentence."""
    if known.problem is not None:
        return f"database: {known.problem}"
    if known.fresh_backlog(now) is None:
        return f"database: it has not answered for {known.fresh_seconds:.0f} s"
    if not any(worker.state is WorkerState.READY for worker in fleet.workers):
        states = ", ".join(f"slot {worker.slot} is {worker.state}" for worker in fleet.workers)
        return f"no worker is ready: {states or 'there is none'}"
    return None


def status(fleet: Fleet, known: Known, now: float) -> dict[str, object]:
    """The body of /status."""
    backlog = known.fresh_backlog(now)
    census = known.census if backlog else None
    return {
        "supervisor": {
            "pid": fleet.pid,
            "state": fleet.state,
            "version": fleet.version,
            "started_at": _moment(fleet.started_at),
        },
        "workers": [_worker(worker) for worker in fleet.workers],
        "backlog": {
            "due": backlog.due if backlog else None,
            "oldest_due_seconds": round(backlog.oldest_due_seconds, 3) if backlog else None,
            "by_status": census.by_status if census else None,
            "unserved": census.unserved if census else None,
            "row_errors": census.row_errors if census else None,
            "counted_seconds_ago": round(now - known.census_at, 1) if census else None,
        },
        "networks": _networks(known, backlog),
        "database": {"answers": known.problem is None and backlog is not None, "problem": known.problem},
    }


Readings = dict[str, dict[tuple[str, ...], float]]


def readings(fleet: Fleet, known: Known, now: float) -> Readings:
    """What the monitor itself puts on /metrics: name → labels → value. What is not known is left out."""
    found = _fleet_readings(fleet)
    backlog = known.fresh_backlog(now)
    if backlog is not None:
        found |= _backlog_readings(backlog, known.lease_seconds)
        if known.census is not None:
            found["reconsup_unserved_requests"] = {(): known.census.unserved}
            found["reconsup_row_errors"] = {(reason,): n for reason, n in known.census.row_errors.items()}
    return found


def _fleet_readings(fleet: Fleet) -> Readings:
    states = [worker.state for worker in fleet.workers]
    restarts: dict[tuple[str, ...], float] = {
        ("spare" if slot == SPARE else str(slot), str(cause)): count for (slot, cause), count in fleet.restarts.items()
    }
    starts = [worker.ready_seconds for worker in fleet.workers if worker.ready_seconds is not None]
    return {
        "reconsup_workers": {(str(state),): states.count(state) for state in WorkerState},
        "reconsup_worker_restarts_total": restarts,
        "reconsup_worker_ready_seconds": {(): max(starts)} if starts else {},
        "reconsup_deaths_overwritten_total": {(): fleet.deaths_overwritten},
        "reconsup_supervisor_start_time_seconds": {(): round(fleet.started_at.timestamp(), 3)},
        "reconsup_build_info": {(fleet.version,): 1},
    }


def _backlog_readings(backlog: Backlog, lease_seconds: float) -> Readings:
    def each(value: Mapping[str, float | None]) -> dict[tuple[str, ...], float]:
        return {(name,): figure for name, figure in value.items() if figure is not None}

    networks: dict[str, NetworkState] = {state.network.name: state for state in backlog.networks}
    return {
        "reconsup_due_requests": {(): backlog.due},
        "reconsup_oldest_due_seconds": {(): backlog.oldest_due_seconds},
        "reconsup_chain_head": each({name: state.head for name, state in networks.items()}),
        "reconsup_chain_scanned": each({name: state.scanned for name, state in networks.items()}),
        "reconsup_span_blocks_left": each({name: state.span_blocks_left for name, state in networks.items()}),
        "reconsup_chain_lag_seconds": each({name: state.lag_seconds for name, state in networks.items()}),
        "reconsup_chain_stopped": each({name: float(bool(state.stop_reason)) for name, state in networks.items()}),
        "reconsup_rpc_disagreement": each(
            {name: _figure(_disagrees(state, lease_seconds)) for name, state in networks.items()}
        ),
        "reconsup_chain_proven": each({name: _figure(state.proven) for name, state in networks.items()}),
    }


def _figure(fact: bool | None) -> float | None:
    return None if fact is None else float(fact)


def _worker(worker: CellView) -> dict[str, object]:
    last_cycle = None if worker.last_cycle is None else datetime.fromtimestamp(worker.last_cycle, UTC)
    return {
        "slot": worker.slot,
        "worker_id": worker.worker_id,
        "incarnation": worker.incarnation,
        "pid": worker.pid,
        "state": worker.state,
        "restarts": worker.restarts,
        "leases": worker.leases,
        "last_cycle": _moment(last_cycle) if last_cycle else None,
    }


def _networks(known: Known, backlog: Backlog | None) -> dict[str, dict[str, object]]:
    states = {state.network.name: state for state in backlog.networks} if backlog else {}
    return {name: _network(states.get(name), known.lease_seconds) for name in known.networks}


def _network(state: NetworkState | None, lease_seconds: float) -> dict[str, object]:
    lag_seconds = state.lag_seconds if state else None
    return {
        "head": state.head if state else None,
        "scanned": state.scanned if state else None,
        "span_blocks_left": state.span_blocks_left if state else None,
        "lag_seconds": None if lag_seconds is None else round(lag_seconds, 3),
        "at_head": _is_at_head(state, lease_seconds),
        "holder": state.holder if state else None,
        "stop_reason": state.stop_reason if state else None,
        "proven": state.proven if state else None,
    }


def _is_at_head(state: NetworkState | None, lease_seconds: float) -> bool | None:
    """Whether an endpoint showed within a lease that all is read: then the lag is only how long the chain was silent.

    While the endpoints are away or disagree, and while the network is stopped, no head is noted, and the chain goes on.
    """
    if state is None or state.head is None or state.scanned is None or state.heard_seconds is None:
        return None
    return state.stop_reason is None and state.heard_seconds <= lease_seconds and state.scanned >= state.head


def _disagrees(state: NetworkState, lease_seconds: float) -> bool | None:
    """Whether endpoints show different blocks: who follows the chain asks, and notes it, more than once a lease."""
    if state.scanned is None:
        return None
    return state.disagreed_seconds is not None and state.disagreed_seconds <= lease_seconds


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()
