"""The scoreboard: shared memory in which supervisor, workers and monitor tell each other how things are.

Made before the first fork. It holds the supervisor's facts, a cell a slot, the morgue and the last crashes. In a cell,
the supervisor and the process in the slot write different fields, never the same one. Nothing here blocks, logs or
fails, and nobody waits for anybody: a process that was killed while it wrote leaves at most one unknown text.
"""

import mmap
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from struct import Struct

from reconsup.fleet.crashes import Crash, Crashes
from reconsup.fleet.morgue import INCARNATION_BYTES, ROW_BYTES_MAX, Death, Morgue
from reconsup.fleet.shared import Integer, Moment, Text
from reconsup.fleet.slot import LIVE, PROBE, SPARE, Cause, Slot, WorkerState, worker_id

_STATES = tuple(WorkerState)
_CAUSES = tuple(Cause)
LOOP_BYTES_MAX = 48

# The supervisor's record, at the start.
_HEAD_BYTES = 256
_HEAD = 0
_SUPERVISOR_PID = Integer("q", 0)
_SUPERVISOR_STARTED_AT = Moment(8)
_SUPERVISOR_SLOTS = Integer("q", 16)
_SUPERVISOR_BOOT_ID = Text(24, INCARNATION_BYTES)
_SUPERVISOR_PHASE = Text(56, 16)
_SUPERVISOR_VERSION = Text(88, 64)
_SUPERVISOR_WANTED = Integer("q", 160)
_SUPERVISOR_RELOAD = Text(216, 32)
# … and what the monitor says of the work that waits.
_OLDEST_DUE = Moment(192)
_BEHIND = Moment(200)
_LOAD_AT = Moment(208)  # written last

# A cell: first what the supervisor writes…
_CELL_BYTES = 448
_PID = Integer("q", 0)
_SLOT_STATE = Integer("B", 8)
_RESTARTS = Integer("Q", 16)
_STARTED = Moment(24)
_CAUSE_COUNTS = {cause: Integer("Q", 32 + 8 * place) for place, cause in enumerate(_CAUSES)}
_ALL_COUNTS = Struct(f"{len(_CAUSES)}Q")
# … then, in cache lines of their own, what the process in the slot writes.
_CHILD_STATE = Integer("B", 192)
_LEASES = Integer("Q", 200)
_READY_AT = Moment(208)
_BEAT = Moment(216)
_LAST_CYCLE = Moment(224)
_INCARNATION = Text(232, INCARNATION_BYTES)
_ROW = Text(256, ROW_BYTES_MAX)
_MEMORY = Integer("Q", 384)
_LOOP = Text(392, LOOP_BYTES_MAX)
assert 32 + 8 * len(_CAUSES) <= 192
assert _ROW.end <= 384
assert _LOOP.end <= _CELL_BYTES


@dataclass(frozen=True, slots=True)
class CellView:
    """One slot at one moment. `pid` and `incarnation` are None while nobody sits in it.

    `started` (the fork), `ready_at` and `beat` are seconds of the monotonic clock, which is the same in all
    processes; `last_cycle` is wall clock. `causes` counts why processes left that should have stayed. `loop` is the
    work loop of which nothing was heard for longest, `memory_bytes` what it has resident (None: not told yet).
    """

    slot: int
    worker_id: str
    incarnation: str | None
    pid: int | None
    state: WorkerState
    restarts: int
    causes: Mapping[Cause, int]
    started: float | None
    ready_at: float | None
    beat: float | None
    leases: int
    row: str | None
    last_cycle: float | None
    loop: str | None = None
    memory_bytes: int | None = None

    @property
    def ready_seconds(self) -> float | None:
        """From the fork until it was ready."""
        return None if self.ready_at is None or self.started is None else self.ready_at - self.started


@dataclass(frozen=True, slots=True)
class SupervisorView:
    """The supervisor above this fleet. `started_at` is wall clock; `phase` probing, running, draining or done; `slots`
    the seats there are, `wanted` how many workers there are to be; `reload` what became of the last new settings.
    """

    pid: int
    boot_id: str
    started_at: float
    version: str
    phase: str
    slots: int
    wanted: int = 0
    reload: str | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """The work that waits, as the monitor saw it at monotonic `at`: how long the oldest due request has been waiting,
    and how old the last block read is of the network that is furthest behind its head (0: none is behind).
    """

    oldest_due_seconds: float
    behind_seconds: float
    at: float


