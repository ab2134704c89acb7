"""How many workers the work asks for, between the least and the most. PURE.

One worker more when work has been waiting for some time, one fewer when none has been for a long time. It rises fast
and falls slowly, and the two marks are far apart, so that a number is not left the moment it is reached; after each
change the new number gets time to show what it does. One page explains it: specs/autoscale.md.
"""

from dataclasses import dataclass, replace

RISE_SECONDS = 10.0  # so long work must have been waiting…
FALL_SECONDS = 300.0  # … and so long none
SETTLE_SECONDS = 20.0  # no second change before
CALM_SHARE = 0.5  # of the mark at which it rises: below it is calm


@dataclass(frozen=True, slots=True)
class Pressure:
    """Since when it has been busy, or calm (neither between the two marks), and when the number was changed last."""

    busy_since: float | None = None
    calm_since: float | None = None
    changed_at: float | None = None


@dataclass(frozen=True, slots=True)
class Marks:
    """Where busy begins: the age of the oldest due request, and of the last block read by a scan that is behind."""

    busy_seconds: float
    behind_seconds: float


def judge(
    pressure: Pressure, marks: Marks, *, oldest_due_seconds: float, behind_seconds: float, now: float
) -> tuple[Pressure, int]:
    """Take in one look at the work; the pressure after it, and by how many workers to change: -1, 0 or 1."""
    load = max(oldest_due_seconds / marks.busy_seconds, behind_seconds / marks.behind_seconds)
    is_busy, is_calm = load > 1, load < CALM_SHARE
    after = Pressure(
        busy_since=_since(pressure.busy_since, is_busy, now),
        calm_since=_since(pressure.calm_since, is_calm, now),
        changed_at=pressure.changed_at,
    )
    if after.changed_at is not None and now - after.changed_at < SETTLE_SECONDS:
        return after, 0
    if after.busy_since is not None and now - after.busy_since >= RISE_SECONDS:
        return after, 1
    if after.calm_since is not None and now - after.calm_since >= FALL_SECONDS:
        return after, -1
    return after, 0


def changed(pressure: Pressure, now: float) -> Pressure:
    """The number was changed: everything is counted from now."""
    return replace(pressure, busy_since=None, calm_since=None, changed_at=now)


def _since(before: float | None, is_so: bool, now: float) -> float | None:
    if not is_so:
        return None
    return now if before is None else before
