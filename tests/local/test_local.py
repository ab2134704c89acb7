"""make local-up-all, local-receive-test and local-down, as they are typed: real processes that outlive each command."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.local.parts import ROOT
from tests.local.place import Place
from tests.support.postgres import insert_request
from tests.support.program import wait_for

# direct: the supervisors speak to the PostgreSQL that they were started with
pytestmark = [pytest.mark.service, pytest.mark.story, pytest.mark.direct]


@dataclass
class Local:
    """One folder, and the commands."""

    folder: Path

    def run(self, *arguments: str, code: int = 0, **knobs: str) -> str:
        """Type a command: what it says, on both channels; `code` is the exit code that it must have."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.local", *arguments, "--folder", str(self.folder)],
            env={**os.environ, "LOCAL_METRICS_PORT": "0", **knobs},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def pids(self) -> dict[str, int]:
        """Who runs."""
        place = Place(self.folder)
        parts = [place.database, place.chain, *place.supervisors()]
        return {part.name: part.pid for part in parts if part.pid is not None}

    def kill(self, name: str) -> None:
        """As the kernel does when memory is short; return when it is gone."""
        part = Place(self.folder).supervisor(name)
        assert part.signal(signal.SIGKILL)
        assert part.has_gone(10)

    def processes(self) -> list[int]:
        """Every process that names the folder: also those of which no record is left."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if str(self.folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    """Whatever became of the test, nothing of it runs on."""
    here = Local(tmp_path / "local")
    yield here
    here.run("down")
    assert here.processes() == []


def confirmed(said: str) -> dict[str, int]:
    """Worker → requests, from the table."""
    return {worker: int(count) for worker, count in re.findall(r"^(local-\d+-\d+) +(\d+)$", said, re.MULTILINE)}


def test_two_supervisors_confirm_each_payment_once_also_while_one_is_killed_and_drain_without_a_lease(
    local: Local,
) -> None:
    """Seen to fail without the hold: the workers of one supervisor did it all (24 and 24 of 48)."""
    said = local.run("up")
    first = local.pids()
    assert sorted(first) == ["chain", "database", "local-0", "local-1"]
    assert all(f" {first[name]} " in said for name in ("local-0", "local-1")), said
    assert "2 supervisors × 2 workers" in said

    assert "it is up already, with these knobs: nothing was changed" in local.run("up")
    assert local.pids() == first

    said = local.run("receive-test")
    assert set(confirmed(said)) == {"local-0-0", "local-0-1", "local-1-0", "local-1-1"}, said
    assert sum(confirmed(said).values()) == 48
    assert re.search(r"^ETH +24 +(\S+ ETH) +\1 +24 of 24$", said, re.MULTILINE), said
    assert re.search(r"^USDT +24 +(\S+ USDT) +\1 +24 of 24$", said, re.MULTILINE), said

    said = local.run("receive-test", "--kill", "local-1")
    assert "local-1 was killed (SIGKILL)" in said
    assert said.count("24 of 24") == 2, said

    said = local.run("up", SERVICE_RECONCILER_REPLICAS="3")
    assert "local-1: it had died" in said
    again = local.pids()
    assert sorted(again) == ["chain", "database", "local-0", "local-1", "local-2"]
    assert [again[name] == first[name] for name in ("database", "chain", "local-0", "local-1")] == [True] * 3 + [False]

    said = local.run("down")
    assert said.count("exit 0") == 3, said
    assert "no lease is left" in said
    assert local.processes() == []
    assert local.run("down") == "nothing is up\n"


@pytest.mark.long
def test_what_died_is_started_again_and_what_cannot_be_is_a_sentence(local: Local) -> None:
    # what a killed worker held while the database was away is freed by its lease's end alone
    knobs = {"SERVICE_RECONCILER_REPLICAS": "1", "SERVICE_RECONCILER_LEASE_SECONDS": "6"}
    local.run("up", **knobs)
    before = local.pids()

    # as after a power cut: nothing that the records name is ours any more
    local.kill("local-0")
    local.kill("database")
    local.kill("chain")
    said = local.run("receive-test", code=1)
    assert all(f"{name} has died" in said for name in ("local-0", "database", "chain")), said
    assert "PostgreSQL does not run: whether a lease is left could not be seen" in local.run("down", code=1)
    assert local.run("down") == "nothing is up\n"

    said = local.run("up", **knobs)
    assert "the chain is a new one: the rows of the last one are dropped" in said
    assert not set(before.values()) & set(local.pids().values())
    assert sum(confirmed(local.run("receive-test")).values()) == 24

    # the database alone: what works on it moves to the new port
    local.kill("database")
    said = local.run("up", **knobs)
    assert "the database had died: starting it again" in said
    assert "local-0: drained in" in said
    assert "rows of the last one" not in said
    assert sum(confirmed(local.run("receive-test")).values()) == 24

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        said = local.run("up", code=1, **{**knobs, "LOCAL_METRICS_PORT": port})
    assert f"port {port} of 127.0.0.1 is taken, and local-0 is to listen there" in said
    assert "choose another one with LOCAL_METRICS_PORT" in said


@pytest.mark.long
def test_with_endpoints_that_are_given_there_is_no_anvil_and_the_receive_test_says_why_it_cannot_pay(
    local: Local,
) -> None:
    given = {"SERVICE_EVM_RPC_URLS_JSON": json.dumps({"mainnet": "http://127.0.0.1:9/a-key"})}

    local.run("up", SERVICE_RECONCILER_REPLICAS="1", SERVICE_RECONCILER_WORKERS="1", **given)
    assert sorted(local.pids()) == ["database", "local-0"]
    said = local.run("receive-test", code=1)
    assert "nobody here has money on their chains" in said
    assert "a-key" not in said

    said = local.run("up", SERVICE_RECONCILER_ENABLED="false")
    assert "no supervisor: SERVICE_RECONCILER_ENABLED is false" in said
    assert sorted(local.pids()) == ["chain", "database"]
    assert "no supervisor is up that could confirm" in local.run("receive-test", code=1)

    plan = Place(local.folder).plan()
    assert plan is not None
    with psycopg.connect(plan.database_url) as connection:
        insert_request(connection, id="left", reconcile_lease_owner="local-9-0#1")
    said = local.run("down", code=1, LOCAL_KEEP_DATA="0")
    assert "a lease is left: request left, held by local-9-0#1" in said
    assert "no lease is left" not in said
    assert local.processes() == []
    assert not local.folder.exists()


@pytest.mark.long
@pytest.mark.parametrize("seen", ["database.json", "chain-facts.json", "plan", "local-0.json"])
def test_a_start_that_was_killed_half_way_is_finished_by_the_next(local: Local, seen: str) -> None:
    command = [sys.executable, "-m", "tests.local", "up", "--folder", str(local.folder)]
    knobs = {"LOCAL_METRICS_PORT": "0", "SERVICE_RECONCILER_REPLICAS": "1", "SERVICE_RECONCILER_WORKERS": "1"}
    with subprocess.Popen(command, env={**os.environ, **knobs}, cwd=ROOT, stdout=subprocess.DEVNULL) as half:
        wait_for(seen, lambda: (local.folder / seen).exists())
        half.kill()

    local.run("up", **knobs)

    first = local.pids()
    assert sorted(first) == ["chain", "database", "local-0"]
    local.run("down")
    assert local.processes() == []  # nobody was started twice and forgotten


@pytest.mark.long
def test_a_chain_that_cannot_be_started_is_a_sentence(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = local.folder.with_name("bin")
    broken.mkdir()
    (broken / "anvil").write_text("#!/bin/sh\necho out of gas >&2\nexit 3\n")
    (broken / "anvil").chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken}:{os.environ['PATH']}")

    assert "the chain did not start: anvil ended at its start: out of gas" in local.run("up", code=1)
