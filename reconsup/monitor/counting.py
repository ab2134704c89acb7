"""What a metric is: a line of the table, and how a process counts in the file of its seat. The table: `metrics`."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from reconsup.monitor.tally import Cell, Series, Tally

OTHER = "other"
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, float("inf"))  # seconds


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
    bounds: tuple[float, ...] = BOUNDS  # of a histogram
    begins: tuple[tuple[str, ...], ...] = ()  # labels that stand there with 0 from the start: a first event is a step

    def bounded(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """`labels` with everything unknown replaced."""
        assert len(labels) == len(self.labels), f"{self.name} has the labels {self.labels}, not {labels}"
        return tuple(
            value if value in self.values.get(name, (value,)) else OTHER
            for name, value in zip(self.labels, labels, strict=True)
        )

    @property
    def buckets(self) -> tuple[str, ...]:
        """The bounds as Prometheus writes them."""
        return _written(self.bounds)

    @property
    def metric(self) -> str:
        """The name without `_total`, as it stands in the files."""
        return self.name.removesuffix("_total") if self.kind == "counter" else self.name

    def series(self, suffix: str, labels: tuple[str, ...], *more: tuple[str, str]) -> Series:
        """One of the metric's series in a file."""
        pairs = (*zip(self.labels, labels, strict=True), *more)
        return Series(self.metric, self.metric + suffix, tuple(sorted(pairs)))


@cache
def _written(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return tuple("+Inf" if bound == bounds[-1] else str(bound) for bound in bounds)


class Counter:
    """A number that only grows, counted by any process in its seat's file."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._tally: Tally | None = None
        self._cells: dict[tuple[str, ...], Cell] = {}

    def inc(self, amount: float = 1, *labels: str) -> None:
        """Add `amount`; the labels stand in the table's order. Before `open`: nothing happens."""
        bounded = self.line.bounded(labels)
        if self._tally is not None:
            self._tally.add(self._cells.get(bounded) or self._new(self._tally, bounded), amount)

    def build(self, tally: Tally) -> None:
        """Count in this file from here on."""
        self._tally, self._cells = tally, {}
        for labels in self.line.begins if self.line.labels else ((),):
            self._new(tally, labels)

    def _new(self, tally: Tally, labels: tuple[str, ...]) -> Cell:
        (cell,) = tally.cells([self.line.series("_total", labels)])
        self._cells[labels] = cell
        return cell


class Histogram:
    """Durations, sorted into buckets, counted by any process in its seat's file."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._tally: Tally | None = None
        self._cells: dict[tuple[str, ...], list[Cell]] = {}

    def observe(self, seconds: float, *labels: str) -> None:
        """Count one duration; the labels stand in the table's order. Before `open`: nothing happens."""
        bounded = self.line.bounded(labels)
        if self._tally is not None:
            *buckets, total = self._cells.get(bounded) or self._new(self._tally, bounded)
            self._tally.add(buckets[bisect_left(self.line.bounds, seconds)], 1)
            self._tally.add(total, max(seconds, 0.0))

    def build(self, tally: Tally) -> None:
        """Count in this file from here on."""
        self._tally, self._cells = tally, {}
        if not self.line.labels:
            self._new(tally, ())

    def _new(self, tally: Tally, labels: tuple[str, ...]) -> list[Cell]:
        buckets = [self.line.series("_bucket", labels, ("le", bucket)) for bucket in self.line.buckets]
        self._cells[labels] = tally.cells([*buckets, self.line.series("_sum", labels)])
        return self._cells[labels]
