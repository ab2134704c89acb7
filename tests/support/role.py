"""A PostgreSQL role that is not the owner of anything, as a payment service's database administrator makes one."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from psycopg import sql

from reconsup.store.privileges import NEEDS
from tests.support.postgres import Database

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Role:
    """`url` leads to the database as this role."""

    name: str
    url: str
    database: Database

    def may_work(self) -> None:
        """Give it all that a worker needs, and no more."""
        self.database.execute(f'GRANT USAGE ON SCHEMA app TO "{self.name}"')
        for table, needed in NEEDS.items():
            self.database.execute(f'GRANT {", ".join(needed)} ON app.{table} TO "{self.name}"')


@contextmanager
def a_role(database: Database) -> Iterator[Role]:
    """Make one that may nothing but connect; it goes with everything that it was given."""
    name = f"pay-app-{os.getpid()}-{next(_numbers)}"
    database.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(sql.Identifier(name)).as_string())
    parts = urlsplit(database.direct_url)
    url = parts._replace(netloc=f"{name}:secret@{parts.hostname}:{parts.port}").geturl()
    try:
        yield Role(name, url, database)
    finally:
        with database.connect() as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f'DROP OWNED BY "{name}"')
            connection.execute(f'DROP ROLE "{name}"')
