"""What the tests of the chain room stand on: people who pay on a real anvil, and the chain as reconsup sees it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from reconsup.chain.evm import EvmChain
from reconsup.demo.anvil import Anvil
from reconsup.demo.devchain import DevChain
from tests.chain.conftest import endpoint
from tests.support.proxy import Proxy


@dataclass
class Bench:
    """People on the chain, who pay; and the chain as reconsup sees it."""

    dev: DevChain
    chain: EvmChain


@asynccontextmanager
async def bench(anvil: Anvil, through: str | None = None, timeout_seconds: float = 5.0) -> AsyncIterator[Bench]:
    """A chain on which nothing is mined unasked, so that heights are known. `through`: a proxy's URL."""
    async with DevChain(anvil.url) as dev, endpoint(through or anvil.url, None, timeout_seconds) as node:
        await dev.set_automine(False)
        yield Bench(dev, EvmChain(node))


def on_bench(
    anvil: Anvil, story: Callable[[Bench], Awaitable[None]], proxy: Proxy | None = None, timeout_seconds: float = 5.0
) -> None:
    """Run an async story on a bench."""

    async def run() -> None:
        async with bench(anvil, proxy.url if proxy else None, timeout_seconds) as all_of_it:
            await story(all_of_it)

    asyncio.run(run())


async def pay(dev: DevChain, amount_wei: int, times: int = 1) -> list[str]:
    """Pay account 9 a few times; not yet mined."""
    return [await dev.send(dev.accounts[9], amount_wei) for _ in range(times)]
