"""`make local-up-all`: what is wanted, beside what runs; only the difference is started, and drained.

So it is the same command for the first start, for other knobs, and after a crash or a reboot. A supervisor whose
settings are to change drains first and starts anew.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from reconsup.demo.pages import Pages
from reconsup.demo.stage import last_words
from reconsup.settings_table import BY_NAME
from reconsup.store import embedded, migrate
from reconsup.store.ddl import MigrationError
from tests.local import down
from tests.local.knobs import Knobs, urls_json
from tests.local.parts import Part, wait_until
from tests.local.place import PREFIX, Place, Plan, free_port, is_free, shown
from tests.local.trouble import Trouble

Say = Callable[[str], None]

READY_SECONDS = 60.0
WORLD = re.compile(r"local_[0-9a-f]{12}")  # the rows of one local chain
GIVEN = "given"  # the rows of the endpoints' chains, which stay


@dataclass(frozen=True)
class Wanted:
    """One supervisor as it is to be."""

    part: Part
    port: int
    text: str


def up(place: Place, knobs: Knobs, say: Say) -> None:
    """Bring it up; Trouble if that cannot be done. What runs by then stays, and the next `up` goes on from there."""
    chain = _kept(place, place.chain, say) if knobs.is_on_anvil else None
    server_url = _kept(place, place.database, say)["url"]
    url = _rows(server_url, chain)
    wanted = _wanted(place, knobs, url, chain)
    changed = [each for each in wanted if not _runs(place, each)]
    keep = {each.part.name for each in wanted} - {each.part.name for each in changed}
    leaving = [part for part in place.supervisors() if part.name not in keep]
    for fault in down.drain(place, leaving, say):
        say(fault)  # nothing that keeps the others from starting: what it held comes back when its lease ends
    if knobs.is_on_anvil:
        _drop_old_worlds(server_url, url, say)
    if not knobs.is_on_anvil:
        down.stop(place.chain, say)
    ports = {each.part.name: each.port for each in wanted}
    poll, lease = (
        float(knobs.settings[f"PAYMENT_REQUEST_RECONCILER_{name}_SECONDS"]) for name in ("POLL_INTERVAL", "LEASE")
    )
    place.note(Plan(url, knobs.workers.least, poll, lease, ports, chain))
    _require_free(changed)
    for each in changed:
        _start(place, each)
    for each in wanted:
        _wait_ready(each, knobs.workers.least)
    if not changed and not leaving:
        say("it is up already, with these knobs: nothing was changed")
    _show(place, knobs, wanted, say)


def _kept(place: Place, part: Part, say: Say) -> dict[str, Any]:
    """What the keeper says of its own; it is started if it does not run."""
    facts = place.folder / f"{part.name}-facts.json"
    if part.pid is None:
        if part.is_dead:
            say(f"the {part.name} had died: starting it again")
        facts.unlink(missing_ok=True)
        part.start([sys.executable, "-m", "tests.local.keep", part.name, str(place.folder)], environment())
    for _ in wait_until(READY_SECONDS):
        if facts.exists():
            return place.facts(part)
        if part.pid is None:
            raise Trouble(f"the {part.name} did not start: {_last_line(part.log)}")
    raise Trouble(f"the {part.name} was not ready within {READY_SECONDS:.0f} s: see {shown(part.log)}")


def _rows(server_url: str, chain: dict[str, Any] | None) -> str:
    """The database for this chain, migrated. A local chain ends with its anvil; its rows mean nothing on the next."""
    name = GIVEN if chain is None else f"local_{chain['genesis'][2:14]}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        if name not in there:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    url = server_url.removesuffix(embedded.DATABASE) + name
    try:
        migrate.upgrade(url, say=lambda _: None)
    except MigrationError as error:
        raise Trouble(f"the schema cannot be made: {error}") from error
    return url


def _drop_old_worlds(server_url: str, url: str, say: Say) -> None:
    """The rows of chains that are gone."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        there = [str(row[0]) for row in connection.execute("SELECT datname FROM pg_database")]
        for old in there:
            if WORLD.fullmatch(old) and not url.endswith(f"/{old}"):
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(old)))
                say("the chain is a new one: the rows of the last one are dropped")


