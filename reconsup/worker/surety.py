"""How sure is what a node tells of balances: proven by itself, or told alike by another endpoint, or its word alone.

Before money that left no log is settled, and before a request may expire because it got none, the states that this
rests on are proven against the blocks' own state roots (chain.state). An endpoint that cannot prove them needs another
one that tells the same; where there is none that can, it is believed, as blocks are that cannot be proven.
"""

from collections.abc import Sequence

from reconsup.chain import accounts, balances
from reconsup.chain.errors import ChainInconsistent
from reconsup.chain.evm import EvmChain
from reconsup.chain.nodes import Nodes
from reconsup.chain.state import State
from reconsup.store.audit import Page
from reconsup.store.findings import Case, Finding
from reconsup.worker.explain import explain, tell_again, without_given


async def at_end(nodes: Nodes, chain: EvmChain, page: Page) -> tuple[list[State], bool]:
    """The states of a page's accounts at its block, in their order; False: nobody vouches for them.

    A call an account (its proof, or its nonce) and one or two for the page; twice that where another endpoint is
    needed.
    """
    addresses = [each.address for each in page.accounts]
    proven = await accounts.proven(chain, [(address, page.block_hash) for address in addresses])
    states = [each for each in proven if each is not None]
    if len(states) == len(addresses):
        return states, True
    told = await balances.told(chain, addresses, page.block_hash)
    _compare(chain, page.block_hash, told, proven)
    return told, await nodes.agree(
        chain, told, lambda other: balances.told(other, addresses, page.block_hash), f"at block {page.height}"
    )


async def find(nodes: Nodes, chain: EvmChain, case: Case, height: int) -> tuple[Finding, bool]:
    """Explain a case up to a block; False: nobody vouches for what the endpoint told.

    Where the states are proven and nobody vouches for what the address itself gave away, no money is settled in those
    blocks: it stays unexplained. Raises ChainInconsistent where the endpoint tells other states than it proves.
    """
    it = await explain(chain, case, height)
    hashes = [case.blocks[each] for each in it.states]
    proven = await accounts.proven(chain, [(case.address, each) for each in hashes])
    _compare(chain, case.address, list(it.states.values()), proven)
    is_proven = None not in proven
    if is_proven and not it.given_minor:
        return it.finding, True
    if await nodes.agree(
        chain, it, lambda other: tell_again(other, case, it), f"of {case.address} up to block {height}"
    ):
        return it.finding, True
    return (without_given(it), True) if is_proven else (it.finding, False)


def _compare(chain: EvmChain, of: str, told: Sequence[State], proven: Sequence[State | None]) -> None:
    """Raises ChainInconsistent if what was told is not what was proven."""
    for word, truth in zip(told, proven, strict=True):
        if truth is not None and word != truth:
            raise ChainInconsistent(
                chain.endpoint.says(f"tells a balance of {word.balance_minor} and proves {truth.balance_minor} ({of})")
            )
