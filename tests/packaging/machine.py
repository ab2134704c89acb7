"""A bare Debian 12 with its own systemd as PID 1, loopback only: a container, on a machine that has root.

Needs mmdebstrap, systemd-nspawn (package systemd-container) and Debian's archive. For hand use: see vm.py.
"""

import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

# What a bare virtual machine has. Everything else comes from packages that the install page names.
BARE = "systemd,systemd-sysv,dbus,libpam-systemd,ca-certificates,iproute2,procps,cron,curl,nano,less"
LATER = ("postgresql", "prometheus")  # fetched beforehand: the machine has no network
SUITE = "bookworm"
BOOT_SECONDS = 60.0
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": pwd.getpwuid(0).pw_dir,
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


def build(root: Path) -> None:
    """Make the file system."""
    # without a mirror it takes Debian's own, with updates and security
    _do("mmdebstrap", "--quiet", "--variant=minbase", f"--include={BARE}", SUITE, str(root))
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    for path in Path("/etc/apt/apt.conf.d").glob("99*"):  # how this machine reaches the archive
        shutil.copy(path, root / "etc/apt/apt.conf.d")
    _do("chroot", str(root), "apt-get", "update", "-qq")
    options = ("-y", "-qq", "--download-only")
    _do("chroot", str(root), "apt-get", "install", *options, *LATER)


class Machine:
    """It runs from its construction to `halt`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        options = [
            "--quiet",
            "--keep-unit",
            "--register=no",
            "--private-network",
            "--machine=vm",
            "--kill-signal=RTMIN+3",
        ]
        self._container = subprocess.Popen(
            ["systemd-nspawn", *options, "-D", root, "-b"],
            stdin=subprocess.DEVNULL,
            stdout=root.with_name("boot.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._wait_booted()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.halt()

    def run(self, command: str, *, is_tolerant: bool = False) -> str:
        """A line in the machine's root shell; what it said. Fails with that if it fails, unless `is_tolerant`."""
        said = subprocess.run(self._inside("-a", "sh", "-c", f"cd ~; {command}"), capture_output=True, text=True)
        words = said.stdout + said.stderr
        assert said.returncode == 0 or is_tolerant, f"{command}\n{words}"
        return words.strip()

    def beside(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        """A program of the host's, in the machine's network."""
        return subprocess.Popen(["nsenter", "-t", str(self.pid), "-n", *command], stdin=subprocess.DEVNULL)

    def wait(self, what: str, command: str, seconds: float = 60.0) -> float:
        """Wait until that line succeeds; how long it took."""
        began = time.monotonic()
        while subprocess.run(self._inside("-a", "sh", "-c", command), capture_output=True).returncode != 0:
            assert time.monotonic() < began + seconds, f"not within {seconds:g} s: {what}"
            time.sleep(0.1)
        return time.monotonic() - began

    def halt(self) -> None:
        """Shut it down as one does."""
        if self._container.poll() is None:
            self._container.send_signal(signal.SIGTERM)
            try:
                self._container.wait(120)
            except subprocess.TimeoutExpired:
                self._container.kill()

    def _inside(self, *command: str) -> list[str]:
        variables = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        return ["nsenter", "-t", str(self.pid), command[0], "env", "-i", *variables, *command[1:]]

    def _wait_booted(self) -> int:
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            children = Path(f"/proc/{self._container.pid}/task/{self._container.pid}/children").read_text().split()
            for child in children:
                self.pid = int(child)
                state = subprocess.run(
                    self._inside("-a", "systemctl", "is-system-running"), capture_output=True, text=True
                ).stdout.strip()
                if state in ("running", "degraded"):
                    return self.pid
            assert self._container.poll() is None, self.root.with_name("boot.log").read_text()
            time.sleep(0.2)
        raise AssertionError(self.root.with_name("boot.log").read_text())


def _do(*command: str) -> None:
    subprocess.run(command, check=True)
