"""Lines of styled text, and tables made of them. PURE: no terminal, no clock.

A line never wraps: a table leaves out its least important columns until it fits, and what is too long even then is cut.
Colour only repeats what the words say. Written by ourselves and not with rich, which a service does not install.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

CUT = "…"
GAP = "  "
NOTHING = "–"
EMPTY = ("", NOTHING)


class Style(StrEnum):
    """How a piece of text is meant; the value is what a terminal needs to be told."""

    PLAIN = ""
    BOLD = "1"
    DIM = "2"
    BAD = "1;31"
    WARN = "33"
    GOOD = "32"


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one style. Control characters are shown as question marks: the names are not all our own."""

    text: str
    style: Style = Style.PLAIN

    def __post_init__(self) -> None:
        if not self.text.isprintable():
            clean = "".join(each if each.isprintable() else "?" for each in self.text)
            object.__setattr__(self, "text", clean)


Line = tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. The higher `rank`, the sooner it is left out; those of rank 0 stay."""

    title: str
    rank: int = 0
    is_right: bool = False


def line(*pieces: str | Piece) -> Line:
    """Put a line together."""
    return tuple(Piece(each) if isinstance(each, str) else each for each in pieces)


def cut(whole: Line, width: int) -> Line:
    """The line in at most `width` columns; where something is missing it ends in …"""
    if sum(len(piece.text) for piece in whole) <= width:
        return whole
    kept: list[Piece] = []
    left = width - len(CUT)
    for piece in whole:
        kept.append(Piece(piece.text[: max(left, 0)], piece.style))
        left -= len(piece.text)
        if left <= 0:
            break
    return (*kept, Piece(CUT if width > 0 else "", Style.DIM))


def table(columns: Sequence[Column], rows: Sequence[Sequence[Piece]], width: int) -> list[Line]:
    """A title line and a line for each row, with as many of the columns as fit; not those that say nothing."""
    if not rows:
        return []
    widths = [max(len(column.title), *(len(row[at].text) for row in rows)) for at, column in enumerate(columns)]
    shown = [
        at for at, column in enumerate(columns) if column.rank == 0 or any(row[at].text not in EMPTY for row in rows)
    ]
    while sum(widths[at] for at in shown) + len(GAP) * (len(shown) - 1) > width:
        least = max(shown, key=lambda at: (columns[at].rank, at))
        if columns[least].rank == 0:
            break
        shown.remove(least)
    titles = [Piece(column.title, Style.DIM) for column in columns]
    return [cut(_row([(row[at], columns[at], widths[at]) for at in shown]), width) for row in (titles, *rows)]


def facts(pairs: Iterable[tuple[str, Sequence[Piece]]], width: int) -> list[Line]:
    """A line for each pair: the name, then as many of its pieces as fit, the first ones first."""
    known = [(name, pieces) for name, pieces in pairs if pieces]
    indent = max((len(name) for name, _ in known), default=0)
    found = []
    for name, pieces in known:
        text: list[Piece] = [Piece(name.ljust(indent) + GAP, Style.DIM), pieces[0]]
        for piece in pieces[1:]:
            if sum(len(each.text) for each in text) + len(GAP) + len(piece.text) > width:
                text.append(Piece(CUT, Style.DIM))
                break
            text += [Piece(GAP), piece]
        found.append(cut(tuple(text), width))
    return found


def text(whole: Line, *, is_colored: bool) -> str:
    """The line as it is written."""
    if not is_colored:
        return "".join(piece.text for piece in whole).rstrip()
    return "".join(f"\x1b[{piece.style}m{piece.text}\x1b[0m" if piece.style else piece.text for piece in whole)


def span(seconds: float | None) -> str:
    """A time that passed, short: 0.4 s, 41 s, 12 min, 5 h, 3 d."""
    if seconds is None:
        return NOTHING
    seconds = max(seconds, 0.0)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for unit, size, most in (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def mebibytes(size_bytes: float | None) -> str:
    """A size of memory, short."""
    return NOTHING if size_bytes is None else f"{size_bytes / (1 << 20):.0f} MiB"


def figure(number: object) -> str:
    """A number, or that it is not known."""
    return NOTHING if number is None else str(number)


def _row(cells: Iterable[tuple[Piece, Column, int]]) -> Line:
    pieces: list[Piece] = []
    for piece, column, width in cells:
        padding = Piece(" " * (width - len(piece.text)))
        pieces += [padding, piece] if column.is_right else [piece, padding]
        pieces.append(Piece(GAP))
    return tuple(pieces[:-1])
