"""Workers, scanner, janitor and strangers on one database, and the model beside them: every act is done to both.

Each method does one act with the real functions of the store, does the same to the model (`World`), and compares the
answers; `compare` compares what is in the tables. Leases are an hour long and nobody waits: `time_passes` moves the
times of a row into the past, also those that its holders remember.
"""

import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar
from unittest.mock import patch

from reconsup.payments.decision import Decision, Policy, decide
from reconsup.payments.request import RowError
from reconsup.store import admission, leases, ledger, view
from reconsup.store import cursor as cursors
from reconsup.store.database import Database
from reconsup.store.persist import Failure
from tests.support.ledgers import NETWORK, SCANNER, Chain, born, commit, ether, now, persisted
from tests.support.model import DUE, FAILED, LATER, NEVER, Verdict, World
from tests.support.stage import WORKERS, Clock, Hand, Stage, Worker

T = TypeVar("T")
LEASE_SECONDS = 3600.0
POLICY = Policy(confirmations=2, finality_confirmations=2, expiry_confirmations=3, audits_balances=False)
ADDRESSES = [f"0x{letter * 40}" for letter in "abcdef"]
OLDER = "old-reconciler"
DAY = timedelta(days=1)
TABLES = "payment_requests, payment_request_settlements, payment_request_transitions, chain_cursors, chain_blocks"


