"""A database for tests that only write rows: emptied before each, because a new copy takes ten times as long."""

from collections.abc import Iterator

import pytest

from tests.support import lease_history
from tests.support.bulk import Bulk, load
from tests.support.ledgers import Emptied
from tests.support.postgres import Postgres

TABLES = (
    "payment_request_settlements",
    "payment_request_transitions",
    "payment_requests",
    "chain_cursors",
    "chain_blocks",
    "chain_credits",
    "chain_spans",
    "reconsup_hosts",
)


@pytest.fixture(scope="session")
def _kept(postgres: Postgres, watched_template: str) -> Iterator[Emptied]:
    database = postgres.create(watched_template)
    with database.connect() as outsider:
        outsider.execute("SET lock_timeout = '5s'")
        yield Emptied(database.name, database.url, database.direct_url, outsider)
    postgres.drop(database)


@pytest.fixture
def emptied(_kept: Emptied) -> Iterator[Emptied]:
    """The finished schema without a row in it, not to be altered: whoever alters takes `database`.

    No two may hold one request together; that is looked at once more when the test is done.
    """
    for table in TABLES:
        _kept.execute(f"DELETE FROM app.{table}")
    lease_history.forget(_kept)
    yield _kept
    assert lease_history.complaints(_kept) == []


@pytest.fixture(scope="session", params=[50_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def bulk(request: pytest.FixtureRequest, postgres: Postgres, migrated_template: str) -> Iterator[Bulk]:
    """Many requests, and as many of another network; not to be changed. A million take half a minute to make."""
    database = load(postgres, migrated_template, request.param)
    yield database
    postgres.drop(database)
