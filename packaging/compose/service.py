"""`make service-up` and `make service-down`: the containers of compose.yaml, from the knobs to the addresses.

`python service.py up`: judges the SERVICE_… variables, builds the image, starts everything, waits until each part says
that it is ready, and prints where to look. `python service.py down`: stops it; the data stays unless
SERVICE_KEEP_DATA=0. Nothing but Python's own library, for it runs before anything is installed. What is wrong is one
sentence; exit code 69 for a machine that lacks something, 78 for a knob, 1 for containers that do not get ready.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("compose.yaml")
PROJECT = "reconsup"
ANSWER_SECONDS = 20
READY_SECONDS = 180
EXIT_UNREADY, EXIT_UNAVAILABLE, EXIT_CONFIG = 1, 69, 78
REPLICAS_MAX = 64
LEASE_SECONDS_MIN = 15  # three times reconsup's default time-out for an endpoint
WITHOUT = "`make local-up-all` needs none"


class Refused(Exception):
    """One sentence for the person at the terminal, and the exit code."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class Knob:
    """A variable, and what it may say."""

    name: str
    rule: str
    allows: Callable[[str], bool]


def main(arguments: Sequence[str]) -> int:
    """Do one of both; the exit code."""
    try:
        if list(arguments) == ["up"]:
            up(os.environ)
        elif list(arguments) == ["down"]:
            down(os.environ)
        else:
            raise Refused(64, "say `up` or `down`")
    except Refused as refused:
        print(refused, file=sys.stderr)
        return refused.code
    except KeyboardInterrupt:
        return 130
    return 0


def up(environment: Mapping[str, str]) -> None:
    """Start everything and wait until it is ready."""
    judge(environment)
    is_enabled = environment.get("SERVICE_RECONCILER_ENABLED", "").lower() != "false"
    replicas = int(environment.get("SERVICE_RECONCILER_REPLICAS") or 1) if is_enabled else 0
    engine = find_engine(environment)
    engine.compose("build", "migrate")  # reconsup is the same image
    engine.compose("up", "--detach", "--no-build", "--remove-orphans", "--scale", f"reconsup={replicas}")
    deadline = time.monotonic() + READY_SECONDS
    containers = engine.wait_for_replicas(replicas, deadline) if replicas else []
    for container in containers:
        engine.wait_ready(container, deadline)
    addresses = {
        "Grafana": (f"http://127.0.0.1:{environment.get('SERVICE_GRAFANA_PORT') or 3000}", "/api/health"),
        "Prometheus": (f"http://127.0.0.1:{environment.get('SERVICE_PROMETHEUS_PORT') or 9090}", "/-/ready"),
    }
    for name, (address, page) in addresses.items():
        wait_for_page(name, address + page, deadline)
    for name, (address, _) in addresses.items():
        print(f"{name:12} {address}")
    for container in containers:
        print(f"{'metrics':12} http://{engine.metrics_address(container)}/metrics")
    if not is_enabled:
        print("reconsup     not started: SERVICE_RECONCILER_ENABLED=false")


def down(environment: Mapping[str, str]) -> None:
    """Stop everything, each supervisor after its drain."""
    judge(environment)
    is_kept = environment.get("SERVICE_KEEP_DATA") != "0"
    find_engine(environment).compose("down", "--remove-orphans", *([] if is_kept else ["--volumes"]))
    print(
        "The data is kept; `make service-down SERVICE_KEEP_DATA=0` removes it." if is_kept else "The data is removed."
    )


def judge(environment: Mapping[str, str]) -> None:
    """Refuse the first knob that says what cannot be. One that is empty has its default."""
    for knob in KNOBS:
        value = environment.get(knob.name, "")
        if value and not knob.allows(value):
            shown = "" if knob.name in SECRETS else f"={value}"
            raise Refused(EXIT_CONFIG, f"{knob.name}{shown}: {knob.rule}")


def _integer(least: int, most: int) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(r"[0-9]{1,6}", text) is not None and least <= int(text) <= most


def _seconds(least: float, most: float) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) is not None and least <= float(text) <= most


def _is_workers(text: str) -> bool:
    least, _, most = text.partition(":")
    is_one = _integer(1, 512)
    return text == "auto" or (is_one(least) and (":" not in text or (is_one(most) and int(least) <= int(most))))


def _is_urls(text: str) -> bool:
    try:
        urls = json.loads(text)
    except ValueError:
        return False
    return isinstance(urls, dict) and all(
        isinstance(each, str) or (isinstance(each, list) and each and all(isinstance(url, str) for url in each))
        for each in urls.values()
    )


