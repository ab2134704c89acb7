"""Nodes that lie about an account's state, alike in everything that they are asked for."""

from collections.abc import Callable
from typing import Any

from reconsup.demo.anvil import Anvil
from tests.support.proxy import Answers, Spoil

Lie = Callable[[int, int], int]  # takes the height and the true amount


def telling(anvil: Anvil, address: str, balance: Lie, nonce: Lie = lambda _, true: true) -> Spoil:
    """A node that tells other balances (and nonces) of one address; its proofs are as they are, but for these words."""

    def spoil(requests: Answers, answers: Answers) -> Answers:
        return [
            {**answer, "result": told(request, answer["result"])} if "result" in answer else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    def told(request: Any, true: Any) -> Any:
        method, params = request["method"], request["params"]
        if method == "eth_call":
            return _bulk(params[0]["data"], true, lambda held: balance(height_of(params[1]), held))
        if method not in ("eth_getBalance", "eth_getTransactionCount", "eth_getProof") or params[0] != address:
            return true
        if method == "eth_getProof":
            return true | {"balance": hex(balance(height_of(params[2]), int(true["balance"], 16)))}
        return hex((balance if method == "eth_getBalance" else nonce)(height_of(params[1]), int(true, 16)))

    def height_of(at: Any) -> int:
        return int(anvil.rpc("eth_getBlockByHash", at["blockHash"], False)["number"], 16)

    def _bulk(data: str, true: str, lie: Callable[[int], int]) -> str:
        asked = ["0x" + data[at : at + 40] for at in range(2, len(data), 40)]
        if address not in asked:
            return true
        words = [int(true[at : at + 64], 16) for at in range(2, len(true), 64)]
        held = dict(zip(words[1::2], words[2::2], strict=True))
        place = asked.index(address) * 20
        held[place] = lie(held.get(place, 0))
        told = [word for pair in sorted(held.items()) if pair[1] for word in pair]
        return "0x" + "".join(f"{word:064x}" for word in [words[0], *told])

    return spoil


def both(first: Spoil, second: Spoil) -> Spoil:
    """One spoils after the other."""
    return lambda requests, answers: second(requests, first(requests, answers))


def traced(moves: list[tuple[str, str, int]]) -> Spoil:
    """A node whose traces of a block's transactions show these calls (from, to, amount) in each of them."""

    def spoil(requests: Answers, answers: Answers) -> Answers:
        return [
            {**answer, "result": [add(each) for each in answer["result"]]}
            if request["method"] == "debug_traceBlockByHash"
            else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    def add(trace: Any) -> Any:
        calls = [{"type": "CALL", "from": one, "to": other, "value": hex(amount)} for one, other, amount in moves]
        return trace | {"result": trace["result"] | {"calls": trace["result"].get("calls", []) + calls}}

    return spoil
