"""The live table: everything that matters is on 80 × 24."""

import io
import re

import pytest
from rich.console import Console

from reconsup.demo.cast import ORDERS
from reconsup.demo.pages import Seat
from reconsup.demo.picture import Picture, Row
from reconsup.demo.table import LiveTable
from reconsup.payments.request import Status

CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def picture() -> Picture:
    statuses = [each for each in Status if each != Status.FAILED]
    return Picture(
        act="a worker is killed in the middle of its work",
        seconds=17.3,
        height=42,
        scanned=41,
        rows=tuple(Row(order, statuses[order.number % 5], 0.0) for order in ORDERS),
        seats=tuple(Seat(f"demo-{i}", f"{i:016x}", 4194300 + i, "draining", int(i == 2), 200) for i in range(4)),
        scan_owner="demo-1#0000000000000001",
        written={"demo-1": 7},
        facts=(("a lease lasts", "30 s"), ("killed", "demo-2 with 8"), ("taken over in", "1234 ms")),
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (132, 40)])
def test_all_of_it_can_be_seen(width: int, height: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None, _environ={})
    with LiveTable(console) as table:
        table.tell("kill -9 demo-2")
        out.truncate(0)
        out.seek(0)
        table.draw(picture())
        shown = CODES.sub("", out.getvalue())

    lines = [line for line in shown.splitlines() if line.strip()]
    assert len(lines) == height
    assert max(map(len, lines)) <= width
    wanted = [order.label + " " + order.shown_amount() for order in ORDERS]
    wanted += ["demo-0", "4194303", "draining", "1×", "demo-1", "demo-2 with 8", "1234 ms", "30 s", "kill -9 demo-2"]
    wanted += ["block 41", "17 s", "reorged 6", "as they must end", "a worker is killed in the middle of its work"]
    assert [each for each in wanted if each not in shown] == []


def test_the_terminal_is_given_back() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, height=24, force_terminal=True, _environ={})

    with LiveTable(console):
        pass

    assert out.getvalue().rindex("\x1b[?1049l") > out.getvalue().rindex("\x1b[?1049h")
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")
