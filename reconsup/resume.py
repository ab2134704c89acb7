"""`reconsup chain NETWORK resume [--from HEIGHT]`: start a network that stopped, on the chain that its endpoints show.

Workers may run meanwhile: the network is stopped, so nobody writes on it, and the one transaction that starts it again
(`store.resume`) fences them. Every endpoint that answers is asked, and all must show the same.
"""

import asyncio
import getpass
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from reconsup.chain.block import Fork, Header, NoFork
from reconsup.chain.errors import ChainInconsistent, ChainUnavailable
from reconsup.chain.evm import BATCH_CALLS_MAX, EvmChain
from reconsup.chain.rpc import Endpoint
from reconsup.payments.request import ETHEREUM, Network
from reconsup.settings import Settings
from reconsup.store import cursor as cursors
from reconsup.store import resume as store
from reconsup.store.cursor import Cursor
from reconsup.store.database import Database
from reconsup.store.errors import SchemaBehind, StoreRejected, StoreUnavailable
from reconsup.store.resume import SettledBlock
from reconsup.store.revision import fetch_state

EXIT_OK = 0
EXIT_USAGE = 64
EXIT_UNAVAILABLE = 69
EXIT_ENDPOINT = 76

NEAR_BLOCKS = 64  # a walk begins at the head, or so many blocks above our tip
ATTEMPTS = 3  # the network may move between what the endpoints say and what is written
PATIENCE_SECONDS = 300.0  # stands for the lease: a statement may take a third of it

Say = Callable[[str], None]
T = TypeVar("T")


