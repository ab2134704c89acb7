"""kill -9 of a supervisor with four workers and a monitor: how long until none of them is left?

In half of the rounds the endpoint answers after 4 s and a call is under way, with a drain deadline of 2 s: who cannot
leave by itself is ended by the kernel then. In the other half there is nothing to wait for.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path

from tests.bench.drain import CALL, DRAIN_SECONDS, IDLE, SETTINGS, SLACK_SECONDS, begin, end
from tests.bench.takeover import Figures, open_site, spread
from tests.support.hosts import MARK, Ends, children, marked
from tests.support.program import wait_for
from tests.support.proxy import proxy_before

ROUNDS = 50
WORKERS = 4


def measure(rounds: int) -> Figures:
    """What was under way → milliseconds from the kill to the end of the last child."""
    found: Figures = defaultdict(list)
    with open_site() as site, proxy_before(site.anvil.url) as proxy:
        for number in range(2 * rounds):
            what = (CALL, IDLE)[number % 2]
            mark = f"{os.getpid()}-{number}."
            with site.program("orphans", rpc_url=proxy.url, **{**SETTINGS, "workers": WORKERS, MARK: mark}) as program:
                program.wait_ready()
                wait_for("all are ready", lambda at=program: len(at.pids()) == WORKERS)
                wait_for("somebody serves", lambda at=program: site.serving(at))
                try:
                    begin(what, site, proxy)
                    with Ends(children(program.process.pid)) as ends:
                        began = time.monotonic()
                        program.process.send_signal(signal.SIGKILL)
                        found[what].append((ends.wait(began + DRAIN_SECONDS + 20) - began) * 1000)
                finally:
                    end(site, proxy)
                program.process.wait()
                assert marked(mark) == {}
    return found


def main() -> int:
    """1 if somebody was there later than the drain deadline and its slack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measure(given.rounds)
    print(f"\nkill -9 of a supervisor with {WORKERS} workers → its last child gone; drain deadline {DRAIN_SECONDS:g} s")
    print(f"  {'':<28}{'median':>9}{'p90':>9}{'p99':>9}{'max':>9}{'count':>7}   (ms)")
    for what, values in found.items():
        *parts, count = spread(values).values()
        print(f"  {what:<28}{''.join(f'{part:>9.0f}' for part in parts)}{count:>7}")
    if given.json:
        given.json.write_text(json.dumps({what: spread(values) for what, values in found.items()}))
    return 1 if max(max(values) for values in found.values()) > (DRAIN_SECONDS + SLACK_SECONDS) * 1000 else 0


if __name__ == "__main__":
    sys.exit(main())
