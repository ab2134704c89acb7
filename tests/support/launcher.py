"""How the program under test is started: from the source, the wheel or the packaged binary; alone, as PID 1, watched.

RECONSUP_TEST_PROGRAM says which: one of `source` (the default), `wheel`, `binary`, and after a plus sign any of
`pid1` (in a PID namespace of its own) and `notify` (under a service manager that listens); `pid1` is `source+pid1`.
A test that puts code of its own into the program (`planted`) cannot do so in the binary.
"""

import atexit
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from tests.support import wheel
from tests.support.notified import Manager

VARIABLE = "RECONSUP_TEST_PROGRAM"
BINARY = "RECONSUP_TEST_BINARY"  # where it is, if not in dist/
SOURCES = ("source", "wheel", "binary")
AROUND = ("pid1", "notify")
INNER = Path(__file__).with_name("inner.py")


class Process(Protocol):
    """The supervisor's process, as far as tests deal with it; `pid` is the one outside of any namespace."""

    pid: int
    returncode: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


@dataclass(frozen=True)
class Launcher:
    """One way to start it. `command` is what an operator types, `folder` where he stands."""

    name: str
    command: tuple[str, ...]
    python: str | None  # that has the program, for planted code
    folder: Path | None = None
    around: frozenset[str] = field(default_factory=frozenset)
    variables: Mapping[str, str] = field(default_factory=dict)

    def words(self, code: str | None = None) -> list[str]:
        """The beginning of a command line."""
        if code is None:
            return list(self.command)
        assert self.python is not None, f"{VARIABLE}={self.name}: this test plants code, so mark it `planted`"
        return [self.python, "-c", code]

    def run(self, *arguments: str, environment: Mapping[str, str], seconds: float = 60) -> "Done":
        """One command, to its end."""
        self._refuse_code(environment)
        return subprocess.run(
            [*(_inner(0) if "pid1" in self.around else ()), *self.words(), *arguments],
            env={**self.variables, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], output: BinaryIO, code: str | None = None
    ) -> tuple[Process, Manager | None]:
        """Start it; the process of the supervisor, and the service manager if one listens."""
        self._refuse_code(environment)
        command, given = [*self.words(code), *arguments], {**self.variables, **environment}
        manager = None
        if "notify" in self.around:
            manager = Manager(Path(tempfile.mkdtemp(prefix="reconsup-notify-")) / "notify")
            # as a service manager does: the pid that it forked
            command = ["/bin/sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh", *command]
            given |= manager.environment
        if "pid1" not in self.around:
            return subprocess.Popen(
                command, env=given, cwd=self.folder, stdout=output, stderr=subprocess.STDOUT
            ), manager
        return Inner(command, given, output, self.folder), manager

    def _refuse_code(self, environment: Mapping[str, str]) -> None:
        is_planted = environment.get("PYTHONPATH", "") != os.environ.get("PYTHONPATH", "")
        assert self.python or not is_planted, f"{VARIABLE}={self.name}: this test plants code, so mark it `planted`"


Done = subprocess.CompletedProcess[str]


class Inner:
    """The PID 1 of a namespace: signals go to it, its end is told by the process that waits for it."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], output: BinaryIO, folder: Path | None
    ) -> None:
        read, write = os.pipe()
        self._outer = subprocess.Popen(
            [*_inner(write), *command],
            env=dict(environment),
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[write],
        )
        os.close(write)
        with os.fdopen(read) as told:
            text = told.read()
        assert text, f"no PID namespace: {Path(output.name).read_text()}"
        self.pid = int(text)

    @property
    def returncode(self) -> int:
        """Its exit code, or minus its signal."""
        return self._outer.returncode

    def poll(self) -> int | None:
        """The same; None while it runs."""
        return self._outer.poll()

    def wait(self, timeout: float | None = None) -> int:
        """The same, when it has ended."""
        return self._outer.wait(timeout)

    def send_signal(self, sig: int) -> None:
        """To PID 1 itself."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """The kernel ends all that is in the namespace with it."""
        self.send_signal(signal.SIGKILL)


def _inner(told: int) -> list[str]:
    return [sys.executable, "-SE", str(INNER), str(told)]


def outside(supervisor: int) -> dict[int, int]:
    """The pid that a process of the supervisor's family has for itself → the pid that it has here."""
    return {int(_field(pid, "NSpid").split()[-1]): pid for pid in family(supervisor)}


def family(pid: int) -> list[int]:
    """A process and its children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [pid, *map(int, children)]


def _field(pid: int, name: str) -> str:
    try:
        found = re.search(rf"^{name}:\s*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        found = None
    return found[1] if found else str(pid)


@functools.cache
def chosen() -> Launcher:
    """The launcher that this run was asked to use."""
    return named(os.environ.get(VARIABLE) or "source")


@functools.cache
def named(name: str) -> Launcher:
    """A launcher by its name; what it needs is made at its first use."""
    parts = name.split("+") if name.split("+")[0] in SOURCES else ["source", *name.split("+")]
    around = frozenset(parts[1:])
    assert around <= {*AROUND}, f"{VARIABLE}={name}: one of {', '.join(SOURCES)}, then +{' or +'.join(AROUND)}"
    if parts[0] == "wheel":
        environment = _installed()
        python = str(environment / "bin" / "python")
        return Launcher(name, (str(environment / "bin" / "reconsup"),), python, environment.parent, around)
    if parts[0] == "binary":
        assert is_packed(), f"{_packed()} is not there: run `make binary`"
        folder = _throwaway("reconsup-unpacked-")
        return Launcher(name, (str(_packed()),), None, folder, around, {"RECONSUP_HOME": str(folder / "home")})
    return Launcher(name, (sys.executable, "-m", "reconsup"), sys.executable, None, around)


def is_packed() -> bool:
    """Whether there is a packaged program to be tested."""
    return _packed().exists()


def _packed() -> Path:
    return Path(os.environ.get(BINARY) or wheel.ROOT / "dist" / "reconsup").resolve()


def _installed() -> Path:
    """An environment with the wheel in it, one for this process."""
    base = _throwaway("reconsup-wheel-")
    wheel.install(wheel.build(base), base / "environment", base / "dependencies")
    return base / "environment"


def _throwaway(prefix: str) -> Path:
    """A folder that goes when this process ends; or, should it be killed, when the next one needs such a folder."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if not Path("/proc", left.name.removeprefix(prefix).partition("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
    owner = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{owner}-"))
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    return folder
