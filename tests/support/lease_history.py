"""The history of leases, kept by the database itself: an overlap is an error at the change that makes it.

A trigger on `app.payment_requests` writes every grant (request, epoch, owner, from when to when) into a table whose
exclusion constraint holds no two at the same time, and refuses what no grant explains: an epoch that jumps, goes back
or is reset, an owner who changes without one. Release, persist, hand-back and burial cut the time, a renewal extends
it. What is compared with what, and why it neither cries wolf nor sleeps, stands in lease_history.sql.

The fixtures `database` and `emptied` are under it, and look at the whole of it once more when a test is done; a test
that compares catalogues takes `unwatched`. A test that moves leases by hand does so over `database.connect()`, whose
session says so (`reconsup.by_hand`); there the row's history begins anew.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

BY_HAND = "-c reconsup.by_hand=on"  # libpq's `options` of the tests' own connections
_INSTALL = Path(__file__).with_suffix(".sql")

_GRANTS = """
SELECT c.request, g.epoch, g.owner, g.begins, g.ends FROM lease_history.grants g
JOIN lease_history.chapters c ON c.number = g.chapter ORDER BY c.request, g.chapter, g.epoch
"""

# All of it at once, without a word to the trigger: were it wrong, or switched off, this would still tell.
_COMPLAINTS = """
SELECT format('%s refusals', last_value) FROM lease_history.refusals WHERE is_called
UNION ALL
SELECT format('%s, epoch %s: after epoch %s, which ended at %s, it began at %s', c.request, g.epoch, g.last_epoch,
              g.last_ends, g.begins)
FROM (SELECT *, lag(epoch) OVER of AS last_epoch, max(ends) OVER (of ROWS UNBOUNDED PRECEDING EXCLUDE CURRENT ROW)
        AS last_ends FROM lease_history.grants WINDOW of AS (PARTITION BY chapter ORDER BY epoch)) AS g
JOIN lease_history.chapters c ON c.number = g.chapter
WHERE g.epoch <> g.last_epoch + 1 OR g.begins < g.last_ends
UNION ALL
SELECT format('%s is leased to %s until %s with epoch %s, and nobody granted that', r.id, r.reconcile_lease_owner,
              r.reconcile_lease_until, r.reconcile_lease_epoch)
FROM app.payment_requests r
WHERE r.reconcile_lease_owner IS NOT NULL AND NOT EXISTS (
  SELECT FROM lease_history.grants g
  WHERE g.chapter = (SELECT max(c.number) FROM lease_history.chapters c WHERE c.request = r.id)
    AND (g.epoch, g.owner) = (r.reconcile_lease_epoch, r.reconcile_lease_owner)
    AND g.ends = greatest(g.begins, r.reconcile_lease_until))
UNION ALL
SELECT format('%s has epoch %s and owner %s; granted was %s, until %s', r.id, r.reconcile_lease_epoch,
              coalesce(r.reconcile_lease_owner, 'nobody'), max(g.epoch), max(g.ends))
FROM app.payment_requests r JOIN lease_history.grants g
  ON g.chapter = (SELECT max(c.number) FROM lease_history.chapters c WHERE c.request = r.id)
GROUP BY r.id
HAVING max(g.epoch) <> r.reconcile_lease_epoch
    OR r.reconcile_lease_owner IS NULL AND max(g.ends) > clock_timestamp()  -- it was given back
"""


class Asked(Protocol):
    """A database of the tests."""

    def fetch(self, query: str, values: Any = None) -> list[tuple[Any, ...]]:
        """The rows of one query."""
        ...

    def execute(self, statement: str, values: Any = None) -> int:
        """The rows that one statement changed."""
        ...


@dataclass(frozen=True, slots=True)
class Grant:
    """One grant: who had which request from when to when. `ends` is what was promised, or when it was given back."""

    request: str
    epoch: int
    owner: str
    begins: datetime
    ends: datetime


def install(database: Asked) -> None:
    """Put a migrated database under the history. Leases that are there already are where it begins."""
    database.execute(_INSTALL.read_text())


def grants(database: Asked) -> list[Grant]:
    """All that was granted, by request and epoch."""
    return [Grant(*row) for row in database.fetch(_GRANTS)]


def complaints(database: Asked) -> list[str]:
    """What is wrong with the whole history, and how often something was refused; nothing, one hopes."""
    return [str(complaint) for (complaint,) in database.fetch(_COMPLAINTS)]


def forget(database: Asked) -> None:
    """Begin again with nothing."""
    database.execute("DELETE FROM lease_history.chapters")
    database.fetch("SELECT setval('lease_history.refusals', 1, false)")
