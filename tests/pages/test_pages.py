"""Nothing in a page is wrong or forgotten: commands, flags, make targets, data, links.

A new command wants an entry in a list of tests/pages/listed.py, which says how. All that have none are told at once.
"""

import ast
import configparser
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable

import pytest

from reconsup import cli
from tests.pages import listed, pages
from tests.pages.pages import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
EVERY = [command for page in pages.names() for command in pages.commands(page)]
VALUES = {"HEIGHT": "100", "N": "2", "MIN:MAX": "2:8"}  # what a synopsis leaves open and the parser reads


def is_run(command: pages.Command) -> bool:
    """By a test, by the CI, or by a person who signed for it."""
    text = command.text
    if any(text in known for known in (listed.ON_STAGE, listed.ELSEWHERE, listed.BY_HAND)):
        return True
    if command.is_marked and (ROOT / listed.MARKED.get(command.page, "nobody")).is_file():
        return True
    if command.is_inline and re.fullmatch(r"systemctl ([a-z-]+|edit .*)", text):  # only named, or an editor
        return True
    if command.first and command.first in listed.BLOCKS.get(command.page, {}):
        return True
    if pages.program(text) == "make":
        (target,) = pages.BEFORE.sub("", text, count=1).split()[1:2] or ("help",)
        if target in of_the_ci() or (target in listed.TARGETS_TO_COME and f"\n{target}:" not in MAKEFILE):
            return True
    if pages.program(text) == "python" and " -m pytest " in text:
        return names_tests(text)  # which run whenever all of them do
    return command.is_inline and pages.program(text) in ("reconsup", "make")


def names_tests(text: str) -> bool:
    """Whether a command of pytest names files, folders and tests that are there, and nothing else."""
    words = shlex.split(pages.BEFORE.sub("", text, count=1))[3:]
    named = [word for word, before in zip(words, ["", *words], strict=False) if not {word[0], before[:1]} & {"-"}]
    found = [ROOT / word.partition("::")[0] for word in named if word.startswith("tests")]
    return len(found) == len(named) > 0 and all(path.exists() for path in found)


def of_the_ci() -> set[str]:
    """The make targets that .ci/run runs, and those that they run."""
    found = set(re.findall(r"^make (\S+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    for target in tuple(found):
        recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
        for words in re.findall(r"\$\(MAKE\) (.*)", recipe[1] if recipe else ""):
            found |= set(words.split())
    return found


def test_every_command_is_run_or_listed() -> None:
    """Seen to fail with any entry taken out of ELSEWHERE, BY_HAND and MARKED, with `kill -HUP PID` out of ON_STAGE, and
    with a command more in the README. (Of BLOCKS there are only blocks of SQL: test_commands.py tells those.)
    """
    wanting = {command.text: command.place for command in EVERY if not is_run(command)}

    assert wanting == {}, "put each into a list of tests/pages/listed.py, which says how:\n" + "\n".join(
        f"  {place}: {text!r}" for text, place in wanting.items()
    )
    assert len(EVERY) > 40


def test_nothing_is_listed_that_stands_in_no_page() -> None:
    written = {command.text for command in EVERY}
    lists = {name: set(getattr(listed, name)) for name in ("ON_STAGE", "ELSEWHERE", "BY_HAND")}
    firsts = {(page, block.text.split("\n")[0]) for page in pages.names() for block in pages.blocks(page)}

    assert {name: sorted(texts - written) for name, texts in lists.items() if texts - written} == {}
    assert [text for text in written if sum(text in texts for texts in lists.values()) > 1] == []
    assert {(page, first) for page, lines in listed.BLOCKS.items() for first in lines} - firsts == set()


def test_every_test_that_is_said_to_run_a_command_exists() -> None:
    named = [*listed.ELSEWHERE.values(), *(test for lines in listed.BLOCKS.values() for test in lines.values())]
    found = {}
    for each in named:
        name, _, function = each.partition("::")
        path = ROOT / name
        functions = {
            node.name
            for node in ast.walk(ast.parse(path.read_text() if path.exists() else ""))
            if isinstance(node, ast.FunctionDef)
        }
        found[each] = bool(functions) and (not function or function in functions)

    assert [each for each, is_there in found.items() if not is_there] == []


def test_who_ran_a_command_by_hand_signed_with_a_date_and_a_reason() -> None:
    assert [
        text
        for text, hand in listed.BY_HAND.items()
        if not (hand.who and hand.why and re.fullmatch(r"\d{4}-\d\d-\d\d", hand.when))
    ] == []


RECONSUP = sorted({command.text for command in EVERY if pages.program(command.text) == "reconsup"})


@pytest.mark.parametrize("text", RECONSUP)
def test_every_command_of_reconsup_is_one(text: str) -> None:
    """By the program's own parser. Seen to fail with `reconsup check --worker 4`, and with `reconsup watch`."""
    for words in pages.usages(text):
        if refusal := refused(words[1:]):
            pytest.fail(f"{text}: {refusal}")


def refused(arguments: list[str]) -> str | None:
    """Why the command line is none."""
    if len(arguments) == 1 and re.fullmatch(r"[a-z]+", arguments[0]):  # only named, as `reconsup chain`
        return None if f"\n    {arguments[0]} " in cli._parser().format_help() else "there is no such command"
    if arguments == ["chain", "NETWORK"]:
        return None
    try:
        cli._parser().parse_args(cli.with_default_command([VALUES.get(each, each) for each in arguments]))
    except SystemExit as ended:
        return None if ended.code == 0 else f"exit code {ended.code}"
    return None


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
    asked = {
        (command.place, word)
        for command in EVERY
        if pages.program(command.text) == "make"
        for word in pages.BEFORE.sub("", command.text, count=1).split()[1:]
        if re.fullmatch("[a-z0-9-]+", word)
    }

    assert {(place, word) for place, word in asked if word not in targets | listed.TARGETS_TO_COME} == set()
    assert "demo" in {word for _, word in asked}


def test_every_target_says_what_it_does_in_make_help() -> None:
    phony = set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split())

    assert {name for name in phony if not re.search(rf"^{name}:.*## \w", MAKEFILE, re.MULTILINE)} == set()


def _ini(text: str) -> None:
    reader = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=False, delimiters=("=",))
    reader.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    reader.read_string(text)
    assert reader.sections()


