"""Reads the pages and says what is wrong with them: `make spec-lint`, or `python -m tests.specs.lint`.

Front matter of the dated folders in specs/; links and named tests of all pages; every requirement has a task, a
sentence that says when it is accepted, and tests that exist; every task has requirements and commands; what the
commands of a done task name exists. A test whose docstring claims a requirement stands in the test plan under it.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from tests.specs.pages import Page, Section
from tests.specs.there import Known, complaint_of_command

ROOT = Path(__file__).parent.parent.parent
PAGES = ("specs/**/*.md", "README.md", "packaging/**/*.md")
DOCUMENTS = ("problem", "requirements", "design", "tasks", "test-plan")
KEYS = ("id", "title", "status", "date", "owner")
STATUSES = ("draft", "agreed", "done")
STATES = ("open", "done")
REQUIREMENT = re.compile(r"\bN?FR-\d{3}\b")
TASK = re.compile(r"T-\d{3}")
NAMED_TEST = re.compile(r"\btests/[\w./*-]+\.py(?:::\w+(?:\[[^\]`]+\])?)?")
TEST = re.compile(r"tests/[\w./-]+\.py::\w+(?:\[.+\])?")


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """What is wrong, and where."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


class Project:
    """The pages and the tests below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pages = [Page(path, root) for pattern in PAGES for path in sorted(root.glob(pattern))]
        self.tests = Known(root)
        self.folders = sorted(path for path in root.glob("specs/[0-9]*") if path.is_dir())

    def page(self, path: Path) -> Page | None:
        """The page with that path, if there is one."""
        return next((page for page in self.pages if page.path == path), None)


def faults(root: Path) -> list[Fault]:
    """Everything that is wrong, in order."""
    project = Project(root)
    found = [*_links(project), *_named_tests(project), *_ids_are_unique(project)]
    if not project.folders:
        found.append(Fault("specs", 1, "there is no folder YYYY-MM-DD-name"))
    for folder in project.folders:
        documents = {name: project.page(folder / f"{name}.md") for name in DOCUMENTS}
        place = folder.relative_to(root).as_posix()
        found += [Fault(f"{place}/{name}.md", 1, "is missing") for name, page in documents.items() if page is None]
        there = {name: page for name, page in documents.items() if page is not None}
        found += [fault for name, page in there.items() for fault in _front_matter(page, folder.name, name)]
        if len(there) == len(DOCUMENTS):
            found += _traced(project, there)
    return sorted(set(found))


def _front_matter(page: Page, folder: str, name: str) -> Iterator[Fault]:
    if not page.front_lines:
        yield Fault(page.name, 1, "has no front matter: --- and then " + ", ".join(KEYS))
        return
    found = {key: (line, value) for line, key, value in page.front()}
    keys = tuple(key for _, key, _ in page.front())
    if keys != KEYS:
        yield Fault(page.name, 2, f"its front matter has {', '.join(keys)}; it is to have {', '.join(KEYS)}")
    for key, (line, value) in found.items():
        if not value:
            yield Fault(page.name, line, f"{key} is empty")
    began, topic = folder[:10], folder[11:]
    id_line, id_ = found.get("id", (2, ""))
    if id_ != f"{topic}/{name}":
        yield Fault(page.name, id_line, f"id is {id_ or 'missing'}; by its place it is {topic}/{name}")
    line, status = found.get("status", (2, ""))
    if status not in STATUSES:
        yield Fault(page.name, line, f"status is {status or 'missing'}; it is one of {', '.join(STATUSES)}")
    line, written = found.get("date", (2, ""))
    try:
        is_early = date.fromisoformat(written) < date.fromisoformat(began)
    except ValueError:
        yield Fault(page.name, line, f"date is {written or 'missing'}, of {began}; a day is YYYY-MM-DD")
    else:
        if is_early:
            yield Fault(page.name, line, f"date is {written}, before its folder's, {began}")


def _ids_are_unique(project: Project) -> Iterator[Fault]:
    seen: dict[str, str] = {}
    for page in project.pages:
        for line, key, value in page.front():
            if key == "id":
                if value in seen:
                    yield Fault(page.name, line, f"id {value} is also that of {seen[value]}")
                seen.setdefault(value, page.name)


def _links(project: Project) -> Iterator[Fault]:
    for page in project.pages:
        for line, target in page.links():
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue  # somebody else's page: not looked at here
            path, _, anchor = unquote(target).partition("#")
            place = (page.path.parent / path).resolve() if path else page.path
            if not place.exists() or not place.is_relative_to(project.root):
                yield Fault(page.name, line, f"the link {target} leads nowhere")
            elif anchor:
                other = project.page(place)
                if other is None or anchor not in {section.anchor for section in other.sections()}:
                    yield Fault(page.name, line, f"the link {target} leads to a heading that is not there")


def _named_tests(project: Project) -> Iterator[Fault]:
    for page in project.pages:
        for line, text in page.prose():
            for name in NAMED_TEST.findall(text):
                if complaint := project.tests.complaint(name):
                    yield Fault(page.name, line, complaint)


def _traced(project: Project, pages: dict[str, Page]) -> Iterator[Fault]:
    requirements = _sections(pages["requirements"], REQUIREMENT)
    plan = _sections(pages["test-plan"], REQUIREMENT)
    tasks = _sections(pages["tasks"], TASK)
    for name, sections, pattern in (
        ("requirements", requirements, "FR-001 or NFR-001"),
        ("test-plan", plan, "FR-001 or NFR-001"),
        ("tasks", tasks, "T-001"),
    ):
        if not sections:
            yield Fault(pages[name].name, 1, f"has no heading that begins with {pattern}")
        for before, after in pairwise(sorted(sections, key=lambda each: each.key)):
            if before.key == after.key:
                yield Fault(pages[name].name, after.line, f"{after.key} is there twice")
    known = {section.key for section in requirements}
    yield from _plan(pages, requirements, plan, project.tests)
    yield from _tasks(project, pages["tasks"], tasks, known)
    named = {id_ for task in tasks for id_ in _requirements_of(task)}
    for section in requirements:
        if section.key not in named:
            yield Fault(pages["requirements"].name, section.line, f"no task names {section.key}")


def _plan(pages: dict[str, Page], requirements: list[Section], plan: list[Section], tests: Known) -> Iterator[Fault]:
    name = pages["test-plan"].name
    planned = {section.key for section in plan}
    for section in requirements:
        if section.key not in planned:
            yield Fault(pages["requirements"].name, section.line, f"{section.key} is not in the test plan")
    shown: dict[str, set[str]] = {}
    for section in plan:
        if section.key not in {each.key for each in requirements}:
            yield Fault(name, section.line, f"{section.key} is no requirement")
        text = "\n".join(line for _, line in section.lines)
        shown[section.key] = {found.partition("[")[0] for found in TEST.findall(text)}
        if not shown[section.key]:
            yield Fault(name, section.line, f"{section.key} names no test")
        if not re.search(r"^Accepted when \S", text, re.MULTILINE):
            yield Fault(name, section.line, f"{section.key} does not say: Accepted when …")
    for test, line, docstring in tests.claims():
        for id_ in REQUIREMENT.findall(docstring):
            if test not in shown.get(id_, set()):
                yield Fault(test.partition("::")[0], line, f"claims {id_}, where the test plan does not name it")


def _tasks(project: Project, page: Page, tasks: list[Section], known: set[str]) -> Iterator[Fault]:
    status = next((value for _, key, value in page.front() if key == "status"), "")
    for task in tasks:
        named = _requirements_of(task)
        if not named:
            yield Fault(page.name, task.line, f"{task.key} does not say: Requirements: FR-001, …")
        for id_ in sorted(named - known):
            yield Fault(page.name, task.line, f"{task.key} names {id_}, which is no requirement")
        state = _value(task, "State")
        if state not in STATES:
            yield Fault(page.name, task.line, f"{task.key} does not say: State: {' or '.join(STATES)}")
        if state == "open" and status == "done":
            yield Fault(page.name, task.line, f"{task.key} is open on a page that is done")
        own = [(line, command) for line, command in page.commands() if (line, page.lines[line - 1]) in task.lines]
        if not own:
            yield Fault(page.name, task.line, f"{task.key} has no command that shows it")
        for line, command in own if state == "done" else []:  # an open task may name what is still to be made
            if complaint := complaint_of_command(project.root, project.tests, command):
                yield Fault(page.name, line, complaint)


def _sections(page: Page, pattern: re.Pattern[str]) -> list[Section]:
    return [section for section in page.sections() if pattern.fullmatch(section.key)]


def _value(section: Section, key: str) -> str:
    return next((line.partition(": ")[2].strip() for _, line in section.lines if line.startswith(f"{key}: ")), "")


def _requirements_of(task: Section) -> set[str]:
    return set(REQUIREMENT.findall(_value(task, "Requirements")))


def main() -> int:
    """Print each fault with its place; 1 if there is one."""
    found = faults(ROOT)
    for fault in found:
        print(fault)
    print(f"{len(Project(ROOT).pages)} pages, {len(found) or 'no'} fault{'' if len(found) == 1 else 's'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
