"""Raw JSON of an EVM node → Header and Block, strictly. Pure.

A block is believed only as a whole: its header is the one asked for, there is one receipt a transaction and in the
same order, every receipt and log names this block, and the logs are numbered without a gap. What does not fit is
refused (ChainInconsistent), never repaired. Nothing asks for a transaction's type unless a field is missing: a type
that nobody has heard of has the same hash, to and value as all others, or no native transfer.

This is the hot path: a block is a dict of a thousand small ones, read once, field by field.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from reconsup.chain.block import NATIVE, Block, Credit, Header
from reconsup.chain.errors import ChainInconsistent

TRANSFER_TOPIC = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
NATIVE_LOGS = "0xfffffffffffffffffffffffffffffffffffffffe"  # the address whose logs tell of native transfers (EIP-7708)
HEIGHT_MAX = 2**63 - 1  # a bigint
KNOWN_TYPES = (None, "0x0", "0x1", "0x2", "0x3", "0x4")  # a tuple: what a node sends may not even be hashable

_is_quantity = re.compile(r"0x[0-9a-fA-F]{1,64}").fullmatch
_is_hash = re.compile(r"0x[0-9a-fA-F]{64}").fullmatch
_is_address = re.compile(r"0x[0-9a-fA-F]{40}").fullmatch
_is_address_word = re.compile(r"0x0{24}[0-9a-fA-F]{40}").fullmatch

Json = Mapping[str, Any]


def quantity(value: object, what: str, at_most: int = 2**256 - 1) -> int:
    """Read a hex quantity such as "0x2a"."""
    if not isinstance(value, str) or not _is_quantity(value) or (number := int(value, 16)) > at_most:
        raise ChainInconsistent(f"{what} is not a quantity")
    return number


def hash32(value: object, what: str) -> str:
    """Read a 32-byte hash, lower-cased."""
    if not isinstance(value, str) or not _is_hash(value):
        raise ChainInconsistent(f"{what} is not a hash")
    return value.lower()


def address20(value: object, what: str) -> str:
    """Read a 20-byte address, lower-cased."""
    if not isinstance(value, str) or not _is_address(value):
        raise ChainInconsistent(f"{what} is not an address")
    return value.lower()


def objects(value: object, what: str) -> Sequence[Json]:
    """Read a list of JSON objects."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ChainInconsistent(f"{what} is not a list of objects")
    return value


def header(raw: object, height_asked: int | None = None) -> Header:
    """Read a header, of a block with or without its transactions."""
    if not isinstance(raw, dict):
        raise ChainInconsistent("a block is not an object")
    height = quantity(raw.get("number"), "a block's number", HEIGHT_MAX)
    if height_asked not in (None, height):
        raise ChainInconsistent(f"block {height_asked} was asked for, block {height} came")
    seconds = quantity(raw.get("timestamp"), f"block {height}: timestamp", HEIGHT_MAX)
    try:
        time = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise ChainInconsistent(f"block {height}: timestamp is no date") from None
    return Header(
        height=height,
        block_hash=hash32(raw.get("hash"), f"block {height}: hash"),
        parent_hash=hash32(raw.get("parentHash"), f"block {height}: parentHash"),
        time=time,
    )


def transaction_count(raw_block: Json) -> int:
    """Count the transactions of a block, in whichever form they came; 0 if they did not."""
    txs = raw_block.get("transactions")
    return len(txs) if isinstance(txs, list) else 0


def transactions(raw_block: Json, of: Header) -> Sequence[Json]:
    """Return the block's full transactions, checked to be in order and different."""
    txs = objects(raw_block.get("transactions"), f"block {of.height}: transactions")
    for index, tx in enumerate(txs):
        where = f"block {of.height}, transaction {index}"
        hash32(tx.get("hash"), f"{where}: hash")
        if quantity(tx.get("transactionIndex"), f"{where}: transactionIndex") != index:
            raise ChainInconsistent(f"{where}: out of order")
    if len({tx["hash"] for tx in txs}) != len(txs):
        raise ChainInconsistent(f"block {of.height}: a transaction appears twice")
    return txs