def _wanted(place: Place, knobs: Knobs, url: str, chain: dict[str, Any] | None) -> list[Wanted]:
    rpc_urls = urls_json({"local": (chain["url"],)} if chain else knobs.rpc_urls)
    known = plan.ports if (plan := place.plan()) else {}
    wanted = []
    for number in range(knobs.replicas):
        name = f"{PREFIX}{number}"
        part = place.supervisor(name)
        port = knobs.metrics_port + number if knobs.metrics_port else 0
        port = port or (known[name] if name in known and part.pid else free_port())
        wanted.append(Wanted(part, port, knobs.env_file(name, url, rpc_urls, port)))
    return wanted


def _runs(place: Place, wanted: Wanted) -> bool:
    path = place.env_file(wanted.part.name)
    return wanted.part.pid is not None and path.exists() and path.read_text() == wanted.text


def _require_free(changed: Sequence[Wanted]) -> None:
    taken = [each for each in changed if not is_free(each.port)]
    if taken:
        raise Trouble(
            *(f"port {each.port} of 127.0.0.1 is taken, and {each.part.name} is to listen there" for each in taken),
            "stop what listens there, or choose another one with LOCAL_METRICS_PORT",
        )


def _start(place: Place, wanted: Wanted) -> None:
    path = place.env_file(wanted.part.name)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:  # the password is in it
        out.write(wanted.text)
    wanted.part.log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "reconsup", "run", "--env-file", str(path)]
    wanted.part.start([*command, "--workers", _setting(wanted.text, "RECONSUP_WORKERS")], environment())


def _setting(text: str, name: str) -> str:
    found = re.search(rf"^{name}='(.*)'$", text, re.MULTILINE)
    assert found is not None
    return found[1]


def _wait_ready(wanted: Wanted, workers: int) -> None:
    pages = Pages(wanted.port)
    for _ in wait_until(READY_SECONDS):
        fleet = pages.fleet()
        if fleet is not None and sum(seat.state == "ready" for seat in fleet.seats) >= workers:
            return
        if wanted.part.pid is None:
            raise Trouble(f"{wanted.part.name} ended at its start{last_words(wanted.part.log)}")
    raise Trouble(f"{wanted.part.name} was not ready within {READY_SECONDS:.0f} s{last_words(wanted.part.log)}")


def environment() -> dict[str, str]:
    """Ours, without any setting: those are in the supervisor's file."""
    return {name: value for name, value in os.environ.items() if name not in BY_NAME}


def _last_line(log: Path) -> str:
    return log.read_text(errors="replace").strip().rpartition("\n")[2] or f"see {shown(log)}"


def _show(place: Place, knobs: Knobs, wanted: Sequence[Wanted], say: Say) -> None:
    """What runs where, and what can be done with it."""
    database, chain = place.facts(place.database), place.facts(place.chain)
    rows = [("PostgreSQL", database["pid"], f"127.0.0.1:{database['port']}", place.folder / "database/postgres.log")]
    if knobs.is_on_anvil:
        rows.append(("chain", chain["pid"], chain["url"].removeprefix("http://"), place.chain.log))
    rows += [(each.part.name, each.part.pid, f"127.0.0.1:{each.port}", each.part.log) for each in wanted]
    say(f"{'part':<12}{'process':>8}  {'listens on':<17}{'log':<32}")
    for name, pid, address, log in rows:
        say(f"{name:<12}{pid:>8}  {address:<17}{shown(log)}")
    if not wanted:
        say("no supervisor: SERVICE_RECONCILER_ENABLED is false")
        return
    say(f"{len(wanted)} supervisor{'s' if len(wanted) > 1 else ''} × {knobs.workers} workers")
    say("next:")
    program = shown(Path(sys.executable).with_name("reconsup"))
    if knobs.is_on_anvil:
        say("  make local-receive-test   # ETH and USDT are paid and confirmed, each once")
    say(f"  {program} status --metrics-address 127.0.0.1:{wanted[0].port}")
    say(f"  {program} status --all --env-file {shown(place.env_file(wanted[0].part.name))}")
    say("  make local-down")
