"""The wheel, as an operator gets it: installed where there is nothing but what it declares, it migrates and answers."""

import os
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.postgres import Database
from tests.support.wheel import ROOT, build, install

PROGRAM_SECONDS = 60

pytestmark = pytest.mark.service


@dataclass(frozen=True)
class Installed:
    """An environment of its own with the wheel in it, and an empty folder to work in."""

    environment: Path
    folder: Path
    dependencies: Path

    def run(self, program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's programs; it sees nothing of the checkout and of these tests' variables."""
        return subprocess.run(
            [self.environment / "bin" / program, *arguments],
            cwd=self.folder,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", **variables},
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
            check=False,
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    base = tmp_path_factory.mktemp("installed")
    environment, folder, dependencies = (base / name for name in ("environment", "folder", "dependencies"))
    folder.mkdir()
    install(wheel, environment, dependencies)
    return Installed(environment, folder, dependencies)


def test_the_wheel_carries_the_package_and_its_migrations(wheel: Path) -> None:
    """Seen to fail without pyproject's force-include."""
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "reconsup").rglob("*.py")}
    migrations = {
        f"reconsup/_{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "migrations").rglob("*.py")
        if path.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())

    assert "reconsup/_migrations/env.py" in migrations
    assert sources | migrations <= packed
    assert {name.split("/")[0] for name in packed if ".dist-info/" not in name} == {"reconsup"}
    assert not {name for name in packed if "__pycache__" in name}


def test_it_is_the_installed_package_that_is_tested(installed: Installed) -> None:
    """All comes from the new environment; what is not declared cannot be had. Seen to fail with psycopg undeclared."""
    asked = installed.run(
        "python",
        "-c",
        "import reconsup, psycopg, sys; print(reconsup.__file__, psycopg.__file__, *sys.path, sep='\\n')",
    )
    reconsup_file, psycopg_file, *search_path = asked.stdout.splitlines()

    assert Path(reconsup_file).is_relative_to(installed.environment)
    assert Path(psycopg_file).is_relative_to(installed.dependencies)
    assert not [folder for folder in search_path if Path(folder).is_relative_to(ROOT)]
    assert "No module named 'pytest'" in installed.run("python", "-c", "import pytest").stderr


def test_it_answers_help(installed: Installed) -> None:
    answer = installed.run("reconsup", "--help")

    assert (answer.returncode, answer.stderr) == (0, "")
    assert "migrate" in answer.stdout


def test_every_module_can_be_imported_without_extras(installed: Installed) -> None:
    """Only the demo may need more than what a service needs. Seen to fail with `rich` imported by the command line."""
    walk = "import pkgutil, reconsup; print(*(m.name for m in pkgutil.walk_packages(reconsup.__path__, 'reconsup.')))"
    listed = installed.run("python", "-c", walk).stdout.split()
    names = [name for name in listed if not name.startswith(("reconsup.demo", "reconsup._migrations"))]
    done = installed.run("python", "-c", f"import {', '.join(names)}")

    assert len(names) > 20
    assert (done.returncode, done.stderr) == (0, "")


def test_it_migrates_an_empty_database(installed: Installed, empty_database: Database) -> None:
    """Seen to fail without the migrations in the wheel."""
    done = installed.run("reconsup", "migrate", DATABASE_URL=empty_database.url)
    newest = max(path.name for path in (ROOT / "migrations" / "versions").glob("[0-9]*.py"))

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    ((version,),) = empty_database.fetch("SELECT version_num FROM app.reconsup_schema_version")
    assert newest.startswith(version)
    assert empty_database.fetch("SELECT count(*) FROM app.payment_requests") == [(0,)]


def test_it_migrates_down_and_up_again(installed: Installed, empty_database: Database) -> None:
    for action in (["upgrade"], ["downgrade", "base"], ["upgrade"]):
        done = installed.run("reconsup", "migrate", *action, DATABASE_URL=empty_database.url)

        assert done.returncode == 0, done.stderr
    assert empty_database.fetch("SELECT to_regclass('app.payment_requests') IS NOT NULL") == [(True,)]
