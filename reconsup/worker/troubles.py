"""Rows that PostgreSQL refuses to write: this worker's memory of them, because nothing can be noted on the row itself.

They are left out of the claims for a time that grows with each refusal, as the next look at a row that fails does.
"""

from collections.abc import Iterable

DELAY_SECONDS_MIN = 15.0
DELAY_SECONDS_MAX = 3600.0
REMEMBERED_MAX = 1000


class Refused:
    """Ids of such rows. `now` is monotonic."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[int, float]] = {}  # id → how often, and until when it is left out

    def note(self, ids: Iterable[str], now: float) -> None:
        """These were refused (again)."""
        for id_ in ids:
            times = self._rows.pop(id_, (0, 0.0))[0] + 1
            delay = min(DELAY_SECONDS_MAX, DELAY_SECONDS_MIN * 2.0 ** min(times - 1, 12))
            self._rows[id_] = times, now + delay
        while len(self._rows) > REMEMBERED_MAX:
            del self._rows[next(iter(self._rows))]  # the longest ago

    def left_out(self, now: float) -> list[str]:
        """The ids that are not to be claimed now."""
        return [id_ for id_, (_, until) in self._rows.items() if now < until]
