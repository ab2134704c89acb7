"""The commands of the pages, run as written: in the order of their page, on a stage of real things.

What cannot be there (the service's folder, a network's name) is replaced by STAND_INS of tests/pages/listed.py.
`reconsup` is the program as RECONSUP_TEST_PROGRAM says, `psql` PostgreSQL's own.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconsup.demo.anvil import Anvil
from reconsup.store import embedded
from tests.pages import listed, pages
from tests.support import launcher
from tests.support.postgres import Database, insert_request
from tests.support.program import Program, free_port, wait_for

pytestmark = [pytest.mark.service, pytest.mark.story]

TYPED = {
    page: [
        each.text
        for each in pages.commands(page)
        if each.text in listed.ON_STAGE and not (each.is_inline and pages.program(each.text) in ("reconsup", "make"))
    ]
    for page in pages.names()
}
FIRST_READ = ("README.md", "packaging/INSTALL.md", "packaging/RUNBOOK.md")  # the others wait for make test-all


@dataclass
class Stage:
    """A folder with the service's files in it, a shell that finds the program, a supervisor that runs or will."""

    folder: Path
    environment: dict[str, str]
    port: int
    started: "subprocess.Popen[bytes] | None" = None
    pid: int | None = None

    def put_in(self, command: str) -> str:
        """The command with what stands in for what cannot be here."""
        for written, here in listed.STAND_INS.items():
            command = re.sub(rf"(?<![A-Z_]){re.escape(written)}(?![A-Z_])", here, command)
        for name, value in {
            "FOLDER": str(self.folder),
            "OWNER": f"{os.getuid()}:{os.getgid()}",
            "PORT": str(self.port),
            "PID": str(self.pid),
        }.items():
            command = re.sub(rf"\b{name}\b", value, command)
        return command

    def type(self, command: str) -> int:
        """Run it to its end, or until the supervisor that it starts is ready; the exit code."""
        words = self.put_in(command)
        if is_supervisor(command):
            self.started = subprocess.Popen(
                ["/bin/sh", "-ec", f"exec {words}"], env=self.environment, stderr=(self.folder / "log").open("wb")
            )
            self.pid = self.started.pid
            wait_for(f"{command}: ready", self.is_ready, 30)
            return 0
        done = subprocess.run(
            ["/bin/sh", "-ec", words], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        print(f"$ {command}\n{done.stdout}{done.stderr}")
        return done.returncode

    def is_ready(self) -> bool:
        assert self.started is None or self.started.poll() is None, (self.folder / "log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def end(self) -> int | None:
        """Stop the supervisor that a command started, as systemd does; its exit code."""
        if self.started is None:
            return None
        self.started.send_signal(signal.SIGTERM)
        return self.started.wait(30)


def is_supervisor(command: str) -> bool:
    words = shlex.split(command)
    return words[0] == "reconsup" and (len(words) == 1 or words[1].startswith("--") or words[1] == "run")


@pytest.fixture
def stage(database: Database, anvil: Anvil, tmp_path: Path) -> Stage:
    """The network was read by one who ran before, and its chain goes on."""
    urls, port = json.dumps({"local": anvil.url}), free_port()
    service = tmp_path / "etc" / "reconsup"
    service.mkdir(parents=True)
    (service / "reconsup.env").write_text(
        f"DATABASE_URL={database.url}\nPAYMENT_REQUEST_EVM_RPC_URLS_JSON='{urls}'\n"
        f"RECONSUP_METRICS_ADDRESS=127.0.0.1:{port}\nPAYMENT_REQUEST_RECONCILER_POLL_INTERVAL_SECONDS=0.2\n"
    )
    (service / "owner.env").write_text(f"DATABASE_URL={database.url}\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "reconsup").write_text(f'#!/bin/sh\nexec {shlex.join(launcher.chosen().words())} "$@"\n')
    (programs / "reconsup").chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RECONSUP_", "PAYMENT_"))},
        **launcher.chosen().variables,
        "PATH": os.pathsep.join([str(programs), str(embedded._binaries()), os.environ.get("PATH", os.defpath)]),
        "DATABASE_URL": database.url,
        "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": urls,
        "RECONSUP_METRICS_ADDRESS": f"127.0.0.1:{port}",
    }
    return Stage(tmp_path, environment, port)


@pytest.mark.parametrize(
    "page",
    [
        page if page in FIRST_READ else pytest.param(page, marks=pytest.mark.long)
        for page, typed in TYPED.items()
        if typed
    ],
)
def test_every_command_that_is_listed_for_the_stage_ends_as_it_should(
    page: str, stage: Stage, database: Database, anvil: Anvil
) -> None:
    """Where a page asks a supervisor and starts none, one runs. Seen to fail with an exit code that is not it."""
    typed = TYPED[page]
    with ExitStack() as stack:
        if any(re.search(r"\bPID\b|reconsup (status|chain)", each) for each in typed) and not any(
            map(is_supervisor, typed)
        ):
            flags = ["--metrics-address", f"127.0.0.1:{stage.port}"]
            runs = Program(database.url, {"local": anvil.url}, folder=stage.folder, workers=1, flags=flags)
            runs.port = stage.port
            stack.enter_context(runs).wait_ready()
            stage.pid = runs.process.pid
            wait_for("the network is read", lambda: database.fetch("SELECT 1 FROM app.chain_cursors"))
        ended = {}
        try:
            for command in typed:
                ended[command] = stage.type(command)
        finally:
            assert stage.end() in (None, 0)
    assert ended == {command: listed.ON_STAGE[command] for command in typed}


SQL = [
    pytest.param(block.text, id=f"{block.page}:{block.line}")
    for page in pages.names()
    for block in pages.blocks(page)
    if block.kind == "sql" and block.text.split("\n")[0] not in listed.BLOCKS.get(page, {})
]


@pytest.mark.parametrize("text", SQL)
def test_all_sql_of_the_pages_is_taken_by_the_database(text: str, database: Database) -> None:
    """Seen to fail with a column that does not exist."""
    with database.connect(autocommit=False) as connection:
        insert_request(connection, id="REQUEST")
        connection.execute(text.encode())
        connection.rollback()


def sql_of(page: str, beginning: str) -> str:
    """The one block of a page that has this in it."""
    (found,) = [block.text for block in pages.blocks(page) if block.kind == "sql" and beginning in block.text]
    return found


RUNBOOK = "packaging/RUNBOOK.md"
BY_HAND = "SET status = 'confirmed'"
SET_ASIDE = "reconcile_crashes = 0"
SETTLED = "SELECT 1 FROM app.payment_request_settlements"
LOOKED_AT = "SELECT 1 FROM app.payment_requests WHERE id = 'settled' AND next_reconcile_at IS NULL"
ADMITTED = "SELECT 1 FROM app.payment_requests WHERE id = 'aside' AND reconcile_admitted_height IS NOT NULL"
MAKE_DUE = "UPDATE app.payment_requests SET next"


def test_what_the_run_book_does_to_a_row_is_what_it_says(database: Database, anvil: Anvil, tmp_path: Path) -> None:
    """A row that was set aside is looked at again; one that was settled by hand stays so.

    Seen to fail without the first UPDATE (the one is never looked at), and without the second (the other one is
    confirmed by the payment, and that is told).
    """
    with database.connect() as connection:
        for id_ in ("aside", "settled"):
            insert_request(connection, id=id_, network="local", chain_id=31337, expected_amount_minor=10**18)
        connection.execute(
            "UPDATE app.payment_requests SET reconcile_error = 'set_aside', reconcile_crashes = 4,"
            " next_reconcile_at = NULL WHERE id = 'aside'"
        )
        connection.execute(sql_of(RUNBOOK, SET_ASIDE).replace("REQUEST", "aside").encode())
        connection.execute(sql_of(RUNBOOK, BY_HAND).replace("REQUEST", "settled").encode())
        connection.execute(sql_of(RUNBOOK, MAKE_DUE).replace("REQUEST", "settled").encode())
        addresses = dict(connection.execute("SELECT id, address_canonical FROM app.payment_requests").fetchall())
    sender = anvil.rpc("eth_accounts")[0]
    with Program(database.url, {"local": anvil.url}, folder=tmp_path, workers=1) as program:
        program.wait_ready()
        wait_for("the network is read", lambda: database.fetch("SELECT 1 FROM app.chain_cursors"))
        wait_for("the one is looked at", lambda: database.fetch(ADMITTED))
        for id_ in ("aside", "settled"):
            anvil.rpc("eth_sendTransaction", {"from": sender, "to": addresses[id_].lower(), "value": hex(10**18)})
        anvil.rpc("anvil_mine", "0x2")
        told = "SELECT payment_request_id, reason FROM app.payment_request_transitions ORDER BY 1"
        wait_for("both were paid", lambda: len(database.fetch(SETTLED)) == 2)
        wait_for("the one is told", lambda: database.fetch(told))
        wait_for("the other was looked at", lambda: database.fetch(LOOKED_AT))
        assert database.fetch(told) == [("aside", "payment_confirmed")]
        assert program.stop() == 0
    assert database.fetch("SELECT id, status, reconcile_error FROM app.payment_requests ORDER BY 1") == [
        ("aside", "confirmed", None),
        ("settled", "confirmed", None),
    ]


def test_a_select_is_only_one() -> None:
    """Whoever copies the first queries changes nothing."""
    text = sql_of(RUNBOOK, "the rows that cannot be processed")

    assert not re.search(r"\b(UPDATE|INSERT|DELETE|DROP|ALTER|TRUNCATE)\b", text)
