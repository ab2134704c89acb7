"""The walls of the house: who imports whom, what a pure room never does, how long things may grow.

Each wall is a function from one file to the complaints about it, and each is also fed a file that breaks it.
"""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "reconsup"

# Imports go down only: a room may import the rooms of the floors below its own, and itself. The longest name that
# fits a module is its room. `fleet.slot` is the half of the plan that concerns one slot.
PLAN = ("fleet.slot", "fleet.state", "fleet.events", "fleet.scale", "fleet.turnover")
FLOORS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"payments": (), "chain.block": (), "fleet.plan": PLAN, "redact": (), "shown": ()},  # pure
    {"logs": ()},
    {
        "settings": ("settings_parse", "settings_table"),
        "chain": (),
        "store": (),
        "fleet": (),
        "monitor.metrics": ("monitor.counting", "monitor.folder", "monitor.tally"),
        "pulse": (),
    },
    {"worker": (), "fleet.supervisor": (), "monitor": (), "check": (), "resume": (), "status": (), "demo": ()},  # loops
    {"cli": ("__main__",)},
)
PURE = FLOORS[0]
# What pure rooms may know of Python: nothing here has a clock, an environment, chance or a way out. (The plan names
# signals; it sends none.)
PURE_LIBRARY = {
    *("collections", "collections.abc", "dataclasses", "datetime", "enum", "fractions", "functools", "itertools"),
    *("math", "re", "signal", "types", "typing", "urllib.parse"),
}
PURE_NEVER = re.compile(
    r"(\w+\.)*(now|utcnow|today|fromtimestamp|set_wakeup_fd)|signal\.(signal|\w*kill|alarm|setitimer|pause|sigwait\w*)"
    r"|open|print|input|eval|exec|__import__|globals|breakpoint"
)
# Modules that a room keeps out, because what they bring would undo its promise.
KEPT_OUT = {
    "fleet": r"asyncio|threading|concurrent|uvloop|psycopg|sqlalchemy|aiohttp|web3|http",  # forks: must have no threads
    "fleet.supervisor": r"asyncio|threading|concurrent|uvloop|psycopg|sqlalchemy|aiohttp|web3|http",
    "store": r"web3|aiohttp|eth_\w+|hexbytes",
    "chain": r"psycopg|sqlalchemy|alembic",
    "worker": r"psycopg|sqlalchemy|web3|aiohttp|http",  # rooms below speak SQL and to chains, and nothing listens here
}
# Libraries that speak to the outside, and the only rooms that may: everybody else goes through these.
SPEAKERS = {
    # settings reads a URL as libpq does; check connects by itself, once; demo plays the payment service
    r"psycopg|sqlalchemy|alembic": {"store", "settings", "check", "demo"},
    r"web3|eth_\w+|hexbytes": {"chain"},
    r"aiohttp": {"chain", "monitor"},
    r"prometheus_client": {"monitor", "demo"},  # demo reads the page that it shows
}
READS_ENVIRONMENT = {
    "settings": "the reader",
    "fleet.notify": "NOTIFY_SOCKET is between systemd and this process; no operator sets it",
    "fleet.posix": "takes systemd's variables away from children, who must not speak for the supervisor",
}
FUNCTION_LINES = 60  # fewer than
MODULE_LINES = 400  # fewer than
IGNORE = re.compile(r"#\s*(noqa|type:\s*ignore)")
IGNORE_WITH_CODE = re.compile(r"#\s*(noqa:\s*[A-Z]+\d+(\s*,\s*[A-Z]+\d+)*|type:\s*ignore\[[\w, -]+\])")
# Written in pieces: this file is looked through as well.
MACHINE = re.compile(
    "|".join(["/wo" + "rk/", r"\bshare" + "d/", "/tm" + "p/brief", "BRI" + r"EF\.md", "--(extra-)?ind" + "ex-url"])
)

Wall = Callable[[str, str], Iterator[str]]


