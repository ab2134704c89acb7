"""The README says what the program does: its tables are the program's, its commands exist.

`python -m tests.test_readme settings` (or `metrics`) prints a table as it must stand there.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reconsup.monitor import metrics
from reconsup.settings import SETTINGS

README = (Path(__file__).parent.parent / "README.md").read_text()


def settings_table() -> str:
    """Made from reconsup/settings_table.py."""
    lines = ["| name | flag | default | rule |", "|---|---|---|---|"]
    for setting in SETTINGS:
        default = f"`{setting.default}`" if setting.default is not None else "–"
        rule = setting.rule.replace("|", "\\|")
        lines.append(f"| `{setting.name}` | `{setting.flag}` | {default} | {rule} |")
    return "\n".join(lines)


def metrics_table() -> str:
    """Made from reconsup/monitor/metrics.py."""
    lines = ["| metric | kind | labels | what it says |", "|---|---|---|---|"]
    for line in metrics.TABLE:
        labels = ", ".join(f"`{label}`" for label in line.labels) or "–"
        lines.append(f"| `{line.name}` | {line.kind} | {labels} | {line.help} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {"settings": settings_table, "metrics": metrics_table}


@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_the_one_of_the_program(name: str) -> None:
    found = re.search(rf"<!-- {name}: [^>]*-->\n(.*?)\n?<!-- /{name} -->", README, re.DOTALL)
    assert found is not None
    assert TABLES[name]() == found[1]


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    named = set(re.findall(r"(?:`|^)make ([a-z0-9-]+)", README, re.MULTILINE))
    assert named >= {"demo", "test", "check"}
    assert {name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)} == set()


if __name__ == "__main__":
    print(TABLES[sys.argv[1]]())
