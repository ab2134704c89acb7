"""What an operator gets to read when something is wrong: one sentence, the right exit code, never a traceback."""

import os
import subprocess

import psycopg
import pytest

from reconsup.demo.anvil import Anvil
from tests.story.conftest import Town
from tests.support import launcher
from tests.support.postgres import Database
from tests.support.program import Program, free_port, wait_for

pytestmark = [pytest.mark.service, pytest.mark.story]


def reconsup(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One command, to its end."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RECONSUP", "PAYMENT"))}
    done = launcher.chosen().run(*arguments, environment={**inherited, **environment})
    assert "Traceback" not in done.stderr + done.stdout
    return done


def test_no_database_url() -> None:
    done = reconsup("run", "--workers", "1")
    assert done.returncode == 78
    assert "CONFIG_DATABASE_URL_MISSING" in done.stderr


def test_every_wrong_setting_is_told_at_once_and_no_secret_with_it() -> None:
    done = reconsup(
        "run",
        DATABASE_URL="mysql://me:hunter2@db/x",
        RECONSUP_WORKERS="many",
        PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS="1",
        PAYMENT_REQUEST_EVM_RPC_URLS_JSON='{"mainnet": "ftp://key-4711@node"}',
    )
    assert done.returncode == 78
    for code in ("DATABASE_URL", "RECONSUP_WORKERS", "RECONCILER_LEASE_SECONDS", "EVM_RPC_URLS_JSON"):
        assert f"CONFIG_{code}_INVALID" in done.stderr
    assert "hunter2" not in done.stderr
    assert "key-4711" not in done.stderr


def test_usage_is_64() -> None:
    assert reconsup("run", "--wrokers", "4").returncode == 64
    assert reconsup("fly").returncode == 64


def test_switched_off() -> None:
    done = reconsup("run", DATABASE_URL="postgresql://h/x", PAYMENT_REQUEST_RECONCILER_ENABLED="false")
    assert done.returncode == 78
    assert "CONFIG_RECONCILER_DISABLED" in done.stderr


def test_database_down_at_start_is_69_after_the_start_time() -> None:
    url = f"postgresql://me:hunter2@127.0.0.1:{free_port()}/x"
    done = reconsup("run", "--workers", "1", DATABASE_URL=url, RECONSUP_START_SECONDS="1", RECONSUP_METRICS_ADDRESS="")
    assert done.returncode == 69
    assert "did not answer within 1 s" in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.direct
def test_wrong_password_is_told_at_once(database: Database) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(database.url)
    url = f"postgresql://{parts['user']}:wrong-one@{parts['host']}:{parts['port']}/{parts['dbname']}"
    done = reconsup("run", "--workers", "1", DATABASE_URL=url, RECONSUP_START_SECONDS="1", RECONSUP_METRICS_ADDRESS="")
    assert done.returncode == 69
    assert "password authentication failed" in done.stderr
    assert "wrong-one" not in done.stderr


def test_schema_behind_says_which_command_to_run(empty_database: Database) -> None:
    done = reconsup("run", "--workers", "1", DATABASE_URL=empty_database.url, RECONSUP_METRICS_ADDRESS="")
    assert done.returncode == 69
    assert "run `reconsup migrate`" in done.stderr
    tables = empty_database.fetch("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'app'")
    assert tables == [(0,)], "it never migrates unasked"


def test_an_endpoint_that_is_away_at_start_stops_nothing(town: Town) -> None:
    port = free_port()
    ids = town.requests(2)
    urls = {"local": f"http://127.0.0.1:{port}"}
    with Program(town.database.url, urls, folder=town.folder) as program:
        program.wait_ready()
        wait_for("it is told", lambda: program.events("scan_failed"))
        assert town.statuses() == {"pending": 2}
        assert program.stop() == 0
    assert "Traceback" not in program.log.read_text()
    assert len(ids) == 2