def room(module: str) -> tuple[int, str]:
    """The floor and the name of the room that a module (named without the package) is in."""
    names = {name: (floor, key) for floor, rooms in enumerate(FLOORS) for key in rooms for name in (key, *rooms[key])}
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (found := names.get(".".join(parts[:length]))) is not None:
            return found
    raise AssertionError(f"{module} is in no room: give it a floor in FLOORS")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the full name of everything imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imports_go_down(module: str, source: str) -> Iterator[str]:
    floor, own = room(module)
    for line, name in imports(ast.parse(source)):
        package, _, imported = name.partition(".")
        if package != PACKAGE or imported in ("", "__version__"):
            continue
        other_floor, other = room(imported)
        if other_floor >= floor and other != own:
            yield f"{line}: {own} imports {other}, which is not below it"


def pure_rooms_are_pure(module: str, source: str) -> Iterator[str]:
    if room(module)[1] not in PURE:
        return
    tree = ast.parse(source)
    for line, name in imports(tree):
        if not {name, name.rpartition(".")[0]} & PURE_LIBRARY and not name.startswith(f"{PACKAGE}."):
            yield f"{line}: imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield f"{node.lineno}: async in a pure room"
        elif isinstance(node, ast.Call) and PURE_NEVER.fullmatch(ast.unparse(node.func)):
            yield f"{node.lineno}: calls {ast.unparse(node.func)}"


def what_is_kept_out_stays_out(module: str, source: str) -> Iterator[str]:
    banned = KEPT_OUT.get(room(module)[1])
    for line, name in imports(ast.parse(source)):
        if banned is not None and re.fullmatch(banned, name.split(".")[0]):
            yield f"{line}: {module} imports {name}"


def only_its_rooms_speak_to_the_outside(module: str, source: str) -> Iterator[str]:
    own = room(module)[1]
    for line, name in imports(ast.parse(source)):
        for libraries, rooms in SPEAKERS.items():
            if own not in rooms and re.fullmatch(libraries, name.split(".")[0]):
                yield f"{line}: {own} imports {name}, which only {', '.join(sorted(rooms))} may"


