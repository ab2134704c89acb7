"""The script: what is done in which order. Each act leaves when the database shows what it was for."""

from collections.abc import Iterator
from dataclasses import dataclass

from reconsup.demo import stage
from reconsup.demo.cast import ORDERS, Order, Plot, the
from reconsup.demo.crash import Crash, strike
from reconsup.demo.play import Play
from reconsup.payments.request import Reason, Status

START_SECONDS = 30.0
TURN_SECONDS = 30.0  # for what the workers do within a second or two
SOON_SECONDS = 13.0  # how long the requests that expire are open
PACE_SECONDS = 0.4  # between two customers
LOOK_SECONDS = 1.5  # for people, where something is to be seen
BURST = 5
HUNT_SECONDS = 2.5


@dataclass(frozen=True, slots=True)
class Reorg:
    """The payment that the chain took back: of which order, and how many blocks were replaced."""

    order: Order
    blocks: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the acts measured."""

    crash: Crash
    reorg: Reorg


def perform(play: Play, chain_id: int) -> Outcome:
    """Play all of it; at the end every request has the status that it must end with."""
    customers = iter([order for order in ORDERS if order.plot is Plot.PAID])
    _open(play, chain_id)
    _first_customers(play, customers)
    crash = _crash(play, customers)
    _more_customers(play, customers)
    reorg = _reorg(play)
    _late(play)
    play.enter("everything ends as it must")
    play.wait_for("every request ends as it must", lambda: all(map(play.has_ended, ORDERS)), TURN_SECONDS)
    return Outcome(crash, reorg)


def _open(play: Play, chain_id: int) -> None:
    play.enter("the workers get ready")
    play.wait_for("all workers are ready", lambda: play.fleet.all_ready(stage.WORKERS), START_SECONDS)
    play.books.open_orders(
        ORDERS, chain_id=chain_id, token_contract=play.customers.token_contract, soon_seconds=SOON_SECONDS
    )
    play.tell(f"{len(ORDERS)} payment requests, in ETH and USDT")


def _first_customers(play: Play, customers: Iterator[Order]) -> None:
    play.enter("customers pay")
    special = [the(Plot.UNDERPAID), the(Plot.INSTALMENTS)]
    for order in [next(customers), special[0], next(customers), special[1], next(customers), next(customers)]:
        play.pay(order)
        play.breathe(PACE_SECONDS)


def _crash(play: Play, customers: Iterator[Order]) -> Crash:
    """Kill a worker that holds leases. Payments that come together make the workers hold some."""
    play.enter("a worker is killed in the middle of its work")
    for _ in range(3):
        for _ in range(BURST):
            play.pay(next(customers))
        crash = strike(play, HUNT_SECONDS)
        if crash is not None:
            return crash
    crash = strike(play, 0.0, even_if_idle=True)
    assert crash is not None
    return crash


def _more_customers(play: Play, customers: Iterator[Order]) -> None:
    play.breathe(LOOK_SECONDS)
    play.enter("customers go on paying")
    for order in (the(Plot.OVERPAID), the(Plot.INSTALMENTS), the(Plot.ANY_AMOUNT), *customers):
        play.pay(order)
        play.breathe(PACE_SECONDS)
    paid = [order for order in ORDERS if not order.ends_soon and order.plot is not Plot.REORGED]
    play.wait_for("every paid request is confirmed", lambda: all(map(play.has_ended, paid)), TURN_SECONDS)


def _reorg(play: Play) -> Reorg:
    play.enter("the chain takes a payment back (a reorg)")
    order = the(Plot.REORGED)
    tx_hash = play.pay(order)
    play.wait_for("the payment is confirmed", lambda: play.status(order) == Status.CONFIRMED, TURN_SECONDS)
    blocks = play.customers.take_back(tx_hash)
    play.tell(f"reorg: the last {blocks} blocks are replaced by others, without the payment of {order.label}")
    play.wait_for("the taken payment is seen", lambda: play.status(order) == Status.REORGED, TURN_SECONDS)
    play.breathe(LOOK_SECONDS)
    play.customers.pay_in_two_blocks(order, play.next_payment_minor(order))
    play.tell(f"{order.label} is paid again, now that its row says reorged")
    play.wait_for("the second payment is confirmed", lambda: play.status(order) == Status.CONFIRMED, TURN_SECONDS)
    return Reorg(order, blocks)


def _late(play: Play) -> None:
    play.enter("time is up for three requests, and one is paid after it")
    order = the(Plot.LATE)
    play.wait_for("the late request is expired", lambda: play.status(order) == Status.EXPIRED, TURN_SECONDS)
    play.pay(order)
    told = play.reasons
    play.wait_for("the late payment is noted", lambda: Reason.LATE in told.get(order.id, ()), TURN_SECONDS)
