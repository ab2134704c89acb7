"""What deep reorgs are tried with: a chain that calls much final, and a node that shows a chain that is gone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from reconsup.demo.anvil import Anvil
from tests.support.proxy import Answers, Proxy


@contextmanager
def final_chain() -> Iterator[Anvil]:
    """A chain whose finalized block is two below its head."""
    with Anvil(options=["--slots-in-an-epoch", "1"]) as anvil:
        yield anvil


class Memory:
    """Shows a chain as it was: what was asked before `forget_nothing` is answered as it was answered then."""

    def __init__(self, proxy: Proxy, anvil: Anvil) -> None:
        self._proxy = proxy
        self._blocks: dict[str, Any] = {}
        for height in range(int(anvil.rpc("eth_blockNumber"), 16) + 1):
            block = anvil.rpc("eth_getBlockByNumber", hex(height), False)
            self._blocks[hex(height)] = self._blocks[block["hash"]] = self._blocks["latest"] = block

    def show(self) -> None:
        """From now on, show the old chain's headers."""

        def spoil(requests: Answers, answers: Answers) -> Answers:
            return [
                {**answer, "result": self._blocks.get(request["params"][0], answer.get("result"))}
                if request["method"].startswith("eth_getBlockBy")
                else answer
                for request, answer in zip(requests, answers, strict=True)
            ]

        self._proxy.spoil = spoil

    def forget(self) -> None:
        self._proxy.spoil = None
