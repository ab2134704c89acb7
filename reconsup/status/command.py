"""The command: ask and show, once, or every second until somebody has seen enough.

What was shown is success, whatever it says (exit 0); 69: there was nothing to show. Only `--ready` judges: 0 if the
host is ready as /readyz says, else 69.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from reconsup.shown import everyone, host
from reconsup.shown.lines import Line, Piece, Style, cut, line, span
from reconsup.status import ask, hosts
from reconsup.status.ask import Address, NoAnswer
from reconsup.status.screen import LiveScreen, Screen, is_terminal
from reconsup.store.database import Database

EXIT_OK = 0
EXIT_UNAVAILABLE = 69
WATCH_SECONDS = 1.0

Told = dict[str, Any]
Question = Callable[[], Awaitable[Told]]


@dataclass(frozen=True, slots=True)
class Manner:
    """How it is shown. `is_colored`, `is_movable`: what the terminal can, if there is one, and the operator wants."""

    as_json: bool = False
    again: bool = False
    is_colored: bool = True
    is_movable: bool = True


def of_host(address: Address, manner: Manner) -> int:
    """Show the supervisor that listens there; the exit code."""
    return asyncio.run(_show(lambda: ask.host(address), host.picture, manner))


def is_ready(address: Address) -> int:
    """Say in one line whether the supervisor that listens there is ready, as /readyz does; the exit code."""
    try:
        told = asyncio.run(ask.host(address))
    except NoAnswer as error:
        _complain(error)
        return EXIT_UNAVAILABLE
    supervisor = told["supervisor"]
    if supervisor.get("ready") is not True:
        _complain(f"not ready: {supervisor.get('problem') or 'it does not say why'}")
        return EXIT_UNAVAILABLE
    name, ready, wanted = (supervisor.get(field) for field in ("base", "workers_ready", "workers_wanted"))
    sys.stdout.write(f"ready: {name}, {ready} of {len(told['workers']) if wanted is None else wanted} workers\n")
    return EXIT_OK


def of_everyone(database_url: str, manner: Manner) -> int:
    """Show every host that works on the database; the exit code."""

    def picture(told: Told, width: int, height: int | None) -> list[Line]:
        return everyone.picture(hosts.recent(told), width, height)

    async def run() -> int:
        async with Database(
            database_url, application_name="reconsup/status", lease_seconds=ask.DATABASE_SECONDS
        ) as database:
            return await _show(lambda: ask.everyone(database), picture, manner)

    return asyncio.run(run())


Picture = Callable[[Told, int, int | None], list[Line]]


async def _show(question: Question, picture: Picture, manner: Manner) -> int:
    on_terminal = is_terminal(sys.stdout)
    is_live = manner.again and not manner.as_json and on_terminal and manner.is_movable
    screen = (LiveScreen if is_live else Screen)(sys.stdout, is_colored=on_terminal and manner.is_colored)
    if manner.again:
        with screen:
            await _Watch(question, picture, manner, screen).run()
        return EXIT_OK
    try:
        told = await question()
    except NoAnswer as error:
        _complain(error)
        return EXIT_UNAVAILABLE
    if manner.as_json:
        screen.write(json.dumps(told, ensure_ascii=False) + "\n")
    else:
        screen.draw(lambda width, height: picture(told, width, height))
    return EXIT_OK


def _complain(error: NoAnswer | str) -> None:
    sys.stderr.write(f"reconsup: {error}\n")
    sys.stderr.flush()


class _Watch:
    """Asks every second. While nobody answers it says so, shows what was said last, and goes on asking."""

    def __init__(self, question: Question, picture: Picture, manner: Manner, screen: Screen) -> None:
        self._question = question
        self._picture = picture
        self._manner = manner
        self._screen = screen
        self._stop = asyncio.Event()
        self._told: Told | None = None
        self._told_at = 0.0
        self._problem: NoAnswer | None = None

    async def run(self) -> None:
        """Until INT, TERM or HUP."""
        self._listen()
        while not self._stop.is_set():
            started_at = time.monotonic()
            asking = asyncio.ensure_future(self._ask())
            if not await self._unless_stopped(asking):
                return
            self._draw()
            pause = WATCH_SECONDS - (time.monotonic() - started_at)
            await self._unless_stopped(asyncio.ensure_future(asyncio.sleep(max(pause, 0))))

    async def _ask(self) -> None:
        try:
            self._told, self._problem = await self._question(), None
            self._told_at = time.monotonic()
        except NoAnswer as error:
            self._problem = error

    async def _unless_stopped(self, task: "asyncio.Future[None]") -> bool:
        """Wait for the task; False, and it is cancelled, if it is time to leave."""
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if self._stop.is_set():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            return False
        task.result()
        return True

    def _draw(self) -> None:
        if not self._manner.as_json:
            self._screen.draw(self._lines)
        elif self._problem is not None:
            _complain(self._problem)
        else:
            self._screen.write(json.dumps(self._told, ensure_ascii=False) + "\n")

    def _lines(self, width: int, height: int | None) -> Sequence[Line]:
        clock = time.strftime("%H:%M:%S")
        if self._problem is None and self._told is not None:
            first = cut(line(Piece(f"{clock}  every second, Ctrl-C ends it", Style.DIM)), width)
            return [first, *self._picture(self._told, width, None if height is None else height - 1)]
        sentence = cut(line(Piece(clock, Style.DIM), "  ", Piece(str(self._problem), Style.BAD)), width)
        if self._told is None or height is None:
            return [sentence]
        ago = span(time.monotonic() - self._told_at)
        before = cut(line(Piece(f"{ago} ago it was so:", Style.DIM)), width)
        return [sentence, before, *self._picture(self._told, width, height - 2)]

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        if isinstance(self._screen, LiveScreen):
            loop.add_signal_handler(signal.SIGWINCH, self._redraw)
            loop.add_signal_handler(signal.SIGTSTP, self._suspend)

    def _redraw(self) -> None:
        if self._told is not None or self._problem is not None:
            self._draw()

    def _suspend(self) -> None:
        """Ctrl-Z: give the terminal back, stop, and take it again when somebody continues us."""
        self._screen.leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._screen.enter()
        self._redraw()
