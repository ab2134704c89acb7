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

from reconsup.fleet import journal, plan, stacks
from reconsup.fleet.notify import Facts, Notifier
from reconsup.fleet.plan import Accept, Bury, Command, Finish, Fleet, Limits, Phase, Refuse, Send, Spawn, Terms
from reconsup.fleet.posix import (
    COUNTED,
    MONITOR,
    PROBE,
    Bell,
    Child,
    Lifeline,
    Scoreboard,
    Seat,
    SignalNotes,
    WorkerState,
    adopt_orphans,
    children,
    draw_incarnation,
    fork,
    reap_strangers,
)
from reconsup.fleet.slot import SPARE, Cause
from reconsup.logs import get_logger

LOOK_SECONDS = 5.0  # how often to look at what children say of their memory, and the monitor of the work that waits
AWAY_SECONDS = 1.0  # later than this the loop was not just busy: somebody had stopped it

_SHOWN = tuple(state for state in WorkerState if state is not WorkerState.EMPTY)  # nobody misses who is not wanted
_ORDERLY = frozenset({Cause.CLEAN, Cause.STOP, Cause.RELOAD, Cause.RECYCLE, Cause.SCALE})  # where it was told to leave

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
class Setup:
    """What the settings say: what the children do, how many workers at least and at most, and the plan's limits."""

    roles: Roles
    least: int
    most: int
    limits: Limits = field(default_factory=Limits)


class SetupRefused(Exception):
    """New settings cannot be used as they are: why, a sentence each. Everything stays as it was."""

    def __init__(self, *sentences: str) -> None:
        self.sentences = sentences
        super().__init__("; ".join(sentences))


@dataclass(frozen=True, slots=True)
class Options:
    """What stays as long as the supervisor runs: its name (`base`) and where the metrics' files are."""

    base: str
    version: str
    metrics_directory: Path


def run(setup: Setup, options: Options, reload: Callable[[], Setup]) -> int:
    """Supervise until told to stop, or until there is no point; the exit code. From the main thread, once.

    `reload` reads the settings again, at HUP; it may raise SetupRefused.
    """
    return _Supervisor(setup, options, reload).run()


