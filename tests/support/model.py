"""What the store must do, said once more in plain Python: rows, leases, touches, settlements, history.

No SQL, no clock: a time is in the past (`DUE`), in the future (`LATER`) or not there (`NEVER`). Every method does to
the model what one act does to the database and returns what that act must answer. Nothing here is read from the
database; only who of several eligible rows is granted is the database's choice.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

DUE, LATER, NEVER = "due", "later", "never"
CLAIMABLE = ("pending", "detected", "confirmed", "reorged", "expired")
OPEN = ("pending", "detected", "reorged")
DEATHS_MAX = 4
Entry = tuple[str, str, str, str | None, str, int]  # from, to, reason, evidence_ref, owner, epoch


@dataclass
class Paid:
    """A settlement: the block that has it now, and whether that block is canonical."""

    height: int
    is_canonical: bool = True


@dataclass
class Row:
    address: str
    status: str = "pending"
    owner: str | None = None
    epoch: int = 0
    is_live: bool = False  # the lease's end is in the future
    due: str = DUE
    due_height: int | None = None
    is_admitted: bool = False
    crashes: int = 0
    failures: int = 0
    error: str | None = None
    settlements: dict[str, Paid] = field(default_factory=dict)
    # What is not in the database:
    mark: int = 0  # which next_reconcile_at it is: whoever changes it leaves another
    is_by_hand: bool = False  # the status was changed by hand, and nobody decided since
    waits_for: str | None = None  # why the time is LATER: "lease", "look" or "retry"


@dataclass(frozen=True)
class Grant:
    """One row of one claim, as the worker must remember it."""

    id: str
    owner: str
    epoch: int
    status: str
    mark: int


@dataclass(frozen=True)
class Verdict:
    """A decision: the next status, the history's entries (reason, evidence_ref), and when to look next."""

    status: str
    entries: tuple[tuple[str, str | None], ...]
    due: str
    due_height: int | None


FAILED = "failed: on purpose"


