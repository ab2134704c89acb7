"""How often an endpoint is asked: as we like, until it throttles; then half as often, and by and by more again.

A pause that the endpoint asked for itself (Retry-After) is kept by whoever holds the endpoints; this is for the time
after it, and for endpoints that name no pause.
"""

GAP_SECONDS_MIN = 0.05
GAP_SECONDS_MAX = 2.0
SHRINKS_BY = 0.8  # with each answer: three to four of them take back one refusal


class Rate:
    """The least time from one request to the next. Knows no clock: times are given in seconds of the caller's."""

    def __init__(self) -> None:
        self.gap_seconds = 0.0
        self._next_at = 0.0

    def take_turn(self, now: float) -> float:
        """Take the next turn; how many seconds it is away. Whoever asks meanwhile comes after it."""
        turn = max(now, self._next_at)
        self._next_at = turn + self.gap_seconds
        return turn - now

    def was_throttled(self) -> None:
        """Ask half as often."""
        self.gap_seconds = min(max(self.gap_seconds * 2, GAP_SECONDS_MIN), GAP_SECONDS_MAX)

    def was_answered(self) -> None:
        """Ask a little more often; below the smallest gap there is none."""
        shorter = self.gap_seconds * SHRINKS_BY
        self.gap_seconds = shorter if shorter >= GAP_SECONDS_MIN else 0.0
