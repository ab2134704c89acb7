"""Shows that every loop of a process goes round: each has a pulse, and a ticker tells the oldest to the watchdog.

A loop is alive when it came round, while it rests for a time that it announced, and when something it waited for began
or ended: a call, a statement. Whoever waits with a time-out says so (`waits`), so that nobody is taken for hung before
its own time-outs have had their turn. Rooms below know nothing of this: they get a callback; the loop that runs
just now is found by its context, which tasks that it starts inherit.

If the event loop itself is blocked the ticker does not run, and its last word ages by itself. When it runs again (also
after SIGSTOP) the time in which nobody could run is nobody's silence.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from reconsup import logs

TICK_SECONDS_MAX = 1.0
TICKS_A_WATCHDOG = 8  # at least
STUCK_SHARE = 0.5  # of watchdog_seconds: then its own log says where it hangs
BLOCKED_SHARE = 0.25  # of watchdog_seconds: so long a blocked event loop is told
# Where a wait with a time-out ends, this share of watchdog_seconds counts as silence: less than what is told as stuck,
# and no more is added to the watchdog's patience than needed.
WAITED_SHARE = 0.4
MEMORY_SECONDS = 5.0
FRAMES_MAX = 40
STATM = Path("/proc/self/statm")


class Cell(Protocol):
    """Where the ticker writes: the process's cell on the scoreboard."""

    def beat(self, now: float, loop: str | None = None) -> None:
        """Note the moment of the oldest sign of life, and whose it is."""

    def set_memory(self, size_bytes: int) -> None:
        """Note how much is resident."""


class Pulse:
    """One loop's signs of life. Moments are seconds of one clock, the caller's."""

    def __init__(self, name: str, now: float, task: "asyncio.Task[Any] | None" = None) -> None:
        self.name = name
        self.task = task
        self.is_told = False  # as stuck
        self._heard_at = now
        self._rests_until = now
        self._waits_until = now

    def alive(self, now: float) -> None:
        """It came round, or what it waited for has ended."""
        self._heard_at = self._rests_until = now

    def rests(self, now: float, seconds: float) -> None:
        """It does nothing for so long, and is well."""
        self._heard_at, self._rests_until = now, now + seconds

    def waits(self, now: float, seconds: float) -> None:
        """It begins to wait for something that ends, one way or another, within so long.

        That one wait has ended takes back nothing: another task of the loop may be in the midst of its own.
        """
        self.alive(now)
        self._waits_until = max(self._waits_until, now + seconds)

    def forgive(self, seconds: float) -> None:
        """Nobody could run for so long."""
        self._heard_at += seconds
        self._rests_until += seconds
        self._waits_until += seconds

    def heard(self, now: float, watchdog_seconds: float) -> float:
        """The moment of its last sign of life."""
        excused = self._waits_until - WAITED_SHARE * watchdog_seconds
        return min(now, max(self._heard_at, self._rests_until, excused))


_clock: Callable[[], float] = time.monotonic
_current: ContextVar[Pulse | None] = ContextVar("pulse", default=None)


def alive() -> None:
    """The loop that runs just now gives a sign of life; nothing where there is none."""
    if (pulse := _current.get()) is not None:
        pulse.alive(_clock())


def rests(seconds: float) -> None:
    """The loop that runs just now rests for so long."""
    if (pulse := _current.get()) is not None:
        pulse.rests(_clock(), seconds)


def waits(seconds: float) -> None:
    """The loop that runs just now waits for something that has a time-out: for so long at most (0: it has ended)."""
    if (pulse := _current.get()) is not None:
        pulse.waits(_clock(), seconds)


