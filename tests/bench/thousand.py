"""1,000 open requests, half ETH and half USDT, paid over 100 blocks: how long does one worker take, in how many calls?

Real PostgreSQL, real anvil, the real program as its users start it. Prints a table and, with --json FILE, writes it.
The figures to beat are those of the program that does this job today: 53,000 calls and 125 s.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import psycopg

from reconsup.demo.anvil import Anvil
from reconsup.demo.devchain import DevChain
from reconsup.store import embedded, migrate
from tests.support.postgres import insert_request
from tests.support.program import Program

REQUESTS = 1000
BLOCKS = 100
WEI = 10**15
TOKEN_MINOR = 5_000_000
GIVE_UP_SECONDS = 60


async def pay_over_blocks(url: str, connection: psycopg.Connection[object]) -> None:
    """Insert the requests and pay them, ten a block."""
    async with DevChain(url) as chain:
        await chain.set_automine(True)
        token = await chain.deploy_token(10**15)
        await chain.set_automine(False)
        for block in range(BLOCKS):
            for number in range(block * REQUESTS // BLOCKS, (block + 1) * REQUESTS // BLOCKS):
                address = f"0x{0xABC0000000 + number:040x}"
                if number % 2:
                    usdt = {"token_standard": "ERC20", "token_contract": token, "token_decimals": 6}
                    insert_request(
                        connection, asset="USDT", expected_amount_minor=TOKEN_MINOR, address_canonical=address, **usdt
                    )
                    await chain.send_token(token, address, TOKEN_MINOR)
                else:
                    insert_request(connection, expected_amount_minor=WEI, address_canonical=address)
                    await chain.send(address, WEI)
            await chain.mine(1)


def measure() -> dict[str, float]:
    """Run it once; seconds from the program's start to the last confirmation, JSON-RPC calls, and so on."""
    with (
        tempfile.TemporaryDirectory(prefix="reconsup-bench-") as folder,
        embedded.start(Path(folder) / "pg") as server,
        Anvil(block_seconds=0) as anvil,
    ):
        migrate.upgrade(server.url, say=lambda _: None)
        with psycopg.connect(server.url, autocommit=True) as connection:
            asyncio.run(pay_over_blocks(anvil.url, connection))
            started = time.monotonic()
            with Program(server.url, {"local": anvil.url}, workers=1, folder=Path(folder)) as program:
                while True:
                    ((confirmed,),) = connection.execute(
                        "SELECT count(*) FROM app.payment_requests WHERE status = 'confirmed'"
                    ).fetchall()
                    seconds = time.monotonic() - started
                    if confirmed == REQUESTS or seconds > GIVE_UP_SECONDS:
                        break
                    time.sleep(0.02)
                program.wait_ready()  # the monitor may still be starting
                calls = program.metric("reconsup_rpc_requests_total")
    return {"requests": REQUESTS, "blocks": BLOCKS, "confirmed": confirmed, "seconds": seconds, "rpc_calls": calls}


def main() -> int:
    """Print the figures; 1 if not all were confirmed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = [measure() for _ in range(given.runs)]
    for result in results:
        print("  ".join(f"{name} {value:g}" for name, value in result.items()))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))
    return 0 if all(result["confirmed"] == REQUESTS for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
