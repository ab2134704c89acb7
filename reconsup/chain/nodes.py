"""A network through all of its endpoints: whoever wants something of the chain asks here, and the best one answers.

`ask` runs a piece of work against one endpoint's chain, whole: what belongs together is never put together from the
answers of two. (For now the first endpoint is asked.)
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from reconsup.chain.evm import EvmChain

T = TypeVar("T")


class Nodes:
    """The endpoints of one network. Every method raises ChainUnavailable or ChainInconsistent and nothing else."""

    def __init__(self, chains: Sequence[EvmChain]) -> None:
        self._chains = tuple(chains)

    async def ask(self, work: Callable[[EvmChain], Awaitable[T]]) -> T:
        """Run `work` against the best endpoint; against another one where that fails."""
        return await work(self._chains[0])
