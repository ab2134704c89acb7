"""TERM while work is slow: how long until the last worker has left, and until the supervisor has?

Two workers and a deadline of 2 s. In half of the rounds the endpoint answers after 4 s, in the other half a statement
waits for a lock that nobody gives up; each round begins when such a call, or such a statement, is under way. Nobody may
be there later than 250 ms after the deadline: no worker, nor the supervisor, which leaves after the monitor has given
back what the killed held. (Where the database is away too, the monitor has its own few seconds.)
"""

import argparse
import json
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.bench.takeover import Figures, Site, open_site, spread
from tests.support.hosts import Ends
from tests.support.program import Program, wait_for
from tests.support.proxy import Proxy, proxy_before

ROUNDS = 50
WORKERS = 2
DRAIN_SECONDS = 2.0
SLACK_SECONDS = 0.25
ANSWER_SECONDS = 4.0
SETTINGS = {
    "RECONSUP_DRAIN_SECONDS": f"{DRAIN_SECONDS:g}",
    "RECONSUP_RPC_TIMEOUT_SECONDS": "6",
    "workers": WORKERS,
    "poll": 0.2,
}
CALL, STATEMENT, IDLE = "a slow RPC call", "a slow statement", "nothing under way"
WORKERS_GONE, SUPERVISOR_GONE = "TERM → last worker gone", "TERM → supervisor gone"


def begin(what: str, site: Site, proxy: Proxy) -> None:
    """See that such a thing is under way."""
    if what == CALL:
        proxy.delay_seconds = ANSWER_SECONDS
        proxy.requests.clear()
        wait_for("a call is under way", lambda: proxy.requests)
    elif what == STATEMENT:
        ids = site.make_due()
        wait_for("a statement waits", lambda: site.holders(ids))


def end(site: Site, proxy: Proxy) -> None:
    """Let go of it, of the rows, and of the scan lease that a killed worker may have left: the next round needs it."""
    proxy.delay_seconds = 0.0
    site.blocker.rollback()
    site.eye.execute("DELETE FROM app.payment_requests")
    site.eye.execute("UPDATE app.chain_cursors SET scan_lease_owner = NULL, scan_lease_until = NULL")


def drained(program: Program) -> tuple[float, float]:
    """TERM: milliseconds until the last worker has left, and the supervisor."""
    workers = list(program.pids().values())
    assert len(workers) == WORKERS
    with Ends(workers) as of_workers, Ends([program.process.pid]) as of_supervisor:
        began = time.monotonic()
        program.process.send_signal(signal.SIGTERM)
        gone = [ends.wait(began + DRAIN_SECONDS + 20) - began for ends in (of_workers, of_supervisor)]
    assert program.process.wait(5) == 0
    return gone[0] * 1000, gone[1] * 1000


def measure(rounds: int) -> dict[str, Figures]:
    """What was under way → the two figures, in milliseconds."""
    found: dict[str, Figures] = defaultdict(lambda: defaultdict(list))
    with open_site() as site, proxy_before(site.anvil.url) as proxy:
        for number in range(rounds + rounds // 5):
            what = IDLE if number >= rounds else (CALL, STATEMENT)[number % 2]
            with site.program("drain", rpc_url=proxy.url, **SETTINGS) as program:
                program.wait_ready()
                wait_for("all are ready", lambda at=program: len(at.pids()) == WORKERS)
                wait_for("somebody serves", lambda at=program: site.serving(at))
                try:
                    begin(what, site, proxy)
                    workers, supervisor = drained(program)
                finally:
                    end(site, proxy)
            found[what][WORKERS_GONE].append(workers)
            found[what][SUPERVISOR_GONE].append(supervisor)
    return found


def show(what: str, figures: Figures) -> None:
    """Print one table."""
    print(f"\n{what}, deadline {DRAIN_SECONDS:g} s")
    print(f"  {'':<28}{'median':>9}{'p90':>9}{'p99':>9}{'max':>9}{'count':>7}   (ms)")
    for name, values in figures.items():
        *parts, count = spread(values).values()
        print(f"  {name:<28}{''.join(f'{part:>9.0f}' for part in parts)}{count:>7}")


def main() -> int:
    """1 if anybody was there after the deadline and its slack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = measure(given.rounds)
    for what, figures in found.items():
        show(what, figures)
    limit = (DRAIN_SECONDS + SLACK_SECONDS) * 1000
    late = [ms for figures in found.values() for values in figures.values() for ms in values if ms > limit]
    print(f"\nlater than the deadline + {SLACK_SECONDS * 1000:g} ms: {len(late)} of {given.rounds} rounds")
    if given.json:
        given.json.write_text(
            json.dumps({what: {n: spread(v) for n, v in each.items()} for what, each in found.items()})
        )
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
