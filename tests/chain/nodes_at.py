"""Nodes over the proxies of two real nodes, with a clock that a test moves."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from reconsup.chain.block import Header
from reconsup.chain.evm import EvmChain
from reconsup.chain.nodes import Nodes
from tests.chain.conftest import endpoint
from tests.support.proxy import Proxy

NUMBER = "eth_getBlockByNumber"
WHO = ["eth_chainId", NUMBER]  # the batch that asks an endpoint who it is


@dataclass
class Clock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Group:
    """Nodes, the chains in it, and its clock."""

    nodes: Nodes
    chains: list[EvmChain]
    clock: Clock
    names: dict[str, str] = field(default_factory=dict)

    async def who_answers(self) -> str:
        """Ask for the head; whose answer it was: a or b."""

        async def work(chain: EvmChain) -> str:
            await chain.head()
            return self.names[chain.endpoint.name]

        return await self.nodes.ask(work)

    async def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.seconds += seconds

    async def pin(self) -> None:
        """Pin the chain that the endpoints show, as the scanner does."""
        self.nodes.pin(await self.nodes.identity())

    async def headers(self, of: int, first: int, last: int) -> list[Header]:
        """Headers of one of the chains."""
        found = [await self.chains[of].header_at(height) for height in range(first, last + 1)]
        assert None not in found
        return [each for each in found if each is not None]


@asynccontextmanager
async def nodes_at(*urls: str, timeout_seconds: float = 5.0, **figures: Any) -> AsyncIterator[Group]:
    """The nodes behind these URLs; named a, b, … in their order."""
    clock = Clock()
    async with AsyncExitStack() as stack:
        chains = [
            EvmChain(await stack.enter_async_context(endpoint(url, timeout_seconds=timeout_seconds))) for url in urls
        ]
        names = {chain.endpoint.name: letter for chain, letter in zip(chains, "abcdefgh", strict=False)}
        yield Group(Nodes(chains, clock=clock, **figures), chains, clock, names)


async def nothing() -> Mapping[int, str]:
    """No stored blocks."""
    return {}


def asked(proxy: Proxy) -> int:
    """HTTP requests that came to a node."""
    return len(proxy.requests)
