"""The alerts: promtool takes them, they speak of what the program exports, each was seen to fire and to stay silent."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support import promql, tools

CASES = sorted((Path(__file__).parent / "rules").glob("*.test.yml"))
RUNBOOK = promql.PACKAGING / "RUNBOOK.md"


def promtool(*arguments: str | Path) -> str:
    """What it says; it must be content."""
    done = subprocess.run([tools.promtool(), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_takes_the_rules_and_the_example_of_a_configuration() -> None:
    rules = promql.rules()
    assert len(rules) > 20
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", promql.RULES)
    assert "is valid prometheus config file syntax" in promtool("check", "config", promql.SCRAPE)


@pytest.mark.parametrize("cases", CASES, ids=[path.name.partition(".")[0] for path in CASES])
def test_every_alert_fires_in_its_case_with_its_words_and_not_where_it_nearly_would(cases: Path) -> None:
    """Seen to fail without each `for` and each guard: tests/packaging/test_rules_guards.py."""
    assert "SUCCESS" in promtool("test", "rules", cases)


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    text = "\n".join(path.read_text() for path in CASES)
    checks = re.findall(r"alertname: (\w+)\n +eval_time: \w+(\n +exp_alerts:)?", text)
    names = {rule.name for rule in promql.rules()}

    assert {name for name, expected in checks if expected} == names
    assert {name for name, expected in checks if not expected} == names


def test_the_series_of_the_cases_are_those_that_the_program_exports() -> None:
    """With all labels: a case about a series that is not there would show nothing."""
    text = "\n".join(path.read_text() for path in CASES)
    found = re.findall(r"\{series: '(\w+)\{([^}]*)\}'", text)
    assert len(found) > 100
    for name, inner in found:
        assert {label for label, _ in re.findall(r'(\w+)="([^"]*)"', inner)} == promql.labels_of(name), name


def test_every_rule_speaks_of_what_the_program_exports() -> None:
    """Seen to complain of a name, a label and a value that the program does not have."""
    assert {rule.name: found for rule in promql.rules() if (found := promql.complaints(rule.expr))} == {}
    assert promql.complaints("max by (job) (reconsup_oldest_due) > 120")
    assert promql.complaints("max by (network) (reconsup_due_requests)") == [
        "by (network): not a label of all of ['reconsup_due_requests']"
    ]
    assert promql.complaints('reconsup_workers{state="asleep"} > 0') == ["reconsup_workers: state is never asleep"]
    assert promql.complaints('reconsup_workers{slot="1"} > 0') == ["reconsup_workers has no label slot"]
    assert promql.complaints("avg_over_time(reconsup_due_requests[5m])") == ["what is avg_over_time?"]


def test_alerts_about_one_event_differ_in_nothing_but_the_event() -> None:
    """What is tried for one of them (restarts, gaps) is so tried for all."""
    exprs = {rule.name: rule.expr for rule in promql.rules()}
    late = exprs["ReconsupLatePayment"]
    assert exprs["ReconsupPaymentAgain"] == late.replace("payment_late", "payment_again")
    assert exprs["ReconsupReorgedAfterFinality"] == late.replace("payment_late", "payment_reorged_after_finality")


def test_every_alert_says_how_bad_it_is_what_to_do_and_where_the_run_book_tells_more() -> None:
    anchors = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()) for line in _headings(RUNBOOK)}
    for rule in promql.rules():
        assert rule.severity in ("critical", "warning"), rule.name
        assert rule.annotations.keys() == {"summary", "description", "runbook"}, rule.name
        assert len(rule.annotations["description"]) > 80, rule.name
        assert rule.annotations["runbook"] == f"packaging/RUNBOOK.md#{rule.name.lower()}", rule.name
        assert rule.name.lower() in anchors, f"{rule.name} has no heading in the run-book"


def test_the_run_book_has_no_alert_that_is_none() -> None:
    named = {line.lstrip("# ") for line in _headings(RUNBOOK) if re.fullmatch(r"#+ Reconsup\w+", line)}
    assert named == {rule.name for rule in promql.rules()}


def test_what_the_rules_name_exists() -> None:
    """Log events, settings and commands in the words of the alerts."""
    source = "\n".join(path.read_text() for path in (promql.PACKAGING.parent / "reconsup").rglob("*.py"))
    for rule in promql.rules():
        for word in re.findall(r"`([a-z]+_[a-z_]+)`", rule.annotations["description"]):
            assert f'"{word}"' in source, f"{rule.name}: {word}"
        for word in re.findall(r"\b(?:RECONSUP|PAYMENT_REQUEST)_\w+", rule.annotations["description"]):
            assert f'"{word}"' in source, f"{rule.name}: {word}"


def _headings(page: Path) -> list[str]:
    return [line for line in page.read_text().splitlines() if line.startswith("#")]
