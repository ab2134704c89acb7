"""A network through all of its endpoints: whoever wants something of the chain asks here, and one of them answers.

`ask` runs a piece of work against one endpoint's chain, whole: what belongs together is never put together from the
answers of two. The endpoint that works is kept. One that fails, shows another chain, or whose head stands still is set
aside for a time that grows; when all are, the one whose time ends first is asked, so that one endpoint is asked as if
there were no such rules. Before anything is written the others are witnesses: one that contradicts holds it back.

The others are asked little: a witness costs one HTTP request of two headers for each commit. With one endpoint not one
call is made for any of this.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import structlog

from reconsup.chain.block import Block, Header
from reconsup.chain.errors import (
    AnswerTooSlow,
    Behind,
    CallRefused,
    ChainInconsistent,
    ChainUnavailable,
    EndpointsDisagree,
    QuorumMissing,
    Throttled,
    Undecided,
    WrongChain,
)
from reconsup.chain.evm import ChainIdentity, EvmChain
from reconsup.chain.node import TODO, TODO_ELSE, Aside, Node, cause

QUICK_SECONDS = (
    1.0  # a failure within it leaves time for another endpoint; after a longer one the caller's lease counts
)
STANDSTILL_SECONDS = 30.0  # so long a head may stand still before the others are asked how high theirs is
TODO_BLOCKS = "nothing of this network is written"
TODO_BALANCES = "no native request of this network expires, and no money without a log is settled,"

T = TypeVar("T")
Hashes = Callable[[], Awaitable[Mapping[int, str]]]


class Nodes:
    """The endpoints of one network, in the order of preference. For one process; from all tasks of its loop.

    Every method raises ChainUnavailable or ChainInconsistent and nothing else. `quorum`: how many endpoints must show
    the same before it is written. `proves`: blocks that could not be proven are compared with another endpoint's.
    """

    def __init__(
        self,
        chains: Sequence[EvmChain],
        *,
        quorum: int = 1,
        proves: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes = [Node(chain) for chain in chains]
        self._preferred = self._nodes[0]
        self._quorum = quorum
        self._proves = proves
        self._clock = clock
        self.pinned: ChainIdentity | None = None  # the network's chain, once it is known
        self._top = -1
        self._compared_at = 0.0
        self._spell: type[Undecided] | None = None
        self._log = structlog.get_logger().bind(network=chains[0].network)

    def apart(self) -> "Nodes":
        """The same endpoints, judged for themselves: who has no old blocks any more is set aside for these only."""
        chains = [node.chain for node in self._nodes]
        return Nodes(chains, quorum=self._quorum, proves=self._proves, clock=self._clock)

    # whom to ask

    async def ask(self, work: Callable[[EvmChain], Awaitable[T]]) -> T:
        """Run `work` against the best endpoint, from its beginning against another one where that fails quickly."""
        tried: list[Node] = []
        while True:
            node = self._next(tried)
            began = self._clock()
            try:
                await self._meet(node)
                found = await work(node.chain)
            except Undecided:
                self._answered(node)  # it did not fail: others contradict it, or are silent
                raise
            except (ChainUnavailable, ChainInconsistent) as error:
                self._failed(node, error)
                tried.append(node)
                is_quick = not isinstance(error, AnswerTooSlow) and self._clock() - began < QUICK_SECONDS
                if not (is_quick and self._usable(but=tried)):
                    raise
            else:
                self._answered(node)
                return found

    @property
    def has_usable(self) -> bool:
        """Whether an endpoint is there that is not set aside: it may be asked at once."""
        return bool(self._usable())

    @property
    def is_wrong(self) -> bool:
        """Whether every endpoint, when it last answered, showed another chain than the network's."""
        return self.pinned is not None and all(node.shown not in (None, self.pinned) for node in self._nodes)

    def pin(self, identity: ChainIdentity) -> None:
        """From now on only this chain is the network's."""
        self.pinned = identity

    async def meet(self, chain: EvmChain, *, anew: bool = False) -> None:
        """Make sure that an endpoint shows the pinned chain, `anew`: asking it once more. Raises WrongChain."""
        node = self._of(chain)
        node.is_met = node.is_met and not anew
        await self._meet(node)

    async def identity(self) -> ChainIdentity:
        """The chain that is to be pinned: what all endpoints that answer show, and no fewer than the quorum."""
        await asyncio.gather(*(self._introduce(node) for node in self._nodes))
        met = [node for node in self._nodes if node.is_met]
        shown = {node.shown: node for node in met if node.shown is not None}
        if len(shown) > 1:
            each = [
                f"{node.name} shows chain id {it.chain_id}, genesis {it.genesis_hash}" for it, node in shown.items()
            ]
            raise self._disagree(" and ".join(each), chains={node.name: it.chain_id for it, node in shown.items()})
        if not shown or len(met) < self._quorum:
            raise self._too_few(len(met), "their chain id and first block")
        return next(iter(shown))

    # what the others say

    async def agree_on_blocks(self, chain: EvmChain, headers: Sequence[Header], stored: Hashes) -> int:
        """Up to which height these linked headers of `chain` may be written: no other endpoint contradicts them.

        That is the highest of them which the quorum shows, so a witness that is always a little behind delays and does
        not stop. `stored` is asked for (height → hash) where one is behind them all. Raises Undecided.
        """
        first, top = headers[0], headers[-1]
        in_hand = {first.height - 1: first.parent_hash} | {header.height: header.block_hash for header in headers}
        shown = [top.height]  # by each endpoint: the highest one that it has, too
        for node, latest, there in await self._witnesses(chain, top.height):
            other = there or latest
            if other.height > top.height:
                continue  # it has no such block, and yet its head is above: that says nothing
            ours = in_hand.get(other.height) or (await stored()).get(other.height)
            if ours not in (None, other.block_hash):
                raise self._contradiction(chain, node, other.height, str(ours), other.block_hash)
            shown += [other.height] if other.height >= first.height else []
        self._decided(len(shown), f"block {first.height}")
        return sorted(shown, reverse=True)[self._quorum - 1]

    async def agree_on_fork(self, chain: EvmChain, height: int, stored: str, shown: str) -> None:
        """Return if no other endpoint still gives the stored hash of the lowest block to be taken back.

        The quorum is of those that give another one. What is taken back is money, and it is rare: whoever may be asked
        is asked, also those that are set aside. `shown`: what `chain` gives, for the alarm. Raises Undecided.
        """
        agreeing = 1
        for node, _, there in await self._witnesses(chain, height, also_set_aside=True):
            if there is not None and there.block_hash == stored:
                raise self._contradiction(chain, node, height, shown, stored)
            agreeing += there is not None
        self._decided(agreeing, f"that block {height} was replaced")

    async def vouched(self, chain: EvmChain, blocks: Sequence[Block]) -> list[Block]:
        """The blocks, those proven that were not and that another endpoint gives with the same header and credits."""
        unproven = {block.height for block in blocks if not block.proven}
        others = self._usable(but=[self._of(chain)])
        if not (self._proves and unproven):
            return list(blocks)
        for node in others:
            try:
                await self._meet(node)
                again = {each.height: each for each in await node.chain.blocks(min(unproven), max(unproven))}
            except (ChainUnavailable, ChainInconsistent) as error:
                self._failed(node, error)
                continue
            for block in blocks:
                if block.height in unproven and replace(again[block.height], proven=False) != block:
                    other = again[block.height]
                    raise self._contradiction(chain, node, block.height, block.block_hash, other.block_hash)
            return [replace(block, proven=True) for block in blocks]
        return list(blocks)

    async def agree(self, chain: EvmChain, told: T, again: Callable[[EvmChain], Awaitable[T]], about: str) -> bool:
        """Whether another endpoint tells the same of balances as `chain` did; False: none is there that can tell.

        So many as the quorum must, where that is more than one. Raises Undecided.
        """
        agreeing = 1
        for node in self._usable(but=[self._of(chain)]):
            if agreeing >= max(self._quorum, 2):
                break
            try:
                await self._meet(node)
                theirs = await again(node.chain)
            except (ChainUnavailable, ChainInconsistent) as error:
                self._failed(node, error)
                continue
            self._worked(node, wholly=False)
            if theirs != told:
                names = f"{chain.endpoint.name} and {node.name}"
                raise self._disagree(f"{names} tell different balances {about}", todo=TODO_BALANCES)
            agreeing += 1
        if agreeing > 1 or self._quorum > 1:
            self._decided(agreeing, f"the balances {about}")
        return agreeing > 1

    def saw(self, chain: EvmChain, latest: Header) -> None:
        """Note how high an endpoint's head is."""
        self._top = max(self._top, latest.height)
        self._of(chain).saw(latest, self._top, self._clock())

    def has_another(self, chain: EvmChain) -> bool:
        """Whether another endpoint is there that is not set aside."""
        return bool(self._usable(but=[self._of(chain)]))

    async def compare_heads(self, chain: EvmChain, latest: Header) -> None:
        """Where an endpoint's head has stood still for a while, ask the others for theirs. Raises Behind."""
        node, now = self._of(chain), self._clock()
        if len(self._nodes) == 1 or now < max(node.moved_at, self._compared_at) + STANDSTILL_SECONDS:
            return
        self._compared_at = now
        heads = [head.height for _, head, _ in await self._witnesses(chain, latest.height)]
        if max(heads, default=-1) > latest.height:
            raise Behind(chain.endpoint.says(f"stands still at block {latest.height}, another is at {max(heads)}"))

    # one endpoint

    def _of(self, chain: EvmChain) -> Node:
        return next(node for node in self._nodes if node.chain is chain)

    def _usable(self, but: Sequence[Node] = ()) -> list[Node]:
        now = self._clock()
        return [node for node in self._nodes if node not in but and node.is_usable(now)]

    def _next(self, tried: Sequence[Node]) -> Node:
        """Whom to ask. A pause that an endpoint asked for is kept, whoever asks."""
        usable = self._usable(but=tried)
        if usable:
            return self._preferred if self._preferred in usable else usable[0]
        now = self._clock()
        left = [node for node in self._nodes if node not in tried and node.not_before <= now]
        if left:
            return min(left, key=lambda node: node.until)
        seconds = min(node.not_before for node in self._nodes) - now
        raise Throttled(f"{self._nodes[0].chain.network}: every endpoint asks for a pause", max(seconds, 0.0))

    async def _meet(self, node: Node) -> None:
        """Ask an endpoint who it is: before its first use, and after each failure, as another may answer then."""
        if not node.is_met:
            node.shown = await node.chain.identity()
            node.is_met = True
        if self.pinned is not None and node.shown not in (None, self.pinned):
            node.is_met = False  # it may be put right while we run
            raise WrongChain(
                node.chain.endpoint.says(
                    f"shows another chain: chain id {node.shown.chain_id}, not {self.pinned.chain_id}"
                    if node.shown.chain_id != self.pinned.chain_id
                    else f"shows another chain with chain id {node.shown.chain_id}: its first block is another"
                ),
                chain_id=node.shown.chain_id,
                genesis_hash=node.shown.genesis_hash,
            )

    async def _introduce(self, node: Node) -> None:
        try:
            await self._meet(node)
        except (ChainUnavailable, ChainInconsistent) as error:
            self._failed(node, error)

    async def _witnesses(
        self, chain: EvmChain, height: int, *, also_set_aside: bool = False
    ) -> list[tuple[Node, Header, Header | None]]:
        """What the others show: their latest header and the one at `height`. Who is silent or stuck is not among them.

        Those that are set aside are asked too where it matters, or where the quorum cannot be had without them.
        """
        own, now = self._of(chain), self._clock()
        asked = self._usable(but=[own])
        if also_set_aside or len(asked) + 1 < self._quorum:
            asked = [node for node in self._nodes if node is not own and node.not_before <= now]
        words = await asyncio.gather(*(self._word(node, height) for node in asked))
        return [(node, *word) for node, word in zip(asked, words, strict=True) if word is not None]

    async def _word(self, node: Node, height: int) -> tuple[Header, Header | None] | None:
        try:
            await self._meet(node)
            latest, there = await node.chain.show(height)
        except (ChainUnavailable, ChainInconsistent) as error:
            self._failed(node, error)
            return None
        self.saw(node.chain, latest)
        if node.is_stuck(self._top, self._clock()):
            self._set_aside(node, Aside.STUCK, f"its head stands still at block {latest.height} of {self._top}")
            return None
        self._worked(node, wholly=False)
        return latest, there

    def _failed(self, node: Node, error: ChainUnavailable | ChainInconsistent) -> None:
        node.is_met = node.is_met and isinstance(error, CallRefused)
        retry_after = error.retry_after_seconds if isinstance(error, ChainUnavailable) else None
        self._set_aside(node, cause(error), str(error), retry_after)

    def _set_aside(self, node: Node, why: Aside, error: str, retry_after_seconds: float | None = None) -> None:
        now = self._clock()
        node.set_aside(why, now, retry_after_seconds)
        if len(self._nodes) > 1 and node.must_tell(now):  # of an only one the scanner tells
            tell = self._log.error if why in TODO else self._log.warning
            tell("endpoint_set_aside", endpoint=node.name, reason=why, error=error, todo=TODO.get(why, TODO_ELSE))

    def _answered(self, node: Node) -> None:
        self._preferred = node
        self._worked(node, wholly=True)

    def _worked(self, node: Node, *, wholly: bool) -> None:
        node.has_worked(wholly=wholly)
        if node.told is not None:
            node.told = None
            self._log.info("endpoint_back", endpoint=node.name)

    # spells: told when they begin and when they are over

    def _decided(self, agreeing: int, what: str) -> None:
        if agreeing < self._quorum:
            raise self._too_few(agreeing, what)
        if self._spell is not None:
            self._spell = None
            self._log.info("endpoints_agree_again", about=what)

    def _contradiction(self, chain: EvmChain, other: Node, height: int, ours: str, theirs: str) -> EndpointsDisagree:
        one = self._of(chain)
        return self._disagree(
            f"{one.name} and {other.name} show different blocks {height}",
            height=height,
            hashes={one.name: ours, other.name: theirs},
        )

    def _disagree(self, sentence: str, todo: str = TODO_BLOCKS, **facts: object) -> EndpointsDisagree:
        if self._spell is not EndpointsDisagree:
            self._spell = EndpointsDisagree
            self._log.error(
                "endpoints_disagree",
                error=sentence,
                **facts,
                todo=f"{todo} while they do; if it lasts, find out which one is wrong and take it out of "
                "PAYMENT_REQUEST_EVM_RPC_URLS_JSON",
            )
        return EndpointsDisagree(f"{self._nodes[0].chain.network}: {sentence}: nothing is written")

    def _too_few(self, agreeing: int, what: str) -> QuorumMissing:
        if self._spell is not QuorumMissing:
            self._spell = QuorumMissing
            self._log.error(
                "quorum_missing",
                agreeing=agreeing,
                quorum=self._quorum,
                about=what,
                todo="nothing of this network is written until so many endpoints show the same: see which are set "
                "aside, or lower RECONSUP_RPC_QUORUM_JSON",
            )
        network = self._nodes[0].chain.network
        return QuorumMissing(f"{network}: {agreeing} of {self._quorum} endpoints show {what}: nothing is written")
