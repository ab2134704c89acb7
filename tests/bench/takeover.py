"""`kill -9` of a worker that holds leases: how long until others hold its rows, on the same host and on another?

Real PostgreSQL, real anvil, the real program. Rounds are made so that nothing but the give-back and the bell can
explain the speed: the lease is 30 s and the poll interval 15 s, and from before each kill until the rows are taken
the chain is stopped (SIGSTOP), so that the dead worker's replacement, which serves nothing before it has seen the
chain, can neither take the rows nor ring. When the chain goes on, the replacement rings: that begins the next round,
so nobody waits for a poll there either.

A worker holds leases at its kill for certain: its view waits for a lock of ours, it is stopped, the lock goes, the
database still shows it as the holder, and only then it is killed. What counts as taken is a higher epoch.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from reconsup.demo.anvil import Anvil
from reconsup.store import embedded, migrate
from tests.bench.stage import percentile
from tests.support.hosts import TOUGH
from tests.support.postgres import insert_request
from tests.support.program import Program, wait_for

ROWS = 20
WORKERS = 4
LEASE_SECONDS = 30
POLL_SECONDS = 15  # the default
OTHER_POLL_SECONDS = 1.0
OTHER_KILLS_MAX = 20
FLEET_KILLS_MAX = 50  # then a fresh supervisor
LOOK_SECONDS = 0.002
GIVE_UP_SECONDS = LEASE_SECONDS + 10
GOAL_MEDIAN_MS = 150
GOAL_P99_MS = 500

Figures = dict[str, list[float]]

REAPED = "kill → reaped by the supervisor"
GIVEN_BACK = "kill → leases given back"
STATEMENTS = "  of that, the give-back's statements"
FIRST, MIDDLE, LAST = "kill → first row taken", "kill → middle row taken", "kill → last row taken"
ROWS_HELD = "rows of the killed"
READY = "kill → replacement ready"


@dataclass
class Site:
    """The database, the chain, and the bench's own two connections."""

    url: str
    anvil: Anvil
    folder: Path
    eye: psycopg.Connection[Any]  # autocommit: inserts, looks
    blocker: psycopg.Connection[Any]
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 10**6)))

    def program(self, base: str, **options: Any) -> Program:
        """A supervisor with a worker id of its own."""
        environment = {
            "PAYMENT_REQUEST_RECONCILER_POLL_INTERVAL_SECONDS": f"{options.pop('poll', POLL_SECONDS):g}",
            "PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS": str(LEASE_SECONDS),
        }
        urls = {"local": options.pop("rpc_url", self.anvil.url)}
        options |= {"folder": self.folder, "worker_id": f"{base}{next(self.numbers)}", "code": TOUGH}
        return Program(self.url, urls, **{**environment, **options})

    @contextmanager
    def host(self, workers: int) -> Iterator[Program]:
        """A supervisor whose workers are ready and wait for the chain, which stands still."""
        self.stop_chain()
        with self.program("host", workers=workers) as program:
            try:
                program.wait_ready()
                wait_for("all workers are ready", lambda: ready_workers(program) == workers)
                yield program
            finally:  # else it drains slowly
                self.blocker.rollback()
                self.let_chain_go_on()

    def stop_chain(self) -> None:
        os.kill(self.anvil.pid, signal.SIGSTOP)

    def let_chain_go_on(self) -> None:
        os.kill(self.anvil.pid, signal.SIGCONT)

    def make_due(self) -> list[str]:
        """New requests, due at once; who claims them stops at its view of the history, until `blocker` rolls back."""
        self.blocker.execute("LOCK TABLE app.payment_request_transitions IN ACCESS EXCLUSIVE MODE")
        with self.eye.transaction():  # all at once, so that one claim takes them all
            return [insert_request(self.eye) for _ in range(ROWS)]

    def leases(self, ids: list[str]) -> dict[str, tuple[str | None, int]]:
        """Owner and epoch of each row."""
        query = "SELECT id, reconcile_lease_owner, reconcile_lease_epoch FROM app.payment_requests WHERE id = ANY(%s)"
        return {id_: (owner, epoch) for id_, owner, epoch in self.eye.execute(query, [ids]).fetchall()}

    def holders(self, ids: list[str]) -> dict[str, list[str]]:
        """Who holds which of these rows, once somebody holds each; several where claims met."""
        rows_of: dict[str, list[str]] = defaultdict(list)
        for id_, (owner, _) in self.leases(ids).items():
            if owner is None:
                return {}
            rows_of[owner].append(id_)
        return rows_of

    def settle(self, ids: list[str]) -> None:
        """Wait until nobody holds the rows and their crashes are forgiven, then take them away."""
        query = """
            SELECT count(*) = 0 FROM app.payment_requests
            WHERE id = ANY(%s) AND (reconcile_lease_owner IS NOT NULL OR reconcile_crashes > 0)"""
        wait_for("the rows are looked at by others", lambda: self.eye.execute(query, [ids]).fetchall()[0][0])
        self.eye.execute("DELETE FROM app.payment_requests WHERE id = ANY(%s)", [ids])

    def serving(self, program: Program) -> int:
        """How many workers have seen the chain: their scanner then speaks to the database, over a second connection."""
        query = """
            SELECT count(*) FROM (
              SELECT application_name FROM pg_stat_activity
              WHERE application_name = ANY(%s) GROUP BY 1 HAVING count(*) >= 2) AS serving"""
        owners = [Owner.of(entry["lease_owner"]) for entry in program.events("worker_started")]
        names = [f"reconsup/{owner.incarnation}" for owner in owners]
        return int(self.eye.execute(query, [names]).fetchall()[0][0])


