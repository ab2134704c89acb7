"""`reconsup check`: everything that `run` will need, tried once, a line each: ok, or what to do.

It exits with the code that `run` would give, or 76 if only an endpoint fails. It writes nothing anywhere.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from reconsup.chain import accounts, balances, movements
from reconsup.chain.errors import ChainInconsistent, ChainUnavailable
from reconsup.chain.evm import ChainIdentity, EvmChain, Head
from reconsup.chain.rpc import Endpoint
from reconsup.payments.request import ETHEREUM, Network
from reconsup.settings import Settings, shown_database_url
from reconsup.store import cursor as cursors
from reconsup.store import hosts, privileges
from reconsup.store.cursor import Cursor
from reconsup.store.database import Database
from reconsup.store.errors import StoreUnavailable
from reconsup.store.revision import fetch_state
from reconsup.store.twins import fetch_case_twins

BALANCE_WAYS = {
    "override": f"{balances.OVERRIDE_ADDRESSES} balances a call by state override",
    "deployless": f"{balances.DEPLOYLESS_ADDRESSES} balances a call, without state override",
    "single": "balances one by one, a batch at a time",
}
CONNECTIONS_OF_WORKER = 2
CONNECTIONS_OF_NETWORK = 3  # of each worker
CONNECTIONS_OF_MONITOR = 2
EXIT_OK = 0
EXIT_UNAVAILABLE = 69
EXIT_ENDPOINT = 76

Say = Callable[[str], None]


def run(settings: Settings, say: Say) -> int:
    """Check database, schema and endpoints; the exit code."""
    return asyncio.run(_check(settings, say))


async def _check(settings: Settings, say: Say) -> int:
    say("ok    settings: " + ", ".join(f"{name}={value}" for name, value in _notable(settings).items()))
    for warning in settings.warnings:
        say(f"note  {warning}")
    async with Database(
        settings.database_url, application_name="reconsup/check", lease_seconds=settings.lease_seconds
    ) as database:
        is_ready = await _check_database(settings, database, say)
        endpoints = [await _check_network(settings, database, name, is_ready, say) for name in settings.networks]
    if not is_ready:
        return EXIT_UNAVAILABLE
    return EXIT_OK if all(endpoints) else EXIT_ENDPOINT


def _notable(settings: Settings) -> dict[str, object]:
    return {
        "workers": settings.workers,
        "worker id": f"{settings.worker_base}-0…",
        "networks": "/".join(settings.networks) or "none",
    }


async def _check_database(settings: Settings, database: Database, say: Say) -> bool:
    where = shown_database_url(settings.database_url)
    try:
        ((version,),) = await database.fetch("SELECT current_setting('server_version')")
        say(f"ok    database: PostgreSQL {version} at {where}")
        room = await privileges.room(database)
        if room.is_read_only:
            say("FAIL  database: nothing can be written there: let DATABASE_URL name the primary server")
            return False
        may_work = await _check_privileges(database, say)
        if not may_work:
            return False
        state = await fetch_state(database)
        say(f"{'ok  ' if state.is_ready else 'FAIL'}  schema: {state.sentence()}")
        if state.is_ready:
            await _check_connections(settings, database, room.connections_max, say)
    except StoreUnavailable as error:
        say(f"FAIL  database: {where}: {error}: start it, or correct DATABASE_URL")
        return False
    if state.is_ready:
        for twins in await _twins(settings.database_url):
            say(f"note  {twins}: neither will be settled until one of them is changed")
    return state.is_ready


async def _check_privileges(database: Database, say: Say) -> bool:
    """What the role may do; True if it is all that a worker needs."""
    rights = await privileges.missing(database)
    for grant in rights.grants:
        say(f"FAIL  privileges: the role {rights.role} lacks some: {grant};")
    if rights.hides_rows:
        say(
            f"note  privileges: app.payment_requests has row security for the role {rights.role}: requests that a "
            "policy hides are never processed"
        )
    if not rights.grants:
        say(f"ok    privileges: the role {rights.role} may do what it must")
    return not rights.grants


async def _check_connections(settings: Settings, database: Database, connections_max: int, say: Say) -> None:
    """Whether all hosts together may open as many connections as they might."""
    if not await database.is_direct():
        say("note  connections: a pooler stands between: they are its to count")
        return
    others = [row for row in await hosts.rows(database) if row.base != settings.worker_base and not row.is_gone]
    need = _connections(settings.workers.most, len(settings.networks))
    need += sum(_connections(row.slots, row.networks or len(settings.networks)) for row in others)
    who = f"this host and {len(others)} more" if others else "this host"
    if need <= connections_max:
        say(f"ok    connections: {who} may open {need} at a time, PostgreSQL allows {connections_max}")
    else:
        say(
            f"note  connections: {who} may open {need} at a time, but PostgreSQL allows {connections_max}: raise "
            "max_connections (or the limit of the role or the database), use fewer workers, or put PgBouncer between"
        )


def _connections(workers: int, networks: int) -> int:
    """How many a host opens at most: its workers, and its monitor."""
    return workers * (CONNECTIONS_OF_WORKER + CONNECTIONS_OF_NETWORK * networks) + CONNECTIONS_OF_MONITOR


async def _balances(chain: EvmChain, head: Head) -> str:
    """Say how an endpoint can be asked for balances, and whether it can trace: what the balance audit needs."""
    name, tip = chain.network, head.latest
    try:
        how = await balances.how(chain, tip.block_hash)
        (proven,) = await accounts.proven(chain, [(balances.STAND_IN, tip.block_hash)])
        can_trace = await movements.traces(chain, tip.height, tip.block_hash)
    except (ChainUnavailable, ChainInconsistent) as error:
        return (
            f"note  endpoint {error}: it cannot tell balances; while none can, no native request of {name} expires: "
            "use another endpoint, or switch the balance audit off with RECONSUP_BALANCE_AUDIT_JSON"
        )
    return (
        f"ok    balance audit {name}: {chain.endpoint.name}: {BALANCE_WAYS[how]}, "
        + ("balances not proven, " if proven is None else "balances proven, ")
        + ("traces blocks" if can_trace else "does not trace: money without a log is placed by its block's difference")
    )


async def _twins(url: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, client_encoding="UTF8") as connection:
        return [twins.sentence() for twins in await fetch_case_twins(connection)]


async def _check_network(settings: Settings, database: Database, name: str, is_ready: bool, say: Say) -> bool:
    """A line for each URL of a network, and what they say together."""
    cursor: Cursor | None = None
    with suppress(StoreUnavailable):
        cursor = await cursors.read(database, Network(ETHEREUM, name)) if is_ready else None
    heads = {url: await _check_endpoint(settings, name, url, cursor, say) for url in settings.rpc_urls[name]}
    shown = [each.identity if each else None for each in heads.values()]
    if not settings.audits_balances(name):
        say(
            f"note  network {name}: the balance audit is off: money that leaves no transaction to the address and no "
            "log is not seen, and a request that was paid so expires"
        )
    chains = {identity for identity in shown if identity is not None}
    if len(chains) > 1:
        say(f"FAIL  network {name}: its endpoints show different chains: correct PAYMENT_REQUEST_EVM_RPC_URLS_JSON")
        return False
    if cursor and cursor.stop_reason:
        say(
            f"FAIL  network {name} is stopped: {cursor.stop_reason}. It starts when its endpoints show the "
            f"stored chain again; if that chain is gone: reconsup chain {name} resume"
        )
        return False
    there = {url: each.height for url, each in heads.items() if each}
    if len(there) > 1 and (parted := await _parted(settings, name, list(there), min(there.values()))):
        say(f"FAIL  network {name}: {parted}: nothing is written while they do; if it lasts, take out the wrong one")
        return False
    return None not in shown


async def _parted(settings: Settings, name: str, urls: Sequence[str], height: int) -> str | None:
    """Which two of the endpoints show different blocks at a height that all of them have; None if none do."""
    found: list[tuple[str, str]] = []
    for url in urls:
        async with Endpoint(name, url, settings.rpc_timeout_seconds) as endpoint:
            with suppress(ChainUnavailable, ChainInconsistent):  # it was just there: whoever checks again hears of it
                (header,) = await EvmChain(endpoint).headers([height])
                found.append((endpoint.name, header.block_hash))
    for one, block_hash in found[1:]:
        if block_hash != found[0][1]:
            return f"{found[0][0]} and {one} show different blocks {height} ({found[0][1]} and {block_hash})"
    return None


@dataclass(frozen=True, slots=True)
class _Shown:
    """Which chain an endpoint shows, and how far."""

    identity: ChainIdentity
    height: int


async def _check_endpoint(settings: Settings, name: str, url: str, cursor: Cursor | None, say: Say) -> _Shown | None:
    """Try one URL: what it shows; None if it is of no use as it is."""
    async with Endpoint(name, url, settings.rpc_timeout_seconds) as endpoint:
        chain = EvmChain(
            endpoint, proves=settings.proves_blocks(name), native_logs_from=settings.native_logs_from.get(name)
        )
        try:
            identity = await chain.identity()
            head = await chain.head()
            (block,) = await chain.blocks(head.latest.height, head.latest.height)
            audited = await _balances(chain, head) if settings.audits_balances(name) else None
        except (ChainUnavailable, ChainInconsistent) as error:
            say(f"FAIL  endpoint {error}")
            return None
    where = f"endpoint {name}: {endpoint.name}"
    tags = [tag for tag, header in (("safe", head.safe), ("finalized", head.finalized)) if header]
    depth = settings.confirmation_depth(name)
    if isinstance(depth, str) and depth not in tags:
        say(f"FAIL  {where}: the policy is '{depth}', but it has no such tag: give a depth")
        return None
    if cursor and (cursor.chain_id, cursor.genesis_hash) != (identity.chain_id, identity.genesis_hash):
        say(
            f"FAIL  {where}: it shows chain id {identity.chain_id}, but this database was read from "
            f"chain id {cursor.chain_id}: correct PAYMENT_REQUEST_EVM_RPC_URLS_JSON"
        )
        return None
    say(
        f"ok    {where}: chain id {identity.chain_id}, head {head.latest.height}, "
        f"tags: {', '.join(tags) or 'none'}, "
        + ("block receipts" if chain.supports_block_receipts else "no eth_getBlockReceipts: receipts one by one")
        + (", its blocks are proven" if block.proven else ", its blocks are unproven")
    )
    if not block.proven:
        say(f"note  {where}: blocks are believed as it tells them: {chain.doubt}")
    if audited is not None:
        say(audited)
    return _Shown(identity, head.latest.height)
