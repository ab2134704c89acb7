"""`make local-receive-test`: customers pay, and each request is confirmed once, by workers of every supervisor.

Some dozen payments are nothing: one worker would be done with them before the next has looked. So the table of
histories, which each reads before it decides, is held still until all payments are deep enough and every worker has a
batch in hand. Then all decide at once.
"""

import asyncio
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from reconsup.demo.anvil import AnvilError
from reconsup.demo.pages import Pages
from tests.local import customers, verdict
from tests.local.customers import Order
from tests.local.knobs import ON_ANVIL
from tests.local.parts import Part, wait_until
from tests.local.place import Place, Plan, shown
from tests.local.trouble import Trouble
from tests.local.verdict import Books, Entry, Settlement

Say = Callable[[str], None]

UP = "run `make local-up-all`"
CONFIRM_SECONDS = 30.0
PAID_MIN = 24
BATCH = int(ON_ANVIL["PAYMENT_REQUEST_RECONCILER_BATCH_SIZE"])
CONFIRMATIONS = int(ON_ANVIL["PAYMENT_REQUEST_RECONCILER_EVM_MIN_CONFIRMATIONS"])
IN_HAND = 2  # batches that a worker may have at a time
_HOLD: LiteralString = "LOCK TABLE app.payment_request_transitions IN ACCESS EXCLUSIVE MODE"


@dataclass(frozen=True)
class Scene:
    """What is up."""

    plan: Plan
    chain: dict[str, Any]
    supervisors: Sequence[Part]


def receive(place: Place, say: Say, *, kill: str | None = None) -> None:
    """Pay and see; Trouble with what went wrong. `kill`: a supervisor that dies while its workers have work in hand."""
    scene = _scene(place)
    if kill and kill not in scene.plan.ports:
        raise Trouble(f"there is no {kill} to be killed: there are {', '.join(scene.plan.ports)}")
    workers = _workers(scene.plan)
    orders = customers.orders(max(PAID_MIN, len(workers) * BATCH * (IN_HAND + 1)))
    try:
        with psycopg.connect(scene.plan.database_url, autocommit=True) as connection:
            _forgive_the_last(connection)
            customers.ask(connection, orders, scene.chain)
            _wait("reconsup has seen the requests", lambda: _seen(connection, orders), place, scene)
            sent, at_work = _pay(place, scene, orders, workers, kill, say)
            books = _confirmed(connection, orders, scene)
    except (psycopg.Error, AnvilError) as error:
        raise Trouble(f"{' '.join(str(error).split())}", _where(place)) from error
    for line in verdict.table(orders, books):
        say(line)
    if found := verdict.faults(orders, sent, books, at_work - {kill}):
        raise Trouble(*found, _where(place))
    unpaid = sum(not order.payments_minor for order in orders)
    say(f"each that was paid was confirmed once; {unpaid} that nobody paid stay pending; none is leased any more")


def _scene(place: Place) -> Scene:
    plan = place.plan()
    supervisors = place.supervisors()
    if plan is None or not place.database.record.exists():
        raise Trouble(f"nothing is up: {UP}")
    dead = [part for part in (place.database, *supervisors) if part.pid is None]
    if plan.chain and place.chain.pid is None:
        dead.append(place.chain)
    if dead:
        raise Trouble(
            *(f"{part.name} has died: see {shown(part.log)}" for part in dead), f"{UP}: it starts what is missing"
        )
    if plan.chain is None:
        raise Trouble(
            "the endpoints are given (SERVICE_EVM_RPC_URLS_JSON), and nobody here has money on their chains: "
            "for the receive test start without that knob, on a local chain"
        )
    if not supervisors:
        raise Trouble(f"no supervisor is up that could confirm (SERVICE_RECONCILER_ENABLED): {UP}")
    return Scene(plan, dict(plan.chain), supervisors)


def _workers(plan: Plan) -> set[str]:
    fleets = [Pages(port).fleet() for port in plan.ports.values()]
    return {seat.worker_id for fleet in fleets if fleet for seat in fleet.seats if seat.state == "ready"}


