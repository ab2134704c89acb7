"""The wheel, built from this checkout and installed where there is nothing but what it declares. Nothing is downloaded.

The dependencies are linked, distribution by distribution, from the environment that runs the tests: only those that
the wheel's own metadata asks for, without extras. So an undeclared import fails there.
"""

import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent


def build(folder: Path) -> Path:
    """Build the wheel into a folder; its path."""
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (path,) = folder.glob("*.whl")
    return path


def install(wheel: Path, environment: Path, dependencies: Path) -> None:
    """Make an environment with the wheel in it, and a folder of links to what it declares."""
    dependencies.mkdir()
    venv.create(environment)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "--disable-pip-version-check"]
    _run(*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel))
    for name in sorted(declared(wheel)):
        _link(name, dependencies)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(f"{dependencies}\n")


def declared(wheel: Path) -> set[str]:
    """The names of all distributions that the wheel needs, theirs included, none that only an extra asks for."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(archive.read(metadata).decode())
    return set(_needed(fields.get_all("Requires-Dist", []), frozenset({""}), set()))


def _needed(requirements: list[str], extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> Iterator[str]:
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not any(requirement.marker.evaluate({"extra": each}) for each in extras):
            continue
        wants = canonicalize_name(requirement.name), frozenset({"", *requirement.extras})
        if wants not in seen:
            seen.add(wants)
            yield wants[0]
            yield from _needed(distribution(wants[0]).requires or [], wants[1], seen)


def _link(name: str, into: Path) -> None:
    """Show what a distribution installed, and nothing beside it."""
    of = distribution(name)
    for top in {file.parts[0] for file in of.files or ()} - {"..", "__pycache__"}:
        if not (into / top).exists():
            (into / top).symlink_to(str(of.locate_file(top)))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
