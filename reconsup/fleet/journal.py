"""What the supervisor says of its fleet in the log: one line for each thing that happened, in an operator's words."""

import signal

from reconsup.fleet.events import Bury, Send
from reconsup.fleet.scoreboard import Scoreboard
from reconsup.fleet.slot import EXIT_GAVE_UP, SPARE, Cause, Slot, WorkerState, signal_name
from reconsup.fleet.state import Fleet, Phase
from reconsup.logs import get_logger

PAUSE_SECONDS_MIN = 0.005  # a shorter one is none

_log = get_logger()

_KILLS = {
    Cause.BOOT: "process_not_ready_in_time",
    Cause.HANG: "process_hangs",
    Cause.DRAIN: "process_not_gone_in_time",
}
_LEAVES = {Cause.RELOAD: "new settings", Cause.RECYCLE: "too old, or too large", Cause.SCALE: "one fewer is wanted"}


def tell_sent(board: Scoreboard, send: Send, now: float) -> None:
    """A signal was sent: why. A stop of the whole fleet is told as such, not for each."""
    worker_id = board.worker_id(send.slot)
    if send.number is signal.SIGTERM:
        if send.cause is not None:
            # it stood in for others, whatever they were replaced for
            why = "the spare seat is to be free" if send.slot == SPARE else _LEAVES.get(send.cause)
            _log.info("process_asked_to_leave", worker_id=worker_id, pid=send.pid, why=why)
        return
    if send.number is signal.SIGKILL or send.cause not in _KILLS:
        _log.warning("killed", worker_id=worker_id, pid=send.pid, cause=send.cause)
        return
    view = board.read(send.slot)
    since = view.beat if send.cause is Cause.HANG and view.beat is not None else view.started
    _log.error(
        _KILLS[send.cause],
        worker_id=worker_id,
        pid=send.pid,
        loop=view.loop,
        row=view.row,
        seconds=None if since is None else round(now - since, 1),
        sent="SIGABRT: it writes down where it is",
    )


def tell_left(
    board: Scoreboard, bury: Bury, slot: Slot, incarnation: str | None, stacks: str | None, now: float
) -> None:
    """A process was reaped: of what it died, and what becomes of its seat."""
    is_expected = bury.is_asked and bury.cause in (Cause.CLEAN, *_LEAVES)
    told: dict[str, object] = {"exit_code": bury.code} if bury.code >= 0 else {"signal": signal_name(-bury.code)}
    if stacks is not None:
        told["stacks"] = stacks
    is_parked = slot.state is WorkerState.PARKED
    if is_parked:
        told["todo"] = "see why it died, here and before; put that right and send HUP: it gets another chance"
    (_log.error if is_parked else _log.info if is_expected else _log.warning)(
        "process_left",
        worker_id=board.worker_id(bury.slot),
        pid=bury.pid,
        incarnation=incarnation,
        cause=bury.cause,
        **told,
        next=_next(slot, now),
    )


def tell_change(board: Scoreboard, before: Slot | None, after: Slot) -> None:
    """A slot has changed: who was forked, who is ready, who is worn."""
    worker_id = board.worker_id(after.number)
    if after.pid is not None and (before is None or before.pid is None):
        _log.info(
            "process_forked",
            worker_id=worker_id,
            pid=after.pid,
            restarts=after.restarts,
            generation=after.generation,
        )
    was_ready = before is not None and before.state is WorkerState.READY
    if after.state is not WorkerState.READY or after.started is None or after.ready_at is None:
        return
    if not was_ready:
        seconds = round(after.ready_at - after.started, 4)
        _log.info("process_ready", worker_id=worker_id, pid=after.pid, ready_seconds=seconds)
    elif after.is_worn and before is not None and not before.is_worn:
        _log.info("worker_worn", worker_id=worker_id, pid=after.pid, memory_bytes=board.read(after.number).memory_bytes)


def tell_fleet(before: Fleet, after: Fleet) -> str | None:
    """The fleet as a whole has changed. What becomes of new settings, in one word, if that has changed."""
    if before.phase is not after.phase:
        _log.info("phase", phase=after.phase)
        if after.phase is Phase.DRAINING and after.exit_code == EXIT_GAVE_UP:
            _log.error(
                "gave_up",
                exit_code=after.exit_code,
                todo="nobody is left to work: see why they died (process_crashed, process_left), then start again",
            )
    if before.wanted != after.wanted:
        _log.info("workers_wanted", workers=after.wanted, before=before.wanted)
    if not before.is_turning() or after.is_turning() or after.phase is not before.phase:
        return None
    if not after.has_stale():
        if after.terms.generation == before.terms.generation and before.offer is not None:
            return "refused"  # told where it was
        _log.info("reload_done", generation=after.terms.generation)
        return "done"
    _log.error(
        "reload_stalled",
        generation=after.terms.generation,
        todo="workers crash with the new settings: those that are left keep the old ones; correct them and send HUP",
    )
    return "stalled"


def tell_limit(fleet: Fleet, number: signal.Signals) -> None:
    """One worker more, or one fewer, was asked for, and there may be none."""
    wish = "more" if number is signal.SIGTTIN else "fewer"
    _log.warning(
        "workers_limit_reached",
        workers=fleet.wanted,
        todo=f"RECONSUP_WORKERS allows no {wish}: change it and send HUP",
    )


def _next(slot: Slot, now: float) -> str:
    """What becomes of the slot."""
    if slot.state is WorkerState.PARKED:
        return "parked: it is not started again"
    if slot.deadline is None:
        return "stays empty"
    pause = slot.deadline - now
    return f"starts again in {pause:.2f} s" if pause >= PAUSE_SECONDS_MIN else "starts again at once"
