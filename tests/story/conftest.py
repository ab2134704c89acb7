"""What the stories share: a local chain with a token, and requests that are paid on it."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reconsup.demo.anvil import Anvil
from reconsup.demo.devchain import DevChain
from tests.support.postgres import Database, insert_request

WEI = 10**15
TOKEN_MINOR = 5_000_000


@dataclass
class Town:
    """A database, a chain, a token: where the stories happen."""

    database: Database
    anvil: Anvil
    token: str
    folder: Path

    @property
    def rpc_urls(self) -> dict[str, str]:
        return {"local": self.anvil.url}

    def requests(self, count: int, **overrides: Any) -> list[str]:
        """Insert requests, ETH and USDT in turn."""
        with self.database.connect() as connection:
            return [insert_request(connection, **(self.asset(number) | overrides)) for number in range(count)]

    def asset(self, number: int) -> dict[str, Any]:
        """What the request of that number asks for: ETH and USDT in turn."""
        if number % 2 == 0:
            return {"expected_amount_minor": WEI}
        return {
            "asset": "USDT",
            "expected_amount_minor": TOKEN_MINOR,
            "token_standard": "ERC20",
            "token_contract": self.token,
            "token_decimals": 6,
        }

    def pay(self, ids: list[str], *, a_block: int = 10) -> None:
        """Pay requests in full, so many in each block."""
        rows = self.database.fetch(
            "SELECT address_canonical, token_contract, expected_amount_minor::text FROM app.payment_requests"
            " WHERE id = ANY(%s) ORDER BY id",
            [ids],
        )

        async def send() -> None:
            async with DevChain(self.anvil.url) as chain:
                for number, (address, contract, amount) in enumerate(rows):
                    if contract:
                        await chain.send_token(contract, address, int(amount))
                    else:
                        await chain.send(address, int(amount))
                    if number % a_block == a_block - 1:
                        await chain.mine(1)
                await chain.mine(1)

        asyncio.run(send())

    def mine(self, blocks: int) -> None:
        """Let the chain grow."""
        self.anvil.rpc("anvil_mine", blocks)

    def statuses(self) -> dict[str, int]:
        """How many requests are in each status."""
        rows = self.database.fetch("SELECT status, count(*) FROM app.payment_requests GROUP BY 1")
        return {str(status): int(count) for status, count in rows}

    def leases(self) -> list[tuple[str, str]]:
        """Who holds which request."""
        held = "SELECT id, reconcile_lease_owner FROM app.payment_requests WHERE reconcile_lease_owner IS NOT NULL"
        return [(str(id_), str(owner)) for id_, owner in self.database.fetch(held)]


@pytest.fixture
def town(database: Database, tmp_path: Path) -> Iterator[Town]:
    with Anvil(block_seconds=0) as anvil:
        yield Town(database, anvil, asyncio.run(deploy(anvil)), tmp_path)


async def deploy(anvil: Anvil) -> str:
    async with DevChain(anvil.url) as chain:
        await chain.set_automine(True)
        token = await chain.deploy_token(10**15)
        await chain.set_automine(False)
        return token
