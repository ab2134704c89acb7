"""The request's road: claim → (admit) → view → decide → persist, again and again.

Deciding is pure and lives in payments; what may be written is fenced in store. This loop carries values between
them, keeps the trust in its leases, and tells metrics, log and scoreboard what happened. It never calls a chain: what
it needs was scanned before.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from reconsup import pulse
from reconsup.fleet.posix import Cell
from reconsup.monitor import metrics
from reconsup.payments.decision import Decision, Policy, decide
from reconsup.payments.request import Network, RowError, Status
from reconsup.store import admission, leases, persist, refusals, view
from reconsup.store.database import Database
from reconsup.store.errors import SchemaBehind, StoreRefused, StoreRejected, StoreUnavailable
from reconsup.store.leases import Batch, Claim
from reconsup.store.persist import Persisted
from reconsup.worker import journal
from reconsup.worker.journal import Outcomes
from reconsup.worker.pause import Pause
from reconsup.worker.troubles import Refused

SUSPECTS_EVERY_CYCLES = 10  # while there are others to be looked at
SUSPECTS_IN_A_ROW = 10  # while there are none


@dataclass(frozen=True, slots=True)
class Duty:
    """What a reconciler is there for: the operator's figures, and who it is."""

    worker_id: str
    owner: str
    batch_size: int
    lease_seconds: float
    poll_interval_seconds: float
    policies: dict[Network, Policy]


@dataclass(frozen=True, slots=True)
class _Cycle:
    """What came of a cycle. `has_more`: there is likely more to do at once; `is_lost`: some lease may have been."""

    has_more: bool = False
    is_lost: bool = False

    def and_then(self, other: "_Cycle") -> "_Cycle":
        return _Cycle(self.has_more or other.has_more, self.is_lost or other.is_lost)


