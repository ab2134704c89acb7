"""Random acts of three workers, their zombies, a scanner, a janitor and strangers, step by step against a model.

The acts are the store's own functions on real connections (tests.support.players); the model says what each must
answer and what all tables are after it (tests.support.model). A seed is a script (tests.support.script): the same
steps every time. Whoever fails is told with its seed and the shortest script that was found.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from tests.support.ledgers import Emptied
from tests.support.script import play, shorten, write
from tests.support.stage import Stage

pytestmark = pytest.mark.service

STEPS = 60
SEEDS = (*range(1000, 1050), 2043)  # the last one touches a row between its lease's end and the holder's late write


@pytest.fixture
def stage(emptied: Emptied) -> Iterator[Stage]:
    made = Stage(emptied)
    yield made
    made.close()


def play_all(stage: Stage, seeds: Sequence[int]) -> Counter[str]:
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
    """What happens is enough to prove something: thousands of steps, and each kind of refusal many times.

    Seen to fail, after so many steps in all (the shortest scripts then had up to 5), with one thing taken out.
    Of the persist's fence: the epoch (940), the owner (449), both (381), the touch (72), the status (138); with "or the
    lease is null" put in (381). No hand-back (72), one without the epoch (81); no touch of reached heights (969).
    Of the claim: the lease's end (367), the due time (99), the raised epoch (60), the stop (8). The epoch reset by the
    release (343), by the persist (60). Of the renewal: the epoch (2786); the due time written by it (1223).
    A touch that leaves held rows (67), or only makes times earlier (3024); none by rollback (67), by commit (1).
    Of the scan: owner and epoch (155), the stop (16). An admission of rows not held (758), without the tail (946).
    A proof kept by a payment that is mined again (164). A burial that charges the whole batch (77), or buries the whole
    slot (1046). A sweep of what was set aside (87). A late payment told twice (711).
    """
    tally = play_all(stage, SEEDS)
    assert tally["steps"] >= len(SEEDS) * STEPS
    assert min(tally["lease_lost"], tally["touched"], tally["status_moved"]) >= 10
    assert min(tally["grants"], tally["written"]) >= 300


@pytest.mark.long
def test_whatever_happens_for_long_in_whatever_order_the_rows_are_right(stage: Stage) -> None:
    """Other seeds with RECONSUP_TEST_SEED, the first of them."""
    first = int(os.environ.get("RECONSUP_TEST_SEED", "2000"))
    tally = play_all(stage, range(first, first + 400))
    assert tally["steps"] >= 400 * STEPS