KNOBS: tuple[Knob, ...] = (
    Knob("SERVICE_RECONCILER_ENABLED", "true or false", lambda text: text.lower() in ("true", "false")),
    Knob("SERVICE_RECONCILER_REPLICAS", f"1 to {REPLICAS_MAX} containers", _integer(1, REPLICAS_MAX)),
    Knob("SERVICE_RECONCILER_WORKERS", "1 to 512 for each replica, auto, or MIN:MAX", _is_workers),
    Knob("SERVICE_RECONCILER_POLL_INTERVAL_SECONDS", "seconds, 0.01 to 86400", _seconds(0.01, 86_400)),
    Knob(
        "SERVICE_RECONCILER_LEASE_SECONDS", f"seconds, {LEASE_SECONDS_MIN} to 3600", _seconds(LEASE_SECONDS_MIN, 3600)
    ),
    Knob("SERVICE_EVM_RPC_URLS_JSON", '{"NETWORK": "https://…"} or {"NETWORK": ["https://…", "https://…"]}', _is_urls),
    Knob(
        "SERVICE_DATABASE_PASSWORD",
        "letters, digits and - . _ ~ only, for it becomes part of a URL",
        lambda text: re.fullmatch(r"[A-Za-z0-9._~-]+", text) is not None,
    ),
    Knob("SERVICE_PROMETHEUS_PORT", "1 to 65535", _integer(1, 65_535)),
    Knob("SERVICE_GRAFANA_PORT", "1 to 65535", _integer(1, 65_535)),
    Knob("SERVICE_KEEP_DATA", "1 or 0", lambda text: text in ("0", "1")),
)
SECRETS = ("SERVICE_EVM_RPC_URLS_JSON", "SERVICE_DATABASE_PASSWORD")  # such URLs hold keys


@dataclass(frozen=True)
class Engine:
    """What runs containers here: its program, and the words before a command of compose."""

    program: str
    composing: Sequence[str]
    environment: Mapping[str, str]

    def compose(self, *words: str) -> None:
        """Do it, and let the person read what compose says."""
        command = [*self._of_project(), *words]
        if subprocess.run(command, env=self.environment, check=False).returncode != 0:  # noqa: S603 - our own words
            raise Refused(EXIT_UNREADY, f"`{' '.join(command)}` failed: what it says is above")

    def wait_for_replicas(self, count: int, deadline: float) -> list[str]:
        """The ids of the containers, as soon as so many run."""
        said = ""
        while time.monotonic() < deadline:
            done = _said([*self._of_project(), "ps", "--quiet", "reconsup"], self.environment)
            containers = done.stdout.split() if done.returncode == 0 else []
            if len(containers) == count:
                return containers
            said = f"{len(containers)} of {count} run"
            time.sleep(0.5)
        raise Refused(EXIT_UNREADY, f"reconsup is not there ({said}): `{' '.join(self._of_project())} logs reconsup`")

    def wait_ready(self, container: str, deadline: float) -> None:
        """Until its supervisor says that it is."""
        said = "it was not asked"
        while time.monotonic() < deadline:
            done = _said([self.program, "exec", container, "reconsup", "status", "--ready"], self.environment)
            if done.returncode == 0:
                return
            said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            time.sleep(0.5)
        raise Refused(EXIT_UNREADY, f"{container[:12]} is not ready ({said}): `{self.program} logs {container[:12]}`")

    def metrics_address(self, container: str) -> str:
        """Where its metrics are on this machine."""
        done = _said([self.program, "port", container, "9464/tcp"], self.environment)
        return (done.stdout.split() or ["(not published)"])[0]

    def _of_project(self) -> list[str]:
        return [*self.composing, "--project-name", PROJECT, "--file", str(FILE)]


def find_engine(environment: Mapping[str, str]) -> Engine:
    """Docker, else Podman: one that answers and has compose."""
    troubles = []
    for program in filter(shutil.which, ("docker", "podman")):
        asked = _said([program, "info"], environment)
        if asked.returncode != 0:
            troubles.append(f"{program} is here but does not answer: start it, or let this user use it")
            continue
        if _said([program, "compose", "version"], environment).returncode == 0:
            return Engine(program, (program, "compose"), environment)
        if shutil.which("docker-compose") and (more := _host(program, environment)) is not None:
            return Engine(program, ("docker-compose",), {**environment, **more})
        troubles.append(f"{program} has no compose: install the package docker-compose-plugin, or docker-compose")
    if not troubles:
        troubles = ["no container engine is here: install Docker or Podman, with compose"]
    raise Refused(EXIT_UNAVAILABLE, f"{'; '.join(troubles)} ({WITHOUT})")


def _host(program: str, environment: Mapping[str, str]) -> Mapping[str, str] | None:
    """What docker-compose must be told to find the engine; None: it cannot."""
    if program == "docker" or environment.get("DOCKER_HOST"):
        return {}
    socket = _said([program, "info", "--format", "{{.Host.RemoteSocket.Path}}"], environment).stdout.strip()
    socket = socket.removeprefix("unix://")
    if not (socket and Path(socket).exists()):
        return None
    return {"DOCKER_HOST": f"unix://{socket}", "COMPOSE_DOCKER_CLI_BUILD": "0"}  # there is no docker to build with


def wait_for_page(name: str, url: str, deadline: float) -> None:
    """Until it answers with 200."""
    said = "it was not asked"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own http://
                if answer.status == 200:
                    return
                said = str(answer.status)
        except (urllib.error.URLError, OSError) as error:
            said = str(error)
        time.sleep(0.5)
    raise Refused(EXIT_UNREADY, f"{name} is not ready ({said}): look at the log of its container")


def _said(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """The outcome of a command that is only asked, in time."""
    try:
        return subprocess.run(  # noqa: S603 - our own words
            command, env=environment, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {ANSWER_SECONDS} s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
