"""What a worker's log says of a batch: the words that other people's searches and dashboards rely on."""

from collections import Counter
from typing import Any

import pytest

from reconsup.payments.request import ETHEREUM, Network, Reason, Status
from reconsup.store.leases import Batch, Claim
from reconsup.store.persist import Failure, Persisted
from reconsup.worker import journal
from tests.payments.make import DEADLINE, request
from tests.support.ledgers import decided

CYCLE = {
    *("claimed", "scanned", "confirmed", "detected", "reorged", "reconfirmed", "expired", "skipped", "errors"),
    "latency_ms",
}
TRANSITION = {"request_id", "status_from", "status_to", "reason", "confirmations"}


class Heard:
    """A log that remembers its lines."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def bind(self) -> "Heard":
        return self

    def info(self, event: str, **told: Any) -> None:
        self.lines.append({"event": event, **told})


def test_a_cycle_and_its_transitions_are_told_in_the_words_of_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requirement FR-006. Seen to fail with a field taken out of each line, and with `skipped` not counted."""
    ids = ("pr_1", "pr_2", "pr_3", "pr_4", "pr_5")
    claims = tuple(Claim(request(id=id_), epoch=1, due_at=DEADLINE, failures=0) for id_ in ids)
    batch = Batch(Network(ETHEREUM, "local"), "host-0#ab", claims, claimed_at=0.0, trusted_until=9.0)
    outcomes = {
        "pr_1": decided(Status.CONFIRMED, Reason.CONFIRMED, confirmations=12, amount_minor=100),
        "pr_2": decided(Status.PENDING),
        "pr_3": Failure("amount_negative"),
        "pr_4": decided(Status.EXPIRED, Reason.EXPIRED),
        "pr_5": decided(Status.CONFIRMED, Reason.CONFIRMED),
    }
    history: dict[str, Any] = dict.fromkeys(ids[:4], ())
    history |= {"pr_1": ((Reason.CONFIRMED, None),), "pr_4": ((Reason.EXPIRED, None),)}
    persisted = Persisted(frozenset(ids[:4]), Counter({"lease_lost": 1}), history)

    heard = Heard()
    monkeypatch.setattr(journal, "log", heard)
    journal.tell(batch, dict(outcomes), persisted, seconds=0.0125)

    *transitions, cycle = heard.lines
    assert [each["event"] for each in transitions] == ["transition", "transition"]
    assert all(each.keys() >= TRANSITION for each in transitions)
    shown = ("request_id", "status_from", "status_to", "reason", "confirmations")
    assert [transitions[0][name] for name in shown] == ["pr_1", "pending", "confirmed", "payment_confirmed", 12]
    assert cycle.keys() >= CYCLE
    counted = {name: cycle[name] for name in CYCLE if cycle[name]}
    wanted = {"claimed": 5, "scanned": 5, "confirmed": 1, "expired": 1, "skipped": 1, "errors": 1, "latency_ms": 12.5}
    assert (cycle["event"], counted) == ("cycle", wanted)
