"""A node that lies, in front of a real anvil and on the test's own event loop, so that nothing waits for a thread.

Each fault is one small function: it takes an `Exchange` (what was asked, what the node answered) and returns what is
sent instead, or None where it has nothing to spoil. `Node` applies what its `schedule` says to each HTTP request;
`drawn` is a schedule from a seed. `tests.support.proxy` is the same for tests that have no loop.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.support.proxy import Answers, Reply

NUMBER, BY_HASH, RECEIPTS = "eth_getBlockByNumber", "eth_getBlockByHash", "eth_getBlockReceipts"
TAGS = ("latest", "safe", "finalized", "pending")
LAG_MAX = 6


@dataclass(frozen=True, slots=True)
class Endless:
    """An answer that never ends: white space, as long as somebody reads it, with so many seconds in between."""

    pause_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """One HTTP request to the node: its calls, their answers in the same order, and a way to ask the node more.

    `ask` makes one call; `ask_others` asks all of this at the next of the node's upstreams.
    """

    requests: Answers
    answers: Answers
    random: Random
    ask: Callable[..., Awaitable[Any]]
    ask_others: Callable[[Answers], Awaitable[Answers]]

    def has(self, method: str) -> bool:
        """Whether this method is called."""
        return any(each["method"] == method for each in self.requests)

    def change(self, edit: Callable[[dict[str, Any], Any], Any]) -> Answers:
        """The answers with each result as `edit(request, result)` makes it."""
        return [
            {**answer, "result": edit(request, answer["result"])} if "result" in answer else answer
            for request, answer in zip(self.requests, self.answers, strict=True)
        ]


Fault = Callable[[Exchange], Awaitable[Any]]


def is_whole_block(request: dict[str, Any]) -> bool:
    """Whether a request asks for a block with its transactions."""
    return request["method"] in (NUMBER, BY_HASH) and bool(request["params"][1])


# behind


async def lagging(exchange: Exchange) -> Any:
    """A node that is some blocks behind in all that it says."""
    top = int(await exchange.ask("eth_blockNumber"), 16) - exchange.random.randint(1, LAG_MAX)
    block = await exchange.ask(NUMBER, hex(max(0, top)), False)

    def known(request: dict[str, Any], result: Any) -> Any:
        if request["params"][:1] and request["params"][0] in TAGS and request["method"] == NUMBER:
            return block if result is not None and int(result["number"], 16) > top else result
        if request["method"] in (NUMBER, BY_HASH):
            return None if result is not None and int(result["number"], 16) > top else result
        if request["method"] == RECEIPTS and result:
            return None if int(result[0]["blockNumber"], 16) > top else result
        return result

    return exchange.change(known)


async def head_that_goes_back(exchange: Exchange) -> Any:
    """Only the head is older than it was; all else is answered as it is."""
    if not any(request["params"][:1] == ["latest"] for request in exchange.requests):
        return None
    height = int(await exchange.ask("eth_blockNumber"), 16)
    block = await exchange.ask(NUMBER, hex(max(0, height - exchange.random.randint(1, LAG_MAX))), False)
    return exchange.change(lambda request, result: block if request["params"][:1] == ["latest"] else result)


async def null_block(exchange: Exchange) -> Any:
    """One of the blocks asked for is not there."""
    asked = [index for index, each in enumerate(exchange.requests) if is_whole_block(each)]
    if not asked:
        return None
    gone = exchange.requests[exchange.random.choice(asked)]
    return exchange.change(lambda request, result: None if request is gone else result)


async def null_parent(exchange: Exchange) -> Any:
    """No header but the head's (and the first of all) is there: not those that lead down to where a fork began."""

    def is_lower_header(request: dict[str, Any]) -> bool:
        asked = (*request["params"], "")[0]
        return request["method"] in (NUMBER, BY_HASH) and not is_whole_block(request) and asked not in (*TAGS, "0x0")

    return exchange.change(lambda request, result: None if is_lower_header(request) else result)


async def null_receipts(exchange: Exchange) -> Any:
    """The receipts are not there yet."""
    if not exchange.has(RECEIPTS):
        return None
    return exchange.change(lambda request, result: None if request["method"] == RECEIPTS else result)


async def null_receipt(exchange: Exchange) -> Any:
    """One receipt of a block is null."""
    return _of_receipts(exchange, lambda receipts: [None, *receipts[1:]])


# incomplete


async def empty_receipts(exchange: Exchange) -> Any:
    """A block with transactions and an empty list of receipts."""
    return _of_receipts(exchange, lambda _: [])


async def receipt_removed(exchange: Exchange) -> Any:
    """The last receipt of each block is missing."""
    return _of_receipts(exchange, lambda receipts: receipts[:-1])


async def empty_logs(exchange: Exchange) -> Any:
    """All receipts, but not one log: as nodes answer at the head before they have indexed it."""
    return _of_receipts(exchange, lambda receipts: [each | {"logs": []} for each in receipts], if_logs=True)


async def log_removed(exchange: Exchange) -> Any:
    """One log of a block is gone, and the others are numbered as if it had never been."""

    def without_one(receipts: Answers) -> Answers:
        logs = [log for receipt in receipts for log in receipt["logs"]]
        gone = logs.pop(exchange.random.randrange(len(logs)))
        numbers = {log["logIndex"]: hex(index) for index, log in enumerate(logs)}
        return [
            each | {"logs": [log | {"logIndex": numbers[log["logIndex"]]} for log in each["logs"] if log is not gone]}
            for each in receipts
        ]

    return _of_receipts(exchange, without_one, if_logs=True)


