"""The shiv's own unpacking, without a shiv around it. With one: tests/story/test_onefile.py."""

import fcntl
import importlib
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pyz_unpack(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    bootstrap = ModuleType("_bootstrap")
    bootstrap.cache_path = bootstrap.extract_site_packages = None  # type: ignore[attr-defined]  # only shiv has them
    monkeypatch.setitem(sys.modules, "_bootstrap", bootstrap)
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    module = importlib.import_module("pyz_unpack")
    monkeypatch.delitem(sys.modules, "pyz_unpack")
    return module


def test_while_an_old_version_is_removed_nobody_takes_it_for_whole(
    pyz_unpack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an upgrade an old version may start just then: it must wait and unpack anew, not run files that vanish.

    Seen to fail when the lock was let go before the files went.
    """
    old = tmp_path / f"reconsup.pyz_{'ab' * 32}"
    old.mkdir()
    locked = []

    def remove(path: Path, **_: object) -> None:
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):  # what a start does first, but does not wait
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(fd)
        locked.append(path)
        path.rmdir()

    monkeypatch.setattr(shutil, "rmtree", remove)
    pyz_unpack.tidy(tmp_path, "reconsup.pyz_new")
    assert (locked, old.exists()) == ([old], False)