def only_settings_know_the_environment(module: str, source: str) -> Iterator[str]:
    if module in READS_ENVIRONMENT:
        return
    known = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    tree = ast.parse(source)
    names = [(line, name.rpartition(".")[2]) for line, name in imports(tree)]
    names += [(node.lineno, node.attr) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    yield from (f"{line}: {name}" for line, name in names if name in known)


def functions_are_short(_: str, source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines >= FUNCTION_LINES:
                yield f"{node.lineno}: {node.name} has {lines} lines"


def modules_are_short(_: str, source: str) -> Iterator[str]:
    lines = source.count("\n")
    if lines >= MODULE_LINES:
        yield f"{lines} lines"


def ignores_give_a_reason(_: str, source: str) -> Iterator[str]:
    """After the ignore, or on the line above it."""
    lines = ["", *source.splitlines()]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or not re.search(IGNORE, token.string):
            continue
        rest = re.sub(IGNORE_WITH_CODE, "", token.string)
        is_reasoned = re.search(r"\w", rest) or lines[token.start[0] - 1].lstrip().startswith("# ")
        if re.search(IGNORE, rest) or not is_reasoned:
            yield f"{token.start[0]}: {token.string}"


def nothing_points_at_a_machine(_: str, text: str) -> Iterator[str]:
    yield from (f"{at}: {line.strip()}" for at, line in enumerate(text.splitlines(), 1) if MACHINE.search(line))


HOUSE: tuple[Wall, ...] = (
    imports_go_down,
    pure_rooms_are_pure,
    what_is_kept_out_stays_out,
    only_its_rooms_speak_to_the_outside,
    only_settings_know_the_environment,
    functions_are_short,
    modules_are_short,
    ignores_give_a_reason,
)
EVERY_PYTHON_FILE: tuple[Wall, ...] = (functions_are_short, ignores_give_a_reason)


def modules() -> dict[str, str]:
    """Name (without the package's) → source, for every module but the package's own two lines."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    names = {path: ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path.read_text() for path, name in names.items() if name != "__init__"}


def files() -> list[Path]:
    """Everything that is, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("wall", HOUSE, ids=lambda wall: wall.__name__)
def test_the_walls_stand(wall: Wall) -> None:
    assert [f"{name}:{complaint}" for name, source in modules().items() for complaint in wall(name, source)] == []
    assert len(modules()) > 20


@pytest.mark.parametrize("wall", EVERY_PYTHON_FILE, ids=lambda wall: wall.__name__)
def test_tests_and_migrations_keep_to_these_as_well(wall: Wall) -> None:
    paths = [path for path in files() if path.suffix == ".py"]

    assert [f"{path}:{complaint}" for path in paths for complaint in wall("", path.read_text())] == []


def test_no_file_points_at_the_machine_it_was_written_on() -> None:
    paths = files()

    assert ROOT / "pyproject.toml" in paths
    assert [f"{p}:{c}" for p in paths for c in nothing_points_at_a_machine("", p.read_text(errors="replace"))] == []


def test_no_exception_outlives_its_use() -> None:
    sources = modules()

    assert [name for name in READS_ENVIRONMENT if "environ" not in sources.get(name, "")] == []


A_LINE = "    pass\n"
BREACHES = [
    (imports_go_down, "payments.decision", "from reconsup.store import leases\n"),
    (imports_go_down, "payments.decision", "from reconsup import store\n"),
    (imports_go_down, "payments.decision", "import reconsup.chain.block\n"),
    (imports_go_down, "chain.block", "from reconsup.chain.rpc import Endpoint\n"),
    (imports_go_down, "chain.evm", "def late():\n    import reconsup.store.ledger\n"),
    (
        imports_go_down,
        "chain.evm",
        "if TYPE_CHECKING:\n    from reconsup.payments.decision import Policy\n    import reconsup.store\n",
    ),
    (imports_go_down, "store.ledger", "from reconsup.chain import evm\n"),
    (imports_go_down, "store.ledger", "from reconsup.worker.pause import Pause\n"),
    (imports_go_down, "fleet.plan", "from reconsup.fleet import posix\n"),
    (imports_go_down, "fleet.posix", "from reconsup.fleet.supervisor import run\n"),
    (imports_go_down, "monitor.metrics", "from reconsup.monitor import http\n"),
    (imports_go_down, "monitor.metrics", "from reconsup.store import backlog\n"),
    (imports_go_down, "worker.scanner", "from reconsup.monitor import janitor\n"),
    (imports_go_down, "fleet.supervisor", "from reconsup.worker import process\n"),
    (imports_go_down, "demo.show", "from reconsup.cli import main\n"),
    (imports_go_down, "settings", "from reconsup import cli\n"),
    *(
        (pure_rooms_are_pure, "payments.decision", f"import {name}\n")
        for name in ("time", "os", "asyncio", "logging", "structlog", "random", "secrets", "socket", "psycopg")
    ),
    (pure_rooms_are_pure, "chain.block", "from os import environ\n"),
    (pure_rooms_are_pure, "chain.block", "from collections import abc\nfrom pathlib import Path\n"),
    (pure_rooms_are_pure, "fleet.slot", "from datetime import datetime\n\nMADE = datetime.now()\n"),
    (pure_rooms_are_pure, "fleet.plan", "import datetime\n\nMADE = datetime.date.today()\n"),
    (pure_rooms_are_pure, "fleet.plan", "import signal\n\nsignal.signal(signal.SIGTERM, None)\n"),
    (pure_rooms_are_pure, "payments.request", "print(1)\n"),
    (pure_rooms_are_pure, "payments.request", "async def decide():\n    pass\n"),
    (pure_rooms_are_pure, "payments.request", "async def a():\n    await b()\n"),
    (what_is_kept_out_stays_out, "fleet.posix", "import threading\n"),
    (what_is_kept_out_stays_out, "fleet.supervisor", "import asyncio.events\n"),
    (what_is_kept_out_stays_out, "store.leases", "from web3 import Web3\n"),
    (what_is_kept_out_stays_out, "chain.evm", "from psycopg.types import json\n"),
    (what_is_kept_out_stays_out, "worker.process", "from aiohttp import web\n"),
    (only_its_rooms_speak_to_the_outside, "status.command", "import psycopg\n"),
    (only_its_rooms_speak_to_the_outside, "monitor.janitor", "from psycopg.rows import tuple_row\n"),
    (only_its_rooms_speak_to_the_outside, "resume", "import aiohttp\n"),
    (only_its_rooms_speak_to_the_outside, "cli", "def late():\n    from web3 import Web3\n"),
    (only_settings_know_the_environment, "cli", "import os\n\nHOME = os.environ['HOME']\n"),
    (only_settings_know_the_environment, "cli", "import os as o\n\nHOME = o.getenv('HOME')\n"),
    (only_settings_know_the_environment, "cli", "from os import environ as e\n"),
    (functions_are_short, "cli", "def f():\n" + A_LINE * 59),
    (functions_are_short, "cli", "class C:\n    async def f():\n    " + A_LINE + ("    " + A_LINE) * 58),
    (modules_are_short, "cli", "pass\n" * 400),
    (ignores_give_a_reason, "cli", "import os  # noqa\n"),
    (ignores_give_a_reason, "cli", "import os  # noqa: F401\n"),
    (ignores_give_a_reason, "cli", "import os  # noqa - because\n"),
    (ignores_give_a_reason, "cli", "x = 1  # type: ignore\n"),
    (ignores_give_a_reason, "cli", "x = 1  # type: ignore[assignment]\n"),
    (ignores_give_a_reason, "cli", "x = 1  # type: ignore  # because\n"),
    (ignores_give_a_reason, "cli", "x = 1  # type: ignore[assignment]  # noqa: E501\n"),
    (ignores_give_a_reason, "cli", "# because\nx = 1  # type: ignore\n"),
    (nothing_points_at_a_machine, "", "see /wo" + "rk/main\n"),
    (nothing_points_at_a_machine, "", "as in share" + "d/design.md\n"),
]
KEPT = [
    (imports_go_down, "store.ledger", "import reconsup\nfrom reconsup.chain.block import Block\n"),
    (imports_go_down, "chain.evm", "from reconsup.chain import block, decode\nfrom reconsup import __version__\n"),
    (
        imports_go_down,
        "worker.scanner",
        "from reconsup.monitor import metrics\nfrom reconsup.fleet.posix import Cell\n",
    ),
    (
        pure_rooms_are_pure,
        "fleet.plan",
        "import signal\nfrom collections.abc import Mapping\n\nTERM = signal.SIGTERM\n",
    ),
    (pure_rooms_are_pure, "store.ledger", "import time\n"),
    (only_its_rooms_speak_to_the_outside, "monitor.http", "from aiohttp import web\nimport http\n"),
    (functions_are_short, "cli", "def f():\n" + A_LINE * 58),
    (modules_are_short, "cli", "pass\n" * 399),
    (ignores_give_a_reason, "cli", "import os  # noqa: F401 - because\nx = 1  # type: ignore[assignment]  # because\n"),
    (ignores_give_a_reason, "cli", "# because\nx = 1  # type: ignore[assignment]\ny = '# noqa'\n"),
    (nothing_points_at_a_machine, "", "from reconsup.fleet.shared import Text\n# network/framework/x\n"),
]


@pytest.mark.parametrize(("wall", "module", "source"), BREACHES)
def test_each_wall_bites(wall: Wall, module: str, source: str) -> None:
    """Seen to fail with each wall's complaint taken out."""
    assert list(wall(module, source)) != []


@pytest.mark.parametrize(("wall", "module", "source"), KEPT)
def test_no_wall_stands_in_a_doorway(wall: Wall, module: str, source: str) -> None:
    assert list(wall(module, source)) == []


def test_a_module_without_a_room_is_found() -> None:
    with pytest.raises(AssertionError, match="in no room"):
        room("broom_cupboard.x")
