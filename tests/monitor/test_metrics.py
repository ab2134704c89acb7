"""How processes count in their seats, and what the page shows of it. Damage and full disks: test_tally.py."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from reconsup.monitor import metrics, page

PREAMBLE = """
import os, signal, sys
from pathlib import Path
from reconsup.monitor import metrics, page
directory = Path(sys.argv[1])

def in_child(slot, work, *, killed=False):
    pid = os.fork()
    if pid == 0:
        metrics.open(directory, str(slot))
        work()
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) == killed, status
"""


def run(directory: Path, script: str) -> str:
    """What `script` prints, with `in_child` at hand."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + script, str(directory)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(text: bytes, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


def render(directory: Path, readings: page.Readings) -> bytes:
    return page.render(directory, readings)


def test_files_and_counts_survive_every_death_in_a_slot(tmp_path: Path) -> None:
    """Seen to fail when the files are named by pid (more files), and when `open` empties them (counts go back)."""
    printed = run(
        tmp_path,
        """
def work():
    metrics.CLAIMED.inc(10)
    metrics.TRANSITIONS.inc(1, "pending", "detected", "payment_detected")
    metrics.CYCLE_SECONDS.observe(0.02)

for round in range(5):
    for slot in (0, 1, 11):
        in_child(slot, work, killed=round < 4)
    lines = page.render(directory, {}).decode().splitlines()
    claimed = [line.split()[1] for line in lines if line.startswith("reconsup_requests_claimed_total")]
    print(len(list(directory.iterdir())), *claimed)
""",
    )

    assert [line.split() for line in printed.splitlines()] == [["6", f"{30.0 * n}"] for n in range(1, 6)]
    text = render(tmp_path, {})
    moved = {"from": "pending", "to": "detected", "reason": "payment_detected"}
    assert value(text, "reconsup_transitions_total", **moved) == 15
    assert value(text, "reconsup_cycle_seconds_count") == 15
    assert value(text, "reconsup_cycle_seconds_bucket", le="0.025") == 15


def test_before_open_nothing_is_counted_and_nothing_fails(tmp_path: Path) -> None:

    run(tmp_path, "metrics.CLAIMED.inc(5); metrics.RPC_SECONDS.observe(1, 'local', 'eth_chainId')")

    assert list(tmp_path.iterdir()) == []
    assert samples(render(tmp_path, {})) == {("reconsup_metrics_files_damaged", frozenset()): 0}


def test_labels_are_bounded_by_the_table(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
def work():
    metrics.RPC_REQUESTS.inc(1, "local", "eth_chainId", "ok")
    for number in range(50):
        metrics.RPC_REQUESTS.inc(1, "local", f"evil_{number}", f"odd {number}")
        metrics.TRANSITIONS.inc(1, "pending", f"status {number}", "x")
in_child(0, work)
""",
    )
    text = render(tmp_path, {})

    assert value(text, "reconsup_rpc_requests_total", network="local", method="eth_chainId", outcome="ok") == 1
    assert value(text, "reconsup_rpc_requests_total", network="local", method="other", outcome="other") == 50
    odd = [
        labels for name, labels in samples(text) if name == "reconsup_transitions_total" and ("to", "other") in labels
    ]
    assert len(odd) == 1


def test_what_is_an_alarm_when_it_happens_once_stands_at_0_before(tmp_path: Path) -> None:
    """Prometheus sees no increase where a number was not there before. Seen to fail without the table's `begins`."""
    run(tmp_path, "in_child(0, lambda: None)")
    text = render(tmp_path, {})

    late = {"from": "expired", "to": "expired", "reason": "payment_late"}
    assert value(text, "reconsup_transitions_total", **late) == 0
    assert value(text, "reconsup_writes_refused_total", reason="lease_lost") == 0
    assert value(text, "reconsup_row_failures_total", reason="refused") == 0
    for line in metrics.TABLE:
        assert all(line.bounded(labels) == labels for labels in line.begins), line.name


def test_a_histogram_may_have_bounds_of_its_own(tmp_path: Path) -> None:
    run(tmp_path, "in_child(0, lambda: [metrics.NOTICE_SECONDS.observe(s, 'local') for s in (0.5, 40, 50, 9999)])")
    text = render(tmp_path, {})

    counts = [value(text, "reconsup_notice_seconds_bucket", network="local", le=le) for le in ("1.0", "60.0", "+Inf")]
    assert counts == [1, 3, 4]
    assert ("reconsup_notice_seconds_bucket", frozenset({("network", "local"), ("le", "0.25")})) not in samples(text)


def test_a_wrong_number_of_labels_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="reconsup_transitions_total has the labels"):
        metrics.TRANSITIONS.inc(1, "pending")


