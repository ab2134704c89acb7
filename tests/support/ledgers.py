"""A chain made of plain values, and the short words with which store tests speak of it.

Blocks here were never mined: the store takes what the scanner hands it. Times are near now, because requests are
created now.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import psycopg
from psycopg.rows import dict_row

from reconsup.chain.block import NATIVE, Block, Credit, Fork, Header
from reconsup.payments.decision import Decision, Look
from reconsup.payments.request import Network, Reason, Status
from reconsup.payments.settlement import Orphaning, Settlement
from reconsup.store import cursor as cursors
from reconsup.store import leases, ledger
from reconsup.store.cursor import Cursor, Tags
from reconsup.store.database import Database
from reconsup.store.leases import Batch
from reconsup.store.ledger import Committed, RolledBack
from reconsup.store.persist import Against, Failure, Persisted, persist
from tests.support import postgres

NETWORK = Network("ethereum", "local")
CHAIN_ID = 31337
GENESIS = "0x" + "9e" * 32
OWNER = "host-0#00000000000000aa"
OTHER = "host-1#00000000000000bb"
SCANNER = "host-9#00000000000000cc"
LEASE_SECONDS = 30.0
TAIL_BLOCKS = 64
MONEY_MAX = 2**256 - 1


def hash_of(*parts: object) -> str:
    """A hash like those of the chain, the same for the same parts."""
    return "0x" + hashlib.sha256(repr(parts).encode()).hexdigest()


def now() -> datetime:
    """Now, in whole seconds as blocks have them."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True, slots=True)
class Emptied(postgres.Database):
    """A database of which the test reads and writes over one connection of its own: somebody outside reconsup."""

    outsider: psycopg.Connection[tuple[Any, ...]]

    def fetch(self, query: str, values: Any = None) -> list[tuple[Any, ...]]:
        """Execute one query and return the rows."""
        return self.outsider.execute(cast(Any, query), values).fetchall()

    def execute(self, statement: str, values: Any = None) -> int:
        """Execute one statement and return how many rows it changed."""
        return self.outsider.execute(cast(Any, statement), values).rowcount

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Execute one query and return the rows by column name."""
        with self.outsider.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(cast(Any, query), values).fetchall()

    def insert(self, **columns: Any) -> str:
        """Insert one request as the payment service does; its id."""
        return postgres.insert_request(self.outsider, **columns)

    def insert_many(self, count: int, **columns: Any) -> list[str]:
        """Insert so many requests, each with an address of its own; their ids."""
        return [self.insert(**columns) for _ in range(count)]


def store(database: postgres.Database, name: str = "test", *, lease_seconds: float = LEASE_SECONDS) -> Database:
    """A connection to the test's database; open it with `async with`."""
    return Database(database.url, application_name=name, lease_seconds=lease_seconds)


def request_of(database: Emptied, id_: str) -> dict[str, Any]:
    """All columns of a request."""
    (row,) = database.rows("SELECT * FROM app.payment_requests WHERE id = %s", id_)
    return row


def settlements_of(database: Emptied, id_: str) -> dict[str, dict[str, Any]]:
    """All columns of a request's settlements, by evidence_ref."""
    query = "SELECT * FROM app.payment_request_settlements WHERE payment_request_id = %s ORDER BY evidence_ref"
    return {row["evidence_ref"]: row for row in database.rows(query, id_)}


def history_of(database: Emptied, id_: str) -> list[dict[str, Any]]:
    """All columns of a request's history, oldest first."""
    return database.rows("SELECT * FROM app.payment_request_transitions WHERE payment_request_id = %s ORDER BY id", id_)


def everything(database: Emptied) -> list[list[dict[str, Any]]]:
    """All rows of all tables that a commit or a rollback writes."""
    tables = ("chain_cursors", "chain_blocks", "chain_credits", "payment_requests", "payment_request_settlements")
    return [database.rows(f"SELECT t::text FROM app.{table} t ORDER BY 1") for table in tables]


def put_off(database: Emptied) -> None:
    """Nothing is due: whoever is due after this was touched."""
    database.execute("UPDATE app.payment_requests SET next_reconcile_at = now() + interval '1 day'")


def due_in_seconds(row: dict[str, Any]) -> float:
    """How long until the row is due; negative when it is."""
    return float((row["next_reconcile_at"] - datetime.now(UTC)).total_seconds())


def is_due_and_free(row: dict[str, Any]) -> bool:
    """Whether anybody may claim the row at once."""
    return row["reconcile_lease_owner"] is None and due_in_seconds(row) <= 0


def cursor_of(database: Emptied, network: Network = NETWORK) -> dict[str, Any]:
    """All columns of a network's cursor."""
    query = "SELECT * FROM app.chain_cursors WHERE chain = %s AND network = %s"
    (row,) = database.rows(query, network.chain, network.name)
    return row


