"""One worker's scanner, reconciler and reader of spans, driven by hand over a real chain and a real PostgreSQL.

Nothing happens between two calls, so nobody waits and nobody sleeps. `Desk` is the worker; `Shop` is a desk with the
customers around it, who ask for money, pay it and take it back. Times are the chain's.
"""

import itertools
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self, cast

from eth_utils import to_checksum_address
from psycopg.rows import dict_row

from reconsup.chain.evm import EvmChain
from reconsup.chain.nodes import Nodes
from reconsup.chain.rpc import Endpoint
from reconsup.demo.anvil import Anvil
from reconsup.demo.devchain import DevChain
from reconsup.fleet.posix import Bell
from reconsup.fleet.scoreboard import Scoreboard
from reconsup.payments.decision import Policy
from reconsup.payments.request import Network
from reconsup.store import database as store
from reconsup.worker.auditor import Auditor, Terms
from reconsup.worker.pause import Pauses
from reconsup.worker.reconciler import Duty, Reconciler
from reconsup.worker.scanner import Scanner, Watch
from reconsup.worker.spans import Reading, SpanReader
from tests.support.postgres import Database, insert_request

LOCAL = Network("ethereum", "local")
POLICY = Policy(confirmations=2, finality_confirmations=3, expiry_confirmations=3)
LEASE_SECONDS = 30.0
TAIL_BLOCKS = 64
STEPS_MAX = 200
ETHER = 10**18
LETTERS = 0xABCDEFABCDEFABCD << 96  # addresses have some, so that their case can differ

_scoreboard = Scoreboard("desk")
_numbers = itertools.count(1)


class CountingBell(Bell):
    def __init__(self) -> None:
        super().__init__()
        self.rings = 0

    def ring(self) -> None:
        self.rings += 1
        super().ring()


_bell = CountingBell()


class _Scanner(Scanner):
    desk: "Desk"

    async def turn(self) -> float:
        seconds = await super().turn()
        self.desk.skipped_seconds += seconds
        return seconds