def test_what_the_monitor_reads_is_on_the_same_page(tmp_path: Path) -> None:
    text = render(
        tmp_path,
        {
            "reconsup_workers": {("ready",): 3, ("parked",): 1},
            "reconsup_worker_restarts_total": {("2", "SIGKILL"): 4},
            "reconsup_build_info": {("0.1.0",): 1},
            "reconsup_due_requests": {(): 7},
            "reconsup_row_errors": {},
        },
    )

    assert value(text, "reconsup_workers", state="ready") == 3
    assert value(text, "reconsup_worker_restarts_total", slot="2", cause="SIGKILL") == 4
    assert value(text, "reconsup_due_requests") == 7
    assert b"# TYPE reconsup_worker_restarts_total counter" in text
    assert b"row_errors" not in text


def test_the_table_has_the_names_of_the_contract() -> None:
    contract = {
        "reconsup_workers": ("state",),
        "reconsup_worker_restarts_total": ("slot", "cause"),
        "reconsup_worker_ready_seconds": (),
        "reconsup_cycle_seconds": (),
        "reconsup_requests_claimed_total": (),
        "reconsup_transitions_total": ("from", "to", "reason"),
        "reconsup_writes_refused_total": ("reason",),
        "reconsup_leases_released_total": ("cause",),
        "reconsup_due_requests": (),
        "reconsup_oldest_due_seconds": (),
        "reconsup_unserved_requests": (),
        "reconsup_row_errors": ("reason",),
        "reconsup_chain_head": ("network",),
        "reconsup_chain_scanned": ("network",),
        "reconsup_chain_lag_seconds": ("network",),
        "reconsup_chain_stopped": ("network",),
        "reconsup_chain_proven": ("network",),
        "reconsup_rpc_disagreement": ("network",),
        "reconsup_blocks_scanned_total": ("network",),
        "reconsup_span_blocks_total": ("network",),
        "reconsup_span_blocks_left": ("network",),
        "reconsup_reorgs_total": ("network",),
        "reconsup_rpc_requests_total": ("network", "method", "outcome"),
        "reconsup_rpc_seconds": ("network", "method"),
        "reconsup_build_info": ("version",),
    }
    ours = {
        "reconsup_settlements_repaired_total": (),
        "reconsup_row_failures_total": ("reason",),
        "reconsup_audits_total": ("network",),
        "reconsup_balance_audit_failures_total": ("network",),
        "reconsup_deaths_overwritten_total": (),
        "reconsup_metrics_files_damaged": (),
        "reconsup_supervisor_start_time_seconds": (),
        "reconsup_audit_settlements_total": ("network", "how"),
        "reconsup_rpc_disagreements_total": ("network",),
        "reconsup_workers_wanted": (),
        "reconsup_worker_memory_bytes": ("slot",),
        "reconsup_worker_beat_age_seconds": ("slot",),
        "reconsup_ready": (),
        "reconsup_database_answers": (),
        "reconsup_requests": ("status",),
        "reconsup_census_age_seconds": (),
        "reconsup_nobodys_requests": (),
        "reconsup_chain_at_head": ("network",),
        "reconsup_notice_seconds": ("network",),
        "reconsup_balances_unproven_total": ("network",),
    }

    assert {line.name: line.labels for line in metrics.TABLE} == contract | ours
    assert all(line.help and not line.help.endswith(".") for line in metrics.TABLE)


def test_the_folder_of_a_killed_supervisor_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    """Seen to fail without the lock: the living one's folder was removed under it."""
    dead = tmp_path / "reconsup-metrics-dead"
    dead.mkdir()
    (dead / "counter_0.db").touch()
    with metrics.folder(tmp_path) as living:
        assert not dead.exists()
        with metrics.folder(tmp_path) as another:
            assert living.exists()
            assert another != living
        assert not another.exists()
    assert list(tmp_path.iterdir()) == []
