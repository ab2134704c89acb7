"""Fields in shared memory: numbers and short texts at fixed places, each with one writer and any number of readers.

There is no lock, because a process that is killed would take it along. A number is written in one piece. A text has
a counter that is odd while the text changes; a reader who finds it torn reads again, a bounded number of times, and
then takes the text as unknown: its writer died writing it.
"""

import mmap
from struct import Struct

READS_MAX = 64  # a writer needs a microsecond


class Integer:
    """An integer at a fixed place in its record."""

    def __init__(self, code: str, offset: int) -> None:
        self._struct = Struct(code)
        self._offset = offset
        assert offset % self._struct.size == 0, "not aligned: it would be written in two pieces"

    def get(self, memory: mmap.mmap, record: int) -> int:
        """Its value."""
        value: int = self._struct.unpack_from(memory, record + self._offset)[0]
        return value

    def set(self, memory: mmap.mmap, record: int, value: int) -> None:
        """Write it."""
        self._struct.pack_into(memory, record + self._offset, value)

    def add(self, memory: mmap.mmap, record: int, value: int = 1) -> int:
        """Raise it; only its one writer may. The new value."""
        raised = self.get(memory, record) + value
        self.set(memory, record, raised)
        return raised


class Moment:
    """Seconds of a clock at a fixed place in its record; None until written."""

    def __init__(self, offset: int) -> None:
        self._struct = Struct("d")
        self._offset = offset
        assert offset % self._struct.size == 0, "not aligned: it would be written in two pieces"

    def get(self, memory: mmap.mmap, record: int) -> float | None:
        """Its value."""
        value: float = self._struct.unpack_from(memory, record + self._offset)[0]
        return value or None

    def set(self, memory: mmap.mmap, record: int, value: float | None) -> None:
        """Write it."""
        self._struct.pack_into(memory, record + self._offset, value or 0.0)


class Text:
    """UTF-8 of bounded length: a counter, the length, the bytes."""

    def __init__(self, offset: int, bytes_max: int) -> None:
        self._seq = Integer("I", offset)
        self._struct = Struct(f"H{bytes_max}s")
        self._offset = offset + 4
        self.bytes_max = bytes_max
        self.end = self._offset + self._struct.size

    def get(self, memory: mmap.mmap, record: int) -> str | None:
        """What was written last; None if that was nothing, or cannot be told."""
        for _ in range(READS_MAX):
            before = self._seq.get(memory, record)
            length, data = self._struct.unpack_from(memory, record + self._offset)
            if before % 2 == 0 and before == self._seq.get(memory, record):
                return str(data[:length], "utf-8", "replace") if length else None
        return None

    def set(self, memory: mmap.mmap, record: int, text: str | None) -> None:
        """Write `text`. None, and what is too long to be told whole, becomes unknown."""
        data = (text or "").encode("utf-8", errors="replace")
        if len(data) > self.bytes_max:
            data = b""
        odd = self._seq.get(memory, record) | 1  # it is odd already if the last writer was killed in here
        self._seq.set(memory, record, odd)
        self._struct.pack_into(memory, record + self._offset, len(data), data)
        self._seq.set(memory, record, (odd + 1) % 2**32)
