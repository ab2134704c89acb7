"""Blocks as nodes answer with them, and where each is from."""

import copy
import json
from pathlib import Path
from typing import Any

from reconsup.chain import proof

HERE = Path(__file__).parent


def load(name: str) -> dict[str, Any]:
    """The blocks of one file, without the word on where they are from."""
    read: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())
    assert read.pop("where from")
    return read


HEADERS = load("headers")
ANVIL = load("anvil")
EXECUTION_APIS = load("execution-apis")
PROOFS = load("proofs")


def of_anvil() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block of every transaction type that anvil can mine honestly, and its receipts; a copy of one's own."""
    block, receipts = copy.deepcopy((ANVIL["block"], ANVIL["receipts"]))
    return block, receipts


def of_glamsterdam() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same with the fields that Sepolia's headers have since block 11856337 (its first one is in HEADERS)."""
    block, receipts = of_anvil()
    block |= {key: HEADERS["sepolia 11856337 (Glamsterdam)"][key] for key in ("blockAccessListHash", "slotNumber")}
    block["hash"] = "0x" + proof.header_hash(block).hex()
    for each in (*block["transactions"], *receipts, *(log for receipt in receipts for log in receipt["logs"])):
        each["blockHash"] = block["hash"]
    return block, receipts
