"""/metrics, as text: what all processes counted, and what the monitor reads at that moment.

The text is made here and not by prometheus_client, which needs as long for the lines as everything else together may
take; its output is what tests compare it with. Names and labels are written once, from then on only numbers.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import prometheus_client

from reconsup.monitor import metrics
from reconsup.monitor.counting import Line
from reconsup.monitor.metrics import COUNTED, FILES_DAMAGED, READ
from reconsup.monitor.reader import Reader
from reconsup.monitor.tally import Series

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST

# metric name → label values → value
Readings = Mapping[str, Mapping[tuple[str, ...], float]]
Labels = tuple[tuple[str, str], ...]


class Page:
    """The page of one folder; keep it from scrape to scrape."""

    def __init__(self, directory: Path) -> None:
        self._reader = Reader(directory, metrics.is_file, metrics.is_ours)
        self._tables: list[_Table] = []
        self._laid_out = 0

    @property
    def damaged(self) -> Mapping[str, str]:
        """The files that the last page had to leave out, and why."""
        return self._reader.damaged

    def render(self, readings: Readings) -> bytes:
        """The whole page in Prometheus's text format; `readings` are for lines of READ. Nothing fails it."""
        totals = self._reader.read()
        if self._laid_out != len(self._reader.series):
            self._tables = _lay_out(self._reader.series)
            self._laid_out = len(self._reader.series)
        found: Readings = {**readings, FILES_DAMAGED.name: {(): len(self._reader.damaged)}}
        lines = [line for table in self._tables for line in table.lines(totals)]
        for line in READ:
            lines.extend(_lines(line, found.get(line.name, {})))
        # half a letter in a label must not cost the page
        return "".join(lines).encode(errors="replace")


def render(directory: Path, readings: Readings) -> bytes:
    """One page, by one who remembers nothing."""
    return Page(directory).render(readings)


class _Table:
    """One counted metric: how each line begins, and the places of the numbers that are added up for it."""

    def __init__(self, line: Line, series: list[tuple[Series, int]]) -> None:
        self._head = _head(line)
        self._counters = sorted((_begin(each.sample, each.labels), place) for each, place in series if _is_whole(each))
        places = {(each.sample, each.labels): place for each, place in series}
        every = {each.labels for each, _ in series if each.sample.endswith("_sum")} if line.kind == "histogram" else ()
        self._histograms = [_Rows(line, labels, places) for labels in sorted(every)]

    def lines(self, totals: list[float]) -> Iterator[str]:
        yield self._head
        for begin, place in self._counters:
            yield f"{begin}{totals[place]}\n"
        for rows in self._histograms:
            yield from rows.lines(totals)


class _Rows:
    """The lines of one histogram with its labels: the buckets, each with all below it, their number and their sum."""

    def __init__(self, line: Line, labels: Labels, places: Mapping[tuple[str, Labels], int]) -> None:
        names = [(f"{line.name}_bucket", tuple(sorted((*labels, ("le", bucket))))) for bucket in line.buckets]
        self._places = [places.get(name, -1) for name in names]
        self._begins = [*(_begin(*name) for name in names), _begin(f"{line.name}_count", labels)]
        self._sum = (_begin(f"{line.name}_sum", labels), places[f"{line.name}_sum", labels])

    def lines(self, totals: list[float]) -> Iterator[str]:
        counts = list(accumulate(totals[place] if place >= 0 else 0.0 for place in self._places))
        for begin, count in zip(self._begins, (*counts, counts[-1]), strict=True):
            yield f"{begin}{count}\n"
        begin, place = self._sum
        yield f"{begin}{totals[place]}\n"


def _is_whole(series: Series) -> bool:
    return series.sample.endswith("_total")


def _lay_out(series: list[Series]) -> list[_Table]:
    of_metric: dict[str, list[tuple[Series, int]]] = {}
    for place, each in enumerate(series):
        of_metric.setdefault(each.metric, []).append((each, place))
    return [_Table(each.line, of_metric[each.line.metric]) for each in COUNTED if each.line.metric in of_metric]


def _lines(line: Line, values: Mapping[tuple[str, ...], float]) -> Iterator[str]:
    if values:
        yield _head(line)
    for labels, value in values.items():
        pairs = tuple(sorted(zip(line.labels, line.bounded(labels), strict=True)))
        yield f"{_begin(line.name, pairs)}{float(value)}\n"


def _head(line: Line) -> str:
    return f"# HELP {line.name} {_escaped(line.help)}\n# TYPE {line.name} {line.kind}\n"


@lru_cache(maxsize=16384)
def _begin(sample: str, labels: Labels) -> str:
    """A line up to its number."""
    if not labels:
        return f"{sample} "
    pairs = (f'{name}="{_escaped(value).replace(chr(34), chr(92) + chr(34))}"' for name, value in labels)
    return f"{sample}{{{','.join(pairs)}}} "


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
