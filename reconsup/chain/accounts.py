"""Accounts proven by the endpoint itself: eth_getProof against the state root of a header that hashes to its block.

An endpoint that cannot (no such method, a state too old for it, a header that we cannot recompute) proves nothing, and
is no liar for that: its word stays its word. One whose proof does not come out is. What an endpoint can is remembered.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from reconsup.chain import state
from reconsup.chain.errors import AnswerTooLarge, AnswerTooSlow, ChainInconsistent, ChainUnavailable
from reconsup.chain.evm import EvmChain
from reconsup.chain.rpc import Call, Refusal
from reconsup.chain.state import State

PROOFS_PER_BATCH = 50  # of a public chain about 8 KB each
CANNOT_SECONDS = 3600.0  # an endpoint without the method is asked again after that: it may be another one by then


@dataclass(slots=True)
class _Ability:
    limit: int = PROOFS_PER_BATCH
    cannot_until: float = 0.0


_abilities: WeakKeyDictionary[EvmChain, _Ability] = WeakKeyDictionary()


async def proven(chain: EvmChain, wanted: Sequence[tuple[str, str]]) -> list[State | None]:
    """The states of (address, block hash)es, in their order; None where the endpoint cannot prove it.

    One call a state, and one for each block. Raises ChainInconsistent where a proof does not come out.
    """
    ability = _abilities.setdefault(chain, _Ability())
    found: list[State | None] = []
    if chain.proves and wanted and time.monotonic() >= ability.cannot_until:
        roots = await _roots(chain, [block_hash for _, block_hash in wanted])
        while roots and len(found) < len(wanted):
            part = wanted[len(found) : len(found) + ability.limit]
            answers = await _ask(chain, ability, part)
            found += await _read(chain, part, answers, roots)
            if answers and all(isinstance(each, Refusal) for each in answers):
                break  # it has no such method, or does not keep that state: why ask for the others
    return found + [None] * (len(wanted) - len(found))


async def _roots(chain: EvmChain, block_hashes: Sequence[str]) -> dict[str, bytes]:
    """The state roots of those of these blocks that the endpoint has, and whose header can be recomputed."""
    method = "eth_getBlockByHash"
    hashes = list(dict.fromkeys(block_hashes))
    roots: dict[str, bytes] = {}
    for block_hash, answer in zip(
        hashes, await chain.endpoint.batch([(method, [each, False]) for each in hashes]), strict=True
    ):
        raw = chain.endpoint.accepted(answer, method)
        if raw is None:
            raise ChainUnavailable(chain.endpoint.says(f"does not have block {block_hash}"))
        try:
            root = state.root(raw, block_hash)
        except ChainInconsistent as fault:
            raise ChainInconsistent(chain.endpoint.says(str(fault))) from None
        if root is not None:
            roots[block_hash] = root
    return roots


async def _ask(chain: EvmChain, ability: _Ability, part: Sequence[tuple[str, str]]) -> list[object]:
    """Ask once; nothing if it must be asked for less."""
    method = "eth_getProof"
    calls: list[Call] = [
        (method, [address, [], {"blockHash": block_hash, "requireCanonical": True}]) for address, block_hash in part
    ]
    try:
        answers = await chain.endpoint.batch(calls)
        for answer in answers:
            if isinstance(answer, Refusal) and (answer.is_throttling or answer.is_too_large):
                chain.endpoint.accepted(answer, method)
    except (AnswerTooLarge, AnswerTooSlow) as error:
        ability.limit = max(1, len(part) // 2)
        if len(part) == 1 or isinstance(error, AnswerTooSlow):
            raise
        return []
    if all(isinstance(each, Refusal) and each.is_unsupported for each in answers):
        ability.cannot_until = time.monotonic() + CANNOT_SECONDS
    return answers


async def _read(
    chain: EvmChain, part: Sequence[tuple[str, str]], answers: Sequence[object], roots: dict[str, bytes]
) -> list[State | None]:
    found: list[State | None] = []
    for (address, block_hash), answer in zip(part, answers, strict=False):
        root = roots.get(block_hash)
        if root is None or isinstance(answer, Refusal):
            found.append(None)
            continue
        try:
            found.append(state.account(answer, address, root))
        except ChainInconsistent as fault:
            raise ChainInconsistent(
                chain.endpoint.says(
                    f"{fault}. Nothing is written by it. If every endpoint of {chain.network} is like this, the chain "
                    f'keeps its state in another way: then set RECONSUP_BLOCK_PROOF_JSON={{"{chain.network}": false}}'
                )
            ) from None
        await asyncio.sleep(0)  # the scan is on this loop, too
    return found
