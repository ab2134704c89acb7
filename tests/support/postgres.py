"""A real PostgreSQL for the tests, and fresh databases on it.

One server per test process (so per xdist worker: nothing is shared, nothing to coordinate), started at its first
use in about 0.6 s and ended with the session; the kernel ends it should the test process be killed. A fresh
migrated database is a copy of one that was migrated once, which takes some 20 ms. Short runs that a test starts
(tests/guards) borrow its server and its templates instead.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from reconsup.store import embedded, migrate
from tests.support import lease_history
from tests.support.bouncer import Bouncer, bouncer

PREFIX = "reconsup-test-pg-"
MIGRATED, WATCHED = "migrated", "watched"
BINARIES = "RECONSUP_TEST_POSTGRES"  # the folder of another PostgreSQL's initdb and postgres (`make test-15`)
MEMORY_BYTES_MIN = 2 << 30  # a test run uses some 100 MB, and others may run beside it
POOLER = "RECONSUP_TEST_POOLER"  # not empty: the program's connections lead through a PgBouncer (`make test-pooler`)

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Database:
    """One database of the test server, `url` as in DATABASE_URL."""

    name: str
    url: str
    direct_url: str  # the same, unless `url` leads through a pooler: this one leads past it

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """Open a connection in autocommit mode; close it (`with`) or leave it to the end of the test.

        It is somebody outside reconsup: what it does to leases is done by hand, and no history has to explain it.
        """
        return psycopg.connect(self.direct_url, **{"autocommit": True, "options": lease_history.BY_HAND, **options})

    def fetch(self, query: str, values: Any = None) -> list[tuple[Any, ...]]:
        """Execute one query over a connection of its own and return the rows."""
        with self.connect() as connection:
            return connection.execute(query, values).fetchall()

    def execute(self, statement: str, values: Any = None) -> int:
        """Execute one statement over a connection of its own and return how many rows it changed."""
        with self.connect() as connection:
            return connection.execute(statement, values).rowcount


@dataclass(frozen=True, slots=True)
class Borrowed:
    """A server that another test process started; `MIGRATED` and `WATCHED` are there."""

    url: str


@dataclass(frozen=True, slots=True)
class Postgres:
    """The test server. `pooler`: what stands between it and the program, if anything does."""

    server: "embedded.Server | Borrowed"
    pooler: Bouncer | None = None

    @property
    def url(self) -> str:
        """The address of its maintenance database."""
        return self.server.url

    def create(self, template: str | None = None) -> Database:
        """Make a database, empty or a copy of `template`."""
        name = f"{template or 'empty'}_{os.getpid()}_{next(_numbers)}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
            sql.Identifier(name), sql.Identifier(template or "template0")
        )
        self._admin(statement)
        url = self.url_of(name)
        return Database(name, self.pooler.url(url) if self.pooler else url, url)

    def drop(self, database: Database) -> None:
        """Drop a database, ending whoever is still connected."""
        self._admin(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database.name)))

    def url_of(self, name: str) -> str:
        """Return the address of the database `name`."""
        return self.url.removesuffix(f"/{embedded.DATABASE}") + f"/{name}"

    def _admin(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--borrow-postgres", metavar="URL", help="a server of the tests that runs, with its templates")


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[Postgres]:
    """The server of this test process, or the one it was told to borrow."""
    if borrowed := pytestconfig.getoption("--borrow-postgres"):
        yield Postgres(Borrowed(borrowed))
        return
    parent = _roomy_folder()
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
    try:
        folder.chmod(0o711)  # should we be root, the server runs as somebody else
        with embedded.start(folder, settings=embedded.THROWAWAY, binaries=binaries()) as server:
            if not os.environ.get(POOLER):
                yield Postgres(server)
                return
            with bouncer(server.url, pool_size=20) as pooler:
                yield Postgres(server, pooler)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def binaries() -> Path | None:
    """Where the PostgreSQL is that the tests are to run on; None: the one that reconsup brings."""
    folder = os.environ.get(BINARIES)
    return Path(folder).resolve() if folder else None


def _roomy_folder() -> Path:
    """Memory where there is plenty of it: copying a database takes a third of the time there."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > MEMORY_BYTES_MIN:
        return memory
    return Path(tempfile.gettempdir())


