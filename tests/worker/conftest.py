"""What the worker's tests share: a proxy before the real chain, a node that is behind, and all rows at once."""

from collections.abc import Iterator
from typing import Any

import pytest

from reconsup.demo.anvil import Anvil
from tests.support.postgres import Database
from tests.support.proxy import Answers, Proxy, Spoil, proxy_before

NUMBER, RECEIPTS = "eth_getBlockByNumber", "eth_getBlockReceipts"


@pytest.fixture
def proxy(anvil: Anvil) -> Iterator[Proxy]:
    with proxy_before(anvil.url) as running:
        yield running


def everything(database: Database) -> list[list[tuple[Any, ...]]]:
    """All that says anything about chain or requests; of the cursor, not its lease."""
    tables = ("payment_requests", "payment_request_settlements", "payment_request_transitions", "chain_blocks")
    rows = [database.fetch(f"SELECT t::text FROM app.{table} t ORDER BY 1") for table in tables]
    cursor = "SELECT next_height, tip_hash, tip_time, finalized_height, stop_reason FROM app.chain_cursors"
    return [*rows, database.fetch(cursor)]


def lagging(back: int, anvil: Anvil) -> Spoil:
    """A node that is `back` blocks behind: it knows nothing above its head."""

    def spoil(requests: Answers, answers: Answers) -> Answers:
        top = int(anvil.rpc("eth_blockNumber"), 16) - back

        def known(request: Any, answer: Any) -> Any:
            asked = request["params"][0] if request["params"] else ""
            height = top if asked in ("latest", "safe", "finalized") else int(str(asked) or "0x0", 16)
            if request["method"] == NUMBER and asked in ("latest", "safe", "finalized"):
                return {**answer, "result": anvil.rpc(NUMBER, hex(top), False)}
            return {**answer, "result": None} if request["method"] in (NUMBER, RECEIPTS) and height > top else answer

        return [known(request, answer) for request, answer in zip(requests, answers, strict=True)]

    return spoil
