"""The whole bench: each part as a program of its own, one after the other; one JSON file of all of them.

A part that fails is said to have failed, and the others go on. Figures are of this machine, and of what else it was
doing: the load is written beside them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PARTS = {
    "thousand": "1,000 payments over 100 blocks: seconds and JSON-RPC calls",
    "throughput": "claim → decide → persist beside bare psycopg and pgbench",
    "scaling": "the same with two and four processes",
    "claims": "a claim at 10 k, 100 k and 1 M open requests; nothing due; a snapshot held open",
    "economy": "what the chain is asked per block at 100, 10 k and 100 k open requests: scan, audit, a span",
    "catchup": "catching up 10,000 near-empty and 500 busy blocks beside a bare loop that only fetches",
    "latency": "block mined → status committed, polling every second and as often as is sensible",
    "commits": "the commit of a busy block at 1 k and 1 M open requests",
    "writes": "statements, WAL and row versions per processed request",
    "proof": "parse, decode and prove a block of 200 transactions and 500 logs",
    "scrape": "a scrape of 1, 4, 64 and 512 busy seats beside the library's own collector; what a count costs",
    "preload": "fork → ready and the memory of each process, with the preload and without, and of the packaged binary",
    "packages": "size, start and memory of the wheel, the binary and the shiv (the last two where they were made)",
    "takeover": "kill -9 of a worker that holds leases, 200 times: its replacement, and its leases at others",
    "drain": "TERM while an RPC call or a statement is slow: 50 times, with a deadline of 2 s",
    "orphans": "kill -9 of a supervisor: until no process of its is left, 50 times",
    "storm": "10,000 signals to the supervisor while workers die: nothing is missed",
    "rivals": "the queue libraries that Python users would take",
}


def run(part: str, folder: Path) -> dict[str, Any]:
    """One part; what it measured."""
    print(f"\n=== {part}: {PARTS[part]}", flush=True)
    file = folder / f"{part}.json"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", f"tests.bench.{part}", "--json", str(file)], check=False)
    seconds = round(time.monotonic() - started)
    print(f"  ({seconds} s, load {os.getloadavg()[0]:.1f})", flush=True)
    found = json.loads(file.read_text()) if file.exists() else None
    return {"exit": done.returncode, "seconds": seconds, "load": os.getloadavg()[0], "found": found}


def main() -> int:
    """Run the parts; 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("dist/bench.json"))
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    with tempfile.TemporaryDirectory(prefix="reconsup-bench-") as folder:
        found = {part: run(part, Path(folder)) for part in given.parts or PARTS}
    machine = {"processors": os.cpu_count(), "python": platform.python_version(), "psycopg": version("psycopg")}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({"machine": machine, "parts": found}, indent=2) + "\n")
    failed = [part for part, each in found.items() if each["exit"] != 0]
    print(f"\nwritten to {given.json}" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
