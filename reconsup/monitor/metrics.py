"""Every metric of reconsup, in one table; and how processes count.

Workers and the janitor count into memory-mapped files, one set a *seat*: an incarnation goes on where the last one
in its seat was killed, so files do not multiply with restarts and counters never go back. Only counters and
histograms live in files. A gauge there would outlive the process that set it, so whatever can fall is read by the
monitor where it is true (scoreboard, database) and handed to `page.Page`.

Nothing is built before the fork: `open` in the child, never in the supervisor. Before it every count is dropped
silently, so that rooms can be used (and tested) without metrics. Label values are bounded by the table.
"""

import re
from functools import partial
from pathlib import Path

from reconsup.fleet.slot import Cause
from reconsup.monitor.counting import BOUNDS, Counter, Histogram, Line
from reconsup.monitor.folder import folder as folder
from reconsup.monitor.tally import Series, Tally
from reconsup.payments.request import Reason, RowError, Status

NOTICE_BOUNDS = (1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, float("inf"))

_STATUSES = frozenset(Status)
_REASONS = frozenset(Reason)
_OUTCOMES = frozenset({"ok", "error", "timeout", "throttled", "inconsistent"})
_METHODS = frozenset(
    {
        "debug_traceBlockByHash",
        "eth_blockNumber",
        "eth_call",
        "eth_chainId",
        "eth_getBalance",
        "eth_getBlockByHash",
        "eth_getBlockByNumber",
        "eth_getBlockReceipts",
        "eth_getLogs",
        "eth_getProof",
        "eth_getTransactionByHash",
        "eth_getTransactionCount",
        "eth_getTransactionReceipt",
        "eth_syncing",
        "net_version",
        "trace_block",
        "web3_clientVersion",
    }
)
_CAUSES = frozenset(Cause)
_FAILURES = frozenset(RowError) | {"failed", "settlement_disowned", "refused", "set_aside"}
_REFUSALS = frozenset({"lease_lost", "status_moved", "touched"})
# Events of which a single one is an alarm: Prometheus sees the first only where a 0 stood before it.
_ALARMS = (
    *((Status.EXPIRED, Status.EXPIRED, Reason.LATE), (Status.CONFIRMED, Status.CONFIRMED, Reason.AGAIN)),
    (Status.CONFIRMED, Status.CONFIRMED, Reason.REORGED_AFTER_FINALITY),
    *((start, Status.EXPIRED, Reason.LATE) for start in (Status.PENDING, Status.DETECTED, Status.REORGED)),
    *((start, Status.CONFIRMED, Reason.AGAIN) for start in (Status.PENDING, Status.DETECTED, Status.REORGED)),
)


def _counter(
    name: str,
    labels: tuple[str, ...],
    help_text: str,
    *,
    begins: tuple[tuple[str, ...], ...] = (),
    **known: frozenset[str],
) -> Counter:
    values = {key.rstrip("_"): each for key, each in known.items()}
    return Counter(Line(name, "counter", labels, help_text, values, begins=begins))


def _histogram(
    name: str,
    labels: tuple[str, ...],
    help_text: str,
    *,
    bounds: tuple[float, ...] = BOUNDS,
    **known: frozenset[str],
) -> Histogram:
    return Histogram(Line(name, "histogram", labels, help_text, known, bounds))


