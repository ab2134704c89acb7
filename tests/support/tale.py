"""Random tales of customers, miners, liars and workers who die: from a seed, told step by step.

A tale is data: (act, number, number, number) for each step, and what the numbers mean depends only on what there is
then. So any part of a tale is a tale. After each step the laws are looked at (tests.support.laws); at the end the
faults are over, chain time is past every request's end, the workers come to rest, and all must be as the chronicle
says. What may happen is tests.support.acts.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any

import psycopg

from reconsup.demo.anvil import Anvil
from reconsup.demo.devchain import DevChain
from reconsup.payments.decision import Policy
from tests.support.chronicle import SPLITTER, Chronicle, Wanted
from tests.support.laws import Laws
from tests.support.liar import Node, node_before
from tests.support.postgres import Database
from tests.support.puppet import Puppet

SLOTS = 3
PAYERS = 40
DEPTH_MAX = 8
FULL = 1000  # what most requests ask for, in minor units
FIRST_ADDRESS = 0xABCDEFABCDEFABCD << 96
POLICY = Policy(
    confirmations=3,
    finality_confirmations=4,
    detected_threshold_bps=5000,
    confirmed_threshold_bps=9000,
    expiry_confirmations=DEPTH_MAX + 1,  # so that no reorg of a tale reaches below what let a request expire
)
NUMBERS = 1000
OLD_BLOCKS, OLD_SECONDS, OLD_PAYMENTS = 80, 60, 4
# i = 0; while i < the data's length: call(the 20 bytes at i, value / their number); i += 20; as in tests.support.hidden
SPLITTER_CODE = "0x60005b368110156026576000600060006000601436043404853560601c5af1506014016002565b00"
QUORUM_OF_TWO = 3  # of a seed, modulo 4: the others of two endpoints believe one of them


@dataclass(frozen=True, slots=True)
class Grounds:
    """A chain on which many tales are told: payers with coins and tokens, and a token that only looks like it."""

    anvil: Anvil
    token: str
    lookalike: str


@dataclass(slots=True)
class Payment:
    """A transaction that a customer has signed, and where it is not now it may be again."""

    raw: str
    tx: str


def address_of(number: int) -> str:
    """Where a request of this number is to be paid."""
    return f"0x{FIRST_ADDRESS | number:040x}"


@contextlib.asynccontextmanager
async def _dev(anvil: Anvil) -> AsyncIterator[DevChain]:
    async with DevChain(anvil.url) as dev:
        try:
            yield dev
        finally:
            await dev.call("anvil_dropAllTransactions")


async def lay_grounds(anvil: Anvil) -> Grounds:
    """Make the payers rich; once for a chain."""
    async with _dev(anvil) as dev:
        await dev.set_automine(False)
        token, lookalike = [await dev.deploy_token(2**200) for _ in range(2)]
        for contract in (token, lookalike):
            for payer in dev.accounts[1:]:
                await dev.send_token(contract, payer, 2**100)
        await dev.mine()
        await dev.call("anvil_setCode", SPLITTER, SPLITTER_CODE)
        for number in range(OLD_PAYMENTS):  # long ago, to those who will ask for it later, and say that they had before
            address, amount = address_of(number), FULL // (1 + number // 2)
            await (dev.send_token(token, address, amount) if number % 2 else dev.send(address, amount))
        await dev.mine(OLD_BLOCKS, OLD_SECONDS)
    return Grounds(anvil, token, lookalike)


@dataclass
class Tale:
    """What there is while a tale is told."""

    database: Database
    outsider: psycopg.Connection[Any]
    grounds: Grounds
    dev: DevChain
    nodes: list[Node]  # the workers' endpoints, all before the same chain
    chronicle: Chronicle
    random: Random
    workers: list[Puppet] = field(default_factory=list)
    asleep: list[Puppet] = field(default_factory=list)
    wanted: list[Wanted] = field(default_factory=list)
    payments: list[Payment] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)  # of the workers
    base: int = 0  # the height of the snapshot
    payer: int = 1
    tally: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.base = self.height - DEPTH_MAX
        self.laws = Laws(self.database, self.outsider, self.chronicle, POLICY, self.wanted)

    # workers

    async def hire(self, slot: int) -> Puppet:
        """A new worker on this seat."""
        puppet = Puppet(self.database, self.outsider, self.nodes, slot, policy=POLICY, **self.figures)
        await puppet.__aenter__()
        self.workers[slot : slot + 1] = [puppet]
        return puppet

    def be_honest(self) -> None:
        """No endpoint lies any more."""
        for each in self.nodes:
            each.schedule = None

    async def part_with(self) -> None:
        """All workers go, as if killed."""
        for each in (*self.workers, *self.asleep):
            await each.die()

    def leases_pass(self, owner: str | None = None, *, of_rows: bool = True) -> None:
        """As if the time had passed until this owner's leases, or all, are over: the scan's, and those of the rows."""
        whose = "(%(owner)s::text IS NULL OR {column} = %(owner)s)"
        scan = f"UPDATE app.chain_cursors SET scan_lease_until = now() - interval '1 ms'\
            WHERE scan_lease_until > now() AND {whose.format(column='scan_lease_owner')}"
        rows = f"UPDATE app.payment_requests SET reconcile_lease_until = now() - interval '1 ms',\
            next_reconcile_at = least(next_reconcile_at, now()) WHERE reconcile_lease_owner IS NOT NULL AND\
            reconcile_lease_until > now() AND {whose.format(column='reconcile_lease_owner')}"
        span = f"UPDATE app.chain_spans SET lease_until = now() - interval '1 ms'\
            WHERE lease_until > now() AND {whose.format(column='lease_owner')}"
        for statement in (scan, span, rows) if of_rows else (scan, span):
            self.outsider.execute(statement, {"owner": owner})

    def scanning(self, otherwise: int) -> Puppet:
        """Who has the scan lease; where it is somebody who cannot work, another, once it is over."""
        rows = self.outsider.execute("SELECT scan_lease_owner FROM app.chain_cursors").fetchall()
        for each in self.workers:
            if (each.owner,) in rows:
                return each
        self.leases_pass(of_rows=False)
        return self.workers[otherwise % SLOTS]

    def another(self, than: Puppet, which: int) -> Puppet:
        """A worker that is not this one."""
        others = [each for each in self.workers if each is not than]
        return others[which % len(others)]

    def make_due(self) -> None:
        """As if the time had passed until the next look at every request that has one."""
        self.outsider.execute(
            "UPDATE app.payment_requests SET next_reconcile_at = now() WHERE next_reconcile_at IS NOT NULL"
            " AND reconcile_lease_owner IS NULL"
        )

    # chain

    @property
    def height(self) -> int:
        """The head's height."""
        return self.chronicle.canonical[-1].height

    @property
    def now(self) -> datetime:
        """The head's time."""
        return self.chronicle.canonical[-1].time

    async def mine(self, blocks: int = 1, seconds: int = 1) -> None:
        """Mine, each block so many seconds after the one before."""
        first = self.height + 1
        for _ in range(blocks):
            at = int(self.now.timestamp()) + seconds
            await self.dev.set_next_block_time(at)
            await self.dev.call("evm_mine")
            await self.chronicle.follow(first)
            first += 1

    async def pay(self, address: str, contract: str, amount: int, *, is_hidden: bool = False) -> None:
        """Sign and send a payment from a payer who has not paid yet; `is_hidden`: coins, through a contract."""
        if self.payer >= PAYERS:
            return
        sender = self.dev.accounts[self.payer]
        self.payer += 1
        if contract:
            tx = await self.dev.send_token(contract, address, amount, sender=sender)
        else:
            to, data = (SPLITTER, address) if is_hidden else (address, "0x")
            tx = await self.dev.send(to, amount, data, sender=sender)
        self.payments.append(Payment(await self.dev.raw(tx), tx))
        self.tally["paid"] += 1

    def standing(self, lowest: int) -> list[Payment]:
        """The payments that stand in the chain from this height up."""
        there = {paid.tx for block in self.chronicle.canonical[lowest:] for paid in block.paid}
        return [each for each in self.payments if each.tx in there]

    async def reorg(self, depth: int, again: list[tuple[Any, int]]) -> None:
        """Take back so many blocks; `again`: what stands in the new ones, by offset."""
        await self.dev.reorg(depth, again)
        await self.chronicle.follow(self.height - depth + 1)
        self.tally["reorgs"] += 1
        self.tally["mined again"] += len(again)

    # requests

    def next_contract(self, number: int) -> str:
        return self.grounds.token if number % 2 else ""


