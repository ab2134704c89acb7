"""What expressions of rules and boards speak of, compared with the table of metrics; and the rules' file, read.

promtool says whether an expression is PromQL. Whether its metrics, labels and label values are the program's is said
here: a name that nobody exports makes an alert that never fires.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconsup.fleet.slot import Cause, WorkerState
from reconsup.monitor import metrics
from reconsup.payments.request import RowError, Status

PACKAGING = Path(__file__).parents[2] / "packaging"
RULES = PACKAGING / "prometheus" / "reconsup.rules.yml"
SCRAPE = PACKAGING / "prometheus" / "scrape.yml"
BOARD = PACKAGING / "grafana" / "reconsup.json"

OF_SCRAPE = {"job", "instance"}  # labels that Prometheus adds
OWN = {"up": set(), "ALERTS": {"alertname", "alertstate"}}  # series that Prometheus makes itself
WORDS = {
    *("by", "on", "and", "or", "unless", "group_right", "offset"),
    *("sum", "max", "min", "count", "absent", "rate", "increase", "delta", "changes", "max_over_time", "clamp_min"),
    *("histogram_quantile", "time", "vector", "round"),
}
# Values of labels that the table leaves to the code.
VALUES = {
    ("reconsup_workers", "state"): {str(each) for each in WorkerState},
    ("reconsup_worker_restarts_total", "cause"): {str(each) for each in Cause},
    ("reconsup_requests", "status"): {str(each) for each in Status},
    ("reconsup_row_errors", "reason"): {*map(str, RowError), "failed", "settlement_disowned", "set_aside"},
}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "gauge": ("",), "counter": ("",)}  # the table has _total


@dataclass(frozen=True)
class Rule:
    """One alert as it stands in the file."""

    name: str
    expr: str
    severity: str
    annotations: dict[str, str]


def rules() -> list[Rule]:
    """All alerts. The file is YAML of one shape, which needs no parser of YAML (promtool reads it as what it is)."""
    blocks = re.split(r"^      - alert: ", RULES.read_text(), flags=re.MULTILINE)[1:]
    return [_rule(block) for block in blocks]


def _rule(block: str) -> Rule:
    annotations = {
        key: _folded(text) for key, text in re.findall(r"^          (\w+): (.*(?:\n {12,}.*)*)", block, re.MULTILINE)
    }
    expr = re.search(r"^        expr: (.*(?:\n {10,}.*)*)", block, re.MULTILINE)
    severity = re.search(r"^        labels: \{severity: (\w+)\}$", block, re.MULTILINE)
    assert expr is not None and severity is not None, block  # noqa: PT018 - one shape
    return Rule(block.split("\n")[0], _folded(expr[1]), severity[1], annotations)


def _folded(text: str) -> str:
    return " ".join(text.removeprefix(">-").split()).strip("'")


def board() -> dict[str, Any]:
    """The board."""
    return json.loads(BOARD.read_text())  # type: ignore[no-any-return]  # a board is an object


def board_expressions() -> dict[str, str]:
    """Panel and query → expression."""
    panels = board()["panels"]
    return {f"{each['title']}: {one['refId']}": one["expr"] for each in panels for one in each.get("targets", ())}


def filled(expr: str, *, rate_interval: str = "5m") -> str:
    """An expression of the board with its variables as Grafana fills them in, for all jobs and hosts."""
    return expr.replace("$__rate_interval", rate_interval).replace("$job", ".+").replace("$instance", ".+")


def samples() -> dict[str, metrics.Line]:
    """Every name on the page → its line of the table."""
    return {line.name + suffix: line for line in metrics.TABLE for suffix in SUFFIXES[line.kind]}


def labels_of(name: str) -> set[str]:
    """The labels that a series of that name has."""
    if name in OWN:
        return OWN[name] | OF_SCRAPE
    line = samples()[name]
    return {*line.labels, *OF_SCRAPE, *({"le"} if name.endswith("_bucket") else ())}


def complaints(expr: str) -> list[str]:
    """What an expression says that the program does not: names, labels, values of labels."""
    return [*_of_selectors(expr), *_of_words(expr), *_of_groups(expr)]


def metrics_of(expr: str) -> list[str]:
    """The names of series in an expression."""
    return [name for name, _ in selectors(expr)]


_SELECTOR = re.compile(r"\b(reconsup_\w+|up|ALERTS)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


def selectors(expr: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    for name, inner in _SELECTOR.findall(expr):
        yield name, _MATCHER.findall(inner)


def _of_selectors(expr: str) -> Iterator[str]:
    known = samples()
    for name, matchers in selectors(expr):
        if name not in known and name not in OWN:
            yield f"{name} is not exported"
            continue
        for label, _, value in matchers:
            if label not in labels_of(name):
                yield f"{name} has no label {label}"
                continue
            allowed = VALUES.get((name, label)) or (name in known and known[name].values.get(label))
            if allowed and not set(value.split("|")) <= {*map(str, allowed)}:
                yield f"{name}: {label} is never {value}"


def _of_words(expr: str) -> Iterator[str]:
    bare = re.sub(r'\{[^}]*\}|"[^"]*"|\[[^\]]*\]|\b(by|on|group_right) \([^)]*\)', " ", expr)
    for word in re.findall(r"\b[A-Za-z_]\w*", bare):
        if word not in WORDS and not _SELECTOR.fullmatch(word):
            yield f"what is {word}?"


def _of_groups(expr: str) -> Iterator[str]:
    """`sum by (a, b) (…)`: every series inside has these labels. `on (a, b)`: some series of the expression have."""
    for found in re.finditer(r"\bby \(([^)]*)\) \(", expr):
        inner = _balanced(expr[found.end() :])
        # a vector that was matched with group_right has the labels of all of them
        sets = [labels_of(name) for name in metrics_of(inner) if name in OWN or name in samples()]
        merged = [set().union(*sets)] if "group_right" in inner or " by (" in inner else sets
        for label in filter(None, re.split(r", *", found[1])):
            if not merged or any(label not in each for each in merged):
                yield f"by ({label}): not a label of all of {metrics_of(inner)}"
    for label in {each for group in re.findall(r"\bon \(([^)]*)\)", expr) for each in re.split(r", *", group)}:
        if not any(label in labels_of(name) for name in metrics_of(expr) if name in OWN or name in samples()):
            yield f"on ({label}): a label of nothing"


def _balanced(text: str) -> str:
    depth = 1
    for place, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return text[:place]
    raise AssertionError(f"a parenthesis is open: {text}")
