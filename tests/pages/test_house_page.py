"""specs/house.md, the README and the changelog: rooms, files and versions that they name are the real ones."""

import re
import tomllib

import reconsup
from tests.pages import pages
from tests.pages.pages import ROOT
from tests.test_house import FLOORS

PAGE = pages.read("specs/house.md")


def test_every_file_that_it_names_exists() -> None:
    """From the root, from reconsup/, or from the room that the line begins with. Seen to fail with `fleet/plans.py`."""
    named = set(re.findall(r"`((?:[a-z_]+/)*[A-Za-z_]+\.(?:py|md|toml|txt))`", PAGE))
    folders = ("", "reconsup/")

    assert {
        name for name in named if not any((ROOT / folder / name).is_file() for folder in folders)
    } - HYPOTHETICAL == (set())
    assert len(named) > 20
    asked = set(re.findall(r"`((?:tests|packaging|reconsup|migrations|specs)(?:/[a-z_]+)*)/?`", PAGE))
    assert {name for name in asked if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()} == set()


HYPOTHETICAL = {"chain/bitcoin.py", "migrations/versions/NNNN_name.py"}  # what somebody may write one day


def test_the_plan_of_the_rooms_names_every_room_and_module_of_the_source() -> None:
    """Seen to fail with a room left out, and with a module that does not exist."""
    (plan,) = (block.text for block in pages.blocks("specs/house.md") if block.text.startswith("reconsup/\n"))
    room, wrong = "", []
    for line in plan.splitlines()[1:]:
        if not line.startswith(" "):
            break
        head = line.split()[0]
        if head.endswith("/"):
            room = head
        elif line.startswith("  ") and line[2] != " ":
            room = ""
        wrong += [
            f"{room}{module}"
            for module in re.findall(r"\b[a-z_]+\.py\b", line)
            if not (ROOT / "reconsup" / room / module).is_file()
        ]
    rooms = {name.split(".")[0] for floor in FLOORS for name in floor}
    shown = {re.sub(r"/|\.py", "", word) for word in re.findall(r"^  ([a-z_]+(?:/|\.py))", plan, re.MULTILINE)}

    assert wrong == []
    assert rooms - shown == set()
    assert {f"{name}" for name in shown if not list((ROOT / "reconsup").glob(f"{name}*"))} == set()


def test_what_it_says_of_the_source_in_words_is_there() -> None:
    """Names of functions, classes and tables in backticks, of rooms of ours. Seen to fail with `find_forks`."""
    source = "\n".join(path.read_text() for path in sorted((ROOT / "reconsup").rglob("*.py")))
    names = set(re.findall(r"`([a-z_]+[a-z]|[A-Z][A-Za-z_]+)(?:\(\))?`", PAGE))
    known = set(re.findall(r"\w+", source)) | set(re.findall(r"\w+", (ROOT / "pyproject.toml").read_text()))

    assert sorted(names - known - OF_BITCOIN) == []
    assert {"find_fork", "EvmChain", "WRITTEN_COLUMNS"} <= names


OF_BITCOIN = {"nBits"}


def test_the_three_places_that_say_the_version_say_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## (\S+)", pages.read("packaging/CHANGELOG.md"), re.MULTILINE)

    assert newest is not None
    assert (project, newest[1]) == (reconsup.__version__, reconsup.__version__)


def test_the_licence_is_whole() -> None:
    """All nine sections and the end of the terms; the appendix, which tells how to use it, is no part of them."""
    text = (ROOT / "LICENSE").read_text()

    assert text.lstrip().startswith("Apache License\n")
    assert re.findall(r"^   (\d)\. ", text, re.MULTILINE) == [str(number) for number in range(1, 10)]
    assert "END OF TERMS AND CONDITIONS" in text
