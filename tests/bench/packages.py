"""The wheel and the one files side by side: size, the time of a start, the memory of a fleet.

A first start is one with nothing unpacked; what was read from the disk before is still in memory. Times are the best of
some, because others use the machine as well. READY is what a service manager is told. Memory is what the kernel says
(smaps_rollup, shared pages shared out) ten seconds after; the wheel's dependencies are copied first, or what tests that
run meanwhile share with it would not be counted.
"""

import asyncio
import os
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from reconsup.demo.anvil import Anvil
from tests.bench import stage
from tests.bench.preload import memory
from tests.story.conftest import Town, deploy
from tests.support import launcher
from tests.support.postgres import Database
from tests.support.program import Program, wait_for
from tests.support.wheel import build

WORKERS = 2
STARTS = 5
QUIET_SECONDS = 10


def bytes_below(folder: Path) -> int:
    """Of all files there, wherever links lead."""
    found = 0
    for at, _, names in os.walk(folder, followlinks=True):
        found += sum(Path(at, name).stat().st_size for name in names if Path(at, name).is_file())
    return found


def sizes(name: str, home: Path) -> dict[str, Any]:
    """MB of what is copied to a machine, and of what is there when it has started."""
    if name != "wheel":
        return {"file MB": launcher.packed(name).stat().st_size / 1e6, "unpacked MB": bytes_below(home) / 1e6}
    folder = _launcher("wheel").folder
    assert folder is not None
    with tempfile.TemporaryDirectory(prefix="reconsup-bench-") as empty:
        size = build(Path(empty)).stat().st_size
    installed = bytes_below(folder / "environment" / "lib") + bytes_below(folder / "dependencies")
    return {"file MB": size / 1e6, "unpacked MB": installed / 1e6}


def own_dependencies(folder: Path) -> None:
    """The wheel's are links to those of the tests: make files of them."""
    for link in [each for each in folder.iterdir() if each.is_symlink()]:
        target = link.resolve()
        link.unlink()
        (shutil.copytree if target.is_dir() else shutil.copy2)(target, link)


def version_ms(name: str, home: Path, *, is_first: bool) -> tuple[float, float]:
    """`--version`, the best of some; and what it took of a processor."""
    launched = _launcher(name)
    found, used = [], []
    for _ in range(STARTS):
        if is_first:
            shutil.rmtree(home, ignore_errors=True)
        started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [*launched.words(), "--version"],
            check=True,
            capture_output=True,
            env={**os.environ, "RECONSUP_HOME": str(home)},
            cwd=launched.folder,
        )
        found.append((time.monotonic() - started) * 1000)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)
    return min(found), min(used)


def ready_ms(town: Town, name: str, home: Path, *, is_first: bool) -> float:
    """From the start to READY, the best of some."""
    found = []
    for _ in range(STARTS):
        if is_first:
            shutil.rmtree(home, ignore_errors=True)
        started = time.time()
        with _program(town, name, home) as program:
            manager = program.manager
            assert manager is not None
            wait_for("READY", lambda of=manager: any("READY" in each.said for each in of.messages), 60)
            at = next(each.at for each in manager.messages if "READY" in each.said)
        found.append((at - started) * 1000)
    return min(found)


def memory_mb(town: Town, name: str, home: Path) -> dict[str, float]:
    """Of all processes together, and of the supervisor."""
    with _program(town, name, home) as program:
        program.wait_ready()
        time.sleep(QUIET_SECONDS)
        family = launcher.family(program.process.pid)
        assert len(family) == WORKERS + 2
        found = [memory(pid)["pss"] for pid in family]
    return {"all pss MB": sum(found), "supervisor pss MB": found[0]}


def _launcher(name: str) -> launcher.Launcher:
    return launcher.named(f"{name}+notify")


def _program(town: Town, name: str, home: Path) -> Program:
    return Program(
        town.database.url,
        town.rpc_urls,
        folder=town.folder,
        workers=WORKERS,
        launched=_launcher(name).name,
        RECONSUP_HOME=str(home),
    )


def measure(url: str) -> list[dict[str, Any]]:
    """A row for each package."""
    found = []
    installed = _launcher("wheel").folder
    assert installed is not None
    own_dependencies(installed / "dependencies")
    for name in ("wheel", *(each for each in launcher.PACKED if launcher.is_packed(each))):
        with tempfile.TemporaryDirectory(prefix="reconsup-bench-") as folder, Anvil(block_seconds=0) as anvil:
            town, home = Town(Database("bench", url, url), anvil, "", Path(folder)), Path(folder) / "home"
            town.token = asyncio.run(deploy(anvil))
            with town.database.connect() as connection:
                connection.execute("TRUNCATE app.chain_cursors, app.chain_blocks, app.payment_requests CASCADE")
            row: dict[str, Any] = {"": name}
            for is_first in (True, False):
                which = "first" if is_first else "later"
                taken, used = version_ms(name, home, is_first=is_first)
                row |= {f"--version ms, {which}": taken, f"--version CPU ms, {which}": used}
                row[f"start → READY ms, {which}"] = ready_ms(town, name, home, is_first=is_first)
            found.append(row | memory_mb(town, name, home) | sizes(name, home))
    return found


def show(found: list[dict[str, Any]]) -> None:
    """For people: a column for each package."""
    names = [name for name in found[0] if name]
    rows = [[name, *(each[name] for each in found)] for name in names]
    stage.table(f"{WORKERS} workers and a monitor", ["", *(each[""] for each in found)], rows)


if __name__ == "__main__":
    stage.main(measure, show)
