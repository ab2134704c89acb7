"""The end: what happened, with figures taken from the database, and whether all of it is as it must be."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from reconsup.demo import stage
from reconsup.demo.acts import Outcome
from reconsup.demo.books import Books, Entry, Settled, by_reason, histories
from reconsup.demo.cast import ORDERS, Order, shown
from reconsup.payments.request import Reason, Status


@dataclass(frozen=True, slots=True)
class Accounts:
    """What the database said after the supervisor had left, and what was measured on the way.

    `drained` is the supervisor's exit code and the seconds from SIGTERM on; None: it had to be killed.
    """

    statuses: dict[str, str]
    entries: list[Entry]
    settlements: dict[str, Settled]
    scanned_height: int
    reorg_proof: tuple[int, str, str] | None
    leases_left: int
    rpc_calls: int | None
    blocks_read: int | None
    outcome: Outcome
    drained: tuple[int, float] | None
    seconds: float


def read(
    books: Books,
    outcome: Outcome,
    *,
    rpc_calls: int | None,
    blocks_read: int | None,
    drained: tuple[int, float] | None,
    seconds: float,
) -> Accounts:
    """Take the figures from the database."""
    return Accounts(
        statuses=books.statuses(),
        entries=books.entries(),
        settlements=books.settlements(),
        scanned_height=books.scanned_height() or 0,
        reorg_proof=books.reorg_proof(outcome.reorg.order.id),
        leases_left=books.leases_left(),
        rpc_calls=rpc_calls,
        blocks_read=blocks_read,
        outcome=outcome,
        drained=drained,
        seconds=seconds,
    )


def faults(accounts: Accounts) -> list[str]:
    """What is not as it must be, a sentence each; none if all is well."""
    found = [*_request_faults(accounts)]
    crash = accounts.outcome.crash
    if crash.held and crash.takeover_ms is None:
        found.append(f"nobody took over the requests that {crash.worker_id} held when it was killed")
    if crash.ready_ms is None:
        found.append(f"no new worker became ready in the seat of {crash.worker_id}, which was killed")
    if accounts.reorg_proof is None:
        found.append("the history holds no proof of the reorg")
    if accounts.leases_left:
        found.append(f"{accounts.leases_left} leases are left behind after the drain")
    if accounts.drained is None:
        found.append(f"`reconsup run` did not leave within {stage.LEAVE_SECONDS:.0f} s of SIGTERM")
    elif accounts.drained[0] != 0:
        found.append(f"`reconsup run` ended with exit code {accounts.drained[0]} after SIGTERM, not 0")
    return found


def _request_faults(accounts: Accounts) -> Iterator[str]:
    reasons = histories(accounts.entries)
    for order in ORDERS:
        status = accounts.statuses.get(order.id)
        if status != order.final_status:
            yield f"{order.id} ({order.plot}) is {status}, not {order.final_status}"
        elif not order.is_history(reasons.get(order.id, [])):
            yield f"{order.id} ({order.plot}) has the history {', '.join(reasons.get(order.id, [])) or 'of nothing'}"
        settled = accounts.settlements.get(order.id, Settled(0, 0, 0))
        if settled.canonical_minor != _due_minor(order):
            got, due = shown(settled.canonical_minor, order.asset), shown(_due_minor(order), order.asset)
            yield f"{order.id} ({order.plot}) has settlements of {got}, and was paid {due}"


def _due_minor(order: Order) -> int:
    return order.credited_minor if order.payments_minor else 0


def lines(accounts: Accounts) -> list[tuple[str, str]]:
    """The summary: (what, figures) pairs."""
    statuses = Counter(accounts.statuses.values())
    settled = accounts.settlements.values()
    proof = accounts.reorg_proof
    reorg = accounts.outcome.reorg
    return [
        ("requests", ", ".join(f"{statuses[each]} {each}" for each in Status if statuses[each])),
        ("history", ", ".join(f"{count} {reason}" for reason, count in by_reason(accounts.entries).most_common())),
        ("confirmed", _confirmed_once(accounts)),
        (
            "settlements",
            f"{sum(each.canonical for each in settled)} on chain, "
            f"{sum(each.orphaned for each in settled)} taken back by the reorg",
        ),
        ("chain", _chain(accounts)),
        ("crash", _crash(accounts)),
        (
            "reorg",
            f"{reorg.blocks} blocks replaced; {reorg.order.id}: confirmed → reorged → confirmed"
            + (f"; proof: block {proof[0]} was {proof[1][:10]}…, is {proof[2][:10]}…" if proof else ""),
        ),
        ("drain", _drain(accounts)),
    ]


def _confirmed_once(accounts: Accounts) -> str:
    times = Counter(entry.request_id for entry in accounts.entries if entry.reason == Reason.CONFIRMED)
    once = sum(count == 1 for count in times.values())
    return f"payment_confirmed exactly once for {once} of {len(times)} requests that were paid"


def _chain(accounts: Accounts) -> str:
    blocks = f"{accounts.scanned_height + 1} blocks"
    if accounts.blocks_read is not None:
        blocks += f" ({accounts.blocks_read} read, with those that the reorg replaced)"
    return f"{blocks}, {'?' if accounts.rpc_calls is None else accounts.rpc_calls} JSON-RPC calls"


def _crash(accounts: Accounts) -> str:
    crash = accounts.outcome.crash
    text = f"kill -9 {crash.worker_id} (process {crash.pid})"
    if crash.takeover_ms is not None:
        named = [f"the new {each}" if each == crash.worker_id else each for each in crash.heirs]
        heirs = f" ({', '.join(named)})" if named else ""
        text += (
            f": its {crash.held} leased requests were with others{heirs} after {crash.takeover_ms:.0f} ms; "
            f"the lease had {stage.LEASE_SECONDS} s to run"
        )
    else:
        text += ", which held no request at that moment"
    return text + (f"; a new worker was ready after {crash.ready_ms:.0f} ms" if crash.ready_ms is not None else "")


def _drain(accounts: Accounts) -> str:
    if accounts.drained is None:
        return "it had to be killed"
    code, seconds = accounts.drained
    return f"SIGTERM → exit {code} in {seconds * 1000:.0f} ms, {accounts.leases_left or 'no'} lease left"
