"""The stacks of a process that dies of a signal (the watchdog's SIGABRT, SIGSEGV): written by it, read by who reaps it.

Python's faulthandler writes them from the signal handler itself, so also for a process that hangs in C or in a busy
loop. It needs a file that is open already: one a slot, in the folder of the metrics, empty until then.
"""

import faulthandler
import signal
from contextlib import suppress
from pathlib import Path

BYTES_MAX = 16 * 1024
_STDERR = 2


def open_in(directory: Path, slot: int) -> None:
    """Have this process, the one in `slot`, write its stacks there when it dies; the first thing after the fork.

    At SIGUSR2 it writes them to stderr, and lives. Where there can be no file, stderr gets both.
    """
    try:
        file = _path(directory, slot).open("wb", buffering=0)
    except OSError:
        faulthandler.enable(_STDERR)
    else:
        faulthandler.enable(file)  # which keeps it open
    faulthandler.register(signal.SIGUSR2, _STDERR)


def take(directory: Path, slot: int) -> str | None:
    """What the last process in `slot` wrote, and forget it; None: nothing. After it was reaped; never fails."""
    path = _path(directory, slot)
    text = b""
    with suppress(OSError):
        with path.open("rb") as file:
            text = file.read(BYTES_MAX)
        path.unlink()
    return text.decode(errors="replace") or None


def _path(directory: Path, slot: int) -> Path:
    return directory / f"stacks-{slot}"
