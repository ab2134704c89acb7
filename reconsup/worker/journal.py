"""What a worker says of a batch: metrics, a line for each transition, a line for the cycle."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from reconsup import logs
from reconsup.monitor import metrics
from reconsup.payments.decision import Decision
from reconsup.payments.request import Reason, Status
from reconsup.store.joining import is_too_old
from reconsup.store.leases import Batch, Claim
from reconsup.store.persist import Failure, Persisted

Outcomes = dict[str, Decision | Failure]

ALARMS = {
    Reason.LATE: "it came after the request had expired: give it back, or serve the customer all the same",
    Reason.AGAIN: "the request was confirmed without it: give it back, or credit it",
    Reason.REORGED_AFTER_FINALITY: "the chain took back money that had long been counted on: the request stays "
    "confirmed, decide yourself",
}

log = logs.get_logger()


def tell(batch: Batch, outcomes: Outcomes, persisted: Persisted, seconds: float) -> None:
    """Metrics, a line for each transition, a line for the cycle."""
    moved: Counter[Status | str] = Counter()
    told: Counter[tuple[Status, Status, Reason]] = Counter()
    errors = 0
    bound = log.bind()  # once, not for each line
    for claim in batch.claims:
        outcome = outcomes.get(claim.request.id)
        if claim.request.id not in persisted.written or outcome is None:
            continue
        if isinstance(outcome, Decision):
            moved["reconfirmed" if outcome.reason == Reason.RECONFIRMED else outcome.status] += (
                outcome.status != claim.request.status
            )
            entries = persisted.history[claim.request.id]
            if outcome.paid_at is not None and persisted.at is not None:
                since = max(outcome.paid_at, claim.request.created_at)
                metrics.NOTICE_SECONDS.observe((persisted.at - since).total_seconds(), batch.network.name)
            if entries:
                told.update((claim.request.status, outcome.status, reason) for reason, _ in entries)
                _tell_transition(bound, claim, outcome, entries)
        else:
            errors += 1
            metrics.ROW_FAILURES.inc(1, outcome.error.partition(":")[0])
    for labels, count in told.items():
        metrics.TRANSITIONS.inc(count, *labels)
    for refusal, count in persisted.refused.items():
        metrics.WRITES_REFUSED.inc(count, refusal)
    metrics.CYCLE_SECONDS.observe(seconds)
    bound.info(
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


def tell_refused(refused: Mapping[str, str], todo: str) -> None:
    """An alarm for each row that PostgreSQL refuses to write: id → its words."""
    for id_, words in refused.items():
        metrics.ROW_FAILURES.inc(1, "refused")
        log.error("row_refused", request_id=id_, error=words, todo=todo)


def tell_too_old(batch: Batch, tip_time: datetime) -> None:
    """An alarm for each request whose past is not read, because it would be too much."""
    for claim in batch.claims:
        if not claim.request.admitted and is_too_old(claim.request, tip_time):
            log.warning(
                "request_too_old",
                request_id=claim.request.id,
                created_at=claim.request.created_at.isoformat(),
                todo="its past on chain is not read and it never expires: put created_at right, or set its status",
            )


def _tell_transition(
    bound: logs.Logger, claim: Claim, decision: Decision, entries: tuple[tuple[Reason, str | None], ...]
) -> None:
    late_minor = {late.evidence_ref: late.amount_minor for late in decision.late}
    for reason, evidence_ref in entries:
        say = bound.warning if reason in ALARMS else bound.info
        say(
            "transition",
            request_id=claim.request.id,
            status_from=claim.request.status,
            status_to=decision.status,
            reason=reason,
            confirmations=decision.confirmations,
            amount_minor=str(late_minor[evidence_ref] if evidence_ref else decision.amount_minor),
            **({"evidence_ref": evidence_ref} if evidence_ref else {}),
            **({"todo": ALARMS[reason]} if reason in ALARMS else {}),
        )
