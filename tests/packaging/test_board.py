"""The board: it imports cleanly as far as its JSON can say, and asks for nothing that the program does not export.

What Grafana makes of it is not shown here, for there is no Grafana to be had; tests/story/test_prometheus.py asks a
real Prometheus for every expression.
"""

import itertools
from typing import Any

from tests.support import promql

SCHEMA_VERSION_MIN = 36  # Grafana 9; 10 and later migrate it by themselves
COLUMNS = 24
KINDS = {"row", "stat", "timeseries", "table"}
UNITS = {"none", "short", "s", "bytes", "cps", "cpm", "bool_yes_no"}  # ids that Grafana knows
VARIABLES = {"datasource", "job", "instance"}


def panels() -> list[dict[str, Any]]:
    return list(promql.board()["panels"])


def test_the_board_can_be_imported_anywhere() -> None:
    """No identifier of a database of Grafana's, and no data source but the one that is chosen."""
    board = promql.board()
    assert board["id"] is None
    assert board["schemaVersion"] >= SCHEMA_VERSION_MIN
    assert (board["title"], board["uid"]) == ("reconsup", "reconsup")
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert variables.keys() == VARIABLES
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    sources = [value for value in _values(board, "datasource") if isinstance(value, dict)]
    assert {each["uid"] for each in sources} == {"${datasource}", "-- Grafana --"}


def test_every_panel_has_a_place_an_identifier_a_unit_and_a_description() -> None:
    ids = [each["id"] for each in panels()]
    assert len(ids) == len(set(ids))
    titles = [each["title"] for each in panels()]
    assert len(titles) == len(set(titles))
    for each in panels():
        title = each["title"]
        assert each["type"] in KINDS, title
        place = each["gridPos"]
        assert place["x"] >= 0, title
        assert place["x"] + place["w"] <= COLUMNS, title
        if each["type"] == "row":
            continue
        assert each["fieldConfig"]["defaults"]["unit"] in UNITS, title
        assert len(each["description"]) > 20, title
        if each["type"] == "stat":  # a figure that is left out is not known: it must not look like none
            assert each["fieldConfig"]["defaults"]["noValue"] in ("unknown", "no payment"), title
        assert each["targets"], title
        refs = [target["refId"] for target in each["targets"]]
        assert len(refs) == len(set(refs)), title
        assert all(target["expr"].strip() for target in each["targets"]), title
        several = len(refs) > 1
        assert not several or all(target["legendFormat"] for target in each["targets"]), title


def test_no_panel_lies_over_another_and_none_floats() -> None:
    covered: dict[tuple[int, int], str] = {}
    for each in panels():
        place = each["gridPos"]
        rows = range(place["y"], place["y"] + place["h"])
        for spot in itertools.product(range(place["x"], place["x"] + place["w"]), rows):
            assert spot not in covered, f"{each['title']} lies over {covered[spot]}"
            covered[spot] = each["title"]
    depth = max(y for _, y in covered) + 1
    assert len(covered) == COLUMNS * depth


def test_the_first_look_says_whether_money_is_noticed_how_fast_and_what_is_stuck() -> None:
    first = [each for each in panels() if each["gridPos"]["y"] < 9 and each["type"] != "row"]
    asked = {name for each in first for target in each["targets"] for name in promql.metrics_of(target["expr"])}
    assert {each["type"] for each in first} == {"stat"}
    assert asked >= {
        "reconsup_ready",
        "reconsup_database_answers",
        "reconsup_oldest_due_seconds",
        "reconsup_chain_lag_seconds",
        "reconsup_transitions_total",
        "reconsup_notice_seconds_bucket",
        "reconsup_row_errors",
        "reconsup_nobodys_requests",
        "reconsup_chain_stopped",
    }


def test_every_expression_speaks_of_what_the_program_exports_and_of_the_hosts_that_were_chosen() -> None:
    expressions = promql.board_expressions()
    assert len(expressions) > 40
    for where, expr in expressions.items():
        bare = expr.replace("$__rate_interval", "5m")
        assert promql.complaints(promql.filled(expr).replace('=~".+"', '=~"$x"')) == [], where
        for name, selector in promql.selectors(bare):
            chosen = {label: value for label, _, value in selector}
            expected = {"job": "$job|"} if name == "ALERTS" else {"job": "$job", "instance": "$instance"}
            assert expected.items() <= chosen.items(), where


def test_every_metric_of_the_table_is_on_the_board_or_left_out_for_a_reason() -> None:
    left_out = {
        "reconsup_unserved_requests",  # of one host; reconsup_nobodys_requests is of all
        "reconsup_chain_at_head",  # for alerts: the board shows the blocks that wait
        "reconsup_settlements_repaired_total",  # in the log, and a row error where it does not help
        "reconsup_deaths_overwritten_total",  # the leases' end frees them
        "reconsup_metrics_files_damaged",  # an alert
    }
    shown = {name for expr in promql.board_expressions().values() for name in promql.metrics_of(expr)}
    lines = {line.name for name, line in promql.samples().items() if name in shown}
    assert {line.name for line in promql.samples().values()} - lines == left_out


def _values(node: Any, key: str) -> list[Any]:
    found = []
    if isinstance(node, dict):
        found += [value for name, value in node.items() if name == key]
        found += [each for value in node.values() for each in _values(value, key)]
    elif isinstance(node, list):
        found += [each for value in node for each in _values(value, key)]
    return found