def block(raw_block: Json, raw_receipts: object, height_asked: int, native_logs_from: int | None = None) -> Block:
    """Read a whole block, checked against its receipts; not yet proven (chain.proof). Raises ChainInconsistent.

    From block `native_logs_from` on every transfer of native value, also one inside a transaction, has a log of its own
    (EIP-7708). Then these logs are the native credits, and a transaction's value is not counted beside its log.
    """
    of = header(raw_block, height_asked)
    has_native_logs = native_logs_from is not None and of.height >= native_logs_from
    txs = transactions(raw_block, of)
    receipts = objects(raw_receipts, f"block {of.height}: receipts")
    if len(receipts) != len(txs):
        raise ChainInconsistent(f"block {of.height}: {len(receipts)} receipts for {len(txs)} transactions")
    found: list[Credit] = []
    next_log_index = 0
    for index, (tx, receipt) in enumerate(zip(txs, receipts, strict=True)):
        where = f"block {of.height}, receipt {index}"
        tx_hash = _checked_receipt(receipt, tx, index, of, where)
        native = _native_credit(tx, receipt, tx_hash, where)
        if native is not None and not has_native_logs:
            found.append(native)
        logged: list[Credit] = []
        for log in objects(receipt.get("logs"), f"{where}: logs"):
            _check_log(log, next_log_index, tx_hash, of, where)
            credit = _logged_credit(log, next_log_index, tx_hash, where, has_native_logs=has_native_logs)
            if credit is not None:
                logged.append(credit)
            next_log_index += 1
        if native is not None and has_native_logs:
            _check_is_logged(native, tx, logged, where)
        found += logged
    return Block(header=of, credits=tuple(found), proven=False)


def _same(value: object, expected: str) -> bool:
    return value == expected or (isinstance(value, str) and value.lower() == expected)


def _checked_receipt(receipt: Json, tx: Json, index: int, of: Header, where: str) -> str:
    """Return the transaction hash that a receipt and its transaction agree on."""
    tx_hash = str(tx["hash"]).lower()
    if not _same(receipt.get("transactionHash"), tx_hash):
        raise ChainInconsistent(f"{where}: is another transaction's")
    if not _same(receipt.get("blockHash"), of.block_hash):
        raise ChainInconsistent(f"{where}: is another block's")
    if quantity(receipt.get("transactionIndex"), f"{where}: transactionIndex") != index:
        raise ChainInconsistent(f"{where}: out of order")
    return tx_hash


def _check_log(log: Json, log_index: int, tx_hash: str, of: Header, where: str) -> None:
    if quantity(log.get("logIndex"), f"{where}: logIndex") != log_index:
        raise ChainInconsistent(f"{where}: log {log_index} is missing or out of order")
    if not _same(log.get("blockHash"), of.block_hash) or not _same(log.get("transactionHash"), tx_hash):
        raise ChainInconsistent(f"{where}: log {log_index} is of another block or transaction")
    if log.get("removed", False) is not False:
        raise ChainInconsistent(f"{where}: log {log_index} is marked as removed")


def _native_credit(tx: Json, receipt: Json, tx_hash: str, where: str) -> Credit | None:
    """Read the top-level transfer of native value, if the transaction is one and succeeded."""
    status = quantity(receipt.get("status"), f"{where}: status", at_most=1)
    if tx.get("type") not in KNOWN_TYPES and not {"to", "value"} <= tx.keys():
        return None  # a type with other fields: it has no top-level transfer
    if "to" not in tx:
        raise ChainInconsistent(f"{where}: its transaction has no field 'to'")
    value = quantity(tx.get("value"), f"{where}: value")
    if tx["to"] is None:  # creates a contract
        return None
    to = address20(tx["to"], f"{where}: to")
    if status == 0 or value == 0:
        return None
    return Credit(tx_hash, tx_hash, to, NATIVE, value)


def _check_is_logged(native: Credit, tx: Json, logged: Sequence[Credit], where: str) -> None:
    """A transaction's value must have its log, where logs are all that is counted. One to oneself has none."""
    is_logged = any(
        (credit.token_contract, credit.address, credit.amount_minor) == (NATIVE, native.address, native.amount_minor)
        for credit in logged
    )
    if not is_logged and not _same(tx.get("from"), native.address):
        raise ChainInconsistent(
            f"{where}: its transaction's value has no log, though native transfers should have logs here: "
            "correct RECONSUP_NATIVE_LOGS_FROM_JSON"
        )


def _logged_credit(log: Json, log_index: int, tx_hash: str, where: str, *, has_native_logs: bool) -> Credit | None:
    """Read a Transfer of any contract (ERC-20), or of native value. A fourth topic makes it an NFT's, and no money."""
    contract = address20(log.get("address"), f"{where}: address of log {log_index}")
    topics, data = log.get("topics"), log.get("data")
    if not isinstance(topics, list) or not isinstance(data, str):
        raise ChainInconsistent(f"{where}: log {log_index} is malformed")
    if len(topics) != 3 or not _same(topics[0], TRANSFER_TOPIC) or len(data) != 66:
        return None
    recipient = hash32(topics[2], f"{where}: topic of log {log_index}")
    amount_minor = quantity(data, f"{where}: data of log {log_index}")
    if amount_minor == 0 or not _is_address_word(recipient):
        return None
    if contract == NATIVE_LOGS:
        if not has_native_logs:
            return None
        contract = NATIVE
    return Credit(f"{tx_hash}:{log_index}", tx_hash, "0x" + recipient[26:], contract, amount_minor)
