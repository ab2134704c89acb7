"""What may happen in a tale: what its customers, the chain, the liars and the workers do, a step each.

An act is given the tale and three numbers below `NUMBERS`; what they mean depends only on what there is then.
"""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any

from tests.support import faults
from tests.support.chronicle import Wanted
from tests.support.laws import BrokenError
from tests.support.postgres import insert_request
from tests.support.puppet import Puppet, interleaved
from tests.support.tale import DEPTH_MAX, FULL, NUMBERS, POLICY, SLOTS, Tale, address_of

Step = tuple[str, int, int, int]
Script = list[Step]

REST_ROUNDS_MAX = 20
STEP_SECONDS_MAX = 60.0
STOPS_MAX = 40
STOPS_OF_A_LOOK = 12
STOPS_OF_A_COMMIT = 24


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
    await tale.pay(address_of(number), contract, amount, is_hidden=how % 7 > 4)


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
    if how % 3 and tale.wanted:
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
    schedules = [node.schedule for node in tale.nodes]
    tale.be_honest()
    if how % 5 < 3:
        await _request(tale, who, 0, 5 + how % 2)
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
    await _sleep(tale, puppet, (0, 0, 1, 2)[how // 3 % 4])
    happens = (_take_back, _take_back, _pay_and_mine, _jump, _reorg)[how // 12 % 5]
    await happens(tale, stops, who, how)
    await _work(tale, 1, 1, 0)
    await _wake(tale, -1)
    for node, schedule in zip(tale.nodes, schedules, strict=True):
        node.schedule = schedule


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
    number = how // 4 % len(tale.nodes)
    node = tale.nodes[number]
    if number == 1 and tale.figures["quorum"] == 2 and which % 2:
        node.schedule = faults.always(old_fork(tale))  # of two that must agree, one may be wrong all the time
    else:
        node.schedule = faults.drawn(node.random, chosen, (0.1, 0.2, 0.35)[which % 3])


def old_fork(tale: Tale) -> faults.Fault:
    """A node that still shows the chain as it was before the last reorg, whole, and nothing of what came since."""
    there = {block.hash for block in tale.chronicle.canonical}
    others = (old for old in reversed(tale.chronicle.chains) if old[-1].hash not in there)
    chain = next(others, tale.chronicle.canonical)
    raw = tale.chronicle.raw
    by_height = {block.height: raw[block.hash] for block in chain}
    by_hash = {block.hash: raw[block.hash] for block in chain}

    async def old_fork(exchange: faults.Exchange) -> Any:
        def shown(request: dict[str, Any], result: Any) -> Any:
            asked = request["params"][0] if request["params"] else None
            if request["method"] not in (faults.NUMBER, faults.BY_HASH, faults.RECEIPTS):
                return result
            if asked == "latest":
                found = by_height[chain[-1].height]
            elif isinstance(asked, str) and asked in by_hash:
                found = by_hash[asked]
            elif isinstance(asked, str) and asked.startswith("0x") and len(asked) < 66:
                found = by_height.get(int(asked, 16))
            else:  # safe and finalized are below every fork; a hash that it does not know
                return result if asked in faults.TAGS else None
            if found is None:
                return None
            body, receipts = found
            if request["method"] == faults.RECEIPTS:
                return receipts
            hashes = [tx["hash"] for tx in body["transactions"]]
            return body if request["params"][1] else body | {"transactions": hashes}

        return exchange.change(shown)

    return old_fork


async def _stop_lying(tale: Tale, *_: int) -> None:
    tale.be_honest()


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
    tale.be_honest()
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
        now = (tale.laws.tip(), tale.laws.statuses(), tale.laws.open_spans())
        if now == before and now[0] == tale.chronicle.canonical[-1].hash and not now[2]:
            return
        before = now
        tale.make_due()
    raise BrokenError(f"the workers do not come to rest: {now}")
