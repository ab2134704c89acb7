"""`reconsup check` on the database's side: what the role may do, whether it may write, how many connections it has."""

import asyncio

import pytest

from reconsup import check, settings
from reconsup.store.backlog import announce
from reconsup.store.database import Database as Connected
from tests.monitor.test_backlog import host
from tests.support.postgres import Database
from tests.support.role import a_role

pytestmark = pytest.mark.service


def checked(url: str, **given: str) -> tuple[int, list[str]]:
    lines: list[str] = []
    return check.run(settings.load({"DATABASE_URL": url, **given}, {}), lines.append), lines


def starting(lines: list[str], *words: str) -> list[str]:
    return [line for line in lines if line[6:].startswith(words)]


def test_what_is_missing_is_told_as_the_statements_that_mend_it(database: Database) -> None:
    """69, as `run` would give. Seen to fail when only the schema is asked for."""
    with a_role(database) as role:
        code, lines = checked(role.url)
        told = starting(lines, "privileges")
        assert code == 69
        assert all(line.startswith(f"FAIL  privileges: the role {role.name} lacks some: GRANT ") for line in told)
        for line in told:
            database.execute(line.partition("lacks some: ")[2])
        database.execute(f'REVOKE INSERT ON app.chain_events FROM "{role.name}"')
        assert checked(role.url)[0] == 69, "it would be missed only when a network stops"
        database.execute(f'GRANT INSERT ON app.chain_events TO "{role.name}"')
        code, lines = checked(role.url)
        assert (code, starting(lines, "privileges")) == (
            0,
            [f"ok    privileges: the role {role.name} may do what it must"],
        )


def test_a_server_that_takes_no_writes_is_told(database: Database) -> None:
    database.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    code, lines = checked(database.url)
    assert code == 69
    assert lines[-1] == "FAIL  database: nothing can be written there: let DATABASE_URL name the primary server"


@pytest.mark.direct
def test_too_few_connections_for_all_hosts_are_told(database: Database) -> None:
    """Two per worker, three for each of its networks, two for the monitor. Seen to fail without the other hosts."""

    async def others() -> None:
        async with Connected(database.url, application_name="reconsup/test", lease_seconds=15) as connected:
            for base, status in (("a", {"networks": ["x", "y"]}), ("b", {"state": "stopped"}), ("me", {})):
                await announce(connected, host(base=base, slots=4), status, fresh_seconds=20)

    asyncio.run(others())
    urls = '{"local": "http://127.0.0.1:1"}'
    given = {"PAYMENT_REQUEST_EVM_RPC_URLS_JSON": urls, "PAYMENT_REQUEST_RECONCILER_WORKER_ID": "me"}
    need = (3 * (2 + 3) + 2) + (4 * (2 + 6) + 2)
    with a_role(database) as role:
        role.may_work()
        database.execute(f'ALTER ROLE "{role.name}" CONNECTION LIMIT {need}')
        _, enough = checked(role.url, RECONSUP_WORKERS="2:3", **given)
        database.execute(f'ALTER ROLE "{role.name}" CONNECTION LIMIT {need - 1}')
        code, few = checked(role.url, RECONSUP_WORKERS="2:3", **given)
    what = f"connections: this host and 1 more may open {need} at a time, "
    assert starting(enough, "connections") == [f"ok    {what}PostgreSQL allows {need}"]
    assert starting(few, "connections")[0].startswith(f"note  {what}but PostgreSQL allows {need - 1}: raise")
    assert code == 76, "only the endpoint fails"
    assert "workers=2:3" in few[0]
