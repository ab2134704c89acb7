"""A real Prometheus scrapes the real program, by the files that are shipped: rules that can be evaluated, a board with
data, and the alert of a crash loop when there is one.
"""

import os
import re
import signal

import pytest

from tests.story.conftest import Town
from tests.support import promql
from tests.support.program import Program, wait_for
from tests.support.prometheus import Prometheus

pytestmark = [pytest.mark.service, pytest.mark.story]

TARGET = "127.0.0.1:9464"  # in the example
# What has nothing to show in this story, and why.
WITHOUT_DATA = {
    "Calls that fail, by outcome: A": "the endpoint answers every call",
    "Blocks read: B": "no request is older than the tail",
    "Reorgs and disagreements: A": "the chain takes nothing back",
    "Reorgs and disagreements: B": "there is one endpoint",
    "Balance audits: B": "no audit fails",
    "Balance audits: C": "all money leaves a transaction or a log",
    "Balance audits: D": "the endpoint proves balances",
}


def kill_a_worker(program: Program, slot: int = 0) -> None:
    """And wait until its seat is taken again."""
    pid = program.pids()[slot]
    os.kill(pid, signal.SIGKILL)
    wait_for("the seat is taken again", lambda: program.pids().get(slot, pid) != pid)


def slot_of_the_scanner(program: Program) -> int:
    """The seat of the worker that holds the network."""
    holder = wait_for("somebody reads the chain", lambda: program.status()["networks"]["local"]["holder"])
    return int(re.match(r".*-(\d+)", holder)[1])  # type: ignore[index] # a worker's id ends so


def test_the_board_has_data_the_rules_are_sound_and_a_crash_loop_is_told(town: Town) -> None:
    """Payments before and after workers are killed, one late. Seen to fail with a metric's name spelt wrong, in a rule
    (the alert never fires) and on the board (a panel without data).
    """
    late, *ids = town.requests(11)
    with (
        Program(town.database.url, town.rpc_urls, folder=town.folder, workers=2) as program,
        Prometheus(town.folder, {TARGET: program.port}) as prometheus,
    ):
        program.wait_ready()
        town.pay(ids[:5])
        wait_for("five are confirmed", lambda: town.statuses().get("confirmed") == 5, 30)
        wait_for("they were scraped", lambda: _sum(prometheus, "reconsup_notice_seconds_count") == 5, 30)
        town.database.execute(
            "UPDATE app.payment_requests SET created_at = now() - interval '2 minutes',"
            " expires_at = now() - interval '1 minute', next_reconcile_at = now() WHERE id = %s",
            [late],
        )
        assert prometheus.alerts() == {}
        town.mine(70)  # and a balance audit is due
        wait_for("it expires", lambda: town.statuses().get("expired") == 1, 30)
        kill_a_worker(program, slot_of_the_scanner(program))  # which has a lease that is given back
        for _ in range(4):
            kill_a_worker(program)
        town.pay([*ids[5:], late])
        wait_for("ten are confirmed", lambda: town.statuses().get("confirmed") == 10, 30)

        wait_for("the crash loop is told", lambda: "ReconsupCrashLoop" in prometheus.alerts(), 30)
        wait_for("so is the late payment", lambda: "ReconsupLatePayment" in prometheus.alerts(), 30)
        told = prometheus.alerts()
        assert told.keys() == {"ReconsupCrashLoop", "ReconsupLatePayment"}
        assert told["ReconsupCrashLoop"]["annotations"]["summary"].endswith("die again and again")
        assert told["ReconsupLatePayment"]["labels"]["job"] == "reconsup"

        unsound = {rule["name"]: rule.get("lastError") for rule in prometheus.rules() if rule["health"] != "ok"}
        assert unsound == {}
        assert {rule["name"] for rule in prometheus.rules()} == {rule.name for rule in promql.rules()}

        empty = wait_for("the board has data", lambda: _without_data(prometheus), 30)
        assert empty == set(WITHOUT_DATA)
        assert program.stop() == 0


def _without_data(prometheus: Prometheus) -> set[str]:
    """Panels without data, once they are as few as they should be; else nothing, for what is to come yet."""
    empty = {
        where
        for where, expr in promql.board_expressions().items()
        if not prometheus.query(promql.filled(expr, rate_interval="30s"))
    }
    return empty if empty <= set(WITHOUT_DATA) else set()


def _sum(prometheus: Prometheus, name: str) -> float:
    return sum(float(each["value"][1]) for each in prometheus.query(name))
