"""A PID namespace of its own: what is started in it is PID 1 there, as in a container."""

import os
import subprocess
from functools import cache
from pathlib import Path

_AS_ROOT = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
_AS_ANYBODY = ("unshare", "--user", "--map-root-user", *_AS_ROOT[1:])


@cache
def as_pid_one() -> tuple[str, ...]:
    """What to put before a command line so that it runs as PID 1. Fails where the system gives nobody a namespace."""
    ways = [_AS_ROOT, _AS_ANYBODY] if os.geteuid() == 0 else [_AS_ANYBODY]
    said = []
    for way in ways:
        done = subprocess.run([*way, "true"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return way
        said.append(done.stderr.strip())
    raise AssertionError(f"no PID namespace to be had, which these tests need: {said}")


def pid_outside(unshare: subprocess.Popen[bytes] | subprocess.Popen[str]) -> int | None:
    """The pid, as seen from here, of the process that is PID 1 inside; None until it is there."""
    found = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
    return int(found[0]) if found else None
