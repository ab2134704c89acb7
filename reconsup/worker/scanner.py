"""The block's road: hold a network's cursor, follow its head, carry whole blocks from the chain to the ledger.

One scanner a network and process; of all of them on all hosts, one holds the scan lease. It reads each block once
for everybody. What it does not get, it asks for again: nothing is inferred from absence. A reorg is believed only when
the endpoint's own headers, linked by parent hash up to a head not below our tip, lead to another block than the
stored one; one that reaches below what is final stops the network and nothing else.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reconsup import pulse
from reconsup.chain.block import Block, Fork, Header, NoFork
from reconsup.chain.errors import Behind, ChainInconsistent, ChainUnavailable, EndpointsDisagree, Undecided, WrongChain
from reconsup.chain.evm import BATCH_BLOCKS_MAX, ChainIdentity, EvmChain, Head
from reconsup.chain.nodes import Nodes
from reconsup.fleet.posix import Bell
from reconsup.monitor import metrics
from reconsup.payments.request import Network
from reconsup.store import cursor as cursors
from reconsup.store import ledger
from reconsup.store.cursor import Cursor, Tags
from reconsup.store.database import Database
from reconsup.store.errors import StoreRejected, StoreUnavailable
from reconsup.store.persist import Against
from reconsup.worker.ahead import ReadAhead, next_range
from reconsup.worker.logbook import Logbook
from reconsup.worker.pause import Pause

WALK_BLOCKS_MAX = 64
RETRY_SECONDS_MIN = 0.5
STORE_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Watch:
    """What a scanner is there for: one network, and the operator's figures for it."""

    network: Network
    owner: str
    lease_seconds: float
    poll_interval_seconds: float
    tail_blocks: int
    due_against: Against


class _LeaseLostError(Exception):
    """The scan lease went to somebody else in the midst of a walk."""


