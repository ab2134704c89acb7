"""How many workers the work asks for, by plain calls."""

import pytest

from reconsup.fleet.scale import Marks, Pressure, changed, judge

MARKS = Marks(busy_seconds=30, behind_seconds=60)


def look(pressure: Pressure, now: float, oldest: float, behind: float = 0.0) -> tuple[Pressure, int]:
    return judge(pressure, MARKS, oldest_due_seconds=oldest, behind_seconds=behind, now=now)


@pytest.mark.parametrize(
    ("oldest", "behind", "busy_since", "calm_since"),
    [
        (0, 0, None, 100.0),
        (14.9, 29.9, None, 100.0),
        (15, 0, None, None),
        (30, 60, None, None),
        (30.1, 0, 100.0, None),
        (0, 60.1, 100.0, None),
    ],
)
def test_between_calm_and_busy_is_neither(
    oldest: float, behind: float, busy_since: float | None, calm_since: float | None
) -> None:
    assert look(Pressure(), 100.0, oldest, behind) == (Pressure(busy_since, calm_since), 0)


def test_it_rises_after_ten_seconds_and_falls_after_five_minutes() -> None:
    busy, _ = look(Pressure(), 0, 31)
    calm, _ = look(Pressure(), 0, 0)

    assert [look(busy, now, 31)[1] for now in (5, 9.9, 10)] == [0, 0, 1]
    assert [look(calm, now, 0)[1] for now in (5, 299.9, 300)] == [0, 0, -1]


def test_after_a_change_everything_is_counted_from_it() -> None:
    after = changed(Pressure(busy_since=0, calm_since=None), 10)

    rising, soon = look(after, 15, 31)
    assert (soon, look(rising, 29.9, 31)[1], look(rising, 30, 31)[1]) == (0, 0, 1)


def test_what_goes_up_and_down_around_a_mark_changes_nothing() -> None:
    """The two marks are far apart. Seen to fail with CALM_SHARE = 1 and RISE_SECONDS = FALL_SECONDS = 5."""
    pressure, changes = Pressure(), []
    for step in range(1000):
        pressure, change = look(pressure, step * 5.0, 31 if step % 2 else 29)
        changes.append(change)

    assert set(changes) == {0}
