"""Where it is drawn: a terminal's own screen, drawn anew in place; or plain blocks, one after the other.

The terminal gets its old screen and its cursor back by leaving the `with`, whatever the reason.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, TextIO

from reconsup.shown import lines
from reconsup.shown.lines import Line

WIDE = 200  # where no terminal bounds it: everything is shown
COLUMNS, LINES = 80, 24  # of a terminal that does not know

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J"  # the other screen, no cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _TO_THE_END_OF_THE_LINE, _TO_THE_END = "\x1b[H", "\x1b[K", "\x1b[J"

# A picture for so many columns and lines (None: as many as it takes).
Drawing = Callable[[int, int | None], Sequence[Line]]


class Screen:
    """Plain blocks, as for a pipe: each drawing after an empty line."""

    def __init__(self, out: TextIO, *, is_colored: bool) -> None:
        self._out = out
        self._is_colored = is_colored
        self._has_drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def enter(self) -> None:
        """Take the terminal."""

    def leave(self) -> None:
        """Give it back."""

    def draw(self, drawing: Drawing) -> None:
        """Show this now."""
        whole = [lines.text(each, is_colored=self._is_colored) for each in drawing(self.size()[0], None)]
        self.write(("\n" if self._has_drawn else "") + "".join(f"{each}\n" for each in whole))
        self._has_drawn = True

    def size(self) -> tuple[int, int]:
        """Columns and lines as the terminal has them now, whatever COLUMNS says: a window's corner may be drawn."""
        if not is_terminal(self._out):
            return WIDE, 0
        with suppress(OSError):
            columns, rows = os.get_terminal_size(self._out.fileno())
            return columns or COLUMNS, rows or LINES
        return COLUMNS, LINES

    def write(self, text: str) -> None:
        """Write it out at once."""
        self._out.write(text)
        self._out.flush()


class LiveScreen(Screen):
    """A terminal's other screen, drawn anew from its upper left corner: nothing flickers, nothing scrolls."""

    def __enter__(self) -> Self:
        self.enter()
        return self

    def enter(self) -> None:
        """Take the terminal."""
        self.write(_ENTER)

    def leave(self) -> None:
        """Give it back."""
        with suppress(OSError):  # it may be gone itself
            self.write(_LEAVE)

    def draw(self, drawing: Drawing) -> None:
        """Show this in place of what was there."""
        whole = [lines.text(each, is_colored=self._is_colored) for each in drawing(*self.size())]
        self.write(_HOME + "\r\n".join(each + _TO_THE_END_OF_THE_LINE for each in whole) + _TO_THE_END)


def is_terminal(out: TextIO) -> bool:
    """Whether a person looks at it."""
    try:
        return os.isatty(out.fileno())
    except (OSError, ValueError):
        return False
