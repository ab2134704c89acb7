"""`make local-down`: the supervisors drain, it is seen that no lease is left, then the rest stops. Only ours."""

import json
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import LiteralString

import psycopg

from tests.local.knobs import DRAIN_SECONDS
from tests.local.parts import Part, wait_until
from tests.local.place import Place, shown
from tests.local.trouble import Trouble

Say = Callable[[str], None]

LEAVE_SECONDS = DRAIN_SECONDS + 10.0  # what has not left by then is killed
STOP_SECONDS = 40.0  # PostgreSQL's own three ways take 30 s at most

_LEASES: LiteralString = """
SELECT 'request ' || id, reconcile_lease_owner FROM app.payment_requests WHERE reconcile_lease_owner IS NOT NULL
UNION ALL SELECT 'the scan of ' || network, scan_lease_owner FROM app.chain_cursors WHERE scan_lease_owner IS NOT NULL
UNION ALL SELECT 'old blocks of ' || network, lease_owner FROM app.chain_spans WHERE lease_owner IS NOT NULL
"""


def down(place: Place, say: Say, *, keeps_data: bool) -> None:
    """Take it down; Trouble if one had to be killed, or a lease is left. All is stopped even then."""
    known = [*place.supervisors(), *(part for part in (place.chain, place.database) if part.record.exists())]
    if not known:
        say("nothing is up")
    supervisors = place.supervisors()
    faults = drain(place, supervisors, say)
    if supervisors or place.database.record.exists():
        faults += _leases(place, say)
    stop(place.chain, say)
    stop(place.database, say)
    if keeps_data:
        if known:
            say(f"the data and the logs stay in {shown(place.folder)} (LOCAL_KEEP_DATA=0 removes them)")
    else:
        place.remove()
        say(f"the data and the logs in {shown(place.folder)} are removed")
    if faults:
        raise Trouble(*faults)


def drain(place: Place, parts: Sequence[Part], say: Say) -> list[str]:
    """Ask all to leave, at once, and wait; what is not as it should be."""
    faults = []
    asked_at = time.monotonic()
    asked = {part.name: part.signal(signal.SIGTERM) for part in parts}
    for part in parts:
        if not part.has_gone(asked_at + LEAVE_SECONDS - time.monotonic()):
            part.signal(signal.SIGKILL)
            part.has_gone(LEAVE_SECONDS)
            faults.append(
                f"{part.name} did not leave within {LEAVE_SECONDS:.0f} s and was killed: see {shown(part.log)}"
            )
        elif not asked[part.name]:
            say(f"{part.name}: it had died: see {shown(part.log)}")
        else:
            faults += _left(part, time.monotonic() - asked_at, say)
        faults += _orphans(place, part)  # before it is forgotten who they belong to
        part.forget()
    return faults


def _left(part: Part, seconds: float, say: Say) -> list[str]:
    code = _exit_code(part)
    say(f"{part.name}: drained in {seconds:.2f} s, exit {'?' if code is None else code}")
    return [] if code == 0 else [f"{part.name} ended with exit code {code}, not 0: see {shown(part.log)}"]


def _exit_code(part: Part) -> int | None:
    """What the supervisor says itself: it is nobody's child."""
    for line in reversed(part.log.read_text(errors="replace").splitlines()):
        with suppress(ValueError):
            event = json.loads(line)
            if event.get("event") == "supervisor_stopped":
                return int(event["exit_code"])
    return None


def _orphans(place: Place, part: Part) -> list[str]:
    """Wait for workers whose supervisor was killed: they drain by themselves."""
    left: list[int] = []
    for _ in wait_until(LEAVE_SECONDS):
        left = part.left_behind(str(place.env_file(part.name)))
        if not left:
            return []
    return [f"workers of {part.name} are still there without it: processes {', '.join(map(str, left))}"]


def _leases(place: Place, say: Say) -> list[str]:
    plan = place.plan()
    if plan is None or place.database.pid is None:
        return ["PostgreSQL does not run: whether a lease is left could not be seen"]
    try:
        with psycopg.connect(plan.database_url, connect_timeout=10) as connection:
            left = connection.execute(_LEASES).fetchall()
    except psycopg.Error as error:
        return [
            f"PostgreSQL does not answer ({' '.join(str(error).split())}): whether a lease is left could not be seen"
        ]
    if not left:
        say("no lease is left")
    return [f"a lease is left: {what}, held by {owner}" for what, owner in left]


def stop(part: Part, say: Say) -> None:
    """Stop a keeper and what it keeps."""
    if not part.record.exists():
        return
    began_at = time.monotonic()
    if not part.signal(signal.SIGTERM):
        say(f"the {part.name}: it had died: see {shown(part.log)}")
    elif part.has_gone(STOP_SECONDS):
        say(f"the {part.name}: stopped in {time.monotonic() - began_at:.2f} s")
    else:
        part.signal(signal.SIGKILL)  # the kernel ends what it keeps
        part.has_gone(STOP_SECONDS)
        say(f"the {part.name}: did not stop within {STOP_SECONDS:.0f} s and was killed")
    part.forget()
