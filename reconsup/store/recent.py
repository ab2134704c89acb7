"""What people are shown of the database while they look: the last entries of the history, and the hosts.

One statement. It reads the end of the history along its key, looks up the requests of these few entries by theirs, and
reads the small table of hosts. It has its own short time-out, so that nobody who watches holds up who works.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

from reconsup.store.database import Database, Transaction
from reconsup.store.hosts import is_gone

TRANSITIONS_MAX = 20
HOSTS_MAX = 50
TEXT_MAX = 200  # letters of a text that others wrote
SECONDS_MAX = 1.0  # less than the connection waits for a lock, which is retried

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recent:
    """The newest first. Plain values as JSON has them: texts that others wrote may be anything. Moments are ISO 8601,
    amounts digits, `…_ago` seconds by the database's clock.
    """

    transitions: Sequence[Entry]
    hosts: Sequence[Entry]


async def read(database: Database) -> Recent:
    """Look once. Raises StoreUnavailable."""

    async def work(transaction: Transaction) -> Recent:
        await transaction.send(_LIMIT_TIME, {"limit": f"{int(SECONDS_MAX * 1000)}ms"})
        ((transitions, hosts),) = await transaction.rows(
            _RECENT, {"transitions": TRANSITIONS_MAX, "hosts": HOSTS_MAX, "text": TEXT_MAX}
        )
        return Recent(transitions, [host | {"gone": _is_gone(host)} for host in hosts])

    return await database.transact(work)


def _is_gone(host: Entry) -> bool:
    return is_gone(host["state"], host["fresh_seconds"], host["seen_seconds_ago"])


_LIMIT_TIME: LiteralString = "SELECT set_config('statement_timeout', %(limit)s, true)"

# OFFSET 0: the few entries first, then what belongs to them.
_RECENT: LiteralString = """
SELECT (
  SELECT COALESCE(jsonb_agg(to_jsonb(entry) ORDER BY entry.id DESC), '[]') FROM (
    SELECT t.id, left(t.payment_request_id, %(text)s) AS request_id, t.from_status, t.to_status,
           left(t.reason, %(text)s) AS reason, t.amount_minor::text AS amount_minor,
           t.expected_amount_minor::text AS expected_amount_minor, t.confirmations,
           left(t.evidence -> 0 ->> 'error', %(text)s) AS error, left(t.worker_id, %(text)s) AS worker_id,
           t.created_at AS at, GREATEST(extract(epoch FROM now() - t.created_at), 0)::float8 AS seconds_ago,
           left(r.network, %(text)s) AS network, left(r.asset, %(text)s) AS asset, r.token_decimals,
           COALESCE(r.token_standard, '') = '' AND COALESCE(r.token_contract, '') = '' AS is_native
    FROM (SELECT * FROM app.payment_request_transitions ORDER BY id DESC LIMIT %(transitions)s OFFSET 0) AS t
    LEFT JOIN app.payment_requests r ON r.id = t.payment_request_id) AS entry
) AS transitions, (
  SELECT COALESCE(jsonb_agg(to_jsonb(host) ORDER BY host.base), '[]') FROM (
    SELECT h.base, h.pid, left(h.version, %(text)s) AS version, h.started_at, h.slots,
           GREATEST(extract(epoch FROM now() - h.last_seen_at), 0)::float8 AS seen_seconds_ago,
           h.status -> 'state' AS state, h.status -> 'workers_wanted' AS workers_wanted,
           h.status -> 'fresh_seconds' AS fresh_seconds, h.status -> 'networks' AS networks,
           jsonb_array_length(jsonb_path_query_array(h.status, '$.workers[*] ? (@.state == "ready")')) AS workers_ready
    FROM app.reconsup_hosts h WHERE h.last_seen_at > now() - interval '1 day'
    ORDER BY h.last_seen_at DESC LIMIT %(hosts)s) AS host
) AS hosts
"""
