"""A request at which worker processes die, again and again: it is set aside, with an alarm, and the others are paid."""

import pytest

from tests.story.conftest import Town
from tests.support.program import Program, wait_for

pytestmark = [pytest.mark.service, pytest.mark.story, pytest.mark.planted]

# The program as its users start it, but for one bug: deciding about one request kills the process.
DEADLY = """
import os, signal, sys
from reconsup.worker import reconciler
real = reconciler.decide
def decide(request, *rest):
    if request.id == os.environ["TEST_POISON"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(request, *rest)
reconciler.decide = decide
from reconsup.cli import main
sys.exit(main())
"""


def test_a_request_at_which_workers_die_is_set_aside_and_alarmed_and_the_others_are_paid(town: Town) -> None:
    """Seen to fail (no end of deaths, the slots are parked) without the count of them on the row."""
    ids = town.requests(20)
    poison = ids[7]
    town.pay(ids)
    with Program(
        town.database.url, town.rpc_urls, folder=town.folder, workers=2, code=DEADLY, TEST_POISON=poison
    ) as program:
        wait_for("the others are confirmed", lambda: town.statuses() == {"confirmed": 19, "pending": 1}, 60)
        program.wait_ready()
        wait_for(
            "the alarm is in the metrics",
            lambda: program.metric("reconsup_row_errors", reason="set_aside") == 1,
            60,
        )
        assert program.metric("reconsup_row_failures_total", reason="set_aside") == 1
        assert program.metric("reconsup_worker_restarts_total") == 4
        wait_for("both slots are taken again", lambda: program.metric("reconsup_workers", state="ready") == 2, 60)
        ((crashes, error, next_look, owner),) = town.database.fetch(
            "SELECT reconcile_crashes, reconcile_error, next_reconcile_at, reconcile_lease_owner"
            " FROM app.payment_requests WHERE id = %s",
            [poison],
        )
        assert (crashes, error, next_look, owner) == (4, "set_aside", None, None)
        assert town.database.fetch(
            "SELECT reason, from_status, to_status FROM app.payment_request_transitions WHERE payment_request_id = %s",
            [poison],
        ) == [("row_set_aside", "pending", "pending")]
        assert town.database.fetch(
            "SELECT count(*) FROM app.payment_requests WHERE reconcile_crashes > 0 AND id <> %s", [poison]
        ) == [(0,)]
        (line,) = program.events("row_set_aside")
        assert (line["request_id"], line["level"]) == (poison, "error")
        assert program.stop() == 0
