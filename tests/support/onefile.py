"""The one files under test, and what they unpack."""

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support import launcher

HASH = "0123456789abcdef"


@dataclass(frozen=True)
class Packed:
    """One of the one files. `victim`: a file among what it unpacks; `old`: a folder of another version."""

    name: str
    command: tuple[str, ...]
    path: Path
    victim: str
    old: str
    unfinished: str

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Nothing but this in the environment, nothing to write to where it stands."""
        command = [*self.command, *arguments]
        return subprocess.run(
            command, cwd="/", env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def version(self, home: Path) -> subprocess.CompletedProcess[str]:
        return self.run("--version", RECONSUP_HOME=str(home))

    def copied(self, path: Path, data: bytes) -> "Packed":
        """Another file in its place."""
        path.write_bytes(data)
        path.chmod(0o755)
        return replace(self, command=(*self.command[:-1], str(path)), path=path)


def packed_as(name: str) -> Packed:
    command, path = launcher.named(name).command, launcher.packed(name)
    if name == "binary":
        old = HASH * 2
        return Packed(name, command, path, "_internal/base_library.zip", old, f".{old}.17")
    old = f"reconsup.pyz_{HASH * 4}"
    return Packed(name, command, path, "site-packages/reconsup/cli.py", old, f"reconsup.pyz_{HASH[::-1] * 4}.tmp")


def folders(home: Path) -> list[Path]:
    """What was unpacked there."""
    return [each for each in home.iterdir() if each.is_dir()]


def works(done: subprocess.CompletedProcess[str]) -> bool:
    return (done.returncode, done.stderr, done.stdout.partition(" ")[0]) == (0, "", "reconsup")
