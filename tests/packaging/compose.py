"""The compose file: its text part by part, and what a compose that needs no engine makes of it."""

import os
import re
import subprocess
from importlib import util
from pathlib import Path
from types import ModuleType

from tests.support import tools

FOLDER = Path(__file__).parents[2] / "packaging/compose"
FILE = FOLDER / "compose.yaml"


def text() -> str:
    """Without its comments."""
    return re.sub(r"^ *#.*\n| +#.*$", "", FILE.read_text(), flags=re.MULTILINE)


def service(name: str) -> str:
    """The text of a service, with what it shares by `<<: *reconsup`."""
    sections = dict(re.findall(r"^  ([a-z]+):\n((?:    .*\n|\n)+)", text().partition("\nservices:\n")[2], re.MULTILINE))
    found: str = sections[name]
    if "<<: *reconsup" in found:
        shared = re.search(r"^x-reconsup: &reconsup\n((?:  .*\n)+)", text(), re.MULTILINE)
        assert shared is not None
        found += re.sub(r"^", "  ", shared[1], flags=re.MULTILINE)
    return found


def names() -> list[str]:
    """Of the services."""
    return re.findall(r"^  ([a-z]+):$", text().partition("\nservices:\n")[2].partition("\nvolumes:")[0], re.MULTILINE)


def settings(name: str) -> dict[str, str]:
    """The environment that the file gives to a service."""
    inside = re.search(r"^    environment:.*\n((?:      .*\n)+)", service(name), re.MULTILINE)
    return dict(re.findall(r"^      (\w+): (.*?) *$", inside[1], re.MULTILINE)) if inside else {}


def variables() -> dict[str, str | None]:
    """Every ${NAME:-default} in the file; None: it has none. Fails where one name has two defaults."""
    found: dict[str, str | None] = {}
    for braced, name, default, bare in re.findall(r"\$(?:(\{(\w+)(?::-([^}]*))?\})|(\w+))", text()):
        given = default if ":-" in braced else None
        assert found.setdefault(name or bare, given) == given, name or bare
    return found


def config(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `docker-compose config` says."""
    command, more = tools.docker_compose()
    return subprocess.run(
        [*command, "--file", str(FILE), "config", *words],
        env={"PATH": os.environ["PATH"], "HOME": "/", **more, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def script() -> ModuleType:
    """service.py, which is no part of the package."""
    spec = util.spec_from_file_location("service", FOLDER / "service.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