class _Refused(Exception):
    """The answer to whoever gave the command: an exit code and one sentence."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True, slots=True)
class _Start:
    """Where to begin anew, what is gone, and which blocks with settlements were asked about (None: by the tail)."""

    point: Header | Fork
    orphaned: tuple[tuple[int, str, str], ...]
    asked: tuple[SettledBlock, ...] | None


def run(settings: Settings, name: str, height: int | None, say: Say, complain: Say) -> int:
    """Start the network again above the fork, or above `height`; the exit code. Says what was done, or why not."""
    try:
        return asyncio.run(_run(settings, Network(ETHEREUM, name), height, say))
    except _Refused as refused:
        complain(f"reconsup: {refused}")
        return refused.code
    except (ChainUnavailable, ChainInconsistent) as error:
        complain(f"reconsup: {error}. Nothing was changed")
        return EXIT_ENDPOINT
    except (StoreUnavailable, StoreRejected, SchemaBehind) as error:
        complain(f"reconsup: database: {error}. Either nothing was changed or all: give the command again")
        return EXIT_UNAVAILABLE


async def _run(settings: Settings, network: Network, height: int | None, say: Say) -> int:
    urls = settings.rpc_urls.get(network.name)
    if urls is None:
        raise _Refused(EXIT_USAGE, f"network {network} has no URL in PAYMENT_REQUEST_EVM_RPC_URLS_JSON")
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            Database(settings.database_url, application_name="reconsup/chain", lease_seconds=PATIENCE_SECONDS)
        )
        state = await fetch_state(database)
        if not state.is_ready:
            raise _Refused(EXIT_UNAVAILABLE, state.sentence())
        chains = [
            EvmChain(await stack.enter_async_context(Endpoint(network.name, url, settings.rpc_timeout_seconds)))
            for url in urls
        ]
        for _ in range(ATTEMPTS):
            cursor = await cursors.read(database, network)
            if cursor is None:
                raise _Refused(EXIT_USAGE, f"network {network} was never read: there is nothing to resume")
            if cursor.stop_reason is None:
                say(f"network {network} is not stopped (it is read up to block {cursor.scanned_height}): nothing to do")
                return EXIT_OK if height is None else EXIT_USAGE
            there = await _that_answer(chains, cursor, settings.quorum(network.name), say)
            head = await there[0].head()
            start = await _start(database, cursor, there, height)
            done = await store.resume(
                database, cursor, start.point, start.orphaned,
                asked=start.asked, head_height=head.latest.height, who=_who(),
            )  # fmt: skip
            if done is not None:
                say(
                    f"network {network} goes on above block {start.point.height} ({start.point.block_hash}): "
                    f"{done.orphaned} settlements are not on the chain any more, {done.touched} requests will be "
                    f"looked at. It was stopped: {cursor.stop_reason}"
                )
                return EXIT_OK
    raise _Refused(EXIT_UNAVAILABLE, f"network {network} moved each time it was looked at: give the command again")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


async def _that_answer(chains: Sequence[EvmChain], cursor: Cursor, quorum: int, say: Say) -> list[EvmChain]:
    """The endpoints that are there, of the very chain of the cursor, and not behind it."""
    there = []
    for chain in chains:
        try:
            identity, head = await chain.identity(), await chain.head()
        except ChainUnavailable as error:
            say(f"note  endpoint {error}: not asked")
            continue
        if (identity.chain_id, identity.genesis_hash) != (cursor.chain_id, cursor.genesis_hash):
            raise _Refused(
                EXIT_ENDPOINT,
                f"endpoint {chain.endpoint.name} shows another chain (chain id {identity.chain_id}, genesis "
                f"{identity.genesis_hash}) than this database was read from (chain id {cursor.chain_id}, genesis "
                f"{cursor.genesis_hash}): correct PAYMENT_REQUEST_EVM_RPC_URLS_JSON",
            )
        if head.latest.height < cursor.scanned_height:
            say(
                f"note  endpoint {chain.endpoint.name}: its head is block {head.latest.height}, below block "
                f"{cursor.scanned_height} that was read: not asked"
            )
            continue
        there.append(chain)
    if len(there) < max(1, quorum):
        raise _Refused(
            EXIT_ENDPOINT,
            f"network {cursor.network}: {len(there)} endpoints answer and are as far as what was read, "
            f"{max(1, quorum)} must: nothing was changed",
        )
    return there


async def _start(database: Database, cursor: Cursor, chains: Sequence[EvmChain], height: int | None) -> _Start:
    """Where all endpoints say that our chain and theirs part, or `height` where the stored blocks do not say."""
    stored = await cursors.stored_hashes(database, cursor)
    fork = _the_same([await _fork(chain, stored, cursor) for chain in chains], chains, "where the chains part")
    if isinstance(fork, Fork):
        if height is None or height == fork.height:
            return _Start(fork, fork.orphaned, None)
        if height > fork.height:
            raise _Refused(EXIT_USAGE, f"block {height} is above block {fork.height}, where the chains part")
        point = await _header(chains, height)
        if stored.get(height, point.block_hash) != point.block_hash:
            raise ChainInconsistent(chains[0].endpoint.says("has just changed its chain: try again"))
        return _Start(point, fork.orphaned, None)
    settled = await store.settled_blocks(database, cursor.network)
    lowest = min(stored)
    if height is None:
        raise _Refused(
            EXIT_USAGE,
            f"no block that is stored (from {lowest} on) is on the chain of the endpoints: say with --from HEIGHT from "
            "which block on to read again; it must be one from before the chains parted. "
            + await _hint(chains[0], [each for each in settled if each[0] < lowest]),
        )
    if height >= lowest:
        raise _Refused(EXIT_USAGE, f"block {height} is not below block {lowest}, which is gone: the chains part lower")
    below = [each for each in settled if each[0] <= height][-1:]
    if await _gone(chains, below):
        raise _Refused(
            EXIT_USAGE,
            f"the chains part below block {height}: block {below[0][0]}, which holds a settlement, is gone too. "
            + await _hint(chains[0], [each for each in settled if each[0] < below[0][0]]),
        )
    above = tuple(each for each in settled if each[0] > height)
    return _Start(await _header(chains, height), tuple(await _gone(chains, above)), above)


async def _fork(chain: EvmChain, stored: dict[int, str], cursor: Cursor) -> Fork | NoFork:
    head = (await chain.head()).latest
    if head.height > cursor.scanned_height + NEAR_BLOCKS:
        (head,) = await chain.headers([cursor.scanned_height + NEAR_BLOCKS])
    fork = await chain.find_fork(stored, head)
    if fork in (NoFork.UNLINKED, NoFork.HEAD_BELOW_TIP):
        raise ChainInconsistent(chain.endpoint.says("gave headers that are not one chain: try again"))
    return fork


async def _header(chains: Sequence[EvmChain], height: int) -> Header:
    found = [(await chain.headers([height]))[0] for chain in chains]
    return _the_same(found, chains, f"block {height}")


async def _gone(chains: Sequence[EvmChain], blocks: Sequence[SettledBlock]) -> list[tuple[int, str, str]]:
    """(height, old hash, new hash) of those blocks that are not on the chain of the endpoints."""
    gone: list[tuple[int, str, str]] = []
    for first in range(0, len(blocks), BATCH_CALLS_MAX):
        some = blocks[first : first + BATCH_CALLS_MAX]
        answers = [await chain.headers([height for height, _ in some]) for chain in chains]
        headers = _the_same(answers, chains, f"blocks {some[0][0]} to {some[-1][0]}")
        gone += [
            (height, old, header.block_hash)
            for (height, old), header in zip(some, headers, strict=True)
            if header.block_hash != old
        ]
    return gone


async def _hint(chain: EvmChain, settled: Sequence[SettledBlock]) -> str:
    """The highest of the blocks with settlements that is still there; those below it are then there too."""
    standing, unknown = 0, len(settled)  # the first so many stand; of those after the first so many none does
    while standing < unknown:
        middle = (standing + unknown + 1) // 2
        if await _gone([chain], settled[middle - 1 : middle]):
            unknown = middle - 1
        else:
            standing = middle
    if not standing:
        return "No block with a settlement below it is still there"
    return f"The highest block with a settlement that is still there: --from {settled[standing - 1][0]}"


def _the_same(answers: Sequence[T], chains: Sequence[EvmChain], what: str) -> T:
    for answer, chain in zip(answers, chains, strict=True):
        if answer != answers[0]:
            raise _Refused(
                EXIT_ENDPOINT,
                f"endpoints {chains[0].endpoint.name} and {chain.endpoint.name} do not agree about {what}: "
                "nothing was changed",
            )
    return answers[0]
