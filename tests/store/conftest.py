"""A database for tests that only write rows: emptied before each, because a new copy takes ten times as long."""

from collections.abc import Iterator

import pytest

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
def _kept(postgres: Postgres, migrated_template: str) -> Iterator[Emptied]:
    database = postgres.create(migrated_template)
    with database.connect() as outsider:
        outsider.execute("SET lock_timeout = '5s'")
        yield Emptied(database.name, database.url, database.direct_url, outsider)
    postgres.drop(database)


@pytest.fixture
def emptied(_kept: Emptied) -> Emptied:
    """The finished schema without a row in it, not to be altered: whoever alters takes `database`."""
    for table in TABLES:
        _kept.execute(f"DELETE FROM app.{table}")
    return _kept
