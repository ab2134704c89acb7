"""Every metric of reconsup, in one table; how processes count, and how the monitor renders them all.

Workers and the janitor count into memory-mapped files, one set a *slot*: an incarnation goes on where the last one
in its seat was killed, so files do not multiply with restarts and counters never go back. Only counters and
histograms live in files. A gauge there would outlive the process that set it, so whatever can fall is read by the
monitor where it is true (scoreboard, database) and handed to `render`.

Nothing is built before the fork: `open` in the child, never in the supervisor. Before it every count is dropped
silently, so that rooms can be used (and tested) without metrics. Label values are bounded by the table.
"""

import fcntl
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import prometheus_client
from prometheus_client import multiprocess, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.registry import Collector

from reconsup.fleet.slot import Cause
from reconsup.payments.request import Reason, RowError, Status

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
OTHER = "other"

_FOLDER_PREFIX = "reconsup-metrics-"
_DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it whenever it opens a file
_DAMAGE = (OSError, ValueError, RuntimeError, struct.error, TypeError)
_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

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


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table. `values` bounds a label: what is not in it counts as `other`; a label without an
    entry is bounded by the configuration (networks, slots) or by the code that counts.
    """

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    labels: tuple[str, ...]
    help: str
    values: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def bounded(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """`labels` with everything unknown replaced."""
        assert len(labels) == len(self.labels), f"{self.name} has the labels {self.labels}, not {labels}"
        return tuple(
            value if value in self.values.get(name, (value,)) else OTHER
            for name, value in zip(self.labels, labels, strict=True)
        )


class Counter:
    """A number that only grows, counted by any process in its slot's file."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._metric: Any = None

    def inc(self, amount: float = 1, *labels: str) -> None:
        """Add `amount`; the labels stand in the table's order. Before `open`: nothing happens."""
        bounded = self.line.bounded(labels)
        if self._metric is not None:
            (self._metric.labels(*bounded) if bounded else self._metric).inc(amount)

    def build(self) -> None:
        """Make the real metric, in this process."""
        self._metric = prometheus_client.Counter(self.line.name, self.line.help, self.line.labels, registry=None)


class Histogram:
    """Durations, sorted into buckets, counted by any process in its slot's file."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._metric: Any = None

    def observe(self, seconds: float, *labels: str) -> None:
        """Count one duration; the labels stand in the table's order. Before `open`: nothing happens."""
        bounded = self.line.bounded(labels)
        if self._metric is not None:
            (self._metric.labels(*bounded) if bounded else self._metric).observe(seconds)

    def build(self) -> None:
        """Make the real metric, in this process."""
        self._metric = prometheus_client.Histogram(
            self.line.name, self.line.help, self.line.labels, registry=None, buckets=_LATENCY_BUCKETS
        )


def _counter(name: str, labels: tuple[str, ...], help_text: str, **bounds: frozenset[str]) -> Counter:
    return Counter(Line(name, "counter", labels, help_text, {key.rstrip("_"): known for key, known in bounds.items()}))


def _histogram(name: str, labels: tuple[str, ...], help_text: str, **bounds: frozenset[str]) -> Histogram:
    return Histogram(Line(name, "histogram", labels, help_text, bounds))


# Counted where it happens, in the file of a slot.
CYCLE_SECONDS = _histogram("reconsup_cycle_seconds", (), "One cycle of a worker: claim, decide, persist")
CLAIMED = _counter("reconsup_requests_claimed_total", (), "Payment requests leased by claims")
TRANSITIONS = _counter(
    "reconsup_transitions_total",
    ("from", "to", "reason"),
    "Status changes written, by history reason",
    from_=_STATUSES,
    to=_STATUSES,
    reason=_REASONS,
)
WRITES_REFUSED = _counter(
    "reconsup_writes_refused_total",
    ("reason",),
    "Decisions that were not written because the fence did not hold",
    reason=_REFUSALS,
)
ROW_FAILURES = _counter(
    "reconsup_row_failures_total",
    ("reason",),
    "Looks at requests that could not be processed; refused: PostgreSQL lets nobody write the row",
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
    WRITES_REFUSED,
    ROW_FAILURES,
    LEASES_RELEASED,
    BLOCKS_SCANNED,
    SPAN_BLOCKS,
    REORGS,
    AUDITS,
    AUDIT_SETTLEMENTS,
    SETTLEMENTS_REPAIRED,
    RPC_REQUESTS,
    RPC_DISAGREEMENTS,
    RPC_SECONDS,
)

