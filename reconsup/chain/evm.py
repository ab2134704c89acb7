"""An EVM chain through one endpoint: who it is, where its head is, its headers, and whole blocks with their credits.

A block is read whole or not at all: nothing is filtered by the node, so nothing can be missed later because somebody
was not yet watching. A height that the node does not have is ChainUnavailable (it is behind), never an empty block.

A range of blocks and their receipts travel in one JSON-RPC batch, as large as the endpoint has shown to bear. Each
block is proven against its own header (chain.proof).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from reconsup.chain import decode, proof
from reconsup.chain.block import Ask, Block, Fork, Header, NoFork, links, walk_back
from reconsup.chain.errors import AnswerTooLarge, AnswerTooSlow, ChainInconsistent, ChainUnavailable, Throttled
from reconsup.chain.rpc import Call, Endpoint, Refusal

BATCH_BLOCKS_MAX = 50
BATCH_CALLS_MAX = 100
BREATH_SECONDS = 0.005
WALK_BATCHES = (8, 64, BATCH_CALLS_MAX)  # headers a batch of a walk back, after the first
BATCH_BYTES_AIM = 16 * 1024 * 1024  # of one answer: parsed, it takes several times as much memory
TRANSACTION_BYTES = 4096  # a mainnet transaction with its receipt and logs, for want of a measurement


@dataclass(frozen=True, slots=True)
class ChainIdentity:
    """What tells one chain from another."""

    chain_id: int
    genesis_hash: str


@dataclass(frozen=True, slots=True)
class Head:
    """Where the chain ends. `safe` and `finalized` are None where the endpoint does not know these tags."""

    latest: Header
    safe: Header | None
    finalized: Header | None


class Pace:
    """How many blocks to ask for at once: as many as one answer bears, fewer after one that was too much."""

    def __init__(self) -> None:
        self._limit = BATCH_BLOCKS_MAX
        self._block_bytes = 0.0

    @property
    def blocks(self) -> int:
        """Blocks for the next batch, at least one."""
        fitting = int(BATCH_BYTES_AIM / self._block_bytes) if self._block_bytes else BATCH_BLOCKS_MAX
        return max(1, min(self._limit, fitting))

    def expect(self, transaction_count: int) -> None:
        """Guess the size of a block from its number of transactions, as long as none was measured."""
        self._block_bytes = self._block_bytes or float(transaction_count * TRANSACTION_BYTES)

    def fitted(self, blocks: int, answer_bytes: int) -> None:
        """Learn from an answer that arrived; the limit grows back slowly."""
        self._block_bytes = max(answer_bytes / blocks, self._block_bytes * 0.75)
        if blocks >= self._limit:
            self._limit = min(BATCH_BLOCKS_MAX, self._limit + 1 + self._limit // 8)

    def was_too_much(self, blocks: int) -> None:
        """Learn from an answer that did not arrive."""
        self._limit = max(1, blocks // 2)


class EvmChain:
    """The chain behind one endpoint. Every method raises ChainUnavailable or ChainInconsistent and nothing else.

    `proves`: recompute the roots of every block; `native_logs_from`: from this block on native transfers have logs.
    `doubt` says why the block that was read last is not proven; None: it is.
    """

    def __init__(self, endpoint: Endpoint, *, proves: bool = True, native_logs_from: int | None = None) -> None:
        self.endpoint = endpoint
        self.doubt: str | None = None
        self.proves = proves
        self._native_logs_from = native_logs_from
        self.supports_block_receipts: bool | None = None  # None: not tried yet
        self._pace = Pace()
        self._receipts_per_batch = BATCH_CALLS_MAX

    @property
    def network(self) -> str:
        """The network's name in our settings."""
        return self.endpoint.network

    async def identity(self) -> ChainIdentity:
        """Ask for the chain id and the genesis hash."""
        chain_id, genesis = await self._results([("eth_chainId", []), ("eth_getBlockByNumber", ["0x0", False])])
        if genesis is None:
            raise ChainUnavailable(self.endpoint.says("does not have the genesis block"))
        with self._accusing():
            return ChainIdentity(
                chain_id=decode.quantity(chain_id, "the chain id", decode.HEIGHT_MAX),
                genesis_hash=decode.header(genesis, 0).block_hash,
            )

    async def head(self) -> Head:
        """Ask for the latest, safe and finalized header in one batch.

        On chains with instant finality a new block may come between the three answers: the highest is the latest.
        """
        method = "eth_getBlockByNumber"
        latest, *tags = await self.endpoint.batch([(method, [tag, False]) for tag in ("latest", "safe", "finalized")])
        if self.endpoint.accepted(latest, method) is None:
            raise ChainUnavailable(self.endpoint.says("has no latest block"))
        for answer in tags:
            if isinstance(answer, Refusal) and answer.is_throttling:
                self.endpoint.accepted(answer, method)
        with self._accusing():
            tip = decode.header(latest)
            self._pace.expect(decode.transaction_count(latest))
            safe, finalized = (
                None if answer is None or isinstance(answer, Refusal) else decode.header(answer) for answer in tags
            )
            known = [header for header in (tip, safe, finalized) if header is not None]
            if len({header.height for header in known}) != len({header.block_hash for header in known}):
                raise ChainInconsistent("gave two blocks for one height: latest, safe or finalized")
        return Head(max(known, key=lambda header: header.height), safe, finalized)

    async def header(self, block_hash: str) -> Header | None:
        """Ask for a header by hash; None if the endpoint does not know it (which proves nothing)."""
        raw = await self.endpoint.call("eth_getBlockByHash", block_hash, False)
        if raw is None:
            return None
        with self._accusing():
            header = decode.header(raw)
            if header.block_hash != block_hash:
                raise ChainInconsistent(f"block {block_hash} was asked for, block {header.block_hash} came")
        return header

    async def header_at(self, height: int) -> Header | None:
        """Ask for a header by number; None if the endpoint does not have it (which proves nothing)."""
        raw = await self.endpoint.call("eth_getBlockByNumber", hex(height), False)
        if raw is None:
            return None
        with self._accusing():
            return decode.header(raw, height)

    async def headers(self, heights: Sequence[int]) -> list[Header]:
        """Ask for headers by number in one batch; in the order of the heights. ChainUnavailable if one is not there."""
        method = "eth_getBlockByNumber"
        raws = await self._results([(method, [hex(height), False]) for height in heights])
        if None in raws:
            raise ChainUnavailable(self.endpoint.says(f"does not have block {heights[raws.index(None)]}"))
        with self._accusing():
            return [decode.header(raw, height) for raw, height in zip(raws, heights, strict=True)]

    async def show(self, height: int) -> tuple[Header, Header | None]:
        """Ask for the latest header and the one at a height (None: not there), in one small HTTP request."""
        method = "eth_getBlockByNumber"
        latest, there = await self._results([(method, ["latest", False]), (method, [hex(height), False])])
        if latest is None:
            raise ChainUnavailable(self.endpoint.says("has no latest block"))
        with self._accusing():
            return decode.header(latest), None if there is None else decode.header(there, height)

    async def find_fork(
        self, stored: Mapping[int, str], head: Header, on_headway: Callable[[], Awaitable[None]] | None = None
    ) -> Fork | NoFork:
        """Walk from `head` down to the highest block that is also in `stored` (height → hash).

        Headers are asked for by number, in batches, and believed only where they hang by parent hash below `head`,
        which may be any header of the endpoint's chain that is not below the stored tip. The first batch ends one block
        below that tip, for most reorgs take one block. `on_headway` is awaited after each batch that hangs there.
        """
        lowest, tip = min(stored), max(stored)
        headers, walked = [head], 0
        count, growing = min(head.height - tip + 1, WALK_BATCHES[-1]), iter(WALK_BATCHES)
        while isinstance(step := walk_back(stored, headers, walked), Ask):
            if walked and on_headway is not None:
                await on_headway()
            walked = len(headers)
            try:
                headers += await self.headers(range(step.height, max(step.height - count, lowest - 1), -1))
            except AnswerTooLarge:
                if count == 1:
                    raise
                count, growing = max(1, count // 2), iter(())
            else:
                count = next(growing, count)
        return step

    async def blocks(self, first: int, last: int) -> list[Block]:
        """Read the blocks from `first` to `last`, both included, linked and checked, lowest first.

        One HTTP request for the range where the endpoint bears it. ChainUnavailable if it does not have them all.
        """
        assert 0 <= first <= last
        found: list[Block] = []
        while (height := first + len(found)) <= last:
            count = min(self._pace.blocks, last - height + 1)
            try:
                found += await self._read(range(height, height + count))
            except AnswerTooLarge:
                self._pace.was_too_much(count)
                if count == 1:
                    raise
            except (AnswerTooSlow, Throttled):
                self._pace.was_too_much(count)
                raise  # another attempt might take as long again: that is for whoever holds a lease to decide
        with self._accusing():
            if not links([block.header for block in found]):
                raise ChainInconsistent(f"gave blocks {first} to {last} that are not one chain")
        return found

    async def _read(self, heights: range) -> list[Block]:
        raw_blocks, receipts = await self._fetch(heights)
        self._pace.fitted(len(heights), self.endpoint.answer_bytes)
        for height, raw in zip(heights, raw_blocks, strict=True):
            if raw is None:
                raise ChainUnavailable(self.endpoint.says(f"is behind: it does not have block {height}"))
        if receipts is None:
            with self._accusing():
                hashes = [
                    [str(tx["hash"]) for tx in decode.transactions(raw, decode.header(raw, height))]
                    for height, raw in zip(heights, raw_blocks, strict=True)
                ]
            receipts = await self._single_receipts(hashes)
        for height, each in zip(heights, receipts, strict=True):
            if each is None or (isinstance(each, list) and None in each):
                raise ChainUnavailable(self.endpoint.says(f"is behind: it has no receipts for block {height}"))
        found: list[Block] = []
        breathed_at = time.monotonic()
        with self._accusing():
            for each in zip(raw_blocks, receipts, heights, strict=True):
                found.append(self._block(*each))
                if time.monotonic() > breathed_at + BREATH_SECONDS:  # a busy block takes longer than that
                    await asyncio.sleep(0)  # whoever else is on this loop comes between
                    breathed_at = time.monotonic()
        return found

    def _block(self, raw: Any, receipts: Any, height: int) -> Block:
        block = decode.block(raw, receipts, height, self._native_logs_from)
        if not self.proves:
            self.doubt = "RECONSUP_BLOCK_PROOF_JSON switches the proof off"
            return block
        try:
            self.doubt = proof.doubt(raw, receipts)
        except ChainInconsistent as fault:
            setting = f'RECONSUP_BLOCK_PROOF_JSON={{"{self.network}": false}}'
            raise ChainInconsistent(
                f"{fault}. No such block is stored. If every endpoint shows every block of {self.network} like this, "
                f"the chain builds its blocks in another way: then set {setting}"
            ) from None
        return replace(block, proven=self.doubt is None)

    async def _fetch(self, heights: range) -> tuple[list[Any], list[Any] | None]:
        """Ask for blocks and receipts; None in place of the receipts where the method is not supported."""
        bodies: list[Call] = [("eth_getBlockByNumber", [hex(height), True]) for height in heights]
        receipts: list[Call] = [("eth_getBlockReceipts", [hex(height)]) for height in heights]
        if self.supports_block_receipts is False:
            return await self._results(bodies), None
        answers = await self.endpoint.batch(bodies + receipts)
        raw_blocks = [self.endpoint.accepted(each, "eth_getBlockByNumber") for each in answers[: len(bodies)]]
        raw_receipts = answers[len(bodies) :]
        if None in raw_blocks:
            return raw_blocks, []
        if any(isinstance(each, Refusal) and each.is_unsupported for each in raw_receipts):
            self.supports_block_receipts = False
            return raw_blocks, None
        accepted = [self.endpoint.accepted(each, "eth_getBlockReceipts") for each in raw_receipts]
        self.supports_block_receipts = True
        return raw_blocks, accepted

    async def _single_receipts(self, hashes: Sequence[Sequence[str]]) -> list[list[Any]]:
        """Ask for receipts one by one, in batches; grouped as the transaction hashes are."""
        calls: list[Call] = [("eth_getTransactionReceipt", [each]) for group in hashes for each in group]
        flat: list[Any] = []
        while len(flat) < len(calls):
            try:
                flat += await self._results(calls[len(flat) : len(flat) + self._receipts_per_batch])
            except AnswerTooLarge:
                if self._receipts_per_batch == 1:
                    raise
                self._receipts_per_batch //= 2
        receipts = iter(flat)
        return [[next(receipts) for _ in group] for group in hashes]

    async def _results(self, calls: Sequence[Call]) -> list[Any]:
        answers = await self.endpoint.batch(calls)
        return [self.endpoint.accepted(each, method) for each, (method, _) in zip(answers, calls, strict=True)]

    @contextmanager
    def _accusing(self) -> Iterator[None]:
        """Name the endpoint in what was found wrong with its answer."""
        try:
            yield
        except ChainInconsistent as fault:
            raise ChainInconsistent(self.endpoint.says(str(fault))) from None
