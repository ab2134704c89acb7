"""The pages hold together; and each way in which they might not is found, with its place."""

import re
from pathlib import Path

import pytest

from tests.specs import lint
from tests.specs.pages import Page, slug
from tests.specs.there import Known, complaint_of_command

FOLDER = "specs/2026-01-02-many-hands"
FRONT = """\
---
id: many-hands/{name}
title: Many hands
status: {status}
date: 2026-01-03
owner: somebody
---

# {name}

"""
BODIES = {
    "problem": "See [what is wanted](requirements.md#fr-001-one-at-a-time) and [it](../../packaging/a%20b.png).\n",
    "requirements": "## FR-001 One at a time\n\nOne.\n\n## NFR-001 Fast\n\nSoon.\n",
    "design": "```sh\nsee [nobody](nowhere.md)\n```\n\n`[code](nowhere.md)` and <https://example.org/x#y>\n",
    "tasks": "## T-001 Do it\n\nRequirements: FR-001, NFR-001\nState: done\n\n```sh\nmake do KNOB=2\n"
    "reconsup check --x\n.venv/bin/python -m pytest tests/test_a.py -m 'not long'\n```\n",
    "test-plan": "## FR-001 One at a time\n\nAccepted when 0 are two.\n\n### By\n\n"
    "* `tests/test_a.py::test_one[a case]`\n\n"
    "## NFR-001 Fast\n\nAccepted when below 1 s.\n\n* `tests/test_a.py::test_two`\n",
}
TESTS = '''\
CASES = [("a case", 1), (2, "b")]


@pytest.mark.parametrize(("x", "y"), CASES)
def test_one(x, y):
    """Shows FR-001."""


async def test_two():
    pass


def help_them():
    pass
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project with nothing wrong in it."""
    for folder in (FOLDER, "packaging", "tests", "reconsup"):
        (tmp_path / folder).mkdir(parents=True)
    for name, body in BODIES.items():
        (tmp_path / FOLDER / f"{name}.md").write_text(FRONT.format(name=name, status="agreed") + body)
    (tmp_path / "packaging/a b.png").touch()
    (tmp_path / "README.md").write_text("# One\n\n[two](packaging/PAGE.md#a-two-1)\n")
    (tmp_path / "packaging/PAGE.md").write_text("## `A` two!\n\n## A two\n\n[up](../README.md#one) [here](#a-two)\n")
    (tmp_path / "Makefile").write_text(".PHONY: do\ndo: x ## it\n\techo\n")
    (tmp_path / "reconsup/cli.py").write_text("_add(commands, 'check', f)\n")
    (tmp_path / "tests/test_a.py").write_text(TESTS)
    return tmp_path


def test_nothing_is_wrong_with_the_pages() -> None:
    assert [str(fault) for fault in lint.faults(lint.ROOT)] == []


def test_nothing_is_wrong_with_a_small_project(project: Path) -> None:
    assert lint.faults(project) == []


BREACHES = {
    # front matter
    "no front matter": ("problem.md", r"\A---\n", "", "problem.md:1: has no front matter"),
    "it does not end": ("problem.md", "owner: somebody\n---\n", "", "problem.md:1: has no front matter"),
    "a key is missing": ("design.md", "owner: somebody\n", "", "design.md:2: its front matter has id, title, sta"),
    "a key too many": ("design.md", "owner", "mood: good\nowner", "design.md:2: its front matter has"),
    "an empty value": ("design.md", "title: Many hands", "title: ", "design.md:3: title is empty"),
    "a status that is none": ("design.md", "agreed", "nearly", "design.md:4: status is nearly"),
    "a day that is none": ("design.md", "2026-01-03", "2026-02-30", "design.md:5: date is 2026-02-30"),
    "before its folder": ("design.md", "2026-01-03", "2026-01-01", "design.md:5: date is 2026-01-01, before"),
    "another page's id": ("design.md", "many-hands/design", "many-hands/tasks", "design.md:2: id is many-hands/tasks"),
    # links
    "a page that is not there": ("problem.md", "png", "jpg", "problem.md:11: the link ../../packaging/a%20b.jpg leads"),
    "a heading that is not there": ("problem.md", "#fr-001", "#fr-002", "a heading that is not there"),
    "a heading of this page": ("../../packaging/PAGE.md", "#a-two", "#a-three", "PAGE.md:5: the link #a-three leads"),
    "a heading of no page": ("problem.md", "b.png", "b.png#x", "leads to a heading that is not there"),
    "out of the project": ("problem.md", "requirements.md", "../../../../etc/hosts", "leads nowhere"),
    "a reference": ("problem.md", "See", "[x]: gone.md\n\nSee", "problem.md:11: the link gone.md leads nowhere"),
    # requirements
    "no requirements": ("requirements.md", "## N?FR-", "## X-", "requirements.md:1: has no heading that begins"),
    "no plan for one": ("test-plan.md", "NFR-001", "X", "requirements.md:15: NFR-001 is not in the test plan"),
    "a plan for none": ("test-plan.md", r"\Z", "## FR-007 x\n", "test-plan.md:24: FR-007 is no requirement"),
    "the same twice": ("requirements.md", "NFR-001", "FR-001", "requirements.md:15: FR-001 is there twice"),
    "no test for one": ("test-plan.md", r"\* .*two`\n", "", "test-plan.md:19: NFR-001 names no test"),
    "no bar for one": ("test-plan.md", "Accepted when below", "It is", "NFR-001 does not say: Accepted when"),
    # tests
    "no such file": ("test-plan.md", "test_a.py::test_two", "test_b.py::test_two", ":23: tests/test_b.py is not there"),
    "no such test": ("test-plan.md", "test_two", "test_three", "test-plan.md:23: tests/test_a.py has no test test_t"),
    "a helper": ("test-plan.md", "test_two", "help_them", "tests/test_a.py has no test help_them"),
    "no such case": ("test-plan.md", "a case", "no case", "test-plan.md:17: test_one in tests/test_a.py has no case"),
    "no case at all": ("test-plan.md", "test_two", "test_two[a case]", "test_two in tests/test_a.py has no case"),
    "named in passing": ("design.md", "^`", "tests/gone.py `", "design.md:15: tests/gone.py is not there"),
    "an unplanned claim": ("../../tests/test_a.py", "FR-001", "NFR-001", "test_a.py:5: claims NFR-001, where the test"),
    # tasks
    "no tasks": ("tasks.md", "T-001", "Task", "tasks.md:1: has no heading that begins with T-001"),
    "for no requirement": ("tasks.md", "Requirements: .*", "", "tasks.md:11: T-001 does not say: Requirements"),
    "for one that is none": ("tasks.md", "NFR-001", "NFR-001, FR-009", "tasks.md:11: T-001 names FR-009"),
    "a requirement without": ("tasks.md", ", NFR-001", "", "requirements.md:15: no task names NFR-001"),
    "in no state": ("tasks.md", "State: done", "State: soon", "tasks.md:11: T-001 does not say: State"),
    "no command": ("tasks.md", "```sh", "```text", "tasks.md:11: T-001 has no command that shows it"),
    "no such target": ("tasks.md", "make do", "make undo", "tasks.md:17: make has no target undo"),
    "no such subcommand": ("tasks.md", "reconsup check", "reconsup chek", "tasks.md:18: reconsup has no command chek"),
    "no such test file": ("tasks.md", "pytest tests/test_a", "pytest tests/test_b", "19: tests/test_b.py is not"),
    "not one of ours": ("tasks.md", "make do", "rm -rf x", "tasks.md:17: not a command of this project: rm -rf x"),
}  # fmt: skip


@pytest.mark.parametrize("what", BREACHES)
def test_each_fault_is_found_with_its_place(project: Path, what: str) -> None:
    """Each was seen to fail with the line of the lint taken out that complains of it."""
    name, found, put, complaint = BREACHES[what]
    path = (project / FOLDER / name).resolve()
    before = path.read_text()
    path.write_text(re.sub(found, put, before, flags=re.MULTILINE))
    assert path.read_text() != before

    said = [str(fault) for fault in lint.faults(project)]
    assert [each for each in said if complaint in each], said


def test_a_document_that_is_missing_and_a_folder_without_any(project: Path) -> None:
    (project / FOLDER / "design.md").unlink()
    assert [str(fault) for fault in lint.faults(project)] == [f"{FOLDER}/design.md:1: is missing"]
    for page in (project / FOLDER).iterdir():
        page.unlink()
    (project / FOLDER).rmdir()
    assert [str(fault) for fault in lint.faults(project)] == ["specs:1: there is no folder YYYY-MM-DD-name"]


def test_two_pages_with_one_id(project: Path) -> None:
    (project / "specs/other.md").write_text(FRONT.format(name="design", status="agreed"))

    said = f"specs/other.md:2: id many-hands/design is also that of {FOLDER}/design.md"
    assert [str(fault) for fault in lint.faults(project)] == [said]


def test_an_open_task_may_name_what_is_still_to_be_made_but_not_on_a_page_that_is_done(project: Path) -> None:
    page = project / FOLDER / "tasks.md"
    page.write_text(page.read_text().replace("State: done", "State: open").replace("make do", "make undo"))
    assert lint.faults(project) == []
    page.write_text(page.read_text().replace("status: agreed", "status: done"))
    assert [str(fault) for fault in lint.faults(project)] == [
        f"{FOLDER}/tasks.md:11: T-001 is open on a page that is done"
    ]


def test_the_command_prints_each_fault_and_ends_with_1(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lint, "ROOT", project)
    assert lint.main() == 0
    assert capsys.readouterr().out == "7 pages, no faults\n"
    (project / "README.md").write_text("# One\n\n[two](three.md)\n")
    assert lint.main() == 1
    assert capsys.readouterr().out == "README.md:3: the link three.md leads nowhere\n7 pages, 1 fault\n"


@pytest.mark.parametrize(
    ("name", "is_there"),
    [
        ("tests/test_a.py::test_one", True),
        ("tests/test_a.py::test_one[2-b]", True),
        ("tests/test_a.py::test_one[a case-1]", True),
        ("tests/test_a.py::test_one[3-b]", False),
        ("tests/*.py", True),
        ("tests/*.pyx", False),
    ],
)
def test_a_test_is_known_by_its_name_and_its_case(project: Path, name: str, is_there: bool) -> None:
    assert (Known(project).complaint(name) is None) == is_there


@pytest.mark.parametrize(
    ("command", "is_there"),
    [
        ("KNOB=1 make do", True),
        ("KNOB=1 make undo", False),
        ("make -j2 do", True),
        ("reconsup --workers 4", True),
        ("python -m reconsup.cli", True),
        ("python -m reconsup.broom", False),
        (".venv/bin/python -m pytest -q -n 2 tests/test_a.py::test_one", True),
        (".venv/bin/python -m pytest -k one tests/test_a.py::test_none", False),
    ],
)
def test_a_command_is_known_by_what_it_names(project: Path, command: str, is_there: bool) -> None:
    assert (complaint_of_command(project, Known(project), command) is None) == is_there


@pytest.mark.parametrize(
    ("title", "anchor"),
    [
        ("A lease, and its `epoch`", "a-lease-and-its-epoch"),
        ("What is *seen* (FR-006, NFR-005)", "what-is-seen-fr-006-nfr-005"),
        ("row_failed – ä/b", "row_failed--äb"),
        ("[reconsup](../README.md) runs", "reconsup-runs"),
    ],
)
def test_anchors_are_those_that_github_makes(title: str, anchor: str) -> None:
    assert slug(title) == anchor


def test_a_fence_within_a_longer_fence_is_no_end(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("````text\n```\n[x](gone.md)\n```\n````\n[y](there.md)\n~~~\n# no\n~~~\n")

    assert list(Page(page, tmp_path).links()) == [(6, "there.md")]
    assert Page(page, tmp_path).sections() == []
