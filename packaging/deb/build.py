"""Makes the Debian package: `python packaging/deb/build.py dist/reconsup dist` → dist/reconsup_VERSION_ARCH.deb.

The one file, not the folder that it unpacks: a running supervisor reads modules from its program when it first needs
them, and dpkg would exchange that program under it. The one file's folder is named by its contents, so the old version
runs on from its own until it is restarted. Nothing in the package depends on when, where or by whom it was made.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).parent
PACKAGING = HERE.parent
ROOT = PACKAGING.parent
EPOCH = "1767225600"  # the same as the one file's: 2026-01-01
TRAILER_BYTES = 128
MACHINES = {62: "amd64", 183: "arm64"}  # e_machine of the ELF header
SCRIPTS = ("postinst", "prerm", "postrm")

UNITS = "usr/lib/systemd/system"
SHARE = "usr/share/reconsup"
DOC = "usr/share/doc/reconsup"

# What is in the package → where it comes from, and its mode. The patterns are for files that come later.
FILES: Mapping[str, tuple[str, int]] = {
    f"{UNITS}/reconsup.service": ("packaging/systemd/reconsup.service", 0o644),
    f"{UNITS}/reconsup@.service": ("packaging/systemd/reconsup@.service", 0o644),
    "usr/lib/reconsup/after-stop": ("packaging/systemd/after-stop", 0o755),
    "usr/lib/sysusers.d/reconsup.conf": ("packaging/systemd/sysusers.conf", 0o644),
    f"{SHARE}/reconsup.env": ("packaging/systemd/reconsup.env", 0o644),
    f"{DOC}/copyright": ("LICENSE", 0o644),
    f"{DOC}/README.md": ("README.md", 0o644),
}
FOLDERS: Mapping[str, tuple[str, ...]] = {
    DOC: ("packaging/*.md",),
    f"{SHARE}/prometheus": ("packaging/prometheus/*.yml",),
    f"{SHARE}/grafana": ("packaging/grafana/*.json",),
}


def contents(program: Path) -> dict[str, tuple[Path, int]]:
    """Path in the package → file and mode, in order."""
    found = {"usr/bin/reconsup": (program, 0o755)}
    found |= {target: (ROOT / source, mode) for target, (source, mode) in FILES.items()}
    for folder, patterns in FOLDERS.items():
        for pattern in patterns:
            found |= {f"{folder}/{path.name}": (path, 0o644) for path in ROOT.glob(pattern)}
    return dict(sorted(found.items()))


def version() -> str:
    """The version of the source."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def architecture(program: Path) -> str:
    """Debian's name of the processor that the one file is for."""
    with program.open("rb") as file:
        header = file.read(20)
    machine = int.from_bytes(header[18:20], "little")
    if header[:4] != b"\x7fELF" or machine not in MACHINES:
        raise SystemExit(f"{program} is no program for {' or '.join(MACHINES.values())}: run `make binary` first")
    return MACHINES[machine]


def libc_version(program: Path) -> str:
    """The oldest C library with which everything in the one file runs: the newest symbol that something asks for."""
    newest, before = (0, 0), b""
    for piece in _unpacked(program):
        for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", before + piece):
            newest = max(newest, (int(major), int(minor)))
        before = piece[-16:]
    return f"{newest[0]}.{newest[1]}"


def _unpacked(program: Path) -> Iterator[bytes]:
    """All contents of the one file, one after another; packaging/onefile.py says how it is laid out."""
    data = program.read_bytes()
    trailer = re.match(rb"reconsup-onefile (\d+) (\d+) (\d+) [0-9a-f]{32}\n", data[-TRAILER_BYTES:])
    if trailer is None:
        raise SystemExit(f"{program} is not the one file: run `make binary` first")
    at, index, size = map(int, trailer.groups())
    inflate, stream = zlib.decompressobj(-15), memoryview(data)[at + index : at + index + size]
    while stream:
        yield inflate.decompress(stream[: 1 << 20])
        stream = stream[1 << 20 :]
    yield inflate.flush()


def _lay_out(folder: Path, program: Path) -> None:
    sums, size = [], 0
    for target, (source, mode) in contents(program).items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        path.chmod(mode)
        size += path.stat().st_size
        sums.append(f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {target}\n")
    control = folder / "DEBIAN"
    control.mkdir()
    words = {
        "@VERSION@": version(),
        "@ARCHITECTURE@": architecture(program),
        "@LIBC@": libc_version(program),
        "@SIZE@": str(-(-size // 1024)),
    }
    text = (HERE / "control.in").read_text()
    for word, value in words.items():
        text = text.replace(word, value)
    (control / "control").write_text(text)
    (control / "md5sums").write_text("".join(sums))
    for name in SCRIPTS:
        shutil.copyfile(HERE / name, control / name)
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() or path.name in SCRIPTS:
            path.chmod(0o755)
        elif path.parent == control:
            path.chmod(0o644)
        os.utime(path, (int(EPOCH), int(EPOCH)))


def build(program: Path, target_folder: Path) -> Path:
    """Make the package; where it is."""
    if not shutil.which("dpkg-deb"):
        raise SystemExit("a Debian package is made with dpkg-deb: install the package dpkg")
    target = target_folder / f"reconsup_{version()}_{architecture(program)}.deb"
    with tempfile.TemporaryDirectory() as scratch:
        _lay_out(Path(scratch, "root"), program)
        # the one file is packed already
        command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", "root", "made.deb"]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
        subprocess.run(command, cwd=scratch, env=environment, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own words
        unfinished = target.with_name(f".{target.name}")
        shutil.copyfile(Path(scratch, "made.deb"), unfinished)
        unfinished.replace(target)
    return target


def main() -> None:
    """Make it, and say how large it is."""
    made = build(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stderr.write(f"{made}: {made.stat().st_size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
