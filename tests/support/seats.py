"""Folders of counts as processes leave them: `with_counters` runs Python in a process that forks and counts."""

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from reconsup.monitor import metrics
from reconsup.payments.request import TRANSITIONS

NETWORKS = ("mainnet", "base", "arbitrum")
METHODS = (
    *("eth_blockNumber", "eth_call", "eth_chainId", "eth_getBalance", "eth_getBlockByHash", "eth_getBlockByNumber"),
    *("eth_getBlockReceipts", "eth_getProof", "eth_getTransactionCount", "debug_traceBlockByHash"),
)
PREAMBLE = """
import mmap, os, random, resource, signal, sys, time
from pathlib import Path
from reconsup import logs
from reconsup.monitor import metrics, page
logs.configure("json")
directory = Path(sys.argv[1])

def fork(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid

def in_child(slot, work, *, killed=False):
    def life():
        metrics.open(directory, str(slot))
        work()
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(fork(life), 0)
    assert os.WIFSIGNALED(status) == killed, status

def total(text, name="reconsup_requests_claimed_total"):
    return sum(float(line.split()[-1]) for line in text.decode().splitlines() if line.split("{")[0].split()[0] == name)
"""


def with_counters(directory: Path, script: str, *, under: Sequence[str] = (), seconds: float = 60) -> str:
    """What `script` prints, with the helpers above at hand; it must not fail. `under`: a command to run it under."""
    done = run(directory, script, under=under, seconds=seconds)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


def run(
    directory: Path, script: str, *, under: Sequence[str] = (), seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """The same, for one that may fail; stderr is the log."""
    command = [*under, sys.executable, "-c", PREAMBLE + script, str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The page as a scraper reads it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, **labels: str) -> float:
    """One sample of the page."""
    return samples(text)[name, frozenset(labels.items())]


def work_busily(chance: random.Random) -> None:
    """Count all that a worker of three networks counts in practice, each worker in another order."""
    acts = [(_call, network, method) for network in NETWORKS for method in METHODS]
    acts += [(_follow, network, "") for network in NETWORKS] + [(_decide, "", "")]
    chance.shuffle(acts)
    for act, network, method in acts:
        act(network, method)
    metrics.CYCLE_SECONDS.observe(chance.random())


def _call(network: str, method: str) -> None:
    metrics.RPC_SECONDS.observe(0.03, network, method)
    for outcome in ("ok", "error", "timeout"):
        metrics.RPC_REQUESTS.inc(1, network, method, outcome)


def _follow(network: str, _: str) -> None:
    for counter in (metrics.BLOCKS_SCANNED, metrics.SPAN_BLOCKS, metrics.REORGS, metrics.AUDITS):
        counter.inc(3, network)
    metrics.AUDIT_FAILURES.inc(1, network)
    metrics.RPC_DISAGREEMENTS.inc(1, network)


def _decide(_: str, __: str) -> None:
    metrics.CLAIMED.inc(200)
    for before, after in sorted(TRANSITIONS):
        metrics.TRANSITIONS.inc(1, before, after, "payment_detected")
    for reason in ("lease_lost", "status_moved", "touched"):
        metrics.WRITES_REFUSED.inc(1, reason)


def main() -> int:
    """`python -m tests.support.seats DIRECTORY SEATS`: what so many busy workers leave."""
    directory, seats = Path(sys.argv[1]), int(sys.argv[2])
    for seat in range(seats):
        metrics.open(directory, str(seat))
        work_busily(random.Random(seat))
    return 0


def fill(directory: Path, seats: int) -> None:
    """The same, from a program that does not itself want to count."""
    subprocess.run([sys.executable, "-m", "tests.support.seats", str(directory), str(seats)], check=True)


if __name__ == "__main__":
    sys.exit(main())
