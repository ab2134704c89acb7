"""The files that processes count in: one a kind of metric and seat, written by whoever sits there, read by the monitor.

The layout is that of prometheus_client's multiprocess mode: its collector reads these files too, and the tests hold
it against ours. Writer and reader are our own, because with the library's a full tmpfs, or a file that somebody cut,
kills the process at its next count (SIGBUS), and one damaged file costs the whole page. Here all space is taken from
the system before it is mapped, and counting never fails: what cannot be written waits in memory.

A value is one store of eight aligned bytes into mapped memory. pwrite(2) will not do: its copies were seen torn.
"""

import errno
import fcntl
import json
import mmap
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from struct import Struct
from struct import error as StructError  # noqa: N812 - an exception's name

from reconsup import logs

STEP_BYTES = 16 * 1024  # a file grows by so much
FILE_BYTES_MAX = 16 * 1024 * 1024
VALUE_MAX = 2.0**53  # above it adding 1 changes nothing: no such count exists
RETRY_SECONDS = 1.0

HEAD = Struct("=ii")  # how much is used, this included; what tells the file from its successor (the library: padding)
_LENGTH = Struct("=i")
_VALUE = Struct("=dd")  # the second is the library's, always 0
_NOT_A_FILE = (errno.ELOOP, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV)

log = logs.get_logger()


class Damaged(ValueError):
    """The file does not hold what such a file holds."""


@dataclass(frozen=True, slots=True)
class Series:
    """What one record counts: the sample of a metric. The labels are sorted by name."""

    metric: str
    sample: str
    labels: tuple[tuple[str, str], ...]


class Cell:
    """A number that only grows; `place` is None while it is only in memory."""

    __slots__ = ("place", "raw", "value")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.value = 0.0
        self.place: int | None = None


