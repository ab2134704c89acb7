"""Who makes the one files again, elsewhere and later, gets the same bytes.

The ones in dist/ were made by make, from this checkout; these from a copy of it under another path, with a packer of
its own, another umask and an environment that means no good. Seen to fail with the environment let in (the compiler
took the planted header), and with pip's RECORD in the binary (it has the hash of scripts that begin with the packer's
path).
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import launcher
from tests.support.wheel import ROOT

pytestmark = [pytest.mark.long, pytest.mark.service]

BUILD_SECONDS = 600
NAMES = ("reconsup", "reconsup.pyz")


def copy_of_the_checkout(folder: Path) -> Path:
    """What git has or would have of it."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def environment_that_means_no_good(folder: Path) -> dict[str, str]:
    """Modules that would be packed in place of the pinned ones, flags for what compiles, another time and language."""
    folder.mkdir()
    (folder / "uvloop.py").write_text("planted = True\n")
    (folder / "sitecustomize.py").write_text("planted = True\n")
    (folder / "stdio.h").write_text("#error planted\n")
    named = {"PYTHONPATH": folder, "CPATH": folder, "HOME": folder, "PYTHONOPTIMIZE": 2, "PYTHONHASHSEED": 7}
    others = {"SOURCE_DATE_EPOCH": "1", "TZ": "Pacific/Auckland", "LC_ALL": "C", "CFLAGS": "-O0", "TMPDIR": str(folder)}
    return {**os.environ, **{name: str(value) for name, value in named.items()}, **others}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_made_again_elsewhere_they_are_the_same_bytes(tmp_path: Path) -> None:
    made = [launcher.packed(name) for name in ("binary", "shiv")]
    assert all(each.exists() for each in made), "run `make binary shiv`"
    clone = copy_of_the_checkout(tmp_path / "another-place")
    ready = tmp_path / "ready"
    ready.touch()
    # the developers' environment is the one that runs this
    known = [f"READY={ready}", f"BIN={Path(sys.executable).parent}", f"PYTHON={Path(sys.base_prefix)}/bin/python3"]
    done = subprocess.run(
        ["make", "-o", ready, *known, f"PACKER={tmp_path}/packer", *(f"dist/{name}" for name in NAMES)],
        cwd=clone,
        env=environment_that_means_no_good(tmp_path / "bad"),
        umask=0o077,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    again = [clone / "dist" / name for name in NAMES]
    assert {each.name: digest(each) for each in again} == {NAMES[i]: digest(made[i]) for i in range(2)}
    assert [oct(each.stat().st_mode & 0o111) for each in again] == ["0o111"] * 2
