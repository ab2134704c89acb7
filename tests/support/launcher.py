"""How the program under test is started: from the source, the wheel or one of the one files; alone, as PID 1, watched.

RECONSUP_TEST_PROGRAM says which: one of `source` (the default), `wheel`, `binary`, `shiv`, and after a plus sign any of
`pid1` (in a PID namespace of its own), `notify` (under a service manager that listens) and, for the one files, `bare`
(where nothing is that they do not need); `pid1` is `source+pid1`.
A test that puts code of its own into the program (`planted`) cannot do so in the one files.
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

from tests.support import bare, wheel
from tests.support.notified import Manager

VARIABLE = "RECONSUP_TEST_PROGRAM"
# where they are: here, unless the variable says
PACKED = {"binary": ("RECONSUP_TEST_BINARY", "dist/reconsup"), "shiv": ("RECONSUP_TEST_SHIV", "dist/reconsup.pyz")}
SOURCES = ("source", "wheel", *PACKED)
AROUND = ("pid1", "notify", "bare")
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
    if parts[0] in PACKED:
        folder = _throwaway("reconsup-unpacked-")
        command = tuple(_one_file(parts[0], folder / "root" if "bare" in around else None))
        return Launcher(name, command, None, folder, around, {"RECONSUP_HOME": str(folder / "home")})
    assert "bare" not in around, f"{VARIABLE}={name}: only {' and '.join(PACKED)} can do with so little"
    return Launcher(name, (sys.executable, "-m", "reconsup"), sys.executable, None, around)


def is_packed(name: str) -> bool:
    """Whether there is such a one file to be tested."""
    return packed(name).exists()


def packed(name: str) -> Path:
    """Where it is."""
    variable, usual = PACKED[name]
    return Path(os.environ.get(variable) or wheel.ROOT / usual).resolve()


def _one_file(name: str, root: Path | None) -> list[str]:
    path = packed(name)
    assert path.exists(), f"{path} is not there: run `make {name}`"
    if root is not None:
        return bare.with_a_c_library(root, path) if name == "binary" else bare.with_a_python(root, path)
    # a Python that has packages: they must not get in
    return [str(path)] if name == "binary" else [sys.executable, str(path)]


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
