"""The live table: the whole picture on one screen, drawn anew several times a second. The only user of rich.

No thread of its own: it is drawn by whoever calls `draw`. It is made for 80 × 24 and uses what there is more.
"""

import time
from collections import deque
from dataclasses import replace
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from reconsup.demo.cast import ORDERS, Plot
from reconsup.demo.pages import Seat
from reconsup.demo.picture import Picture, Row
from reconsup.payments.request import Status

COLUMNS = 4
WIDTH_MIN, HEIGHT_MIN = 78, 22  # on less it cannot be read
FRESH_SECONDS = 1.5
WIDE = 116  # from here on a request is shown with its status in words
EVENTS_MAX = 60

_LOOKS = {
    Status.PENDING: ("○", "bright_black"),
    Status.DETECTED: ("◐", "yellow"),
    Status.CONFIRMED: ("●", "green"),
    Status.REORGED: ("↺", "magenta"),
    Status.EXPIRED: ("✕", "red"),
    Status.FAILED: ("!", "red"),
}
_STATES = {"ready": "green", "booting": "yellow", "draining": "yellow", "dead": "bold red", "backoff": "red"}


class LiveTable:
    """The screen of a terminal that a person looks at. Give the terminal back by leaving the with block."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(
            console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._events: deque[str] = deque(maxlen=EVENTS_MAX)
        self._shown = Picture()

    def __enter__(self) -> Self:
        self._live.start()
        self.draw(self._shown)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def tell(self, event: str) -> None:
        """Add a line to the events."""
        self._events.append(event)
        self.draw(self._shown)

    def draw(self, picture: Picture) -> None:
        """Draw all of it."""
        self._shown = picture
        whole = replace(picture, events=tuple(self._events))
        self._live.update(_screen(whole, *self._console.size), refresh=True)


def _screen(picture: Picture, width: int, height: int) -> RenderableType:
    rows = -(-len(ORDERS) // COLUMNS)
    layout = Layout()
    layout.split_column(
        Layout(_head(picture, width), size=3),
        Layout(_requests(picture, width), size=rows + 2),
        Layout(name="middle", size=7),
        Layout(_events(picture, max(1, height - 3 - rows - 2 - 7 - 2)), minimum_size=3),
    )
    layout["middle"].split_row(Layout(_workers(picture), ratio=3, minimum_size=45), Layout(_facts(picture), ratio=2))
    return layout


def _head(picture: Picture, width: int) -> RenderableType:
    title = Table.grid(expand=True)
    title.add_column(no_wrap=True, ratio=1)
    title.add_column(justify="right", no_wrap=True, min_width=16)
    block = "" if picture.scanned is None else f"block {picture.scanned}   "
    title.add_row(
        Text.assemble(("reconsup demo", "bold"), "   ", (picture.act, "bold cyan")),
        Text(f"{block}{picture.seconds:.0f} s", style="dim"),
    )
    total = len(picture.rows)
    tail = f"  {picture.finished}/{total or len(ORDERS)} as they must end"
    bar = Table.grid(expand=True)
    bar.add_row(
        ProgressBar(total=total or 1, completed=picture.finished, width=max(10, width - 2 - len(tail))),
        Text(tail, style="dim"),
    )
    counts = Text("   ").join(
        Text.assemble((f"{_LOOKS[status][0]} {status} ", _LOOKS[status][1]), (str(count), "bold" if count else "dim"))
        for status, count in picture.counts().items()
    )
    return Padding(Group(title, bar, counts), (0, 1))


def _requests(picture: Picture, width: int) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 1))
    for _ in range(COLUMNS):
        grid.add_column(no_wrap=True, ratio=1)
    cells = [_request(row, is_wide=width >= WIDE) for row in picture.rows]
    rows = -(-len(cells) // COLUMNS)
    for index in range(rows):
        grid.add_row(*cells[index::rows])
    body: RenderableType = grid if cells else Text("no request yet", style="dim")
    return Panel(body, title="payment requests", title_align="left", border_style="dim", box=box.ROUNDED)


def _request(row: Row, *, is_wide: bool) -> Text:
    mark, color = _LOOKS[row.status]
    is_fresh = time.monotonic() - row.changed_at < FRESH_SECONDS
    style = f"bold reverse {color}" if is_fresh else color
    cell = Text.assemble((f"{mark} {row.order.label} {row.order.shown_amount():<11}", style))
    if is_wide:
        cell.append(f" {row.status if row.order.plot is Plot.PAID else row.order.plot}", style=color)
    return cell


def _workers(picture: Picture) -> RenderableType:
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("worker", no_wrap=True)
    for title in ("pid", "state", "leases", "wrote", "died"):
        table.add_column(title, justify="left" if title == "state" else "right", no_wrap=True)
    for seat in picture.seats:
        table.add_row(*_worker(seat, picture))
    body: RenderableType = table if picture.seats else Text("none yet", style="dim")
    return Panel(body, title="reconsup --workers 4", title_align="left", border_style="dim", box=box.ROUNDED)


def _worker(seat: Seat, picture: Picture) -> tuple[Text, ...]:
    return (
        Text(seat.worker_id),
        Text(str(seat.pid or "–"), style="dim"),
        Text(seat.state, style=_STATES.get(seat.state, "")),
        Text(str(seat.leases) if seat.leases else "·"),
        Text(str(picture.written.get(seat.worker_id, 0))),
        Text(f"{seat.restarts}×", style="bold red") if seat.restarts else Text("·", style="dim"),
    )


def _facts(picture: Picture) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(justify="right", no_wrap=True)
    reader = picture.scan_owner.partition("#")[0] if picture.scan_owner else "–"
    for name, figure in (("chain read by", reader), *picture.facts):
        grid.add_row(name, figure)
    return Panel(grid, title="figures", title_align="left", border_style="dim", box=box.ROUNDED)


def _events(picture: Picture, lines: int) -> RenderableType:
    text = Text("\n".join(picture.events[-lines:]), no_wrap=True, overflow="ellipsis")
    text.highlight_regex(r"kill -9.*", "bold red")
    for status, (_, color) in _LOOKS.items():
        text.highlight_words([str(status)], color)
    return Panel(text, title="what happens", title_align="left", border_style="dim", box=box.ROUNDED)