class Desk:
    """A worker without a process. `turns` holds what the scanner's last turns said they would wait, in seconds."""

    def __init__(
        self,
        database: Database,
        url: str | Sequence[str],
        *,
        quorum: int = 1,
        proves: bool = True,
        slot: int = 0,
        policy: Policy = POLICY,
        tail_blocks: int = TAIL_BLOCKS,
        lease_seconds: float = LEASE_SECONDS,
        batch_size: int = 100,
        rpc_timeout_seconds: float = 5.0,
        audit_blocks: int = 64,
    ) -> None:
        self.slot = slot
        self.owner = f"desk-{slot}#{next(_numbers):016x}"
        self.cell = _scoreboard.cell(slot)
        self.bell = _bell
        self.reads_spans = True
        self.pauses = Pauses()
        self.calls: list[tuple[str, str]] = []  # method and outcome
        self._stack = AsyncExitStack()
        self._url = database.url
        urls = [url] if isinstance(url, str) else url
        self._endpoints = [Endpoint("local", each, rpc_timeout_seconds, self._count) for each in urls]
        self._quorum, self._proves = quorum, proves
        self.skipped_seconds = 0.0
        against = "scanned" if isinstance(policy.confirmations, int) else policy.confirmations
        self.watch = Watch(LOCAL, self.owner, lease_seconds, 15.0, tail_blocks, against)
        self.terms = Terms(LOCAL, 15.0, audit_blocks, policy.expiry_confirmations, policy.expiry_grace_seconds)
        self.duty = Duty("desk-" + str(slot), self.owner, batch_size, lease_seconds, 15.0, {LOCAL: policy})

    async def __aenter__(self) -> Self:
        chains = [
            EvmChain(await self._stack.enter_async_context(endpoint), proves=self._proves)
            for endpoint in self._endpoints
        ]
        self.nodes = Nodes(chains, quorum=self._quorum, proves=self._proves, clock=self._clock)
        pause = self.pauses.pause
        self.scanner = _Scanner(self.watch, await self._store("scan"), self.nodes, self.bell, pause())
        self.scanner.desk = self
        reading = Reading(LOCAL, self.owner, self.watch.lease_seconds, 15.0, join_seconds=0.0)
        self.reader = SpanReader(
            reading,
            await self._store("span"),
            self.nodes.apart(),
            self.bell,
            pause(),
            is_served=lambda: self.scanner.is_served,
        )
        nodes = Nodes(chains, clock=self._clock)  # as in the worker: of its own
        self.auditor = Auditor(self.terms, await self._store("audit"), nodes, self.scanner, self.bell, pause())
        self.reconciler = Reconciler(
            self.duty,
            [await self._store("look"), await self._store("look")],
            self.cell,
            pause(),
            is_served=lambda _: self.scanner.is_served,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def row_noted(self) -> str | None:
        """The request that the scoreboard says is at work."""
        return _scoreboard.read(self.slot).row

    async def _store(self, part: str) -> store.Database:
        name = f"{self.owner}/{part}"
        return await self._stack.enter_async_context(
            store.Database(self._url, application_name=name, lease_seconds=self.watch.lease_seconds)
        )

    def _clock(self) -> float:
        """The endpoints' clock: nobody waits here, so it goes on by what the scanner would have waited."""
        return time.monotonic() + self.skipped_seconds

    def _count(self, _: str, method: str, outcome: str, __: float, count: int) -> None:
        self.calls += [(method, outcome)] * count

    async def scan(self) -> float:
        """Turn until the scanner would wait; for how long."""
        for _ in range(STEPS_MAX):
            seconds = await self.scanner.turn()
            if seconds > 0:
                return seconds
        raise AssertionError("the scanner does not come to rest")

    async def look(self) -> None:
        """Look around until there is no more to do."""
        for _ in range(STEPS_MAX):
            if not await self.reconciler.look_around():
                return
        raise AssertionError("the reconciler does not come to rest")

    async def audit(self) -> None:
        """Compare balances, if it is time for it and this desk's network has that."""
        if self.duty.policies[LOCAL].audits_balances:
            await self.auditor.turn()

    async def read_span(self) -> float:
        """Turn until the reader of spans would wait; for how long."""
        for _ in range(STEPS_MAX if self.reads_spans else 0):
            seconds = await self.reader.turn()
            if seconds > 0:
                return seconds
        assert not self.reads_spans, "the reader of spans does not come to rest"
        return 0.0

    async def work(self) -> None:
        """Scan, look, read the span that this opened, audit, and look at what was touched."""
        await self.scan()
        await self.look()
        await self.read_span()
        await self.audit()
        await self.look()


class Shop:
    """Requests, and customers who pay them. Blocks are mined only by `mine` (and by reorgs)."""

    def __init__(self, database: Database, chain: DevChain, desk: Desk) -> None:
        self.database = database
        self.chain = chain
        self.desk = desk
        self.outsider = database.connect()  # somebody beside reconsup, over one connection
        self._token = ""

    # requests

    async def request(self, **overrides: Any) -> str:
        """A request for 1 ETH, made now (chain time), that ends in an hour."""
        now = await self.now()
        times = {"created_at": now, "expires_at": now + timedelta(hours=1)}
        address = f"0x{LETTERS | next(_numbers):040x}"
        return insert_request(self.outsider, **({"address_canonical": address} | times | overrides))

    async def token_request(self, **overrides: Any) -> str:
        """A request for 5 USDT of the shop's token; address and contract in checksummed letters."""
        token = {"asset": "USDT", "token_standard": "ERC20", "token_decimals": 6, "expected_amount_minor": 5_000_000}
        address = to_checksum_address(f"0x{LETTERS | next(_numbers):040x}")
        contract = {"address_canonical": address, "token_contract": to_checksum_address(await self.token())}
        return await self.request(**(token | contract | overrides))

    async def token(self) -> str:
        """The shop's token, deployed at its first use."""
        self._token = self._token or await self.chain.deploy_token(2**256 - 1)
        return self._token

    # customers

    async def pay(self, id_: str, amount_minor: int | None = None, *, to_mine: int = 1) -> str:
        """Pay a request, in full unless an amount is given, and mine; the transaction's hash."""
        row = self.row(id_)
        amount = int(row["expected_amount_minor"]) if amount_minor is None else amount_minor
        address = row["address_canonical"].lower()
        if row["token_contract"]:
            tx_hash = await self.chain.send_token(row["token_contract"].lower(), address, amount)
        else:
            tx_hash = await self.chain.send(address, amount)
        if to_mine:
            await self.chain.mine(to_mine)
        return tx_hash

    async def now(self) -> datetime:
        """The time of the latest block."""
        return datetime.fromtimestamp(await self.chain.block_time(), UTC)

    async def mine_at(self, time: datetime) -> None:
        """Mine one block with this time."""
        await self.chain.set_next_block_time(int(time.timestamp()))
        await self.chain.mine()

    # what there is to see

    def make_due(self) -> None:
        """As if the time had passed until the next look at every request that has one."""
        self.outsider.execute(
            "UPDATE app.payment_requests SET next_reconcile_at = now() WHERE next_reconcile_at IS NOT NULL"
            " AND reconcile_lease_owner IS NULL"
        )

    async def work(self) -> None:
        """Scan, read the span, audit, and look at everything that is not at rest, without waiting for its time."""
        await self.desk.scan()
        self.make_due()
        await self.desk.look()
        await self.desk.read_span()
        await self.desk.audit()
        await self.desk.look()

    def rows(self) -> dict[str, dict[str, Any]]:
        """All columns of all requests."""
        return {row["id"]: row for row in self._all("SELECT * FROM app.payment_requests ORDER BY id")}

    def row(self, id_: str) -> dict[str, Any]:
        """All columns of a request."""
        return self.rows()[id_]

    def status(self, id_: str) -> str:
        (row,) = self._all("SELECT status FROM app.payment_requests WHERE id = %s", id_)
        return str(row["status"])

    def settlements(self, id_: str) -> dict[str, dict[str, Any]]:
        """All columns of a request's settlements, by evidence_ref."""
        found = self._all("SELECT * FROM app.payment_request_settlements WHERE payment_request_id = %s", id_)
        return {row["evidence_ref"]: row for row in found}

    def entries(self, id_: str) -> list[dict[str, Any]]:
        """All columns of a request's history, oldest first."""
        return self._all("SELECT * FROM app.payment_request_transitions WHERE payment_request_id = %s ORDER BY id", id_)

    def reasons(self, id_: str) -> list[str]:
        """The reasons of a request's history, oldest first."""
        return [str(entry["reason"]) for entry in self.entries(id_)]

    def cursor(self) -> dict[str, Any]:
        """All columns of the network's cursor."""
        (row,) = self._all("SELECT * FROM app.chain_cursors")
        return row

    def scanned(self) -> int:
        """The height of the last block that was read."""
        return int(self.cursor()["next_height"]) - 1

    def _all(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with self.outsider.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(cast(Any, query), values).fetchall()


@asynccontextmanager
async def open_shop(
    database: Database, anvil: Anvil, *, url: str | Sequence[str] | None = None, blocks: int = 1, **figures: Any
) -> AsyncIterator[Shop]:
    """A shop on a chain of `blocks` blocks above its first; its desk speaks to `url` (the chain itself)."""
    async with DevChain(anvil.url) as chain, Desk(database, url or anvil.url, **figures) as desk:
        await chain.set_automine(False)
        await chain.mine(blocks)
        shop = Shop(database, chain, desk)
        with shop.outsider:
            yield shop


def without(row: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A row without some columns."""
    return {name: value for name, value in row.items() if name not in set(names)}
