"""What the watchdog is told of a process: which silence is a hang, and which is not. The clock is moved by hand."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from structlog.testing import capture_logs

from reconsup import pulse
from reconsup.pulse import Heart, Pulse
from reconsup.worker.pause import Pauses

WATCHDOG_SECONDS = 60.0


class Told:
    """A cell that remembers."""

    def __init__(self) -> None:
        self.beats: list[tuple[float, str | None]] = []
        self.memory: list[int] = []

    def beat(self, now: float, loop: str | None = None) -> None:
        self.beats.append((now, loop))

    def set_memory(self, size_bytes: int) -> None:
        self.memory.append(size_bytes)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pulse, "_clock", clock)
    return clock


def silence(each: Pulse, now: float) -> float:
    return now - each.heard(now, WATCHDOG_SECONDS)


def pass_time(heart: Heart, clock: Clock, seconds: float) -> None:
    """Let the ticker run as it does while the event loop is free."""
    until = clock.now + seconds
    while clock.now < until:
        clock.now = min(until, clock.now + heart.tick_seconds)
        heart.tick()


def test_a_loop_that_does_not_come_round_grows_silent() -> None:
    each = Pulse("scanner", 100.0)

    assert [silence(each, 100.0 + seconds) for seconds in (0, 7, 61)] == [0, 7, 61]

    each.alive(170.0)

    assert silence(each, 171.0) == 1


def test_a_rest_of_an_hour_is_no_silence_and_one_that_does_not_end_is() -> None:
    """An endpoint may ask for it (Retry-After). Seen to fail when a rest counts as any other wait."""
    each = Pulse("scanner", 0.0)
    each.rests(0.0, 3600.0)

    assert [silence(each, now) for now in (0.0, 1.0, 61.0, 3600.0, 3661.0)] == [0, 0, 0, 0, 61]


def test_a_rest_that_was_cut_short_excuses_nothing() -> None:
    """Seen to fail (0 s of silence) when a ring leaves the rest as it was announced."""
    each = Pulse("scanner", 0.0)
    each.rests(0.0, 3600.0)
    each.alive(5.0)

    assert silence(each, 66.0) == 61


@pytest.mark.parametrize("watchdog_seconds", [2.0, 10.0, 60.0, 7200.0])
@pytest.mark.parametrize("bound_seconds", [0.5, 6.0, 30.0, 3610.0])
def test_nobody_is_taken_for_hung_before_its_own_time_out(watchdog_seconds: float, bound_seconds: float) -> None:
    """However short the watchdog; not even told as stuck. And who hangs beyond its time-out is found: a little later.

    Seen to fail when a wait's time-out is not counted, and (the last) when it is added to the watchdog's time.
    """
    each = Pulse("reconciler", 0.0)
    each.waits(0.0, bound_seconds)

    def silent(now: float) -> float:
        return now - each.heard(now, watchdog_seconds)

    assert silent(bound_seconds) < pulse.STUCK_SHARE * watchdog_seconds
    assert silent(max(watchdog_seconds, bound_seconds + 0.7 * watchdog_seconds)) >= watchdog_seconds


def test_the_beat_is_that_of_the_loop_of_which_nothing_was_heard_for_longest(clock: Clock) -> None:
    """Seen to fail when the ticker writes its own time: a hung loop beside a busy one would never be seen."""
    told = Told()
    heart = Heart(told, WATCHDOG_SECONDS)

    async def work() -> None:
        with heart.pulse("scanner-main") as scanner, heart.pulse("reconciler") as reconciler:
            clock.now += 1
            reconciler.alive(clock.now)
            heart.tick()
            scanner.alive(clock.now)
            pass_time(heart, clock, 1)
            scanner.alive(clock.now)
            heart.tick()

    asyncio.run(work())

    assert told.beats == [(1000.0, "scanner-main"), (1001.0, "scanner-main"), (1001.0, "reconciler")]
    assert len(told.memory) == 1
    assert told.memory[0] > 10 * 2**20


def test_where_no_loop_is_left_the_ticker_beats_for_itself(clock: Clock) -> None:
    told = Told()
    Heart(told, WATCHDOG_SECONDS).tick()

    assert told.beats == [(clock.now, None)]


def test_a_stopped_process_that_goes_on_is_not_hung(clock: Clock) -> None:
    """SIGSTOP, a paused machine, a block of CPU work: nobody could show life. Seen to fail without `_forgive`: the
    beat was two minutes old, and each loop was told as stuck.
    """
    told = Told()
    heart = Heart(told, WATCHDOG_SECONDS)

    async def work() -> None:
        with heart.pulse("scanner-main"):
            clock.now += 120
            heart.tick()
            pass_time(heart, clock, 59)

    with capture_logs() as logged:
        asyncio.run(work())

    assert 1120 - told.beats[0][0] <= heart.tick_seconds
    assert [event["event"] for event in logged] == ["event_loop_blocked", "loop_stuck"]  # from then on it is judged
    assert clock.now - told.beats[-1][0] == pytest.approx(60, abs=1.1)


def test_a_ticker_that_is_a_little_late_forgives_nothing(clock: Clock) -> None:
    """A busy machine: else many short delays would hide a hang. Seen to fail when each of them is forgiven."""
    told = Told()
    heart = Heart(told, WATCHDOG_SECONDS)

    async def work() -> None:
        with heart.pulse("scanner-main"):
            for _ in range(40):
                clock.now += 1.9 * heart.tick_seconds
                heart.tick()

    asyncio.run(work())

    assert told.beats[-1][0] == 1000.0


def test_a_stuck_loop_is_told_once_with_where_it_waits_and_once_when_it_goes_on(clock: Clock) -> None:
    """The supervisor's SIGABRT shows the event loop's frame only. Seen to fail with `Task.get_stack`."""
    heart = Heart(Told(), WATCHDOG_SECONDS)
    gate = asyncio.Event()

    async def innermost() -> None:
        await gate.wait()
        pulse.alive()
        await asyncio.Event().wait()

    async def in_two_tasks() -> None:
        await asyncio.gather(innermost(), asyncio.sleep(3600))

    async def work() -> None:
        task = asyncio.create_task(heart.watched("reconciler", in_two_tasks()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        pass_time(heart, clock, 29)
        assert logged == []
        pass_time(heart, clock, 20)
        gate.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        pass_time(heart, clock, 10)
        task.cancel()

    with capture_logs() as logged:
        asyncio.run(work())

    assert [(event["event"], event["loop"]) for event in logged] == [
        ("loop_stuck", "reconciler"),
        ("loop_goes_on", "reconciler"),
    ]
    assert logged[0]["silent_seconds"] == 30
    stack = logged[0]["stack"].splitlines()
    names = [line.split()[-1].rpartition(".")[2] for line in stack]
    assert names == ["watched", "in_two_tasks", "innermost", "wait", "sleep"]
    assert stack[-2].startswith("  ")  # a task of its own
    assert "tests/test_pulse.py:" in stack[1]


def test_a_loop_is_alive_through_the_tasks_it_starts(clock: Clock) -> None:
    """Blocks are read ahead, two batches are in hand. And what another loop hears is nobody else's."""
    heart = Heart(Told(), WATCHDOG_SECONDS)
    seen: dict[str, float] = {}

    async def call() -> None:
        clock.now += 5
        pulse.alive()

    async def loop(name: str, work: Coroutine[Any, Any, None]) -> None:
        with heart.pulse(name) as each:
            await asyncio.create_task(work)
            seen[name] = silence(each, 1010.0)

    async def idle() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(loop("idle", idle()), loop("calls", call()))

    asyncio.run(both())

    assert seen == {"idle": 10, "calls": 5}
    pulse.alive()  # outside of every loop: nothing happens
    pulse.rests(5)
    pulse.waits(5)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_pause_is_announced_and_its_end_is_a_sign_of_life(clock: Clock, is_whole: bool) -> None:
    """Seen to fail with each `pulse.rests` and each `pulse.alive` taken out of the pauses."""
    heart = Heart(Told(), WATCHDOG_SECONDS)

    async def work() -> tuple[float, float]:
        pauses = Pauses()
        pause = pauses.pause()
        with heart.pulse("scanner") as each:
            task = asyncio.create_task(pause.whole(600) if is_whole else pause.for_seconds(600))
            await asyncio.sleep(0)
            clock.now += 599
            resting = silence(each, clock.now)
            pauses.stop()
            await task
            clock.now += 7
            return resting, silence(each, clock.now)

    assert asyncio.run(work()) == (0, 7)


def test_the_ticker_ticks_well_within_the_watchdog_and_ends_with_its_block() -> None:
    thrice = asyncio.Event()

    class Counting(Told):
        def beat(self, now: float, loop: str | None = None) -> None:
            super().beat(now, loop)
            if len(self.beats) == 3:
                thrice.set()

    told = Counting()

    async def work() -> None:
        async with Heart(told, 0.04).ticking():
            await thrice.wait()
        await asyncio.sleep(0.02)

    asyncio.run(work())

    assert len(told.beats) == 3
    assert [Heart(told, seconds).tick_seconds for seconds in (2, 60, 86400)] == [0.25, 1, 1]
