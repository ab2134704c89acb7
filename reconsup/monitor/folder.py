"""Where the files of counts live while one supervisor does: a folder of its own, empty at the start, gone with it."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER_PREFIX = "reconsup-metrics-"


@contextmanager
def folder(parent: Path) -> Iterator[Path]:
    """A directory of this supervisor's own, empty, gone when it ends; those of killed supervisors are removed first.

    Whoever lives holds a lock on its directory, its children too. No process ids are compared: another container
    numbers its processes differently.
    """
    for left in parent.glob(f"{_FOLDER_PREFIX}*"):
        _remove_unless_held(left)
    while True:
        path = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=parent))
        held = _hold(path)
        if held is not None:  # None: a supervisor that starts at this moment took it for a dead one's
            break
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def _hold(path: Path) -> int | None:
    """A locked descriptor of the directory; None if it is somebody's, or gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_unless_held(path: Path) -> None:
    held = _hold(path)
    if held is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)
