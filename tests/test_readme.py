"""The README says what the program does: its settings table is the settings table, its commands exist."""

import re
from pathlib import Path

from reconsup.settings import SETTINGS

README = (Path(__file__).parent.parent / "README.md").read_text()


def settings_table() -> str:
    """The table as it must stand in the README; `python -m tests.test_readme` prints it."""
    lines = ["| name | flag | default | rule |", "|---|---|---|---|"]
    for setting in SETTINGS:
        default = f"`{setting.default}`" if setting.default is not None else "–"
        rule = setting.rule.replace("|", "\\|")
        lines.append(f"| `{setting.name}` | `{setting.flag}` | {default} | {rule} |")
    return "\n".join(lines)


def test_the_settings_table_is_the_one_of_the_program() -> None:
    found = re.search(r"<!-- settings: [^>]*-->\n(.*?)\n?<!-- /settings -->", README, re.DOTALL)
    assert found is not None
    assert settings_table() == found[1]


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    named = set(re.findall(r"(?:`|^)make ([a-z0-9-]+)", README, re.MULTILINE))
    assert named >= {"demo", "test", "check"}
    assert {name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)} == set()


if __name__ == "__main__":
    print(settings_table())
