"""What the monitor knows, and how it is told: /status, /readyz, the readings on /metrics, the host's row. Pure.

`/status` is a contract with scripts: fields are added, never renamed. What is not known is null, and figures that
are too old count as not known: a number from before an outage looks like health.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from reconsup.fleet.crashes import Crash
from reconsup.fleet.scoreboard import CellView, Load
from reconsup.fleet.slot import SPARE, Cause, WorkerState, signal_name
from reconsup.payments.request import Status
from reconsup.store.backlog import Backlog, Census, NetworkState

FAILURES = (Cause.CRASH, Cause.SIGNAL, Cause.BOOT, Cause.HANG)  # what a crash loop is made of


@dataclass(frozen=True, slots=True)
class Fleet:
    """The scoreboard at one moment: the supervisor's facts and a cell for each worker slot.

    `at` is that moment by the wall clock (None: nobody looked at it), `wanted` how many workers there should be now,
    as far as the supervisor tells (None: it does not), `reload` what became of the last new settings.
    `restarts` are of all seats that there ever were: a counter of one that was given up does not vanish. `crashes` are
    the last ones, the newest first.
    """

    pid: int
    state: str
    version: str
    started_at: datetime
    workers: Sequence[CellView]
    base: str = ""
    wanted: int | None = None
    reload: str | None = None
    at: datetime | None = None

    @property
    def ready(self) -> int:
        """How many workers are ready."""
        return sum(worker.state is WorkerState.READY for worker in self.workers)

    restarts: Mapping[tuple[int, Cause], int] = field(default_factory=dict)
    deaths_overwritten: int = 0
    crashes: Sequence[Crash] = ()


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
    watchdog_seconds: float | None = None

    def fresh_backlog(self, now: float) -> Backlog | None:
        """The last reading, unless it is too old to be believed."""
        return self.backlog if now - self.backlog_at <= self.fresh_seconds else None


def readiness(fleet: Fleet, known: Known, now: float) -> str | None:
    """None when this host does its work; otherwise why not, in one sentence."""
    if known.problem is not None:
        return f"database: {known.problem}"
    if known.fresh_backlog(now) is None:
        return f"database: it has not answered for {known.fresh_seconds:.0f} s"
    if not fleet.ready:
        states = ", ".join(f"slot {worker.slot} is {worker.state}" for worker in fleet.workers)
        return f"no worker is ready: {states or 'there is none'}"
    return None


def status(fleet: Fleet, known: Known, now: float) -> dict[str, object]:
    """The body of /status."""
    backlog = known.fresh_backlog(now)
    census = known.census if backlog else None
    problem = readiness(fleet, known, now)
    return {
        "supervisor": {
            "pid": fleet.pid,
            "state": fleet.state,
            "version": fleet.version,
            "started_at": _moment(fleet.started_at),
            "base": fleet.base,
            "workers_ready": fleet.ready,
            "workers_wanted": fleet.wanted,
            "reload": fleet.reload,
            "watchdog_seconds": known.watchdog_seconds,
            "ready": problem is None,
            "problem": problem,
        },
        "workers": [_worker(worker, now) for worker in fleet.workers],
        "crashes": [_crash(crash, now) for crash in fleet.crashes],
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
        "at": _moment(fleet.at) if fleet.at else None,
    }


def announcement(fleet: Fleet, known: Known) -> dict[str, object]:
    """What the host's row says of its fleet, for the other hosts (`reconsup status --all`). It is written at every look
    at the database, so it stays small; after `fresh_seconds` without another one the host counts as gone.
    """
    return {
        "state": fleet.state,
        "workers_wanted": fleet.wanted,
        "fresh_seconds": known.fresh_seconds,
        "networks": list(known.networks),
        "workers": [
            {
                "slot": worker.slot,
                "state": worker.state,
                "restarts": worker.restarts,
                "leases": worker.leases,
                "memory_bytes": worker.memory_bytes,
            }
            for worker in fleet.workers
        ],
    }


def load(backlog: Backlog, lease_seconds: float, at: float) -> Load:
    """How much work waits that one more worker could do, read at monotonic `at`.

    A network is behind while blocks that an endpoint showed within a lease are unread. Where the endpoints are away,
    disagree or do not grow, and where the network is stopped, there is nothing to read, and nobody needs help.
    """
    behind = [_behind_seconds(state, lease_seconds) for state in backlog.networks]
    return Load(backlog.oldest_due_seconds, max(behind, default=0.0), at)


Readings = dict[str, dict[tuple[str, ...], float]]


def readings(fleet: Fleet, known: Known, now: float) -> Readings:
    """What the monitor itself puts on /metrics: name → labels → value. What is not known is left out."""
    backlog = known.fresh_backlog(now)
    found = _fleet_readings(fleet, now)
    found["reconsup_ready"] = {(): float(readiness(fleet, known, now) is None)}
    found["reconsup_database_answers"] = {(): float(known.problem is None and backlog is not None)}
    if backlog is not None:
        found |= _backlog_readings(backlog, known.lease_seconds)
        if known.census is not None:
            found["reconsup_requests"] = {(state,): known.census.by_status.get(state, 0) for state in Status}
            found["reconsup_census_age_seconds"] = {(): round(now - known.census_at, 1)}
            found["reconsup_unserved_requests"] = {(): known.census.unserved}
            found["reconsup_nobodys_requests"] = {(): known.census.nobodys}
            found["reconsup_row_errors"] = {(reason,): n for reason, n in known.census.row_errors.items()}
    return found


def _fleet_readings(fleet: Fleet, now: float) -> Readings:
    states = [worker.state for worker in fleet.workers]
    # a seat's first death is a step from 0, which Prometheus would not see of a number that was not there before
    counts: dict[tuple[int, Cause], int] = {(worker.slot, cause): 0 for worker in fleet.workers for cause in FAILURES}
    restarts: dict[tuple[str, ...], float] = {
        ("spare" if slot == SPARE else str(slot), str(cause)): count
        for (slot, cause), count in {**counts, **fleet.restarts}.items()
    }
    memory: dict[tuple[str, ...], float] = {
        (str(worker.slot),): worker.memory_bytes for worker in fleet.workers if worker.memory_bytes is not None
    }
    beats: dict[tuple[str, ...], float] = {
        (str(worker.slot),): beat for worker in fleet.workers if (beat := _beat_seconds_ago(worker, now)) is not None
    }
    starts = [worker.ready_seconds for worker in fleet.workers if worker.ready_seconds is not None]
    return {
        "reconsup_workers": {(str(state),): states.count(state) for state in WorkerState},
        "reconsup_workers_wanted": {} if fleet.wanted is None else {(): fleet.wanted},
        "reconsup_worker_restarts_total": restarts,
        "reconsup_worker_memory_bytes": memory,
        "reconsup_worker_beat_age_seconds": beats,
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
        "reconsup_chain_at_head": each(
            {name: _figure(_is_at_head(state, lease_seconds)) for name, state in networks.items()}
        ),
        "reconsup_chain_stopped": each({name: float(bool(state.stop_reason)) for name, state in networks.items()}),
        "reconsup_rpc_disagreement": each(
            {name: _figure(_disagrees(state, lease_seconds)) for name, state in networks.items()}
        ),
        "reconsup_chain_proven": each({name: _figure(state.proven) for name, state in networks.items()}),
    }


def _figure(fact: bool | None) -> float | None:
    return None if fact is None else float(fact)


def _behind_seconds(state: NetworkState, lease_seconds: float) -> float:
    if state.head is None or state.scanned is None or state.lag_seconds is None or state.heard_seconds is None:
        return 0.0
    has_more = state.stop_reason is None and state.head > state.scanned and state.heard_seconds <= lease_seconds
    return state.lag_seconds if has_more else 0.0


def _beat_seconds_ago(worker: CellView, now: float) -> float | None:
    """The age of the last sign of life from a seat that is taken; of the fork, if nobody ever gave one there.

    The cell keeps a predecessor's: where one after the other dies before it gets anywhere, this grows.
    """
    since = worker.started if worker.beat is None else worker.beat
    return None if worker.pid is None or since is None else max(now - since, 0.0)


def _worker(worker: CellView, now: float) -> dict[str, object]:
    beat = _beat_seconds_ago(worker, now)
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
        "causes": {str(cause): count for cause, count in worker.causes.items() if count},
        "memory_bytes": worker.memory_bytes,
        "beat_seconds_ago": None if beat is None else round(beat, 3),
        "loop": worker.loop,
        "ready_seconds": None if worker.pid is None else _rounded(worker.ready_seconds),
        "age_seconds": None if worker.pid is None or worker.started is None else _rounded(now - worker.started),
    }


def _crash(crash: Crash, now: float) -> dict[str, object]:
    return {
        "slot": crash.slot,
        "worker_id": crash.worker_id,
        "pid": crash.pid,
        "cause": crash.cause,
        "exit_code": crash.code if crash.code >= 0 else None,
        "signal": signal_name(-crash.code) if crash.code < 0 else None,
        "row": crash.row,
        "at": _moment(datetime.fromtimestamp(crash.at, UTC)),
        "seconds_ago": round(max(now - crash.at_monotonic, 0.0), 3),
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
        "disagrees": _disagrees(state, lease_seconds) if state else None,
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


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()