def test_an_endpoint_of_another_chain_is_not_served_and_no_row_is_written(town: Town) -> None:
    ids = town.requests(2)
    with Program(town.database.url, town.rpc_urls, folder=town.folder) as program:
        program.wait_ready()
        town.mine(1)
        wait_for("the cursor is born", lambda: town.database.fetch("SELECT 1 FROM app.chain_cursors"))
        program.stop()
    with (
        Anvil(block_seconds=0, chain_id=4242) as stranger,
        Program(town.database.url, {"local": stranger.url}, folder=town.folder, worker_id="wrong") as program,
    ):
        program.wait_ready()
        town.pay(ids)
        (line, *_) = wait_for("it is told", lambda: program.events("wrong_chain"))
        assert (line["chain_id"], line["expected_chain_id"]) == (4242, 31337)
        assert town.statuses() == {"pending": 2}
        program.stop()
    with Program(town.database.url, town.rpc_urls, folder=town.folder, worker_id="right"):
        wait_for("put right, they are confirmed", lambda: town.statuses() == {"confirmed": 2})


def test_rows_that_cannot_be_decided_are_shown_and_the_others_go_on(town: Town) -> None:
    town.database.execute("ALTER TABLE app.payment_requests DROP CONSTRAINT IF EXISTS payment_requests_token_check")
    (good,) = town.requests(1)
    (any_amount,) = town.requests(1, expected_amount_minor=None)
    (huge,) = town.requests(1, expected_amount_minor=2**256 - 1)
    (stranger,) = town.requests(1, chain_id=5)
    with Program(town.database.url, town.rpc_urls, folder=town.folder) as program:
        program.wait_ready()
        town.pay([good, stranger])
        town.database.execute("UPDATE app.payment_requests SET expected_amount_minor = 7 WHERE id = %s", [any_amount])
        town.pay([any_amount])
        town.database.execute(
            "UPDATE app.payment_requests SET expected_amount_minor = NULL WHERE id = %s", [any_amount]
        )
        wait_for("the good ones are confirmed", lambda: town.statuses().get("confirmed") == 2)
        wait_for("the bad one is counted", lambda: program.metric("reconsup_row_errors") >= 1)
        rows = dict(town.database.fetch("SELECT id, reconcile_error FROM app.payment_requests"))
        assert rows == {good: None, any_amount: None, huge: None, stranger: "chain_id_mismatch"}
        assert program.stop() == 0
    assert "Traceback" not in program.log.read_text()


def test_check_says_everything_in_lines_and_exits_with_the_code_of_run(town: Town) -> None:
    town.mine(1)
    urls = f'{{"local": "{town.anvil.url}"}}'
    good = reconsup("check", DATABASE_URL=town.database.url, PAYMENT_REQUEST_EVM_RPC_URLS_JSON=urls)
    assert good.returncode == 0, good.stdout
    assert "ok    endpoint local" in good.stdout
    assert "ok    balance audit local: " in good.stdout
    assert ": 5000 balances a call by state override, balances proven, traces blocks" in good.stdout
    assert ", its blocks are proven" in good.stdout
    off = reconsup(
        "check",
        DATABASE_URL=town.database.url,
        PAYMENT_REQUEST_EVM_RPC_URLS_JSON=urls,
        RECONSUP_BALANCE_AUDIT_JSON='{"local": false}',
    )
    assert "note  network local: the balance audit is off" in off.stdout
    away = f'{{"local": "http://127.0.0.1:{free_port()}/v2/key-4711"}}'
    endpoint = reconsup("check", DATABASE_URL=town.database.url, PAYMENT_REQUEST_EVM_RPC_URLS_JSON=away)
    assert endpoint.returncode == 76
    assert "FAIL  endpoint local" in endpoint.stdout
    assert "key-4711" not in endpoint.stdout + endpoint.stderr
    database = reconsup("check", DATABASE_URL=f"postgresql://me:hunter2@127.0.0.1:{free_port()}/x")
    assert database.returncode == 69
    assert "hunter2" not in database.stdout
