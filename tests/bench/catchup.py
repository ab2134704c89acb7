"""Catching up 10,000 near-empty blocks, and 500 busy ones, beside a bare loop that only fetches the same bytes.

The bare loop asks for the same batches over one connection that stays open, and drops what comes; it neither parses nor
stores. Node, database and program share the machine's processors. Without the proof and with it.
"""

import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson
import uvloop

from reconsup.demo.anvil import Anvil
from reconsup.worker import process
from tests.bench import stage
from tests.bench.busy import mine_busy, mine_quiet
from tests.support import postgres
from tests.support.desk import Desk

QUIET_BLOCKS = 10_000
BUSY_BLOCKS = 500
BATCH_BLOCKS = {"quiet": 50, "busy": 20}  # what the program asks for at once, too
RUNS = 3


async def _bare(url: str, first: int, last: int, batch: int) -> tuple[float, int]:
    """Seconds, and bytes, of fetching only."""
    bytes_ = 0
    started = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        for low in range(first, last + 1, batch):
            heights = range(low, min(low + batch, last + 1))
            calls = [("eth_getBlockByNumber", [hex(height), True]) for height in heights]
            calls += [("eth_getBlockReceipts", [hex(height)]) for height in heights]
            body = orjson.dumps(
                [{"jsonrpc": "2.0", "id": n, "method": m, "params": p} for n, (m, p) in enumerate(calls)]
            )
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
                async for piece in response.content.iter_any():
                    bytes_ += len(piece)
    return time.perf_counter() - started, bytes_


async def _ours(database: postgres.Database, url: str, head: int, *, proves: bool) -> float:
    """Seconds from the cursor's first block to the head, stored."""
    with database.connect() as connection:
        connection.execute("TRUNCATE app.chain_cursors, app.chain_blocks, app.chain_credits")
    async with Desk(database, url, tail_blocks=head - 1, proves=proves) as desk:
        assert await desk.scanner.turn() == 0  # born, and the first blocks are read
        started = time.perf_counter()
        ((before,),) = database.fetch("SELECT next_height FROM app.chain_cursors")
        while await desk.scanner.turn() == 0:
            pass
        ((after,),) = database.fetch("SELECT next_height FROM app.chain_cursors")
        assert after == head + 1, (after, head)
        return (time.perf_counter() - started) * head / (after - before)


async def _kind(
    database: postgres.Database, kind: str, mine: Callable[[str, int], Awaitable[None]], blocks: int
) -> Any:
    with Anvil(block_seconds=0) as anvil:
        await mine(anvil.url, blocks)
        head = int(anvil.rpc("eth_blockNumber"), 16)
        rows = []
        for _ in range(RUNS):
            bare, size = await _bare(anvil.url, head - blocks + 1, head, BATCH_BLOCKS[kind])
            found = {"blocks": blocks, "MB": size / 1e6, "bare blocks/s": blocks / bare}
            for name, proves in (("off", False), ("on", True)):
                seconds = await _ours(database, anvil.url, head, proves=proves)
                found |= {
                    f"proof {name} blocks/s": head / seconds,
                    f"proof {name}/bare": head / seconds * bare / blocks,
                }
            rows.append(found)
        return {"kind": kind} | {name: stage.median(row[name] for row in rows) for name in rows[0]}


def measure(url: str) -> list[dict[str, Any]]:
    """Both kinds of chain."""
    stage.silence()
    gc.freeze()  # as the supervisor does before it forks
    process.calm_collector()
    database = postgres.Database("bench", url, url)
    return [
        uvloop.run(_kind(database, "quiet", mine_quiet, QUIET_BLOCKS)),
        uvloop.run(_kind(database, "busy", mine_busy, BUSY_BLOCKS)),
    ]


def show(found: list[dict[str, Any]]) -> None:
    """For people."""
    stage.table("catching up", list(found[0]), [list(each.values()) for each in found])


if __name__ == "__main__":
    stage.main(measure, show)