class Cell:
    """A slot's cell, for the process that sits in it. Every write is one store; call them as often as you like."""

    def __init__(self, memory: mmap.mmap, record: int, doorbell_fd: int) -> None:
        self._memory = memory
        self._record = record
        self._doorbell_fd = doorbell_fd

    def set_incarnation(self, incarnation: str) -> None:
        """Who sits here now: 16 hex digits. The first thing after the fork."""
        _INCARNATION.set(self._memory, self._record, incarnation)

    def set_state(self, state: WorkerState) -> None:
        """Tell the supervisor: READY (needed before the boot deadline) or DRAINING."""
        if state is WorkerState.READY:
            _READY_AT.set(self._memory, self._record, time.monotonic())
        _CHILD_STATE.set(self._memory, self._record, _STATES.index(state))
        with suppress(BlockingIOError):  # it is rung already
            os.eventfd_write(self._doorbell_fd, 1)

    def beat(self, now: float, loop: str | None = None) -> None:
        """Say that all work loops go round; `now` (monotonic) is when the one of which nothing was heard for longest,
        `loop`, gave its last sign of life.
        """
        _LOOP.set(self._memory, self._record, loop)
        _BEAT.set(self._memory, self._record, now)

    def set_memory(self, size_bytes: int) -> None:
        """How much it has resident."""
        _MEMORY.set(self._memory, self._record, size_bytes)

    def set_leases(self, count: int) -> None:
        """How many leases it holds."""
        _LEASES.set(self._memory, self._record, count)

    def set_row(self, id_: str | None) -> None:
        """Which row is at work, so that a death can be laid to its charge; None: none."""
        _ROW.set(self._memory, self._record, id_)

    def set_last_cycle(self, at: float) -> None:
        """When a cycle ended last, wall clock. It outlives a restart."""
        _LAST_CYCLE.set(self._memory, self._record, at)


