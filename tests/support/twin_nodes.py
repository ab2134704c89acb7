"""Two real nodes of one chain, each behind a proxy: the same blocks until a test mines on one of them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from reconsup.demo.anvil import Anvil
from tests.support.proxy import Proxy, Reply, proxy_before

GENESIS = ["--timestamp", "1700000000"]


@dataclass(frozen=True)
class Twins:
    """Two nodes and their proxies; `urls` are the proxies'."""

    a: Anvil
    b: Anvil
    at_a: Proxy
    at_b: Proxy

    @property
    def urls(self) -> list[str]:
        return [self.at_a.url, self.at_b.url]

    def follow(self) -> None:
        """Let b have the very chain of a, whatever it had."""
        self.b.rpc("anvil_loadState", self.a.rpc("anvil_dumpState"))
        latest = int(self.b.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
        self.b.rpc("evm_setTime", hex(latest + 1))  # else its clock may be behind what it has loaded

    def part(self, a_blocks: int = 3, b_blocks: int = 3) -> None:
        """Let each mine blocks of its own: those of b go to another miner, so they are different ones."""
        self.b.rpc("anvil_setCoinbase", "0x" + "b" * 40)
        self.a.rpc("anvil_mine", a_blocks, 1)
        self.b.rpc("anvil_mine", b_blocks, 1)

    def clear(self) -> None:
        """Forget which requests were made."""
        self.at_a.requests.clear()
        self.at_b.requests.clear()


@contextmanager
def twin_nodes(blocks: int = 5, options: Sequence[str] = ()) -> Iterator[Twins]:
    """Two nodes started from one state of so many blocks; they mine on demand only."""
    with ExitStack() as stack:
        a, b = (stack.enter_context(Anvil(block_seconds=0, options=[*GENESIS, *options])) for _ in range(2))
        a.rpc("anvil_mine", blocks, 1)
        twins = Twins(a, b, *(stack.enter_context(proxy_before(node.url)) for node in (a, b)))
        twins.follow()
        yield twins


def away(*_: object) -> Reply:
    """A node that is down for its provider's proxy."""
    return Reply(status=503)
