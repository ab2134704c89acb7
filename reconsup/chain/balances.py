"""Native balances at blocks named by their hash: of thousands of addresses in one call, of one address at many blocks.

The EVM itself does the work: an eth_call runs a few dozen bytes of ours, which walk over the addresses in the call's
data and return those that hold something. The node is told to pretend that this code stands at some address (a state
override); one that cannot is given it as a contract to be created, whose "code" is the answer, and one that cannot do
that either is asked address by address. What an endpoint can do is remembered, and so is how much it bears at a time.

The answer begins with how many bytes of addresses were walked over: a node that ignores the override answers nothing,
and must not be taken for one that says "all empty".
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from weakref import WeakKeyDictionary

from reconsup.chain import decode
from reconsup.chain.errors import AnswerTooLarge, AnswerTooSlow, ChainInconsistent
from reconsup.chain.evm import EvmChain
from reconsup.chain.rpc import Call, Refusal
from reconsup.chain.state import State

OVERRIDE_ADDRESSES = 5_000  # 3,000 gas each: below what anvil (30 M), geth and reth (50 M) and EIP-7825 (16.7 M) allow
DEPLOYLESS_ADDRESSES = 340  # 64 bytes each, if all hold something: below the 24,576 that a contract may have
SINGLE_ADDRESSES = 100
STATES_PER_BATCH = 100
ADDRESS_BYTES = 20
STAND_IN = "0x" + "ba1a" * 10

# m = 32 and i = 0 (where the answer goes on; where in the data we are). Then, as long as i is below the data's length:
# b = BALANCE(the 20 bytes at i); where b is not 0: memory[m] = i, memory[m + 32] = b, m += 64. Then i += 20. At the
# end memory[0] = i, and m bytes of memory are the answer.
_OVERRIDE_CODE = (
    "0x602060005b36811015602d57803560601c31801560255781835280836020015291604001915b506014016004565b6000526000f3"
)
# The same, over what stands behind the code itself, copied to memory at 65,536 first.
_DEPLOYLESS_CODE = (
    "0x6047380360476201000039"
    "602060005b604738038110156040578062010000015160601c31801560385781835280836020015291604001915b50601401600f565b"
    "6000526000f3"
)

_ADDRESSES_MAX = (OVERRIDE_ADDRESSES, DEPLOYLESS_ADDRESSES, SINGLE_ADDRESSES)  # as _WAYS has them

_is_too_much = re.compile(
    r"out ?of ?gas|gas (limit|required|too|exceed)|intrinsic gas|(contract|code) ?size|initcode|too (large|big|long)"
    r"|(response|request) size|timed? ?out|execution aborted|deadline exceeded",
    re.IGNORECASE,
).search


@dataclass(slots=True)
class Ability:
    """What an endpoint has shown that it can do: the way it is asked for balances, and how many it bears at a time."""

    way: int = 0
    limits: list[int] = field(default_factory=lambda: list(_ADDRESSES_MAX))

    @property
    def limit(self) -> int:
        """Addresses for the next call."""
        return self.limits[self.way]

    def was_too_much(self, addresses: int) -> None:
        """Ask for half of that from now on."""
        self.limits[self.way] = max(1, addresses // 2)

    def fitted(self, addresses: int) -> None:
        """An answer came: what was halved grows back slowly."""
        if addresses >= self.limit:
            self.limits[self.way] = min(_ADDRESSES_MAX[self.way], self.limit + 1 + self.limit // 16)


_abilities: WeakKeyDictionary[EvmChain, Ability] = WeakKeyDictionary()


async def nonzero(chain: EvmChain, addresses: Sequence[str], block_hash: str) -> dict[str, int]:
    """The balances at a block of those addresses that hold anything, in wei. The addresses are lower case and differ.

    Raises ChainUnavailable where the endpoint cannot say: it is away, or does not keep the state of that block.
    """
    ability = _abilities.setdefault(chain, Ability())
    found: dict[str, int] = {}
    done = 0
    while done < len(addresses):
        part = addresses[done : done + ability.limit]
        answer = await _attempt(chain, ability, part, block_hash)
        if answer is not None:
            found |= answer
            done += len(part)
    return found


async def how(chain: EvmChain, block_hash: str) -> str:
    """Which way the endpoint can be asked for balances: override, deployless or single. Raises as `nonzero` does."""
    await nonzero(chain, [STAND_IN], block_hash)
    return _WAYS[_abilities[chain].way].name


async def states(chain: EvmChain, address: str, block_hashes: Sequence[str]) -> list[State | None]:
    """An account's state at each of these blocks; None where the endpoint does not keep it (any more)."""
    calls: list[Call] = []
    for block_hash in block_hashes:
        calls += [(method, [address, _at(block_hash)]) for method in ("eth_getBalance", "eth_getTransactionCount")]
    answers = await _answers(chain, calls)
    return [
        None if isinstance(balance, Refusal) or isinstance(nonce, Refusal) else State(balance, nonce)
        for balance, nonce in zip(answers[::2], answers[1::2], strict=True)
    ]


async def nonces(chain: EvmChain, addresses: Sequence[str], block_hash: str) -> list[int]:
    """How many transactions each address had sent up to a block. Raises ChainUnavailable if the endpoint cannot say."""
    method = "eth_getTransactionCount"
    answers = await _answers(chain, [(method, [address, _at(block_hash)]) for address in addresses])
    return [int(chain.endpoint.accepted(each, method)) for each in answers]