class Scoreboard:
    """The mapping: a cell for every worker there can be, the spare one, MONITOR and PROBE."""

    def __init__(self, base: str) -> None:
        self.base = base
        # pages that nobody writes to take no memory
        self._memory = mmap.mmap(-1, _HEAD_BYTES + (SPARE + 1 - PROBE) * _CELL_BYTES)
        self._morgue = Morgue(base)
        self._crashes = Crashes(base)
        self.doorbell_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    # for everybody

    def worker_id(self, slot: int) -> str:
        """`BASE-SLOT`; for others `BASE-monitor`, `BASE-probe`, `BASE-spare`."""
        return worker_id(self.base, slot)

    def supervisor(self) -> SupervisorView:
        """The supervisor's facts."""
        return SupervisorView(
            pid=_SUPERVISOR_PID.get(self._memory, _HEAD),
            boot_id=_SUPERVISOR_BOOT_ID.get(self._memory, _HEAD) or "",
            started_at=_SUPERVISOR_STARTED_AT.get(self._memory, _HEAD) or 0.0,
            version=_SUPERVISOR_VERSION.get(self._memory, _HEAD) or "",
            phase=_SUPERVISOR_PHASE.get(self._memory, _HEAD) or "",
            slots=_SUPERVISOR_SLOTS.get(self._memory, _HEAD),
            wanted=_SUPERVISOR_WANTED.get(self._memory, _HEAD),
            reload=_SUPERVISOR_RELOAD.get(self._memory, _HEAD),
        )

    def slots(self) -> list[int]:
        """The workers' slot numbers; the spare seat's while somebody sits there."""
        seats = list(range(_SUPERVISOR_SLOTS.get(self._memory, _HEAD)))
        is_spare_taken = _STATES[_SLOT_STATE.get(self._memory, self._record(SPARE))] is not WorkerState.EMPTY
        return [*seats, SPARE] if is_spare_taken else seats

    def read(self, slot: int) -> CellView:
        """One slot at this moment."""
        cell = self._record(slot)
        state = _STATES[_SLOT_STATE.get(self._memory, cell)]
        is_live = state in LIVE
        if is_live and state is not WorkerState.DRAINING:
            state = self.child_state(slot)  # newer than what the supervisor has noticed
        return CellView(
            slot=slot,
            worker_id=self.worker_id(slot),
            incarnation=_INCARNATION.get(self._memory, cell) if is_live else None,
            pid=_PID.get(self._memory, cell) if is_live else None,
            state=state,
            restarts=_RESTARTS.get(self._memory, cell),
            causes={cause: count.get(self._memory, cell) for cause, count in _CAUSE_COUNTS.items()},
            started=_STARTED.get(self._memory, cell),
            ready_at=_READY_AT.get(self._memory, cell),
            beat=_BEAT.get(self._memory, cell),
            leases=_LEASES.get(self._memory, cell) if is_live else 0,
            row=_ROW.get(self._memory, cell),
            last_cycle=_LAST_CYCLE.get(self._memory, cell),
            loop=_LOOP.get(self._memory, cell) if is_live else None,
            memory_bytes=(_MEMORY.get(self._memory, cell) or None) if is_live else None,
        )

    def unasked(self) -> dict[tuple[int, Cause], int]:
        """How many processes left each worker's seat though nobody had told them to, by cause; also of seats that
        are no longer used.
        """
        return {
            (slot, cause): count
            for slot in range(SPARE + 1)
            for cause, count in zip(
                _CAUSES, _ALL_COUNTS.unpack_from(self._memory, self._record(slot) + 32), strict=True
            )
            if count
        }

    def crashes(self) -> list[Crash]:
        """The last processes that left though nobody had told them to, the newest first."""
        return self._crashes.last()

    def load(self) -> Load | None:
        """What the monitor said last of the work that waits; None: nothing yet."""
        at = _LOAD_AT.get(self._memory, _HEAD)
        if at is None:
            return None
        return Load(_OLDEST_DUE.get(self._memory, _HEAD) or 0.0, _BEHIND.get(self._memory, _HEAD) or 0.0, at)

    # for the process in a slot, and for the monitor

    def cell(self, slot: int) -> Cell:
        """The cell to write to, for the process in `slot`."""
        return Cell(self._memory, self._record(slot), self.doorbell_fd)

    def set_load(self, load: Load) -> None:
        """Say how much work waits. Monitor only."""
        _OLDEST_DUE.set(self._memory, _HEAD, load.oldest_due_seconds)
        _BEHIND.set(self._memory, _HEAD, load.behind_seconds)
        _LOAD_AT.set(self._memory, _HEAD, load.at)

    def dead(self) -> list[Death]:
        """The dead workers whose leases nobody has given back yet, oldest first."""
        return self._morgue.dead()

    def acknowledge(self, index: int) -> None:
        """Their leases are given back: cross them out."""
        self._morgue.acknowledge(index)

    @property
    def deaths_overwritten(self) -> int:
        """How many deaths had to be forgotten because nobody acknowledged any for a long time."""
        return self._morgue.overwritten

    # for the supervisor

    def open(self, *, pid: int, boot_id: str, started_at: float, version: str, slots: int) -> None:
        """Write the supervisor's facts."""
        _SUPERVISOR_PID.set(self._memory, _HEAD, pid)
        _SUPERVISOR_BOOT_ID.set(self._memory, _HEAD, boot_id)
        _SUPERVISOR_STARTED_AT.set(self._memory, _HEAD, started_at)
        _SUPERVISOR_VERSION.set(self._memory, _HEAD, version)
        self.set_seats(slots, slots)

    def set_seats(self, slots: int, wanted: int) -> None:
        """How many seats there are, and how many workers there are to be."""
        _SUPERVISOR_SLOTS.set(self._memory, _HEAD, slots)
        _SUPERVISOR_WANTED.set(self._memory, _HEAD, wanted)

    def set_reload(self, news: str) -> None:
        """What becomes, or became, of new settings: one word."""
        _SUPERVISOR_RELOAD.set(self._memory, _HEAD, news)

    def set_phase(self, phase: str) -> None:
        """What the fleet as a whole does."""
        _SUPERVISOR_PHASE.set(self._memory, _HEAD, phase)

    def show(self, slot: Slot) -> None:
        """Write the supervisor's half of a cell."""
        cell = self._record(slot.number)
        _PID.set(self._memory, cell, slot.pid or 0)
        _RESTARTS.set(self._memory, cell, slot.restarts)
        _STARTED.set(self._memory, cell, slot.started)
        _SLOT_STATE.set(self._memory, cell, _STATES.index(slot.state))

    def count(self, slot: int, cause: Cause) -> None:
        """Count one process that left `slot` though nobody had told it to."""
        _CAUSE_COUNTS[cause].add(self._memory, self._record(slot))

    def note_crash(self, slot: int, pid: int, code: int, cause: Cause) -> None:
        """Note for people who look that the process that was reaped from `slot` left though nobody had told it to."""
        row = _ROW.get(self._memory, self._record(slot))
        self._crashes.note(slot, pid, code, cause, row, at=time.time(), at_monotonic=time.monotonic())

    def clear(self, slot: int) -> None:
        """Wipe what the last process in `slot` wrote, before the next one is forked.

        Not its last beat and cycle: a slot whose workers die before they get anywhere must be seen to age.
        """
        cell = self._record(slot)
        _CHILD_STATE.set(self._memory, cell, _STATES.index(WorkerState.BOOTING))
        _LEASES.set(self._memory, cell, 0)
        _READY_AT.set(self._memory, cell, None)
        _MEMORY.set(self._memory, cell, 0)
        _LOOP.set(self._memory, cell, None)
        _INCARNATION.set(self._memory, cell, None)
        _ROW.set(self._memory, cell, None)

    def child_state(self, slot: int) -> WorkerState:
        """What the process in `slot` said of itself."""
        return _STATES[_CHILD_STATE.get(self._memory, self._record(slot))]

    def bury(self, slot: int, cause: Cause) -> str | None:
        """Lay the process that was reaped from `slot` into the morgue; its incarnation.

        Nothing to bury is who left cleanly with nothing in hand, a helper, and who died before it had an
        incarnation (None): they hold no lease.
        """
        cell = self._record(slot)
        incarnation = _INCARNATION.get(self._memory, cell)
        left_nothing = cause is Cause.CLEAN and _LEASES.get(self._memory, cell) == 0
        if incarnation is not None and slot >= 0 and not left_nothing:
            self._morgue.lay_in(slot, incarnation, cause, _ROW.get(self._memory, cell))
        return incarnation

    def silence(self) -> None:
        """Take note that the doorbell was rung: then look at every `child_state`."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.doorbell_fd)

    def _record(self, slot: int) -> int:
        assert PROBE <= slot <= SPARE
        return _HEAD_BYTES + (slot - PROBE) * _CELL_BYTES
