"""What must hold after every step of a tale, and at its end, whatever was done: judged by the chronicle."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import psycopg
from psycopg.rows import dict_row

from reconsup.payments.decision import Policy
from reconsup.payments.request import TRANSITIONS, Reason, Status
from reconsup.payments.settlement import is_reached
from tests.support import lease_history
from tests.support.chronicle import Chronicle, Wanted
from tests.support.postgres import Database

KEPT = (Reason.LATE, Reason.AGAIN, Reason.REORGED_AFTER_FINALITY)  # entries that are no step


class BrokenError(AssertionError):
    """A law that does not hold."""


class Laws:
    """Looks at what the database says of requests, settlements and history."""

    def __init__(
        self,
        database: Database,
        outsider: psycopg.Connection[Any],
        chronicle: Chronicle,
        policy: Policy,
        wanted: Sequence[Wanted],
    ) -> None:
        self._database = database
        self._outsider = outsider
        self._chronicle = chronicle
        self._policy = policy
        self._wanted = wanted
        self._last_entry = 0
        self._status: defaultdict[str, str] = defaultdict(lambda: "pending")
        self._reasons: defaultdict[str, list[str]] = defaultdict(list)

    def look(self) -> None:
        """Judge what the history says that it had not said before, and that the rows say the same."""
        by_id = {each.id: each for each in self._wanted}
        query = "SELECT * FROM app.payment_request_transitions WHERE id > %s ORDER BY id"
        for entry in self._all(query, self._last_entry):
            self._last_entry = entry["id"]
            self._judge(by_id[entry["payment_request_id"]], entry)
        for id_, status in self.statuses().items():
            _must(status == self._status[id_], f"{id_} is {status}; by its history {self._status[id_]}")
        if self.tip() == self._chronicle.canonical[-1].hash:
            self._look_at_those_at_rest(by_id)

    def _look_at_those_at_rest(self, by_id: dict[str, Wanted]) -> None:
        """All is read: what nobody has in hand, and nobody is to look at now, must be as the chain is."""
        policy, chain = self._policy, self._chronicle.canonical
        assert isinstance(policy.confirmations, int)
        for row in self._all(_AT_REST):
            wanted, status = by_id[row["id"]], row["status"]
            seen = self._chronicle.sums(wanted, chain, 1)
            deep = self._chronicle.sums(wanted, chain, policy.confirmations)
            what = f"{wanted} rests as {status}; on the chain {seen}, deep enough {deep}"
            if status in (Status.CONFIRMED, Status.DETECTED):
                bps = policy.confirmed_threshold_bps if status == Status.CONFIRMED else policy.detected_threshold_bps
                _must(is_reached(seen.most, wanted.amount, bps), what)
            elif status != Status.EXPIRED and not self._chronicle.has_hidden(wanted):
                _must(not is_reached(deep.sure, wanted.amount, policy.confirmed_threshold_bps), what)

    def statuses(self) -> dict[str, str]:
        """The status of each request."""
        return {row["id"]: row["status"] for row in self._all("SELECT id, status FROM app.payment_requests")}

    def open_spans(self) -> int:
        """How many spans of old blocks are still to be read."""
        return len(self._all("SELECT FROM app.chain_spans"))

    def reasons(self) -> list[str]:
        """The reasons of the whole history, in no order."""
        return [reason for reasons in self._reasons.values() for reason in reasons]

    def tip(self) -> str:
        """The hash of the highest block that was read."""
        rows = self._all("SELECT tip_hash FROM app.chain_cursors")
        return str(rows[0]["tip_hash"]) if rows else ""

    def _judge(self, wanted: Wanted, entry: dict[str, Any]) -> None:
        before, after, reason = entry["from_status"], entry["to_status"], entry["reason"]
        what = f"{wanted.id}: {before} → {after}, {reason}"
        if reason == Reason.ROW_FAILED and self._may_be_unexplained(wanted):
            _must([each["error"] for each in entry["evidence"]] == ["unexplained_balance"], what)
            return
        if reason in KEPT:  # told together with the step that led there, or later
            _must(after == self._status[wanted.id], f"{what}, but it is {self._status[wanted.id]}")
        else:
            _must(before == self._status[wanted.id], f"{what}, but it was {self._status[wanted.id]}")
            _must(reason in TRANSITIONS.get((Status(before), Status(after)), ()), what)
        _must(reason != Reason.CONFIRMED or reason not in self._reasons[wanted.id], f"{what} twice")
        self._status[wanted.id] = after
        self._reasons[wanted.id].append(reason)
        refs = [each["ref"] for each in entry["evidence"] if each["canonical"]]
        _must(len(refs) == len(set(refs)), f"{what}: evidence twice")
        self._judge_by_the_chain(wanted, after, reason, entry, what)

    def _judge_by_the_chain(self, wanted: Wanted, after: str, reason: str, entry: dict[str, Any], what: str) -> None:
        chronicle, policy = self._chronicle, self._policy
        if reason in (Reason.CONFIRMED, Reason.RECONFIRMED):
            depth = policy.confirmations
            assert isinstance(depth, int)
            _must(chronicle.could_ever(wanted, depth, policy.confirmed_threshold_bps), f"{what}: never paid so deep")
        elif reason == Reason.DETECTED:
            _must(chronicle.could_ever(wanted, 1, policy.detected_threshold_bps), f"{what}: never paid so much")
        elif reason == Reason.REORGED:
            proof = entry["proof"]
            _must(chronicle.was_orphaned(proof["height"], proof["block_hash"]), f"{what}: no such reorg: {proof}")
            block = chronicle.blocks[proof["block_hash"]]
            _must(bool(chronicle.credits_of(wanted, [block])), f"{what}: none of its money was in {proof}")
        elif reason in (Reason.LATE, Reason.AGAIN):
            tx = str(entry["evidence_ref"]).partition(":")[0]
            _must(tx in chronicle.times, f"{what}: {tx} never was")
        elif after == Status.EXPIRED:
            _must(chronicle.was_ever_over(wanted, policy.expiry_confirmations), f"{what}: it was not over yet")

    def look_at_the_end(self) -> None:
        """Everything is as the chain is, and nothing is leased or wrong."""
        rows = {row["id"]: row for row in self._all("SELECT * FROM app.payment_requests")}
        for wanted in self._wanted:
            row = rows[wanted.id]
            if row["reconcile_error"] == "unexplained_balance" and self._may_be_unexplained(wanted):
                continue
            may_be = self._chronicle.statuses(wanted, self._policy)
            _must(row["status"] in may_be, f"{wanted} ended as {row['status']}, not as {' or '.join(sorted(may_be))}")
            _must(row["reconcile_error"] is None, f"{wanted.id}: {row['reconcile_error']}")
            _must(row["reconcile_lease_owner"] is None, f"{wanted.id} is leased to {row['reconcile_lease_owner']}")
            self._compare_settlements(wanted, row["status"])
        _must((found := lease_history.complaints(self._database)) == [], f"leases: {found}")

    def _may_be_unexplained(self, wanted: Wanted) -> bool:
        """Then the row waits, with an alarm, for somebody to look: nothing is said of how it ends."""
        return self._chronicle.held_before(wanted) or self._chronicle.is_out_of_reach(wanted)

    def _compare_settlements(self, wanted: Wanted, status: str) -> None:
        query = "SELECT * FROM app.payment_request_settlements WHERE payment_request_id = %s"
        found = {row["evidence_ref"]: row for row in self._all(query, wanted.id)}
        credits_ = self._chronicle.credits_of(wanted)
        real = {_key(paid.ref): (paid.amount, block.height, block.hash) for block, paid in credits_}
        may_miss = {_key(paid.ref) for _, paid in credits_ if paid.is_hidden}  # looked for only while it is open
        settled = {
            _key(ref): (int(row["amount_minor"]), row["block_height"], row["block_hash"])
            for ref, row in found.items()
            if row["is_canonical"]
        }
        expected = {key: what for key, what in real.items() if key in settled or key not in may_miss}
        _must(settled == expected, f"{wanted.id}: settlements {settled}, on the chain {real}")
        for ref, row in found.items():
            proof = row["metadata"].get("reorg")
            _must(row["is_canonical"] == (proof is None), f"{wanted.id}, {ref}: {row['is_canonical']} with {proof}")
            if proof is not None:
                _must(proof["block_hash"] == row["block_hash"], f"{wanted.id}, {ref}: proof of another block")
                _must(self._chronicle.was_orphaned(proof["height"], proof["block_hash"]), f"{ref}: no such {proof}")
        for reason in (Reason.LATE, Reason.AGAIN):
            told = self._told(wanted, reason)
            _must(len(told) == len(set(told)), f"{wanted.id}: {reason} twice: {told}")
        if status == Status.EXPIRED:
            told = self._told(wanted, Reason.LATE)
            late = {key for key in settled if self._chronicle.is_surely_late(wanted, key.partition(":")[0])}
            _must(late <= set(map(_key, told)), f"{wanted.id}: late and not told: {late - set(told)}")

    def _told(self, wanted: Wanted, reason: str) -> list[str]:
        """Of which evidence the history says this, in order."""
        query = "SELECT evidence_ref FROM app.payment_request_transitions\
            WHERE payment_request_id = %s AND reason = %s ORDER BY id"
        return [row["evidence_ref"] for row in self._all(query, wanted.id, reason)]

    def _all(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with self._outsider.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(cast(Any, query), values).fetchall()


_AT_REST = """
SELECT id, status FROM app.payment_requests
WHERE reconcile_lease_owner IS NULL AND (next_reconcile_at IS NULL OR next_reconcile_at > now())
  AND reconcile_admitted_height IS NOT NULL
"""


def _key(ref: str) -> str:
    """An evidence_ref without what only a trace could say."""
    return ref.partition(":trace:")[0] + ":hidden" if ":trace:" in ref else ref


def _must(is_so: bool, what: str) -> None:
    if not is_so:
        raise BrokenError(what)
