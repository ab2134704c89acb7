"""Ctrl-C, TERM and a closed terminal: handlers only take a note; the demo looks at it between two steps.

An exception that could rise anywhere could rise between a process's start and the note that it must be ended. So
nothing is interrupted; every step is short, or has a deadline.
"""

import signal
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """Somebody asked the demo to leave."""


class Interrupts:
    """Takes note of the signals while it is entered; to be used in the main thread."""

    def __init__(self) -> None:
        self._noted: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup stays nohup
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned

    @property
    def exit_code(self) -> int:
        """The exit code that says which signal asked us to leave; 0 while none did."""
        return 0 if self._noted is None else 128 + self._noted

    def check(self) -> None:
        """Raise Interrupted if somebody asked."""
        if self._noted is not None:
            raise Interrupted

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._noted is None:
            self._noted = number
