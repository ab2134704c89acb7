"""The request's road: claim → (admit) → view → decide → persist, again and again.

Deciding is pure and lives in payments; what may be written is fenced in store. This loop carries values between
them, keeps the trust in its leases, and tells metrics, log and scoreboard what happened. It never calls a chain: what
it needs was scanned before.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from reconsup.fleet.posix import Cell
from reconsup.monitor import metrics
from reconsup.payments.decision import Decision, Policy, decide
from reconsup.payments.request import Network, Reason, RowError, Status
from reconsup.store import admission, leases, persist, view
from reconsup.store.database import Database
from reconsup.store.errors import StoreRejected, StoreUnavailable
from reconsup.store.leases import Batch, Claim
from reconsup.store.persist import Persisted
from reconsup.worker.pause import Pause

Outcomes = dict[str, Decision | persist.Failure]

PROBE_SECONDS = 1.0
ALARMS = (Reason.LATE, Reason.REORGED_AFTER_FINALITY)
SUSPECTS_EVERY_CYCLES = 10


@dataclass(frozen=True, slots=True)
class Duty:
    """What a reconciler is there for: the operator's figures, and who it is."""

    worker_id: str
    owner: str
    batch_size: int
    lease_seconds: float
    poll_interval_seconds: float
    policies: dict[Network, Policy]