class _Supervisor:
    def __init__(self, setup: Setup, options: Options, reload: Callable[[], Setup]) -> None:
        self._setups = {0: setup}  # generation → settings; at most the ones in force and those on offer
        self._readings = 0
        self._options = options
        self._reload = reload
        self._board = Scoreboard(options.base)
        self._bell = Bell()
        self._lifeline = Lifeline()
        self._notifier = Notifier()
        self._reloads = 0  # that began, also those that were refused at once
        self._others = children()  # an embedded PostgreSQL: somebody else waits for them
        self._notes = SignalNotes()
        self._children: dict[int, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._notes, selectors.EVENT_READ)
        self._selector.register(self._board.doorbell_fd, selectors.EVENT_READ)
        self._fleet = plan.new(_terms(setup, 0), time.monotonic())
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._load_at = 0.0
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
            self._look_around()
            self._happen(plan.Tick())
            self._tell_systemd()
        self._notes.end()
        _log.info("supervisor_stopped", exit_code=self._exit_code)
        return self._exit_code

    def _open(self) -> None:
        boot_id = secrets.token_hex(8)
        workers = self._fleet.wanted
        self._board.open(
            pid=os.getpid(), boot_id=boot_id, started_at=time.time(), version=self._options.version, slots=workers
        )
        self._board.set_phase(self._fleet.phase)
        adopt_orphans()
        _log.info("supervisor_started", pid=os.getpid(), workers=workers, boot_id=boot_id)
        # the collector would write to every object's header, and so copy the pages that the children share
        gc.collect()
        gc.freeze()

    def _wait(self) -> None:
        """Until something happens or is due. Who was stopped meanwhile (SIGSTOP, a frozen host) has lost that time."""
        began = time.monotonic()
        deadline = plan.next_deadline(self._fleet)
        moments = (deadline, self._look_at, self._notifier.next_at(began))
        due = min(moment for moment in moments if moment is not None)
        pause = max(due - began, 0)
        self._selector.select(pause)
        away = time.monotonic() - began - pause
        if away > AWAY_SECONDS:
            _log.warning("supervisor_was_stopped", seconds=round(away, 1))
            self._happen(plan.Overslept(away + pause))  # nobody knows when in the pause it began

    def _signalled(self, number: signal.Signals) -> None:
        if number is signal.SIGCHLD:  # only a hint to look
            return
        _log.info("signal_received", signal=number.name)
        match number:
            case signal.SIGHUP:
                self._read_settings()
            case signal.SIGUSR2:  # each writes its stacks to stderr and goes on
                for child in self._children.values():
                    child.send(number)
            case _:
                wanted = self._fleet.wanted
                self._happen(plan.Signalled(number))
                if number in COUNTED and self._fleet.wanted == wanted and self._fleet.phase is not Phase.DRAINING:
                    journal.tell_limit(self._fleet, number)

    def _read_settings(self) -> None:
        """All or nothing: what cannot be read, or cannot be changed, changes nothing."""
        if self._fleet.phase is Phase.DRAINING:
            return
        self._reloads += 1
        try:
            setup = self._reload()
        except SetupRefused as refused:
            self._refuse(*refused.sentences)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody's work may end for it
            self._refuse(f"{type(error).__name__}: {error}")
            return
        self._readings += 1
        self._setups[self._readings] = setup
        _log.info("reload_begun", generation=self._readings)
        self._board.set_reload("begun")
        self._happen(plan.Reload(_terms(setup, self._readings)))

    def _refuse(self, *sentences: str) -> None:
        for sentence in sentences:
            _log.error("reload_refused", error=sentence, todo="nothing has changed: correct it and send HUP again")
        self._board.set_reload("refused")

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

    def _look_around(self) -> None:
        """Who seems late may have given a sign of life since; now and then, what has grown, and what waits."""
        now = time.monotonic()
        for number, child in list(self._children.items()):
            slot = self._fleet.slots[number]
            if slot.state is WorkerState.READY and slot.deadline is not None and slot.deadline <= now:
                beat = self._board.read(number).beat
                if beat is not None and slot.ready_at is not None and beat >= slot.ready_at:
                    self._happen(plan.Beat(number, child.pid, beat))
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        for number, child in list(self._children.items()):
            size = self._board.read(number).memory_bytes
            if size is not None:
                self._happen(plan.Grown(number, child.pid, size))
        load = self._board.load()
        if load is not None and load.at > self._load_at:
            self._load_at = load.at
            self._happen(plan.Loaded(load.oldest_due_seconds, load.behind_seconds))

    def _reap(self) -> None:
        """Look at every child: signals of several deaths come as one."""
        for number, child in list(self._children.items()):
            pidfd = child.pidfd
            code = child.reap()
            if code is not None:
                if pidfd is not None:
                    self._selector.unregister(pidfd)
                del self._children[number]
                self._happen(plan.Exited(number, child.pid, code, _chance()))
        known = self._others.union(child.pid for child in self._children.values())
        strangers = reap_strangers(known)
        if strangers:
            _log.info("strangers_reaped", processes=len(strangers))

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
            case Spawn():
                return [self._spawn(command)]
            case Send(number, _, signal_number):
                journal.tell_sent(self._board, command, time.monotonic())
                self._children[number].send(signal_number)
            case Bury():
                self._bury(command)
            case Accept(generation):
                self._setups = {number: setup for number, setup in self._setups.items() if number >= generation}
                _log.info("reload_accepted", generation=generation)
                self._board.set_reload("accepted")
            case Refuse(generation, cause):
                self._setups.pop(generation, None)
                todo = "nothing has changed: correct the settings and send HUP again"
                _log.error("reload_failed", generation=generation, cause=cause, todo=todo)
                self._board.set_reload("failed")
            case Finish(code):
                self._exit_code = code
        return []

    def _spawn(self, spawn: Spawn) -> plan.Event:
        number, roles = spawn.slot, self._setups[spawn.generation].roles
        self._board.clear(number)
        try:
            child = fork(lambda: self._be(number, roles), self._leave_behind, self._board.worker_id(number))
        except OSError as error:
            _log.error("fork_failed", worker_id=self._board.worker_id(number), error=str(error))
            return plan.NotForked(number, _chance())
        self._children[number] = child
        if child.pidfd is not None:
            self._selector.register(child.pidfd, selectors.EVENT_READ)
        return plan.Forked(number, child.pid, _chance())

    def _be(self, number: int, roles: Roles) -> int:
        """The child's life."""
        stacks.open_in(self._options.metrics_directory, number)
        incarnation = draw_incarnation()
        self._board.cell(number).set_incarnation(incarnation)
        role = {MONITOR: roles.monitor, PROBE: roles.probe}.get(number, roles.worker)
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
        if not bury.is_asked or bury.cause in (Cause.RELOAD, Cause.RECYCLE):
            self._board.count(bury.slot, bury.cause)
        if not bury.is_asked or bury.cause not in _ORDERLY:
            self._board.note_crash(bury.slot, bury.pid, bury.code, bury.cause)
        self._bell.ring()  # the monitor looks at once
        written = stacks.take(self._options.metrics_directory, bury.slot)
        journal.tell_left(self._board, bury, self._fleet.slots[bury.slot], incarnation, written, time.monotonic())

    def _show(self, before: Fleet) -> None:
        """Put on the scoreboard, and in the log, what has changed."""
        after = self._fleet
        if before is after:
            return
        for number, slot in after.slots.items():
            known = before.slots.get(number)
            if slot is not known:
                self._board.show(slot)
                journal.tell_change(self._board, known, slot)
        taken = [
            slot.number for slot in after.workers() if slot.number != SPARE and slot.state is not WorkerState.EMPTY
        ]
        self._board.set_seats(max((after.wanted, *(number + 1 for number in taken))), after.wanted)
        if before.phase is not after.phase:
            self._board.set_phase(after.phase)
        news = journal.tell_fleet(before, after)
        if news is not None:
            self._board.set_reload(news)

    def _tell_systemd(self) -> None:
        fleet = self._fleet
        figures = [f"{count} {state}" for state in _SHOWN if (count := fleet.count(state))]
        facts = Facts(
            phase=fleet.phase,
            ready=fleet.count(WorkerState.READY),
            wanted=fleet.wanted,
            figures=", ".join(figures),
            is_healthy=fleet.is_healthy(),
            reloads=self._reloads,
            is_reloading=fleet.is_turning(),
            deadline=fleet.awaited_until(),
        )
        self._notifier.say_state(time.monotonic(), facts)


def _terms(setup: Setup, generation: int) -> Terms:
    return Terms(generation, setup.least, setup.most, setup.limits)


def _chance() -> float:
    return random.random()  # noqa: S311 - jitter