class Tally:
    """One file, for the one process that counts in it. No operating error leaves this class: it is told once.

    `is_ours` says whether a series can stand in this file; a file that holds another, or is damaged, is set aside, and
    a new one begins at zero. There is one set aside at most. Not for several threads.
    """

    def __init__(self, path: Path, is_ours: Callable[[Series], bool]) -> None:
        self._path = path
        self._is_ours = is_ours
        self._cells: dict[bytes, Cell] = {}
        self._fd: int | None = None
        self._memory: mmap.mmap | None = None
        self._values: memoryview[float] | None = None
        self._capacity = 0
        self._used = 0
        self._again_at = 0.0
        self._is_told = False
        self._try_to_catch_up()

    def cells(self, all_series: Sequence[Series]) -> list[Cell]:
        """The cells of these series; what is new appears in the file together, with 0."""
        found = [self._cells.setdefault(raw, Cell(raw)) for raw in map(_raw, all_series)]
        if any(cell.place is None for cell in found):
            self._try_to_catch_up()
        return found

    def add(self, cell: Cell, amount: float) -> None:
        """Count."""
        assert amount >= 0, "a counter only grows"
        if self._fd is not None and self._is_lost(self._fd):
            self._forget()
        cell.value += amount
        if cell.place is None:
            self._try_to_catch_up()
        elif self._values is not None:
            self._values[cell.place // 8] = cell.value

    def close(self) -> None:
        """Leave the file to another process. Who is killed need not."""
        if self._values is not None:
            self._values.release()
        if self._memory is not None:
            self._memory.close()
        if self._fd is not None:
            os.close(self._fd)
        self._fd = self._memory = self._values = None

    def _is_lost(self, fd: int) -> bool:
        """Whether somebody cut the file, or removed it: a store into what is gone would kill this process."""
        found = os.fstat(fd)
        return found.st_size < self._capacity or found.st_nlink == 0

    def _forget(self) -> None:
        """Begin at 0 in a new file: the monitor remembers what it saw in this one."""
        self._fail(OSError(errno.EIO, "somebody cut or removed the file"))
        self._again_at = 0.0
        self.close()
        for cell in self._cells.values():
            cell.value, cell.place = 0.0, None

    def _try_to_catch_up(self) -> None:
        """Put into the file what is only in memory, unless that failed just now."""
        if time.monotonic() < self._again_at:
            return
        try:
            if self._fd is None:
                self._open()
            self._append([cell for cell in self._cells.values() if cell.place is None])
        except OSError as error:
            self._fail(error)
            return
        if self._is_told:
            log.info("metrics_written_again", file=self._path.name)
        self._is_told = False

    def _fail(self, error: OSError) -> None:
        self._again_at = time.monotonic() + RETRY_SECONDS
        if not self._is_told:
            log.warning(
                "metrics_not_written",
                file=self._path.name,
                error=str(error),
                todo="work goes on and counts are kept in memory: see that the metrics folder is there and has space",
            )
        self._is_told = True

    def _open(self) -> None:
        """Go on where the last process in this seat was killed, or begin a file."""
        fd = self._descriptor()
        if fd is not None:
            try:
                _hold(fd)
                records = self._read(fd)
                self._map(fd, os.fstat(fd).st_size)
            except Damaged:
                os.close(fd)
                _set_aside(self._path)
                fd = None
            except BaseException:
                os.close(fd)
                raise
        if fd is None:
            fd, records, self._used = _begin(self._path), {}, HEAD.size
            try:
                self._map(fd, STEP_BYTES)
            except BaseException:
                os.close(fd)
                raise
        self._fd = fd
        assert self._values is not None
        for raw, (place, value) in records.items():
            cell = self._cells.setdefault(raw, Cell(raw))
            cell.value, cell.place = cell.value + value, place
            self._values[place // 8] = cell.value

    def _descriptor(self) -> int | None:
        """The file that is there; None: there is none now."""
        try:
            return os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _NOT_A_FILE:
                raise
            _set_aside(self._path)
            return None

    def _read(self, fd: int) -> Mapping[bytes, tuple[int, float]]:
        """What the file holds: where and how much."""
        data = whole(fd)
        found = {}
        for raw, place in records_of(data, HEAD.size):
            value, _ = _VALUE.unpack_from(data, place)
            if not 0 <= value <= VALUE_MAX or not self._is_ours(series_of(raw)):
                raise Damaged("a value or a series that none of us wrote")
            found[raw] = (place, value)
        self._used = HEAD.unpack_from(data)[0]
        return found

    def _append(self, cells: Sequence[Cell]) -> None:
        """Write new records behind the others; then, in one store, say that they are there."""
        assert self._fd is not None
        if not cells:
            return
        places, data = [], b""
        for cell in cells:
            places.append(self._used + len(data) + len(cell.raw))
            data += cell.raw + _VALUE.pack(cell.value, 0.0)
        end = self._used + len(data)
        if end > self._capacity:
            self._map(self._fd, -(-end // STEP_BYTES) * STEP_BYTES)
        assert self._memory is not None
        self._memory[self._used : end] = data
        self._memory[: _LENGTH.size] = _LENGTH.pack(end)
        self._used = end
        for cell, place in zip(cells, places, strict=True):
            cell.place = place

    def _map(self, fd: int, capacity: int) -> None:
        """Map so much of the file, once the system has really given it."""
        if capacity > FILE_BYTES_MAX:
            raise OSError(errno.EFBIG, "more series than one process may count")
        os.posix_fallocate(fd, 0, capacity)
        memory = mmap.mmap(fd, capacity)
        if self._values is not None:
            self._values.release()
        if self._memory is not None:
            self._memory.close()
        self._memory, self._capacity = memory, capacity
        self._values = memoryview(memory)[: capacity // 8 * 8].cast("d")


def whole(fd: int) -> bytes:
    """All that the file says it uses; OSError or Damaged."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise Damaged("not a file")
    if not HEAD.size <= found.st_size <= FILE_BYTES_MAX:
        raise Damaged(f"it has {found.st_size} bytes")
    data = os.pread(fd, found.st_size, 0)
    used = HEAD.unpack_from(data)[0] if len(data) >= HEAD.size else 0
    if len(data) < used <= FILE_BYTES_MAX:
        data = os.pread(fd, used, 0)  # it has just grown
    if not HEAD.size <= used <= len(data):
        raise Damaged("it says that it uses more or less than it has")
    return data[:used]


def records_of(data: bytes, start: int) -> Iterator[tuple[bytes, int]]:
    """The records from `start` on: all of each that never changes, and where its value is; Damaged at nonsense."""
    place, size = start, len(data)
    try:
        while place < size:
            (length,) = _LENGTH.unpack_from(data, place)
            end = place + length + 12 - (length + 4) % 8  # as `_raw_bytes`; this is what a first scrape's time goes to
            if length < 0 or end + 16 > size:
                raise Damaged("a record is longer than the file")
            yield data[place:end], end
            place = end + 16
    except StructError as error:
        raise Damaged("a record is cut") from error


def _raw_bytes(key_bytes: int) -> int:
    """Length and key, filled up as the library does it, so that the value is aligned."""
    return 4 + key_bytes + (8 - (key_bytes + 4) % 8)


@cache  # the table bounds it
def _raw(series: Series) -> bytes:
    key = json.dumps([series.metric, series.sample, dict(series.labels), ""], sort_keys=True).encode()
    return (_LENGTH.pack(len(key)) + key).ljust(_raw_bytes(len(key)))


def series_of(raw: bytes) -> Series:
    """What a record counts; Damaged if its key is nonsense."""
    (length,) = _LENGTH.unpack_from(raw)
    try:
        metric, sample, labels, _ = json.loads(raw[4 : 4 + length].decode())
        series = Series(metric, sample, tuple(sorted(labels.items())))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged("a key is not one of ours") from error
    if not all(isinstance(each, str) for each in (metric, sample, *(each for pair in series.labels for each in pair))):
        raise Damaged("a key is not one of ours")
    return series


def _hold(fd: int) -> None:
    """Keep everybody else from counting in this file for as long as this process lives."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(errno.EBUSY, "another process counts in this seat: a bug, please report it") from error


def _begin(path: Path) -> int:
    """A new file, which appears under its name when it is one."""
    new = path.with_suffix(".new")
    _remove(new)
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _hold(fd)
        os.posix_fallocate(fd, 0, STEP_BYTES)
        os.pwrite(fd, HEAD.pack(HEAD.size, secrets.randbelow(2**31)), 0)
        new.rename(path)
    except BaseException:
        os.close(fd)
        new.unlink(missing_ok=True)
        raise
    return fd


def _set_aside(path: Path) -> None:
    """Keep what was found, for somebody to look at, in place of what was found before."""
    aside = path.with_suffix(".db.damaged")
    _remove(aside)
    path.rename(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