def _pay(
    place: Place, scene: Scene, orders: Sequence[Order], workers: set[str], kill: str | None, say: Say
) -> tuple[dict[str, set[str]], set[str]]:
    """All payments, and the supervisors of which workers must have confirmed some.

    Nobody decides before everybody has something in hand.
    """
    url = scene.plan.database_url
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as eye:
        holder.execute(_HOLD)
        sent, height = asyncio.run(customers.pay(orders, scene.chain))
        say(f"{len(orders)} requests, {sum(map(len, sent.values()))} payments sent, the last in block {height}")
        deep_at = height + CONFIRMATIONS - 1
        owners: set[str] = set()
        # Everybody who sleeps must have woken up, and nobody's lease must have ended.
        enough, most = CONFIRMATIONS + 2 + 1.5 * scene.plan.poll_seconds, scene.plan.lease_seconds / 2
        for _ in wait_until(min(enough, most)):
            owners = {owner.partition("#")[0] for owner in _held(eye, orders).values()}
            if owners >= workers and _scanned(eye) >= deep_at:
                break
        is_short = enough > most and not owners >= workers
        say(f"{len(owners)} of {len(workers)} workers have requests in hand at the same moment")
        if is_short:
            say("the others sleep for longer than a lease allows to wait: a shorter poll interval would let all work")
        if kill:
            place.supervisor(kill).signal(signal.SIGKILL)
            say(f"{kill} was killed (SIGKILL)")
        holder.rollback()
    return sent, {worker.rpartition("-")[0] for worker in (owners if is_short else workers)}


def _scanned(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT next_height - 1 FROM app.chain_cursors WHERE network = 'local'").fetchone()
    return -1 if row is None else int(row[0])


def _confirmed(connection: psycopg.Connection[Any], orders: Sequence[Order], scene: Scene) -> Books:
    """The books when all are confirmed and at rest, or when time is up."""
    books = _books(connection, orders)
    paid = {order.id for order in orders if order.payments_minor}
    for _ in wait_until(_patience(scene.plan)):
        books = _books(connection, orders)
        if not books.held and all(books.statuses[id_] == "confirmed" for id_ in paid):
            break
    return books


def _wait(what: str, look: Callable[[], bool], place: Place, scene: Scene) -> None:
    seconds = _patience(scene.plan)
    for _ in wait_until(seconds):
        if look():
            return
    raise Trouble(f"not within {seconds:.0f} s: {what}", _where(place))


def _patience(plan: Plan) -> float:
    """Who died while the database was away could not give its leases back: they have to end."""
    return CONFIRM_SECONDS + plan.lease_seconds + 4 * plan.poll_seconds


def _where(place: Place) -> str:
    return f"the logs are in {shown(place.folder)}"


def _forgive_the_last(connection: psycopg.Connection[Any]) -> None:
    """Nobody pays any more what an earlier run left open."""
    connection.execute("DELETE FROM app.payment_requests WHERE id LIKE 'receive-%' AND status = 'pending'")


def _ids(orders: Sequence[Order]) -> list[str]:
    return [order.id for order in orders]


def _seen(connection: psycopg.Connection[Any], orders: Sequence[Order]) -> bool:
    query = "SELECT count(*) FROM app.payment_requests WHERE id = ANY(%s) AND reconcile_admitted_height IS NOT NULL"
    row = connection.execute(query, [_ids(orders)]).fetchone()
    return row is not None and row[0] == len(orders)


def _held(connection: psycopg.Connection[Any], orders: Sequence[Order]) -> dict[str, str]:
    query = "SELECT id, reconcile_lease_owner FROM app.payment_requests WHERE id = ANY(%s)"
    rows = connection.execute(f"{query} AND reconcile_lease_owner IS NOT NULL", [_ids(orders)])
    return {str(id_): str(owner) for id_, owner in rows}


def _books(connection: psycopg.Connection[Any], orders: Sequence[Order]) -> Books:
    ids = _ids(orders)
    statuses = connection.execute("SELECT id, status FROM app.payment_requests WHERE id = ANY(%s)", [ids]).fetchall()
    entries = connection.execute(
        "SELECT payment_request_id, reason, from_status, to_status, coalesce(worker_id, '?')"
        " FROM app.payment_request_transitions WHERE payment_request_id = ANY(%s) ORDER BY id",
        [ids],
    ).fetchall()
    settlements = connection.execute(
        "SELECT payment_request_id, evidence_ref, amount_minor, is_canonical"
        " FROM app.payment_request_settlements WHERE payment_request_id = ANY(%s)",
        [ids],
    ).fetchall()
    return Books(
        dict(statuses),
        [Entry(*row) for row in entries],
        [Settlement(id_, ref, int(amount), is_canonical) for id_, ref, amount, is_canonical in settlements],
        _held(connection, orders),
    )
