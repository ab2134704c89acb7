"""Fixtures of the chain room: a proxy before the real anvil, and what an Endpoint reported about its calls."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from reconsup.chain.rpc import Endpoint
from reconsup.demo.anvil import Anvil
from tests.support.proxy import Proxy, proxy_before

TIMEOUT_SECONDS = 5.0


@pytest.fixture
def proxy(anvil: Anvil) -> Iterator[Proxy]:
    with proxy_before(anvil.url) as running:
        yield running


class Meter:
    """Collects what an Endpoint reports through on_call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.seconds: list[float] = []

    def __call__(self, network: str, method: str, outcome: str, seconds: float, count: int) -> None:
        self.calls += [(network, method, outcome)] * count
        self.seconds.append(seconds)

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(outcome for _, _, outcome in self.calls)


@pytest.fixture
def meter() -> Meter:
    return Meter()


def endpoint(
    url: str, meter: Meter | None = None, timeout_seconds: float = TIMEOUT_SECONDS, network: str = "local"
) -> Endpoint:
    """An endpoint, of network "local" unless another is named; use it as `async with`."""
    return Endpoint(network, url, timeout_seconds, meter or Meter())


def call(url: str, meter: Meter | None = None, timeout_seconds: float = 5.0) -> Any:
    """One call through an endpoint of its own."""

    async def run() -> Any:
        async with endpoint(url, meter, timeout_seconds) as node:
            return await node.call("eth_chainId")

    return asyncio.run(run())
