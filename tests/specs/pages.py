"""Markdown pages as the lint reads them: front matter, headings with their anchors, links, blocks of commands.

Whatever is found keeps its line. What stands between fences is no prose: its links and headings do not count.
"""

import re
import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HEADING = re.compile(r"(#{1,6}) +(.*?) *#*$")
_FENCE = re.compile(r" {0,3}(```+|~~~+) *(\w*)")
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")
_LINK = re.compile(r"(?<!\\)\]\(\s*<?([^)\s>]*)>?(?:\s+[\"'(][^)]*)?\)|^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)")
_KEPT = set(string.punctuation) - set("-_")


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and all that stands below it, up to the next heading of its level or above."""

    line: int
    level: int
    title: str
    anchor: str
    lines: tuple[tuple[int, str], ...]

    @property
    def key(self) -> str:
        """The first word of the title: the identifier of a requirement or a task."""
        return self.title.split(" ")[0]


class Page:
    """One page. `name`: its path from the root, as complaints give it."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        self.name = path.relative_to(root).as_posix()
        self.lines = path.read_text().split("\n")
        self.front_lines = self._end_of_front()

    def _end_of_front(self) -> int:
        """How many lines the front matter takes; 0: there is none, or it does not end."""
        if self.lines[0] != "---":
            return 0
        return next((at for at, line in enumerate(self.lines[1:], 2) if line == "---"), 0)

    def front(self) -> Iterator[tuple[int, str, str]]:
        """Line, key and value; a line that is no `key: value` has no value."""
        for at in range(2, self.front_lines):
            key, _, value = self.lines[at - 1].partition(": ")
            yield at, key, value.strip()

    def prose(self) -> Iterator[tuple[int, str]]:
        """The lines outside of fences and front matter."""
        yield from ((at, line) for at, line, language in self._marked() if language is None)

    def commands(self) -> Iterator[tuple[int, str]]:
        """The lines in fences that are for a shell, without comments."""
        for at, line, language in self._marked():
            if language == "sh" and (command := line.partition("#")[0].strip()):
                yield at, command

    def _marked(self) -> Iterator[tuple[int, str, str | None]]:
        """Each line with the language of the fence that it is in. The fences themselves are left out."""
        fence, language = "", None
        for at, line in enumerate(self.lines[self.front_lines :], self.front_lines + 1):
            found = _FENCE.match(line)
            if found and not fence:
                fence, language = found[1], found[2]
            elif found and found[1].startswith(fence) and not found[2]:
                fence, language = "", None
            else:
                yield at, line, language

    def sections(self) -> list[Section]:
        """The headings in order, each with an anchor of its own, as GitHub makes them."""
        headings = [(at, found) for at, line in self.prose() if (found := _HEADING.fullmatch(line))]
        seen: Counter[str] = Counter()
        sections = []
        for number, (at, found) in enumerate(headings):
            level, title = len(found[1]), found[2]
            ends = [later for later, other in headings[number + 1 :] if len(other[1]) <= level]
            end = min(ends, default=len(self.lines) + 1)
            below = tuple((each, self.lines[each - 1]) for each in range(at + 1, end))
            anchor = slug(title)
            seen[anchor] += 1
            sections.append(Section(at, level, title, f"{anchor}-{seen[anchor] - 1}".removesuffix("-0"), below))
        return sections

    def links(self) -> Iterator[tuple[int, str]]:
        """Where links and pictures point."""
        for at, line in self.prose():
            for found in _LINK.finditer(_CODE.sub("", line)):
                yield at, found[1] or found[2] or ""


def slug(title: str) -> str:
    """The anchor of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
    return "".join("-" if letter == " " else letter for letter in text if letter not in _KEPT and _is_kept(letter))


def _is_kept(letter: str) -> bool:
    return letter.isalnum() or letter in " -_"
