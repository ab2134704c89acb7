"""Every guard is needed: without it, the test that is named for it fails; with it, that test passes.

The guards, their tests, and what the operator would see without them, stand in the modules
of_*.py; mutants.py says what to do when one no longer applies.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.guards.all import LONG, MUTANTS, TABLES
from tests.guards.mutants import Mutant, NotApplicableError, Swap, mutated
from tests.support.mutant import Run, in_a_fork
from tests.support.postgres import Postgres

BY_LENGTH = [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in MUTANTS]


def tail(run: Run) -> str:
    """The end of what the run said, for whoever has to find out."""
    return run.output[-6000:]


def source_of(module: str) -> str:
    found = find_spec(module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).read_text(encoding="utf-8")


def borrowed(postgres: Postgres, template: str) -> str:
    """The option with which a run takes this process's server, whose templates (that one and its own) are made."""
    assert template
    return f"--borrow-postgres={postgres.url}"


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_applies_to_the_program_as_it_is(name: str) -> None:
    mutant = MUTANTS[name]
    changed = mutated(source_of(mutant.module), name, mutant)
    compile(changed, mutant.module, "exec")
    assert changed != source_of(mutant.module)


def test_a_mutant_that_does_not_apply_says_what_to_do() -> None:
    with pytest.raises(NotApplicableError, match=r"is 2 times in m, not 1; tests/guards/mutants\.py says what to do"):
        mutated("a a", "x", Mutant("m", (Swap("a", "b"),), "t", "w"))


def test_no_two_guards_have_one_name() -> None:
    assert len(MUTANTS) == sum(map(len, TABLES))


@pytest.mark.service
@pytest.mark.parametrize(
    "names", [set(MUTANTS) - LONG, pytest.param(LONG, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_with_every_guard_in_place_the_named_tests_pass(
    postgres: Postgres, watched_template: str, tmp_path: Path, names: set[str]
) -> None:
    tests = sorted({MUTANTS[name].test for name in names})
    run = in_a_fork(tmp_path, borrowed(postgres, watched_template), *tests)
    assert run.is_in_time, tail(run)
    assert sorted(run.outcomes) == tests, tail(run)
    others = {test: each for test, each in run.outcomes.items() if (each.setup, each.call) != ("passed", "passed")}
    assert others == {}, tail(run)


@pytest.mark.service
@pytest.mark.parametrize("name", BY_LENGTH)
def test_without_its_guard_the_named_test_fails(
    postgres: Postgres, watched_template: str, tmp_path: Path, name: str
) -> None:
    """In its call, and with the failure that was foreseen: a statement that is only broken proves nothing."""
    mutant = MUTANTS[name]
    run = in_a_fork(tmp_path, borrowed(postgres, watched_template), "--mutant", name, mutant.test)
    assert run.is_in_time, tail(run)
    assert run.is_mutated, tail(run)
    assert list(run.outcomes) == [mutant.test], tail(run)
    (outcome,) = run.outcomes.values()
    assert (outcome.setup, outcome.call) == ("passed", "failed"), tail(run)
    assert f"{outcome.error}: {outcome.words}".startswith(mutant.fails_with), tail(run)
