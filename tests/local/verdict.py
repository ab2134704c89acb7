"""What the database must say after a receive test, and whether it does. Knows no database: rows in, sentences out."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from reconsup.demo.cast import Asset, shown
from tests.local.customers import Order

CONFIRMED, DETECTED = "payment_confirmed", "payment_detected"
HISTORIES = ([CONFIRMED], [DETECTED, CONFIRMED])


@dataclass(frozen=True)
class Entry:
    """One line of a request's history."""

    request_id: str
    reason: str
    from_status: str
    to_status: str
    worker_id: str


@dataclass(frozen=True)
class Settlement:
    """One payment as it is stored."""

    request_id: str
    evidence_ref: str
    amount_minor: int
    is_canonical: bool

    @property
    def tx_hash(self) -> str:
        """Of its transaction; a token's names the log as well."""
        return self.evidence_ref.partition(":")[0]


@dataclass(frozen=True)
class Books:
    """All that the database says of some requests. `held`: request → who has a lease on it."""

    statuses: Mapping[str, str]
    entries: Sequence[Entry]
    settlements: Sequence[Settlement]
    held: Mapping[str, str]

    def confirmed_by(self) -> Counter[str]:
        """How many were confirmed by each worker."""
        return Counter(entry.worker_id for entry in self.entries if entry.to_status == "confirmed")


def faults(orders: Sequence[Order], sent: Mapping[str, set[str]], books: Books, supervisors: Set[str]) -> list[str]:
    """What is not as it must be, a sentence each. `supervisors`: those of which each must have confirmed something."""
    found = [fault for order in orders for fault in _of(order, sent[order.id], books)]
    by = books.confirmed_by()
    at_work = {worker.rpartition("-")[0] for worker in by}
    return found + [f"no worker of {name} confirmed anything" for name in sorted(supervisors) if name not in at_work]


def _of(order: Order, sent: set[str], books: Books) -> list[str]:
    found = []
    status = books.statuses.get(order.id, "gone")
    reasons = [entry.reason for entry in books.entries if entry.request_id == order.id]
    if status != ("confirmed" if order.payments_minor else "pending"):
        found.append(f"is {status}")
    if reasons not in (HISTORIES if order.payments_minor else [[]]):
        found.append(f"has the history {', '.join(reasons) or 'of nothing'}")
    rows = [each for each in books.settlements if each.request_id == order.id]
    paid, settled = sum(order.payments_minor), sum(each.amount_minor for each in rows if each.is_canonical)
    if paid != settled:
        found.append(f"was paid {shown(paid, order.asset)}, and {shown(settled, order.asset)} are settled")
    if sorted(each.tx_hash for each in rows) != sorted(sent):
        found.append(f"was paid by {len(sent)} transactions, and has {len(rows)} settlements, not one for each")
    if order.id in books.held:
        found.append(f"is still leased by {books.held[order.id]}")
    return [f"{order.id} ({order.asset}) {what}" for what in found]


def table(orders: Sequence[Order], books: Books) -> list[str]:
    """What happened, for people."""
    lines = [f"{'asset':<7}{'requests':>8}{'paid':>15}{'settled':>15}{'confirmed once':>16}"]
    times = Counter(entry.request_id for entry in books.entries if entry.to_status == "confirmed")
    for asset in Asset:
        some = {order.id for order in orders if order.asset is asset and order.payments_minor}
        paid = sum(sum(order.payments_minor) for order in orders if order.id in some)
        settled = sum(each.amount_minor for each in books.settlements if each.request_id in some and each.is_canonical)
        once = sum(times[id_] == 1 for id_ in some)
        lines.append(
            f"{asset:<7}{len(some):>8}{shown(paid, asset):>15}{shown(settled, asset):>15}{f'{once} of {len(some)}':>16}"
        )
    lines.append(f"{'worker':<15}{'confirmed':>9}")
    lines += [f"{worker:<15}{count:>9}" for worker, count in sorted(books.confirmed_by().items())]
    return lines
