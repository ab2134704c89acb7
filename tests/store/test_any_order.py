"""Random acts of three workers, their zombies, a scanner, a janitor and strangers, step by step against a model.

The acts are the store's own functions on real connections (tests.support.players); the model says what each must
answer and what all tables are after it (tests.support.model). A seed is a script (tests.support.script): the same
steps every time. Whoever fails is told with its seed and the shortest script that was found.
"""

import os
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.ledgers import Emptied
from tests.support.script import play, shorten, write
from tests.support.stage import Stage

pytestmark = pytest.mark.service

STEPS = 60


@pytest.fixture
def stage(emptied: Emptied) -> Iterator[Stage]:
    made = Stage(emptied)
    yield made
    made.close()


def play_all(stage: Stage, seeds: range) -> Counter[str]:
    """Play the script of each seed; what happened in all of them together."""
    tally: Counter[str] = Counter()
    for seed in seeds:
        script = write(seed, STEPS)
        if (failed := play(stage, script, tally)) is not None:
            step, how = failed
            shortest = "\n".join(f"    {each!r}," for each in shorten(stage, script))
            pytest.fail(
                f"seed {seed}, step {step} ({tally['steps']} steps in all): {how}\nshortest script found:\n{shortest}",
                pytrace=False,
            )
    print(dict(tally))
    return tally


def test_whatever_happens_in_whatever_order_the_rows_are_right(stage: Stage) -> None:
    """What happens is enough to prove something: thousands of steps, and each kind of refusal many times."""
    tally = play_all(stage, range(50))
    assert tally["steps"] >= 50 * STEPS
    assert min(tally["lease_lost"], tally["touched"], tally["status_moved"]) >= 10
    assert min(tally["grants"], tally["written"]) >= 300


@pytest.mark.long
def test_whatever_happens_for_long_in_whatever_order_the_rows_are_right(stage: Stage) -> None:
    """Other seeds with RECONSUP_TEST_SEED, the first of them."""
    first = int(os.environ.get("RECONSUP_TEST_SEED", "1000"))
    tally = play_all(stage, range(first, first + 400))
    assert tally["steps"] >= 400 * STEPS
