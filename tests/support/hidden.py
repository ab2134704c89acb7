"""Money that leaves no log: contracts that send coins on inside a transaction, and nodes that can tell less of it.

The contracts are a few dozen bytes each, put at fixed addresses. Their call data are the recipients, 20 bytes each.
"""

from collections.abc import Sequence
from typing import Any

from reconsup.demo.anvil import Anvil
from reconsup.demo.devchain import DevChain
from tests.support.proxy import Answers, Spoil

# i = 0; while i < the data's length: call(the 20 bytes at i, value / their number); i += 20.
_SPLIT = "60005b368110156026576000600060006000601436043404853560601c5af1506014016002565b"
SPLITTER = "0x" + "a1" * 20
WALLET = "0x" + "a2" * 20
FAILING = "0x" + "a3" * 20
DESTRUCTOR = "0x" + "a4" * 20
CODES = {
    SPLITTER: _SPLIT + "00",
    WALLET: "36600060003760006000366000347" + f"3{SPLITTER[2:]}5af100",  # hands its data and value to the splitter
    FAILING: _SPLIT + "60006000fd",  # sends, and reverts
    DESTRUCTOR: "60003560601cff",  # destroys itself: what it has goes to the first recipient
}
TRACING = ("debug_traceBlockByHash", "trace_block")


async def deploy(chain: DevChain) -> None:
    """Put the contracts where they belong, and mine: anvil changes the latest state, and not its block's root."""
    for address, code in CODES.items():
        await chain.call("anvil_setCode", address, "0x" + code)
    await chain.mine()


async def through(chain: DevChain, contract: str, recipients: Sequence[str], amount_wei: int) -> str:
    """Send coins to recipients through a contract; the transaction's hash. Nothing is mined."""
    return await chain.send(contract, amount_wei, "0x" + "".join(each[2:].lower() for each in recipients))


def refusing(*methods: str, with_override: bool = False) -> Spoil:
    """A node that does not have these methods; `with_override`: nor the third parameter of eth_call."""

    def spoil(requests: Answers, answers: Answers) -> Answers:
        return [
            _refused(request) if is_refused(request) else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    def is_refused(request: Any) -> bool:
        is_overriding = request["method"] == "eth_call" and len(request["params"]) > 2
        return request["method"] in methods or (with_override and is_overriding)

    return spoil


def forgetful(anvil: Anvil, blocks: int) -> Spoil:
    """A full node: it keeps the states of its newest blocks only."""

    def spoil(requests: Answers, answers: Answers) -> Answers:
        top = int(anvil.rpc("eth_blockNumber"), 16)
        return [
            _refused(request, "missing trie node") if is_old(request, top) else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    def is_old(request: Any, top: int) -> bool:
        if request["method"] not in ("eth_call", "eth_getBalance", "eth_getTransactionCount", "eth_getProof"):
            return False
        at = request["params"][2 if request["method"] == "eth_getProof" else 1]
        asked = anvil.rpc("eth_getBlockByHash", at["blockHash"], False)
        return int(asked["number"], 16) <= top - blocks

    return spoil


def _refused(request: Any, message: str = "the method does not exist/is not available") -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": message}}
