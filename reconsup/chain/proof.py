"""Is this block complete? Its roots and its hash, recomputed from what a node sent of it. Pure.

A block's hash covers its header; the header's two roots cover every transaction and every receipt, in their order. So
where all three come out as the node says, nothing was removed, added, changed or moved: what we read of a transaction
(`to`, `value`, its own hash) and of a receipt (`status`, the logs with address, topics and data) is what the chain
holds. Not proven: who sent a transaction (`from` is recovered from its signature, which we do not do), that the chain's
consensus accepted the block, and the withdrawals, of which nothing is read here (some chains keep another root there).

What cannot be recomputed (a transaction type or a header field that we do not know) is no contradiction: the block is
unproven. What can be recomputed and comes out otherwise is one.

This is a hot path: RLP is written as hex digits, which is how they come, and turned into bytes once for each
transaction and receipt. `fromhex` skips white space; the length of what it made tells.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from Crypto.Hash import keccak as crypto_keccak

from reconsup.chain.errors import ChainInconsistent

Json = Mapping[str, Any]

HASHED_ALWAYS = (
    "parentHash",
    "sha3Uncles",
    "miner",
    "stateRoot",
    "transactionsRoot",
    "receiptsRoot",
    "logsBloom",
    "difficulty",
    "number",
    "gasLimit",
    "gasUsed",
    "timestamp",
    "extraData",
    "mixHash",
    "nonce",
)
# Appended by forks, in this order.
HASHED_SINCE_FORKS = (
    "baseFeePerGas",  # London
    "withdrawalsRoot",  # Shanghai
    "blobGasUsed",  # Cancun
    "excessBlobGas",
    "parentBeaconBlockRoot",
    "requestsHash",  # Prague
    "blockAccessListHash",  # Amsterdam (EIP-7928)
    "slotNumber",  # Amsterdam (EIP-7843)
)
NUMBERS = {
    *("difficulty", "number", "gasLimit", "gasUsed", "timestamp", "baseFeePerGas", "blobGasUsed", "excessBlobGas"),
    "slotNumber",
}
# What nodes add to a header's JSON, and is in no hash.
BESIDE = ("hash", "size", "totalDifficulty", "uncles", "transactions", "withdrawals", "author", "blockAccessList")
KNOWN = {*HASHED_ALWAYS, *HASHED_SINCE_FORKS, *BESIDE}

TYPES = ("0x1", "0x2", "0x3", "0x4")  # a tuple: what a node sends may not even be hashable

SHOWN_CHARACTERS_MAX = 200
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError)


class _UnknownTypeError(Exception):
    """A transaction whose type we cannot encode."""


def doubt(raw_block: Json, raw_receipts: Sequence[Json]) -> str | None:
    """Why the block cannot be proven; None: it is proven. Raises ChainInconsistent where it contradicts itself.

    `raw_block` with full transactions, `raw_receipts` one for each, both as a node sends them; the shapes that
    `decode.block` checks are taken for granted, nothing else is.
    """
    height = int(raw_block["number"], 16)
    doubts = [doubt_header(raw_block, height)]
    try:
        _check_bodies(raw_block, raw_receipts, height)
    except _UnknownTypeError as unknown:
        doubts.append(f"block {height}: transactions of unknown type {unknown}")
    return "; ".join(filter(None, doubts)) or None


def doubt_header(raw_block: Json, height: int | str) -> str | None:
    """Why a header cannot be recomputed; None: it was. Raises ChainInconsistent where it is not that of its hash."""
    unknown = sorted(str(key) for key in raw_block.keys() - KNOWN)
    try:
        is_proven = header_hash(raw_block) == bytes.fromhex(raw_block["hash"][2:])
    except _MALFORMED as error:
        is_proven, fault = False, f"a field of its header is missing or malformed ({_said(error)})"
    else:
        fault = "its header does not hash to its own hash: a field was changed"
    if is_proven:
        return None
    if unknown:
        shown = ", ".join(unknown)[:SHOWN_CHARACTERS_MAX]
        return f"block {height}: unknown header fields, so its hash cannot be recomputed: {shown}"
    raise ChainInconsistent(f"block {height}: {fault}")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:SHOWN_CHARACTERS_MAX]


def _shown(value: object) -> str:
    """A node's value for a message. Not the repr of any: what is nested deeply enough has none."""
    return ascii(value[:20]) if isinstance(value, str) else f"a {type(value).__name__}"


def header_hash(raw_block: Json) -> bytes:
    """Hash a header of any fork."""
    hashed = (*HASHED_ALWAYS, *(key for key in HASHED_SINCE_FORKS if raw_block.get(key) is not None))
    fields = [_number(raw_block[key]) if key in NUMBERS else _data(raw_block[key]) for key in hashed]
    return keccak(_bytes(_list("".join(fields))))


