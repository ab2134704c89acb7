"""The supervisor: wait, ask the plan, perform what it says. One thread that forks, signals and keeps time.

It owns nothing that can break: no database, no HTTP, no event loop, no metrics; what can break lives in a child. It
imports nothing of what its children do: their bodies are arguments. Whatever a child does, the loop goes on; a
supervisor that dies takes its children along (parent-death signal and lifeline).
"""

import gc
import os
import random
import secrets
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from reconsup.fleet import plan
from reconsup.fleet.notify import Notifier
from reconsup.fleet.plan import Bury, Command, Finish, Limits, Phase, Send, Spawn
from reconsup.fleet.posix import (
    MONITOR,
    PROBE,
    Bell,
    Child,
    Lifeline,
    Scoreboard,
    Seat,
    SignalNotes,
    WorkerState,
    draw_incarnation,
    fork,
)
from reconsup.fleet.slot import Cause, Slot
from reconsup.logs import get_logger

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Roles:
    """What the children do: each is called in a fresh process and returns its exit code.

    0: clean; 69: a dependency is away; 78: bad configuration; else a crash. `probe` returns 0 when the others may
    start, else the supervisor exits with 69 or 78.
    """

    worker: Callable[[Seat], int]
    monitor: Callable[[Seat], int]
    probe: Callable[[Seat], int]


@dataclass(frozen=True, slots=True)
class Options:
    """How many, under which name (`base`), and the plan's time-outs. The metrics directory is handed on in Seat."""

    base: str
    workers: int
    version: str
    metrics_directory: Path
    limits: Limits = field(default_factory=Limits)


def run(roles: Roles, options: Options) -> int:
    """Supervise until told to stop, or until there is no point; the exit code. From the main thread, once."""
    return _Supervisor(roles, options).run()


