"""The guards of the program, each as a mutant: the program without that guard, and the test that must fail then.

A mutant replaces text in one module while it is imported (`tests.support.mutant`); no file changes. To see one:

    .venv/bin/python -m pytest -p tests.support.mutant --mutant NAME TEST

When a mutant no longer applies, the code it names was changed. Find the guard in the new code. If it is still there,
say here how to take it out now: the shortest piece of text that occurs as often as `times` says, and what to put in
its place so that the statement is still valid (a broken statement fails any test, which is why the kind of the
failure is part of the mutant). If another guard took its place, name that one. If nothing holds what it held, do not
delete the mutant: that is the bug it was written for.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Swap:
    """Text of the module, which must occur exactly so many times, and what stands there instead."""

    old: str
    new: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class Mutant:
    """The program without one guard.

    `test`: the node id of the test that must fail; `fails_with`: how its failure begins (its kind, and words where the
    kind alone could also mean a broken statement). `without`: what goes wrong for the operator.
    """

    module: str
    swaps: tuple[Swap, ...]
    test: str
    without: str
    fails_with: str = "AssertionError"


class NotApplicableError(Exception):
    """The module does not contain what a mutant replaces."""


def mutated(source: str, name: str, mutant: Mutant) -> str:
    """The source of the mutant's module, with its text replaced."""
    for swap in mutant.swaps:
        found = source.count(swap.old)
        if found != swap.times:
            raise NotApplicableError(
                f"mutant {name}: {swap.old!r} is {found} times in {mutant.module}, not {swap.times}; "
                "tests/guards/mutants.py says what to do"
            )
        source = source.replace(swap.old, swap.new)
    return source
