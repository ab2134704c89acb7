"""What systemd is told, over a datagram socket: that we are ready, how we are, that we live. Else nothing.

The supervisor says at every turn of its loop what is the case (`Facts`); here is decided which words are due. Nobody
answers, and an error changes nothing: a service manager that does not listen must not stop the service. What could
not be sent (its socket is full, it is just starting anew) is said a little later. This room waits for nobody and
knows no clock.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf

from reconsup.fleet.state import Phase

STATUS_EVERY_SECONDS = 1.0
STATUS_BYTES_MAX = 1024  # systemd drops a message of more than 4096
EXTEND_EVERY_SECONDS = 1.0
EXTEND_SECONDS = 5.0  # for so long each extension asks; the next comes well before
MARGIN_SECONDS = 2.0  # from a deadline to the death of whoever missed it
PINGS_IN_A_PERIOD = 3  # systemd wants two: one may be late
PING_SECONDS_MIN = 0.05
RETRY_SECONDS = 0.25

_NEVER = 2**63  # systemd writes 2**64 - 1 for "no watchdog"


@dataclass(frozen=True, slots=True)
class Facts:
    """How things stand. `deadline` (monotonic): until then what is waited for must have happened.

    Waited for are, while starting, the first ready worker; while draining, the end of the last process; while
    reloading, the roll-over's end. `figures` is for people. `is_healthy`: at least one worker does its work, or
    can't only because a dependency is away. `reloads` counts the reloads that began, also those that were refused at
    once; `is_reloading`: the last one is not over yet.
    """

    phase: Phase
    ready: int
    wanted: int
    figures: str = ""
    is_healthy: bool = False
    reloads: int = 0
    is_reloading: bool = False
    deadline: float | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether the end has begun."""
        return self.phase in (Phase.DRAINING, Phase.DONE)

    @property
    def status(self) -> str:
        """One line of UTF-8 that systemd takes, whatever is in the figures."""
        text = f"{self.phase}: {self.ready} of {self.wanted} workers ready" + (
            f"; {self.figures}" if self.figures else ""
        )
        line = "".join(letter if letter.isprintable() else " " for letter in text)
        return line.encode(errors="replace")[:STATUS_BYTES_MAX].decode(errors="ignore")


@dataclass(frozen=True, slots=True)
class _Said:
    """What systemd has been told, and when (monotonic seconds)."""

    is_ready: bool = False
    is_stopping: bool = False
    is_reloading: bool = False
    reloads: int = 0
    status: str = ""
    status_at: float = -inf
    pinged_at: float = -inf
    extended_at: float = -inf


class Notifier:
    """Speaks to the service manager that `environment` names, for the process `pid` (this one)."""

    def __init__(self, environment: Mapping[str, str] = os.environ, pid: int | None = None) -> None:
        self._address = _address(environment)
        self._ping_seconds = _ping_seconds(environment, os.getpid() if pid is None else pid)
        self._facts: Facts | None = None
        self._said = _Said()
        self._not_before = -inf

    def say_state(self, now: float, facts: Facts) -> None:
        """Say what is due. `now` is CLOCK_MONOTONIC at this very moment. Never blocks, never raises."""
        self._facts = facts
        if self._address is None or now < self._not_before:
            return
        for lines, said in _due(self._said, facts, now, self._ping_seconds):
            if not _send(self._address, "\n".join(lines)):
                self._not_before = now + RETRY_SECONDS
                return
            self._said = said

    def next_at(self, now: float) -> float | None:
        """When `say_state` must be called at the latest; None: not before something happens."""
        if self._address is None:
            return None
        if self._facts is None:
            return now
        if now < self._not_before:
            return self._not_before
        moments = []
        if self._facts.status != self._said.status:
            moments.append(self._said.status_at + STATUS_EVERY_SECONDS)
        if self._ping_seconds is not None:
            is_alive = _is_alive(self._said, self._facts, now)
            # who is not alive says nothing, and is asked again
            moments.append((self._said.pinged_at if is_alive else now) + self._ping_seconds)
        if _seconds_left(self._said, self._facts, now) > 0:
            moments.append(self._said.extended_at + EXTEND_EVERY_SECONDS)
        return min(moments, default=None)