class Scanner:
    """One network's loop in one process. `is_served` is True once the endpoint showed the very chain of the cursor."""

    def __init__(self, watch: Watch, database: Database, nodes: Nodes, bell: Bell, pause: Pause) -> None:
        self._watch = watch
        self._database = database
        self._nodes = nodes
        self._chain: EvmChain  # the one that this step speaks to
        self._bell = bell
        self._pause = pause
        self._book = Logbook(watch.network)
        self._log = self._book.log
        self._is_same: bool | None = None
        self._cursor: Cursor | None = None
        self._progress_at = 0.0
        self._renewed_at = 0.0
        self._range_blocks = BATCH_BLOCKS_MAX
        self._ahead: ReadAhead | None = None
        self._failures = 0
        self._is_queuing = False
        self._is_away = False

    @property
    def is_served(self) -> bool:
        """Whether this process may decide about requests of the network."""
        return self._is_same is True

    @property
    def held(self) -> Cursor | None:
        """The cursor, while this process holds the scan lease and the network runs."""
        cursor = self._cursor
        return None if cursor is None or cursor.stop_reason is not None else cursor

    async def run(self) -> None:
        """Scan until the drain begins; then free the lease."""
        while not self._pause.is_stopping:
            pulse.alive()
            seconds = await self.turn()
            # A ring may tell that the scan lease is free. It tells the holder nothing, and must not cut short a wait
            # that an endpoint asked for.
            if self._is_away:
                await self._pause.for_database(self._database)
            elif seconds > 0:
                await (self._pause.for_seconds(seconds) if self._is_queuing else self._pause.whole(seconds))
        await self._stand_back()

    async def turn(self) -> float:
        """A step, and what can go wrong in it; how many seconds to wait before the next one."""
        self._is_queuing = self._is_away = False
        try:
            seconds = await self._nodes.ask(self.step)
        except (ChainUnavailable, ChainInconsistent, StoreUnavailable, StoreRejected) as error:
            seconds = self._failed(error)
            await self._book.disagreement(self._database, error)
            if isinstance(error, WrongChain) and self._nodes.is_wrong:
                seconds = await self._stop_serving(error)
        else:
            await self._book.disagreement(self._database, None)
            if self._cursor is not None:  # who only waits for the lease cannot tell
                if self._failures:
                    self._log.info("scan_back", failures=self._failures)
                self._failures = 0
        if self._cursor is not None and time.monotonic() + seconds > self._progress_at + self._watch.lease_seconds:
            self._log.info("scan_lease_freed", because="no progress for one lease")
            await self._stand_back()
            seconds = max(seconds, self._watch.poll_interval_seconds)
        return seconds

    async def step(self, chain: EvmChain) -> float:
        """Do the next thing, on this endpoint's word alone; how many seconds to wait before the one after it."""
        self._chain = chain
        if self._cursor is None:
            self._cursor = await self._take()
        if self._cursor is None:
            return self._idle_seconds
        if self._cursor.stop_reason is not None:
            return await self._try_to_start_again(self._cursor)
        return await self._follow(self._cursor, await self._chain.head())

    async def _take(self) -> Cursor | None:
        """The scan lease, if it is free and this endpoint shows the cursor's own chain; the cursor is born here."""
        seen = await cursors.read(self._database, self._watch.network)
        if seen is None:
            await self._bear(await self._nodes.identity())
            seen = await cursors.read(self._database, self._watch.network)
        if seen is None:
            return None
        self._nodes.pin(ChainIdentity(seen.chain_id, seen.genesis_hash))
        await self._nodes.meet(self._chain)
        if not self._is_same:
            self._is_same = True
            self._bell.ring()  # its requests may be looked at now
        taken = await cursors.take(
            self._database, self._watch.network, owner=self._watch.owner, lease_seconds=self._watch.lease_seconds
        )
        self._is_queuing = taken is None
        if taken is not None:
            self._progress_at = self._renewed_at = time.monotonic()
            self._log.info("scan_lease_taken", next_height=taken.next_height, epoch=taken.epoch)
        return taken

    async def _bear(self, identity: ChainIdentity) -> None:
        head = await self._chain.head()
        first_height = max(0, head.latest.height - self._watch.tail_blocks)
        parent: Header | None = None
        if first_height > 0:
            parent = await self._chain.header_at(first_height - 1)
            if parent is None:
                raise ChainUnavailable(f"{self._watch.network}: block {first_height - 1} is not there yet")
            await self._nodes.agree_on_blocks(self._chain, [parent], _nothing_stored)
        is_ours = await cursors.birth(
            self._database,
            self._watch.network,
            chain_id=identity.chain_id,
            genesis_hash=identity.genesis_hash,
            parent=parent,
        )
        if is_ours:
            self._log.info("cursor_born", first_height=first_height, chain_id=identity.chain_id)

    async def _stop_serving(self, error: WrongChain) -> float:
        """Every endpoint shows another chain: until one is put right nothing is decided here."""
        expected, was_same, self._is_same = self._nodes.pinned, self._is_same, False
        if was_same is not False and expected is not None:
            self._book.wrong_chain(error, expected)
        await self._stand_back()
        return self._idle_seconds

    async def _follow(self, cursor: Cursor, head: Head) -> float:
        """Bring the cursor closer to the head."""
        latest = head.latest
        self._nodes.saw(self._chain, latest)
        tags = Tags(latest.height, *await self._nodes.agree_on_tags(self._chain, head))
        if latest.block_hash == cursor.tip_hash:
            await self._nodes.compare_heads(self._chain, latest)
            await self._keep(cursor, tags)
            return self._idle_seconds
        if latest.height < cursor.scanned_height:
            if self._nodes.has_another(self._chain):
                raise Behind(self._chain.endpoint.says(f"is behind: its head is block {latest.height}"))
            self._log.info("endpoint_behind", head=latest.height, scanned=cursor.scanned_height)
            return self._idle_seconds
        if latest.height == cursor.scanned_height:
            return await self._walk_back(cursor, latest)
        last = min(latest.height, cursor.next_height + self._range_blocks - 1)
        blocks = await self._ahead_of(self._chain).blocks(cursor.next_height, last)
        if blocks[0].parent_hash != cursor.tip_hash:
            return await self._walk_back(cursor, await self._near_head(cursor, latest))
        headers = [block.header for block in blocks]
        if latest.height <= headers[-1].height and latest not in headers:
            self._drop_ahead()  # read before a reorg that this very head shows
            return RETRY_SECONDS_MIN
        agreed = await self._nodes.agree_on_blocks(
            self._chain, headers, lambda: cursors.stored_hashes(self._database, cursor)
        )
        blocks = await self._nodes.vouched(self._chain, [block for block in blocks if block.height <= agreed])
        if blocks[-1].height < latest.height:  # meanwhile the ones behind them are on their way
            self._ahead_of(self._chain).begin(
                blocks[-1].height + 1, min(latest.height, blocks[-1].height + self._range_blocks)
            )
        return await self._commit(cursor, blocks, tags)

    def _ahead_of(self, chain: EvmChain) -> ReadAhead:
        """The reader of this endpoint's blocks."""
        if self._ahead is None or self._ahead.chain is not chain:
            self._drop_ahead()
            self._ahead = ReadAhead(chain)
        return self._ahead

    def _drop_ahead(self) -> None:
        """What was read ahead is of no use: it was of another chain, or may be old by the time it is asked for."""
        if self._ahead is not None:
            self._ahead.drop()
        self._ahead = None

    async def _commit(self, cursor: Cursor, blocks: Sequence[Block], tags: Tags) -> float:
        """Store blocks that hang on our tip; at once more if the head is farther."""
        started = time.monotonic()
        done = await ledger.commit(
            self._database,
            cursor,
            blocks,
            tags,
            lease_seconds=self._watch.lease_seconds,
            tail_blocks=self._watch.tail_blocks,
            due_against=self._watch.due_against,
        )
        if done is None:
            return await self._lost()
        self._advanced(done.cursor)
        seconds = self._ahead.seconds if self._ahead is not None else 0.0
        self._range_blocks = next_range(
            blocks, seconds, twice=self._range_blocks * 2, tail_blocks=self._watch.tail_blocks,
            lease_seconds=self._watch.lease_seconds,
        )  # fmt: skip
        if done.refused:
            await self._book.rows_refused(self._database, done.refused, self._watch.owner)
        if done.touched or cursor.tip_time is None:  # the first block of all makes requests claimable
            self._bell.ring()
        self._book.blocks(cursor, blocks, tags.head_height, done, time.monotonic() - started)
        return 0.0 if blocks[-1].height < tags.head_height else self._idle_seconds

    async def _keep(self, cursor: Cursor, tags: Tags) -> None:
        """Our tip is the head: that is progress. Written at a third of the lease, or when a tag may confirm."""
        self._progress_at = time.monotonic()
        is_early = self._progress_at < self._renewed_at + self._watch.lease_seconds / 3
        if is_early and self._watch.due_against == "scanned":
            return
        kept = await cursors.keep(
            self._database,
            cursor,
            tags,
            lease_seconds=self._watch.lease_seconds,
            due_against=self._watch.due_against,
        )
        if kept is None:
            await self._lost()
        else:
            self._advanced(kept)

    async def _near_head(self, cursor: Cursor, latest: Header) -> Header:
        """Where a walk back begins: the head, or after a long absence a block of its chain not far above our tip."""
        height = cursor.scanned_height + WALK_BLOCKS_MAX
        if latest.height <= height:
            return latest
        header = await self._chain.header_at(height)
        if header is None:
            raise ChainUnavailable(f"{self._watch.network}: block {height} is not there, though the head is above it")
        return header

    async def _walk_back(self, cursor: Cursor, head: Header) -> float:
        """Find where the stored chain and the endpoint's part, and take the scan back to there.

        Not farther than to what is final: where the two have nothing in common above, the network stops.
        """
        self._drop_ahead()
        await self._nodes.meet(self._chain, anew=True)  # before anything is taken back on its word
        stored = await cursors.stored_hashes(self._database, cursor)
        final = -1 if cursor.finalized_height is None else cursor.finalized_height
        above_final = {at: hash_ for at, hash_ in stored.items() if at >= final}
        try:
            fork = await self._chain.find_fork(above_final, head, lambda: self._headway(cursor))
        except _LeaseLostError:
            return await self._lost()
        if fork is NoFork.BELOW_TAIL:
            lowest = min(at for at in stored if at >= final)
            await self._nodes.agree_on_fork(self._chain, lowest, stored[lowest], "another one")
            return await self._stop(cursor, f"reorg below what is final (block {final})")
        if not isinstance(fork, Fork) or not fork.orphaned:
            return RETRY_SECONDS_MIN  # nothing is proven: these answers are not of one chain, or our tip is on it
        await self._nodes.agree_on_fork(self._chain, *fork.orphaned[0])
        done = await ledger.roll_back(self._database, cursor, fork, lease_seconds=self._watch.lease_seconds)
        if done is None:
            return await self._lost()
        self._advanced(done.cursor)
        self._book.reorg(fork, done)
        self._bell.ring()
        return 0.0

    async def _headway(self, cursor: Cursor) -> None:
        """A walk back goes on along linked headers. That is progress: it must not lose the lease half way."""
        pulse.alive()
        self._progress_at = time.monotonic()
        if self._progress_at < self._renewed_at + self._watch.lease_seconds / 3:
            return
        if not await cursors.renew(self._database, cursor, lease_seconds=self._watch.lease_seconds):
            raise _LeaseLostError
        self._renewed_at = self._progress_at

    async def _stop(self, cursor: Cursor, reason: str) -> float:
        if not await cursors.stop(self._database, cursor, reason):
            return await self._lost()
        self._cursor = replace(cursor, stop_reason=reason)
        self._book.stopped(reason)
        return self._idle_seconds

    async def _try_to_start_again(self, cursor: Cursor) -> float:
        """A stopped network goes on when the endpoint shows the stored tip again, or when somebody resumed it."""
        seen = await cursors.read(self._database, cursor.network)
        if seen is None or seen.epoch != cursor.epoch:
            return await self._lost()
        tip = await self._chain.header_at(cursor.scanned_height)
        if tip is None:
            return self._idle_seconds
        if tip.block_hash != cursor.tip_hash:  # perhaps another endpoint does show it: then somebody must be told
            await self._nodes.agree_on_fork(self._chain, cursor.scanned_height, cursor.tip_hash, tip.block_hash)
            return self._idle_seconds
        if await cursors.start_again(self._database, cursor):
            self._log.warning("network_started_again", height=cursor.scanned_height)
            self._bell.ring()
        await self._stand_back()
        return 0.0

    def _advanced(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._progress_at = self._renewed_at = time.monotonic()

    async def _lost(self) -> float:
        """The cursor is somebody else's now, or was moved: begin from what the database says.

        With fewer blocks: perhaps it took longer than a lease to read them, and two who do that take it from each other
        for ever.
        """
        self._range_blocks = max(1, self._range_blocks // 2)
        self._log.warning("scan_lease_lost")
        metrics.WRITES_REFUSED.inc(1, "lease_lost")
        await self._stand_back()
        return RETRY_SECONDS_MIN

    def _failed(self, error: Exception) -> float:
        """Tell the first failure of a row of them, and from time to time; ask for less, and wait ever longer."""
        self._failures += 1
        self._drop_ahead()
        if isinstance(error, StoreRejected):
            self._book.block_refused(error, self._cursor)
        elif not isinstance(error, EndpointsDisagree):
            self._book.failed(error, self._failures)
        self._range_blocks = max(1, self._range_blocks // 2)
        if isinstance(error, StoreUnavailable):
            self._cursor = None  # what was sent may have been written: begin from what the database says
            self._is_away = True
            return STORE_RETRY_SECONDS
        if self._nodes.has_usable and not isinstance(error, StoreRejected | Undecided):
            return 0.0  # another endpoint is there
        seconds: float = RETRY_SECONDS_MIN * 2 ** min(self._failures - 1, 10)
        if not isinstance(error, ChainUnavailable):
            return min(seconds, self._idle_seconds)
        return max(min(seconds, self._idle_seconds), error.retry_after_seconds or 0.0)

    async def _stand_back(self) -> None:
        """Give the scan lease back so that another worker can try."""
        self._drop_ahead()
        cursor, self._cursor = self._cursor, None
        if cursor is None:
            return
        try:
            await cursors.free(self._database, cursor)
        except StoreUnavailable:
            self._log.info("scan_lease_left_to_end")  # the database is away: the lease's end frees it

    @property
    def _idle_seconds(self) -> float:
        """The poll interval, but never so long that the scan lease would end in between."""
        return min(self._watch.poll_interval_seconds, self._watch.lease_seconds / 3)


async def _nothing_stored() -> Mapping[int, str]:
    return {}