class Players:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.world = World()
        self.workers = [Worker(slot) for slot in range(WORKERS)]
        self.zombies: list[Hand] = []
        self.dead: list[tuple[int, str]] = []  # slot and owner of those that nobody has buried yet
        self.written = 0
        self._numbers = iter(range(1, 10**9))
        self._ghost, self._scan, self._janitor = stage.stores[WORKERS:]
        self.cursor, self.chain = self._begin()
        self.old_cursor = replace(self.cursor, epoch=self.cursor.epoch - 1)
        for address in ADDRESSES[:4]:
            self.insert(address)

    def _begin(self) -> tuple[cursors.Cursor, Chain]:
        database = self.stage.database
        database.execute(
            f"TRUNCATE {', '.join('app.' + name for name in TABLES.split(', '))}, app.chain_credits CASCADE"
        )
        chain = Chain(first=100)
        chain.mine()
        chain.mine(time=now() - timedelta(minutes=5))
        cursor = self._run(born(self._scan, chain))
        done = self._run(commit(self._scan, cursor, *chain.blocks))
        assert done is not None
        self.world.scanned = done.cursor.scanned_height
        return done.cursor, chain

    def _run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self.stage.run(doing)

    # a worker

    def claim(self, worker: Worker, limit: int, *, suspects: bool = False, wrong_seconds: float = 0.0) -> None:
        eligible = self.world.eligible(suspects=suspects)
        began = time.monotonic() + wrong_seconds
        with patch.object(leases, "time", Clock(wrong_seconds)):
            batch = self._run(
                leases.claim(
                    self.stage.stores[worker.slot],
                    NETWORK,
                    owner=worker.owner,
                    lease_seconds=LEASE_SECONDS,
                    limit=limit,
                    suspects=suspects,
                )
            )
        assert 0 <= batch.trusted_until - began - 0.9 * LEASE_SECONDS < 60, "trust goes by the worker's own clock"
        granted = {claim.request.id: claim for claim in batch.claims}
        assert set(granted) <= eligible, f"granted {set(granted) - eligible}"
        assert len(batch.claims) == len(granted) == min(limit, len(eligible))
        grants = [self.world.grant(id_, worker.owner) for id_ in granted]
        for grant, claim in zip(grants, batch.claims, strict=True):
            assert (grant.epoch, grant.status) == (claim.epoch, claim.request.status)
        self.lay_down(worker)
        worker.hand = Hand(batch, grants) if grants else None

    def lay_down(self, worker: Worker) -> None:
        """What it held is from now on a zombie's, who may wake at any time."""
        if worker.hand is not None:
            self.zombies = [*self.zombies[-5:], worker.hand]
            worker.hand = None

    def admit(self, database: Database, hand: Hand) -> None:
        past_unread = {claim.request.id for claim in hand.batch.claims if not claim.request.admitted}
        admitted = self._run(admission.admit(database, hand.batch))
        assert admitted == self.world.admit(hand.grants, only=past_unread)
        claims = [
            replace(
                claim, request=replace(claim.request, admitted=claim.request.admitted or claim.request.id in admitted)
            )
            for claim in hand.batch.claims
        ]
        hand.batch = replace(hand.batch, claims=tuple(claims))

    def look(self, database: Database, hand: Hand, *, failing: int = 0) -> None:
        """View and decide; the first `failing` of the batch fail."""
        ids = [grant.id for grant in hand.grants]
        seen = self._run(view.read(database, NETWORK, ids, expiry_confirmations=POLICY.expiry_confirmations))
        hand.outcomes, hand.verdicts = {}, {}
        if seen is None:
            return
        assert (seen.disowned, seen.unreadable) == ((), {})
        assert seen.chain.scanned_height == self.world.scanned
        assert set(seen.facts) == set(ids) & set(self.world.rows)
        for claim in hand.batch.claims:
            id_ = claim.request.id
            if id_ not in seen.facts:
                continue
            decision = decide(claim.request, seen.facts[id_], seen.chain, POLICY)
            assert not isinstance(decision, RowError)
            is_failing = len(hand.outcomes) < failing
            hand.outcomes[id_] = Failure(FAILED) if is_failing else decision
            hand.verdicts[id_] = None if is_failing else _verdict(decision)

    def persist(self, database: Database, hand: Hand) -> None:
        done = self._run(persisted(database, hand.batch, hand.outcomes))
        before = {id_: len(entries) for id_, entries in self.world.history.items()}
        written, refused = self.world.persist(hand.grants, hand.verdicts)
        assert (done.written, done.refused) == (written, refused), f"{done}, expected {written} {refused}"
        told = {id_: [entry[2:4] for entry in self.world.history.get(id_, [])[before.get(id_, 0) :]] for id_ in written}
        assert {id_: list(entries) for id_, entries in done.history.items()} == told
        self.written += len(written)
        for id_ in written:
            if self.world.rows[id_].due == LATER:  # nobody waits, however slow this machine is
                self._update(id_, "next_reconcile_at = next_reconcile_at + interval '1 hour'")

    def renew(self, database: Database, hand: Hand) -> None:
        renewed = self._run(leases.renew(database, hand.batch, lease_seconds=LEASE_SECONDS))
        held = self.world.renew(hand.grants)
        assert {claim.request.id for claim in renewed.claims} == held, f"expected {held}"
        hand.batch, hand.grants = renewed, [grant for grant in hand.grants if grant.id in held]

    def release(self, worker: Worker) -> None:
        released = self._run(leases.release(self.stage.stores[worker.slot], worker.owner))
        assert (released.requests, released.scans) == (self.world.release(worker.owner), 0)

    def crash(self, worker: Worker) -> None:
        """It dies with what it holds, and its slot's next incarnation begins."""
        self.dead.append((worker.slot, worker.owner))
        worker.hand = None
        worker.incarnation += 1

    def bury(self, which: int, at: str | None, *, is_charged: bool) -> None:
        _, owner = self.dead.pop(which % len(self.dead))
        incarnation = owner.partition("#")[2]
        buried = self._run(
            leases.bury(self._janitor, incarnation=incarnation, owner=owner, row=at, is_charged=is_charged)
        )
        assert (buried.requests, buried.scans) == (self.world.bury(owner, at, is_charged=is_charged), 0)

    def cycle(self, worker: Worker, limit: int, suspects: bool = False) -> None:
        """All that a healthy worker does in one go."""
        self.claim(worker, limit, suspects=suspects)
        if worker.hand is None:
            return
        store, hand = self.stage.stores[worker.slot], worker.hand
        self.admit(store, hand)
        self.look(store, hand)
        self.persist(store, hand)
        worker.hand = None

    # scanner and sweep

    def commit(self, paid: Sequence[str]) -> None:
        """The chain's next block; a new one pays these addresses."""
        above = [block for block in self.chain.blocks if block.height > self.cursor.scanned_height]
        if not above:
            self.chain.mine(*(ether(address, 10**18, next(self._numbers)) for address in paid))
            above = self.chain.blocks[-1:]
        done = self._run(commit(self._scan, self.cursor, above[0]))
        if self.world.is_stopped:
            assert done is None
            return
        assert done is not None
        self.cursor = done.cursor
        credits_ = {credit.evidence_ref: credit.address for credit in above[0].credits}
        assert done.touched == self.world.commit(above[0].height, credits_)

    def roll_back(self, depth: int, *, is_mined_again: bool) -> None:
        """A proven fork; the other branch may hold the same payments one block later."""
        fork_height = max(101, self.cursor.scanned_height - depth)
        ours = self.chain.branch(self.cursor.scanned_height, name=self.chain.name)  # as far as it was scanned
        gone = [block for block in ours.blocks if block.height > fork_height]
        if not gone:
            return
        other = ours.branch(fork_height, name=f"branch {next(self._numbers)}")
        for block in gone:
            other.mine(*(block.credits if is_mined_again else ()))
        done = self._run(
            ledger.roll_back(self._scan, self.cursor, ours.fork_to(other, fork_height), lease_seconds=LEASE_SECONDS)
        )
        if self.world.is_stopped:
            assert done is None
            return
        assert done is not None
        self.cursor, self.chain = done.cursor, other
        assert (done.touched, done.orphaned) == self.world.roll_back(fork_height)

    def scanner_changes(self) -> None:
        """Another takes the scan lease; the one before becomes a zombie."""
        self.stage.database.execute("UPDATE app.chain_cursors SET scan_lease_until = now() - interval '1 s'")
        owner = f"{SCANNER[:-4]}{next(self._numbers) % 10_000:04}"
        taken = self._run(cursors.take(self._scan, NETWORK, owner=owner, lease_seconds=LEASE_SECONDS))
        assert taken is not None
        self.old_cursor, self.cursor = self.cursor, taken

    def zombie_scans(self, paid: Sequence[str]) -> None:
        """A scanner that lost the cursor commits a block on its own tip: nothing happens."""
        old = self.old_cursor
        chain = Chain(first=old.next_height, name="zombie's")
        chain.parent = replace(chain.parent, block_hash=old.tip_hash, time=now())
        block = chain.mine(*(ether(address, 10**18, "zombie's") for address in paid))
        assert self._run(commit(self._ghost, old, block)) is None

    def stop(self) -> None:
        assert self._run(cursors.stop(self._scan, self.cursor, "by the test")) == (not self.world.is_stopped)
        self.world.is_stopped = True

    def start_again(self) -> None:
        assert self._run(cursors.start_again(self._scan, self.cursor))
        self.world.is_stopped = False

    def sweep(self) -> None:
        assert self._run(leases.sweep(self._janitor, [NETWORK])) == self.world.sweep()

    # strangers, and time

    def insert(self, address: str) -> None:
        if address not in {row.address for row in self.world.rows.values()}:
            id_ = self.stage.database.insert(address_canonical=address, expires_at=now() + 20 * DAY)
            self.world.insert(id_, address)

    def _update(self, id_: str, what: str, *values: Any) -> None:
        assert self.stage.database.execute(f"UPDATE app.payment_requests SET {what} WHERE id = %s", [*values, id_]) == 1

    def delete(self, id_: str) -> None:
        assert self.stage.database.execute("DELETE FROM app.payment_requests WHERE id = %s", [id_]) == 1
        del self.world.rows[id_]

    def by_hand(self, id_: str, status: str) -> None:
        self._update(id_, "status = %s", status)
        self.world.by_hand(id_, status)

    def old_time(self, hand: Hand) -> None:
        """The times that a zombie's claim wrote are there again: alone they are no proof of its lease."""
        due_at = {claim.request.id: claim.due_at for claim in hand.batch.claims}
        for grant in hand.grants:
            if grant.id in self.world.rows and not self.world.holds(grant):
                self._update(grant.id, "next_reconcile_at = %s", due_at[grant.id])
                self.world.old_time(grant, LATER if due_at[grant.id] > now() else DUE)

    def older_clears(self, id_: str) -> None:
        self._update(id_, "reconcile_lease_owner = NULL, reconcile_lease_until = NULL")
        self.world.older_clears(id_)

    def older_takes(self, id_: str) -> None:
        self._update(id_, "reconcile_lease_owner = %s, reconcile_lease_until = now() + interval '1 hour'", OLDER)
        self.world.older_takes(id_, OLDER)

    def time_passes(self, id_: str) -> None:
        """A day, for this row: in its columns, and in what its holders remember of them."""
        back = "reconcile_lease_until = reconcile_lease_until - %s, next_reconcile_at = next_reconcile_at - %s"
        self._update(id_, back, DAY, DAY)
        self.world.time_passes(id_)
        for hand in self.hands():
            claims = tuple(
                replace(claim, due_at=claim.due_at - DAY) if claim.request.id == id_ else claim
                for claim in hand.batch.claims
            )
            hand.batch = replace(hand.batch, claims=claims)

    def hands(self) -> list[Hand]:
        return [*self.zombies, *(worker.hand for worker in self.workers if worker.hand is not None)]

    # what must be true

    def compare(self) -> None:
        """The tables are what the model says, and of all who believe in a lease at most one has it."""
        world = self.world
        ((all_rows, settlements, entries, *cursor),) = self.stage.database.fetch(_EVERYTHING)
        rows = {row[0]: tuple(row[1:]) for row in all_rows or ()}
        expected = {
            id_: (row.status, row.owner, row.epoch, row.is_live, row.due, row.due_height, row.is_admitted,
                  row.crashes, row.failures, row.error)
            for id_, row in world.rows.items()
        }  # fmt: skip
        assert rows == expected, _difference(rows, expected)
        settled = [
            (id_, ref, paid.height, paid.is_canonical, not paid.is_canonical)
            for id_, row in world.rows.items()
            for ref, paid in row.settlements.items()
        ]
        assert sorted(map(tuple, settlements or ())) == sorted(settled), (
            f"settlements {settlements}, expected {settled}"
        )
        history: dict[str, list[tuple[Any, ...]]] = {}
        for id_, *entry in entries or ():
            history.setdefault(id_, []).append(tuple(entry))
        told = {id_: entries for id_, entries in world.history.items() if entries}
        assert history == told, _difference(history, told)
        assert cursor == [world.scanned, world.is_stopped]
        held = Counter(
            grant.id
            for hand in self.hands()
            for grant in hand.grants
            if rows.get(grant.id, (None,) * 3)[1:3] == (grant.owner, grant.epoch)
        )
        assert all(count == 1 for count in held.values()), f"more than one has it: {held}"
        assert not (lies := world.lies(POLICY.confirmations)), lies

    def come_to_rest(self) -> None:
        """The network runs, everybody is away long enough, and one healthy worker does all there is to do."""
        if self.world.is_stopped:
            self.start_again()
        self.sweep()
        for id_ in self.world.rows:
            self.time_passes(id_)
        for turn in range(40):
            are_left = [self.world.eligible(suspects=suspects) for suspects in (False, True)]
            if not any(are_left):
                break
            self.cycle(self.workers[0], *((1, True) if are_left[1] and turn % 2 else (10, False)))
            self.compare()
        else:
            raise AssertionError("it does not come to rest")
        claimable = [row for row in self.world.rows.values() if row.status != "failed"]
        assert not any(row.owner for row in claimable if row.due != NEVER), "somebody is left with a lease"
        assert {row.due for row in claimable} <= {LATER, NEVER}, "something is left to be looked at"


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    ids = sorted(id_ for id_ in found.keys() | expected.keys() if found.get(id_) != expected.get(id_))
    return "; ".join(f"{id_}: {found.get(id_)}, expected {expected.get(id_)}" for id_ in ids)


