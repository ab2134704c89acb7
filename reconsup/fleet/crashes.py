"""The last deaths that nobody had asked for, in shared memory: which seat, of what, when, at which row.

For people who look. Nothing waits for it and nothing depends on it: the supervisor writes numbers and one short text at
fixed places, over the oldest ones, and can fail at none of it; it cannot run full. It outlives the monitor. Whose
leases are to be given back is the morgue's, which forgets nobody who was not acknowledged.
"""

import mmap
from dataclasses import dataclass

from reconsup.fleet.shared import Integer, Moment, Text
from reconsup.fleet.slot import Cause, worker_id

CRASHES_KEPT = 32
ROW_BYTES_MAX = 120

_CAUSES = tuple(Cause)

_HEAD_BYTES = 64
_COUNT = Integer("Q", 0)  # the number of the newest entry; the first is 1

_ENTRY_BYTES = 192
_NUMBER = Integer("Q", 0)  # 0 while the entry is being written
_SLOT = Integer("q", 8)
_PID = Integer("q", 16)
_CODE = Integer("q", 24)
_CAUSE = Integer("Q", 32)
_AT = Moment(40)
_AT_MONOTONIC = Moment(48)
_ROW = Text(56, ROW_BYTES_MAX)
assert _ROW.end <= _ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Crash:
    """One death. `code` is the exit code, or minus the signal; `at` is wall clock, `at_monotonic` what its age is told
    by; `row` the id that it noted as being at work (None: none, or unknown).
    """

    slot: int
    worker_id: str
    pid: int
    code: int
    cause: Cause
    at: float
    at_monotonic: float
    row: str | None


class Crashes:
    """A ring of `size` entries: one process notes, others look."""

    def __init__(self, base: str, size: int = CRASHES_KEPT) -> None:
        self._base = base
        self._size = size
        self._memory = mmap.mmap(-1, _HEAD_BYTES + size * _ENTRY_BYTES)

    def note(
        self, slot: int, pid: int, code: int, cause: Cause, row: str | None, *, at: float, at_monotonic: float
    ) -> None:
        """Add a death, over the oldest one. Supervisor only."""
        number = _COUNT.get(self._memory, 0) + 1
        entry = self._entry(number)
        _NUMBER.set(self._memory, entry, 0)
        _SLOT.set(self._memory, entry, slot)
        _PID.set(self._memory, entry, pid)
        _CODE.set(self._memory, entry, code)
        _CAUSE.set(self._memory, entry, _CAUSES.index(cause))
        _AT.set(self._memory, entry, at)
        _AT_MONOTONIC.set(self._memory, entry, at_monotonic)
        _ROW.set(self._memory, entry, row)
        _NUMBER.set(self._memory, entry, number)
        _COUNT.set(self._memory, 0, number)

    def last(self) -> list[Crash]:
        """Those that are kept, the newest first."""
        newest = _COUNT.get(self._memory, 0)
        numbers = range(newest, max(newest - self._size, 0), -1)
        return [crash for number in numbers if (crash := self._read(number)) is not None]

    def _read(self, number: int) -> Crash | None:
        """The entry of that number, which was whole once; None if it was, or is just being, written over."""
        entry = self._entry(number)
        slot = _SLOT.get(self._memory, entry)
        crash = Crash(
            slot=slot,
            worker_id=worker_id(self._base, slot),
            pid=_PID.get(self._memory, entry),
            code=_CODE.get(self._memory, entry),
            cause=_CAUSES[_CAUSE.get(self._memory, entry)],
            at=_AT.get(self._memory, entry) or 0.0,
            at_monotonic=_AT_MONOTONIC.get(self._memory, entry) or 0.0,
            row=_ROW.get(self._memory, entry),
        )
        return crash if _NUMBER.get(self._memory, entry) == number else None

    def _entry(self, number: int) -> int:
        return _HEAD_BYTES + number % self._size * _ENTRY_BYTES
