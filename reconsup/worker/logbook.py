"""What a scanner says of its network: a line for what happened, an alarm with what to do for what somebody must know.

The figures beside them go to the metrics. Nothing is decided here.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import structlog

from reconsup.chain.block import Block, Fork
from reconsup.chain.errors import ChainInconsistent, ChainUnavailable, EndpointsDisagree, WrongChain
from reconsup.chain.evm import ChainIdentity
from reconsup.monitor import metrics
from reconsup.payments.request import Network
from reconsup.store import cursor as cursors
from reconsup.store import refusals
from reconsup.store.cursor import Cursor
from reconsup.store.database import Database
from reconsup.store.errors import StoreRejected, StoreUnavailable
from reconsup.store.ledger import Committed, RolledBack
from reconsup.worker import journal

AGAIN_SECONDS = 600.0  # a failure that lasts is told so often


class Logbook:
    """One network's."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.log = structlog.get_logger().bind(network=network.name)
        self._is_disagreeing = False
        self._failure_told = ""
        self._failure_told_at = 0.0

    def blocks(
        self, before: Cursor, blocks: Sequence[Block], head_height: int, done: Committed, seconds: float
    ) -> None:
        """Blocks were stored; and perhaps the network is not proven any more."""
        metrics.BLOCKS_SCANNED.inc(len(blocks), self.network.name)
        if before.is_proven and not done.cursor.is_proven:
            self.log.warning(
                "network_unproven",
                height=done.cursor.unproven_height,
                todo="`reconsup check` says why. A block that cannot be proven is believed as its endpoint tells it: a "
                "log that it left out would not be noticed",
            )
        self.log.info(
            "blocks",
            first=blocks[0].height,
            last=blocks[-1].height,
            head=head_height,
            credits=sum(len(block.credits) for block in blocks),
            settlements=done.settlements,
            touched=done.touched,
            latency_ms=round(seconds * 1000, 1),
        )

    async def rows_refused(self, database: Database, refused: Mapping[str, str], owner: str) -> None:
        """Blocks pay these, and PostgreSQL refuses to write them: the settlement is there, the touch is not."""
        journal.tell_refused(
            refused,
            "PostgreSQL refuses to write this row, and it was paid: put it right, "
            "then set its next_reconcile_at to now()",
        )
        await refusals.tell(database, refused, worker_id=owner.partition("#")[0], owner=owner)

    def failed(self, error: Exception, failures: int) -> None:
        """A step failed: told when it is the first of a row, or another lie, and again where the row does not end."""
        now, sentence = time.monotonic(), str(error)
        is_news = failures == 1 or (isinstance(error, ChainInconsistent) and sentence != self._failure_told)
        if not is_news and now < self._failure_told_at + AGAIN_SECONDS:
            return
        self._failure_told, self._failure_told_at = sentence, now
        pause = error.retry_after_seconds if isinstance(error, ChainUnavailable) else None
        more = {} if pause is None else {"pause_seconds": pause}
        self.log.warning("scan_failed", error=sentence, kind=type(error).__name__, **more)

    def block_refused(self, error: Exception, cursor: Cursor | None) -> None:
        """PostgreSQL refuses what a block brings."""
        self.log.error(
            "block_refused",
            error=str(error),
            next_height=cursor.next_height if cursor else None,
            todo="PostgreSQL refuses what these blocks bring: a settlement, the proof of a reorg, or the touch of "
            "a request that is at work: put it right. Until then no block of this network is stored",
        )

    async def disagreement(self, database: Database, error: Exception | None) -> None:
        """Two endpoints show different blocks (they said so in the log); or no error: that may be over."""
        is_disagreeing = isinstance(error, EndpointsDisagree)
        if is_disagreeing:
            metrics.RPC_DISAGREEMENTS.inc(1, self.network.name)
        if is_disagreeing or (error is None and self._is_disagreeing):
            self._is_disagreeing = is_disagreeing
            with suppress(
                StoreUnavailable, StoreRejected
            ):  # it is only told: a lease later it is not believed any more
                await cursors.note_disagreement(database, self.network, is_over=not is_disagreeing)

    def reorg(self, fork: Fork, done: RolledBack) -> None:
        """The scan was taken back to a proven fork."""
        metrics.REORGS.inc(1, self.network.name)
        self.log.warning(
            "reorg",
            fork=fork.height,
            depth=len(fork.orphaned),
            orphaned_settlements=done.orphaned,
            touched=done.touched,
        )

    def stopped(self, reason: str) -> None:
        """The network stopped."""
        self.log.error(
            "network_stopped",
            reason=reason,
            todo="nothing of this network is written until its endpoints show the stored chain again. If they are "
            f"right and that chain is gone: reconsup chain {self.network} resume",
        )

    def wrong_chain(self, error: WrongChain, expected: ChainIdentity) -> None:
        """No endpoint shows the chain that the database was read from."""
        self.log.error(
            "wrong_chain",
            error=str(error),
            chain_id=error.chain_id,
            expected_chain_id=expected.chain_id,
            genesis_hash=error.genesis_hash,
            expected_genesis_hash=expected.genesis_hash,
            todo="this network's endpoint shows another chain than the database was read from; correct "
            "PAYMENT_REQUEST_EVM_RPC_URLS_JSON. Until then this process does not serve the network",
        )
