"""The only clock that decides anything is the database's (and the chain's)."""

from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from tests.story.conftest import Town
from tests.support.load import Stream, settle
from tests.support.program import Program, wait_for
from tests.support.wrong_clocks import wall_clock_off_by

pytestmark = [pytest.mark.service, pytest.mark.story, pytest.mark.direct, pytest.mark.planted]

HOUR_SECONDS = 3600
SHORT = {"PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS": "2", "RECONSUP_RPC_TIMEOUT_SECONDS": "0.5"}
# Leases of two seconds that end neither soon nor lately, by the database's clock.
WATCH = """
CREATE TABLE app.strange_leases (owner text, ends interval);
CREATE FUNCTION app.watch_clock() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO app.strange_leases
  SELECT o, u - now() FROM to_jsonb(NEW) AS j, LATERAL (
    SELECT coalesce(j ->> 'reconcile_lease_owner', j ->> 'scan_lease_owner') AS o,
           coalesce(j ->> 'reconcile_lease_until', j ->> 'scan_lease_until')::timestamptz AS u) AS lease
  WHERE u > now() + interval '1 minute' OR u < now() - interval '1 minute';
  RETURN NEW;
END $$;
CREATE TRIGGER watch_clock BEFORE UPDATE ON app.payment_requests FOR EACH ROW EXECUTE FUNCTION app.watch_clock();
CREATE TRIGGER watch_clock BEFORE UPDATE ON app.chain_cursors FOR EACH ROW EXECUTE FUNCTION app.watch_clock();
"""
# Every other time that reconsup keeps. (reconsup_hosts.started_at is what a host says of itself.)
TIMES = """
SELECT max(abs(extract(epoch FROM t - now()))) FROM (
  SELECT updated_at FROM app.payment_requests UNION ALL SELECT last_seen_at FROM app.payment_request_settlements
  UNION ALL SELECT created_at FROM app.payment_request_transitions UNION ALL SELECT updated_at FROM app.chain_cursors
  UNION ALL SELECT last_seen_at FROM app.reconsup_hosts) AS times(t)"""


@pytest.mark.parametrize("seconds", [HOUR_SECONDS, pytest.param(-HOUR_SECONDS, marks=pytest.mark.long)])
def test_a_host_whose_clock_is_wrong_by_an_hour_works_beside_one_whose_clock_is_right(town: Town, seconds: int) -> None:
    """Neither takes the other's leases before their time, nothing expires, and all times are the database's.

    Seen to fail (leases that end in an hour) with the host's time in place of now() in the claim.
    """
    town.database.execute(WATCH)
    wrong = wall_clock_off_by(town.folder, seconds)
    common = {**SHORT, "PAYMENT_REQUEST_RECONCILER_BATCH_SIZE": "5"}
    url = town.database.direct_url
    with (
        Program(url, town.rpc_urls, folder=town.folder, worker_id="wrong", **common, **wrong) as one,
        Program(url, town.rpc_urls, folder=town.folder, worker_id="right", **common) as two,
        Stream(town) as stream,
    ):
        one.wait_ready()
        two.wait_ready()
        stream.wait_until_confirmed(10)
        with psycopg.connect(url) as blocker:
            # Whoever claims now waits at its view, which reads the history: there is something left for the other.
            blocker.execute("LOCK TABLE app.payment_request_transitions IN ACCESS EXCLUSIVE MODE")
            wait_for("both hold leases", lambda: hosts(town) == {"wrong", "right"})
            blocker.rollback()
        stream.wait_until_confirmed(5)
        ((furthest_seconds,),) = town.database.fetch(TIMES)
        assert furthest_seconds < 600
        settle(town, stream, one, two)
    assert town.database.fetch("SELECT * FROM app.strange_leases") == []
    assert off_seconds(one.events("supervisor_started")[0]) == pytest.approx(seconds, abs=600)  # it did see a wrong one
    assert off_seconds(two.events("supervisor_started")[0]) == pytest.approx(0, abs=600)


def hosts(town: Town) -> set[str]:
    """Who holds leases."""
    return {owner.rpartition("-")[0] for _, owner in town.leases()}


def off_seconds(line: dict[str, Any]) -> float:
    """How wrong the clock was that wrote a log line, about now."""
    return (datetime.fromisoformat(line["timestamp"]) - datetime.now(UTC)).total_seconds()
