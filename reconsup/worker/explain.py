"""Why an address holds what it holds: the walk from a block at which it was explained to the scanned tip.

What an address has *beside* what is known to have arrived is followed from block to block by bisection. Where it
changes, its own transactions of that block are subtracted, and what is left arrived without a log: as calls inside
transactions where the node can trace and the sum is the same to the wei, else as the block's difference. The sender
is never guessed. What cannot be placed in a block, because the node keeps no state so old, stays unexplained.

Nothing is written here: one endpoint is asked, and the finding is recorded by whoever called, if all is as it was.
"""

from dataclasses import dataclass, replace

from reconsup.chain import balances, movements
from reconsup.chain.errors import CallRefused
from reconsup.chain.evm import EvmChain
from reconsup.chain.state import State
from reconsup.store.findings import Case, Finding, Found

CHANGES_MAX = 32  # of one address in one go; the next audit goes on from there
DEPTHS = (0, 1, 2, 4, 8, 16, 32, 64, 96, 112, 120, 124, 126, 127)  # a full node keeps the state of about 128 blocks


@dataclass(frozen=True, slots=True)
class _Rest:
    """What an address has at a block beside what is known to have arrived, and how much it had sent by then."""

    rest_minor: int
    nonce: int


@dataclass(frozen=True, slots=True)
class Explained:
    """A finding, and what it rests on: the address's states by height, and what the node says that it gave away.

    `given_minor`: what it spent and sent on, by block. Money found in such a block is not what the balance rose by, but
    more by so much, and no proof vouches for that.
    """

    finding: Finding
    states: dict[int, State]
    given_minor: dict[int, int]


@dataclass(frozen=True, slots=True)
class _Change:
    """What happened in one block: money that arrived, what was given away, and what is neither."""

    found: tuple[Found, ...]
    given_minor: int
    unclear_minor: int


class _Ledger:
    """The states of one case's address, each asked for once."""

    def __init__(self, chain: EvmChain, case: Case, top: int) -> None:
        self.top = top
        self._chain = chain
        self._case = case
        self._seen: dict[int, _Rest | None] = {}
        self._states: dict[int, State] = {}

    async def at(self, height: int) -> _Rest:
        """What it was at a block; CallRefused if the endpoint does not keep that."""
        await self.ask([height])
        found = self._seen[height]
        if found is None:
            raise CallRefused(self._chain.endpoint.says(f"does not have the state of block {height}"))
        return found

    async def ask(self, heights: list[int]) -> dict[int, _Rest]:
        """What it was at those of these blocks of which the endpoint keeps it."""
        unseen = [height for height in heights if height not in self._seen]
        hashes = [self._case.blocks[height] for height in unseen]
        for height, state in zip(unseen, await balances.states(self._chain, self._case.address, hashes), strict=True):
            self._seen[height] = None if state is None else self._rest(height, state)
            if state is not None:
                self._states[height] = state
        return {height: rest for height in heights if (rest := self._seen[height]) is not None}

    def rests_on(self, *heights: int) -> dict[int, State]:
        """What the account was told to be at blocks that were asked for."""
        return {height: self._states[height] for height in sorted(heights)}

    def _rest(self, height: int, state: State) -> _Rest:
        later = sum(amount for at, amount in self._case.credits.items() if height < at)
        return _Rest(state.balance_minor - (self._case.settled_minor - later), state.nonce)


async def explain(chain: EvmChain, case: Case, height: int) -> Explained:
    """Follow a case's address up to a stored block. CallRefused if the endpoint does not keep its state there."""
    ledger = _Ledger(chain, case, height)
    end = await ledger.at(height)
    at, begin, difference, unexplained = await _begin(ledger, case)
    if begin is None:
        difference = case.known.difference_minor if case.known else 0
        finding = _finding(case, height, [], difference, end.rest_minor - difference, end.nonce)
        return Explained(finding, ledger.rests_on(height), {})
    found: list[Found] = []
    given: dict[int, int] = {}
    looked = {at}
    changes = 0
    while begin != end and changes < CHANGES_MAX:
        at = await _first_change(ledger, begin, at, height)
        change = await _look_into(chain, case, at, await ledger.at(at - 1), await ledger.at(at))
        found += change.found
        if change.given_minor:
            given[at] = change.given_minor
        difference -= change.given_minor
        unexplained += change.unclear_minor
        begin = await ledger.at(at)
        looked |= {at - 1, at}
        changes += 1
    if begin == end:
        at = height
    finding = _finding(case, at, found, difference, unexplained, begin.nonce, is_complete=begin == end)
    return Explained(finding, ledger.rests_on(*looked, at), given)


