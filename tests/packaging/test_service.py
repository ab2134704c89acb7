"""`make service-up` and `make service-down` on a machine without an engine, and beside a stand-in for one."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which

import pytest

from tests.packaging import compose
from tests.packaging.compose import FOLDER
from tests.packaging.image import ROOT
from tests.support.program import free_port

# Answers as an engine with compose does, for two replicas of which the first is not ready at once; notes each question.
STAND_IN = """#!{python}
import json, os, sys
words, folder = sys.argv[1:], {folder!r}
with open(folder + "/asked", "a") as file:
    file.write(json.dumps(words) + "\\n")
asked = open(folder + "/asked").read()
if words[0] == "info":
    sys.exit({info})
if words[:2] == ["compose", "version"]:
    sys.exit({compose})
if words[0] == "compose" and {broken!r} in words:
    sys.exit(17)
if "ps" in words:
    print("aaaaaaaaaaaaaaaa\\nbbbbbbbbbbbbbbbb")
if words[0] == "exec" and asked.count('"exec"') == 1:
    sys.exit("reconsup: not ready: no worker is ready")
if words[0] == "port":
    print("127.0.0.1:3200" + str("ab".index(words[1][0])))
"""


@pytest.fixture
def pages() -> Iterator[int]:
    """What Grafana and Prometheus answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


class Machine:
    """One with what a Makefile takes for granted, and what is put there."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("make", "sh", "nproc", "find", "uname", "cat", "sed", "awk", "ls", "dirname"):
            (self.bin / name).symlink_to(str(which(name)))

    def has(self, name: str, *, info: int = 0, compose: int = 0, broken: str = "nothing") -> None:
        program = self.bin / name
        program.write_text(
            STAND_IN.format(python=sys.executable, folder=str(self.bin), info=info, compose=compose, broken=broken)
        )
        program.chmod(0o755)

    def make(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.bin / "make", "--no-print-directory", f"PYTHON={sys.executable}", *words],
            cwd=ROOT,
            env={"PATH": str(self.bin)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def asked(self) -> list[list[str]]:
        file = self.bin / "asked"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def composed(self) -> list[list[str]]:
        """What compose was asked for, without what says which project."""
        return [words[5:] for words in self.asked() if words[0] == "compose" and words[1] != "version"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("target", ["service-up", "service-down"])
def test_without_an_engine_one_sentence_says_what_to_do(machine: Machine, target: str) -> None:
    done = machine.make(target)
    sentence, of_make = done.stderr.splitlines()
    assert done.returncode != 0
    assert done.stdout == ""
    assert sentence == (
        "no container engine is here: install Docker or Podman, with compose (`make local-up-all` needs none)"
    )
    assert "Error 69" in of_make


def test_an_engine_that_does_not_answer_or_has_no_compose_is_told_apart(machine: Machine) -> None:
    machine.has("docker", info=1)
    assert machine.make("service-up").stderr.startswith("docker is here but does not answer: start it")
    machine.has("docker", compose=1)
    assert machine.make("service-up").stderr.startswith("docker has no compose: install")
    machine.has("podman", info=1)
    said = machine.make("service-up").stderr
    assert said.startswith("docker has no compose")
    assert "; podman is here but does not answer" in said
    assert machine.composed() == []


@pytest.mark.parametrize(
    ("knob", "said"),
    [
        ("SERVICE_RECONCILER_REPLICAS=0", "SERVICE_RECONCILER_REPLICAS=0: 1 to 64 containers"),
        ("SERVICE_RECONCILER_REPLICAS=two", "SERVICE_RECONCILER_REPLICAS=two: 1 to 64 containers"),
        ("SERVICE_RECONCILER_LEASE_SECONDS=1", "SERVICE_RECONCILER_LEASE_SECONDS=1: seconds, 15 to 3600"),
        ("SERVICE_EVM_RPC_URLS_JSON=https://key@x", "SERVICE_EVM_RPC_URLS_JSON: {"),
        ("SERVICE_DATABASE_PASSWORD=a/b", "SERVICE_DATABASE_PASSWORD: letters, digits"),
    ],
)
def test_a_wrong_knob_is_one_sentence_before_anything_is_done(machine: Machine, knob: str, said: str) -> None:
    """Also where there is no engine; what may hold a key is not shown."""
    machine.has("docker")
    done = machine.make("service-up", knob)
    assert done.stderr.startswith(said)
    assert "Error 78" in done.stderr.splitlines()[1]
    assert "key" not in done.stderr
    assert machine.asked() == []


def test_two_replicas_with_one_command(machine: Machine, pages: int) -> None:
    """It ends when all are ready, and says where to look. Seen to fail without the wait for each replica."""
    machine.has("docker")
    done = machine.make(
        "service-up",
        "SERVICE_RECONCILER_REPLICAS=2",
        "SERVICE_RECONCILER_WORKERS=4",
        f"SERVICE_GRAFANA_PORT={pages}",
        f"SERVICE_PROMETHEUS_PORT={pages}",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"Grafana      http://127.0.0.1:{pages}",
        f"Prometheus   http://127.0.0.1:{pages}",
        "metrics      http://127.0.0.1:32000/metrics",
        "metrics      http://127.0.0.1:32001/metrics",
    ]
    build, up, ps = machine.composed()
    assert build == ["build", "migrate"]
    assert up[:2] == ["up", "--detach"]
    assert up[-2:] == ["--scale", "reconsup=2"]
    assert ps == ["ps", "--quiet", "reconsup"]
    asked = [words[1][0] for words in machine.asked() if words[0] == "exec"]
    assert asked == ["a", "a", "b"], "the first was not ready at once"


def test_switched_off_all_but_reconsup_runs(machine: Machine, pages: int) -> None:
    machine.has("docker")
    ports = (f"SERVICE_GRAFANA_PORT={pages}", f"SERVICE_PROMETHEUS_PORT={pages}")
    done = machine.make("service-up", "SERVICE_RECONCILER_ENABLED=false", "SERVICE_RECONCILER_REPLICAS=2", *ports)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "reconsup     not started: SERVICE_RECONCILER_ENABLED=false"
    assert machine.composed()[-1][-1] == "reconsup=0"
    assert not [words for words in machine.asked() if words[0] == "exec"]


def test_what_compose_cannot_do_is_not_waited_for(machine: Machine) -> None:
    machine.has("docker", broken="build")
    done = machine.make("service-up")
    assert done.returncode != 0
    assert "build migrate` failed: what it says is above" in done.stderr
    assert machine.composed() == [["build", "migrate"]]


def test_down_keeps_the_data_unless_it_is_told_otherwise(machine: Machine) -> None:
    """Seen to fail with --volumes always."""
    machine.has("docker")
    kept = machine.make("service-down")
    removed = machine.make("service-down", "SERVICE_KEEP_DATA=0")
    assert "SERVICE_KEEP_DATA=0` removes it" in kept.stdout
    assert removed.stdout == "The data is removed.\n"
    assert machine.composed() == [["down", "--remove-orphans"], ["down", "--remove-orphans", "--volumes"]]


def test_a_page_that_never_answers_ends_the_wait() -> None:
    script = compose.script()
    with pytest.raises(script.Refused, match="Grafana is not ready"):
        script.wait_for_page("Grafana", f"http://127.0.0.1:{free_port()}/", script.time.monotonic() + 0.1)


def test_nothing_but_pythons_own_library_is_needed() -> None:
    """It runs before anything is installed."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", FOLDER / "service.py", "sideways"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (64, "say `up` or `down`\n")
