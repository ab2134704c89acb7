"""What the kernel is told about a child: no core file, how much memory, and whom to take first when there is none.

In the child, right after the fork. Nothing here fails: a system that refuses has its own, stricter rules.
"""

import resource
from contextlib import suppress
from pathlib import Path

MEBIBYTE = 2**20
WORKER_OOM_RAISE = 500  # a worker's leases are given back in milliseconds …
MONITOR_OOM_RAISE = 250  # … by the monitor; without the supervisor all of them are gone
OOM_SCORE_MAX = 1000
OOM_SCORE = Path("/proc/self/oom_score_adj")


def apply(*, oom_raise: int, memory_max_mb: float = 0) -> None:
    """Leave no core (it would hold keys and passwords); have at most so much private memory (0: no limit); be taken
    by the kernel's OOM killer before the processes of a lower score: `oom_raise` above what was inherited.
    """
    _limit(resource.RLIMIT_CORE, 0)
    if memory_max_mb:
        _limit(resource.RLIMIT_DATA, int(memory_max_mb * MEBIBYTE))
    with suppress(OSError, ValueError):
        inherited = int(OOM_SCORE.read_text(encoding="ascii"))
        OOM_SCORE.write_text(str(min(inherited + oom_raise, OOM_SCORE_MAX)), encoding="ascii")


def _limit(what: int, most: int) -> None:
    """Lower a limit; a stricter one that is there already stays."""
    soft, _ = resource.getrlimit(what)
    least = most if soft == resource.RLIM_INFINITY else min(soft, most)
    with suppress(OSError, ValueError):
        resource.setrlimit(what, (least, least))