async def told(chain: EvmChain, addresses: Sequence[str], block_hash: str) -> list[State]:
    """The states of addresses at a block, as the endpoint tells them. Raises ChainUnavailable if it cannot say."""
    sent = await nonces(chain, addresses, block_hash)
    held = await nonzero(chain, sorted(set(addresses)), block_hash)
    return [State(held.get(address, 0), nonce) for address, nonce in zip(addresses, sent, strict=True)]


def _at(block_hash: str) -> dict[str, object]:
    return {"blockHash": block_hash, "requireCanonical": True}


async def _answers(chain: EvmChain, calls: Sequence[Call]) -> list[int | Refusal]:
    """The quantity, or the refusal, that each call was answered with. Throttling is raised."""
    found: list[int | Refusal] = []
    for start in range(0, len(calls), STATES_PER_BATCH):
        part = calls[start : start + STATES_PER_BATCH]
        for answer, (method, _) in zip(await chain.endpoint.batch(part), part, strict=True):
            if isinstance(answer, Refusal) and not answer.is_throttling:
                found.append(answer)
            else:
                found.append(decode.quantity(chain.endpoint.accepted(answer, method), chain.endpoint.says(method)))
    return found


async def _attempt(
    chain: EvmChain, ability: Ability, addresses: Sequence[str], block_hash: str
) -> dict[str, int] | None:
    """Ask once; None if it must be asked for less now, or in another way."""
    way = _WAYS[ability.way]
    try:
        answer = await way.ask(chain, addresses, block_hash)
    except AnswerTooLarge:
        if len(addresses) == 1:
            raise
        ability.was_too_much(len(addresses))
        return None
    except AnswerTooSlow:
        ability.was_too_much(len(addresses))
        raise
    if not isinstance(answer, Refusal):
        ability.fitted(len(addresses))
        return answer
    if answer.is_throttling:
        chain.endpoint.accepted(answer, way.method)
    if len(addresses) > 1 and (answer.is_too_large or _is_too_much(answer.message)):
        ability.was_too_much(len(addresses))
    elif way is _WAYS[-1]:
        ability.way = 0  # it knows none just now: that says nothing about what it can do
        chain.endpoint.accepted(answer, way.method)
    else:
        ability.way += 1
    return None


async def _by_override(chain: EvmChain, addresses: Sequence[str], block_hash: str) -> dict[str, int] | Refusal:
    call = {"to": STAND_IN, "data": "0x" + _packed(addresses)}
    return await _run(chain, addresses, [call, _at(block_hash), {STAND_IN: {"code": _OVERRIDE_CODE}}])


async def _deployless(chain: EvmChain, addresses: Sequence[str], block_hash: str) -> dict[str, int] | Refusal:
    return await _run(chain, addresses, [{"data": _DEPLOYLESS_CODE + _packed(addresses)}, _at(block_hash)])


async def _singly(chain: EvmChain, addresses: Sequence[str], block_hash: str) -> dict[str, int] | Refusal:
    found: dict[str, int] = {}
    for address, answer in zip(
        addresses,
        await _answers(chain, [("eth_getBalance", [address, _at(block_hash)]) for address in addresses]),
        strict=True,
    ):
        if isinstance(answer, Refusal):
            return answer
        if answer:
            found[address] = answer
    return found


def _packed(addresses: Sequence[str]) -> str:
    return "".join(address[2:] for address in addresses)


async def _run(chain: EvmChain, addresses: Sequence[str], parameters: list[object]) -> dict[str, int] | Refusal:
    """Make the eth_call and read its answer."""
    (answer,) = await chain.endpoint.batch([("eth_call", parameters)])
    if isinstance(answer, Refusal):
        return answer
    return _read(chain, addresses, answer)


def _read(chain: EvmChain, addresses: Sequence[str], answer: object) -> dict[str, int] | Refusal:
    words = _words(answer)
    if not words or words[0] != len(addresses) * ADDRESS_BYTES:
        return Refusal(0, "our code did not run")
    places, balances = words[1::2], words[2::2]
    if len(places) != len(balances) or any(place % ADDRESS_BYTES for place in places):
        raise ChainInconsistent(chain.endpoint.says("answered eth_call with what our code cannot return"))
    if any(upper <= lower for lower, upper in pairwise(places)) or (places and places[-1] >= words[0]):
        raise ChainInconsistent(chain.endpoint.says("answered eth_call with what our code cannot return"))
    return {addresses[place // ADDRESS_BYTES]: balance for place, balance in zip(places, balances, strict=True)}


def _words(answer: object) -> list[int]:
    """The 32-byte words of an answer; none if it is not made of them."""
    if not isinstance(answer, str) or not re.fullmatch(r"0x([0-9a-fA-F]{64})*", answer):
        return []
    return [int(answer[at : at + 64], 16) for at in range(2, len(answer), 64)]


@dataclass(frozen=True, slots=True)
class _Way:
    name: str
    method: str
    ask: Callable[[EvmChain, Sequence[str], str], Awaitable[dict[str, int] | Refusal]]


_WAYS = (
    _Way("override", "eth_call", _by_override),
    _Way("deployless", "eth_call", _deployless),
    _Way("single", "eth_getBalance", _singly),
)