class Chain:
    """Blocks linked by parent hash, mined one by one above `first` - 1."""

    def __init__(self, *, first: int = 100, begins: datetime | None = None, name: str = "main") -> None:
        begins = begins or now() - timedelta(hours=1)
        self.name = name
        self.parent = Header(first - 1, hash_of(name, first - 1), hash_of(name, first - 2), begins)
        self.blocks: list[Block] = []

    @property
    def tip(self) -> Header:
        """The newest header."""
        return self.blocks[-1].header if self.blocks else self.parent

    def mine(self, *arrived: Credit, time: datetime | None = None) -> Block:
        """One more block, twelve seconds after the last unless a time is given."""
        tip = self.tip
        block_hash = hash_of(self.name, tip.height + 1, arrived)
        header = Header(tip.height + 1, block_hash, tip.block_hash, time or tip.time + timedelta(seconds=12))
        self.blocks.append(Block(header, arrived, proven=False))
        return self.blocks[-1]

    def mined(self, count: int) -> list[Block]:
        """So many empty blocks more."""
        return [self.mine() for _ in range(count)]

    def branch(self, height: int, name: str = "other") -> "Chain":
        """Another chain with the same blocks up to `height`."""
        other = Chain(first=self.parent.height + 1, name=name)
        other.parent = self.parent
        other.blocks = [block for block in self.blocks if block.height <= height]
        return other

    def fork_to(self, other: "Chain", height: int) -> Fork:
        """The proof that from `height` on `other` is the chain, as a walk back would find it."""
        theirs = {block.height: block.block_hash for block in other.blocks}
        common = next((block.header for block in self.blocks if block.height == height), self.parent)
        assert common.height == height
        orphaned = tuple((b.height, b.block_hash, theirs[b.height]) for b in self.blocks if b.height > height)
        return Fork(height, common.block_hash, common.time, orphaned)


def ether(address: str, amount_minor: int, tx: object = "tx") -> Credit:
    """Native value, sent in the transaction named `tx`."""
    return Credit(hash_of(tx), hash_of(tx), address.lower(), NATIVE, amount_minor)


def token(address: str, contract: str, amount_minor: int, tx: object = "tx", log_index: int = 0) -> Credit:
    """A token's Transfer, logged in the transaction named `tx`."""
    return Credit(f"{hash_of(tx)}:{log_index}", hash_of(tx), address.lower(), contract.lower(), amount_minor)


async def born(database: Database, chain: Chain, *, owner: str = SCANNER, network: Network = NETWORK) -> Cursor:
    """The network's cursor, born below the chain's first block, and held."""
    await cursors.birth(database, network, chain_id=CHAIN_ID, genesis_hash=GENESIS, parent=chain.parent)
    cursor = await cursors.take(database, network, owner=owner, lease_seconds=LEASE_SECONDS)
    assert cursor is not None
    return cursor


async def commit(
    database: Database,
    cursor: Cursor,
    *blocks: Block,
    tags: Tags | None = None,
    tail_blocks: int = TAIL_BLOCKS,
    due_against: Against = "scanned",
) -> Committed | None:
    """`ledger.commit` with the figures that most tests do not care for."""
    return await ledger.commit(
        database,
        cursor,
        blocks,
        tags or Tags(blocks[-1].height),
        lease_seconds=LEASE_SECONDS,
        tail_blocks=tail_blocks,
        due_against=due_against,
    )


async def committed(database: Database, cursor: Cursor, *blocks: Block, **figures: Any) -> Committed:
    """A commit that must succeed."""
    done = await commit(database, cursor, *blocks, **figures)
    assert done is not None
    return done


async def rolled_back(database: Database, cursor: Cursor, fork: Fork) -> RolledBack:
    """A rollback that must succeed."""
    done = await ledger.roll_back(database, cursor, fork, lease_seconds=LEASE_SECONDS)
    assert done is not None
    return done


async def claimed(
    database: Database,
    *,
    owner: str = OWNER,
    limit: int = 100,
    lease_seconds: float = LEASE_SECONDS,
    suspects: bool = False,
    network: Network = NETWORK,
) -> Batch:
    """`leases.claim` with the figures that most tests do not care for."""
    return await leases.claim(
        database, network, owner=owner, lease_seconds=lease_seconds, limit=limit, suspects=suspects
    )


def ids_of(batch: Batch) -> list[str]:
    """The ids of a batch, in the order of the claim."""
    return [claim.request.id for claim in batch.claims]


def decided(
    status: Status,
    reason: Reason | None = None,
    *,
    seconds: float | None = None,
    height: int | None = None,
    amount_minor: int = 0,
    confirmations: int = 0,
    evidence: tuple[Settlement, ...] = (),
    proof: Orphaning | None = None,
    late: tuple[Settlement, ...] = (),
) -> Decision:
    """A decision."""
    return Decision(status, reason, Look(seconds, height), amount_minor, confirmations, evidence, proof, late)


def all_of(batch: Batch, outcome: Decision | Failure) -> dict[str, Decision | Failure]:
    """The same outcome for every claim of a batch."""
    return dict.fromkeys(ids_of(batch), outcome)


async def persisted(
    database: Database,
    batch: Batch,
    outcomes: Mapping[str, Decision | Failure] | Decision | Failure,
    due_against: Against = "scanned",
) -> Persisted:
    """`persist` of an outcome for each claim, or of the same one for all."""
    if not isinstance(outcomes, Mapping):
        outcomes = all_of(batch, outcomes)
    return await persist(database, batch, outcomes, worker_id="host-0", due_against=due_against)


def with_epochs(batch: Batch, change: int) -> Batch:
    """The batch of somebody who presents other epochs."""
    return replace(batch, claims=tuple(replace(claim, epoch=claim.epoch + change) for claim in batch.claims))
