"""The real program, started as its users start it: `reconsup run` in a process of its own, logs into a file."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.support import launcher
from tests.support.notified import complaints

T = TypeVar("T")

START_SECONDS = 30.0
STOP_SECONDS = 20.0


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(what: str, look: Callable[[], T | None], seconds: float = 20.0) -> T:
    """Look again and again until it is there (true); fail with its name when it is not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s: {what}")


class Program:
    """One supervisor with its workers, started as RECONSUP_TEST_PROGRAM says, or `launched`.

    `code`: Python that is run in place of the program (the test is then `planted`). Leaving the `with` stops it (TERM,
    then KILL) and leaves nothing behind.
    """

    def __init__(
        self,
        database_url: str,
        rpc_urls: Mapping[str, str],
        *,
        folder: Path,
        workers: int = 2,
        worker_id: str = "test",
        code: str | None = None,
        launched: str | None = None,
        flags: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.port = free_port()
        self.log = folder / f"{worker_id}.log"
        self._output = self.log.open("wb")
        settings = {
            "DATABASE_URL": database_url,
            "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": json.dumps(dict(rpc_urls)),
            "PAYMENT_REQUEST_RECONCILER_POLL_INTERVAL_SECONDS": "0.2",
            "RECONSUP_LOG_FORMAT": "json",
            "RECONSUP_EXPIRY_CONFIRMATIONS": "3",
            "RECONSUP_WORKERS": str(workers),
        }
        given = ["--worker-id", worker_id, "--metrics-address", f"127.0.0.1:{self.port}", *flags]
        self._launcher = launcher.chosen() if launched is None else launcher.named(launched)
        self.process, self.manager = self._launcher.start(
            given, {**os.environ, **settings, **environment}, self._output, code
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Stop it as systemd does; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGQUIT)
                self.process.wait(seconds)
        self._output.close()
        self._judge()
        return self.process.returncode

    def _judge(self) -> None:
        """What the service manager was told, if there is one, was right."""
        if self.manager is not None:
            manager, self.manager = self.manager, None
            manager.end()
            manager.path.parent.rmdir()
            is_drained = self.process.returncode == 0
            found = complaints(manager.messages, self.lines(), main_pid=self.process.pid, is_drained=is_drained)
            assert not found, found

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page on the metrics port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def status(self) -> Any:
        """What /status says."""
        return json.loads(self.get("/status")[1])

    def wait_ready(self) -> None:
        """Wait until /readyz says that a worker is ready."""

        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return self.get("/readyz")[0] == 200
            except OSError:
                return False

        wait_for("/readyz answers 200", ready, START_SECONDS)

    def pids(self) -> dict[int, int]:
        """Slot → process id of the workers that are there; the id that it has for us, wherever it lives."""
        outside = launcher.outside(self.process.pid)
        told = {each["slot"]: each["pid"] for each in self.status()["workers"] if each["pid"]}
        return {slot: outside[pid] for slot, pid in told.items() if pid in outside}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.partition("{")[0].split(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(each in line for each in wanted))

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        return [line for line in self.lines() if line["event"] == event]

    def lines(self) -> list[dict[str, Any]]:
        """The whole log."""
        whole = self.log.read_text().rpartition("\n")[0]  # the last line may be on its way
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
