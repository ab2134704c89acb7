"""Clocks of a real program's processes that are wrong: a folder to put first in PYTHONPATH.

Python runs `sitecustomize` before anything else, so the program itself is started as its users start it.
"""

from pathlib import Path

# For everything that Python code can ask. To isinstance nothing changes: C code makes times of the real class.
WALL_CLOCK = """
import datetime, time

OFF_SECONDS = {seconds}
real_time, real_time_ns, Real = time.time, time.time_ns, datetime.datetime
time.time = lambda: real_time() + OFF_SECONDS
time.time_ns = lambda: real_time_ns() + int(OFF_SECONDS * 10**9)

class Kind(type):
    def __instancecheck__(cls, instance):
        return isinstance(instance, Real)

class Wrong(Real, metaclass=Kind):
    @classmethod
    def now(cls, tz=None):
        return Real.fromtimestamp(real_time() + OFF_SECONDS, tz)

    @classmethod
    def utcnow(cls):
        return Real.utcfromtimestamp(real_time() + OFF_SECONDS)

datetime.datetime = Wrong
"""

# As a virtual machine's that was paused: for the children, no time passes while they are stopped.
STANDING_STILL = """
import os, time

def child():
    time.monotonic = time.process_time

os.register_at_fork(after_in_child=child)
"""


def wall_clock_off_by(folder: Path, seconds: float) -> dict[str, str]:
    """The environment of a program all of whose processes see a wrong time of day."""
    return _customized(folder, WALL_CLOCK.format(seconds=seconds))


def monotonic_clock_standing_still(folder: Path) -> dict[str, str]:
    """The environment of a program whose children do not notice for how long they were stopped."""
    return _customized(folder, STANDING_STILL)


def _customized(folder: Path, code: str) -> dict[str, str]:
    place = folder / "sitecustomize"
    place.mkdir()
    (place / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(place)}
