"""The picture of `reconsup status` for the README: an SVG without outside assets, dark on any page.

It is drawn from what a real run said (status.json beside this file), by the code that draws it in a terminal. So it is
the same at each drawing, and a test says when it is not what an operator sees any more. To make it again:

    reconsup status --json > tests/packaging/status.json     # while something worth seeing runs
    python -m tests.packaging.pictures
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from reconsup.shown import host
from reconsup.shown.lines import Line, Style
from tests.support.promql import PACKAGING

STATUS = Path(__file__).with_name("status.json")
PICTURE = PACKAGING / "pictures" / "status.svg"
COLUMNS = 100
CELL, LEADING, SIZE = 8.4, 20, 14  # of a letter, in pixels
MARGIN, BAR = 20, 34
COLORS = {
    Style.BAD: "#ff7b72",
    Style.WARN: "#e3b341",
    Style.GOOD: "#7ee787",
    Style.DIM: "#8b949e",
    Style.BOLD: "#ffffff",
}


def status_picture() -> str:
    """The picture, as it is in the file."""
    told = json.loads(STATUS.read_text())
    return svg("reconsup status", host.picture(told, COLUMNS))


def svg(command: str, lines: Sequence[Line]) -> str:
    """A terminal's window with these lines in it, after the command that made them."""
    width = MARGIN * 2 + COLUMNS * CELL
    height = BAR + MARGIN * 2 + (len(lines) + 1) * LEADING
    dots = "".join(f'<circle cx="{20 + 20 * n}" cy="17" r="6" fill="#30363d"/>' for n in range(3))
    texts = [_text(0, 0, f"$ {command}", "#8b949e")]
    for number, line in enumerate(lines, 1):
        column = 0
        for piece in line:
            texts.append(_text(column, number, piece.text, COLORS.get(piece.style, "#c9d1d9")))
            column += len(piece.text)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img"'
        f' aria-label="What {escape(command)} shows">\n'
        f'<rect width="100%" height="100%" rx="10" fill="#0d1117" stroke="#30363d"/>\n{dots}\n'
        f'<g font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="{SIZE}"'
        ' xml:space="preserve">\n' + "".join(texts) + "</g>\n</svg>\n"
    )


def _text(column: int, row: int, text: str, color: str) -> str:
    """Each piece has its place and its width, so that columns stand under each other in any font."""
    inner = text.strip(" ")
    if not inner:
        return ""
    column += len(text) - len(text.lstrip(" "))
    x, y = MARGIN + column * CELL, BAR + MARGIN + row * LEADING
    length = f'textLength="{len(inner) * CELL:g}" lengthAdjust="spacingAndGlyphs"'
    return f'<text x="{x:g}" y="{y:g}" fill="{color}" {length}>{escape(inner)}</text>\n'


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(status_picture())
