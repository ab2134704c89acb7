"""The morgue: the dead whose leases wait to be given back, in shared memory.

The supervisor lays them in when it reaps them, the monitor acknowledges them when their leases are free. It survives
the monitor: a new one starts with what is left. Laying in never waits: when nobody has acknowledged for a whole
round, the oldest is overwritten and counted; its leases then end by themselves.
"""

import mmap
from dataclasses import dataclass

from reconsup.fleet.shared import Integer, Text
from reconsup.fleet.slot import Cause, worker_id

MORGUE_SIZE = 1024
INCARNATION_BYTES = 16
CAUSE_BYTES_MAX = 24
ROW_BYTES_MAX = 120

_INNOCENT = frozenset(
    {
        Cause.CLEAN,
        Cause.DEPENDENCY,
        Cause.CONFIG,
        Cause.DRAIN,
        Cause.STOP,
        Cause.RELOAD,
        Cause.RECYCLE,
        Cause.SCALE,
    }
)

_HEAD_BYTES = 64
_BURIED = Integer("Q", 0)  # number of the newest entry; the first is 1. Written by the supervisor
_OVERWRITTEN = Integer("Q", 8)
_SETTLED = Integer("Q", 16)  # all entries up to this number are acknowledged. Written by the monitor

_ENTRY_BYTES = 256
_INDEX = Integer("Q", 0)  # 0 while the entry is being written
_SLOT = Integer("q", 8)
_INCARNATION = Text(16, INCARNATION_BYTES)
_CAUSE = Text(40, CAUSE_BYTES_MAX)
_ROW = Text(72, ROW_BYTES_MAX)
_ACKNOWLEDGED = Integer("Q", 248)  # the index that was acknowledged last in this place. Written by the monitor


@dataclass(frozen=True, slots=True)
class Death:
    """One dead incarnation. `cause` is a `Cause`; `row` the id it noted as being at work (None: unknown)."""

    index: int
    slot: int
    worker_id: str
    incarnation: str
    cause: str
    row: str | None

    @property
    def owner(self) -> str:
        """The owner of its leases."""
        return f"{self.worker_id}#{self.incarnation}"

    @property
    def is_charged(self) -> bool:
        """Whether what it worked on may have killed it. Not if it left by itself, or because it was told to stop."""
        return self.cause not in _INNOCENT


class Morgue:
    """A ring of `size` entries; one process lays in, one other looks and acknowledges."""

    def __init__(self, base: str, size: int = MORGUE_SIZE) -> None:
        self._base = base
        self._size = size
        self._memory = mmap.mmap(-1, _HEAD_BYTES + size * _ENTRY_BYTES)

    @property
    def overwritten(self) -> int:
        """How many deaths were forgotten unacknowledged."""
        return _OVERWRITTEN.get(self._memory, 0)

    def lay_in(self, slot: int, incarnation: str, cause: Cause, row: str | None) -> None:
        """Add a death. Supervisor only."""
        index = _BURIED.get(self._memory, 0) + 1
        entry = self._entry(index)
        old = _INDEX.get(self._memory, entry)
        if old and _ACKNOWLEDGED.get(self._memory, entry) != old:
            _OVERWRITTEN.add(self._memory, 0)
        _INDEX.set(self._memory, entry, 0)
        _SLOT.set(self._memory, entry, slot)
        _INCARNATION.set(self._memory, entry, incarnation)
        _CAUSE.set(self._memory, entry, cause)
        _ROW.set(self._memory, entry, row)
        _INDEX.set(self._memory, entry, index)
        _BURIED.set(self._memory, 0, index)

    def dead(self) -> list[Death]:
        """Who was not acknowledged yet, oldest first."""
        newest = _BURIED.get(self._memory, 0)
        first = max(_SETTLED.get(self._memory, 0), newest - self._size) + 1
        return [death for index in range(first, newest + 1) if (death := self._read(index)) is not None]

    def acknowledge(self, index: int) -> None:
        """Cross out one death. Monitor only. One that was overwritten meanwhile stays overwritten."""
        entry = self._entry(index)
        if _INDEX.get(self._memory, entry) == index:
            # the index itself, not a flag: should a newer death come in between, it is not crossed out with it
            _ACKNOWLEDGED.set(self._memory, entry, index)
        settled = _SETTLED.get(self._memory, 0)
        while settled < _BURIED.get(self._memory, 0) and self._read(settled + 1) is None:
            settled += 1
        _SETTLED.set(self._memory, 0, settled)

    def _read(self, index: int) -> Death | None:
        """The death of that number; None if it was acknowledged or overwritten."""
        entry = self._entry(index)
        if _ACKNOWLEDGED.get(self._memory, entry) == index or _INDEX.get(self._memory, entry) != index:
            return None
        slot = _SLOT.get(self._memory, entry)
        death = Death(
            index=index,
            slot=slot,
            worker_id=worker_id(self._base, slot),
            incarnation=_INCARNATION.get(self._memory, entry) or "",
            cause=_CAUSE.get(self._memory, entry) or "",
            row=_ROW.get(self._memory, entry),
        )
        return death if _INDEX.get(self._memory, entry) == index else None

    def _entry(self, index: int) -> int:
        return _HEAD_BYTES + index % self._size * _ENTRY_BYTES
