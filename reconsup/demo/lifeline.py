"""What must not outlive us, not even after `kill -9`: child processes and the folder that they work in.

The kernel helps: a child can ask for a signal at the death of the thread that started it, and a pipe ends when the
last process that could write into it is gone.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Runs in between: asks the kernel for a signal at the parent's death, then becomes the program. The last test closes
# the gap in which the parent died before the kernel was asked. (A preexec_fn would fork a process with threads.)
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[2]))
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[3], sys.argv[3:])
"""

# Waits for the end of the pipe, then for those who are still at home in the folder: a PostgreSQL whose files vanish
# under it leaves its shared memory behind.
_REMOVE = """
import glob, os, shutil, sys, time
folder = sys.argv[1]
sys.stdin.read()
for _ in range(100):
    time.sleep(0.1)
    if not glob.glob(glob.escape(folder) + "/*/data/postmaster.pid"):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            break
shutil.rmtree(folder, ignore_errors=True)
"""


def dies_with_us(command: Sequence[str], number: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command line to start instead of `command` (its first word is a path), so that our death ends it.

    Linux only; elsewhere it is `command` as it is.
    """
    if sys.platform != "linux" or getattr(sys, "frozen", False):
        return list(command)
    return [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), str(int(number)), *command]


@contextmanager
def removed_with_us(folder: Path) -> Iterator[None]:
    """Have the folder removed should this process die inside the with block; whoever leaves the block removes it."""
    if getattr(sys, "frozen", False):
        yield
        return
    with subprocess.Popen(  # noqa: S603  # ourselves, arguments of ours
        [sys.executable, "-ISc", _REMOVE, str(folder)], stdin=subprocess.PIPE, start_new_session=True
    ) as remover:
        try:
            yield
        finally:
            remover.kill()
