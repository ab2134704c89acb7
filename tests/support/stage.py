"""Who plays, and on what: workers with what they hold, and connections that outlive them."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from reconsup.payments.decision import Decision
from reconsup.store.database import Database
from reconsup.store.leases import Batch
from reconsup.store.persist import Failure
from tests.support.ledgers import Emptied
from tests.support.model import Grant, Verdict

T = TypeVar("T")
WORKERS = 3


@dataclass
class Hand:
    """What one claim gave a worker, and what it decided since: `outcomes` of the store, `verdicts` of the model."""

    batch: Batch
    grants: list[Grant]
    outcomes: dict[str, Decision | Failure] = field(default_factory=dict)
    verdicts: dict[str, Verdict | None] = field(default_factory=dict)


@dataclass
class Worker:
    slot: int
    incarnation: int = 1
    hand: Hand | None = None

    @property
    def owner(self) -> str:
        return f"host-{self.slot}#{self.incarnation:016x}"


class Clock:
    """A worker's clock, wrong by so much."""

    def __init__(self, wrong_seconds: float) -> None:
        self.wrong_seconds = wrong_seconds

    def monotonic(self) -> float:
        return time.monotonic() + self.wrong_seconds


class Stage:
    """The database and its connections, one for each player; kept while players come and go."""

    def __init__(self, database: Emptied) -> None:
        self.database = database
        self.loop = asyncio.new_event_loop()
        self.stores = [
            Database(database.url, application_name=f"player-{n}", lease_seconds=60) for n in range(WORKERS + 3)
        ]

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(doing)

    def close(self) -> None:
        for each in self.stores:
            self.run(each.close())
        self.loop.close()
