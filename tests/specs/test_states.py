"""specs/states.md is what the program's tables of states say."""

import re
from pathlib import Path

import pytest

from reconsup.fleet.slot import MOVES, WorkerState
from reconsup.fleet.state import STEPS, Phase
from reconsup.payments.request import TRANSITIONS, Status
from tests.specs import states

PAGE = (Path(__file__).parent.parent.parent / "specs/states.md").read_text()


def test_the_page_is_drawn_from_the_tables_of_the_program() -> None:
    """Seen to fail with a pair added to, and with one taken from, each of the three tables."""
    assert states.page() == PAGE, "python -m tests.specs.states > specs/states.md"


@pytest.mark.parametrize(
    ("number", "kinds", "table"), [(0, Status, TRANSITIONS), (1, WorkerState, MOVES), (2, Phase, STEPS)]
)
def test_each_picture_shows_every_state_and_every_way(number: int, kinds: type, table: dict) -> None:
    """Read back from the page, so that a generator that leaves something out is seen."""
    picture = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", PAGE, re.DOTALL)[number]

    ways = set(re.findall(r"^    (\w+) --> (\w+) : [^:;\n]+$", picture, re.MULTILINE))
    assert ways == {(str(before), str(after)) for before, after in table}
    assert set(re.findall(r"\b[a-z]\w+\b", re.sub(" : .*", "", picture))) == {str(kind) for kind in kinds}
    assert re.findall(r"^    \[\*\] --> (\w+)$", picture, re.MULTILINE) == [next(iter(kinds))]
