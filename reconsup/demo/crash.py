"""`kill -9` of a worker at a moment when it really holds leases, and how long it takes until others have its rows.

A worker holds leases for milliseconds, so it is stopped first (SIGSTOP) when the database shows that it holds some.
Once its running statement is over, it holds them still or is let go. Times are monotonic, from the kill on.
"""

import os
import signal
import time
from dataclasses import dataclass

from reconsup.demo.books import Held
from reconsup.demo.pages import Seat
from reconsup.demo.play import TICK_SECONDS, Play

POLL_SECONDS = 0.0005
FREEZE_SECONDS = 0.02  # what was sent before the stop has arrived by then
FREEZE_SECONDS_MAX = 1.0
RECOVER_SECONDS = 20.0  # less than the lease: whoever waits for its end is too late


@dataclass(frozen=True, slots=True)
class Crash:
    """What was killed, what it held, and how long it took from the kill: None if it did not come in time."""

    worker_id: str
    pid: int
    held: int
    held_scan: bool
    heirs: tuple[str, ...]
    takeover_ms: float | None
    ready_ms: float | None


def strike(play: Play, seconds: float, *, even_if_idle: bool = False) -> Crash | None:
    """Wait so long for a worker that holds leases and kill it; None if there was none to be caught."""
    play.look()
    deadline = time.monotonic() + seconds
    drawn_at = time.monotonic()
    while time.monotonic() < deadline:
        for held in play.books.held():
            seat = play.fleet.seat_of(held.owner)
            if seat is not None and (caught := _caught(play, seat)) is not None:
                return _killed(play, seat, caught)
        if time.monotonic() > drawn_at + TICK_SECONDS * 2:
            play.look()
            drawn_at = time.monotonic()
        time.sleep(POLL_SECONDS)
    if not even_if_idle:
        return None
    seat = play.fleet.seats[len(play.fleet.seats) // 2]
    return _killed(play, seat, Held(seat.owner, ()))


def _caught(play: Play, seat: Seat) -> Held | None:
    """Stop the worker; what it holds when nothing of it is on its way any more. It goes on if that is nothing."""
    assert seat.pid is not None
    held: Held | None = None
    os.kill(seat.pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + FREEZE_SECONDS_MAX
        time.sleep(FREEZE_SECONDS)
        while not (is_at_rest := play.books.is_at_rest(seat.incarnation or "")) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        held = next((each for each in play.books.held() if is_at_rest and each.owner == seat.owner), None)
    finally:
        if held is None:
            os.kill(seat.pid, signal.SIGCONT)
    return held


def _killed(play: Play, seat: Seat, held: Held) -> Crash:
    assert seat.pid is not None
    held_scan = play.books.holds_scan(seat.owner)
    os.kill(seat.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    play.tell(f"kill -9 {seat.worker_id} (process {seat.pid}) while it holds {_holdings(len(held.rows), held_scan)}")
    takeover_ms, ready_ms = _recovery(play, seat, held, killed_at)
    play.look()
    taken, heirs = play.books.taken_over(held)
    crash = Crash(seat.worker_id, seat.pid, taken, held_scan, heirs, takeover_ms if taken else None, ready_ms)
    play.facts["killed"] = f"{crash.worker_id} with {crash.held}"
    play.facts["taken over in"] = _ms(crash.takeover_ms)
    play.facts["new one ready"] = _ms(crash.ready_ms)
    play.tell(f"its rows with others after {_ms(crash.takeover_ms)}, a new worker ready after {_ms(crash.ready_ms)}")
    return crash


def _recovery(play: Play, seat: Seat, held: Held, killed_at: float) -> tuple[float | None, float | None]:
    """Milliseconds until no row of the dead waits any more, and until another worker sits ready in its seat."""
    takeover_ms: float | None = None
    ready_ms: float | None = None
    while time.monotonic() < killed_at + RECOVER_SECONDS and (takeover_ms is None or ready_ms is None):
        play.check()
        if takeover_ms is None and play.books.waiting(held) == 0:
            takeover_ms = (time.monotonic() - killed_at) * 1000
        if ready_ms is None and _is_replaced(play, seat):
            ready_ms = (time.monotonic() - killed_at) * 1000
        time.sleep(POLL_SECONDS)
    return takeover_ms, ready_ms


def _is_replaced(play: Play, dead: Seat) -> bool:
    fleet = play.pages.fleet()
    return fleet is not None and any(
        seat.worker_id == dead.worker_id and seat.incarnation not in (None, dead.incarnation) and seat.state == "ready"
        for seat in fleet.seats
    )


def _holdings(requests: int, held_scan: bool) -> str:
    scan = " and reads the chain" if held_scan else ""
    return f"{requests or 'no'} {'request' if requests == 1 else 'requests'}{scan}"


def _ms(milliseconds: float | None) -> str:
    return "–" if milliseconds is None else f"{milliseconds:.0f} ms"
