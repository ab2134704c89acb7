"""What the program can say, read off its source: log events of an operator, sentences of the status, reasons, codes."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LOUD = {"warning", "error", "exception", "critical"}


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Every module of the program but the demo, which nobody is called for at night."""
    paths = sorted((ROOT / "reconsup").rglob("*.py"))
    found = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}
    return {name: tree for name, tree in found.items() if not name.startswith("reconsup/demo/")}


def loud_events() -> dict[str, str]:
    """Each event that is logged at warning or above → where."""
    return {event: f"{name}:{line}" for name, tree in trees().items() for line, event in _events(tree)}


def _events(tree: ast.Module) -> Iterator[tuple[int, str]]:
    tables = {_name(node): node.value for node in tree.body if isinstance(node, ast.Assign)}
    spoken = {  # tell = log.error if … else log.warning
        _name(node) for node in ast.walk(tree) if isinstance(node, ast.Assign) and _is_loud(node.value) and _name(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            is_spoken = isinstance(node.func, ast.Name) and node.func.id in spoken
            if is_spoken or _is_loud(node.func):
                yield from ((node.lineno, event) for event in _texts(node.args[0], tables, node.lineno))
        elif isinstance(node, ast.Dict):  # an event that is put together by hand
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
            if "event" in keys and "todo" in keys:
                yield from ((node.lineno, event) for event in _texts(node.values[keys.index("event")], {}, node.lineno))


def _name(node: ast.Assign) -> str:
    (target, *_) = node.targets
    return target.id if isinstance(target, ast.Name) else ""


def _is_loud(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_loud(node.body) or _is_loud(node.orelse)
    return isinstance(node, ast.Attribute) and node.attr in LOUD


def _texts(node: ast.expr, tables: dict[str, ast.expr], line: int) -> list[str]:
    match node:
        case ast.Constant(str(text)):
            return [text]
        case ast.IfExp(body=one, orelse=other):
            return [*_texts(one, tables, line), *_texts(other, tables, line)]
        case ast.Subscript(value=ast.Name(table)) if isinstance(tables.get(table), ast.Dict):
            return [text for value in tables[table].values for text in _texts(value, tables, line)]
    raise AssertionError(f"line {line}: the event is {ast.unparse(node)}: teach tests/pages/said.py to read it")


def template(node: ast.expr) -> str | None:
    """A text as an operator sees it, with … for what is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [str(each.value) if isinstance(each, ast.Constant) else "…" for each in node.values]
        return re.sub(r"…+", "…", "".join(parts))
    return None


@functools.cache
def templates(folder: str = "reconsup/") -> tuple[str, ...]:
    """Every text in the source of a folder, docstrings left out."""
    chosen = [tree for name, tree in trees().items() if name.startswith(folder)]
    silent = {
        id(node.value) for tree in chosen for node in ast.walk(tree) if isinstance(node, ast.Expr)
    }  # a docstring is an expression that nobody uses
    return tuple(
        text
        for tree in chosen
        for node in ast.walk(tree)
        if isinstance(node, ast.expr) and id(node) not in silent and (text := template(node))
    )


def given_to(*functions: str, folder: str = "reconsup/") -> dict[str, str]:
    """The first text among the arguments of each call of these functions → where."""
    return {
        text: f"{name}:{node.lineno}"
        for name, tree in trees().items()
        if name.startswith(folder)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in functions
        for text in [next(filter(None, map(template, node.args)), None)]
        if text
    }


@functools.cache
def words() -> frozenset[str]:
    """Every word of every text, name and attribute of the source, and of the C file: what a page may name."""
    pages = [path.read_text() for path in sorted((ROOT / "reconsup").rglob("*.py"))]
    pages += [path.read_text() for path in (ROOT / "packaging").glob("*.c")]
    return frozenset(re.findall(r"\w+", "\n".join(pages)))


def exit_codes() -> set[int]:
    """The value of every EXIT_… of the program."""
    return {
        node.value.value
        for tree in trees().values()
        for node in tree.body
        if isinstance(node, ast.Assign)
        and _name(node).startswith("EXIT_")
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, int)
    }