def _due(said: _Said, facts: Facts, now: float, ping_seconds: float | None) -> Iterator[tuple[list[str], _Said]]:
    """The messages that are due, in order, each with what has been said when it is out."""
    for lines, said in _turns(said, facts, now):  # noqa: B020 - each message stands on those before it
        said = replace(said, status=facts.status, status_at=now)
        yield [*lines, f"STATUS={facts.status}"], said
    lines = []
    if facts.status != said.status and now >= said.status_at + STATUS_EVERY_SECONDS:
        lines.append(f"STATUS={facts.status}")
        said = replace(said, status=facts.status, status_at=now)
    if ping_seconds is not None and now >= said.pinged_at + ping_seconds and _is_alive(said, facts, now):
        lines.append("WATCHDOG=1")
        said = replace(said, pinged_at=now)
    left = _seconds_left(said, facts, now)
    if left > 0 and now >= said.extended_at + EXTEND_EVERY_SECONDS:
        lines.append(f"EXTEND_TIMEOUT_USEC={_microseconds(min(left, EXTEND_SECONDS))}")
        said = replace(said, extended_at=now)
    if lines:
        yield lines, said


def _turns(said: _Said, facts: Facts, now: float) -> Iterator[tuple[list[str], _Said]]:
    """READY, RELOADING and STOPPING: each once at its turn."""
    if facts.is_stopping:
        if not said.is_stopping:
            yield ["STOPPING=1"], replace(said, is_stopping=True, is_reloading=False)
        return
    if not said.is_ready:
        if facts.ready:
            # a reload before that is a part of the start
            yield ["READY=1"], replace(said, is_ready=True, reloads=facts.reloads)
        return
    if facts.reloads != said.reloads:
        said = replace(said, is_reloading=True, reloads=facts.reloads)
        yield ["RELOADING=1", f"MONOTONIC_USEC={_microseconds(now)}"], said
    if said.is_reloading and not facts.is_reloading:
        yield ["READY=1"], replace(said, is_reloading=False)


def _is_alive(said: _Said, facts: Facts, now: float) -> bool:
    """Whether the watchdog may be told so: there is work done, or somebody waited for who is not late."""
    is_waiting = facts.is_stopping or not said.is_ready
    return facts.is_healthy or (is_waiting and _seconds_left(said, facts, now) > 0)


def _seconds_left(said: _Said, facts: Facts, now: float) -> float:
    """How long what is waited for may still take; 0 if nothing is."""
    is_waiting = facts.is_stopping or facts.is_reloading or not said.is_ready
    if facts.deadline is None or facts.phase is Phase.DONE or not is_waiting:
        return 0.0
    return max(facts.deadline + MARGIN_SECONDS - now, 0.0)


def _send(address: str, message: str) -> bool:
    """One message, if there is room for it now."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
            out.sendto(message.encode(), address)
    except OSError:  # nobody there, no room, no such name, no descriptor left
        return False
    return True


def _address(environment: Mapping[str, str]) -> str | None:
    """A path, or an abstract name (which begins with NUL). What else there is (vsock) is not spoken here."""
    given = environment.get("NOTIFY_SOCKET", "")
    if len(given) > 1 and given[0] in "/@":
        return "\0" + given[1:] if given[0] == "@" else given
    return None


def _ping_seconds(environment: Mapping[str, str], own_pid: int) -> float | None:
    """How often the watchdog wants to hear of us; None: not at all, it means another process, or nonsense."""
    period, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID")
    if pid is not None and _number(pid) != own_pid:
        return None
    microseconds = _number(period)
    if microseconds is None or not 0 < microseconds < _NEVER:
        return None
    return max(microseconds / 1e6 / PINGS_IN_A_PERIOD, PING_SECONDS_MIN)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else None


def _microseconds(seconds: float) -> int:
    return int(seconds * 1_000_000)
