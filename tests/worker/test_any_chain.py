"""Random tales of a lying node, reorgs, and workers that die, freeze and meet, against an oracle of what happened.

The chain is a real anvil, behind a node that lies (tests.support.faults); workers are driven from one await to the
next (tests.support.puppet); the oracle reads the chain by itself (tests.support.chronicle). A seed is a tale
(tests.support.tale, acts). One that fails is told with its seed and the shortest tale that was found. To play it
again:

    RECONSUP_TEST_SEED=17 RECONSUP_TEST_SEEDS=1 .venv/bin/python -m pytest -m long tests/worker/test_any_chain.py
"""

import asyncio
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest

from reconsup.chain import rpc
from reconsup.demo.anvil import Anvil
from tests.support.acts import ACTS, Script, act, end
from tests.support.postgres import Database
from tests.support.tale import NUMBERS, PAYERS, Grounds, lay_grounds, stage

pytestmark = pytest.mark.service

STEPS = 40
SEEDS, SEEDS_A_CASE = 40, 5
PARTS = 12  # of the long one, for as many processes as there are
TRIES_MAX = 150
ANSWER_BYTES_MAX = 2**20  # an endless answer is given up here, and not at 64 MiB


@pytest.fixture(scope="session")
def grounds() -> Iterator[Grounds]:
    """An anvil of its own: each tale ends with the chain as it was, but for what anvil does not take back."""
    with Anvil(options=["--accounts", str(PAYERS)]) as anvil:
        yield asyncio.run(lay_grounds(anvil))


@pytest.fixture(autouse=True)
def _small_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "ANSWER_BYTES_MAX", ANSWER_BYTES_MAX)


def write(seed: int, steps: int) -> Script:
    """The tale of a seed."""
    random = Random(seed)
    names = list(ACTS)
    weights = [ACTS[name][0] for name in names]
    first = [("request", *(random.randrange(NUMBERS) for _ in range(3))) for _ in range(2)]
    return first + [
        (random.choices(names, weights)[0], *(random.randrange(NUMBERS) for _ in range(3))) for _ in range(steps)
    ]


def play(database: Database, grounds: Grounds, script: Script, seed: int, tally: Counter[str]) -> Any:
    """Tell a tale to its end; the step that failed and how, or None."""

    async def run() -> Any:
        done = 0
        async with stage(database, grounds, seed) as tale:
            try:
                for step in script:
                    await act(tale, step)
                    done += 1
                await end(tale)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told with its steps
                return done, f"{type(error).__name__}: {error}"
            finally:
                tally.update(tale.tally)
                for node in tale.nodes:
                    tally.update(node.applied)
                tally.update(tale.laws.reasons())
                tally["steps"] += done
        return None

    return asyncio.run(run())


def shorten(database: Database, grounds: Grounds, script: Script, seed: int) -> Script:
    """A shorter tale that fails in the same manner: parts are left out as long as it does, big ones first."""
    kind = _kind(play(database, grounds, script, seed, Counter()))
    size, tries = max(1, len(script) // 2), 0
    while tries < TRIES_MAX:
        for start in range(0, len(script), size):
            tries += 1
            shorter = script[:start] + script[start + size :]
            if _kind(play(database, grounds, shorter, seed, Counter())) == kind:
                script = shorter
                break
        else:
            if size == 1:
                break
            size //= 2
    return script


def _kind(failed: Any) -> str:
    """The words of a failure that are the same in each tale with it."""
    return "" if failed is None else " ".join(re.findall(r"\b[a-z]{4,}\b", failed[1])[:4])


def play_all(database: Database, grounds: Grounds, seeds: Sequence[int]) -> Counter[str]:
    """Tell the tale of each seed; what happened in all of them."""
    tally: Counter[str] = Counter()
    for seed in seeds:
        script = write(seed, STEPS)
        failed = play(database, grounds, script, seed, tally)
        if failed is not None:
            step, how = failed
            shortest = (
                [] if os.environ.get("RECONSUP_TEST_RAW") else shorten(database, grounds, script[: step + 1], seed)
            )
            told = "\n".join(f"    {each!r}," for each in shortest)
            pytest.fail(f"seed {seed}, step {step}: {how}\nshortest tale found:\n{told}", pytrace=False)
    print(dict(tally.most_common()))
    return tally


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_A_CASE))
def test_whatever_happens_on_the_chain_the_statuses_are_right_in_the_end(
    database: Database, grounds: Grounds, first: int
) -> None:
    """Seen to fail, at the seed in brackets, with one guard taken out (tests.guards has their text).

    Of the claim: the new epoch (0), the lease's end (0). Of the persist: the touch (0). Of the rollback: its touch (0).
    Of the scan: COMMIT only after the fence was read (27), the commit in several statements (13). Of the join: rows of
    any status (0) and not yet admitted (1), the request's first block (0), the token (5). A proof that goes when its
    payment is mined again (0). The comparison of a block's roots (0). The expiry that waits for the audit (35).
    What an orphaned branch had in time may end either way, so that it still counts is for tests.store to show.
    """
    tally = play_all(database, grounds, range(first, first + SEEDS_A_CASE))
    assert tally["steps"] >= SEEDS_A_CASE * STEPS


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_happens_for_long_on_the_chain_the_statuses_are_right_in_the_end(
    database: Database, grounds: Grounds, part: int
) -> None:
    """Other seeds with RECONSUP_TEST_SEED, the first of them, and RECONSUP_TEST_SEEDS, how many."""
    first = int(os.environ.get("RECONSUP_TEST_SEED", "1000"))
    count = int(os.environ.get("RECONSUP_TEST_SEEDS", "300"))
    play_all(database, grounds, range(first, first + count)[part::PARTS])
