"""What there is to see at one moment, and the two ways to show it: lines (here) and the live table (`table`)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

from reconsup.demo.cast import Order
from reconsup.demo.pages import Seat
from reconsup.payments.request import Status

EVERY_SECONDS = 5.0
_SHOWN: list[Status] = [each for each in Status if each != Status.FAILED]


@dataclass(frozen=True, slots=True)
class Row:
    """A request as it stands. `changed_at` is the monotonic moment at which its status was seen to change."""

    order: Order
    status: Status
    changed_at: float


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything that is shown. `written` counts history entries by worker; `facts` are (name, figure) pairs."""

    act: str = "the parts are started"
    seconds: float = 0.0
    height: int | None = None
    scanned: int | None = None
    rows: tuple[Row, ...] = ()
    seats: tuple[Seat, ...] = ()
    scan_owner: str | None = None
    written: dict[str, int] = field(default_factory=dict)
    facts: tuple[tuple[str, str], ...] = ()
    events: tuple[str, ...] = ()

    def counts(self) -> dict[Status, int]:
        """How many requests have which status, in the order of the lifecycle."""
        found: dict[Status, int] = dict.fromkeys(_SHOWN, 0)
        for row in self.rows:
            found[row.status] = found.get(row.status, 0) + 1
        return found

    @property
    def finished(self) -> int:
        """How many requests have the status that they must end with."""
        return sum(row.status == row.order.final_status for row in self.rows)


class Screen(Protocol):
    """Where the demo is shown while it runs; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def tell(self, event: str) -> None:
        """Something happened."""

    def draw(self, picture: Picture) -> None:
        """This is how things stand now; called several times a second."""


class Lines:
    """One line an event, and one now and then that says how far things are: for pipes, logs and `--plain`."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def tell(self, event: str) -> None:
        """Print the line, with the time of day."""
        print(f"{datetime.now().astimezone():%H:%M:%S}  {event}", flush=True)

    def draw(self, picture: Picture) -> None:
        """Print where things stand, every few seconds."""
        if not picture.rows or time.monotonic() < self._told_at + EVERY_SECONDS:
            return
        self._told_at = time.monotonic()
        counts = "  ".join(f"{status} {count}" for status, count in picture.counts().items())
        workers = _states(picture.seats)
        self.tell(f"[{picture.finished}/{len(picture.rows)}]  {counts}  | block {picture.scanned}  | {workers}")


def _states(seats: Sequence[Seat]) -> str:
    return f"{sum(seat.state == 'ready' for seat in seats)} of {len(seats)} workers ready" if seats else "no workers"