# Counted where it happens, in the file of a slot.
CYCLE_SECONDS = _histogram("reconsup_cycle_seconds", (), "One cycle of a worker: claim, decide, persist")
CLAIMED = _counter("reconsup_requests_claimed_total", (), "Payment requests leased by claims")
TRANSITIONS = _counter(
    "reconsup_transitions_total",
    ("from", "to", "reason"),
    "Status changes written, by history reason",
    begins=_ALARMS,
    from_=_STATUSES,
    to=_STATUSES,
    reason=_REASONS,
)
NOTICE_SECONDS = _histogram(
    "reconsup_notice_seconds",
    ("network",),
    "From the block whose payment was enough (or the request, if it came later) until the first status that says so",
    bounds=NOTICE_BOUNDS,
)
WRITES_REFUSED = _counter(
    "reconsup_writes_refused_total",
    ("reason",),
    "Decisions that were not written because the fence did not hold",
    begins=tuple((each,) for each in sorted(_REFUSALS)),
    reason=_REFUSALS,
)
ROW_FAILURES = _counter(
    "reconsup_row_failures_total",
    ("reason",),
    "Looks at requests that could not be processed; refused: PostgreSQL lets nobody write the row",
    begins=(("refused",), ("set_aside",)),
    reason=_FAILURES,
)
LEASES_RELEASED = _counter(
    "reconsup_leases_released_total",
    ("cause",),
    "Leases on requests and scans given back before their end",
    cause=_CAUSES,
)
BLOCKS_SCANNED = _counter("reconsup_blocks_scanned_total", ("network",), "Blocks read whole and committed")
SPAN_BLOCKS = _counter("reconsup_span_blocks_total", ("network",), "Blocks older than the tail read for old requests")
REORGS = _counter("reconsup_reorgs_total", ("network",), "Proven reorganisations rolled back")
AUDITS = _counter(
    "reconsup_audits_total", ("network",), "Balance audits of all open native requests that were finished"
)
AUDIT_FAILURES = _counter(
    "reconsup_balance_audit_failures_total",
    ("network",),
    "Steps of a balance audit that ended in an error: no endpoint could tell, or the database was away",
)
BALANCES_UNPROVEN = _counter(
    "reconsup_balances_unproven_total",
    ("network",),
    "Balances by which a request may expire, and for which only one endpoint's word stands",
)
AUDIT_SETTLEMENTS = _counter(
    "reconsup_audit_settlements_total",
    ("network", "how"),
    "Payments without a transaction or log of their own, found by the balance audit: traced, or by difference",
    how=frozenset({"trace", "delta"}),
)
SETTLEMENTS_REPAIRED = _counter(
    "reconsup_settlements_repaired_total", (), "Settlements of ours that another program had marked non-canonical"
)
RPC_REQUESTS = _counter(
    "reconsup_rpc_requests_total",
    ("network", "method", "outcome"),
    "JSON-RPC calls",
    method=_METHODS,
    outcome=_OUTCOMES,
)
RPC_DISAGREEMENTS = _counter(
    "reconsup_rpc_disagreements_total",
    ("network",),
    "Times that nothing was written because two endpoints of a network show different blocks; grows while they do",
)
RPC_SECONDS = _histogram(
    "reconsup_rpc_seconds",
    ("network", "method"),
    "Time of each HTTP exchange in which the method was called",
    method=_METHODS,
)

COUNTED: tuple[Counter | Histogram, ...] = (
    CYCLE_SECONDS,
    CLAIMED,
    TRANSITIONS,
    NOTICE_SECONDS,
    WRITES_REFUSED,
    ROW_FAILURES,
    LEASES_RELEASED,
    BLOCKS_SCANNED,
    SPAN_BLOCKS,
    REORGS,
    AUDITS,
    AUDIT_FAILURES,
    BALANCES_UNPROVEN,
    AUDIT_SETTLEMENTS,
    SETTLEMENTS_REPAIRED,
    RPC_REQUESTS,
    RPC_DISAGREEMENTS,
    RPC_SECONDS,
)

