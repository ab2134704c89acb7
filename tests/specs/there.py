"""Which tests and commands there are, by reading the sources: what a page names is looked for here.

Nothing is imported or run, so that the lint is done in a second.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
_TAKE_A_VALUE = ("-m", "-k", "-n", "-p", "--dist")


class Known:
    """The test functions below tests/, as pytest collects them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, ast.Module] = {}

    @cached_property
    def paths(self) -> list[Path]:
        """The files in which pytest looks for tests."""
        return sorted((self.root / "tests").rglob("test_*.py"))

    def complaint(self, name: str) -> str | None:
        """What is wrong with a name like tests/x/test_y.py::test_z[case]; None: there is such a test."""
        file, _, rest = name.partition("::")
        if not any(self.root.glob(file)):
            return f"{file} is not there"
        if not rest:
            return None
        function, _, case = rest.partition("[")
        if self.root / file not in self.paths or function not in self._functions(file):
            return f"{file} has no test {function}"
        if case and not self._has_case(file, function, case.removesuffix("]")):
            return f"{function} in {file} has no case {case.removesuffix(']')}"
        return None

    def claims(self) -> Iterator[tuple[str, int, str]]:
        """Name, line and docstring of each test that has one."""
        for path in self.paths:
            file = path.relative_to(self.root).as_posix()
            for name, function in self._functions(file).items():
                if docstring := ast.get_docstring(function):
                    yield f"{file}::{name}", function.lineno, docstring

    def _module(self, file: str) -> ast.Module:
        if file not in self._known:
            self._known[file] = ast.parse((self.root / file).read_text())
        return self._known[file]

    def _functions(self, file: str) -> dict[str, Function]:
        body = self._module(file).body
        return {each.name: each for each in body if isinstance(each, Function) and each.name.startswith("test")}

    def _has_case(self, file: str, function: str, case: str) -> bool:
        """Whether the decorators speak of such a case: by its id, or by the values that pytest makes one of."""
        marks = [each for each in self._functions(file)[function].decorator_list if "parametrize" in ast.unparse(each)]
        named = {name.id for mark in marks for name in ast.walk(mark) if isinstance(name, ast.Name)}
        tables = [each for each in self._module(file).body if _targets(each) & named]
        nodes = [node for each in (*marks, *tables) for node in ast.walk(each)]
        said = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
        said |= {node.id for node in nodes if isinstance(node, ast.Name)}  # functions and classes, by their names
        return case in said or all(part in said for part in case.split("-"))


def _targets(statement: ast.stmt) -> set[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return {each.id for each in targets if isinstance(each, ast.Name)}


def complaint_of_command(root: Path, tests: Known, command: str) -> str | None:
    """What is wrong with a line that is to be typed; None: all that it names exists."""
    words = shlex.split(command)
    while words and re.match(r"[A-Z][A-Z0-9_]*=", words[0]):
        words.pop(0)
    match words:
        case ["make", *rest]:
            targets = [word for word in rest if "=" not in word and not word.startswith("-")]
            missing = [target for target in targets if not _is_target(root, target)]
            return f"make has no target {missing[0]}" if missing else None
        case ["reconsup", *rest]:
            return _of_the_program(root, rest)
        case [python, "-m", "pytest", *rest] if python.endswith("python"):
            given = zip(rest, ["", *rest], strict=False)
            named = [word for word, before in given if not word.startswith("-") and before not in _TAKE_A_VALUE]
            return next((complaint for word in named if (complaint := tests.complaint(word))), None)
        case [python, "-m", module, *_] if python.endswith("python"):
            place = root / module.replace(".", "/")
            is_there = place.with_suffix(".py").exists() or (place / "__main__.py").exists()
            return None if is_there else f"there is no module {module}"
    return f"not a command of this project: {command}"


def _is_target(root: Path, name: str) -> bool:
    return re.search(rf"^{re.escape(name)}:", (root / "Makefile").read_text(), re.MULTILINE) is not None


def _of_the_program(root: Path, words: list[str]) -> str | None:
    if not words or words[0].startswith("-"):
        return None  # the default command
    calls = [each for each in ast.walk(ast.parse((root / "reconsup/cli.py").read_text())) if isinstance(each, ast.Call)]
    adds = [call for call in calls if ast.unparse(call.func).endswith(("_add", "add_parser"))]
    known = {word.value for call in adds for word in call.args[:2] if isinstance(word, ast.Constant)}
    return None if words[0] in known else f"reconsup has no command {words[0]}"
