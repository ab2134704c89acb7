"""What the supervisor's own pages say: /status and /metrics, read as an operator's tools read them.

No answer is an answer here (the monitor may be starting, or be gone): None, never an exception.
"""

import http.client
import json
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Seat:
    """One worker as /status shows it."""

    worker_id: str
    incarnation: str | None
    pid: int | None
    state: str
    restarts: int
    leases: int

    @property
    def owner(self) -> str:
        """What its leases say."""
        return f"{self.worker_id}#{self.incarnation}"


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers in order of slot, and who reads the chain (a lease owner)."""

    seats: tuple[Seat, ...]
    scan_owner: str | None

    def all_ready(self, workers: int) -> bool:
        """Whether so many workers are there and ready."""
        return len(self.seats) == workers and all(seat.state == "ready" for seat in self.seats)

    def seat_of(self, owner: str) -> Seat | None:
        """The seat in which the owner of a lease sits."""
        return next((seat for seat in self.seats if seat.owner == owner), None)


class Pages:
    """The pages of the supervisor that listens on a loopback port, over one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)

    def fleet(self) -> Fleet | None:
        """What /status says about the workers."""
        body = self._get("/status")
        if body is None:
            return None
        status: dict[str, Any] = json.loads(body)
        seats = tuple(
            Seat(*(each[name] for name in ("worker_id", "incarnation", "pid", "state", "restarts", "leases")))
            for each in status["workers"]
        )
        return Fleet(seats, next((each["holder"] for each in status["networks"].values()), None))

    def metric(self, name: str) -> int | None:
        """The sum of a counter over all its labels, from /metrics."""
        body = self._get("/metrics")
        if body is None:
            return None
        families = text_string_to_metric_families(body)
        return round(sum(each.value for family in families for each in family.samples if each.name == name))

    def _get(self, path: str) -> str | None:
        try:
            self._connection.request("GET", path)
            answer = self._connection.getresponse()
            body = answer.read().decode()
        except (OSError, http.client.HTTPException):
            self._connection.close()  # the next request opens another
            return None
        return body if answer.status == http.HTTPStatus.OK else None
