"""The commit of one block (200 native transfers, 300 of tokens; 20 to our requests) at 1 k and 1 M open requests.

What the tail holds is the same at both sizes: it is filled first, and pruned by each commit.
"""

import asyncio
import time
from dataclasses import replace
from typing import Any

from reconsup.chain.block import Block, Credit
from reconsup.store import cursor as cursors
from reconsup.store import ledger
from reconsup.store.cursor import Tags
from reconsup.store.database import Database
from tests.bench import stage
from tests.bench.stage import LEASE_SECONDS, NETWORK, median, percentile
from tests.support.ledgers import Chain, ether, now, token

OPEN = (1_000, 1_000_000)
COMMITS = 200
WARM_COMMITS = 100
NATIVE, TOKENS, OURS = 200, 300, 20
CONTRACT = "0x" + "7c" * 20
TAIL_BLOCKS = 64


def _credits(height: int, rows: int) -> tuple[Credit, ...]:
    """What a busy block brings; the first ones go to our requests, others each time."""

    def address(number: int) -> str:
        ours = (height * OURS + number) % rows + 1
        return f"0x{ours:040x}" if number < OURS else f"0x{0xEEEE << 64 | number:040x}"

    native = [ether(address(number), 10**15, (height, number)) for number in range(NATIVE)]
    other = [token(f"0x{0xDDDD << 64 | n:040x}", CONTRACT, 10**6, (height, n), NATIVE + n) for n in range(TOKENS)]
    return (*native, *other)


async def _commits(url: str, rows: int) -> list[float]:
    """Milliseconds of each commit, after some that fill the tail."""
    found: list[float] = []
    async with Database(url, application_name="bench", lease_seconds=LEASE_SECONDS) as database:
        cursor = await cursors.take(database, NETWORK, owner="bench-0#1", lease_seconds=LEASE_SECONDS)
        assert cursor is not None
        assert cursor.tip_time is not None
        chain = Chain(first=cursor.next_height)
        chain.parent = replace(chain.parent, block_hash=cursor.tip_hash, time=cursor.tip_time)
        for number in range(WARM_COMMITS + COMMITS):
            mined = chain.mine(time=max(chain.tip.time, now()))
            block = Block(header=mined.header, credits=_credits(mined.height, rows), proven=True)
            started = time.perf_counter()
            done = await ledger.commit(
                database,
                cursor,
                [block],
                Tags(block.height),
                lease_seconds=LEASE_SECONDS,
                tail_blocks=TAIL_BLOCKS,
                due_against="scanned",
            )
            assert done is not None
            assert done.settlements == OURS
            cursor = done.cursor
            if number >= WARM_COMMITS:
                found.append((time.perf_counter() - started) * 1000)
    return found


def measure(url: str) -> list[dict[str, Any]]:
    """The commit at each size."""
    results = []
    with stage.connect(url) as connection:
        for rows in OPEN:
            stage.empty(connection)
            stage.fill(connection, rows, due_seconds_ago=-6 * 3600)
            stage.settle_down(connection)
            connection.execute("UPDATE app.chain_cursors SET scan_lease_owner = NULL, scan_lease_until = NULL")
            taken = asyncio.run(_commits(url, rows))
            results.append({"open": rows, "median ms": median(taken), "p99 ms": percentile(taken, 0.99)})
    results[-1]["× the smallest"] = results[-1]["median ms"] / results[0]["median ms"]
    return results


def show(found: list[dict[str, Any]]) -> None:
    """For people."""
    head = list(found[-1])
    stage.table("commit of one block", head, [[each.get(name, "") for name in head] for each in found])


if __name__ == "__main__":
    stage.main(measure, show)
