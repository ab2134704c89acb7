"""SECURITY.md: its SQL makes two roles, as written; the one migrates, the other runs the main job, and may no more."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from reconsup import check, settings
from reconsup.demo.anvil import Anvil
from reconsup.store import migrate
from reconsup.store.privileges import NEEDS, WRITTEN_COLUMNS
from tests.pages import said
from tests.story.conftest import Town, deploy
from tests.support import launcher
from tests.support.postgres import Database
from tests.support.program import Program, wait_for

pytestmark = pytest.mark.service

PAGE = (said.ROOT / "packaging" / "SECURITY.md").read_text()
TO_MAKE, TO_GRANT = re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
OWNER, RUN = "reconsup_owner", "reconsup_run"


def as_role(database: Database, role: str) -> str:
    """The way to the database as that role."""
    parts = urlsplit(database.direct_url)
    return parts._replace(netloc=f"{role}:secret@{parts.hostname}:{parts.port}").geturl()


@pytest.fixture
def roles(empty_database: Database) -> Iterator[Database]:
    """The two roles, made by the page's first SQL, with a password."""
    try:
        with empty_database.connect() as connection:
            connection.execute(TO_MAKE.replace("DATABASE payments", f'DATABASE "{empty_database.name}"').encode())
            for role in (OWNER, RUN):
                connection.execute(f"ALTER ROLE {role} PASSWORD 'secret'")
        yield empty_database
    finally:
        for role in (RUN, OWNER):
            empty_database.execute(f"DROP OWNED BY {role} CASCADE")
            empty_database.execute(f"DROP ROLE {role}")


def checked(url: str) -> tuple[int, str]:
    """What `reconsup check` says as that role."""
    lines: list[str] = []
    return check.run(settings.load({"DATABASE_URL": url}, {}), lines.append), "\n".join(lines)


@pytest.mark.story
def test_the_roles_of_the_page_migrate_check_and_confirm_a_payment(roles: Database, tmp_path: Path) -> None:
    """Seen to fail without the GRANT on chain_events, and without reconcile_due_height among the columns."""
    with pytest.raises(migrate.AccessDenied, match="lacks a right"):
        migrate.upgrade(as_role(roles, RUN), "head")
    migrate.upgrade(as_role(roles, OWNER), "head")
    code, words = checked(as_role(roles, RUN))
    assert (code, words.count("GRANT ")) == (69, len(NEEDS) + 1), words
    with Database(roles.name, as_role(roles, OWNER), as_role(roles, OWNER)).connect(options="") as owner:
        owner.execute(TO_GRANT.encode())
    code, words = checked(as_role(roles, RUN))
    assert (code, f"ok    privileges: the role {RUN} may do what it must" in words) == (0, True), words
    with Anvil(block_seconds=0) as anvil:
        town = Town(roles, anvil, asyncio.run(deploy(anvil)), tmp_path)
        ids = town.requests(4)
        with Program(as_role(roles, RUN), town.rpc_urls, folder=tmp_path, workers=1) as program:
            program.wait_ready()
            town.pay(ids)
            wait_for("all are confirmed", lambda: town.statuses() == {"confirmed": 4}, 30)
            assert program.stop() == 0
        assert [line for line in program.lines() if "permission denied" in json.dumps(line)] == []
    assert granted(roles) == {(table, each) for table, needed in NEEDS.items() for each in needed} - {
        ("payment_requests", "UPDATE")
    }
    assert columns(roles) == set(WRITTEN_COLUMNS)


def granted(database: Database) -> set[tuple[str, str]]:
    """What the run role may do with whole tables."""
    rows = database.fetch(
        "SELECT table_name, privilege_type FROM information_schema.role_table_grants WHERE grantee = %s", [RUN]
    )
    return {(str(table), str(privilege)) for table, privilege in rows}


def columns(database: Database) -> set[str]:
    """Which columns of the payment service's own table it may change."""
    rows = database.fetch(
        "SELECT column_name FROM information_schema.role_column_grants"
        " WHERE grantee = %s AND privilege_type = 'UPDATE' AND table_name = 'payment_requests'",
        [RUN],
    )
    return {str(column) for (column,) in rows}


@pytest.mark.story
@pytest.mark.long
def test_with_the_environment_file_no_secret_is_in_the_process_list(database: Database, tmp_path: Path) -> None:
    """Of the supervisor and of all its children. Seen to fail with the URL given as a flag."""
    file = tmp_path / "reconsup.env"
    key = "key-4711"
    urls = json.dumps({"local": f"http://127.0.0.1:1/{key}"})
    file.write_text(f"DATABASE_URL={database.url}\nPAYMENT_REQUEST_EVM_RPC_URLS_JSON='{urls}'\n")
    password = urlsplit(database.url).password or key
    with Program("", {}, folder=tmp_path, workers=1, flags=["--env-file", str(file)]) as program:
        program.wait_ready()
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in launcher.family(program.process.pid)}
        assert list(program.status()["networks"]) == ["local"]
    assert len(lines) >= 3
    assert [line for line in lines.values() if password in line or key in line] == []
    assert "--env-file" in lines[program.process.pid]
    assert key not in program.log.read_text()


def test_the_tests_that_the_page_names_exist_and_look_for_secrets() -> None:
    named = re.findall(r"`(tests/\S+\.py)`", PAGE)

    assert len(named) >= 6
    assert [name for name in named if not (said.ROOT / name).is_file()] == []
    assert [name for name in named if not re.search("s3cr|secret|hunter", (said.ROOT / name).read_text())] == []
