"""A local Ethereum chain: finds the anvil binary, runs it on a loopback port, and lets it not outlive us.

The child dies with the thread that started it (parent-death signal), so not even `kill -9` leaves a process behind.
Every way in which this can fail is an AnvilError with one sentence that says what to do.
"""

import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from reconsup.demo.lifeline import dies_with_us

START_SECONDS = 20.0
STOP_SECONDS = 5.0
CALL_SECONDS = 30.0

INSTALL = "npm install --prefix .venv/node --ignore-scripts @foundry-rs/anvil"


class AnvilError(Exception):
    """anvil cannot be had; the text says what to do."""


def find_anvil() -> Path:
    """Return anvil's binary: from PATH, else from the npm package in this environment, here, or in a folder above."""
    on_path = shutil.which("anvil")
    if on_path is not None and (binary := _behind_npm_starter(Path(on_path))) is not None:
        return binary
    for folder in (Path(sys.prefix) / "node", Path.cwd(), *Path.cwd().parents):
        if (binary := _in_package(folder / "node_modules/@foundry-rs")) is not None:
            return binary
    raise AnvilError(f"anvil, the local chain, is not installed: run `{INSTALL}` (needs Node) or put anvil into PATH")


def _in_package(scope: Path) -> Path | None:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    binary = scope / f"anvil-{sys.platform}-{machine}/bin/anvil"
    return binary if os.access(binary, os.X_OK) else None


def _behind_npm_starter(found: Path) -> Path | None:
    """Return the program itself: npm puts a script before it, and killing that leaves the program behind."""
    target = found.resolve()
    return _in_package(target.parents[1]) if target.suffix == ".mjs" else target


class Anvil:
    """A running anvil. Use as a context manager, or call `stop`.

    `block_seconds`: a block every so often; None: one for each transaction; 0: only on demand (`anvil_mine`).
    """

    def __init__(
        self,
        *,
        block_seconds: float | None = None,
        chain_id: int = 31337,
        port: int = 0,
        options: Sequence[str] = (),
    ) -> None:
        self.chain_id = chain_id
        self._ids = itertools.count(1)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process that writes into it
        self._folder = ExitStack()
        states: tuple[str, ...] = ()
        if (
            "--cache-path" not in options
        ):  # old states: in its own folder they stay when it is killed, gigabytes of them
            folder = tempfile.TemporaryDirectory(prefix="reconsup-anvil-", ignore_cleanup_errors=True)
            states = ("--cache-path", self._folder.enter_context(folder))
        arguments = ["--port", str(port), "--chain-id", str(chain_id), *states, *_mining(block_seconds), *options]
        self._process = self._start(find_anvil(), arguments)
        try:
            self.url = f"http://127.0.0.1:{self._listening_port(port)}"
            self.rpc("anvil_setLoggingEnabled", False)  # else its output grows with every call
            self.accounts: list[str] = self.rpc("eth_accounts")
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def stop(self) -> None:
        """End the process and wait for it. May be called twice."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._output.close()
        self._folder.close()

    def rpc(self, method: str, *params: Any) -> Any:
        """Make one JSON-RPC call, blocking. Raises AnvilError with the node's own words if it refuses."""
        body = json.dumps({"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})  # noqa: S310  # http, ours
        try:
            with urllib.request.urlopen(request, timeout=CALL_SECONDS) as response:  # noqa: S310  # the same
                answer = json.load(response)
        except (OSError, ValueError) as error:
            reason = f"does not answer {method} ({type(error).__name__})"
            raise AnvilError(f"the local chain at {self.url} {reason}") from error
        if "error" in answer:
            raise AnvilError(f"the local chain refuses {method}: {answer['error'].get('message')}")
        return answer["result"]

    def _start(self, binary: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        guarded = dies_with_us([str(binary), *arguments])
        try:
            return subprocess.Popen(  # noqa: S603  # a fixed program, arguments of ours
                guarded, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise AnvilError(f"anvil cannot be started: {binary}: {error.strerror}") from error

    def _listening_port(self, port_asked: int) -> int:
        """Wait until anvil says where it listens."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            ended = self._process.poll() is not None
            said = os.pread(self._output.fileno(), 1 << 20, 0).decode(errors="replace")
            if found := re.search(r"Listening on 127\.0\.0\.1:(\d+)", said):
                return int(found[1])
            if "Address already in use" in said:
                raise AnvilError(f"port {port_asked} is taken: stop what listens there or choose another port")
            if ended:
                last_line = said.strip().rpartition("\n")[2] or f"exit code {self._process.returncode}"
                raise AnvilError(f"anvil ended at its start: {last_line}")
            time.sleep(0.01)
        raise AnvilError(f"anvil did not start within {START_SECONDS:g} s: is this machine overloaded?")


def _mining(block_seconds: float | None) -> list[str]:
    if block_seconds is None:
        return []
    return ["--block-time", f"{block_seconds:g}"] if block_seconds else ["--no-mining"]
