"""Each part of an alert is needed: without it, one of its cases fails. A part that no case needs is not tried."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support import promql, tools

pytestmark = pytest.mark.long

CASES = sorted((Path(__file__).parent / "rules").glob("*.test.yml"))
RULES = promql.RULES.read_text()
WAITING = [
    rule.name for rule in promql.rules() if re.search(rf"alert: {rule.name}\n(?:(?! +labels:).*\n)* +for: ", RULES)
]
SINCE_START = "          and on (job, instance) time() - reconsup_supervisor_start_time_seconds < 3600\n"
# alert, a part of its text, what stands there instead
PARTS = [
    (
        "ReconsupNothingReady",
        "unless on (job) (max by (job) (reconsup_ready) == 1)",
        "and on (job) (max by (job) (reconsup_ready) == 0)",
    ),
    ("ReconsupNoReadyWorker", ' unless on (job, instance) reconsup_workers{state="draining"} > 0', ""),
    ("ReconsupNotScraped", '{job=~"reconsup.*"}', ""),
    ("ReconsupDatabaseAway", "count by (job) (reconsup_database_answers == 0)", "reconsup_database_answers == 0"),
    ("ReconsupCrashLoop", '{cause=~"crash|signal|boot|hang"}[10m])) > 3.5', "[10m])) > 3.5"),
    ("ReconsupCrashLoop", "[10m])) > 3.5", "[10m])) > 2.5"),
    ("ReconsupCrashLoop", "[10m])) > 3.5", "[10m])) > 4.5"),
    (
        "ReconsupCrashLoop",
        "          and on (job, instance) time() - reconsup_supervisor_start_time_seconds < 600\n",
        "",
    ),
    ("ReconsupCrashLoop", "seconds < 600", "seconds < 60"),
    ("ReconsupRestartLoop", ">= 3", ">= 2"),
    ("ReconsupVersionsDiffer", "count by (job, version)", "count by (job, instance)"),
    ("ReconsupScanLag", "          unless on (job, network) max by (job, network) (reconsup_chain_at_head) == 1\n", ""),
    ("ReconsupScanLag", "          unless on (job, network) max by (job, network) (reconsup_chain_stopped) == 1\n", ""),
    ("ReconsupScanLag", "max by (job, network) (reconsup_chain_lag_seconds) >", "reconsup_chain_lag_seconds >"),
    ("ReconsupChainSilent", "20 * 86400", "2 * 86400"),
    (
        "ReconsupChainSilent",
        "20 * 86400 / clamp_min(max by (job, network) (delta(reconsup_chain_scanned[1d]",
        "20 * 21600 / clamp_min(max by (job, network) (delta(reconsup_chain_scanned[6h]",
    ),
    (
        "ReconsupChainSilent",
        "max by (job, network) (reconsup_chain_lag_seconds) > 900",
        "max by (job, network) (reconsup_chain_lag_seconds) > 0",
    ),
    (
        "ReconsupNetworkUnread",
        "          unless on (job, network) max by (job, network) (reconsup_chain_lag_seconds)\n",
        "",
    ),
    ("ReconsupEndpointFails", "> 0.25", "> 0.05"),
    (
        "ReconsupUnproven",
        "          and on (job, network) max by (job, network) (max_over_time(reconsup_chain_proven[1d])) == 1\n",
        "",
    ),
    (
        "ReconsupBalancesUnproven",
        "          unless on (job, network) sum by (job, network) "
        "(increase(reconsup_balances_unproven_total[7d] offset 1d)) > 0\n",
        "",
    ),
    (
        "ReconsupAuditFails",
        "          unless on (job, network) sum by (job, network) (increase(reconsup_audits_total[1h])) > 0\n",
        "",
    ),
    (
        "ReconsupOldBlocksUnread",
        "          unless on (job, network) sum by (job, network) (increase(reconsup_span_blocks_total[30m])) > 0\n",
        "",
    ),
    ("ReconsupBacklogAge", "max by (job)", "sum by (job)"),
    ("ReconsupWritesRefused", "> 0.05", "> 0.005"),
    (
        "ReconsupWritesRefused",
        "sum by (job) (increase(reconsup_writes_refused_total[15m])) > 20",
        "sum by (job) (increase(reconsup_writes_refused_total[15m])) > 0",
    ),
    ("ReconsupRowErrors", '{reason!="set_aside"}', ""),
    ("ReconsupRowErrors", "max by (job, reason)", "sum by (job, reason)"),
    ("ReconsupRowRefused", '{reason="refused"}[2h]', "[2h]"),
    ("ReconsupUnserved", " and on (job) max by (job) (delta(reconsup_nobodys_requests[1h])) > 0", ""),
    (
        "ReconsupUnserved",
        "max by (job) (reconsup_nobodys_requests) > 0",
        "max by (job) (reconsup_unserved_requests) > 0",
    ),
    ("ReconsupNotCounted", " < 14400", ""),
    ("ReconsupNotCounted", "reconsup_database_answers == 1", "reconsup_database_answers >= 0"),
    (
        "ReconsupLatePayment",
        SINCE_START,
        "",
    ),
    (
        "ReconsupLatePayment",
        '          or\n          reconsup_transitions_total{reason="payment_late"} > 0\n' + SINCE_START,
        "",
    ),
    ("ReconsupLatePayment", 'increase(reconsup_transitions_total{reason="payment_late"}[1h]) > 0\n          or\n', ""),
]


def verdict(folder: Path, alert: str, old: str | None = None, new: str = "") -> int:
    """promtool's exit code for the cases of one alert, with only its rule, changed."""
    rule = next(
        block for block in re.split(r"(?=^      - alert: )", RULES, flags=re.MULTILINE) if f"alert: {alert}\n" in block
    )
    rule = re.sub(r"\n  - name: .*", "\n", rule, flags=re.DOTALL)
    if old is not None:
        assert rule.count(old) >= 1, (alert, old)
        rule = rule.replace(old, new)
    (folder / "one.rules.yml").write_text("groups:\n  - name: one\n    rules:\n" + rule)
    for cases in CASES:
        head, *tests = re.split(r"(?=^  - name: )", cases.read_text(), flags=re.MULTILINE)
        mine = [_only(alert, test) for test in tests if f"alertname: {alert}\n" in test]
        if mine:
            path = folder / cases.name
            path.write_text(re.sub(r"rule_files: .*", "rule_files: [one.rules.yml]", head) + "".join(mine))
            done = subprocess.run([tools.promtool(), "test", "rules", path], capture_output=True, check=False)
            if done.returncode:
                return done.returncode
    return 0


def _only(alert: str, test: str) -> str:
    head, *checks = re.split(r"(?=^      - alertname: )", test, flags=re.MULTILINE)
    return head + "".join(check for check in checks if f"alertname: {alert}\n" in check)


@pytest.mark.parametrize("alert", WAITING)
def test_an_alert_that_does_not_wait_is_noticed(tmp_path: Path, alert: str) -> None:
    assert verdict(tmp_path, alert) == 0
    waits = re.search(rf"alert: {alert}\n(?:.*\n)*?( +for: .*\n)", RULES)
    assert waits is not None
    assert verdict(tmp_path, alert, waits[1]) == 1


@pytest.mark.parametrize(
    ("alert", "old", "new"), PARTS, ids=[f"{part[0]}-{number}" for number, part in enumerate(PARTS)]
)
def test_a_part_that_is_not_there_is_noticed(tmp_path: Path, alert: str, old: str, new: str) -> None:
    assert verdict(tmp_path, alert) == 0
    assert verdict(tmp_path, alert, old, new) == 1