def _sweep(parent: Path) -> None:
    """Remove what a test process that was killed left behind."""
    for left in parent.glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).split("-")[0]
        if not Path("/proc", pid).exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_template(postgres: Postgres) -> str:
    """Name of a database with the finished schema and no rows, to be copied and never connected to."""
    if isinstance(postgres.server, embedded.Server):
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {MIGRATED} TEMPLATE template0")
        migrate.upgrade(postgres.url_of(MIGRATED), say=lambda _: None)
    return MIGRATED


@pytest.fixture(scope="session")
def watched_template(postgres: Postgres, migrated_template: str) -> str:
    """Name of a database like `migrated_template`, in which the history of leases is kept."""
    if isinstance(postgres.server, embedded.Server):
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {WATCHED} TEMPLATE {migrated_template}")
        url = postgres.url_of(WATCHED)
        lease_history.install(Database(WATCHED, url, url))
    return WATCHED


@pytest.fixture
def database(postgres: Postgres, watched_template: str) -> Iterator[Database]:
    """A fresh database with the finished schema and no rows; no two may hold one request together."""
    fresh = postgres.create(watched_template)
    try:
        yield fresh
        assert lease_history.complaints(fresh) == []
    finally:
        postgres.drop(fresh)


@pytest.fixture
def unwatched(postgres: Postgres, migrated_template: str) -> Iterator[Database]:
    """A fresh database as a migration leaves it: with the finished schema, no rows and nothing of the tests'."""
    fresh = postgres.create(migrated_template)
    yield fresh
    postgres.drop(fresh)


@pytest.fixture
def empty_database(postgres: Postgres) -> Iterator[Database]:
    """A fresh database with nothing in it, not even schema app."""
    fresh = postgres.create()
    yield fresh
    postgres.drop(fresh)


def request_row(**overrides: Any) -> dict[str, Any]:
    """Return the values of one request as the payment service writes it: the interop columns and no other.

    Default: a pending request for 1 ETH on network `local`, chain id 31337, with an id, an address and a
    derivation index of its own. A keyword replaces or adds a column.
    """
    number = next(_numbers)
    row = {
        "id": f"pr_{number:08}",
        "chain": "ethereum",
        "network": "local",
        "asset": "ETH",
        "status": "pending",
        "expected_amount_minor": 10**18,
        "address_canonical": f"0xabc{number:037x}",
        "address_scheme": "evm_bip44",
        "derivation_index": number,
        "chain_id": 31337,
        "token_standard": None,
        "token_contract": None,
        "token_decimals": None,
        "metadata": {},
        "expires_at": datetime.now(UTC) + timedelta(hours=1),
        **overrides,
    }
    return {name: Jsonb(value) if isinstance(value, (dict, list)) else value for name, value in row.items()}


def request_statement(row: dict[str, Any]) -> sql.Composed:
    """Return the INSERT for a `request_row`: it names the row's columns, like the payment service's does."""
    return sql.SQL("INSERT INTO app.payment_requests ({}) VALUES ({}) RETURNING id").format(
        sql.SQL(", ").join(map(sql.Identifier, row)), sql.SQL(", ").join(map(sql.Placeholder, row))
    )


def insert_request(connection: psycopg.Connection[Any], **overrides: Any) -> str:
    """Insert one request as the payment service does and return its id. See `request_row`."""
    row = request_row(**overrides)
    connection.execute(request_statement(row), row)
    return str(row["id"])


async def insert_request_async(connection: psycopg.AsyncConnection[Any], **overrides: Any) -> str:
    """Do what `insert_request` does, over an asyncio connection."""
    row = request_row(**overrides)
    await connection.execute(request_statement(row), row)
    return str(row["id"])
