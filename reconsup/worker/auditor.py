"""The balance's road: compare what open native requests hold with what is known to have arrived, and explain the rest.

Every so many scanned blocks all of them are compared at the scanned tip, thousands in one call; those whose end is
reached are compared before they may expire, however long that takes. Only the process whose scanner holds the scan
lease audits a network, and every write presents that lease. No transaction is open while the chain is asked; a
worker that is killed in between has written nothing, and the next one begins anew.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Protocol

import structlog

from reconsup import pulse
from reconsup.chain import balances
from reconsup.chain.errors import ChainInconsistent, ChainUnavailable
from reconsup.chain.nodes import Nodes
from reconsup.chain.state import State
from reconsup.fleet.posix import Bell
from reconsup.monitor import metrics
from reconsup.payments.request import Network
from reconsup.store import audit, findings
from reconsup.store.audit import Account, Page, Standing
from reconsup.store.cursor import Cursor
from reconsup.store.database import Database
from reconsup.store.errors import StoreRejected, StoreUnavailable
from reconsup.store.findings import Finding
from reconsup.worker import surety
from reconsup.worker.pause import Pause

RETRY_SECONDS_MIN = 1.0
RETRY_SECONDS_MAX = 300.0
DUE_ACCOUNTS = 500  # before they expire: a call for each, and their block must not grow old meanwhile
FAILURES_TOLD = 2  # one may be a reorg that came between the question and the answer


class Holder(Protocol):
    """Who holds the scan lease: the scanner of this process, or nobody here."""

    @property
    def held(self) -> Cursor | None:
        """The cursor, while the lease is held and the network runs."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What an auditor is there for: one network, and the operator's figures for it."""

    network: Network
    poll_interval_seconds: float
    audit_blocks: int
    expiry_confirmations: int
    expiry_grace_seconds: float


@dataclass(slots=True)
class _Tally:
    """What one sweep did, for the log."""

    requests: int = 0
    differing: int = 0
    found: int = 0
    unexplained: int = 0