def _check_bodies(raw_block: Json, raw_receipts: Sequence[Json], height: int) -> None:
    """Recompute both roots, and the hash of every transaction whose type is known."""
    unknown: set[str] = set()
    transactions, receipts = [], []
    for index, (tx, raw) in enumerate(zip(raw_block["transactions"], raw_receipts, strict=True)):
        where = f"block {height}, transaction {index}"
        try:
            encoded = transaction(tx)
            transactions.append(encoded)
            if keccak(encoded) != bytes.fromhex(tx["hash"][2:]):
                raise ChainInconsistent(f"{where}: does not hash to its own hash: a field was changed")
            receipts.append(receipt(tx.get("type"), raw))
        except _UnknownTypeError as error:
            unknown.add(str(error))
        except _MALFORMED as error:
            raise ChainInconsistent(f"{where}: a field is missing or malformed ({_said(error)})") from None
    if unknown:
        raise _UnknownTypeError(", ".join(sorted(unknown))[:SHOWN_CHARACTERS_MAX])
    for key, found, what in (
        ("transactionsRoot", transactions, "transactions"),
        ("receiptsRoot", receipts, "receipts and logs"),
    ):
        if list_root(found) != _hash(raw_block, key, height):
            raise ChainInconsistent(
                f"block {height}: its {what} are not those of its {key}: some were removed or changed"
            )


def _hash(raw_block: Json, key: str, height: int) -> bytes:
    try:
        return bytes.fromhex(raw_block[key][2:])
    except _MALFORMED as error:
        raise ChainInconsistent(f"block {height}: {key} is missing or malformed ({_said(error)})") from None


def transaction(tx: Json) -> bytes:
    """Encode a transaction as its chain's trie holds it: with its type before it, except the first type."""
    kind = tx.get("type")
    if kind is None or kind == "0x0":
        body = _number(tx["nonce"]) + _number(tx["gasPrice"]) + _call(tx)
        return _bytes(_list(body + _number(tx["v"]) + _signature(tx)))
    if kind not in TYPES:
        raise _UnknownTypeError(_shown(kind))
    body = _number(tx["chainId"]) + _number(tx["nonce"])
    if kind == "0x1":
        body += _number(tx["gasPrice"])
    else:
        body += _number(tx["maxPriorityFeePerGas"]) + _number(tx["maxFeePerGas"])
    body += _call(tx) + _access_list(tx["accessList"])
    if kind == "0x3":
        body += _number(tx["maxFeePerBlobGas"]) + _list("".join(map(_word, tx["blobVersionedHashes"])))
    elif kind == "0x4":
        body += _list("".join(map(_authorization, tx["authorizationList"])))
    parity = tx.get("yParity")
    body += _number(tx["v"] if parity is None else parity) + _signature(tx)
    return _bytes("0" + kind[2] + _list(body))


def _call(tx: Json) -> str:
    """What every type has in the middle: gas, to, value, data."""
    to = tx["to"]
    return _number(tx["gas"]) + ("80" if to is None else _address(to)) + _number(tx["value"]) + _data(tx["input"])


def _signature(tx: Json) -> str:
    return _number(tx["r"]) + _number(tx["s"])


def _access_list(entries: Sequence[Json]) -> str:
    if not entries:
        return "c0"
    return _list(
        "".join(_list(_address(each["address"]) + _list("".join(map(_word, each["storageKeys"])))) for each in entries)
    )


def _authorization(each: Json) -> str:
    """One account's word that it takes a contract's code (EIP-7702)."""
    parity = each.get("yParity")
    body = _number(each["chainId"]) + _address(each["address"]) + _number(each["nonce"])
    return _list(body + _number(each["v"] if parity is None else parity) + _signature(each))


def receipt(kind: str | None, raw: Json) -> bytes:
    """Encode a receipt of a transaction of this type as its chain's trie holds it."""
    logs = _list("".join(map(_log, raw["logs"])))  # first: what the bloom remembers is then an address or a word
    bloom = raw.get("logsBloom")
    body = _number(raw["status"]) + _number(raw["cumulativeGasUsed"])
    body += _data(logs_bloom(raw["logs"]) if bloom is None else bloom) + logs
    prefix = "" if kind is None or kind == "0x0" else "0" + kind[2]
    return _bytes(prefix + _list(body))


def _log(log: Json) -> str:
    topics = log["topics"]
    return _list(_address(log["address"]) + _list("".join(map(_word, topics))) + _data(log["data"]))


def logs_bloom(logs: Sequence[Json]) -> str:
    """The filter over the addresses and topics of a receipt's logs, where a node leaves it out: three bits for each."""
    bits = 0
    for text in {text for log in logs for text in (log["address"], *log["topics"])}:
        bits |= _bloom_bits(text)
    return f"0x{bits:0512x}"