class World:
    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.history: dict[str, list[Entry]] = {}
        self.credits: dict[str, tuple[str, int]] = {}  # evidence_ref → address, height: what the tail holds
        self.scanned = 0
        self.is_stopped = False
        self.grants = 0
        self.refused: Counter[str] = Counter()
        self._marks = itertools.count(1)

    # leases

    def eligible(self, *, suspects: bool) -> set[str]:
        """The ids that a claim may grant now."""
        if self.is_stopped:
            return set()
        return {
            id_
            for id_, row in self.rows.items()
            if row.due == DUE and row.status in CLAIMABLE and not row.is_live and (row.crashes > 0) == suspects
        }

    def grant(self, id_: str, owner: str) -> Grant:
        row = self.rows[id_]
        row.owner, row.is_live, row.epoch = owner, True, row.epoch + 1
        row.due, row.mark, row.waits_for = LATER, next(self._marks), "lease"
        self.grants += 1
        return Grant(id_, owner, row.epoch, row.status, row.mark)

    def holds(self, grant: Grant) -> bool:
        """Whether the row is still the grant's: it is there, and so are owner and epoch."""
        row = self.rows.get(grant.id)
        return row is not None and (row.owner, row.epoch) == (grant.owner, grant.epoch)

    def renew(self, grants: Iterable[Grant]) -> set[str]:
        held = {grant.id for grant in grants if self.holds(grant)}
        for id_ in held:
            self.rows[id_].is_live = True
        return held

    def release(self, owner: str) -> int:
        mine = [row for row in self.rows.values() if row.owner == owner]
        for row in mine:
            self._free(row)
        return len(mine)

    def bury(self, owner: str, at: str | None, *, is_charged: bool) -> int:
        mine = {id_: row for id_, row in self.rows.items() if row.owner == owner}
        for id_, row in mine.items():
            row.crashes += is_charged and (at is None or at not in mine or at == id_)
            self._free(row)
            if row.crashes >= DEATHS_MAX:
                row.due, row.error, row.waits_for = NEVER, "set_aside", None
                entry = (row.status, row.status, "row_set_aside", None, owner, row.epoch)
                self.history.setdefault(id_, []).append(entry)
        return len(mine)

    def _free(self, row: Row) -> None:
        row.owner, row.is_live, row.due, row.waits_for = None, False, DUE, None

    # persist

    def refusal(self, grant: Grant) -> str | None:
        """Why a decision of this grant must not be written; None if it must."""
        if not self.holds(grant):
            return "lease_lost"
        row = self.rows[grant.id]
        if row.status != grant.status:
            return "status_moved"
        return "touched" if row.mark != grant.mark else None

    def persist(self, grants: Sequence[Grant], verdicts: dict[str, Verdict | None]) -> tuple[set[str], Counter[str]]:
        """Write the verdicts (None: a failure), hand the rest back; the ids written, and why others were not."""
        written: set[str] = set()
        refused: Counter[str] = Counter()
        for grant in grants:
            reason = self.refusal(grant)
            if grant.id in verdicts and reason is None:
                self._write(grant, verdicts[grant.id])
                written.add(grant.id)
                continue
            if grant.id in verdicts:
                assert reason is not None
                refused[reason] += 1
            if self.holds(grant):
                self._free(self.rows[grant.id])
        if any(verdict is not None and verdict.due_height is not None for verdict in verdicts.values()):
            self._touch_reached(written)
        self.refused += refused
        return written, refused

    def _write(self, grant: Grant, verdict: Verdict | None) -> None:
        row = self.rows[grant.id]
        row.owner, row.is_live, row.crashes = None, False, 0
        told = self.history.setdefault(grant.id, [])
        if verdict is None:
            if row.error != FAILED:
                told.append((row.status, row.status, "row_failed", None, grant.owner, grant.epoch))
            row.failures, row.error = row.failures + 1, FAILED
            row.due, row.due_height, row.waits_for = LATER, None, "retry"
            return
        for reason, ref in verdict.entries:
            is_step = reason not in ("payment_late", "payment_again")
            if not is_step and any(entry[2:4] == (reason, ref) for entry in told):
                continue
            before = grant.status if is_step else verdict.status
            told.append((before, verdict.status, reason, ref, grant.owner, grant.epoch))
        row.status, row.failures, row.error, row.is_by_hand = verdict.status, 0, None, False
        row.due, row.due_height = verdict.due, verdict.due_height
        row.waits_for = "look" if verdict.due == LATER else None

    # touches

    def touch(self, row: Row) -> None:
        row.due, row.mark, row.waits_for = DUE, next(self._marks), None

    def _touch_reached(self, ids: Iterable[str]) -> None:
        for id_ in ids:
            row = self.rows[id_]
            if row.due_height is not None and row.due_height <= self.scanned:
                row.due_height = None
                self.touch(row)

    def sweep(self) -> int:
        forgotten = [
            row for row in self.rows.values() if row.due == NEVER and row.status in OPEN and row.error != "set_aside"
        ]
        for row in forgotten:
            self.touch(row)
        return len(forgotten)

    # the chain

    def commit(self, height: int, credits_: dict[str, str]) -> int:
        """A block with these credits (evidence_ref → address); how many rows it touches."""
        self.scanned = height
        self.credits |= {ref: (address, height) for ref, address in credits_.items()}
        touched = 0
        for row in self.rows.values():
            is_paid = row.address in credits_.values()
            is_reached = row.due_height is not None and row.due_height <= height
            if row.status != "failed" and (is_paid or is_reached):
                row.due_height = None if is_reached else row.due_height
                self.touch(row)
                touched += 1
        self._settle(self.rows.values(), credits_)
        return touched

    def roll_back(self, fork: int) -> tuple[int, int]:
        """Back to this height; how many rows are touched and settlements orphaned."""
        self.scanned = fork
        self.credits = {ref: credit for ref, credit in self.credits.items() if credit[1] <= fork}
        touched = orphaned = 0
        for row in self.rows.values():
            gone = [paid for paid in row.settlements.values() if paid.height > fork and paid.is_canonical]
            for paid in gone:
                paid.is_canonical = False
            orphaned += len(gone)
            if gone and row.status != "failed":
                self.touch(row)
                touched += 1
        return touched, orphaned

    def admit(self, grants: Iterable[Grant], *, only: set[str]) -> set[str]:
        """Look up the past of those that are held and among `only`; their ids."""
        admitted = {grant.id for grant in grants if grant.id in only and self.holds(grant)}
        for id_ in admitted:
            self.rows[id_].is_admitted = True
        self._settle([self.rows[id_] for id_ in admitted], self.credits)
        return admitted

    def _settle(self, rows: Iterable[Row], refs: Iterable[str]) -> None:
        for row in rows:
            for ref in refs:
                address, height = self.credits[ref]
                if address == row.address:
                    row.settlements[ref] = Paid(height)

    # what others do, and what time does

    def insert(self, id_: str, address: str) -> None:
        self.rows[id_] = Row(address)

    def time_passes(self, id_: str) -> None:
        """A day, for one row: its lease ends, its look comes."""
        row = self.rows[id_]
        row.is_live = False
        row.due = DUE if row.due == LATER else row.due

    def by_hand(self, id_: str, status: str) -> None:
        row = self.rows[id_]
        row.is_by_hand, row.status = row.is_by_hand or row.status != status, status

    def old_time(self, grant: Grant, due: str) -> None:
        """By hand, the time that an old grant of the row wrote."""
        row = self.rows[grant.id]
        row.due, row.mark, row.waits_for = due, grant.mark, "retry"

    def older_clears(self, id_: str) -> None:
        row = self.rows[id_]
        row.owner, row.is_live = None, False

    def older_takes(self, id_: str, owner: str) -> None:
        row = self.rows[id_]
        row.owner, row.is_live = owner, True

    # the truth

    def lies(self, confirmations: int) -> list[str]:
        """What no row may be that is left alone: nobody holds it, it is not due, and nobody changed it by hand."""
        found = []
        for id_, row in self.rows.items():
            if row.owner is not None or row.due == DUE or row.waits_for in ("lease", "retry"):
                continue  # it will be decided again
            if row.is_by_hand or row.error is not None or row.status == "failed" or not row.is_admitted:
                continue
            if lie := self._lie(id_, row, confirmations):
                found.append(f"{id_}: {row.status}, but {lie}: {row}")
        return found

    def _lie(self, id_: str, row: Row, confirmations: int) -> str | None:
        canonical = [paid for paid in row.settlements.values() if paid.is_canonical]
        is_deep = any(self.scanned - paid.height + 1 >= confirmations for paid in canonical)
        is_orphaned = len(canonical) < len(row.settlements)
        match row.status:
            case "pending" if canonical:
                return "it is paid"
            case "detected" if is_deep:
                return "it is confirmed"
            case "detected" if canonical and (row.due_height is None or row.due_height <= self.scanned):
                return "it waits for no block"
            case "detected" | "confirmed" if not canonical and is_orphaned:
                return "its money was taken back"
            case "reorged" if canonical:
                return "its money is back"
            case "expired":
                late = {entry[3] for entry in self.history.get(id_, []) if entry[2] == "payment_late"}
                silent = {ref for ref, paid in row.settlements.items() if paid.is_canonical} - late
                return f"silent about {silent}" if silent else None
        return None
