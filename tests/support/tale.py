"""Random tales of customers, miners, liars and workers who die: from a seed, told step by step.

A tale is data: (act, number, number, number) for each step, and what the numbers mean depends only on what there is
then. So any part of a tale is a tale. After each step the laws are looked at (tests.support.laws); at the end the
faults are over, chain time is past every request's end, the workers come to rest, and all must be as the chronicle
says.
"""

import asyncio
import contextlib
import importlib.util
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any

import psycopg

from reconsup.demo.anvil import Anvil
from reconsup.demo.devchain import DevChain
from reconsup.payments.decision import Policy
from tests.support import faults
from tests.support.chronicle import SPLITTER, Chronicle, Wanted
from tests.support.faults import Node, node_before
from tests.support.laws import BrokenError, Laws
from tests.support.postgres import Database, insert_request
from tests.support.puppet import Puppet, interleaved

Step = tuple[str, int, int, int]
Script = list[Step]

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
REST_ROUNDS_MAX = 20
STEP_SECONDS_MAX = 60.0
STOPS_MAX = 40
STOPS_OF_A_LOOK = 16
STOPS_OF_A_COMMIT = 24
OLD_BLOCKS, OLD_SECONDS, OLD_PAYMENTS = 80, 60, 4
# i = 0; while i < the data's length: call(the 20 bytes at i, value / their number); i += 20; as in tests.support.hidden
SPLITTER_CODE = "0x60005b368110156026576000600060006000601436043404853560601c5af1506014016002565b00"
HAS_AUDIT = importlib.util.find_spec("reconsup.worker.auditor") is not None
HAS_SPANS = importlib.util.find_spec("reconsup.worker.spans") is not None
TAILS = (64, 1000) if HAS_SPANS else (1000, 1000)


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
    node: Node
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
        puppet = Puppet(self.database, self.outsider, self.node, slot, policy=POLICY, **self.figures)
        await puppet.__aenter__()
        self.workers[slot : slot + 1] = [puppet]
        return puppet

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
        for statement in (scan, rows) if of_rows else (scan,):
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


@contextlib.asynccontextmanager
async def stage(database: Database, grounds: Grounds, seed: int) -> AsyncIterator[Tale]:
    """A chain as it was laid, an empty database, and workers that have seen the chain once."""
    snapshot = grounds.anvil.rpc("evm_snapshot")
    try:
        async with _dev(grounds.anvil) as dev, node_before(grounds.anvil.url, random=Random(seed)) as node:
            with database.connect() as outsider:
                _empty(outsider)
                await dev.set_automine(False)
                chronicle = Chronicle(dev)
                await dev.mine(DEPTH_MAX)  # a reorg must not take the block of the snapshot
                await chronicle.follow()
                tale = Tale(database, outsider, grounds, dev, node, chronicle, Random(seed))
                tale.figures["tail_blocks"] = TAILS[seed % 2]
                if HAS_AUDIT:
                    tale.figures["audit_blocks"] = (1, 4, 64)[seed % 3]
                try:
                    for slot in range(SLOTS):
                        await (await tale.hire(slot)).scan()
                    yield tale
                finally:
                    await tale.part_with()
    finally:
        grounds.anvil.rpc("evm_revert", snapshot)


def _empty(outsider: psycopg.Connection[Any]) -> None:
    tables = outsider.execute(
        "SELECT string_agg(format('app.%I', tablename), ', ') FROM pg_tables"
        " WHERE schemaname = 'app' AND tablename <> 'reconsup_schema_version'"
    ).fetchall()
    outsider.execute(f"TRUNCATE {tables[0][0]}, lease_history.chapters CASCADE")
    outsider.execute("SELECT setval('lease_history.refusals', 1, false)")


# the acts: of each step, (tale, number, number, number)


async def _request(tale: Tale, kind: int, when: int, how: int) -> None:
    """A request, made now, or behind the scan, or by a clock that is fast; its end is soon or far."""
    number = len(tale.wanted)
    contract = tale.next_contract(number)
    created_at = tale.now + timedelta(seconds=(0, 0, 0, -60, -600, -3000, -7000, 600, 901)[when % 9])
    expires_at = tale.now + timedelta(seconds=(30, 60, 120, 300, 600, 1200, 7200, -1)[how % 8])
    token = {"asset": "USDT", "token_standard": "ERC20", "token_decimals": 6, "token_contract": contract}
    amount = None if kind % 12 == 0 else FULL
    id_ = insert_request(
        tale.outsider,
        address_canonical=address_of(number),
        expected_amount_minor=amount,
        created_at=created_at,
        expires_at=expires_at,
        **(token if contract else {}),
    )
    tale.wanted.append(Wanted(id_, address_of(number), contract, amount or 0, created_at, expires_at))
    tale.tally["requests"] += 1