@lru_cache(maxsize=4096)  # the same tokens and events in every block
def _bloom_bits(text: str) -> int:
    hashed = keccak(_bytes(_digits(text)))
    return sum({1 << (int.from_bytes(hashed[at : at + 2]) & 2047) for at in (0, 2, 4)})


# -- RLP as hex digits: a string's or list's length stands before it


def _digits(text: str) -> str:
    if text[:2] != "0x":
        raise ValueError(f"not hex: {_shown(text)}")
    return text[2:]


def _head(size: int, short: int) -> str:
    """What stands before `size` bytes; `short` is 0x80 for a string, 0xc0 for a list."""
    if size < 56:
        return _TWO[short + size]
    length = f"{size:x}" if size > 15 else f"0{size:x}"
    if len(length) % 2:
        length = "0" + length
    return _TWO[short + 55 + len(length) // 2] + length


def _list(body: str) -> str:
    """A list of what is already encoded."""
    return _head(len(body) // 2, 0xC0) + body


def _data(text: str) -> str:
    """A string of any length."""
    digits = _digits(text)
    if len(digits) == 2 and digits < "8":
        return digits
    if len(digits) % 2:
        raise ValueError("an odd number of hex digits")
    return _head(len(digits) // 2, 0x80) + digits


def _word(text: str) -> str:
    if len(text) != 66 or text[:2] != "0x":
        raise ValueError(f"not 32 bytes: {_shown(text)}")
    return "a0" + text[2:]


def _address(text: str) -> str:
    if len(text) != 42 or text[:2] != "0x":
        raise ValueError(f"not 20 bytes: {_shown(text)}")
    return "94" + text[2:]


def _number(text: str) -> str:
    """A number: without leading zeros, 0 as the empty string."""
    digits = _digits(text).lstrip("0")
    size = len(digits)
    if size < 3:
        if size == 0:
            return "80"
        if size == 1:
            return "0" + digits
        return digits if digits < "8" else "81" + digits
    if size % 2:
        digits = "0" + digits
        size += 1
    if size > 64:
        raise ValueError("a number beyond 256 bits")
    return _TWO[0x80 + size // 2] + digits


_TWO = tuple(f"{number:02x}" for number in range(256))


def _bytes(digits: str) -> bytes:
    made = bytes.fromhex(digits)
    if len(made) * 2 != len(digits):
        raise ValueError("white space among hex digits")
    return made


def keccak(data: bytes) -> bytes:
    """Hash as Ethereum does."""
    return crypto_keccak.new(digest_bits=256, data=data).digest()


# -- the trie


EMPTY_ROOT = keccak(b"\x80")


def list_root(values: Sequence[bytes]) -> bytes:
    """The Merkle-Patricia root of a list. The keys are the positions' RLP, of which none is another's beginning."""
    if not values:
        return EMPTY_ROOT
    pairs = sorted((_key(index), value) for index, value in enumerate(values))
    return keccak(_node(pairs, 0, len(pairs), 0))


def _key(index: int) -> str:
    return _number(hex(index))


def _node(pairs: Sequence[tuple[str, bytes]], low: int, high: int, depth: int) -> bytes:
    """The node above pairs[low:high], whose keys have the first `depth` digits in common."""
    first = pairs[low][0]
    if high - low == 1:
        return _wrap(_path(first[depth:], is_leaf=True) + _string(pairs[low][1]))
    last = pairs[high - 1][0]
    shared = depth
    while first[shared] == last[shared]:
        shared += 1
    if shared > depth:
        return _wrap(_path(first[depth:shared], is_leaf=False) + _reference(_node(pairs, low, high, shared)))
    children = []
    for digit in "0123456789abcdef":
        start = low
        while low < high and pairs[low][0][depth] == digit:
            low += 1
        children.append(_reference(_node(pairs, start, low, depth + 1)) if low > start else b"\x80")
    return _wrap(b"".join(children) + b"\x80")


def _reference(node: bytes) -> bytes:
    """How the node above holds a node: by hash, a small one whole."""
    return b"\xa0" + keccak(node) if len(node) >= 32 else node


def _path(digits: str, *, is_leaf: bool) -> bytes:
    flag = 2 if is_leaf else 0
    return _string(bytes.fromhex(f"{flag + 1:x}{digits}" if len(digits) % 2 else f"{flag:x}0{digits}"))


def _string(data: bytes) -> bytes:
    if len(data) == 1 and data[0] < 0x80:
        return data
    return bytes.fromhex(_head(len(data), 0x80)) + data


def _wrap(body: bytes) -> bytes:
    return bytes.fromhex(_head(len(body), 0xC0)) + body
