"""What the chain is asked per block, however many requests are open: calls and bytes of scan, audit and a span.

The loops of one worker are driven by hand, so that the counts are exact: for every block one look at the head and one
batch for the block. The audit is counted beside: it asks for the balances of all open native requests, thousands in a
call, every 64 blocks. A span is counted last: an old request, 5,000 blocks below the tail, is put in and found.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from reconsup.demo.anvil import Anvil
from reconsup.demo.devchain import DevChain
from tests.bench import stage
from tests.support import postgres
from tests.support.desk import Desk
from tests.support.proxy import Answers, Proxy, proxy_before

OPEN = (100, 10_000, 100_000)
BLOCKS = 128  # two audits' worth
SPAN_BLOCKS = 5_000
TRANSFERS = 10  # in each block
TAIL_BLOCKS = 64
MINE_BLOCKS = 500  # in a call: anvil takes seconds for them
SECONDS_APART = 60  # so that an hour, which the tail always keeps, is no more than its blocks
OLD_ADDRESS = "0x" + "01d" * 13 + "0"


class Meter:
    """Counts what goes through a proxy: HTTP requests, JSON-RPC calls, bytes of both ways."""

    def __init__(self, proxy: Proxy) -> None:
        self.http = self.calls = 0
        proxy.spoil = self._count
        self._proxy = proxy
        self._bytes_before = 0

    def _count(self, requests: Answers, answers: Answers) -> Answers:
        self.http += 1
        self.calls += len(requests)
        return answers

    def taken(self) -> dict[str, float]:
        """Since the last time this was asked."""
        bytes_ = self._proxy.bytes - self._bytes_before
        found = {"HTTP": self.http, "calls": self.calls, "bytes": bytes_}
        self.http = self.calls = 0
        self._bytes_before = self._proxy.bytes
        return found


async def _scan(desk: Desk, chain: DevChain, meter: Meter, open_requests: int) -> dict[str, Any]:
    """Blocks one by one, each scanned as it comes; then what the audit does every 64 blocks."""
    await desk.scan()
    await desk.audit()
    await desk.look()
    meter.taken()
    scan = {"HTTP": 0.0, "calls": 0.0, "bytes": 0.0}
    audit = dict(scan)
    for _ in range(BLOCKS):
        for number in range(TRANSFERS):
            await chain.send(f"0x{0xBEEF << 64 | number:040x}", 1)
        await chain.mine()
        await desk.scan()
        scan = {name: value + scan[name] for name, value in meter.taken().items()}
        await desk.audit()
        audit = {name: value + audit[name] for name, value in meter.taken().items()}
    per_block = {f"scan {name}/block": value / BLOCKS for name, value in scan.items()}
    return (
        {"open": open_requests} | per_block | {f"audit {name}/block": value / BLOCKS for name, value in audit.items()}
    )


async def _span(database: postgres.Database, desk: Desk, chain: DevChain, meter: Meter) -> dict[str, Any]:
    """A request as old as the chain, and paid in its second block: how many calls until it is confirmed."""
    ((tail_start,),) = database.fetch("SELECT tail_start FROM app.chain_cursors")
    block = await chain.call("eth_getBlockByNumber", "0x1", False)
    created = datetime.fromtimestamp(int(block["timestamp"], 16), UTC)
    with database.connect() as connection:
        id_ = postgres.insert_request(
            connection, created_at=created, expires_at=created + timedelta(days=30), address_canonical=OLD_ADDRESS
        )
    meter.taken()
    await desk.look()
    await desk.read_span()
    await desk.look()
    found = meter.taken()
    ((status,),) = database.fetch("SELECT status FROM app.payment_requests WHERE id = %s", [id_])
    assert status == "confirmed", status
    return {"blocks": tail_start} | found | {"calls/block": found["calls"] / tail_start}


async def _all(url: str) -> dict[str, Any]:
    database = postgres.Database("bench", url, url)
    with Anvil(block_seconds=0) as anvil, proxy_before(anvil.url) as proxy:
        meter = Meter(proxy)
        async with DevChain(anvil.url) as chain:
            await chain.set_automine(False)
            await chain.mine(1, SECONDS_APART)
            await chain.send(OLD_ADDRESS, 10**18)
            for _ in range((SPAN_BLOCKS + 2 * TAIL_BLOCKS) // MINE_BLOCKS + 1):
                await chain.mine(MINE_BLOCKS, SECONDS_APART)
            rows = []
            for open_requests in OPEN:
                with stage.connect(url) as connection:
                    connection.execute("TRUNCATE app.chain_cursors, app.chain_blocks, app.chain_credits")
                    stage.empty(connection)
                    stage.fill(connection, open_requests, due_seconds_ago=-6 * 3600)
                    # the chain's time is days ahead
                    connection.execute("UPDATE app.payment_requests SET expires_at = now() + interval '30 days'")
                    stage.settle_down(connection)
                async with Desk(database, proxy.url, tail_blocks=TAIL_BLOCKS) as desk:
                    rows.append(await _scan(desk, chain, meter, open_requests))
                    if open_requests == OPEN[0]:
                        span = await _span(database, desk, chain, meter)
    return {"scan and audit": rows, "span": span}


def measure(url: str) -> dict[str, Any]:
    """All of it; fails if the scan's calls depend on how many requests are open."""
    stage.silence()
    found = asyncio.run(_all(url))
    calls = [row["scan calls/block"] for row in found["scan and audit"]]
    assert max(calls) - min(calls) <= 1, calls
    return found


def show(found: dict[str, Any]) -> None:
    """For people."""
    rows = found["scan and audit"]
    stage.table("what the chain is asked", list(rows[0]), [list(row.values()) for row in rows])
    stage.table("a request older than the tail", list(found["span"]), [list(found["span"].values())])


if __name__ == "__main__":
    stage.main(measure, show)
