"""A second maker of tries, for the tests: plain, and written from the definition, with the proof of any key."""

from collections.abc import Mapping
from dataclasses import dataclass

from reconsup.chain.proof import keccak


@dataclass
class Trie:
    """The trie of keys of one length. `root`, and for any key the nodes on the way to it, from the root down."""

    pairs: Mapping[bytes, bytes]

    @property
    def root(self) -> bytes:
        return keccak(self._node({key.hex(): value for key, value in self.pairs.items()}, None, []))

    def proof(self, key: bytes) -> list[bytes]:
        """The nodes on the way to a key, as far as there are any; only those that have a hash of their own."""
        way: list[bytes] = []
        top = self._node({each.hex(): value for each, value in self.pairs.items()}, key.hex(), way)
        return [top, *reversed(way)] if self.pairs else []

    def _node(self, pairs: Mapping[str, bytes], wanted: str | None, way: list[bytes]) -> bytes:
        """The node above these (what is left of their keys); whatever is named below it towards `wanted` is noted."""
        if not pairs:
            return rlp(b"")
        if len(pairs) == 1:
            ((path, value),) = pairs.items()
            return rlp([packed(path, 2), value])
        shared = common(list(pairs))
        if shared:
            below = {path[len(shared) :]: value for path, value in pairs.items()}
            on_way = wanted is not None and wanted.startswith(shared)
            child = self._node(below, wanted[len(shared) :] if on_way and wanted else None, way)
            return rlp_of([rlp(packed(shared, 0)), named(child, way if on_way else [])])
        children = []
        for digit in "0123456789abcdef":
            below = {path[1:]: value for path, value in pairs.items() if path[0] == digit}
            on_way = wanted is not None and wanted[:1] == digit
            child = self._node(below, wanted[1:] if on_way and wanted else None, way)
            children.append(named(child, way if on_way else []) if below else rlp(b""))
        return rlp_of([*children, rlp(b"")])


def named(node: bytes, way: list[bytes]) -> bytes:
    if len(node) < 32:
        return node
    way.append(node)
    return rlp(keccak(node))


def common(paths: list[str]) -> str:
    shortest = min(paths)
    length = 0
    while all(path[: length + 1] == shortest[: length + 1] for path in paths):
        length += 1
    return shortest[:length]


def packed(path: str, flag: int) -> bytes:
    return bytes.fromhex(f"{flag + 1}{path}" if len(path) % 2 else f"{flag}0{path}")


def rlp(item: bytes | list[bytes]) -> bytes:
    """A string, or a list of strings."""
    if isinstance(item, list):
        return rlp_of([rlp(each) for each in item])
    if len(item) == 1 and item[0] < 0x80:
        return item
    return before(len(item), 0x80) + item


def rlp_of(encoded: list[bytes]) -> bytes:
    """A list of what is encoded already."""
    body = b"".join(encoded)
    return before(len(body), 0xC0) + body


def before(size: int, short: int) -> bytes:
    if size < 56:
        return bytes([short + size])
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([short + 55 + len(length)]) + length
