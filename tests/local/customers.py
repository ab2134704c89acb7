"""Who pays: requests as the payment service writes them, and their payments on the local chain."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import psycopg

from reconsup.demo.cast import Asset
from reconsup.demo.devchain import DevChain
from reconsup.demo.token import DECIMALS
from tests.support.postgres import insert_request

INSTALMENTS_EVERY = 6  # so often a request is paid in two halves
UNPAID = 2  # one of each kind, that nobody pays


@dataclass(frozen=True)
class Order:
    """One request, and the payments that it gets. No payment: it must stay as it is."""

    id: str
    asset: Asset
    expected_minor: int
    payments_minor: tuple[int, ...]

    @property
    def address(self) -> str:
        """Where to pay: nobody has its key, and nobody needs it."""
        return "0x" + sha256(f"reconsup {self.id}".encode()).hexdigest()[:40]


def orders(paid: int) -> list[Order]:
    """So many that are paid, ETH and USDT in turn, and some that are not; another run has others."""
    run = secrets.token_hex(4)
    made = []
    for number in range(paid + UNPAID):
        asset = (Asset.ETH, Asset.USDT)[number % 2]
        expected = (10 ** (asset.decimals - 3)) * (10 + number)
        half = expected // 2
        # number // 2: of both kinds
        payments = (half, expected - half) if number // 2 % INSTALMENTS_EVERY == 1 else (expected,)
        made.append(Order(f"receive-{run}-{number:03}", asset, expected, payments if number < paid else ()))
    return made


def ask(connection: psycopg.Connection[Any], orders: Sequence[Order], chain: Mapping[str, Any]) -> None:
    """Write the requests, as the payment service would."""
    for number, order in enumerate(orders):
        token = {"token_standard": "ERC20", "token_contract": chain["token"], "token_decimals": DECIMALS}
        insert_request(
            connection,
            id=order.id,
            asset=str(order.asset),
            expected_amount_minor=order.expected_minor,
            address_canonical=order.address,
            derivation_index=number,
            chain_id=chain["chain_id"],
            **(token if order.asset is Asset.USDT else {}),
        )


async def pay(orders: Sequence[Order], chain: Mapping[str, Any]) -> tuple[dict[str, set[str]], int]:
    """Pay all of them: the transactions of each, and the height by which all are in the chain."""
    sent: dict[str, set[str]] = {order.id: set() for order in orders}
    async with DevChain(chain["url"]) as node:
        for turn in (0, 1):  # second halves come when all have paid once
            for order in orders:
                for amount in order.payments_minor[turn : turn + 1]:
                    if order.asset is Asset.USDT:
                        tx_hash = await node.send_token(chain["token"], order.address, amount)
                    else:
                        tx_hash = await node.send(order.address, amount, sender=node.accounts[1])
                    sent[order.id].add(tx_hash)
        await node.mine()
        return sent, await node.height()
