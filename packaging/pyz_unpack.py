"""Where reconsup.pyz unpacks itself: the same places, and the same promises, as the one file that needs no Python.

shiv unpacks (`_bootstrap.extract_site_packages`: beside the folder, then one rename). What it does not do is done here:
choose a folder that a service has, refuse one that others may write to, see what is missing or cut short, have all on
the disk before it is trusted, let one start at a time unpack, hold a lock while the program runs, and remove versions
that nobody runs.
"""

import ctypes
import fcntl
import os
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator
from json import loads
from pathlib import Path
from stat import S_ISREG

from _bootstrap import cache_path, extract_site_packages

EXIT_CONFIG = 78
WHOLE = ".whole"  # is written into the folder when all of it is on the disk
LOCK = ".reconsup-lock"  # is held by who unpacks or tidies up
OURS = re.compile(r"reconsup.*_[0-9a-f]{64}(\.tmp)?")
PREFIX = "site-packages/"
IN_FORCE = ("SHIV_ROOT",)


class Refused(Exception):
    """Not in this folder; the message says why."""


def roots() -> Iterator[Path]:
    """Where to try, the best first."""
    asked = os.environ.get("RECONSUP_HOME") or os.environ.get("SHIV_ROOT")
    if asked:
        yield Path(asked)
        return
    # systemd's CacheDirectory= and StateDirectory=; it may give a list
    for variable, below in (
        ("CACHE_DIRECTORY", "."),
        ("STATE_DIRECTORY", "."),
        ("XDG_CACHE_HOME", "reconsup"),
        ("HOME", ".cache/reconsup"),
    ):
        value = os.environ.get(variable, "").partition(":")[0]
        if value:
            yield Path(value) / below
    for folder in ("/var/tmp", "/tmp"):  # noqa: S108 - look_at refuses what others made or may write to
        yield Path(folder) / f"reconsup-{os.geteuid()}"


def is_ours(fd: int) -> bool:
    """Nobody but us and root may have put there what we are about to run."""
    about = os.fstat(fd)
    return about.st_uid in (os.geteuid(), 0) and not about.st_mode & 0o022


def look_at(root: Path) -> None:
    """Make the folder if it is not there; refuse what is not good."""
    if not root.is_absolute():
        raise Refused("not an absolute path")
    before = os.umask(0o077 if os.geteuid() else 0o022)  # what root unpacks, others may run
    try:
        root.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(before)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not is_ours(fd):
            raise Refused("others may write there, or it is somebody else's")
        if os.fstatvfs(fd).f_flag & os.ST_NOEXEC:
            raise Refused("mounted noexec")
    finally:
        os.close(fd)


def lock_whole(folder: Path, sizes: dict[str, int]) -> bool:
    """Whether all is there. If so a lock on the folder says that it is in use, while this process or a child lives.

    Cleaners of temporary files heed it, and so do other versions of this file.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    fcntl.flock(fd, fcntl.LOCK_SH)
    if is_ours(fd) and is_whole(fd, sizes):
        return True
    os.close(fd)
    return False


def is_whole(fd: int, sizes: dict[str, int]) -> bool:
    """Whether each file is there, in its length."""
    try:
        for name, size in ({WHOLE: 0} | sizes).items():
            about = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not S_ISREG(about.st_mode) or about.st_size != size:
                return False
    except OSError:
        return False
    return True


def extract(archive: zipfile.ZipFile, folder: Path) -> None:
    """Let shiv unpack; mark it when it is on the disk: after a loss of power lengths alone do not show what is lost."""
    unfinished = folder.with_name(f"{folder.name}.tmp")
    # what a start that was killed left there is written over
    before = os.umask(0o022)
    try:
        extract_site_packages(archive, folder, force=folder.exists())
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
        os.close(fd)
        (folder / WHOLE).touch()
    finally:
        os.umask(before)
        shutil.rmtree(unfinished, ignore_errors=True)


def tidy(root: Path, name: str) -> None:
    """Remove other versions that nobody runs, and what killed starts left. Nobody unpacks now: the lock is ours."""
    for each in root.iterdir():
        if not OURS.fullmatch(each.name) or each.name == name or each.is_symlink() or not each.is_dir():
            continue
        fd = os.open(each, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held while it goes: who starts there now waits, and looks
            shutil.rmtree(each, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(fd)
        root.joinpath(f".{each.name.removesuffix('.tmp')}_lock").unlink(missing_ok=True)


def settle(archive: zipfile.ZipFile, root: Path, build_id: str) -> None:
    """Have all of it in this folder, locked."""
    sizes = {each.filename: each.file_size for each in archive.infolist() if each.filename.startswith(PREFIX)}
    look_at(root)
    folder = cache_path(archive, str(root), build_id)
    if lock_whole(folder, sizes):
        return
    fd = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if not lock_whole(folder, sizes):  # nobody was faster
            extract(archive, folder)
            if not lock_whole(folder, sizes):
                raise Refused("unpacked, and gone again")
        tidy(root, folder.name)
    finally:
        os.close(fd)


def unpack(path: str) -> None:
    """Unpack if need be, and tell shiv where. Ends the program with a sentence where it cannot be done."""
    for name in [each for each in os.environ if each.startswith("SHIV_") and each not in IN_FORCE]:
        del os.environ[name]  # shiv's doors into the program: another entry, an interpreter, a path
    sys.dont_write_bytecode = True  # all is compiled, and nothing is added to what was unpacked
    tried = []
    try:
        with zipfile.ZipFile(path) as archive:
            build_id = loads(archive.read("environment.json"))["build_id"]
            for root in roots():
                try:
                    settle(archive, root, build_id)
                except (Refused, OSError) as error:
                    tried.append(f"{root} ({getattr(error, 'strerror', None) or error})")
                else:
                    os.environ["SHIV_ROOT"] = str(root)
                    return
            megabytes = (sum(each.file_size for each in archive.infolist()) >> 20) + 1
    except (zipfile.BadZipFile, zlib.error, EOFError):
        sys.exit(say("this file is damaged: copy it again"))
    where = "set RECONSUP_HOME to a folder of yours, where programs may run"
    sys.exit(say(f"nowhere to unpack its {megabytes} MB: {where}. Tried: {', '.join(tried)}"))


def say(sentence: str) -> int:
    """Tell the operator; the exit code."""
    sys.stderr.write(f"reconsup: {sentence}\n")
    return EXIT_CONFIG