class Auditor:
    """One network's loop in one process, beside its scanner."""

    def __init__(
        self, terms: Terms, database: Database, nodes: Nodes, scanner: Holder, bell: Bell, pause: Pause
    ) -> None:
        self._terms = terms
        self._database = database
        self._nodes = nodes
        self._scanner = scanner
        self._bell = bell
        self._pause = pause
        self._log = structlog.get_logger().bind(network=terms.network.name)
        self._failures = 0
        self._is_away = False
        self._has_told = False

    @property
    def network(self) -> Network:
        """The network it audits."""
        return self._terms.network

    async def run(self) -> None:
        """Audit until the drain begins."""
        while not self._pause.is_stopping:
            pulse.alive()
            seconds = await self.turn()
            if self._is_away:
                await self._pause.for_database(self._database)
            else:
                await (self._pause.whole(seconds) if self._failures else self._pause.for_seconds(seconds))

    async def turn(self) -> float:
        """A step, and what can go wrong in it; how many seconds to wait before the next one."""
        self._is_away = False
        try:
            await self.step()
        except StoreUnavailable:
            self._is_away = True  # the reconciler tells of it; it is no failure of an audit
            return RETRY_SECONDS_MIN
        except (ChainUnavailable, ChainInconsistent, StoreRejected) as error:
            metrics.AUDIT_FAILURES.inc(1, self._terms.network.name)
            return self._failed(error)
        if self._failures >= FAILURES_TOLD:
            self._log.info("balance_audit_back", failures=self._failures)
        self._failures = 0
        return self._terms.poll_interval_seconds

    async def step(self) -> None:
        """Compare all requests if it is time for it, then those that are to expire."""
        cursor = self._scanner.held
        if cursor is None:
            return
        terms = self._terms
        now = await audit.standing(self._database, terms.network, expiry_confirmations=terms.expiry_confirmations)
        if now is None or self._is_behind(now):
            return
        if now.swept_height is None or now.height - now.swept_height >= terms.audit_blocks:
            await self._sweep(cursor, now)
        if now.expiry_time is not None:
            await self._before_expiry(cursor, now.expiry_time)

    def _is_behind(self, now: Standing) -> bool:
        """Far below the head a full node keeps no states: the scan catches up first."""
        return now.head_height is not None and now.head_height - now.height > self._terms.audit_blocks

    async def _sweep(self, cursor: Cursor, now: Standing) -> None:
        """Compare all open native requests, and note up to where."""
        await self._through(cursor, "sweep", audit.read_page, self._compare)
        if await audit.note_sweep(self._database, cursor, now.height, now.block_hash):
            metrics.AUDITS.inc(1, self._terms.network.name)

    async def _before_expiry(self, cursor: Cursor, expiry_time: datetime) -> None:
        """Compare those that wait for it to expire, also how much they have sent, and mark those that are explained."""
        grace = self._terms.expiry_grace_seconds
        read = partial(audit.read_page, limit=DUE_ACCOUNTS, ends_before=expiry_time, grace_seconds=grace)
        await self._through(cursor, "expiry", read, self._compare_and_mark)

    async def _through(
        self,
        cursor: Cursor,
        what: str,
        read: Callable[[Database, Network, tuple[str, str] | None], Awaitable[Page | None]],
        work: Callable[[Cursor, Page, _Tally], Awaitable[None]],
    ) -> None:
        """Work through all pages, in the order of the requests' ends, and tell of it."""
        started, tally = time.monotonic(), _Tally()
        page = await read(self._database, self._terms.network, None)
        while page is not None and not self._pause.is_stopping:
            pulse.alive()
            if page.accounts:
                tally.requests += len(page.accounts)
                await work(cursor, page, tally)
            if page.last is None:
                break
            page = await read(self._database, self._terms.network, page.last)
        if tally.requests:
            self._log.info(
                "balance_audit",
                because=what,
                requests=tally.requests,
                differing=tally.differing,
                found=tally.found,
                unexplained=tally.unexplained,
                latency_ms=round((time.monotonic() - started) * 1000, 1),
            )

    async def _compare(self, cursor: Cursor, page: Page, tally: _Tally) -> None:
        await self._explain(cursor, page, await self._differing(page), tally)

    async def _compare_and_mark(self, cursor: Cursor, page: Page, tally: _Tally) -> None:
        """What lets them expire is vouched for. They may have got money and sent it on, so nonces count as well."""
        states, is_sure = await self._nodes.ask(lambda chain: surety.at_end(self._nodes, chain, page))
        self._tell_surety(is_sure, len(page.accounts))
        explained = [
            each
            for each, state in zip(page.accounts, states, strict=True)
            if state == State(each.expected_minor, each.nonce)
        ]
        await self._explain(cursor, page, [each for each in page.accounts if each not in explained], tally)
        if explained and await audit.mark(self._database, cursor, page, explained):
            self._bell.ring()

    async def _differing(self, page: Page) -> list[Account]:
        """Those that do not hold what they should."""
        addresses = sorted({each.address for each in page.accounts})
        held = await self._nodes.ask(lambda chain: balances.nonzero(chain, addresses, page.block_hash))
        return [each for each in page.accounts if held.get(each.address, 0) != each.expected_minor]

    async def _explain(self, cursor: Cursor, page: Page, accounts: Sequence[Account], tally: _Tally) -> None:
        """Explain them one by one: one that cannot be written must not hold back the others."""
        tally.differing += len(accounts)
        for account in accounts:
            if self._pause.is_stopping:
                return
            pulse.alive()
            try:
                await self._explain_one(cursor, page, account, tally)
            except StoreRejected as error:
                self._log.error(
                    "row_refused",
                    request_id=account.id,
                    error=str(error),
                    todo="PostgreSQL refuses what the balance audit found for this row: put it right",
                )

    async def _explain_one(self, cursor: Cursor, page: Page, account: Account, tally: _Tally) -> None:
        case = await findings.open_case(self._database, cursor, account.id)
        if case is None or case.blocks.get(page.height) != page.block_hash:
            return
        finding, is_sure = await self._nodes.ask(lambda chain: surety.find(self._nodes, chain, case, page.height))
        settled = await findings.record(self._database, cursor, case, finding)
        if settled is None:
            return
        self._bell.ring()
        tally.found += len(settled)
        for each in finding.found:
            how = "delta" if each.evidence_ref.endswith(":delta") else "trace"
            metrics.AUDIT_SETTLEMENTS.inc(1, self._terms.network.name, how)
            self._log.info(
                "money_without_a_log",
                request_id=account.id,
                evidence_ref=each.evidence_ref,
                amount_minor=str(each.amount_minor),
                height=each.height,
                proven=is_sure,
            )
        if finding.unexplained_minor:
            tally.unexplained += 1
            self._tell_unexplained(account, finding)

    def _tell_surety(self, is_sure: bool, balances: int) -> None:
        """Tell once that requests expire by one node's word. (Some prove their latest block only: now and then.)"""
        if not is_sure:
            metrics.BALANCES_UNPROVEN.inc(balances, self._terms.network.name)
        if not is_sure and not self._has_told:
            self._has_told = True
            self._log.warning(
                "balances_unproven",
                todo="requests of this network expire by what one endpoint tells of their balances: give the network "
                "one with eth_getProof, or a second one",
            )

    def _tell_unexplained(self, account: Account, finding: Finding) -> None:
        if finding.unexplained_minor != account.unexplained_minor:
            self._log.error(
                "unexplained_balance",
                request_id=account.id,
                address=account.address,
                unexplained_minor=str(finding.unexplained_minor),
                height=finding.height,
                todo="this address holds more (or less) than was seen to arrive, and the node keeps no state so old, "
                "or only one node says what it spent in the same block: look it up in a block explorer. The request "
                "does not expire by itself",
            )

    def _failed(self, error: Exception) -> float:
        """Tell once that requests wait for their audit; wait ever longer."""
        self._failures += 1
        if self._failures == FAILURES_TOLD:
            self._log.error(
                "balance_audit_failed",
                error=str(error),
                kind=type(error).__name__,
                todo="until it succeeds no native request of this network expires. If its endpoints cannot tell "
                'balances at all, switch it off: RECONSUP_BALANCE_AUDIT_JSON={"NETWORK": false}',
            )
        seconds: float = min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2 ** min(self._failures - 1, 10))
        pause = error.retry_after_seconds if isinstance(error, ChainUnavailable) else None
        return max(seconds, pause or 0.0)