async def _pay(tale: Tale, whom: int, what: int, how: int) -> None:
    """In full, in part, twice as much, nothing, with what only looks like the token; or before it is asked for."""
    open_ = [index for index, each in enumerate(tale.wanted) if each.expires_at > tale.now] or [len(tale.wanted)]
    anyone = whom % (len(tale.wanted) + 1)
    number = (open_[whom % len(open_)], open_[-1], open_[-1], anyone)[how % 4]
    amount = (FULL, FULL, FULL, FULL // 2, FULL // 2, FULL * 2, FULL * 9 // 10, FULL // 2 - 1, 0)[what % 9]
    contract = tale.next_contract(number)
    if contract and how % 9 == 1:
        contract = tale.grounds.lookalike
    await tale.pay(address_of(number), contract, amount, is_hidden=HAS_AUDIT and how % 7 > 4)


async def _mine(tale: Tale, blocks: int, seconds: int, _: int) -> None:
    await tale.mine(1 + blocks % 3, (1, 2, 12, 30)[seconds % 4])


async def _pay_and_mine(tale: Tale, whom: int, what: int, how: int) -> None:
    await _pay(tale, whom, what, how)
    await tale.mine(1 + how % 3, 2)
    if what % 4:
        await _work(tale, whom, 1, 0)


async def _be_away(tale: Tale, blocks: int, *_: int) -> None:
    """Nobody works while many blocks are mined."""
    first = tale.height + 1
    await tale.dev.mine(30 + blocks % 40, 20)
    await tale.chronicle.follow(first)


async def _jump(tale: Tale, which: int, *_: int) -> None:
    """A block just at, or just after, the next end of a request."""
    ends = sorted({each.expires_at for each in tale.wanted if each.expires_at > tale.now})
    if ends:
        end = ends[which % min(2, len(ends))]
        await tale.mine(1, int((end - tale.now).total_seconds()) + which % 2)


async def _reorg(tale: Tale, depth: int, which: int, how: int) -> None:
    """Take back 1 to 8 blocks. What stood in them comes back in part, elsewhere, in another order, or never."""
    random = Random(which * NUMBERS + how)
    lowest = tale.height - depth % DEPTH_MAX
    asked = {each.address for each in tale.wanted}
    top = tale.chronicle.canonical[tale.height - DEPTH_MAX + 1 :]
    near = [block.height for block in top if any(paid.address in asked for paid in block.paid)]
    if near and which % 4:  # just so deep that a payment goes
        lowest = near[depth % len(near)]
    if lowest <= tale.base:
        return
    depth = tale.height - lowest + 1
    back = [each for each in tale.standing(lowest) if random.random() < (0.0, 0.0, 0.5, 1.0)[how % 4]]
    random.shuffle(back)
    again: list[tuple[Any, int]] = [(each.raw, random.randrange(depth)) for each in back]
    if how % 3:  # another transfer before them in the first block, so that the numbers of the logs are others
        again = [(_filler(tale), 0), *((raw, 0 if how % 3 == 1 else offset) for raw, offset in again)]
    await tale.reorg(depth, again)
    if which % 2:
        await tale.mine(1 + which % 4, 3)
    if how % 5:
        await _work(tale, how, 1, 0)


def _filler(tale: Tale) -> dict[str, str]:
    nobody = "00" * 12 + "ee" * 20
    data = f"0xa9059cbb{nobody}{1:064x}"
    return {"from": tale.dev.accounts[0], "to": tale.grounds.token, "data": data, "gas": hex(200_000)}


async def _send_again(tale: Tale, which: int, who: int, how: int) -> None:
    """A payment that a reorg dropped is sent again, as other nodes would that still have it."""
    there = {each.tx for each in tale.standing(0)}
    dropped = [each for each in tale.payments if each.tx not in there and each.tx in tale.chronicle.times]
    if dropped:
        with contextlib.suppress(Exception):  # it waits already
            await tale.dev.call("eth_sendRawTransaction", dropped[which % len(dropped)].raw)
            tale.tally["sent again"] += 1
            await tale.mine(1 + how % 4)
            if how % 3:
                await _work(tale, who, 1, 0)


async def _work(tale: Tale, who: int, how: int, _: int) -> None:
    """A worker scans and looks, with or without what is not due yet; mostly the one who may scan."""
    if how % 2:
        tale.make_due()
    await (tale.workers[who % SLOTS] if who % 4 == 0 else tale.scanning(who)).to_the_end()


async def _work_together(tale: Tale, first: int, second: int, how: int) -> None:
    """Two work beside each other, mostly at requests and payments that nobody has seen; who goes first is drawn."""
    if how % 2:
        await _request(tale, first, 0, 4 + how)
    if how % 3:
        await tale.pay(address_of(len(tale.wanted) - 1), tale.next_contract(len(tale.wanted) - 1), FULL)
        await tale.mine(1 + how % 3)
    tale.make_due()
    scanning = tale.scanning(first)
    other = tale.another(scanning, second)
    for each in (scanning, other):
        each.begin()
    await interleaved([scanning, other], tale.random)


async def _come_between(tale: Tale, who: int, stops: int, how: int) -> None:
    """A request that is paid already comes while its block is being stored, and another worker takes it up."""
    number = len(tale.wanted)
    await tale.pay(address_of(number), tale.next_contract(number), FULL)
    await tale.mine(1 + how % 3)
    scanning = tale.scanning(who)
    other = tale.another(scanning, who)
    await other.scan()
    scanning.begin(scanning.scan())
    await scanning.go_on(stops % STOPS_OF_A_COMMIT)
    await _request(tale, who, 0, 4 + how % 3)
    other.begin(other.look())
    await interleaved([scanning, other], tale.random)


async def _begin(tale: Tale, who: int, stops: int) -> Puppet:
    puppet = tale.workers[who % SLOTS]
    tale.make_due()
    puppet.begin()
    await puppet.go_on(stops % STOPS_MAX)
    return puppet


async def _die(tale: Tale, who: int, stops: int, how: int) -> None:
    """Killed in the middle of its work. Its leases end some time; its seat gets another one."""
    puppet = await _begin(tale, who, stops)
    await puppet.die()
    tale.tally["died at work" if puppet.strings.is_dead else "died"] += 1
    if how % 3:
        tale.leases_pass(puppet.owner)
    await tale.hire(puppet.slot)


async def _fall_asleep(tale: Tale, who: int, stops: int, how: int) -> None:
    """Stops in the middle of its work, for longer than its leases or not; somebody else gets its seat."""
    if len(tale.asleep) < 2:
        await _sleep(tale, await _begin(tale, who, stops), how)


async def _sleep(tale: Tale, puppet: Puppet, how: int) -> None:
    if await puppet.go_on(0, to_safety=True):
        return
    tale.asleep.append(puppet)
    tale.tally["slept"] += 1
    if how % 4:
        tale.leases_pass(puppet.owner, of_rows=how % 4 > 1)
    await tale.hire(puppet.slot)


async def _be_overtaken(tale: Tale, who: int, stops: int, how: int) -> None:
    """Blocks come, or go, and others see them while one stands in the middle of a commit or of a look; it goes on."""
    if len(tale.asleep) > 1:
        return
    await _pay(tale, who, 0, 5)  # in full
    await tale.mine(3)
    scanning = tale.scanning(who)
    if how % 3:
        await scanning.scan()
        puppet = tale.another(scanning, who)
        await puppet.scan()  # it must have seen the chain, or it looks at nothing
        puppet.begin(puppet.look())
        await puppet.go_on(stops % STOPS_OF_A_LOOK)
    else:
        puppet = scanning
        puppet.begin(puppet.scan())
        await puppet.go_on(stops % STOPS_OF_A_COMMIT)
    if stops % 4:
        await puppet.go_on_to("transaction")  # what it will write is decided
    tale.tally[f"overtaken at {puppet.where}"] += 1
    await _sleep(tale, puppet, how // 3)
    happens = (_take_back, _take_back, _pay_and_mine, _jump, _reorg)[how // 12 % 5]
    await happens(tale, stops, who, how)
    await _work(tale, 1, 1, 0)
    await _wake(tale, -1)


async def _take_back(tale: Tale, how: int, *_: int) -> None:
    """The newest payments are gone."""
    await tale.reorg(3, [])
    await tale.mine(how % 3)


async def _wake(tale: Tale, which: int, *_: int) -> None:
    """It goes on where it stood, does not know what happened meanwhile, and then leaves."""
    if tale.asleep:
        puppet = tale.asleep.pop(which % len(tale.asleep))
        await puppet.to_the_end()
        await puppet.die()
        tale.leases_pass(puppet.owner)


async def _time_passes(tale: Tale, *_: int) -> None:
    tale.leases_pass()


async def _lie(tale: Tale, which: int, how: int, _: int) -> None:
    """From now on the node lies now and then: in one way, in some, or in all."""
    ways = (FAULTS, FAULTS, PARTICULAR, FAULTS)[how % 4]
    chosen = Random(which).sample(ways, (1, 3, len(ways), len(ways))[how % 4])
    tale.node.schedule = faults.drawn(tale.node.random, chosen, (0.1, 0.2, 0.35)[which % 3])


async def _stop_lying(tale: Tale, *_: int) -> None:
    tale.node.schedule = None


# What a node of a tale may do: to some answers only, and to any.
PARTICULAR: tuple[faults.Fault, ...] = (
    *(faults.lagging, faults.head_that_goes_back, faults.null_block, faults.null_parent, faults.null_receipts),
    *(faults.null_receipt, faults.empty_receipts, faults.receipt_removed, faults.block_without_transactions),
    *(faults.dropped_item, faults.reordered_items, faults.doubled_item, faults.swapped_ids, faults.wrong_chain_id),
    *(faults.empty_logs, faults.log_removed, faults.empty_block),
)
FAULTS: tuple[faults.Fault, ...] = (
    *PARTICULAR,
    *(faults.throttled, faults.throttled_for_a_while, faults.range_refused, faults.too_large, faults.unavailable),
    *(faults.wrong_id, faults.truncated, faults.endless),
)

ACTS: dict[str, tuple[int, Callable[..., Any]]] = {
    "request": (4, _request),
    "pay": (6, _pay),
    "pay_and_mine": (14, _pay_and_mine),
    "mine": (7, _mine),
    "jump": (3, _jump),
    "be_away": (1, _be_away),
    "reorg": (16, _reorg),
    "send_again": (6, _send_again),
    "work": (14, _work),
    "work_together": (4, _work_together),
    "come_between": (4, _come_between),
    "die": (5, _die),
    "fall_asleep": (4, _fall_asleep),
    "be_overtaken": (9, _be_overtaken),
    "wake": (5, _wake),
    "time_passes": (3, _time_passes),
    "lie": (6, _lie),
    "stop_lying": (4, _stop_lying),
}


async def act(tale: Tale, step: Step) -> None:
    """Do one step, and look at the laws."""
    name, *numbers = step
    async with asyncio.timeout(STEP_SECONDS_MAX):
        await ACTS[name][1](tale, *numbers)
    tale.laws.look()


async def end(tale: Tale) -> None:
    """All comes to rest, and is compared with what really happened."""
    tale.node.schedule = None
    while tale.asleep:
        await _wake(tale, 0)
    last = max((each.expires_at for each in tale.wanted), default=tale.now)
    await tale.mine(1, max(1, int((last - tale.now).total_seconds()) + 1))
    await tale.dev.mine(3 * POLICY.expiry_confirmations)
    await tale.chronicle.follow(tale.height + 1)
    tale.leases_pass()
    await come_to_rest(tale)
    tale.laws.look_at_the_end()


async def come_to_rest(tale: Tale) -> None:
    """A new worker works until the whole chain is read and nothing moves any more.

    New, because by an old one's clock no time has passed: it may believe in a scan lease that is long another's.
    """
    await tale.workers[0].die()
    await tale.hire(0)
    tale.leases_pass()
    before: Any = None
    for _ in range(REST_ROUNDS_MAX):
        await tale.workers[0].to_the_end()
        tale.laws.look()
        now = (tale.laws.tip(), tale.laws.statuses())
        if now == before and now[0] == tale.chronicle.canonical[-1].hash:
            return
        before = now
        tale.make_due()
    raise BrokenError(f"the workers do not come to rest: {now}")
