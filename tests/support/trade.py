"""Customers of every kind on a chain that takes blocks back, and what must have become of each request in the end.

One task inserts requests, pays them, mines several blocks a second and now and then replaces the newest one to three by
others: what was paid in them is mined again, in the same order, at once or later; a payment of the kind LOST is gone.
Block times are the wall clock's. What a request must end as follows from its kind alone.
"""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Self

import psycopg

from reconsup.demo.devchain import DevChain
from tests.story.conftest import Town
from tests.support.liar import Node, node_before
from tests.support.postgres import request_row, request_statement
from tests.support.program import wait_for

SHORT_SECONDS = 3.0  # how long those requests are open that are to expire
OPEN_SECONDS = 3600.0  # all others
ORDERS_MAX = 3  # before each block
LATE_SECONDS = 1.0  # so long after its end a late payment comes, on the chain's clock
PAUSE_SECONDS = (0.1, 0.3)  # between two blocks
REORG_SHARE = 0.08  # of the blocks, one begins a reorg
DEPTH_MAX = 3
LOST_SENDERS = 6


class Kind(StrEnum):
    """What a customer does."""

    FULL = "full"
    OVER = "over"
    HALVES = "halves"
    TWICE = "twice"
    UNDER = "under"
    LATE = "late"
    NEVER = "never"
    OPEN = "open"
    LOST = "lost"


PAID = (Kind.FULL, Kind.OVER, Kind.HALVES, Kind.TWICE)
SHORT = (Kind.UNDER, Kind.LATE, Kind.NEVER)
DRAWN = [Kind.FULL] * 6 + [Kind.OVER, Kind.HALVES, Kind.TWICE, Kind.UNDER, Kind.LATE, Kind.NEVER, Kind.OPEN, Kind.LOST]


@dataclass
class Order:
    """A request and its payments: `txs` holds the hashes, also of what the chain has taken back since."""

    id: str
    kind: Kind
    row: dict[str, Any]
    txs: list[str] = field(default_factory=list)

    @property
    def may_end_as(self) -> set[str]:
        """The statuses in which it may end. A lost payment may have been seen before it was lost, or not."""
        if self.kind in PAID:
            return {"confirmed"}
        if self.kind in SHORT:
            return {"expired"}
        return {"pending", "reorged"} if self.kind is Kind.LOST else {"pending"}


@dataclass
class _Due:
    """A payment that is to be made when the chain's clock has reached `at`."""

    at: float
    order: Order
    amount: int


