"""The hands of the demo: pay, wait, and look. What it does with them stands in `acts`.

Every wait looks: at the signals, at the parts (one that is gone ends the demo with a sentence), at the database, and
draws what it saw. Every wait has a deadline.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from reconsup.demo import stage
from reconsup.demo.books import Books, Entry
from reconsup.demo.cast import ORDERS, Order, shown
from reconsup.demo.customers import Customers
from reconsup.demo.pages import Fleet, Pages
from reconsup.demo.picture import Picture, Row, Screen
from reconsup.demo.stage import Stage, StageError
from reconsup.payments.request import Reason, Status

TICK_SECONDS = 0.12


@dataclass(frozen=True, slots=True)
class Tools:
    """What the play is made with."""

    stage: Stage
    books: Books
    customers: Customers
    pages: Pages
    screen: Screen
    check: Callable[[], None]


class Play:
    """One run of the demo."""

    def __init__(self, tools: Tools) -> None:
        self.books, self.customers, self.pages = tools.books, tools.customers, tools.pages
        self.check = tools.check
        self.fleet = Fleet((), None)
        self.facts: dict[str, str] = {"a lease lasts": f"{stage.LEASE_SECONDS} s"}
        self._supervisor = tools.stage.supervisor
        self._screen = tools.screen
        self._act = ""
        self._started_at = time.monotonic()
        self._paid: Counter[str] = Counter()
        self._rows: dict[str, Row] = {}
        self._told: set[int] = set()
        self._written: Counter[str] = Counter()
        self.reasons: dict[str, set[str]] = {}

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self._started_at

    def enter(self, act: str) -> None:
        """Begin an act; its title is shown."""
        self._act = act
        self.tell(f"— {act}")

    def tell(self, event: str) -> None:
        """Say what happened."""
        self._screen.tell(event)

    def pay(self, order: Order) -> str:
        """Make the order's next payment; returns the transaction's hash."""
        amount_minor = self.next_payment_minor(order)
        tx_hash = self.customers.pay(order, amount_minor)
        self.tell(f"{order.label} gets {shown(amount_minor, order.asset)}")
        return tx_hash

    def next_payment_minor(self, order: Order) -> int:
        """How much the order is paid next; it counts as paid then."""
        amount_minor = order.payments_minor[self._paid[order.id]]
        self._paid[order.id] += 1
        return amount_minor

    def status(self, order: Order) -> Status | None:
        """The order's status at the last look."""
        row = self._rows.get(order.id)
        return row.status if row else None

    def has_ended(self, order: Order) -> bool:
        """Whether the order had the status at the last look that it must end with."""
        return self.status(order) == order.final_status

    def breathe(self, seconds: float) -> None:
        """Let that much time pass."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.look()
            time.sleep(max(0.0, min(TICK_SECONDS, deadline - time.monotonic())))

    def wait_for(self, what: str, is_so: Callable[[], bool], seconds: float) -> None:
        """Wait until it is so, or end the demo: it did not come within the time."""
        deadline = time.monotonic() + seconds
        self.look()
        while not is_so():
            if time.monotonic() > deadline:
                words = self._supervisor.last_words()
                raise StageError(f"gave up after waiting {seconds:.0f} s until {what}{words}")
            time.sleep(TICK_SECONDS)
            self.look()

    def look(self) -> None:
        """See how things stand, tell what is new, and draw it."""
        self.check()
        self._supervisor.require_alive()
        self._see_requests()
        self.fleet = self.pages.fleet() or self.fleet
        self._screen.draw(
            Picture(
                act=self._act,
                seconds=self.seconds,
                height=self.customers.height(),
                scanned=self.books.scanned_height(),
                rows=tuple(self._rows.values()),
                seats=self.fleet.seats,
                scan_owner=self.fleet.scan_owner,
                written=dict(self._written),
                facts=tuple(self.facts.items()),
            )
        )

    def _see_requests(self) -> None:
        statuses = self.books.statuses()
        now = time.monotonic()
        for order in ORDERS:
            if order.id in statuses:
                before, status = self.status(order), Status(statuses[order.id])
                if before != status:
                    self._rows[order.id] = Row(order, status, now if before else 0.0)
        new = [entry for entry in self.books.entries() if entry.id not in self._told]
        for entry in new:
            self._told.add(entry.id)
            self._written[entry.worker_id] += 1
            self.reasons.setdefault(entry.request_id, set()).add(entry.reason)
        for sentence in _told(new):
            self.tell(sentence)


def _told(entries: list[Entry]) -> list[str]:
    """History entries for people; those that say the same become one."""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        what = f"{entry.from_status} → {entry.to_status}"
        if entry.reason == Reason.LATE:
            what = "paid too late: noted, stays expired"
        groups.setdefault(f"{what}  ({entry.worker_id})", []).append(entry.request_id.removeprefix("order-"))
    return [f"{' '.join(sorted(labels))}  {what}" for what, labels in groups.items()]
