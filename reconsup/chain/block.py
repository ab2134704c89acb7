"""What a chain is to reconsup: headers linked by parent hash, and the credits in each block. Pure.

Rooms that fetch (chain.evm) and rooms that store (store.ledger) hand each other these values and nothing else.
Hashes and addresses are lower-case "0x…" strings, amounts are whole minor units of any size, times are aware (UTC).

`walk_back` finds where the stored chain and the endpoint's part. It never infers from absence: it compares only
headers that hang, hash by hash, below a head that is not lower than what we have scanned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import pairwise

NATIVE = ""  # token_contract of the chain's own coin


@dataclass(frozen=True, slots=True)
class Credit:
    """Money that arrived at an address. `token_contract` is NATIVE or the contract that said so.

    `evidence_ref` is the transaction hash for the native value of a transaction, and `tx_hash:log_index` for whatever
    was told by a log: a token, or native value where a chain logs it.
    """

    evidence_ref: str
    tx_hash: str
    address: str
    token_contract: str
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Header:
    """One link of the chain."""

    height: int
    block_hash: str
    parent_hash: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Block:
    """A header with all credits of its block, in block order.

    `proven`: the header's own roots were recomputed from what was read, so nothing can be missing.
    """

    header: Header
    credits: tuple[Credit, ...]
    proven: bool

    @property
    def height(self) -> int:
        """The block's number."""
        return self.header.height

    @property
    def block_hash(self) -> str:
        """The block's hash."""
        return self.header.block_hash

    @property
    def parent_hash(self) -> str:
        """The hash of the block below."""
        return self.header.parent_hash

    @property
    def time(self) -> datetime:
        """The block's own time (UTC)."""
        return self.header.time


def links(headers: Sequence[Header]) -> bool:
    """Whether headers, lowest first, form one unbroken chain by height, parent hash and time."""
    return all(
        upper.height == lower.height + 1 and upper.parent_hash == lower.block_hash and upper.time >= lower.time
        for lower, upper in pairwise(headers)
    )


@dataclass(frozen=True, slots=True)
class Ask:
    """The walk needs this header next: `EvmChain.header(block_hash)`."""

    height: int
    block_hash: str


@dataclass(frozen=True, slots=True)
class Fork:
    """The highest block that the stored chain and the endpoint's have in common.

    `orphaned` is the proof: (height, stored hash, canonical hash) for every stored block above, lowest first.
    Empty means that there was no reorg: our tip is on the endpoint's chain.
    """

    height: int
    block_hash: str
    time: datetime
    orphaned: tuple[tuple[int, str, str], ...]


class NoFork(StrEnum):
    """Why a walk ended without a common block."""

    HEAD_BELOW_TIP = "head_below_tip"  # proves nothing: the endpoint is behind
    UNLINKED = "unlinked"  # proves nothing: these headers are not one chain
    BELOW_TAIL = "below_tail"  # proven, but deeper than anything stored


def walk_back(stored: Mapping[int, str], headers: Sequence[Header], walked: int = 0) -> Ask | Fork | NoFork:
    """Say what a walk from the endpoint's head down to the stored chain has found so far.

    `stored` maps heights to stored hashes; `headers` holds the head and every header fetched below it so far, highest
    first. Neither may be empty. Answer an Ask by appending that header, and as many below it as you like, and calling
    again; the first `walked` headers, to which the answer was an Ask, need not be looked at once more.
    """
    if headers[0].height < max(stored):
        return NoFork.HEAD_BELOW_TIP
    if not links(headers[max(0, walked - 1) :][::-1]):
        return NoFork.UNLINKED
    for header in headers[walked:]:
        if stored.get(header.height) == header.block_hash:
            return Fork(header.height, header.block_hash, header.time, _orphaned(stored, headers, header.height))
    lowest = headers[-1]
    if lowest.height <= min(stored):
        return NoFork.BELOW_TAIL
    return Ask(lowest.height - 1, lowest.parent_hash)


def _orphaned(
    stored: Mapping[int, str], headers: Sequence[Header], fork_height: int
) -> tuple[tuple[int, str, str], ...]:
    canonical = {header.height: header.block_hash for header in headers}
    return tuple((height, stored[height], canonical[height]) for height in sorted(stored) if height > fork_height)
