"""`reconsup status` beside the real program: what it shows is what is so, for this host and for all."""

import json
import os
import signal

import pytest

from reconsup.store.privileges import WRITTEN_COLUMNS
from tests.story.conftest import Town
from tests.story.test_bad_input import reconsup
from tests.support.program import Program, free_port, wait_for
from tests.support.role import a_role
from tests.support.terminal import LEAVE, Terminal

pytestmark = [pytest.mark.service, pytest.mark.story]


def test_status_shows_this_host_and_all_and_says_when_one_is_gone(town: Town) -> None:
    town.requests(4)
    with Program(town.database.url, town.rpc_urls, folder=town.folder, worker_id="pay-1") as program:
        program.wait_ready()
        here = ("--metrics-address", f"127.0.0.1:{program.port}")
        victim = wait_for("the second one is there too", lambda: program.pids().get(1))
        os.kill(victim, signal.SIGKILL)
        wait_for("it is replaced", lambda: program.pids().get(1, victim) != victim)

        told = json.loads(reconsup("status", "--json", *here).stdout)
        assert told.keys() == program.status().keys()
        pid = program.status()["supervisor"]["pid"]  # as it knows itself: in a namespace of its own it is 1
        assert (told["supervisor"]["pid"], told["supervisor"]["base"]) == (pid, "pay-1")
        assert told["workers"][1]["causes"] == {"signal": 1}
        assert told["networks"]["local"]["disagrees"] is False

        shown = reconsup("status", *here)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.startswith(f"pay-1  running  2 of 2 workers ready  pid {pid}  up ")
        assert "1 signal" in shown.stdout
        assert "! " not in shown.stdout
        ready = reconsup("status", "--ready", "--metrics-address", f"0.0.0.0:{program.port}")
        assert (ready.returncode, ready.stdout, ready.stderr) == (0, "ready: pay-1, 2 of 2 workers\n", "")
        wait_for("its row says the same", lambda: everyone(town)["hosts"][0]["restarts"] == 1)
        (host,) = everyone(town)["hosts"]
        assert (host["base"], host["state"], host["workers_ready"], host["gone"]) == ("pay-1", "running", 2, False)
        assert host["scans"] == ["local"]

        with Terminal("status", "--watch", *here) as terminal:
            terminal.wait_for("2 of 2 workers ready")
            assert program.stop() == 0
            terminal.wait_for("no reconsup answers at")
            terminal.wait_for("ago it was so:")
            terminal.type("\x03")
            assert terminal.end() == 0
            assert terminal.written.endswith(LEAVE)
    (host,) = everyone(town)["hosts"]
    assert (host["state"], host["gone"]) == ("stopped", True), "it was told to; it is not lost"
    assert "stopped" in reconsup("status", "--all", DATABASE_URL=town.database.url).stdout
    gone = reconsup("status", *here)
    assert (gone.returncode, gone.stdout) == (69, "")
    assert "no reconsup answers at" in gone.stderr


def everyone(town: Town) -> dict[str, list[dict[str, object]]]:
    done = reconsup("status", "--all", "--json", DATABASE_URL=town.database.url)
    assert (done.returncode, done.stderr) == (0, "")
    told: dict[str, list[dict[str, object]]] = json.loads(done.stdout)
    return told


def test_where_there_is_nothing_to_show_one_sentence_says_why(tmp_path: "os.PathLike[str]") -> None:
    port = free_port()
    file = os.path.join(tmp_path, "env")
    with open(file, "w") as out:
        out.write("RECONSUP_METRICS_ADDRESS=\n")
    for code, word, arguments, environment in (
        (69, "--all", ("--env-file", file), {}),
        (69, "--all", ("--metrics-address", ""), {}),
        (78, "CONFIG_RECONSUP_METRICS_ADDRESS_INVALID", ("--metrics-address", "here"), {}),
        (78, "CONFIG_RECONSUP_METRICS_ADDRESS_INVALID", (), {"RECONSUP_METRICS_ADDRESS": "here"}),
        (78, "CONFIG_DATABASE_URL_MISSING", ("--all",), {}),
        (
            69,
            "the database cannot be asked",
            ("--all",),
            {"DATABASE_URL": f"postgresql://me:hunter2@127.0.0.1:{port}/x"},
        ),
        (69, "without --all", ("--all",), {"DATABASE_URL": "embedded:here"}),
        (64, "--everything", ("--everything",), {}),
    ):
        done = reconsup("status", *arguments, **environment)
        assert (done.returncode, done.stdout) == (code, ""), (arguments, done)
        assert word in done.stderr
        assert "hunter2" not in done.stderr
        assert code == 64 or done.stderr.count("\n") == 1


def test_a_role_with_what_check_asks_for_can_do_all_the_work(town: Town) -> None:
    """Paid and taken back, under a role that owns nothing and may write nothing of the service's but our columns.

    Seen to fail without the column `status`, and without INSERT on the history.
    """
    ids = town.requests(6)
    with a_role(town.database) as role:
        role.may_work()
        town.database.execute(f'REVOKE UPDATE ON app.payment_requests FROM "{role.name}"')
        columns = ", ".join(WRITTEN_COLUMNS)
        town.database.execute(f'GRANT UPDATE ({columns}) ON app.payment_requests TO "{role.name}"')
        with Program(role.url, town.rpc_urls, folder=town.folder) as program:
            program.wait_ready()
            before = town.anvil.rpc("evm_snapshot")
            town.pay(ids)
            wait_for("all are confirmed", lambda: town.statuses() == {"confirmed": 6})
            town.anvil.rpc("evm_revert", before)
            town.mine(12)
            wait_for("all are taken back", lambda: town.statuses() == {"reorged": 6}, 30)
            assert program.stop() == 0
        assert "permission denied" not in program.log.read_text()