READERS: dict[str, Callable[[str], object]] = {"json": json.loads, "toml": tomllib.loads, "ini": _ini}


def wrong_data(blocks: Iterable[pages.Block]) -> list[str]:
    """What cannot be read, or has a kind that nothing here reads."""
    wrong = []
    for block in blocks:
        first = block.text.split("\n")[0]
        if first in listed.BLOCKS.get(block.page, {}):
            continue
        if block.kind in READERS:
            try:
                READERS[block.kind](block.text)
            except (ValueError, configparser.Error, AssertionError) as error:
                wrong.append(f"{block.page}:{block.line}: {error}")
        elif block.kind not in ("", "sql", *pages.SHELL, *pages.SESSION, *pages.PICTURES):
            wrong.append(f"{block.page}:{block.line}: a block of {block.kind}: {first!r}")
    return wrong


def test_every_block_of_data_can_be_read() -> None:
    """SQL is run by test_commands.py."""
    wrong = wrong_data(block for page in pages.names() for block in pages.blocks(page))

    assert wrong == [], "correct it, or name in BLOCKS of tests/pages/listed.py the test that reads it"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("json", '{"a": [1]}', '{"a": [1]'),
        ("toml", 'a = "1"', "a = 1x"),
        ("ini", "[Service]\nNice=1", "[Service]\nNice"),
        ("sql", "SELECT 1", None),
        ("yaml", None, "a: 1"),
    ],
)
def test_data_that_cannot_be_read_is_told(kind: str, good: str | None, bad: str | None) -> None:
    """No page has a block of some of these kinds now; the next one that has is read."""
    for text, is_wrong in ((good, False), (bad, True)):
        if text is not None:
            assert bool(wrong_data(pages.blocks("x", f"```{kind}\n{text}\n```\n"))) is is_wrong


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    """Seen to fail with a link to a heading that was renamed."""
    wrong = []
    for page in pages.names():
        for target in re.findall(r"\]\(([^)\s]+)\)", pages.read(page)):
            name, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            path = (ROOT / page).parent / name if name else ROOT / page
            if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path.read_text())):
                wrong.append(f"{page}: {target}")

    assert wrong == []


def anchors(text: str) -> set[str]:
    """As the sites make them that show these pages."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reader_of_pages_reads_what_people_write() -> None:
    """The parser's own test: continued lines, here-documents, remarks, sessions, blocks in lists, sentences."""
    text = """
Say `make demo` or ``make x``, `reconsup` or `status`; `reconsup status [--all\\|--json]`.

1. first
   ```sh
   curl -s \\
     http://x/metrics   # a remark
   cat > f <<'EOF'
   # not a remark
   EOF
   ```

<!-- run: more -->
```console
$ ls -l
total 0
```
"""
    assert [(each.text, each.is_inline) for each in pages.commands("x", text)] == [
        ("curl -s http://x/metrics", False),
        ("cat > f <<'EOF'\n# not a remark\nEOF", False),
        ("ls -l", False),
        ("make demo", True),
        ("reconsup status [--all|--json]", True),
    ]
    assert [each.text for each in pages.commands("x", text) if each.is_marked] == ["ls -l"]
    with pytest.raises(AssertionError, match="not marked sh"):
        list(pages.commands("x", "```\ncurl x\n```\n"))
    assert pages.usages("sudo -u b X=1 a [b|c] d [e]") == [["a", "d"], ["a", "b", "d", "e"], ["a", "c", "d", "e"]]
    assert pages.usages("a b") == [["a", "b"]]
    assert names_tests('X=1 .venv/bin/python -m pytest tests/store tests/pages/test_pages.py::test_x -m "not long"')
    assert not names_tests(".venv/bin/python -m pytest tests/cellar")
    assert not names_tests(".venv/bin/python -m pytest -m long")