def figures_of(seed: int) -> dict[str, Any]:
    """How the workers of a tale are set: with a long tail or the shortest, and how many endpoints must agree."""
    return {
        "tail_blocks": (64, 1000)[seed // 2 % 2],
        "quorum": 1 + (seed % 4 == QUORUM_OF_TWO),
        "audit_blocks": (1, 4, 64)[seed % 3],
    }


@contextlib.asynccontextmanager
async def stage(database: Database, grounds: Grounds, seed: int) -> AsyncIterator[Tale]:
    """A chain as it was laid, an empty database, and workers that have seen the chain once."""
    snapshot = grounds.anvil.rpc("evm_snapshot")
    try:
        async with contextlib.AsyncExitStack() as stack:
            dev = await stack.enter_async_context(_dev(grounds.anvil))
            outsider = stack.enter_context(database.connect())
            nodes = [
                await stack.enter_async_context(node_before(grounds.anvil.url, random=Random(seed + number)))
                for number in range(1 + seed % 2)
            ]
            _empty(outsider)
            await dev.set_automine(False)
            chronicle = Chronicle(dev)
            await dev.mine(DEPTH_MAX)  # a reorg must not take the block of the snapshot
            await chronicle.follow()
            tale = Tale(database, outsider, grounds, dev, nodes, chronicle, Random(seed))
            stack.push_async_callback(tale.part_with)
            tale.figures = figures_of(seed)
            for slot in range(SLOTS):
                await (await tale.hire(slot)).scan()
            yield tale
    finally:
        grounds.anvil.rpc("evm_revert", snapshot)


def _empty(outsider: psycopg.Connection[Any]) -> None:
    tables = outsider.execute(
        "SELECT string_agg(format('app.%I', tablename), ', ') FROM pg_tables"
        " WHERE schemaname = 'app' AND tablename <> 'reconsup_schema_version'"
    ).fetchall()
    outsider.execute(f"TRUNCATE {tables[0][0]}, lease_history.chapters CASCADE")
    outsider.execute("SELECT setval('lease_history.refusals', 1, false)")