def _verdict(decision: Decision) -> Verdict:
    entries = [(str(decision.reason), None)] if decision.reason is not None else []
    extra = "payment_late" if decision.status == "expired" else "payment_again"
    late = [(extra, each.evidence_ref) for each in decision.late]
    seconds = decision.look.seconds
    due = NEVER if seconds is None else DUE if seconds == 0 else LATER
    return Verdict(str(decision.status), (*entries, *late), due, decision.look.height)


_EVERYTHING = """
SELECT (SELECT json_agg(json_build_array(
          r.id, r.status, r.reconcile_lease_owner, r.reconcile_lease_epoch,
          coalesce(r.reconcile_lease_until > now(), false),
          CASE WHEN r.next_reconcile_at <= now() THEN 'due' WHEN r.next_reconcile_at > now() THEN 'later'
               ELSE 'never' END,
          r.reconcile_due_height, r.reconcile_admitted_height IS NOT NULL, r.reconcile_crashes, r.reconcile_failures,
          r.reconcile_error)) FROM app.payment_requests r),
       (SELECT json_agg(json_build_array(
          s.payment_request_id, s.evidence_ref, s.block_height, s.is_canonical, s.metadata ? 'reorg'))
        FROM app.payment_request_settlements s),
       (SELECT json_agg(json_build_array(
          t.payment_request_id, t.from_status, t.to_status, t.reason, t.evidence_ref, t.lease_owner, t.lease_epoch)
          ORDER BY t.id) FROM app.payment_request_transitions t),
       next_height - 1, stop_reason IS NOT NULL
FROM app.chain_cursors
"""
