"""Draws the states that the program knows from its own tables: specs/states.md, which a test compares.

`python -m tests.specs.states > specs/states.md` writes the page anew.
"""

import textwrap
from collections.abc import Iterable, Mapping
from enum import StrEnum

from reconsup.fleet.slot import LIVE, MOVES, WorkerState
from reconsup.fleet.state import STEPS, Phase
from reconsup.payments.request import TRANSITIONS, Reason, RowError, Status

Edges = Mapping[tuple[StrEnum, StrEnum], str]

HEAD = """\
# States

Made by `python -m tests.specs.states` from the tables in the code; a test fails while this page differs from them. What
the words mean stands in the [glossary](glossary.md).
"""

REQUEST = """\
## A payment request

The table is `TRANSITIONS` in `reconsup/payments/request.py`: a pair that is not in it cannot be written, and the
history gives one of the reasons named here for each. What leads to which is decided by `reconsup/payments/decision.py`.
"""

SEAT = """\
## A seat

The table is `MOVES` in `reconsup/fleet/slot.py`; a random walk of 100,000 events goes each of these ways and no other.
Workers, the monitor and the probe sit in seats alike. Neither the monitor nor a seat told to leave is ever parked.
"""

FLEET = """\
## The fleet

The table is `STEPS` in `reconsup/fleet/state.py`. While it drains nobody is forked; the monitor leaves last.
"""


def page() -> str:
    """The whole page."""
    transitions = {pair: " or ".join(sorted(reasons)) for pair, reasons in TRANSITIONS.items()}
    parts = [
        HEAD,
        REQUEST,
        diagram(Status, transitions),
        table(("from", "to", "reason in the history"), transitions, is_code=True),
        _request_words(),
        SEAT,
        diagram(WorkerState, MOVES),
        table(("from", "to", "when"), MOVES),
        _wrapped(f"A process sits in a seat that is {_words(state for state in WorkerState if state in LIVE)}."),
        FLEET,
        diagram(Phase, STEPS),
        table(("from", "to", "when"), STEPS),
    ]
    return "\n".join(parts)


def diagram(states: type[StrEnum], edges: Edges) -> str:
    """The edges as a picture that a reader of Markdown draws. What no edge touches stands alone."""
    left, entered = {before for before, _ in edges}, {after for _, after in edges}
    first = next(iter(states))
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
    lines += [f"    {before} --> {after} : {why}" for (before, after), why in edges.items()]
    lines += [f"    {state} --> [*]" for state in states if state in entered - left]
    lines += [f"    {state}" for state in states if state not in entered | left | {first}]
    return "\n".join([*lines, "```\n"])


def table(head: tuple[str, str, str], edges: Edges, *, is_code: bool = False) -> str:
    """The same for whoever reads the page as text."""
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|"]
    for (before, after), why in edges.items():
        said = " or ".join(f"`{word}`" for word in why.split(" or ")) if is_code else why
        lines.append(f"| `{before}` | `{after}` | {said} |")
    return "\n".join(lines) + "\n"


def _request_words() -> str:
    left = {before for before, _ in TRANSITIONS}
    told = set().union(*TRANSITIONS.values())
    return "\n".join(
        [
            _wrapped(f"reconsup never leaves {_words(each for each in Status if each not in left)}."),
            _wrapped(
                "Reasons of entries that leave the status as it is: "
                f"{_words(each for each in Reason if each not in told)}."
            ),
            _wrapped(
                f"A row that cannot be decided keeps its status and says why in `reconcile_error`: {_words(RowError)}."
            ),
        ]
    )


def _words(words: Iterable[StrEnum]) -> str:
    *most, last = [f"`{word}`" for word in words]
    return f"{', '.join(most)} or {last}" if most else last


def _wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, 126, break_long_words=False, break_on_hyphens=False) + "\n"


if __name__ == "__main__":
    print(page(), end="")
