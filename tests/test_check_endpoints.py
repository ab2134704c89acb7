"""`reconsup check` over several endpoints: a line for each URL, and 76 if one of them is of no use."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from reconsup import check, settings
from reconsup.demo.anvil import Anvil
from tests.support.desk import Desk
from tests.support.postgres import Database
from tests.support.twin_nodes import Twins, away, twin_nodes

pytestmark = pytest.mark.service


@pytest.fixture
def twins() -> Iterator[Twins]:
    with twin_nodes() as running:
        yield running


def checked(database: Database, *urls: str) -> tuple[int, list[str]]:
    """The exit code, and the lines about endpoints and networks."""
    lines: list[str] = []
    given = {
        "DATABASE_URL": database.url,
        "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": json.dumps({"local": list(urls)}),
    }
    code = check.run(settings.load(given, {}), lines.append)
    return code, [line for line in lines if line[6:].startswith(("endpoint", "network"))]


def test_each_url_has_a_line_of_its_own(database: Database, twins: Twins) -> None:
    code, lines = checked(database, *twins.urls)
    assert code == 0
    assert len(lines) == 2
    for line, url in zip(lines, twins.urls, strict=True):
        assert line.startswith(f"ok    endpoint local: {url}: chain id 31337, head 5")


def test_one_that_fails_is_76_and_the_others_are_tried_all_the_same(database: Database, twins: Twins) -> None:
    twins.at_a.spoil = away
    code, (first, second) = checked(database, *twins.urls)
    assert code == 76
    assert first.startswith(f"FAIL  endpoint local: {twins.at_a.url} answered HTTP 503")
    assert second.startswith(f"ok    endpoint local: {twins.at_b.url}")


def test_endpoints_that_do_not_agree_are_76_whichever_is_ahead(database: Database, twins: Twins) -> None:
    """An operator saw "ok" and "ok" while nothing was written. Seen to fail when their blocks are not compared."""
    twins.part(a_blocks=2, b_blocks=4)
    code, lines = checked(database, *twins.urls)
    assert code == 76
    assert [line[:4] for line in lines] == ["ok  ", "ok  ", "FAIL"]
    assert f"network local: {twins.at_a.url} and {twins.at_b.url} show different blocks 7 (0x" in lines[2]
    twins.follow()
    twins.b.rpc("anvil_mine", 1, 1)
    assert checked(database, *twins.urls)[0] == 0


def test_endpoints_of_different_chains_are_told_before_anything_was_read(database: Database, twins: Twins) -> None:
    with Anvil(chain_id=5) as other:
        code, lines = checked(database, twins.at_a.url, other.url)
    assert code == 76
    assert [line[:4] for line in lines] == ["ok  ", "ok  ", "FAIL"]
    assert lines[2].startswith("FAIL  network local: its endpoints show different chains")


def test_one_of_another_chain_than_the_database_was_read_from_fails_alone(database: Database, twins: Twins) -> None:
    async def read() -> None:
        async with Desk(database, twins.a.url) as desk:
            await desk.scan()

    asyncio.run(read())
    with Anvil(chain_id=5) as other:
        code, lines = checked(database, twins.at_a.url, other.url)
    assert code == 76
    assert [line[:4] for line in lines] == ["ok  ", "FAIL"]
    assert "shows chain id 5, but this database was read from chain id 31337" in lines[1]