# Read by the monitor when it is asked.
WORKERS = Line("reconsup_workers", "gauge", ("state",), "Worker slots of this host by state")
WORKERS_WANTED = Line("reconsup_workers_wanted", "gauge", (), "How many workers there should be now")
WORKER_MEMORY = Line("reconsup_worker_memory_bytes", "gauge", ("slot",), "Resident memory of the worker in the slot")
WORKER_BEAT_AGE = Line(
    "reconsup_worker_beat_age_seconds", "gauge", ("slot",), "Since the last sign of life of its most silent work loop"
)
RESTARTS = Line(
    "reconsup_worker_restarts_total", "counter", ("slot", "cause"), "Workers that left without being asked to"
)
READY_SECONDS = Line(
    "reconsup_worker_ready_seconds", "gauge", (), "From the fork until ready: the slowest of the workers there are now"
)
DUE = Line("reconsup_due_requests", "gauge", (), "Requests of served networks that a worker could claim now")
OLDEST_DUE = Line("reconsup_oldest_due_seconds", "gauge", (), "How long the oldest due request has been waiting")
UNSERVED = Line("reconsup_unserved_requests", "gauge", (), "Open requests of networks without an endpoint here")
ROW_ERRORS = Line("reconsup_row_errors", "gauge", ("reason",), "Requests that cannot be processed as they are")
CHAIN_HEAD = Line("reconsup_chain_head", "gauge", ("network",), "Height of the latest block an endpoint showed")
CHAIN_SCANNED = Line("reconsup_chain_scanned", "gauge", ("network",), "Height of the last block read and committed")
CHAIN_LAG = Line("reconsup_chain_lag_seconds", "gauge", ("network",), "Age of the last block read (database clock)")
CHAIN_STOPPED = Line(
    "reconsup_chain_stopped", "gauge", ("network",), "1: the network stopped itself, a person must act"
)
RPC_DISAGREEMENT = Line(
    "reconsup_rpc_disagreement", "gauge", ("network",), "1: two endpoints show different blocks, nothing is written"
)
CHAIN_PROVEN = Line("reconsup_chain_proven", "gauge", ("network",), "1: all blocks of the tail were proven complete")
SPAN_BLOCKS_LEFT = Line("reconsup_span_blocks_left", "gauge", ("network",), "Old blocks that requests still wait for")
BUILD_INFO = Line("reconsup_build_info", "gauge", ("version",), "Always 1")

READ: tuple[Line, ...] = (
    WORKERS,
    WORKERS_WANTED,
    WORKER_MEMORY,
    WORKER_BEAT_AGE,
    RESTARTS,
    READY_SECONDS,
    DUE,
    OLDEST_DUE,
    UNSERVED,
    ROW_ERRORS,
    CHAIN_HEAD,
    CHAIN_SCANNED,
    CHAIN_LAG,
    CHAIN_STOPPED,
    RPC_DISAGREEMENT,
    SPAN_BLOCKS_LEFT,
    CHAIN_PROVEN,
    BUILD_INFO,
)
TABLE: tuple[Line, ...] = (*(each.line for each in COUNTED), *READ)

# metric name → label values → value
Readings = Mapping[str, Mapping[tuple[str, ...], float]]


@contextmanager
def folder(parent: Path) -> Iterator[Path]:
    """A directory of this supervisor's own, empty, gone when it ends; those of killed supervisors are removed first.

    Whoever lives holds a lock on its directory, its children too. No process ids are compared: another container
    numbers its processes differently.
    """
    for left in parent.glob(f"{_FOLDER_PREFIX}*"):
        _remove_unless_held(left)
    while True:
        path = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=parent))
        held = _hold(path)
        if held is not None:  # None: a supervisor that starts at this moment took it for a dead one's
            break
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def _hold(path: Path) -> int | None:
    """A locked descriptor of the directory; None if it is somebody's, or gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_unless_held(path: Path) -> None:
    held = _hold(path)
    if held is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def open(directory: Path, identifier: str) -> None:  # noqa: A001 - metrics.open(…) reads as what it is
    """Count into the files of `identifier` (a slot's number, "monitor") from here on; in the child, after the fork.

    Two processes that live at the same time must never share an identifier.
    """
    # "_" separates the parts of a file's name; with one in it the identifier would be cut short
    assert re.fullmatch(r"[A-Za-z0-9-]+", identifier), identifier
    for file in directory.glob(f"*_{identifier}.db"):
        if not _is_sound(file):
            file.replace(file.with_suffix(".db.damaged"))
    os.environ[_DIRECTORY_VARIABLE] = str(directory)
    # prometheus_client is not typed here
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: identifier)  # type: ignore[no-untyped-call]
    for metric in COUNTED:
        metric.build()


def render(directory: Path, readings: Readings) -> bytes:
    """The whole page in Prometheus's text format: what all processes counted, and `readings` for lines of READ.

    A file that cannot be read costs only itself.
    """
    registry = prometheus_client.CollectorRegistry()
    registry.register(_Page(directory, readings))
    return prometheus_client.generate_latest(registry)


def damaged_files(directory: Path) -> tuple[str, ...]:
    """The names of the files that `render` leaves out."""
    return tuple(sorted(file.name for file in directory.glob("*.db") if not _is_sound(file)))


class _Page(Collector):
    """What one scrape shows."""

    def __init__(self, directory: Path, readings: Readings) -> None:
        self._directory = directory
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        files = sorted(str(file) for file in self._directory.glob("*.db") if _is_sound(file))
        # prometheus_client is not typed here
        merged: Iterable[Metric] = multiprocess.MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        yield from merged
        for line in READ:
            if self._readings.get(line.name):
                yield _family(line, self._readings[line.name])


def _family(line: Line, readings: Mapping[tuple[str, ...], float]) -> Metric:
    make = CounterMetricFamily if line.kind == "counter" else GaugeMetricFamily
    family = make(line.name, line.help, labels=line.labels)
    for labels, value in readings.items():
        family.add_metric(line.bounded(labels), value)
    return family


def _is_sound(file: Path) -> bool:
    """Whether all that the file claims to hold can be read; prometheus_client fails the whole page otherwise."""
    try:
        with file.open("rb") as opened:
            (used,) = struct.unpack("i", opened.read(4))
        if used != 0 and not 8 <= used <= file.stat().st_size:
            return False
        # prometheus_client is not typed here
        entries = MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]
        return all(len(json.loads(key)) == 4 for key, *_ in entries)
    except _DAMAGE:
        return False
