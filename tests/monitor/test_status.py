"""What is told of what is known: the contract's fields, and nothing that is too old."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from reconsup.fleet.crashes import Crash
from reconsup.fleet.scoreboard import CellView, Load
from reconsup.fleet.slot import SPARE, Cause, WorkerState
from reconsup.monitor import metrics, status
from reconsup.monitor.status import Fleet, Known
from reconsup.payments.request import Network
from reconsup.store.backlog import Backlog, Census, NetworkState

NOW = 1000.0


def cell(slot: int, **fields: Any) -> CellView:
    return CellView(
        **{
            "slot": slot,
            "worker_id": f"host-{slot}",
            "incarnation": f"{slot:016x}",
            "pid": 100 + slot,
            "state": WorkerState.READY,
            "restarts": 0,
            "causes": dict.fromkeys(Cause, 0),
            "started": 10.0,
            "ready_at": 10.5,
            "beat": 999.0,
            "leases": 3,
            "row": None,
            "last_cycle": 1_700_000_000.0,
            **fields,
        }
    )


GONE = cell(
    1,
    incarnation=None,
    pid=None,
    state=WorkerState.BACKOFF,
    restarts=2,
    causes={Cause.SIGNAL: 2, Cause.CRASH: 0},
    started=20.0,
    ready_at=None,
    leases=0,
    last_cycle=None,
)
FLEET = Fleet(
    7,
    "running",
    "0.1.0",
    datetime(2026, 1, 2, tzinfo=UTC),
    (cell(0, loop="claim", memory_bytes=1 << 20), GONE),
    base="host",
    wanted=2,
    at=datetime(2026, 1, 2, 0, 1, tzinfo=UTC),
    restarts={(1, Cause.SIGNAL): 2, (5, Cause.HANG): 1, (SPARE, Cause.CRASH): 3},
    deaths_overwritten=4,
)
LOCAL = NetworkState(
    Network("ethereum", "local"),
    105,
    100,
    4.00049,
    "host-0#ab",
    None,
    proven=True,
    span_blocks_left=7,
    heard_seconds=1.0,
)
STOPPED = NetworkState(
    Network("ethereum", "stopped"), 9, 8, 1.0, None, "fork below finality", proven=False, disagreed_seconds=2.0
)
UNBORN = NetworkState(Network("ethereum", "unborn"))


def known(**fields: Any) -> Known:
    return Known(
        **{
            "networks": ("local", "stopped", "unborn"),
            "fresh_seconds": 20.0,
            "backlog": Backlog(4, 2.5, (LOCAL, STOPPED, UNBORN)),
            "backlog_at": NOW - 1,
            "census": Census({"pending": 4}, 2, {"set_aside": 1}, nobodys=1),
            "census_at": NOW - 30,
            "problem": None,
            **fields,
        }
    )


def test_crashes_are_told_with_their_age_by_a_clock_that_nobody_sets() -> None:
    """Seen to fail when the age is taken from the wall clock."""
    killed = Crash(1, "host-1", 101, -9, Cause.SIGNAL, at=1_767_312_000.5, at_monotonic=NOW - 5, row="pay_1")
    crashed = replace(killed, slot=-1, worker_id="host-monitor", code=70, cause=Cause.CRASH, row=None)

    told: Any = status.status(replace(FLEET, crashes=(killed, crashed)), known(), NOW)

    assert told["crashes"][0] == {
        "slot": 1,
        "worker_id": "host-1",
        "pid": 101,
        "cause": "signal",
        "exit_code": None,
        "signal": "SIGKILL",
        "row": "pay_1",
        "at": "2026-01-02T00:00:00.500000+00:00",
        "seconds_ago": 5.0,
    }
    assert (told["crashes"][1]["exit_code"], told["crashes"][1]["signal"]) == (70, None)


def test_status_is_the_contract() -> None:
    told: Any = status.status(FLEET, known(), NOW)

    assert told["supervisor"] == {
        "pid": 7,
        "state": "running",
        "version": "0.1.0",
        "started_at": "2026-01-02T00:00:00+00:00",
        "base": "host",
        "workers_ready": 1,
        "workers_wanted": 2,
        "reload": None,
        "watchdog_seconds": None,
        "ready": True,
        "problem": None,
    }
    assert told["at"] == "2026-01-02T00:01:00+00:00"
    assert {"due": 4, "oldest_due_seconds": 2.5, "by_status": {"pending": 4}}.items() <= told["backlog"].items()
    assert told["networks"]["local"] == {
        "head": 105,
        "scanned": 100,
        "span_blocks_left": 7,
        "lag_seconds": 4.0,
        "at_head": False,
        "disagrees": False,
        "holder": "host-0#ab",
        "stop_reason": None,
        "proven": True,
    }
    assert told["networks"]["unborn"]["scanned"] is None


def test_the_workers_of_the_status_are_the_contract_too() -> None:
    told: Any = status.status(FLEET, known(), NOW)

    assert told["workers"] == [
        {
            "slot": 0,
            "worker_id": "host-0",
            "incarnation": "0000000000000000",
            "pid": 100,
            "state": "ready",
            "restarts": 0,
            "leases": 3,
            "last_cycle": "2023-11-14T22:13:20+00:00",
            "causes": {},
            "memory_bytes": 1 << 20,
            "beat_seconds_ago": 1.0,
            "loop": "claim",
            "ready_seconds": 0.5,
            "age_seconds": 990.0,
        },
        {
            "slot": 1,
            "worker_id": "host-1",
            "incarnation": None,
            "pid": None,
            "state": "backoff",
            "restarts": 2,
            "leases": 0,
            "last_cycle": None,
            "causes": {"signal": 2},
            "memory_bytes": None,
            "beat_seconds_ago": None,
            "loop": None,
            "ready_seconds": None,
            "age_seconds": None,
        },
    ]


@pytest.mark.parametrize(
    ("stop_reason", "heard_seconds", "is_at_head"),
    [(None, 20.0, True), (None, 31.0, False), ("reorg below what is final (block 33)", 1.0, False)],
    ids=["its chain is silent", "its endpoints are away or disagree", "it is stopped"],
)
def test_a_network_is_said_to_be_at_its_head_only_while_an_endpoint_says_so(
    stop_reason: str | None, heard_seconds: float, is_at_head: bool
) -> None:
    """No head is noted meanwhile, so all of what was noted is read. Seen to fail without the look at either."""
    state = NetworkState(LOCAL.network, 97, 97, 36_000.0, None, stop_reason, heard_seconds=heard_seconds)
    told: Any = status.status(FLEET, known(backlog=Backlog(0, 0.0, (state,))), NOW)

    assert told["networks"]["local"]["at_head"] is is_at_head


@pytest.mark.parametrize("stale", [{"backlog_at": NOW - 21}, {"backlog": None}])
def test_what_is_too_old_is_not_known_but_every_field_is_there(stale: dict[str, Any]) -> None:
    """Seen to fail when the age of the reading is not looked at."""
    fresh: Any = status.status(FLEET, known(), NOW)
    told: Any = status.status(FLEET, known(**stale), NOW)

    assert set(told["backlog"].values()) == {None}
    assert all(set(network.values()) == {None} for network in told["networks"].values())
    for part in ("backlog", "networks", "supervisor"):
        assert set(told[part]) == set(fresh[part])
    found = status.readings(FLEET, known(**stale), NOW)
    assert found["reconsup_database_answers"] == found["reconsup_ready"] == {(): 0}  # alarms hang on it
    names = set(found)
    assert not [name for name in names if name.startswith(("reconsup_chain", "reconsup_due", "reconsup_row"))]


@pytest.mark.parametrize(
    ("fleet", "state", "reason"),
    [
        (FLEET, known(), None),
        (FLEET, known(problem="connection refused"), "database: connection refused"),
        (FLEET, known(backlog_at=NOW - 21), "database: it has not answered for 20 s"),
        (Fleet(7, "running", "1", FLEET.started_at, (GONE,)), known(), "no worker is ready: slot 1 is backoff"),
        (Fleet(7, "probing", "1", FLEET.started_at, ()), known(), "no worker is ready: there is none"),
    ],
)
def test_ready_is_a_ready_worker_and_a_database_that_answers(fleet: Fleet, state: Known, reason: str | None) -> None:
    assert status.readiness(fleet, state, NOW) == reason


def test_readings_are_lines_of_the_table_with_their_labels() -> None:
    found = status.readings(FLEET, known(), NOW)
    lines = {line.name: line for line in metrics.READ}

    assert set(found) == lines.keys() - {"reconsup_metrics_files_damaged"}  # which the page itself knows
    assert all(len(labels) == len(lines[name].labels) for name, values in found.items() for labels in values)
    assert found["reconsup_workers"]["ready",] == 1
    assert found["reconsup_workers"]["parked",] == 0
    # seat 5 is no longer one of the fleet's: counters do not vanish
    restarts = {("1", "signal"): 2, ("5", "hang"): 1, ("spare", "crash"): 3}
    found_restarts = found["reconsup_worker_restarts_total"]
    assert {labels: count for labels, count in found_restarts.items() if count} == restarts
    # a first death is a step from 0: Prometheus would not see it of a number that was not there
    assert {(slot, cause) for slot in "01" for cause in ("crash", "signal", "boot", "hang")} <= found_restarts.keys()
    assert found["reconsup_ready"] == found["reconsup_database_answers"] == {(): 1}
    assert found["reconsup_deaths_overwritten_total"] == {(): 4}
    assert found["reconsup_supervisor_start_time_seconds"] == {(): FLEET.started_at.timestamp()}
    assert found["reconsup_worker_ready_seconds"] == {(): 0.5}
    assert found["reconsup_workers_wanted"] == {(): 2}
    assert found["reconsup_worker_memory_bytes"] == {("0",): 1 << 20}
    assert found["reconsup_worker_beat_age_seconds"] == {("0",): 1.0}
    assert found["reconsup_chain_head"] == {("local",): 105, ("stopped",): 9}
    assert found["reconsup_span_blocks_left"] == {("local",): 7}
    assert found["reconsup_chain_at_head"] == {("local",): 0}
    assert found["reconsup_requests"]["pending",] == 4
    assert found["reconsup_requests"]["reorged",] == 0
    assert found["reconsup_census_age_seconds"] == {(): 30}
    assert found["reconsup_nobodys_requests"] == {(): 1}
    assert found["reconsup_chain_stopped"] == {("local",): 0, ("stopped",): 1, ("unborn",): 0}
    assert found["reconsup_chain_proven"] == {("local",): 1, ("stopped",): 0}
    assert found["reconsup_rpc_disagreement"] == {("local",): 0, ("stopped",): 1}
    assert found["reconsup_row_errors"] == {("set_aside",): 1}


def test_a_seat_whose_workers_die_before_they_get_anywhere_is_seen_to_age() -> None:
    """The beat is the last that anybody gave in the seat. Seen to fail when the fork counts as one."""
    newcomer, first = cell(0, started=NOW - 1, beat=NOW - 90), cell(1, started=NOW - 1, beat=None)
    told: Any = status.status(Fleet(7, "running", "1", FLEET.started_at, (newcomer, first)), known(), NOW)

    assert [each["beat_seconds_ago"] for each in told["workers"]] == [90.0, 1.0]


def test_a_host_that_is_not_ready_says_why_in_its_status() -> None:
    told: Any = status.status(FLEET, known(problem="connection refused"), NOW)

    assert (told["supervisor"]["ready"], told["supervisor"]["problem"]) == (False, "database: connection refused")


def test_what_a_host_tells_the_others_is_small_and_says_how_it_is() -> None:
    told = status.announcement(FLEET, known())

    assert told == {
        "state": "running",
        "workers_wanted": 2,
        "fresh_seconds": 20.0,
        "networks": ["local", "stopped", "unborn"],
        "workers": [
            {"slot": 0, "state": "ready", "restarts": 0, "leases": 3, "memory_bytes": 1 << 20},
            {"slot": 1, "state": "backoff", "restarts": 2, "leases": 0, "memory_bytes": None},
        ],
    }


@pytest.mark.parametrize(
    ("fields", "behind"),
    [
        ({}, 4.00049),
        ({"scanned": 105}, 0.0),
        ({"scanned": 106}, 0.0),
        ({"stop_reason": "fork below finality"}, 0.0),
        ({"heard_seconds": 31.0}, 0.0),
        ({"heard_seconds": None}, 0.0),
        ({"head": None}, 0.0),
        ({"scanned": None, "lag_seconds": None}, 0.0),
    ],
    ids=["behind", "at its head", "beyond it", "stopped", "its endpoints are away", "never heard", "no head", "unborn"],
)
def test_the_load_is_work_that_another_worker_could_do(fields: dict[str, Any], behind: float) -> None:
    """Seen to fail without each of the conditions: workers would be forked for blocks that nobody can have."""
    backlog = Backlog(4, 2.5, (replace(LOCAL, **fields), UNBORN))

    assert status.load(backlog, 30.0, NOW) == Load(2.5, behind, NOW)


def test_the_load_is_that_of_the_network_that_is_furthest_behind() -> None:
    far = replace(LOCAL, network=Network("ethereum", "far"), lag_seconds=900.0)

    assert status.load(Backlog(0, 0.0, (LOCAL, far, STOPPED)), 30.0, NOW) == Load(0.0, 900.0, NOW)
