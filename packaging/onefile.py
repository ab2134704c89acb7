"""Makes one file of the folder that PyInstaller made: `python onefile.py FOLDER FILE`.

FILE is the launcher (onefile.c, linked statically), then an index with a line for each file in FOLDER, their contents
as one raw deflate stream, and a trailer of 128 bytes that says where these begin and what their hash is. Nothing in it
depends on when and where it was made.
"""

import hashlib
import os
import platform
import subprocess
import sys
import zlib
from pathlib import Path

SOURCE = Path(__file__).with_name("onefile.c")
TRAILER_BYTES = 128
CHUNK_BYTES = 1 << 20


def compile_launcher(target: Path) -> bytes:
    """The launcher for this machine's processor; with its own C library, so that it runs anywhere."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{platform.machine()}-linux-musl", "-static"]
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-s"]
    subprocess.run([*command, *flags, "-o", str(target), str(SOURCE)], check=True)  # noqa: S603 - our own words
    return target.read_bytes()


def contents(path: Path) -> tuple[str, int, bytes]:
    """Kind, mode and bytes of a file; a link's bytes are where it leads."""
    if path.is_symlink():
        return "L", 0o777, os.fsencode(path.readlink())
    return "F", 0o755 if path.stat().st_mode & 0o100 else 0o644, path.read_bytes()


def pack(folder: Path) -> tuple[bytes, bytes]:
    """The index and the stream."""
    lines, stream, deflate = [], bytearray(), zlib.compressobj(9, zlib.DEFLATED, -15)
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        kind, mode, data = contents(path)
        name = path.relative_to(folder).as_posix()
        assert "\n" not in name
        lines.append(f"{kind} {mode:o} {len(data)} {zlib.crc32(data):x} {name}\n")
        stream += deflate.compress(data)
    return "".join(lines).encode(), bytes(stream + deflate.flush())


def main() -> None:
    """Compile, pack, write."""
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    unfinished = target.with_name(f".{target.name}")
    launcher = compile_launcher(unfinished)
    index, stream = pack(folder)
    digest = hashlib.sha256(index + stream).hexdigest()[:32]
    trailer = f"reconsup-onefile {len(launcher)} {len(index)} {len(stream)} {digest}\n".encode()
    unfinished.write_bytes(launcher + index + stream + trailer.ljust(TRAILER_BYTES, b"\n"))
    unfinished.chmod(0o755)
    unfinished.replace(target)
    sys.stderr.write(f"{target}: {target.stat().st_size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