async def tell_again(chain: EvmChain, case: Case, it: Explained) -> Explained:
    """What another endpoint says to everything that an explanation rests on. CallRefused where it cannot say."""
    heights = list(it.states)
    states = await balances.states(chain, case.address, [case.blocks[height] for height in heights])
    told = {height: state for height, state in zip(heights, states, strict=True) if state is not None}
    if len(told) < len(heights):
        raise CallRefused(chain.endpoint.says("does not have the state of blocks that another endpoint has"))
    ledger = _Ledger(chain, case, max(heights))
    given: dict[int, int] = {}
    for height in it.given_minor:
        if any(each.height == height and ":trace:" in each.evidence_ref for each in it.finding.found) and (
            await movements.moves(chain, height, case.blocks[height]) is None
        ):
            raise CallRefused(chain.endpoint.says("does not trace what another endpoint traces"))
        change = await _look_into(chain, case, height, await ledger.at(height - 1), await ledger.at(height))
        given[height] = change.given_minor
    return Explained(it.finding, told, given)


def without_given(it: Explained) -> Finding:
    """The finding, with the money of blocks where its amount rests on what the address gave away left unexplained."""
    finding = it.finding
    kept = tuple(each for each in finding.found if each.height not in it.given_minor)
    doubtful = sum(each.amount_minor for each in finding.found) - sum(each.amount_minor for each in kept)
    return replace(finding, found=kept, unexplained_minor=finding.unexplained_minor + doubtful)


def _finding(
    case: Case,
    height: int,
    found: list[Found],
    difference: int,
    unexplained: int,
    nonce: int,
    *,
    is_complete: bool = True,
) -> Finding:
    return Finding(height, case.blocks[height], tuple(found), difference, unexplained, nonce, is_complete)


async def _begin(ledger: _Ledger, case: Case) -> tuple[int, _Rest | None, int, int]:
    """Where the walk begins: height, what was there, and of that what is explained and what is not. None: nowhere.

    That is where an earlier audit ended; or the block before the request's first, where everything is from before it;
    or, of a node that does not keep states so old, the oldest one that it keeps, if the address is as it should be.
    """
    lowest = min(case.blocks)
    window = {max(lowest, ledger.top - depth) for depth in DEPTHS}
    if case.known:
        note, mark = case.known, max(lowest, case.known.height)
        seen = await ledger.ask(sorted({height for height in window if height > mark} | {mark}))
        oldest = min(seen)  # the top is among them
        if seen[oldest] == _Rest(note.difference_minor + note.unexplained_minor, note.nonce):
            return oldest, seen[oldest], note.difference_minor, note.unexplained_minor
        if oldest > note.height:
            return oldest, None, 0, 0
        # The note's own block belies it: what was settled then is not now, or the other way round. It is void.
    seen = await ledger.ask(sorted(window | ({lowest} if case.is_past_stored else set())))
    oldest = min(seen)
    rest = seen[oldest]
    if case.is_past_stored and oldest == lowest:
        return oldest, rest, rest.rest_minor, 0
    if rest == _Rest(0, 0):
        return oldest, rest, 0, 0
    return oldest, None, 0, 0


async def _first_change(ledger: _Ledger, begin: _Rest, low: int, high: int) -> int:
    """The first block found, by bisection, at which the address is not any more what it is at `low`."""
    while high - low > 1:
        middle = (low + high) // 2
        if await ledger.at(middle) == begin:
            low = middle
        else:
            high = middle
    return high


async def _look_into(chain: EvmChain, case: Case, height: int, before: _Rest, after: _Rest) -> _Change:
    """Say what changed the address in one block."""
    block_hash = case.blocks[height]
    spent = 0 if after.nonce == before.nonce else await movements.spent(chain, case.address, block_hash)
    arrived = after.rest_minor - before.rest_minor + spent
    if arrived == 0:
        return _Change((), spent, 0)
    moves = await movements.moves(chain, height, block_hash) or []
    into = [each for each in moves if each.recipient == case.address != each.sender]
    out = sum(each.amount_minor for each in moves if each.sender == case.address != each.recipient)
    if into and sum(each.amount_minor for each in into) == arrived + out:
        refs = [(f"{each.tx_hash}:trace:{each.path}", each.amount_minor) for each in into]
        return _Change(tuple(Found(ref, amount, height, block_hash) for ref, amount in refs), spent + out, 0)
    if arrived + out == 0:  # a contract's own sending
        return _Change((), spent + out, 0)
    if arrived < 0:
        return _Change((), spent, arrived)
    return _Change((Found(f"{block_hash}:delta", arrived, height, block_hash),), spent, 0)
