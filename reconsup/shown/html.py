"""HTML made of text: whatever is not HTML already is escaped, so that nobody's words can become markup. PURE."""

from reconsup.shown.lines import Piece

_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})
_VOID = frozenset({"meta", "link"})  # elements without an end


class Html(str):
    """Markup. Only made here, and where a text of our own is marked as such."""

    __slots__ = ()


def text(words: str) -> Html:
    """Words as they are to be read; control characters, and what turns the direction of text, as question marks."""
    return words if isinstance(words, Html) else Html(Piece(words).text.translate(_ESCAPED))


def tag(name: str, /, *inside: str, **attributes: str | None) -> Html:
    """An element. `class_` is class, `data_of` data-of; an attribute that is None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{''.join(map(text, inside))}</{name}>")


def joined(*parts: str) -> Html:
    """One after the other."""
    return Html("".join(map(text, parts)))
