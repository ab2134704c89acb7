"""What the preload saves: how soon a forked worker is ready, and how much memory is its own, beside a fleet without it.

Without: the same program, but all that only children need is imported in them, after the fork. Where `make binary` was
run, the packaged program is a third row. Memory is what the kernel says (smaps_rollup) after a load of some seconds.
"""

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from reconsup.demo.anvil import Anvil
from tests.bench import stage
from tests.story.conftest import Town, deploy
from tests.support import launcher
from tests.support.load import Stream
from tests.support.postgres import Database
from tests.support.program import Program, wait_for

WORKERS = 4
FLEETS = 5  # in each every worker is killed once: a second death of a slot would be waited for
LOAD_SECONDS = 20
STARTS = 7

# What the children alone need is there in name only; it is imported where it is first used, in the child.
# (importlib's LazyLoader loads at any look, also at the import system's own.)
WITHOUT = """
import importlib, sys, types

class Later(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules[self.__name__] is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)

import reconsup.cli
for each in ("reconsup.worker.process", "reconsup.worker.probe", "reconsup.monitor.http"):
    assert each not in sys.modules
    importlib.import_module(each.rpartition(".")[0])
    sys.modules[each] = Later(each)
reconsup.cli.main()
"""

Way = dict[str, Any]  # how Program is to start it


def ways() -> dict[str, Way]:
    """What is compared."""
    found: dict[str, Way] = {"preload": {}, "no preload": {"code": WITHOUT}}
    if launcher.is_packed("binary"):
        found["binary"] = {"launched": "binary"}
    return found


def memory(pid: int) -> dict[str, float]:
    """MB of a process: resident, its share, its own."""
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    kb = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return {"rss": kb["Rss"] / 1024, "pss": kb["Pss"] / 1024, "own": (kb["Private_Dirty"] + kb["Private_Clean"]) / 1024}


def ready_ms(town: Town, way: Way) -> list[float]:
    """Fork → ready, by the supervisor's clock, of workers that take the place of killed ones."""
    found = []
    for fleet in range(FLEETS):
        with Program(
            town.database.url, town.rpc_urls, folder=town.folder, workers=WORKERS, worker_id=f"f{fleet}", **way
        ) as program:
            program.wait_ready()
            for slot in range(WORKERS):
                name = f"f{fleet}-{slot}"
                wait_for("all are there", lambda at=program: len(at.pids()) == WORKERS and _all_ready(at))
                before = len(_readies(program, name))
                os.kill(program.pids()[slot], signal.SIGKILL)
                told = wait_for("it is ready again", lambda at=program, of=name, n=before: _readies(at, of)[n:], 60)
                found.append(told[0]["ready_seconds"] * 1000)
    return found


def _readies(program: Program, worker_id: str) -> list[dict[str, Any]]:
    return [line for line in program.events("process_ready") if line["worker_id"] == worker_id]


def _all_ready(program: Program) -> bool:
    return program.metric("reconsup_workers", state="ready") == WORKERS


def loaded(town: Town, way: Way) -> dict[str, Any]:
    """Memory after the load."""
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=WORKERS, **way) as program:
        program.wait_ready()
        with Stream(town) as stream:
            time.sleep(LOAD_SECONDS)  # the load
        workers = program.pids()
        assert len(workers) == WORKERS
        family = launcher.family(program.process.pid)
        (monitor,) = set(family[1:]) - set(workers.values())
        each = [memory(pid) for pid in workers.values()]
        return {
            "payments": len(stream.paid),
            "worker own MB": stage.median(one["own"] for one in each),
            "worker pss MB": stage.median(one["pss"] for one in each),
            "worker rss MB": stage.median(one["rss"] for one in each),
            "supervisor own MB": memory(family[0])["own"],
            "supervisor pss MB": memory(family[0])["pss"],
            "monitor own MB": memory(monitor)["own"],
            "all pss MB": sum(memory(pid)["pss"] for pid in family),
        }


def version_ms(way: Way) -> float:
    """`reconsup --version`, the median of some."""
    launched = launcher.named(way.get("launched", "source"))
    command, environment = launched.words(way.get("code")), {**os.environ, **launched.variables}
    found = []
    for _ in range(STARTS):
        started = time.monotonic()
        subprocess.run([*command, "--version"], check=True, capture_output=True, env=environment)
        found.append((time.monotonic() - started) * 1000)
    return stage.median(found)


def measure(url: str) -> list[dict[str, Any]]:
    """A row for each way."""
    found = []
    for name, way in ways().items():
        with tempfile.TemporaryDirectory(prefix="reconsup-bench-") as folder, Anvil(block_seconds=0) as anvil:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("TRUNCATE app.chain_cursors, app.chain_blocks, app.payment_requests CASCADE")
            town = Town(Database("bench", url, url), anvil, asyncio.run(deploy(anvil)), Path(folder))
            ready = ready_ms(town, way)
            figures = {"fork → ready ms": stage.median(ready), "longest": max(ready), "forks": len(ready)}
            found.append({"": name} | figures | {"--version ms": version_ms(way)} | loaded(town, way))
    return found


def show(found: list[dict[str, Any]]) -> None:
    """For people: a column for each way."""
    names = [name for name in found[0] if name]
    rows = [[name, *(each[name] for each in found)] for name in names]
    stage.table(f"{WORKERS} workers, {LOAD_SECONDS} s of load", ["", *(each[""] for each in found)], rows)


if __name__ == "__main__":
    stage.main(measure, show)
