"""What an account is in a block's state, out of a proof (EIP-1186) and the state root in the block's header. Pure.

The state is a trie whose root stands in the header, and the header's own hash is the block's. So where each node of
the proof has the hash by which the one above it names it, from the root down to the account's place, its balance and
nonce are what the chain holds there, or there is no such account: then it has nothing. What a node says beside the
proof is not looked at, nor what it sends below the last node that is needed.

Not provable: a block whose header has fields that we do not know, and the first block of a development chain, whose
header names an empty state though it has accounts. Everything else that does not come out is a contradiction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reconsup.chain import proof
from reconsup.chain.errors import ChainInconsistent

HASH_BYTES = 32
DIGITS = "0123456789abcdef"

Item = bytes | list[Any]  # RLP: a string, or a list of items


@dataclass(frozen=True, slots=True)
class State:
    """What an account is at a block: its balance, and how many transactions it has sent."""

    balance_minor: int
    nonce: int


def root(raw_block: proof.Json, block_hash: str) -> bytes | None:
    """The state root of this very block; None where its header cannot be recomputed. Else raises ChainInconsistent."""
    if not isinstance(raw_block, dict) or str(raw_block.get("hash")).lower() != block_hash:
        raise ChainInconsistent(f"block {block_hash} was asked for, another one came")
    if proof.doubt_header(raw_block, block_hash) is not None:
        return None
    found = bytes.fromhex(raw_block["stateRoot"][2:])
    return None if found == proof.EMPTY_ROOT and raw_block["number"] == "0x0" else found


def account(raw: object, address: str, state_root: bytes) -> State:
    """What an account is by the answer to eth_getProof. Raises ChainInconsistent where it does not come out."""
    try:
        nodes = [bytes.fromhex(each[2:]) for each in raw["accountProof"]]  # type: ignore[index] # caught below
        held = value(nodes, proof.keccak(bytes.fromhex(address[2:])), state_root)
        if held is None:
            return State(0, 0)
        nonce, balance, storage_root, code_hash = _items(held)
        if len(storage_root) != HASH_BYTES or len(code_hash) != HASH_BYTES or len(balance) > HASH_BYTES:
            raise ValueError("not an account")
        return State(int.from_bytes(balance), int.from_bytes(nonce))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ChainInconsistent(
            f"the proof of {address}'s balance does not come out: {error}"[: proof.SHOWN_CHARACTERS_MAX]
        ) from None


def value(nodes: Sequence[bytes], key: bytes, root_hash: bytes) -> bytes | None:
    """What the trie with this root holds at a key, by its nodes from the root down; None: nothing, and that is proven.

    Raises ValueError (or IndexError) where the nodes are not those of such a trie.
    """
    if root_hash == proof.EMPTY_ROOT:
        return None
    path, below = key.hex(), iter(nodes)
    named: Item = root_hash
    while True:
        node = _items(_named(next(below, b""), named)) if isinstance(named, bytes) else named
        match node:
            case [*children, own] if len(children) == len(DIGITS):
                if not path:
                    return _string(own) or None
                named, path = children[DIGITS.index(path[0])], path[1:]
                if named == b"":
                    return None
            case [packed, child]:
                digits, is_leaf = _digits(_string(packed))
                if is_leaf:
                    return _string(child) if digits == path else None
                if not digits:
                    raise ValueError("an extension by nothing")
                if not path.startswith(digits):
                    return None
                named, path = child, path[len(digits) :]
            case _:
                raise ValueError("neither branch nor leaf")


def _named(node: bytes, name: bytes) -> bytes:
    """A node, which must have the hash by which it is named."""
    if len(name) != HASH_BYTES or proof.keccak(node) != name:
        raise ValueError("a node is missing or was changed")
    return node


def _string(item: Item) -> bytes:
    if not isinstance(item, bytes):
        raise TypeError("a list where a string must be")
    return item


def _digits(packed: bytes) -> tuple[str, bool]:
    """The digits of a path, and whether it is a leaf's."""
    text = packed.hex()
    if text[:1] in ("1", "3"):
        return text[1:], text[0] == "3"
    if text[:2] in ("00", "20"):
        return text[2:], text[0] == "2"
    raise ValueError("a malformed path")


# -- RLP, read


def _items(data: bytes) -> list[Any]:
    """The items of a list that is all of the data."""
    start, end, is_list = _extent(data, 0)
    if not is_list or end != len(data):
        raise ValueError("not an RLP list")
    return _within(data, start, end)


def _within(data: bytes, at: int, end: int) -> list[Any]:
    found: list[Any] = []
    while at < end:
        start, after, is_list = _extent(data, at)
        if after > end or (is_list and after - at >= HASH_BYTES):  # a larger node is named by its hash
            raise ValueError("an item is too long")
        found.append(_within(data, start, after) if is_list else data[start:after])
        at = after
    return found


def _extent(data: bytes, at: int) -> tuple[int, int, bool]:
    """Where an item's content begins and ends, and whether it is a list. Only the shortest form is read."""
    first = data[at]
    if first < 0x80:
        return at, at + 1, False
    short = 0xC0 if first >= 0xC0 else 0x80
    start, size = at + 1, first - short
    if size > 55:
        length = data[start : start + size - 55]
        start, size = start + size - 55, int.from_bytes(length)
        if size < 56 or not length[0]:
            raise ValueError("a length that is not in its shortest form")
    if start + size > len(data) or (short == 0x80 and size == 1 and data[start] < 0x80):
        raise ValueError("cut off, or not in its shortest form")
    return start, start + size, short == 0xC0