class Heart:
    """The pulses of one process, and the ticker. `cell.beat` is written from here only."""

    def __init__(self, cell: Cell, watchdog_seconds: float) -> None:
        self.tick_seconds = min(TICK_SECONDS_MAX, watchdog_seconds / TICKS_A_WATCHDOG)
        self._cell = cell
        self._watchdog_seconds = watchdog_seconds
        self._pulses: list[Pulse] = []
        self._tick_at = _clock() + self.tick_seconds
        self._memory_at = 0.0
        self._log = logs.get_logger()

    @contextmanager
    def pulse(self, name: str) -> Iterator[Pulse]:
        """Watch what runs in this block, and the tasks that it starts, as the loop `name`."""
        pulse = Pulse(name, _clock(), asyncio.current_task())
        self._pulses.append(pulse)
        token = _current.set(pulse)
        try:
            yield pulse
        finally:
            _current.reset(token)
            self._pulses.remove(pulse)

    async def watched(self, name: str, work: Awaitable[None]) -> None:
        """Do this work as the loop `name`; the body of a task."""
        with self.pulse(name):
            await work

    @asynccontextmanager
    async def ticking(self) -> AsyncIterator[None]:
        """Tick for the length of an async with block, first at once: whoever sat here before left an old beat."""
        self._tick_at = _clock() + self.tick_seconds
        self.tick()
        ticker = asyncio.create_task(self._tick_for_ever(), name="ticker")
        try:
            yield
        finally:
            ticker.cancel()
            with suppress(asyncio.CancelledError):
                await ticker

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.tick_seconds)
            self.tick()

    def tick(self) -> None:
        """Tell the watchdog of the loop of which nothing was heard for longest, and the log of those that hang."""
        now = _clock()
        self._forgive(now - self._tick_at)
        self._tick_at = now + self.tick_seconds
        heard = [(pulse.heard(now, self._watchdog_seconds), pulse) for pulse in self._pulses]
        oldest, whose = min(heard, key=lambda each: each[0], default=(now, None))
        self._cell.beat(oldest, None if whose is None else whose.name)
        for at, pulse in heard:
            self._tell(pulse, now - at)
        if now >= self._memory_at:
            self._memory_at = now + MEMORY_SECONDS
            with suppress(OSError):
                self._cell.set_memory(resident_bytes())

    def _forgive(self, late_seconds: float) -> None:
        if late_seconds < self.tick_seconds:
            return
        for pulse in self._pulses:
            pulse.forgive(late_seconds)
        if late_seconds >= BLOCKED_SHARE * self._watchdog_seconds:
            self._log.warning(
                "event_loop_blocked",
                blocked_seconds=round(late_seconds, 1),
                todo="nothing if the process or the machine was stopped; else there is too little CPU, or a block or "
                "batch is so large that the watchdog (RECONSUP_WATCHDOG_SECONDS) may take its work for a hang",
            )

    def _tell(self, pulse: Pulse, silent_seconds: float) -> None:
        """Once for each silence, so that the log says where a loop hangs before the process is killed for it."""
        is_stuck = silent_seconds >= STUCK_SHARE * self._watchdog_seconds
        if is_stuck and not pulse.is_told:
            self._log.error(
                "loop_stuck",
                loop=pulse.name,
                silent_seconds=round(silent_seconds, 1),
                stack=stack_of(pulse.task),
                todo="nothing: the watchdog replaces this process if it stays like that. Please report the stack",
            )
        elif pulse.is_told and not is_stuck:
            self._log.info("loop_goes_on", loop=pulse.name)
        pulse.is_told = is_stuck


def resident_bytes() -> int:
    """How much memory this process has resident. OSError where there is no /proc."""
    return int(STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def stack_of(task: "asyncio.Task[Any] | None") -> str:
    """Where a task waits, a line a frame, the innermost last, and below it the tasks that it waits for.

    asyncio itself (`Task.get_stack`) shows the outermost frame only.
    """
    return "\n".join(_frames(task, "", FRAMES_MAX)) if task is not None else ""


def _frames(task: "asyncio.Task[Any]", indent: str, most: int) -> list[str]:
    lines: list[str] = []
    awaited: Any = task.get_coro()
    while awaited is not None and len(lines) < most:
        # a coroutine, a generator, an asynchronous generator
        frame = _first(awaited, "cr_frame", "gi_frame", "ag_frame")
        if frame is None:
            break
        code = frame.f_code
        where = "/".join(Path(code.co_filename).parts[-3:])
        lines.append(f"{indent}{where}:{frame.f_lineno} {code.co_qualname}")
        awaited = _first(awaited, "cr_await", "gi_yieldfrom", "ag_await")
    # private, but the only way from a task to what it waits for before Python 3.14
    waited_for = getattr(task, "_fut_waiter", None)
    for child in getattr(waited_for, "_children", [waited_for]):  # several: asyncio.gather
        if isinstance(child, asyncio.Task) and len(lines) < most:
            lines += _frames(child, indent + "  ", most - len(lines))
    return lines


def _first(thing: object, *names: str) -> Any:
    return next((found for name in names if (found := getattr(thing, name, None)) is not None), None)
