"""The pages and the commands in them: every fenced block, and every command in running text."""

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from tests.test_house import ROOT, files

SHELL, SESSION, DATA = ("sh", "bash", "shell"), ("console",), ("sql", "yaml", "ini", "json", "toml", "env")
PICTURES = ("text", "mermaid", "promql", "dot")  # nothing that is typed
# The first word of what a person types. A span of text that begins with one of them, and goes on, is a command.
PROGRAMS = frozenset(
    (
        *("reconsup", "make", "kill", "pkill", "systemctl", "systemd-analyze", "systemd-sysusers", "journalctl"),
        *("psql", "pg_dump", "curl", "wget", "apt", "apt-get", "dpkg", "docker", "docker-compose", "podman"),
        *("pip", "pipx", "python", "python3", "npm", "git", "sudo", "su", "chmod", "chown", "install", "useradd"),
        *("adduser", "cp", "mv", "rm", "mkdir", "tar", "ls", "cat", "grep", "ss", "promtool", "amtool", "chroot"),
        *("echo", "export", "cd"),
    )
)
# What may stand before the program: whose rights it gets, and variables.
BEFORE = re.compile(r"(?:sudo (?:-u \S+ )?)?(?:[A-Z_]+=\S+ )*")


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences; `line` is the first fence's."""

    page: str
    line: int
    kind: str
    text: str
    is_marked: bool = False  # <!-- run: … --> stands above it: a test of its page takes the block by that name


@dataclass(frozen=True, slots=True)
class Command:
    """One command as it is written; `is_inline`: within a sentence. `first`: the first line of its block."""

    page: str
    line: int
    text: str
    is_inline: bool = False
    first: str = ""
    is_marked: bool = False

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def names() -> list[str]:
    """Every page for people that is, or would be, committed."""
    paths = [path.relative_to(ROOT).as_posix() for path in files() if path.suffix == ".md"]
    return sorted(path for path in paths if path == "README.md" or path.startswith(("packaging/", "specs/")))


@functools.cache
def read(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, text: str | None = None) -> Iterator[Block]:
    """The fenced blocks of a page (or of a text that stands for it), indented ones too."""
    text = read(page) if text is None else text
    for found in re.finditer(r"^( *)(```+)([^\n`]*)\n(.*?)^\1\2 *$", text, re.MULTILINE | re.DOTALL):
        kind = found[3].strip().split(" ")[0]
        body = re.sub(rf"^{found[1]}", "", found[4], flags=re.MULTILINE)
        above = text[: found.start()].rstrip("\n").rpartition("\n")[2]
        is_marked = re.match(r"\s*<!-- (run|lines): ", above) is not None
        yield Block(page, text[: found.start()].count("\n") + 1, kind, body, is_marked)


def commands(page: str, text: str | None = None) -> Iterator[Command]:
    """Every command of a page, in the order in which it is read."""
    text = read(page) if text is None else text
    for block in blocks(page, text):
        if block.kind in SHELL + SESSION:
            for number, line in _logical_lines(block):
                yield Command(
                    page, block.line + number, line, first=block.text.split("\n")[0], is_marked=block.is_marked
                )
        elif block.kind in ("", *PICTURES):
            for number, line in enumerate(block.text.splitlines(), 1):
                is_command = line.startswith("$ ") or (line.split(" ")[0] in PROGRAMS - {"reconsup", "make"})
                assert not is_command, f"{page}:{block.line + number}: a command in a block not marked sh: {line}"
    bare = re.sub(r"^( *)(```+)[^\n`]*\n.*?^\1\2 *$", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    for found in re.finditer(r"(?<!`)`([^`]+)`(?!`)", bare):
        words = " ".join(found[1].split())
        if program(words) in PROGRAMS and " " in words:
            yield Command(page, bare[: found.start()].count("\n") + 1, words.replace("\\|", "|"), is_inline=True)


def _logical_lines(block: Block) -> Iterator[tuple[int, str]]:
    """The commands of a shell block: comments and blank lines left out, continued lines and here-documents whole."""
    lines = block.text.splitlines()
    number = 0
    while number < len(lines):
        first, line = number + 1, lines[number]
        number += 1
        if block.kind in SESSION:
            if not line.startswith("$ "):
                continue
            line = line[2:]
        while line.endswith("\\") and number < len(lines):
            line = line[:-1].rstrip() + " " + lines[number].strip()
            number += 1
        if (mark := re.search(r"<<-?\s*['\"]?(\w+)['\"]?", line)) is not None:
            while number < len(lines):
                line += "\n" + lines[number]
                number += 1
                if lines[number - 1].strip() == mark[1]:
                    break
        line = without_comment(line)
        if line:
            yield first, line


def without_comment(line: str) -> str:
    """A command without the remark behind it. (The shell would leave it out as well.)"""
    if line.lstrip().startswith("#"):
        return ""
    return re.sub(r"\s{2,}#.*$", "", line).strip() if "\n" not in line else line


def program(text: str) -> str:
    """The program that a command starts: its first word, after what may stand before."""
    return BEFORE.sub("", text, count=1).split(" ")[0].removeprefix(".venv/bin/")


def usages(text: str) -> list[list[str]]:
    """A synopsis as command lines: without all that is in brackets, and with it, each of several choices once."""
    parts = re.split(r"\[([^][]*)\]", BEFORE.sub("", text, count=1))
    choices = [part.split("|") for part in parts[1::2]]
    chosen: list[list[str]] = [[""] * len(choices)] if choices else [[]]
    for place, several in enumerate(choices):
        firsts = [each[0] for each in choices]
        chosen += [[*firsts[:place], choice, *firsts[place + 1 :]] for choice in several]
    lines = ["".join(a + b for a, b in zip(parts[::2], [*each, ""], strict=True)) for each in chosen]
    return [words for number, line in enumerate(lines) if (words := shlex.split(line)) and line not in lines[:number]]