async def empty_block(exchange: Exchange) -> Any:
    """The right header, but neither a transaction nor a receipt."""
    if not exchange.has(RECEIPTS):
        return None

    def emptied(request: dict[str, Any], result: Any) -> Any:
        if is_whole_block(request) and result is not None:
            return result | {"transactions": []}
        return [] if request["method"] == RECEIPTS and result else result

    spoiled = exchange.change(emptied)
    return None if spoiled == exchange.answers else spoiled


async def block_without_transactions(exchange: Exchange) -> Any:
    """The receipts, but a block without its transactions."""
    if not exchange.has(RECEIPTS):
        return None
    return exchange.change(
        lambda request, result: result | {"transactions": []} if is_whole_block(request) and result else result
    )


# batches and ids


async def dropped_item(exchange: Exchange) -> Any:
    """One answer of the batch is missing."""
    return _of_batch(exchange, lambda answers, at: answers[:at] + answers[at + 1 :])


async def reordered_items(exchange: Exchange) -> Any:
    """The answers come in another order; that is allowed."""
    return exchange.random.sample(exchange.answers, len(exchange.answers)) if len(exchange.answers) > 1 else None


async def doubled_item(exchange: Exchange) -> Any:
    """One answer comes twice."""
    return _of_batch(exchange, lambda answers, at: [*answers, answers[at]])


async def wrong_id(exchange: Exchange) -> Any:
    """One answer is to a question that nobody asked."""
    at = exchange.random.randrange(len(exchange.answers))
    return [each | {"id": 10**9} if index == at else each for index, each in enumerate(exchange.answers)]


async def swapped_ids(exchange: Exchange) -> Any:
    """Two answers carry each other's ids."""
    if len(exchange.answers) < 2:
        return None
    first, second, *others = exchange.answers
    return [first | {"id": second["id"]}, second | {"id": first["id"]}, *others]


# refusals


async def throttled(_: Exchange) -> Any:
    """HTTP 429, and no word of when to come back."""
    return Reply(status=429)


async def throttled_for_a_while(_: Exchange) -> Any:
    """HTTP 429 with Retry-After."""
    return Reply(status=429, headers={"Retry-After": "7"})


async def range_refused(exchange: Exchange) -> Any:
    """-32005 with the range that would do, as Infura words it."""
    words = "query returned more than 10000 results. Try with this block range [0x1, 0x2]."
    error = {"code": -32005, "message": words, "data": {"from": "0x1", "to": "0x2", "limit": 10000}}
    return [{"jsonrpc": "2.0", "id": each["id"], "error": error} for each in exchange.requests]


async def too_large(_: Exchange) -> Any:
    """HTTP 413, whatever is asked."""
    return Reply(status=413)


async def unavailable(_: Exchange) -> Any:
    """HTTP 503 from whatever stands before the node."""
    return Reply(status=503)


# broken answers


async def truncated(exchange: Exchange) -> Any:
    """The connection ends in the middle of the answer."""
    body = json.dumps(exchange.answers).encode()
    return Reply(body=body[: len(body) // 2], cut=True)


async def endless(_: Exchange) -> Any:
    """An answer that grows for ever."""
    return Endless()


async def slow(_: Exchange) -> Any:
    """An answer that comes byte by byte, and never ends."""
    return Endless(pause_seconds=0.02)


# somebody else's


async def wrong_chain_id(exchange: Exchange) -> Any:
    """The node of another chain, by its id."""
    if not exchange.has("eth_chainId"):
        return None
    return exchange.change(lambda request, result: "0x1" if request["method"] == "eth_chainId" else result)


async def other_fork(exchange: Exchange) -> Any:
    """All is answered by another upstream, which is on another fork."""
    return await exchange.ask_others(exchange.requests)


async def torn_between_forks(exchange: Exchange) -> Any:
    """Of a batch, every second answer comes from another upstream, which is on another fork."""
    if len(exchange.requests) < 2:
        return None
    others = await exchange.ask_others(exchange.requests)
    return [pair[index % 2] for index, pair in enumerate(zip(exchange.answers, others, strict=True))]


def _of_receipts(exchange: Exchange, edit: Callable[[Any], Any], *, if_logs: bool = False) -> Answers | None:
    """Spoil each block's receipts, where there are some."""

    def spoiled(request: dict[str, Any], result: Any) -> Any:
        if request["method"] != RECEIPTS or not result or (if_logs and not any(each["logs"] for each in result)):
            return result
        return edit(result)

    answers = exchange.change(spoiled)
    return None if answers == exchange.answers else answers


def _of_batch(exchange: Exchange, edit: Callable[[Answers, int], Answers]) -> Answers | None:
    answers = exchange.answers
    return edit(answers, exchange.random.randrange(len(answers))) if len(answers) > 1 else None


# schedules

Schedule = Callable[[], Sequence[Fault]]  # asked once for each HTTP request: the first that has something to spoil


def drawn(random: Random, faults: Sequence[Fault], probability: float) -> Schedule:
    """With this probability one of the faults, at each request anew."""
    return lambda: random.sample(faults, len(faults)) if random.random() < probability else ()


def always(fault: Fault) -> Schedule:
    """The same fault at every request."""
    return lambda: (fault,)
