"""A root file system with next to nothing in it, read-only; only /tmp (and what the kernel shows) is the machine's own.

For the binary: the C library. For the shiv: the machine's programs and libraries, and a Python without a package.
No HOME, no /etc: no users, no host names. The pid stays what it was: each word of the command becomes the next.
"""

import os
import re
import shutil
import site
import sys
from pathlib import Path

C_LIBRARY = ("libc", "libm", "libdl", "libpthread", "librt", "libutil", "libresolv", "libnss_files", "libnss_dns")
# root, folders to be seen (read-only), folders to be seen as empty, command
ENTER = """
root=$1 seen=$2 empty=$3 PATH=$4:$PATH; shift 4; unset HOME
mount --bind "$root" "$root"
for each in $seen; do mount --bind "$each" "$root$each" && mount -o remount,bind,ro "$root$each"; done
for each in $empty; do mount -t tmpfs -o ro none "$root$each"; done
mount --rbind /proc "$root/proc" && mount --rbind /dev "$root/dev" && mount --bind /tmp "$root/tmp" || exit 1
mount -o remount,bind,ro "$root" && cd / && exec chroot "$root" "$@"
"""


def with_a_c_library(root: Path, program: Path) -> list[str]:
    """The beginning of a command line that runs a program where nothing but the C library is."""
    _make(root)
    shutil.copy(program, root / program.name)
    (libraries,) = {Path(line.split()[-1]).parent for line in _mapped() if "/libc.so.6" in line}
    for each in (path for name in C_LIBRARY for path in libraries.glob(f"{name}.so.*")):
        _copy(each, root, each)
    # the loader has two names: where it is, and where every program looks for it
    found = re.search(rb"/lib[^\0]*/ld-linux[^\0]*", program.read_bytes()) or re.search(
        rb"/lib[^\0]*/ld-linux[^\0]*", Path(sys.executable).read_bytes()
    )
    assert found is not None, "no loader"
    loader = Path(os.fsdecode(found[0]))
    _copy(loader, root, loader)
    return [*_enter(root, [], [], "/"), f"/{program.name}"]


def with_a_python(root: Path, program: Path) -> list[str]:
    """The same where nothing but a Python of this version is, without packages."""
    _make(root)
    shutil.copy(program, root / program.name)
    base = Path(sys.base_prefix)
    seen = [Path("/usr"), *(() if base.is_relative_to("/usr") else (base,))]
    for each in ("/bin", "/lib", "/lib64"):
        if Path(each).is_symlink():
            (root / each[1:]).symlink_to(Path(each).readlink())
        elif Path(each).is_dir():
            seen.append(Path(each))
    for each in seen:
        (root / each.relative_to("/")).mkdir(parents=True)
    packages = [*site.getsitepackages([sys.base_prefix]), "/usr/lib/python3/dist-packages"]
    empty = [each for each in packages if Path(each).is_dir()]
    return [*_enter(root, seen, empty, f"{base}/bin"), f"/{program.name}"]


def _enter(root: Path, seen: list[Path], empty: list[str], path: str) -> list[str]:
    words = [str(root), " ".join(map(str, seen)), " ".join(empty), path]
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *as_root, "--mount", "/bin/sh", "-c", ENTER, "sh", *words]


def _make(root: Path) -> None:
    for name in ("proc", "dev", "tmp"):
        (root / name).mkdir(parents=True)


def _copy(source: Path, root: Path, target: Path) -> None:
    inside = root / target.relative_to("/")
    inside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, inside)


def _mapped() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()
