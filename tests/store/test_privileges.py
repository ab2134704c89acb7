"""What reconsup's role must be allowed: exactly what its statements do, told as the GRANTs that are missing."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from reconsup.store import privileges
from reconsup.store.database import Database
from reconsup.store.privileges import NEEDS, WRITTEN_COLUMNS, Rights, Room
from reconsup.store.schema import payment_requests
from tests.support.postgres import Database as Fresh
from tests.support.role import Role, a_role

STORE = Path(privileges.__file__).parent
NOT_AT_RUN = {"migrate.py", "ddl.py", "embedded.py", "indexes.py", "schema.py", "privileges.py"}


@pytest.fixture
def role(database: Fresh) -> Iterator[Role]:
    with a_role(database) as made:
        yield made


def missing(role: Role) -> Rights:
    async def run() -> Rights:
        async with Database(role.url, application_name="reconsup/test", lease_seconds=15) as connected:
            return await privileges.missing(connected)

    return asyncio.run(run())


def test_the_table_says_what_the_statements_do() -> None:
    """Read off the source of this room. Seen to fail with an entry more and with one fewer."""
    found: dict[str, set[str]] = {}
    for path in STORE.glob("*.py"):
        if path.name in NOT_AT_RUN:
            continue
        source = path.read_text()
        for pattern, privilege in (
            (r"INSERT INTO app\.(\w+)", "INSERT"),
            (r"(?<!FOR )UPDATE app\.(\w+)", "UPDATE"),
            (r"DELETE FROM app\.(\w+)", "DELETE"),
            (r"(?<!DELETE )(?:FROM|JOIN|,) app\.(\w+)", "SELECT"),
            (r'INSERT INTO app\.(\w+)(?:(?!INSERT INTO|""").)*ON CONFLICT[^"]*?DO\s+UPDATE', "UPDATE"),
        ):
            for table in re.findall(pattern, source, re.DOTALL):
                found.setdefault(table, set()).add(privilege)
    found["reconsup_schema_version"] = {"SELECT"}  # its name is put together

    assert found == {table: set(needed) for table, needed in NEEDS.items()}


def test_the_columns_are_those_that_the_statements_set() -> None:
    """Seen to fail with a column more and with one fewer."""
    statement = re.compile(r"UPDATE app\.payment_requests(?: r)?\s+SET(.*?)\b(?:WHERE|FROM)\b", re.DOTALL)
    found = {
        column
        for path in STORE.glob("*.py")
        if path.name not in NOT_AT_RUN
        for text in statement.findall(path.read_text())
        for column in re.findall(r"(?:^|,|\n) *(\w+) =", text)
    }

    assert found & set(payment_requests.columns.keys()) == set(WRITTEN_COLUMNS)


@pytest.mark.service
def test_a_role_that_may_nothing_is_told_every_grant_and_needs_no_other(role: Role) -> None:
    rights = missing(role)

    assert rights.role == role.name
    assert len(rights.grants) == len(NEEDS) + 1
    assert rights.grants[0] == f'GRANT USAGE ON SCHEMA app TO "{role.name}"'
    for grant in rights.grants:
        role.database.execute(grant)
    assert missing(role) == Rights(role.name, (), hides_rows=False)


@pytest.mark.service
@pytest.mark.parametrize(("table", "privilege"), [(table, each) for table in NEEDS for each in NEEDS[table]])
def test_each_privilege_is_missed(role: Role, table: str, privilege: str) -> None:
    role.may_work()
    role.database.execute(f'REVOKE {privilege} ON app.{table} FROM "{role.name}"')

    assert missing(role).grants == (f'GRANT {privilege} ON app.{table} TO "{role.name}"',)


@pytest.mark.service
def test_a_grant_on_the_columns_that_are_written_is_enough(role: Role) -> None:
    """Many a service lets nobody else write its own columns. Seen to fail when the whole table is asked for."""
    role.may_work()
    role.database.execute(f'REVOKE UPDATE ON app.payment_requests FROM "{role.name}"')
    for column in WRITTEN_COLUMNS:
        assert len(missing(role).grants) == 1
        role.database.execute(f'GRANT UPDATE ({column}) ON app.payment_requests TO "{role.name}"')
    assert missing(role).grants == ()


@pytest.mark.service
def test_rows_that_a_policy_hides_are_told(role: Role) -> None:
    role.may_work()
    role.database.execute("ALTER TABLE app.payment_requests ENABLE ROW LEVEL SECURITY")

    assert missing(role).hides_rows


@pytest.mark.service
def test_tables_that_are_not_there_yet_lack_nothing(empty_database: Fresh) -> None:
    with a_role(empty_database) as role:
        assert missing(role) == Rights(role.name, (), hides_rows=False)


@pytest.mark.service
def test_the_room_is_the_smallest_of_the_limits(role: Role) -> None:
    def room() -> Room:
        async def run() -> Room:
            async with Database(role.url, application_name="reconsup/test", lease_seconds=15) as connected:
                return await privileges.room(connected)

        return asyncio.run(run())

    ((most,),) = role.database.fetch("SELECT current_setting('max_connections')::int")
    whole = room()
    assert 0 < whole.connections_max < most
    role.database.execute(f'ALTER ROLE "{role.name}" CONNECTION LIMIT 7')
    assert room() == replace(whole, connections_max=7)
    role.database.execute(f"ALTER DATABASE {role.database.name} CONNECTION LIMIT 6")
    role.database.execute(f"ALTER DATABASE {role.database.name} SET default_transaction_read_only = on")
    assert room() == Room(6, is_read_only=True)
    with psycopg.connect(role.database.direct_url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER DATABASE {role.database.name} RESET default_transaction_read_only")
