"""What happens to the fleet, and what is to be done about it: the plan's events and commands. PURE."""

import signal
from dataclasses import dataclass

from reconsup.fleet.slot import Cause, Terms

# Events


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: what is due?"""


@dataclass(frozen=True, slots=True)
class Overslept:
    """The supervisor itself was stopped for so long, and most likely everybody with it: nobody is late by that time."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Signalled:
    """The supervisor got a signal. (HUP comes as `Reload`, once the settings were read.)"""

    number: signal.Signals


@dataclass(frozen=True, slots=True)
class Reload:
    """There are new settings, which can be read; whether they work, a worker has to show."""

    terms: Terms


@dataclass(frozen=True, slots=True)
class Forked:
    """A `Spawn` succeeded. `chance` is in [0, 1)."""

    slot: int
    pid: int
    chance: float = 0.5


@dataclass(frozen=True, slots=True)
class NotForked:
    """A `Spawn` failed. `chance` is in [0, 1)."""

    slot: int
    chance: float


@dataclass(frozen=True, slots=True)
class Ready:
    """A process said that it does its work."""

    slot: int
    pid: int


@dataclass(frozen=True, slots=True)
class Beat:
    """A process gave its last sign of life at that moment."""

    slot: int
    pid: int
    at: float


@dataclass(frozen=True, slots=True)
class Grown:
    """A process has so much memory resident."""

    slot: int
    pid: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """A worker said that it drains."""

    slot: int
    pid: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A process was reaped: its exit code, or minus the signal that killed it. `chance` is in [0, 1)."""

    slot: int
    pid: int
    code: int
    chance: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """How much work waits, just looked at: the age of the oldest due request, and how far behind a scan is."""

    oldest_due_seconds: float
    behind_seconds: float


Event = Tick | Overslept | Signalled | Reload | Forked | NotForked | Ready | Beat | Grown | Leaving | Exited | Loaded


# Commands


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a process for the slot, with the settings of that generation; answer `Forked` or `NotForked` at once."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a signal to a process that was not reaped. `cause`: why it is to die (SIGABRT, SIGKILL) or to leave."""

    slot: int
    pid: int
    number: signal.Signals
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Bury:
    """Note the death of a reaped process. `is_asked`: it had been told to leave."""

    slot: int
    pid: int
    code: int
    cause: Cause
    is_asked: bool


@dataclass(frozen=True, slots=True)
class Accept:
    """The settings of that generation work: a worker is ready with them. Everybody gets them, one after the other."""

    generation: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The settings of that generation do not work: everything stays as it is."""

    generation: int
    cause: Cause


@dataclass(frozen=True, slots=True)
class Finish:
    """Nobody is left: exit with this code. The last command."""

    code: int


Command = Spawn | Send | Bury | Accept | Refuse | Finish
