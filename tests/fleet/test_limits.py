"""What the kernel is told about a child."""

import resource
from pathlib import Path

import pytest

from reconsup.fleet import limits
from reconsup.fleet.posix import fork
from tests.fleet.test_posix import alone, end_of, nothing

MEBIBYTE = 2**20


def in_a_child() -> None:
    inherited = int(limits.OOM_SCORE.read_text())

    def worker() -> int:
        limits.apply(oom_raise=limits.WORKER_OOM_RAISE, memory_max_mb=300)
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        assert resource.getrlimit(resource.RLIMIT_DATA) == (300 * MEBIBYTE, 300 * MEBIBYTE)
        assert int(limits.OOM_SCORE.read_text()) == min(1000, inherited + 500)
        try:
            bytes(400 * MEBIBYTE)
        except MemoryError:
            return 0
        return 1

    def monitor() -> int:
        limits.apply(oom_raise=limits.MONITOR_OOM_RAISE)
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
        assert int(limits.OOM_SCORE.read_text()) == min(1000, inherited + 250)
        return 0

    def twice() -> int:
        """Also where a stricter limit is there already: it stays."""
        resource.setrlimit(resource.RLIMIT_DATA, (300 * MEBIBYTE, resource.RLIM_INFINITY))
        limits.apply(oom_raise=900)
        limits.apply(oom_raise=900, memory_max_mb=400)
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 300 * MEBIBYTE
        assert int(limits.OOM_SCORE.read_text()) == 1000
        return 0

    assert [end_of(fork(body, nothing, "toy-0")) for body in (worker, monitor, twice)] == [0, 0, 0]
    assert int(limits.OOM_SCORE.read_text()) == inherited


@pytest.mark.story
def test_a_child_leaves_no_core_has_its_memory_and_is_taken_before_the_supervisor() -> None:
    """Seen to fail with each of the three lines of `apply` taken out, and (the last) where a stricter limit is
    overwritten.
    """
    alone(in_a_child)


def test_a_system_that_lets_nothing_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No /proc, or one that is read-only; limits that may not be set."""

    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(limits.resource, "setrlimit", refuse)
    monkeypatch.setattr(limits, "OOM_SCORE", tmp_path)

    limits.apply(oom_raise=500, memory_max_mb=1)

    monkeypatch.setattr(limits, "OOM_SCORE", tmp_path / "gone")

    limits.apply(oom_raise=500)