@contextmanager
def open_site() -> Iterator[Site]:
    """A durable PostgreSQL, a chain with a few blocks, and a cursor that has read them."""
    with (
        tempfile.TemporaryDirectory(prefix="reconsup-bench-") as folder,
        embedded.start(Path(folder) / "pg") as server,
        Anvil(block_seconds=0) as anvil,
    ):
        migrate.upgrade(server.url, say=lambda _: None)
        anvil.rpc("anvil_mine", 3)
        with psycopg.connect(server.url, autocommit=True) as eye, psycopg.connect(server.url) as blocker:
            site = Site(server.url, anvil, Path(folder), eye, blocker)
            with site.program("first", workers=1) as program:
                program.wait_ready()
                born = "SELECT 1 FROM app.chain_cursors WHERE tip_time IS NOT NULL"
                wait_for("the chain is read", lambda: eye.execute(born).fetchall())
            try:
                yield site
            finally:
                site.let_chain_go_on()


def seize(site: Site, program: Program, owner: str, ids: list[str]) -> int:
    """Stop the worker that holds these rows, and be sure that it still does; its pid."""
    pid = program.pids()[Owner.of(owner).slot]
    os.kill(pid, signal.SIGSTOP)
    wait_for("the holder is stopped", lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T")
    site.blocker.rollback()
    assert set(site.holders(ids)) == {owner}, "the holder lost its rows before it was killed"
    return pid


@dataclass
class Kill:
    """One death and what followed. `took` holds, in milliseconds, when each row was first seen with a higher epoch."""

    owner: str
    killed_at: float  # wall clock, as in the log
    took: list[float]
    takers: set[str]


def kill_and_watch(site: Site, pid: int, ids: list[str]) -> Kill:
    """Kill the (stopped) holder; look again and again until each of its rows was granted to somebody else."""
    before = site.leases(ids)
    (dead,) = {str(owner) for owner, _ in before.values()}
    took: dict[str, float] = {}
    takers = set()
    wall, started = time.time(), time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while len(took) < len(ids):
        leases = site.leases(ids)
        elapsed = time.monotonic() - started
        assert elapsed < GIVE_UP_SECONDS, f"not taken over: {sorted(set(ids) - set(took))}"
        for id_, (owner, epoch) in leases.items():
            if epoch > before[id_][1]:
                took.setdefault(id_, elapsed * 1000)
                takers |= {owner} - {None}
        time.sleep(LOOK_SECONDS)
    assert dead not in takers
    return Kill(dead, wall, sorted(took.values()), takers)


@dataclass(frozen=True)
class Owner:
    """The parts of `BASE-SLOT#INCARNATION`."""

    base: str
    slot: int
    incarnation: str

    @classmethod
    def of(cls, text: str) -> "Owner":
        worker_id, _, incarnation = text.partition("#")
        base, _, slot = worker_id.rpartition("-")
        return cls(base, int(slot), incarnation)


def ready_workers(program: Program) -> int:
    """How many of a fresh supervisor's workers were ready once."""
    names = {str(entry["worker_id"]) for entry in program.events("process_ready")}
    return sum(name.removeprefix(f"{program.log.stem}-").isdigit() for name in names)


def told(program: Program, event: str, since: float, **wanted: Any) -> tuple[float, dict[str, Any]]:
    """Wait for a line of the program's log; milliseconds after `since`, and the line."""

    def look() -> tuple[float, dict[str, Any]] | None:
        for entry in program.events(event):
            at = datetime.fromisoformat(entry["timestamp"]).timestamp()
            if at >= since and all(entry.get(name) == value for name, value in wanted.items()):
                return (at - since) * 1000, entry
        return None

    return wait_for(f"{event} {wanted}", look)


def same_host(site: Site, kills: int, say: Any) -> tuple[Figures, dict[str, float]]:
    """The figures of so many kills, and how many supervisors and takers there were."""
    figures: Figures = defaultdict(list)
    takers: list[int] = []
    supervisors = 0
    while (done := len(figures[LAST])) < kills:
        supervisors += 1
        say(f"supervisor {supervisors}, {done} of {kills} kills")
        _with_one_supervisor(site, min(FLEET_KILLS_MAX, kills - done), figures, takers)
    return dict(figures), {
        "supervisors": supervisors,
        "takers_median": median(takers),
        "rows_median": median(figures.pop(ROWS_HELD)),
    }


def _with_one_supervisor(site: Site, kills: int, figures: Figures, takers: list[int]) -> None:
    with site.host(WORKERS) as program:
        for _ in range(kills):
            ids = site.make_due()
            site.let_chain_go_on()  # who has not served yet rings, and everybody looks
            rows_of = wait_for("all rows are held", lambda ids=ids: site.holders(ids))
            owner = max(rows_of, key=lambda each: len(rows_of[each]))
            wait_for("all workers serve", lambda: site.serving(program) == WORKERS)
            pid = seize(site, program, owner, rows_of[owner])
            site.stop_chain()
            kill = kill_and_watch(site, pid, rows_of[owner])
            _note(program, kill, figures)
            takers.append(len(kill.takers))
            site.settle(ids)


def _note(program: Program, kill: Kill, figures: Figures) -> None:
    """What the rows show and what the program's log says of this death."""
    figures[ROWS_HELD].append(len(kill.took))
    figures[FIRST].append(kill.took[0])
    figures[MIDDLE].append(kill.took[len(kill.took) // 2])
    figures[LAST].append(kill.took[-1])
    reaped, _ = told(program, "process_left", kill.killed_at, incarnation=Owner.of(kill.owner).incarnation)
    figures[REAPED].append(reaped)
    given_back, entry = told(program, "leases_of_the_dead_released", kill.killed_at, dead=kill.owner)
    assert entry["requests"] == len(kill.took)
    figures[GIVEN_BACK].append(given_back)
    figures[STATEMENTS].append(float(entry["latency_ms"]))
    # waited for in any case: it begins the next round
    ready, _ = told(program, "process_ready", kill.killed_at, worker_id=kill.owner.partition("#")[0])
    figures[READY].append(ready)


def other_host(site: Site, kills: int, say: Any) -> tuple[Figures, dict[str, float]]:
    """A host with one worker dies; nobody on it can take the rows, and the other host hears no bell."""
    figures: Figures = defaultdict(list)
    chance = random.Random(1)
    supervisors = 0
    with site.program("other", workers=1, poll=OTHER_POLL_SECONDS) as other:
        other.wait_ready()
        wait_for("the other host serves", lambda: site.serving(other) == 1)
        while (done := len(figures[LAST])) < kills:
            supervisors += 1
            say(f"other host: supervisor {supervisors}, {done} of {kills} kills")
            with site.host(workers=1) as program:
                for _ in range(min(FLEET_KILLS_MAX, kills - done)):
                    if not _with_two_hosts(site, program, other.log.stem, chance, figures):
                        break
    return dict(figures), {"supervisors": supervisors}


def _with_two_hosts(site: Site, program: Program, other: str, chance: random.Random, figures: Figures) -> bool:
    """One kill; False if the other host's poll came first and there is nobody to kill."""
    ids = site.make_due()
    site.let_chain_go_on()
    rows_of = wait_for("all rows are held", lambda: site.holders(ids))
    owner = next(iter(rows_of))
    is_ours = len(rows_of) == 1 and Owner.of(owner).base == program.log.stem
    if is_ours:
        # the other host's poll follows its last look: without this the kill would always meet the same part of it
        time.sleep(chance.uniform(0, OTHER_POLL_SECONDS))
        pid = seize(site, program, owner, ids)
        site.stop_chain()
        kill = kill_and_watch(site, pid, ids)
        assert {Owner.of(taker).base for taker in kill.takers} == {other}, kill.takers
        _note(program, kill, figures)
    site.blocker.rollback()
    site.settle(ids)
    return is_ours


def spread(values: list[float]) -> dict[str, float]:
    """Median, tails and number of one figure."""
    tails = {"p90": percentile(values, 0.9), "p99": percentile(values, 0.99), "max": max(values)}
    return {"median": median(values), **tails, "count": len(values)}


def summary(figures: Figures) -> dict[str, dict[str, float]]:
    """What the JSON says of them."""
    return {
        name.strip(): {what: round(value, 1) for what, value in spread(values).items()}
        for name, values in figures.items()
        if values
    }


def show(title: str, figures: Figures, unit: str = "ms", scale: float = 1.0) -> None:
    """Print one table."""
    print(f"\n{title}")
    print(f"  {'':<48}{'median':>9}{'p90':>9}{'p99':>9}{'max':>9}{'count':>7}   ({unit})")
    for name in (REAPED, STATEMENTS, GIVEN_BACK, FIRST, MIDDLE, LAST, READY):
        if figures.get(name):
            *parts, count = spread([value / scale for value in figures[name]]).values()
            print(f"  {name:<48}{''.join(f'{part:>9.{0 if scale == 1 else 2}f}' for part in parts)}{count:>7}")


def main() -> int:
    """Print the figures; an exception if a row was not taken over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)

    began = time.monotonic()
    with open_site() as site:
        same, counted = same_host(site, given.kills, say)
        away, counted_away = other_host(site, min(OTHER_KILLS_MAX, given.kills), say)
    say("")
    show(
        f"take-over on the same host: {len(same[LAST])} kills of a worker that held {counted['rows_median']:g} rows; "
        f"{WORKERS} workers, lease {LEASE_SECONDS} s, poll {POLL_SECONDS} s; {counted['supervisors']} supervisors",
        same,
    )
    show(
        f"on another host: {len(away[LAST])} kills of a host's only worker, {ROWS} rows each; the other's poll "
        f"{OTHER_POLL_SECONDS:g} s; {counted_away['supervisors']} supervisors",
        {name: away[name] for name in (FIRST, LAST)},
        "of its polls",
        OTHER_POLL_SECONDS * 1000,
    )
    print(
        f"\nKilled is a stopped worker that the database shows as the holder; taken: the row's epoch rose, seen within "
        f"{LOOK_SECONDS * 1000:g} ms.\nEach row counts a crash and so is taken alone, by {counted['takers_median']:g} "
        f"others; the replacement has not seen the chain yet and cannot help. {time.monotonic() - began:.0f} s in all."
    )
    for name in (FIRST, LAST):
        for what, found, goal in (
            ("median", median(same[name]), GOAL_MEDIAN_MS),
            ("p99", percentile(same[name], 0.99), GOAL_P99_MS),
        ):
            print(f"{name}: {what} {found:.0f} ms, goal {goal} ms {'met' if found < goal else 'MISSED'}")
    if given.json:
        result = {"same_host_ms": summary(same) | counted, "other_host_ms": summary(away) | counted_away}
        given.json.write_text(json.dumps(result | {"other_poll_ms": OTHER_POLL_SECONDS * 1000}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
