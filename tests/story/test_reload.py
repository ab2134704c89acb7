"""HUP with the real program: the `--env-file` is read again, all or nothing; TTIN and TTOU."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.story.conftest import Town
from tests.support.program import Program, wait_for

pytestmark = [pytest.mark.service, pytest.mark.story]

HUP = signal.SIGHUP
SAID = """
CREATE TABLE said (state text);
CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO said VALUES (NEW.status->>'state'); RETURN NEW; END $$;
CREATE TRIGGER say BEFORE INSERT OR UPDATE ON app.reconsup_hosts FOR EACH ROW EXECUTE FUNCTION say();
"""
BATCH = "PAYMENT_REQUEST_RECONCILER_BATCH_SIZE"


def program_with(town: Town, env_file: Path, workers: int = 2, **environment: str) -> Program:
    return Program(
        town.database.url,
        town.rpc_urls,
        folder=town.folder,
        workers=workers,
        flags=["--env-file", str(env_file)],
        **environment,
    )


def pids(program: Program) -> dict[int, int]:
    """Slot → pid; none while the monitor is being replaced."""
    with suppress(OSError):
        return program.pids()
    return {}


def said(town: Town) -> set[str]:
    """The states that the host's row has been in since there were workers."""
    return {state for (state,) in town.database.fetch("SELECT DISTINCT state FROM said WHERE state <> 'probing'")}


def until(program: Program, event: str, count: int = 1) -> list[dict[str, Any]]:
    return wait_for(f"{count} × {event}", lambda: len(all_ := program.events(event)) >= count and all_)


def test_new_settings_reach_every_worker_and_no_payment_waits_for_it(town: Town) -> None:
    """Seen to fail, at what the host's row says, when a monitor that is replaced says that the host has stopped."""
    env_file = town.folder / "reconsup.env"
    env_file.write_text("RECONSUP_DRAIN_SECONDS=20\n")
    town.database.execute(SAID)
    with program_with(town, env_file) as program:
        program.wait_ready()
        before = program.pids()
        ids = town.requests(6)
        env_file.write_text("RECONSUP_DRAIN_SECONDS=20\nRECONSUP_LOG_FORMAT=text\n")
        program.process.send_signal(HUP)
        town.pay(ids)
        until(program, "reload_done")
        wait_for("all are confirmed", lambda: town.statuses().get("confirmed") == 6)
        after = wait_for("all are there, without the spare one", lambda: set(now := pids(program)) == {0, 1} and now)

        assert not set(before.values()) & set(after.values())
        assert program.get("/readyz")[0] == 200
        assert "worker_started" in program.log.read_text()
        assert program.metric("reconsup_worker_restarts_total", cause="reload") == 3, "two seats, and the spare one"
        assert said(town) == {"running"}, "its monitor was replaced, the host did not stop"
        assert program.stop() == 0
    assert "stopped" in said(town)
    assert town.leases() == []


def test_a_bad_new_setting_changes_nothing_and_says_so(town: Town) -> None:
    env_file = town.folder / "reconsup.env"
    env_file.write_text("RECONSUP_DRAIN_SECONDS=20\n")
    with program_with(town, env_file) as program:
        program.wait_ready()
        before = program.pids()
        for text, code in (
            (f"{BATCH}=0\nRECONSUP_DRAIN_SECONDS=-1\n", "CONFIG_RECONCILER_BATCH_SIZE_INVALID"),
            ("DATABASE_URL=embedded:/nowhere\n", "CONFIG_NEEDS_RESTART: DATABASE_URL"),
            ("what is this\n", "CONFIG_ENV_FILE_INVALID"),
        ):
            env_file.write_text(text)
            program.process.send_signal(HUP)
            wait_for(code, lambda code=code: any(code in e["error"] for e in program.events("reload_refused")))
        env_file.unlink()
        program.process.send_signal(HUP)
        until(program, "reload_refused", 5)
        os.mkfifo(env_file)  # which nobody writes to
        program.process.send_signal(HUP)
        until(program, "reload_refused", 6)

        assert program.pids() == before
        assert program.get("/readyz")[0] == 200
        assert [each for each in program.events("process_forked") if each["generation"]] == []


def test_a_database_that_cannot_be_reached_with_the_new_settings_keeps_the_old_ones(town: Town) -> None:
    env_file = town.folder / "reconsup.env"
    env_file.write_text("")
    with program_with(town, env_file, RECONSUP_BOOT_SECONDS="4") as program:
        program.wait_ready()
        before = program.pids()
        env_file.write_text("DATABASE_URL=postgresql://nobody@127.0.0.1:1/nothing\n")
        # the flag would win over the file: this program has none for it
        program.process.send_signal(HUP)
        (failed,) = until(program, "reload_failed")

        assert failed["cause"] in ("dependency", "boot")
        assert program.pids() == before
        ids = town.requests(2)
        town.pay(ids)
        wait_for("all are confirmed", lambda: town.statuses().get("confirmed") == 2)


def test_ttin_and_ttou_change_the_number_and_hup_brings_it_back(town: Town) -> None:
    env_file = town.folder / "reconsup.env"
    env_file.write_text("RECONSUP_DRAIN_SECONDS=20\n")
    with program_with(town, env_file, workers=1) as program:
        program.wait_ready()
        program.process.send_signal(signal.SIGTTIN)
        wait_for("two workers", lambda: len(pids(program)) == 2)
        program.process.send_signal(signal.SIGTTOU)
        wait_for("one worker", lambda: len(pids(program)) == 1)
        program.process.send_signal(signal.SIGTTIN)
        wait_for("two workers", lambda: len(pids(program)) == 2)
        program.process.send_signal(HUP)
        until(program, "reload_done")
        wait_for("one worker, as set", lambda: list(pids(program)) == [0])
        assert program.status()["supervisor"]["state"] == "running"
