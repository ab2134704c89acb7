"""What it costs to believe a block: parse, decode and prove one of 200 transactions and 500 logs.

Ours beside a bare `orjson.loads` of the same bytes. The block is made here, of transfers as mainnet has them; its roots
are our own, which times it as well as any. Medians; fails where the proof takes as long as PROOF_MS_MAX.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from reconsup.chain import decode, proof

TRANSACTIONS = 200
LOGS = 500
ROUNDS = 60
PROOF_MS_MAX = 10.0
INPUT_BYTES = (0, 68, 68, 68, 228, 500)
DATA_BYTES = (32, 32, 32, 128)


class Maker:
    """Makes values that look like a chain's, the same ones each time."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def some(self, size: int) -> str:
        return "0x" + self.chance.randbytes(size).hex()

    def log(self, index: int) -> dict[str, Any]:
        topics = [decode.TRANSFER_TOPIC, *("0x" + "00" * 12 + self.some(20)[2:] for _ in range(2))]
        data = self.some(self.chance.choice(DATA_BYTES))
        return {"address": self.some(20), "topics": topics, "data": data, "logIndex": hex(index)}

    def transaction(self, index: int) -> dict[str, Any]:
        tx: dict[str, Any] = dict.fromkeys(("gas", "maxPriorityFeePerGas", "gasPrice"), "0x3b9aca00")
        tx |= {"type": "0x2", "chainId": "0x1", "nonce": hex(self.chance.randrange(2000)), "accessList": []}
        tx |= {"maxFeePerGas": hex(self.chance.randrange(1 << 33)), "value": hex(self.chance.randrange(1 << 60))}
        tx |= {"to": self.some(20), "from": self.some(20), "input": self.some(self.chance.choice(INPUT_BYTES))}
        tx |= {"r": self.some(32), "s": self.some(32), "yParity": "0x1", "v": "0x1"}
        tx |= {"blockNumber": "0x99", "transactionIndex": hex(index)}
        return tx | {"hash": "0x" + proof._keccak(proof.transaction(tx)).hex()}

    def receipt(self, index: int, tx: dict[str, Any]) -> dict[str, Any]:
        logs = [self.log(number) for number in range(index * LOGS // TRANSACTIONS, (index + 1) * LOGS // TRANSACTIONS)]
        receipt = {"status": "0x1", "cumulativeGasUsed": hex((index + 1) * 60_000), "gasUsed": "0xea60", "logs": logs}
        receipt |= {key: tx[key] for key in ("type", "from", "to", "blockNumber", "transactionIndex")}
        receipt |= {"logsBloom": proof.logs_bloom(logs), "transactionHash": tx["hash"], "contractAddress": None}
        return receipt | {"effectiveGasPrice": "0x638f89fb"}

    def block(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A block and its receipts."""
        transactions = [self.transaction(index) for index in range(TRANSACTIONS)]
        receipts = [self.receipt(index, tx) for index, tx in enumerate(transactions)]
        block: dict[str, Any] = {key: self.some(32) for key in ("parentHash", "sha3Uncles", "stateRoot", "mixHash")}
        block |= dict.fromkeys(("gasLimit", "gasUsed", "timestamp", "baseFeePerGas"), "0x6b057e0e")
        block |= {"miner": self.some(20), "logsBloom": self.some(256), "difficulty": "0x0", "number": "0x99"}
        block |= {"extraData": "0x", "nonce": "0x0000000000000000", "transactions": transactions}
        block["transactionsRoot"] = "0x" + proof.list_root([proof.transaction(tx) for tx in transactions]).hex()
        block["receiptsRoot"] = "0x" + proof.list_root([proof.receipt("0x2", each) for each in receipts]).hex()
        block["hash"] = "0x" + proof.header_hash(block).hex()
        for receipt in receipts:
            for each in (receipt, *receipt["logs"]):
                each |= {"blockHash": block["hash"], "transactionHash": receipt["transactionHash"]}
        return block, receipts


def milliseconds(work: Callable[[], object]) -> float:
    """The median of so many rounds, of processor time: it is all work, and others use this machine too."""
    found = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        found.append((time.process_time() - started) * 1000)
    return statistics.median(found)


def main() -> int:
    """Measure and print; 1 if the proof takes too long."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.proof", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    raw = orjson.dumps(Maker(1).block())
    block, receipts = orjson.loads(raw)
    assert len(decode.block(block, receipts, 0x99).credits) > TRANSACTIONS
    assert proof.doubt(block, receipts) is None
    bloomless = [{key: each[key] for key in each if key != "logsBloom"} for each in receipts]
    figures = {
        "parse": milliseconds(lambda: orjson.loads(raw)),
        "decode": milliseconds(lambda: decode.block(block, receipts, 0x99)),
        "prove": milliseconds(lambda: proof.doubt(block, receipts)),
        "prove without blooms": milliseconds(lambda: (proof._bloom_bits.cache_clear(), proof.doubt(block, bloomless))),
    }
    print(
        f"  a block of {TRANSACTIONS} transactions and {LOGS} logs, {len(raw):,} bytes; ms of CPU, median of {ROUNDS}"
    )
    for name, each in figures.items():
        print(f"  {name:<22}{each:8.2f}{each / figures['parse']:8.1f} × orjson.loads")
    if given.json:
        given.json.write_text(json.dumps({"bytes": len(raw), "milliseconds": figures}, indent=2) + "\n")
    return 0 if figures["prove"] < PROOF_MS_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