class Reconciler:
    """One worker's loop over the requests of its networks. `is_served` may take a network out while it runs."""

    def __init__(
        self,
        duty: Duty,
        database: Database,
        cell: Cell,
        pause: Pause,
        *,
        is_served: Callable[[Network], bool],
    ) -> None:
        self._duty = duty
        self._database = database
        self._cell = cell
        self._pause = pause
        self._is_served = is_served
        self._log = structlog.get_logger()
        self._may_hold_leases = False
        self._cycles = 0

    async def run(self) -> None:
        """Work until the drain begins. A batch in hand is finished; the process gives the rest back."""
        is_away = False
        while not self._pause.is_stopping:
            self._cell.beat(time.monotonic())
            try:
                has_more = await self.look_around()
            except (StoreUnavailable, StoreRejected) as error:
                if not is_away:
                    self._log.error(
                        "database_refuses" if isinstance(error, StoreRejected) else "database_away", error=str(error)
                    )
                is_away = self._may_hold_leases = True
                await self._pause.for_seconds(PROBE_SECONDS)
                continue
            if is_away:
                self._log.info("database_back")
                is_away = False
            if not has_more:
                await self._pause.for_seconds(self._duty.poll_interval_seconds)

    async def look_around(self) -> bool:
        """One cycle over every network; whether there is likely more to do at once."""
        if self._may_hold_leases:
            await leases.release_requests(self._database, self._duty.owner)
            self._hold(0)
        self._cycles += 1
        has_more = False
        for network in self._duty.policies:
            if self._is_served(network) and not self._pause.is_stopping:
                has_more |= await self._look_at(network)
        return has_more

    async def _look_at(self, network: Network) -> bool:
        has_more = await self._cycle(network, limit=self._duty.batch_size, suspects=False)
        if has_more and self._cycles % SUSPECTS_EVERY_CYCLES:
            return True
        return await self._cycle(network, limit=1, suspects=True) or has_more

    async def _cycle(self, network: Network, *, limit: int, suspects: bool) -> bool:
        """Claim and process one batch; whether it was a full one, or rows of it are due again."""
        started = time.monotonic()
        self._may_hold_leases = True  # until the batch is written: an answer may be lost on the way
        batch = await leases.claim(
            self._database,
            network,
            owner=self._duty.owner,
            lease_seconds=self._duty.lease_seconds,
            limit=limit,
            suspects=suspects,
        )
        if not batch.claims:
            self._hold(0)
            return False
        self._hold(len(batch.claims))
        metrics.CLAIMED.inc(len(batch.claims))
        outcomes, persisted = await self._process(batch)
        if persisted.refused["lease_lost"]:  # what was too slow may still be ours
            await leases.release_requests(self._database, self._duty.owner)
        self._hold(0)
        self._tell(batch, outcomes, persisted, time.monotonic() - started)
        return len(batch.claims) == limit or persisted.is_due_again or persisted.refused.total() > 0

    def _hold(self, leases_held: int) -> None:
        self._cell.set_leases(leases_held)
        self._may_hold_leases = leases_held > 0

    async def _process(self, batch: Batch) -> tuple[Outcomes, Persisted]:
        """Decide and write a batch; where PostgreSQL rejects a value in it, row by row, so that only that row fails."""
        try:
            return await self._attempt(batch)
        except StoreRejected as error:
            if len(batch.claims) == 1:
                return await self._write_failure(batch, error)
        outcomes: Outcomes = {}
        persisted = Persisted(frozenset(), Counter())
        for claim in batch.claims:
            of_one, done = await self._process(replace(batch, claims=(claim,)))
            outcomes |= of_one
            persisted = _together(persisted, done)
        return outcomes, persisted

    async def _attempt(self, batch: Batch) -> tuple[Outcomes, Persisted]:
        """Admit, view, decide and write, as long as the leases can be trusted."""
        policy = self._duty.policies[batch.network]
        against: persist.Against = "scanned" if isinstance(policy.confirmations, int) else policy.confirmations
        batch = await self._admit(batch)
        seen = await self._view(batch, policy)
        outcomes = {} if seen is None else self._decide(batch, seen, policy)
        if any(_expires(claim, outcomes) for claim in batch.claims):
            outcomes = await self._look_before_expiry(batch, outcomes, policy)
        held = batch
        if batch.claimed_at + self._duty.lease_seconds / 3 < time.monotonic() < batch.trusted_until:
            held = await leases.renew(self._database, batch, lease_seconds=self._duty.lease_seconds)
        if time.monotonic() > held.trusted_until:
            return outcomes, _nothing_written(len(batch.claims))
        persisted = await persist.persist(
            self._database, held, outcomes, worker_id=self._duty.worker_id, due_against=against
        )
        return outcomes, _together(persisted, _nothing_written(len(batch.claims) - len(held.claims)))

    async def _look_before_expiry(self, batch: Batch, outcomes: Outcomes, policy: Policy) -> Outcomes:
        """Expiry is for good, so what the tail holds for these rows is asked once more, and all decided again."""
        expiring = tuple(claim for claim in batch.claims if _expires(claim, outcomes))
        await admission.look_again(self._database, replace(batch, claims=expiring))
        seen = await self._view(batch, policy)
        return {} if seen is None else self._decide(batch, seen, policy)

    async def _write_failure(self, batch: Batch, error: StoreRejected) -> tuple[Outcomes, Persisted]:
        """Note on the only row of a batch that PostgreSQL takes nothing of what we have to say of it."""
        ids = [claim.request.id for claim in batch.claims]
        self._log.error("row_rejected", request_id=ids[0], error=str(error))
        outcomes: Outcomes = dict.fromkeys(ids, persist.Failure(f"failed: {error}"[:500]))
        return outcomes, await persist.persist(self._database, batch, outcomes, worker_id=self._duty.worker_id)

    async def _admit(self, batch: Batch) -> Batch:
        """Look up the past of requests that the scan has not met; the batch as it is after it."""
        if all(claim.request.admitted for claim in batch.claims):
            return batch
        admitted = await admission.admit(self._database, batch)
        return replace(
            batch,
            claims=tuple(
                replace(claim, request=replace(claim.request, admitted=True)) if claim.request.id in admitted else claim
                for claim in batch.claims
            ),
        )

    async def _view(self, batch: Batch, policy: Policy) -> view.View | None:
        """What the decisions look at, after what another program disowned without a proof was repaired."""
        ids = [claim.request.id for claim in batch.claims]
        seen = await view.read(self._database, batch.network, ids, expiry_confirmations=policy.expiry_confirmations)
        if seen is None or not seen.disowned:
            return seen
        repaired = await admission.repair(self._database, batch, seen.disowned)
        metrics.SETTLEMENTS_REPAIRED.inc(repaired)
        self._log.warning("settlements_repaired", requests=len(seen.disowned), settlements=repaired)
        return await view.read(self._database, batch.network, ids, expiry_confirmations=policy.expiry_confirmations)

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
        except Exception as error:  # noqa: BLE001 - a row that nobody can decide must not hold back the others
            self._log.error("row_failed", request_id=claim.request.id, exc_info=True)
            return persist.Failure(f"failed: {type(error).__name__}: {error}"[:500])
        if isinstance(decision, RowError):
            self._log.warning(
                "row_error", request_id=claim.request.id, error=str(decision), failures=claim.failures + 1
            )
            return persist.Failure(str(decision))
        return decision

    def _tell(self, batch: Batch, outcomes: Outcomes, persisted: Persisted, seconds: float) -> None:
        """Metrics, a line for each transition, a line for the cycle."""
        moved: Counter[Status | str] = Counter()
        errors = 0
        for claim in batch.claims:
            outcome = outcomes.get(claim.request.id)
            if claim.request.id not in persisted.written or outcome is None:
                continue
            if isinstance(outcome, Decision):
                moved["reconfirmed" if outcome.reason == Reason.RECONFIRMED else outcome.status] += (
                    outcome.status != claim.request.status
                )
                self._tell_transition(claim, outcome, persisted.history[claim.request.id])
            else:
                errors += 1
        for reason, count in persisted.refused.items():
            metrics.WRITES_REFUSED.inc(count, reason)
        metrics.CYCLE_SECONDS.observe(seconds)
        self._cell.set_last_cycle(time.time())
        self._log.info(
            "cycle",
            network=batch.network.name,
            claimed=len(batch.claims),
            scanned=len(outcomes),
            confirmed=moved[Status.CONFIRMED],
            detected=moved[Status.DETECTED],
            reorged=moved[Status.REORGED],
            reconfirmed=moved["reconfirmed"],
            expired=moved[Status.EXPIRED],
            skipped=sum(persisted.refused.values()),
            errors=errors,
            latency_ms=round(seconds * 1000, 1),
        )

    def _tell_transition(
        self, claim: Claim, decision: Decision, entries: tuple[tuple[Reason, str | None], ...]
    ) -> None:
        late_minor = {late.evidence_ref: late.amount_minor for late in decision.late}
        for reason, evidence_ref in entries:
            metrics.TRANSITIONS.inc(1, claim.request.status, decision.status, reason)
            say = self._log.warning if reason in ALARMS else self._log.info
            say(
                "transition",
                request_id=claim.request.id,
                status_from=claim.request.status,
                status_to=decision.status,
                reason=reason,
                confirmations=decision.confirmations,
                amount_minor=str(late_minor[evidence_ref] if evidence_ref else decision.amount_minor),
                **({"evidence_ref": evidence_ref} if evidence_ref else {}),
            )


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
    )


def _expires(claim: Claim, outcomes: Outcomes) -> bool:
    outcome = outcomes.get(claim.request.id)
    return isinstance(outcome, Decision) and outcome.status is Status.EXPIRED is not claim.request.status