class Reconciler:
    """One worker's loop over the requests of its networks. `is_served` may take a network out while it runs.

    `databases`: a connection for each batch that may be in hand at the same time.
    """

    def __init__(
        self,
        duty: Duty,
        databases: Sequence[Database],
        cell: Cell,
        pause: Pause,
        *,
        is_served: Callable[[Network], bool],
    ) -> None:
        self._duty = duty
        self._databases = tuple(databases)
        self._cell = cell
        self._pause = pause
        self._is_served = is_served
        self._log = structlog.get_logger()
        self._refused = Refused()
        self._leases_held = 0
        self._may_hold_leases = False
        self._cycles = 0

    async def run(self) -> None:
        """Work until the drain begins. A batch in hand is finished; the process gives the rest back."""
        is_away = False
        while not self._pause.is_stopping:
            pulse.alive()
            try:
                has_more = await self.look_around()
            except (StoreUnavailable, StoreRejected) as error:
                if not is_away and not isinstance(error, SchemaBehind):  # of which the whole process tells
                    is_there = isinstance(error, StoreRejected | StoreRefused)
                    self._log.error("database_refuses" if is_there else "database_away", error=str(error))
                is_away = True
                await self._pause.for_database(self._databases[0])
                continue
            if is_away:
                self._log.info("database_back")
                is_away = False
            if not has_more:
                await self._pause.for_seconds(self._duty.poll_interval_seconds)

    async def look_around(self) -> bool:
        """One cycle over every network; whether there is likely more to do at once.

        Raises StoreRejected when all of them had their turn and the rows of one cannot be written.
        """
        await self._give_back()
        self._may_hold_leases = True  # until all is written: an answer may be lost on the way
        self._cycles += 1
        found = _Cycle()
        rejected: StoreRejected | None = None
        for network in self._in_turn():
            if self._is_served(network) and not self._pause.is_stopping:
                try:
                    found = found.and_then(await self._look_at(network))
                except StoreRejected as error:
                    rejected = error
        if rejected is not None:
            raise rejected
        self._may_hold_leases = found.is_lost  # what was too slow may still be ours
        await self._give_back()
        return found.has_more

    def _in_turn(self) -> list[Network]:
        """The networks, another one first in each cycle: what ends a cycle early must not always be before the rest."""
        networks = list(self._duty.policies)
        first = self._cycles % max(1, len(networks))
        return networks[first:] + networks[:first]

    async def _give_back(self) -> None:
        """Give back what may be leased without being known. Only between cycles: it takes all that this owner has."""
        if self._may_hold_leases:
            try:
                await leases.release_requests(self._databases[0], self._duty.owner)
            except (
                StoreRejected
            ) as error:  # a row that may not be written any more: it must not keep us from the others
                self._log.warning("leases_left", error=str(error), todo="nothing: the leases' end frees them")
            self._may_hold_leases = False
        self._leases_held = 0
        self._cell.set_leases(0)

    async def _look_at(self, network: Network) -> _Cycle:
        cycle = await self._cycle(self._databases, network, limit=self._duty.batch_size, suspects=False)
        if cycle.has_more and self._cycles % SUSPECTS_EVERY_CYCLES:
            return cycle
        for _ in range(1 if cycle.has_more else SUSPECTS_IN_A_ROW):
            alone = await self._cycle(self._databases[:1], network, limit=1, suspects=True)
            cycle = cycle.and_then(alone)
            if not alone.has_more or self._pause.is_stopping:
                break
        return cycle

    async def _cycle(self, databases: Sequence[Database], network: Network, *, limit: int, suspects: bool) -> _Cycle:
        """Claim and process one batch; where it came full, claim the next one meanwhile over the next connection.

        So PostgreSQL works on one batch while decisions are made on another. Both are ended when this returns.
        """
        database, *others = databases
        started = time.monotonic()
        batch = await self._claim(database, network, limit=limit, suspects=suspects)
        if batch is None:
            return _Cycle(has_more=True)  # without those that were in the way
        if not batch.claims:
            return _Cycle()
        self._hold(len(batch.claims))
        metrics.CLAIMED.inc(len(batch.claims))
        is_full = len(batch.claims) == limit
        if not (is_full and others):
            return (await self._finish(database, batch, started)).and_then(_Cycle(has_more=is_full))
        both = await asyncio.gather(
            self._finish(database, batch, started),
            self._cycle(others, network, limit=limit, suspects=suspects),
            return_exceptions=True,
        )
        done = [each for each in both if isinstance(each, _Cycle)]
        if len(done) < len(both):
            raise next(each for each in both if isinstance(each, BaseException))
        return done[0].and_then(done[1])

    async def _finish(self, database: Database, batch: Batch, started: float) -> _Cycle:
        """Process a batch that was claimed, and tell of it."""
        outcomes, persisted = await self._process(database, batch)
        self._hold(-len(batch.claims))
        journal.tell(batch, outcomes, persisted, time.monotonic() - started)
        self._cell.set_last_cycle(time.time())
        return _Cycle(
            has_more=persisted.is_due_again or persisted.refused.total() > 0,
            is_lost=persisted.refused["lease_lost"] > 0,
        )

    async def _claim(self, database: Database, network: Network, *, limit: int, suspects: bool) -> Batch | None:
        """The next batch; None when rows were in its way that PostgreSQL refuses to write: they are left out now."""
        figures: leases.Figures = {
            "owner": self._duty.owner,
            "lease_seconds": self._duty.lease_seconds,
            "limit": limit,
            "suspects": suspects,
            "without": self._refused.left_out(time.monotonic()),
        }
        try:
            return await leases.claim(database, network, **figures)
        except StoreRejected:
            refused = await refusals.find(database, network, **figures)
            if not refused:
                raise
        await self._leave_out(database, refused)
        return None

    async def _leave_out(self, database: Database, refused: Mapping[str, str]) -> None:
        """Claim these rows no more for a while, and say what PostgreSQL says of them: id → its words."""
        self._refused.note(refused, time.monotonic())
        journal.tell_refused(refused, "PostgreSQL refuses to write this row: put it right")
        await refusals.tell(database, refused, worker_id=self._duty.worker_id, owner=self._duty.owner)

    def _hold(self, change: int) -> None:
        self._leases_held += change
        self._cell.set_leases(self._leases_held)

    async def _process(self, database: Database, batch: Batch) -> tuple[Outcomes, Persisted]:
        """Decide and write a batch; where PostgreSQL rejects a value in it, row by row, so that only that row fails."""
        try:
            return await self._attempt(database, batch)
        except StoreRejected as error:
            if len(batch.claims) == 1:
                return await self._write_failure(database, batch, error)
        outcomes: Outcomes = {}
        persisted = Persisted(frozenset(), Counter())
        for claim in batch.claims:
            of_one, done = await self._process(database, replace(batch, claims=(claim,)))
            outcomes |= of_one
            persisted = _together(persisted, done)
        return outcomes, persisted

    async def _attempt(self, database: Database, batch: Batch) -> tuple[Outcomes, Persisted]:
        """Admit, view, decide and write, as long as the leases can be trusted."""
        policy = self._duty.policies[batch.network]
        against: persist.Against = "scanned" if isinstance(policy.confirmations, int) else policy.confirmations
        if time.monotonic() > batch.trusted_until:  # the grant itself was long on its way
            return {}, _nothing_written(len(batch.claims))
        batch = await self._admit(database, batch)
        seen = await self._view(database, batch, policy)
        outcomes = {} if seen is None else self._decide(batch, seen, policy)
        if seen is not None:
            journal.tell_too_old(batch, seen.chain.tip_time)
        if any(_expires(claim, outcomes) for claim in batch.claims):
            outcomes = await self._look_before_expiry(database, batch, outcomes, policy)
        held = batch
        if batch.claimed_at + self._duty.lease_seconds / 3 < time.monotonic() < batch.trusted_until:
            held = await leases.renew(database, batch, lease_seconds=self._duty.lease_seconds)
        if time.monotonic() > held.trusted_until:
            return outcomes, _nothing_written(len(batch.claims))
        persisted = await persist.persist(database, held, outcomes, worker_id=self._duty.worker_id, due_against=against)
        return outcomes, _together(persisted, _nothing_written(len(batch.claims) - len(held.claims)))

    async def _look_before_expiry(
        self, database: Database, batch: Batch, outcomes: Outcomes, policy: Policy
    ) -> Outcomes:
        """Expiry is for good, so what the tail holds for these rows is asked once more, and all decided again.

        One whose end was reached only meanwhile was not asked about: it is left undecided, to be handed back due.
        """
        expiring = tuple(claim for claim in batch.claims if _expires(claim, outcomes))
        await admission.look_again(database, replace(batch, claims=expiring))
        seen = await self._view(database, batch, policy)
        decided = {} if seen is None else self._decide(batch, seen, policy)
        asked = {claim.request.id for claim in expiring}
        for claim in batch.claims:
            if _expires(claim, decided) and claim.request.id not in asked:
                del decided[claim.request.id]
        return decided

    async def _write_failure(
        self, database: Database, batch: Batch, error: StoreRejected
    ) -> tuple[Outcomes, Persisted]:
        """Note on the only row of a batch that PostgreSQL takes nothing of what we have to say of it.

        Not even that, where it may not be written any more since it was claimed: then its lease's end frees it.
        """
        ids = [claim.request.id for claim in batch.claims]
        self._log.error("row_rejected", request_id=ids[0], error=str(error))
        outcomes: Outcomes = dict.fromkeys(ids, persist.Failure(f"failed: {error}"[:500]))
        try:
            return outcomes, await persist.persist(database, batch, outcomes, worker_id=self._duty.worker_id)
        except StoreRejected as refusal:
            await self._leave_out(database, {ids[0]: str(refusal)})
            return outcomes, Persisted(frozenset(), Counter())

    async def _admit(self, database: Database, batch: Batch) -> Batch:
        """Look up the past of requests that the scan has not met; the batch as it is after it."""
        if all(claim.request.admitted for claim in batch.claims):
            return batch
        admitted = await admission.admit(database, batch)
        return replace(
            batch,
            claims=tuple(
                replace(claim, request=replace(claim.request, admitted=True)) if claim.request.id in admitted else claim
                for claim in batch.claims
            ),
        )

    async def _view(self, database: Database, batch: Batch, policy: Policy) -> view.View | None:
        """What the decisions look at, after what another program disowned without a proof was repaired."""
        ids = [claim.request.id for claim in batch.claims]
        seen = await view.read(database, batch.network, ids, expiry_confirmations=policy.expiry_confirmations)
        if seen is None or not seen.disowned:
            return seen
        repaired = await admission.repair(database, batch, seen.disowned)
        metrics.SETTLEMENTS_REPAIRED.inc(repaired)
        self._log.warning("settlements_repaired", requests=len(seen.disowned), settlements=repaired)
        return await view.read(database, batch.network, ids, expiry_confirmations=policy.expiry_confirmations)

    def _decide(self, batch: Batch, seen: view.View, policy: Policy) -> Outcomes:
        outcomes: Outcomes = {}
        for claim in batch.claims:
            id_ = claim.request.id
            if id_ in seen.unreadable:
                self._log.error("row_unreadable", request_id=id_, error=seen.unreadable[id_])
                outcomes[id_] = persist.Failure(f"failed: {seen.unreadable[id_]}"[:500])
                continue
            if id_ not in seen.facts:  # deleted since the claim
                continue
            self._cell.set_row(id_)
            if id_ in seen.disowned:
                outcomes[id_] = persist.Failure("settlement_disowned")
                continue
            outcomes[id_] = self._decide_one(claim, seen, policy)
        self._cell.set_row(None)
        return outcomes

    def _decide_one(self, claim: Claim, seen: view.View, policy: Policy) -> Decision | persist.Failure:
        try:
            decision = decide(claim.request, seen.facts[claim.request.id], seen.chain, policy)
        except MemoryError:  # the process's trouble, not the row's
            raise
        except Exception as error:  # noqa: BLE001 - a row that nobody can decide must not hold back the others
            self._log.error("row_failed", request_id=claim.request.id, exc_info=True)
            return persist.Failure(f"failed: {type(error).__name__}: {error}"[:500])
        if isinstance(decision, RowError):
            self._log.warning(
                "row_error", request_id=claim.request.id, error=str(decision), failures=claim.failures + 1
            )
            return persist.Failure(str(decision))
        return decision


def _nothing_written(count: int) -> Persisted:
    """What became of claims that were let go because their leases could not be trusted any more."""
    refused: Counter[persist.Refusal] = Counter()
    refused["lease_lost"] = count
    return Persisted(frozenset(), refused)


def _together(one: Persisted, other: Persisted) -> Persisted:
    return Persisted(
        one.written | other.written,
        one.refused + other.refused,
        {**one.history, **other.history},
        is_due_again=one.is_due_again or other.is_due_again,
        at=other.at or one.at,
    )


def _expires(claim: Claim, outcomes: Outcomes) -> bool:
    outcome = outcomes.get(claim.request.id)
    return isinstance(outcome, Decision) and outcome.status is Status.EXPIRED is not claim.request.status
