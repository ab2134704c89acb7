"""Makes reconsup.pyz with shiv: `python pyz.py DEPENDENCIES WHEEL FILE`.

DEPENDENCIES is a folder into which pip installed what the service needs; WHEEL is the program's. shiv makes an archive
of both, and brings the code that unpacks it. Then the archive is written once more: with a beginning of ours
(pyz_start.py says why), and so that nothing in it depends on when, where and by whom it was made. shiv's own
--reproducible leaves the order of its own files to the file system, and their modes to the umask.
"""

import _imp
import compileall
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
ENTRY = "reconsup.__main__:main"
SHEBANG = "/usr/bin/env python{}.{}".format(*sys.version_info)
MOMENT = (2026, 1, 1, 0, 0, 0)
# The demo brings a PostgreSQL and a chain of its own; here only its door is left, which says so.
DOOR = ("__init__.py", "show.py", "interrupts.py")
# They tell of the machine that installed, not of what is installed.
TRACES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def lay_out(dependencies: Path, wheel: Path, into: Path) -> None:
    """Everything that can be imported, compiled, without what differs from machine to machine."""
    shutil.copytree(dependencies, into, ignore=shutil.ignore_patterns("__pycache__"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into)
    shutil.rmtree(into / "bin", ignore_errors=True)  # scripts that begin with the path of a Python
    for path in [*into.glob("*.dist-info/*"), *into.glob("reconsup/demo/*")]:
        if path.name in TRACES or (path.parent.name == "demo" and path.name not in DOOR):
            path.unlink()
    # never compared with the sources, which are only there for tracebacks
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(into, quiet=2, workers=1, stripdir=into, invalidation_mode=mode)


def beginning() -> dict[str, bytes]:
    """The files of ours that come before shiv's."""
    start = (HERE / "pyz_start.py").read_text()
    marked = start.replace('BUILT_FOR = ""', f'BUILT_FOR = "{_imp.extension_suffixes()[0]}"')
    assert marked != start
    return {"__main__.py": marked.encode(), "pyz_unpack.py": (HERE / "pyz_unpack.py").read_bytes()}


def write_again(source: Path, target: Path) -> None:
    """Sorted, at one moment, with one mode."""
    with zipfile.ZipFile(source) as archive:
        contents = {each: archive.read(each) for each in archive.namelist()} | beginning()
    with target.open("wb") as file:
        file.write(f"#!{SHEBANG}\n".encode())
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name in sorted(contents):
                entry = zipfile.ZipInfo(name, MOMENT)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o100644 << 16
                archive.writestr(entry, contents[name])
    target.chmod(0o755)


def main() -> None:
    """Lay out, pack, write."""
    dependencies, wheel, target = (Path(each) for each in sys.argv[1:])
    unfinished = target.with_name(f".{target.name}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pyz-") as folder:
        lay_out(dependencies, wheel, Path(folder, "all"))
        command = [sys.executable, "-m", "shiv", "--site-packages", f"{folder}/all", "--entry-point", ENTRY]
        flags = ["--reproducible", "--uncompressed", "--output-file", f"{folder}/shiv.pyz"]
        subprocess.run([*command, *flags], check=True)  # noqa: S603 - our own words
        write_again(Path(folder, "shiv.pyz"), unfinished)
    os.replace(unfinished, target)
    sys.stderr.write(f"{target}: {target.stat().st_size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
