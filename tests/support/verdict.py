"""What must be true of every request when the customers of tests.support.trade are through, whatever was done."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from reconsup.payments.request import TRANSITIONS, Reason, Status
from tests.support import lease_history
from tests.support.program import wait_for
from tests.support.trade import PAID, SHORT, Kind, Order, Town, mined

KEPT = (Reason.LATE, Reason.AGAIN)  # entries that are no step: told together with the one that led there, or later
SETTLE_SECONDS = 60.0
LOOK_SECONDS = 0.3
ROWS = {
    "payment_requests": "id",
    "payment_request_settlements": "payment_request_id",
    "payment_request_transitions": "payment_request_id",
}
MONEY = frozenset({Reason.CONFIRMED, Reason.RECONFIRMED})


def judge(town: Town, orders: Sequence[Order]) -> None:
    """Wait until each request is what it must end as, with all that its history and its settlements must say."""
    found: list[str] = []

    def is_right() -> bool:
        found[:] = _of_statuses(town, orders) or complaints(town, orders)
        time.sleep(LOOK_SECONDS if found else 0)  # each look is hundreds of calls
        return not found

    try:
        wait_for("every request ends as it must", is_right, SETTLE_SECONDS)
    except AssertionError:
        raise AssertionError(f"after {SETTLE_SECONDS:g} s: {explain(town, found)}") from None


def _of_statuses(town: Town, orders: Sequence[Order]) -> list[str]:
    found = dict(town.database.fetch("SELECT id, status FROM app.payment_requests"))
    return [
        f"{each.id} ({each.kind}) is {found.get(each.id, 'lost')}"
        for each in orders
        if found.get(each.id) not in each.may_end_as
    ]


def explain(town: Town, wrong: list[str]) -> str:
    """The rows of the first of them, and how far the chain was read."""
    rows = [
        town.database.fetch(f"SELECT to_jsonb(r) FROM app.{table} r WHERE {column} = %s", [each.split()[0]])
        for each in wrong[:3]
        for table, column in ROWS.items()
    ]
    cursors = town.database.fetch("SELECT to_jsonb(c) FROM app.chain_cursors c")
    return f"{len(wrong)} wrong: {wrong[:20]}; {rows}; {cursors}"


def complaints(town: Town, orders: Sequence[Order]) -> list[str]:
    """All that is wrong; nothing, one hopes."""
    history: dict[str, list[dict[str, Any]]] = defaultdict(list)
    query = "SELECT to_jsonb(t) FROM app.payment_request_transitions t ORDER BY id"
    for (entry,) in town.database.fetch(query):
        history[entry["payment_request_id"]].append(entry)
    times = mined(town, orders)
    settled: dict[str, Counter[str]] = defaultdict(Counter)
    query = "SELECT payment_request_id, evidence_ref FROM app.payment_request_settlements WHERE is_canonical"
    for id_, ref in town.database.fetch(query):
        settled[id_][ref.partition(":")[0]] += 1
    statuses = dict(town.database.fetch("SELECT id, status FROM app.payment_requests"))
    found = [f"rows that nobody ordered: {extra}"] if (extra := set(statuses) - {each.id for each in orders}) else []
    for order in orders:
        found += _of_history(order, history[order.id], statuses.get(order.id))
        on_chain = Counter(tx for tx in order.txs if tx in times)
        ends_at = order.row["expires_at"].timestamp()
        if order.kind is Kind.LATE and any(times.get(tx, ends_at + 1) <= ends_at for tx in order.txs):
            found.append(f"{order.id} ({order.kind}): this stage's own mistake, it was mined in time")
        if settled[order.id] != on_chain:
            found.append(f"{order.id} ({order.kind}): settled {settled[order.id]}, on the chain {on_chain}")
    return found + _of_rows(town) + lease_history.complaints(town.database)


def _of_rows(town: Town) -> list[str]:
    errors = "SELECT id, reconcile_error FROM app.payment_requests WHERE reconcile_error IS NOT NULL"
    stopped = "SELECT stop_reason FROM app.chain_cursors WHERE stop_reason IS NOT NULL"
    return [f"row error: {row}" for row in town.database.fetch(errors)] + [
        f"network stopped: {row}" for row in town.database.fetch(stopped)
    ]


def _of_history(order: Order, entries: list[dict[str, Any]], status: str | None) -> list[str]:
    """Each step allowed, and from where the last one led; confirmed once; nothing that its kind has not earned."""
    found, now = [], "pending"
    reasons = Counter(entry["reason"] for entry in entries)
    for entry in entries:
        before, after, reason = entry["from_status"], entry["to_status"], entry["reason"]
        step = f"{before} → {after}, {reason}"
        if reason in KEPT:
            found += [] if after == now else [f"{step}, but it is {now}"]
            continue
        if before != now or reason not in TRANSITIONS.get((Status(before), Status(after)), ()):
            found.append(f"{step}, but it was {now}")
        now = after
    if now != status:
        found.append(f"is {status}; by its history {now}")
    if reasons[Reason.CONFIRMED] != (order.kind in PAID) and order.kind is not Kind.LOST:
        found.append(f"{reasons[Reason.CONFIRMED]} times confirmed")
    if reasons[Reason.CONFIRMED] > 1 or (order.kind not in (*PAID, Kind.LOST) and MONEY & set(reasons)):
        found.append("confirmed without the money, or twice")
    if order.kind not in SHORT and {Reason.EXPIRED, Reason.UNDERPAID_EXPIRED} & set(reasons):
        found.append("expired before its time")
    late = [entry["evidence_ref"] for entry in entries if entry["reason"] == Reason.LATE]
    told = {ref.partition(":")[0] for ref in late}
    if len(late) != len(set(late)) or (order.kind is Kind.LATE and told != set(order.txs)):
        found.append(f"late: told {late}, paid {order.txs}")
    return [f"{order.id} ({order.kind}): {each}; reasons {[e['reason'] for e in entries]}" for each in found]