# Read by the monitor when it is asked.
READY = Line("reconsup_ready", "gauge", (), "1: a worker of this host is ready and the database answers (/readyz)")
DATABASE = Line(
    "reconsup_database_answers",
    "gauge",
    (),
    "1: the database answers this host; 0: it does not, and what only it knows is left out here",
)
WORKERS = Line("reconsup_workers", "gauge", ("state",), "Worker slots of this host by state")
WORKERS_WANTED = Line("reconsup_workers_wanted", "gauge", (), "How many workers there should be now")
WORKER_MEMORY = Line("reconsup_worker_memory_bytes", "gauge", ("slot",), "Resident memory of the worker in the slot")
WORKER_BEAT_AGE = Line(
    "reconsup_worker_beat_age_seconds", "gauge", ("slot",), "Since the last sign of life of its most silent work loop"
)
RESTARTS = Line("reconsup_worker_restarts_total", "counter", ("slot", "cause"), "Workers that were replaced, by cause")
READY_SECONDS = Line(
    "reconsup_worker_ready_seconds", "gauge", (), "From the fork until ready: the slowest of the workers there are now"
)
DUE = Line("reconsup_due_requests", "gauge", (), "Requests of served networks that a worker could claim now")
OLDEST_DUE = Line("reconsup_oldest_due_seconds", "gauge", (), "How long the oldest due request has been waiting")
REQUESTS = Line(
    "reconsup_requests", "gauge", ("status",), "Requests of served networks by status, when they were counted last"
)
CENSUS_AGE = Line(
    "reconsup_census_age_seconds", "gauge", (), "Since all requests were counted; rarely where there are millions"
)
UNSERVED = Line("reconsup_unserved_requests", "gauge", (), "Open requests of networks without an endpoint here")
NOBODYS = Line(
    "reconsup_nobodys_requests", "gauge", (), "Open requests of networks that no running host has an endpoint for"
)
ROW_ERRORS = Line("reconsup_row_errors", "gauge", ("reason",), "Requests that cannot be processed as they are")
CHAIN_HEAD = Line("reconsup_chain_head", "gauge", ("network",), "Height of the latest block an endpoint showed")
CHAIN_SCANNED = Line("reconsup_chain_scanned", "gauge", ("network",), "Height of the last block read and committed")
CHAIN_LAG = Line("reconsup_chain_lag_seconds", "gauge", ("network",), "Age of the last block read (database clock)")
CHAIN_AT_HEAD = Line(
    "reconsup_chain_at_head",
    "gauge",
    ("network",),
    "1: within one lease an endpoint showed that all is read; 0: blocks wait, or no endpoint tells",
)
CHAIN_STOPPED = Line(
    "reconsup_chain_stopped", "gauge", ("network",), "1: the network stopped itself, a person must act"
)
RPC_DISAGREEMENT = Line(
    "reconsup_rpc_disagreement", "gauge", ("network",), "1: two endpoints show different blocks, nothing is written"
)
CHAIN_PROVEN = Line("reconsup_chain_proven", "gauge", ("network",), "1: all blocks of the tail were proven complete")
SPAN_BLOCKS_LEFT = Line("reconsup_span_blocks_left", "gauge", ("network",), "Old blocks that requests still wait for")
DEATHS_OVERWRITTEN = Line(
    "reconsup_deaths_overwritten_total",
    "counter",
    (),
    "Dead workers that were forgotten before their leases were given back; the leases' end frees them",
)
FILES_DAMAGED = Line(
    "reconsup_metrics_files_damaged",
    "gauge",
    (),
    "Files of counts that cannot be read now: what they held stands still",
)
START_TIME = Line(
    "reconsup_supervisor_start_time_seconds",
    "gauge",
    (),
    "When the supervisor started, as Unix time; counters began then",
)
BUILD_INFO = Line("reconsup_build_info", "gauge", ("version",), "Always 1")

READ: tuple[Line, ...] = (
    READY,
    DATABASE,
    WORKERS,
    WORKERS_WANTED,
    WORKER_MEMORY,
    WORKER_BEAT_AGE,
    RESTARTS,
    READY_SECONDS,
    DUE,
    OLDEST_DUE,
    REQUESTS,
    CENSUS_AGE,
    UNSERVED,
    NOBODYS,
    ROW_ERRORS,
    CHAIN_HEAD,
    CHAIN_SCANNED,
    CHAIN_LAG,
    CHAIN_AT_HEAD,
    CHAIN_STOPPED,
    RPC_DISAGREEMENT,
    SPAN_BLOCKS_LEFT,
    CHAIN_PROVEN,
    DEATHS_OVERWRITTEN,
    FILES_DAMAGED,
    START_TIME,
    BUILD_INFO,
)
TABLE: tuple[Line, ...] = (*(each.line for each in COUNTED), *READ)


_FILE = re.compile(r"(counter|histogram)_[A-Za-z0-9-]+\.db")
_OF_METRIC = {each.line.metric: each.line for each in COUNTED}
_opened: dict[str, Tally] = {}


def open(directory: Path, identifier: str) -> None:  # noqa: A001 - metrics.open(…) reads as what it is
    """Count into the files of `identifier` (a seat's number, "monitor") from here on; in the child, after the fork.

    Two processes that live at the same time must never share an identifier: the second one's counts wait in memory.
    """
    # "_" separates the parts of a file's name
    assert re.fullmatch(r"[A-Za-z0-9-]+", identifier), identifier
    for tally in _opened.values():
        tally.close()
    for kind in ("counter", "histogram"):
        _opened[kind] = Tally(directory / f"{kind}_{identifier}.db", partial(is_ours, kind))
    for metric in COUNTED:
        metric.build(_opened[metric.line.kind])


def is_file(name: str) -> bool:
    """Whether a file of that name is one to count in."""
    return _FILE.fullmatch(name) is not None


def is_ours(kind: str, series: Series) -> bool:
    """Whether a series is of a metric of that kind in the table."""
    line = _OF_METRIC.get(series.metric)
    if line is None or line.kind != kind:
        return False
    labels = dict(series.labels)
    match series.sample.removeprefix(series.metric):
        case "_bucket":
            return kind == "histogram" and labels.pop("le", None) in line.buckets and labels.keys() == set(line.labels)
        case "_sum":
            return kind == "histogram" and labels.keys() == set(line.labels)
        case "_total":
            return kind == "counter" and labels.keys() == set(line.labels)
    return False