class Trade:
    """Inside the `with` it goes on, until `stop`. `node`: the endpoint that a test may let lie; open from the start."""

    def __init__(self, town: Town, seed: int, *upstreams: str) -> None:
        self.orders: list[Order] = []
        self.counts: Counter[str] = Counter()
        self.node: Node
        self._town = town
        self._random = random.Random(seed)
        self._upstreams = upstreams
        self._due: list[_Due] = []
        self._lost_in: int | None = None  # so many blocks from now a payment of the kind LOST is taken back
        self._free_senders: list[str] = []
        self._is_trading = False
        self._opened, self._trading, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="trade")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._opened.wait(20)
        self._raise()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._trading.clear()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def begin(self) -> None:
        """Let customers come."""
        self._trading.set()

    def end(self) -> None:
        """No more customers: the payments that are due are made; then, until the end of the `with`, empty blocks."""
        self._trading.clear()

        def is_done() -> object:
            return self._error or not (self._due or self._lost_in is not None or self._is_trading)

        wait_for("the last payments are made", is_done, 30)
        self._raise()

    def check(self) -> None:
        """Raise what went wrong in the customers' own thread."""
        self._raise()

    def _raise(self) -> None:
        if self._error:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            self._error = error
            self._opened.set()

    async def _live(self) -> None:
        async with DevChain(self._town.anvil.url) as chain, node_before(*self._upstreams) as self.node:
            self._free_senders = chain.accounts[1 : 1 + LOST_SENDERS]
            self._opened.set()
            while not self._stop.is_set():
                self._is_trading = self._trading.is_set()
                if self._is_trading:
                    await self._order(self._random.randint(1, ORDERS_MAX))
                await self._pay_what_is_due(chain)
                await chain.call("evm_mine")
                self.counts["blocks"] += 1
                await self._perhaps_take_back(chain)
                await asyncio.sleep(self._random.uniform(*PAUSE_SECONDS))

    # requests and payments

    async def _order(self, count: int) -> None:
        new = []
        for number in range(len(self.orders), len(self.orders) + count):
            kind = self._random.choice(DRAWN)
            if kind is Kind.LOST and (self._is_losing(new) or not self._free_senders):
                kind = Kind.FULL
            row = request_row(**self._town.asset(0 if kind is Kind.LOST else number))
            new.append(Order(row["id"], kind, row))
            self.counts[kind] += 1
        await self._insert(new)
        self.orders += new
        for order in new:
            self._due += [_Due(at, order, amount) for at, amount in self._payments(order)]

    def _payments(self, order: Order) -> list[tuple[float, int]]:
        """When the customer pays how much."""
        now = datetime.now(UTC).timestamp()
        soon = now + self._random.uniform(0, 1)
        whole = int(order.row["expected_amount_minor"])
        match order.kind:
            case Kind.FULL:
                return [(soon, whole)]
            case Kind.LOST:
                return [(now, whole)]
            case Kind.OVER:
                return [(soon, whole + whole // 3)]
            case Kind.HALVES:
                return [(now, whole // 2), (soon + 1, whole - whole // 2)]
            case Kind.TWICE:
                return [(now, whole), (soon + 1, whole)]
            case Kind.UNDER:
                return [(now, whole - 1)]
            case Kind.LATE:
                return [(order.row["expires_at"].timestamp() + LATE_SECONDS, whole)]
            case Kind.NEVER | Kind.OPEN:
                return []

    async def _insert(self, orders: Sequence[Order]) -> None:
        """The payment service does not lose a request because the database was away."""
        while True:
            for order in orders:
                seconds = SHORT_SECONDS if order.kind in SHORT else OPEN_SECONDS
                order.row["expires_at"] = datetime.now(UTC) + timedelta(seconds=seconds)
            try:
                await asyncio.to_thread(self._insert_once, orders)
            except psycopg.OperationalError:
                await asyncio.sleep(0.05)
            else:
                return

    def _insert_once(self, orders: Sequence[Order]) -> None:
        with self._town.database.connect(connect_timeout=2) as connection, connection.transaction():
            query = "SELECT id, expires_at FROM app.payment_requests WHERE id = ANY(%s)"
            there = dict(connection.execute(query, [[order.id for order in orders]]).fetchall())
            for order in orders:
                if order.id in there:  # the answer was lost, the row was not
                    order.row["expires_at"] = there[order.id]
                else:
                    connection.execute(request_statement(order.row), order.row)

    async def _pay_what_is_due(self, chain: DevChain) -> None:
        time_now = await chain.block_time()
        for due in [each for each in self._due if each.at <= time_now + 1]:
            if due.order.kind is Kind.LATE and due.at > time_now:
                continue
            self._due.remove(due)
            await self._pay(chain, due.order, due.amount)

    async def _pay(self, chain: DevChain, order: Order, amount: int) -> None:
        address, contract = order.row["address_canonical"], order.row["token_contract"]
        if order.kind is Kind.LOST:
            self._lost_in = self._random.randrange(DEPTH_MAX)
            sender = self._free_senders.pop()
            order.txs.append(await chain.send(address, amount, sender=sender))
        elif contract:
            order.txs.append(await chain.send_token(contract, address, amount))
        else:
            order.txs.append(await chain.send(address, amount))
        self.counts["payments"] += 1

    # reorgs

    def _is_losing(self, new: Sequence[Order]) -> bool:
        """One such payment after the other, so that each is taken back."""
        orders = [*new, *(due.order for due in self._due)]
        return self._lost_in is not None or any(order.kind is Kind.LOST for order in orders)

    async def _perhaps_take_back(self, chain: DevChain) -> None:
        if self._lost_in is not None:
            self._lost_in -= 1
            if self._lost_in < 0:
                self._lost_in = None
                await self._take_back(chain, DEPTH_MAX)
        elif (self._is_trading or self._due) and self._random.random() < REORG_SHARE:
            await self._take_back(chain, self._random.randint(1, DEPTH_MAX))

    async def _take_back(self, chain: DevChain, depth: int) -> None:
        """Replace the newest blocks; what stood in them comes again, some at once, some in a block after them."""
        head = await chain.height()
        lost = {tx for order in self.orders if order.kind is Kind.LOST for tx in order.txs}
        found: list[tuple[str, str]] = []
        for height in range(head - depth + 1, head + 1):
            block = await chain.call("eth_getBlockByNumber", hex(height), True)
            for tx in block["transactions"]:
                if tx["hash"] in lost:
                    self._free_senders.append(next(a for a in chain.accounts if a.lower() == tx["from"].lower()))
                    self.counts["payments lost"] += 1
                else:
                    found.append((tx["hash"], await chain.raw(tx["hash"])))
        late = {tx for order in self.orders if order.kind is Kind.LATE for tx in order.txs}
        # The new blocks begin with the old ones' times: a late payment in one might be in time.
        in_time = next((at for at, (tx, _) in enumerate(found) if tx in late), len(found))
        at_once = self._random.randint(0, in_time)  # a prefix: they have one sender, whose nonces go up
        offsets = sorted(self._random.randrange(depth) for _ in range(at_once))
        await chain.reorg(depth, [(raw, at) for (_, raw), at in zip(found, offsets, strict=False)])
        await chain.call("evm_setTime", hex(int(time.time())))  # each reorg was seen to put anvil's clock back
        for _, raw in found[at_once:]:
            await chain.call("eth_sendRawTransaction", raw)
        self.counts["reorgs"] += 1
        self.counts["payments taken back"] += len(found)


def mined(town: Town, orders: Sequence[Order]) -> dict[str, int]:
    """The time of the block of each payment that the chain has now, in UNIX seconds."""

    async def ask() -> dict[str, int]:
        found: dict[str, int] = {}
        async with DevChain(town.anvil.url) as chain:
            for tx in (tx for order in orders for tx in order.txs):
                if (receipt := await chain.receipt(tx)) is not None:
                    block = await chain.call("eth_getBlockByNumber", receipt["blockNumber"], False)
                    found[tx] = int(block["timestamp"], 16)
        return found

    return asyncio.run(ask())