class _Supervisor:
    def __init__(self, roles: Roles, options: Options) -> None:
        self._roles = roles
        self._options = options
        self._board = Scoreboard(options.base, options.workers)
        self._bell = Bell()
        self._lifeline = Lifeline()
        self._notifier = Notifier()
        self._notes = SignalNotes()
        self._children: dict[int, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._notes, selectors.EVENT_READ)
        self._selector.register(self._board.doorbell_fd, selectors.EVENT_READ)
        self._fleet = plan.new(options.workers, options.limits, time.monotonic())
        self._exit_code: int | None = None

    def run(self) -> int:
        self._open()
        while self._exit_code is None:
            # readiness before deaths before time: who was ready in time, or has left, is not late
            self._wait()
            for number in self._notes.take():
                self._signalled(number)
            self._listen_to_children()
            self._reap()
            self._happen(plan.Tick())
            self._tell_systemd()
        self._notes.end()
        _log.info("supervisor_stopped", exit_code=self._exit_code)
        return self._exit_code

    def _open(self) -> None:
        boot_id = secrets.token_hex(8)
        self._board.open(
            pid=os.getpid(),
            boot_id=boot_id,
            started_at=time.time(),
            version=self._options.version,
            slots=self._options.workers,
        )
        self._board.set_phase(self._fleet.phase)
        _log.info("supervisor_started", pid=os.getpid(), workers=self._options.workers, boot_id=boot_id)
        # the collector would write to every object's header, and so copy the pages that the children share
        gc.collect()
        gc.freeze()

    def _wait(self) -> None:
        deadline = plan.next_deadline(self._fleet)
        self._selector.select(None if deadline is None else max(deadline - time.monotonic(), 0))

    def _signalled(self, number: signal.Signals) -> None:
        if number is not signal.SIGCHLD:  # that one is only a hint to look
            _log.info("signal_received", signal=number.name)
            self._happen(plan.Signalled(number))

    def _listen_to_children(self) -> None:
        """Take in what the children said of themselves."""
        self._board.silence()
        for number, child in list(self._children.items()):
            known = self._fleet.slots[number].state
            said = self._board.child_state(number)
            if known is WorkerState.BOOTING and said is WorkerState.READY:
                self._happen(plan.Ready(number, child.pid))
            elif known is not said and said is WorkerState.DRAINING:
                self._happen(plan.Leaving(number, child.pid))

    def _reap(self) -> None:
        """Look at every child: signals of several deaths come as one."""
        for number, child in list(self._children.items()):
            pidfd = child.pidfd
            code = child.reap()
            if code is not None:
                if pidfd is not None:
                    self._selector.unregister(pidfd)
                del self._children[number]
                self._happen(plan.Exited(number, child.pid, code, random.random()))  # noqa: S311 - jitter

    def _happen(self, event: plan.Event) -> None:
        """Let the plan take in an event, and what performing its commands brings about."""
        events = deque([event])
        while events:
            before = self._fleet
            self._fleet, commands = plan.step(before, events.popleft(), time.monotonic())
            self._show(before)
            for command in commands:
                events.extend(self._perform(command))

    def _perform(self, command: Command) -> list[plan.Event]:
        match command:
            case Spawn(number):
                return [self._spawn(number)]
            case Send(number, pid, signal_number, cause):
                self._children[number].send(signal_number)
                if cause is not None:
                    _log.warning("killed", worker_id=self._board.worker_id(number), pid=pid, cause=cause)
            case Bury():
                self._bury(command)
            case Finish(code):
                self._exit_code = code
        return []

    def _spawn(self, number: int) -> plan.Event:
        self._board.clear(number)
        try:
            child = fork(lambda: self._be(number), self._leave_behind, self._board.worker_id(number))
        except OSError as error:
            _log.error("fork_failed", worker_id=self._board.worker_id(number), error=str(error))
            return plan.NotForked(number, random.random())  # noqa: S311 - jitter
        self._children[number] = child
        if child.pidfd is not None:
            self._selector.register(child.pidfd, selectors.EVENT_READ)
        return plan.Forked(number, child.pid)

    def _be(self, number: int) -> int:
        """The child's life."""
        incarnation = draw_incarnation()
        self._board.cell(number).set_incarnation(incarnation)
        role = {MONITOR: self._roles.monitor, PROBE: self._roles.probe}.get(number, self._roles.worker)
        return role(
            Seat(
                slot=number,
                base=self._options.base,
                incarnation=incarnation,
                scoreboard=self._board,
                bell=self._bell,
                lifeline_fd=self._lifeline.read_fd,
                metrics_directory=self._options.metrics_directory,
            )
        )

    def _leave_behind(self) -> None:
        """In the child: close what is the supervisor's alone."""
        self._lifeline.close_write_end()
        self._selector.close()
        self._notes.close()
        for sibling in self._children.values():
            sibling.close()

    def _bury(self, bury: Bury) -> None:
        incarnation = self._board.bury(bury.slot, bury.cause)
        if bury.is_unasked:
            self._board.count(bury.slot, bury.cause)
        self._bell.ring()  # the monitor looks at once
        slot = self._fleet.slots[bury.slot]
        is_expected = bury.cause is Cause.CLEAN and not bury.is_unasked
        (_log.info if is_expected else _log.warning)(
            "process_left",
            worker_id=self._board.worker_id(bury.slot),
            pid=bury.pid,
            incarnation=incarnation,
            cause=bury.cause,
            **_told(bury.code),
            next=_next(slot, time.monotonic()),
        )

    def _show(self, before: plan.Fleet) -> None:
        """Put on the scoreboard, and in the log, what has changed."""
        if before is self._fleet:
            return
        for number, slot in self._fleet.slots.items():
            if slot is not before.slots[number]:
                self._board.show(slot)
                self._log_change(before.slots[number], slot)
        if before.phase is not self._fleet.phase:
            self._board.set_phase(self._fleet.phase)
            _log.info("phase", phase=self._fleet.phase)

    def _log_change(self, before: Slot, after: Slot) -> None:
        worker_id = self._board.worker_id(after.number)
        if after.pid is not None and before.pid is None:
            _log.info("process_forked", worker_id=worker_id, pid=after.pid, restarts=after.restarts)
        if after.state is WorkerState.READY and after.started is not None and after.ready_at is not None:
            seconds = round(after.ready_at - after.started, 4)
            _log.info("process_ready", worker_id=worker_id, pid=after.pid, ready_seconds=seconds)

    def _tell_systemd(self) -> None:
        fleet = self._fleet
        figures = [f"{count} {state}" for state in WorkerState if (count := fleet.count(state))]
        news = {"STATUS": f"{fleet.phase}: {', '.join(figures)}"}
        if fleet.count(WorkerState.READY):
            news["READY"] = "1"
        if fleet.phase in (Phase.DRAINING, Phase.DONE):
            news["STOPPING"] = "1"
        self._notifier.say(**news)


def _told(code: int) -> dict[str, object]:
    """An exit code or a signal, as the log tells it."""
    return {"exit_code": code} if code >= 0 else {"signal": signal.Signals(-code).name}


def _next(slot: Slot, now: float) -> str:
    """What becomes of the slot, as the log tells it."""
    if slot.state is WorkerState.PARKED:
        return "parked: it is not started again"
    if slot.deadline is None:
        return "stays empty"
    return f"starts again in {max(slot.deadline - now, 0):.2f} s"
