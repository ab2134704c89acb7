"""What was counted in all files of the folder, added up; each file's bytes are taken once a reading.

Keys are parsed when they are new. From then on a file's bytes are cut by one prepared format, compared with what they
were, and added: with a key parsed each time, a scrape of 64 busy seats took half a second.
"""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import gt
from pathlib import Path
from struct import Struct

from reconsup.monitor.tally import HEAD, VALUE_MAX, Damaged, Series, records_of, series_of, whole


class Reader:
    """The files of one folder, added up. Keys are parsed once; each reading takes each file's bytes once.

    What was counted stays counted: a file that is damaged, gone or begun anew keeps what was last seen in it, so that
    no sum falls while this reader lives.
    """

    def __init__(self, directory: Path, names: Callable[[str], bool], is_ours: Callable[[str, Series], bool]) -> None:
        self._directory = directory
        self._names = names
        self._is_ours = is_ours
        self._files: dict[str, _File] = {}
        self._places: dict[str, dict[bytes, int]] = {}  # a kind of file → what stands in it → place in `series`
        self.series: list[Series] = []
        self._kept: list[float] = []
        self.damaged: dict[str, str] = {}

    def read(self) -> list[float]:
        """How much was counted of each of `series`; `damaged` then says which files cannot be read, and why."""
        damaged = {}
        for name in self._listed():
            file = self._files.setdefault(name, _File())
            try:
                self._refresh(name, file)
            except (OSError, Damaged) as error:
                damaged[name] = str(error)
        self.damaged = damaged
        totals = list(self._kept)
        for file in self._files.values():
            for place, value in zip(file.places, file.values, strict=True):
                totals[place] += value
        return totals

    def _listed(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._directory) if self._names(name))
        except OSError:
            return []

    def _refresh(self, name: str, file: "_File") -> None:
        for attempt in (1, 2):
            fd = os.open(self._directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                self._take_in(name, file, whole(fd))
            except Damaged:
                if attempt == 2:
                    raise
            else:
                return
            finally:
                os.close(fd)

    def _take_in(self, name: str, file: "_File", data: bytes) -> None:
        used, birth = HEAD.unpack_from(data)
        seen = file if file.birth == birth else _File(birth)
        if used < seen.used:
            raise Damaged("it holds less than it held")
        grown = seen
        if used > seen.used:
            raws = [raw for raw, _ in records_of(data, seen.used)]
            grown = seen.with_records(used, raws, self._places_of(name.partition("_")[0], raws))
        found = grown.unpack(data)
        if grown is not file:
            if file.birth not in (None, birth):
                for place, value in zip(file.places, file.values, strict=True):
                    self._kept[place] += value
            self._files[name] = grown
        grown.values = found

    def _places_of(self, kind: str, raws: Sequence[bytes]) -> list[int]:
        """Where their series stand among all of them."""
        known = self._places.setdefault(kind, {})
        for raw in raws:
            if raw not in known:
                series = series_of(raw)
                if not self._is_ours(kind, series):
                    raise Damaged("a series that none of us wrote")
                known[raw] = len(self.series)
                self.series.append(series)
                self._kept.append(0.0)
        return [known[raw] for raw in raws]


class _File:
    """What is known of one file: its records in order, each with the place of its series, and the last values."""

    def __init__(self, birth: int | None = None) -> None:
        self.birth = birth
        self.used = HEAD.size
        self.raws: tuple[bytes, ...] = ()
        self.places: tuple[int, ...] = ()
        self.values: tuple[float, ...] = ()
        self._struct = HEAD

    def with_records(self, used: int, raws: Sequence[bytes], places: Sequence[int]) -> "_File":
        """The same file after it has grown."""
        grown = _File(self.birth)
        grown.used = used
        grown.raws = (*self.raws, *raws)
        grown.places = (*self.places, *places)
        grown.values = (*self.values, *(0.0 for _ in raws))
        grown._struct = _layout(tuple(map(len, grown.raws)))
        return grown

    def unpack(self, data: bytes) -> tuple[float, ...]:
        """The values, once it is certain that all else is as it was and that none fell."""
        if not self.raws:
            return ()
        fields = self._struct.unpack_from(data)
        if fields[0::2] != self.raws:
            raise Damaged("its keys are not what they were")
        values = fields[1::2]
        if any(map(gt, self.values, values)) or not sum(values) <= VALUE_MAX:  # so that NaN is caught too
            raise Damaged("a value fell, or is none that can be counted")
        return values


@lru_cache(maxsize=4096)  # as good as one for each file
def _layout(raw_sizes: tuple[int, ...]) -> Struct:
    """Reads all records of a file in one go: the bytes of length and key, and the value."""
    return Struct(f"={HEAD.size}x" + "".join(f"{size}sd8x" for size in raw_sizes))
