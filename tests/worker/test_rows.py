"""Rows that are not ours, rows that cannot be decided, rows at which somebody dies: the others go on."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from eth_utils import to_checksum_address

from reconsup.demo.anvil import Anvil
from tests.support.desk import ETHER, open_shop
from tests.support.postgres import Database

pytestmark = pytest.mark.service


def seconds_until_next_look(row: dict[str, Any]) -> float:
    return (row["next_reconcile_at"] - datetime.now(UTC)).total_seconds()


# not ours


def test_rows_of_networks_without_an_endpoint_never_change(database: Database, anvil: Anvil) -> None:
    """Whole rows are compared: bitcoin past its end, another network, a network nobody knows, another chain's `local`.

    Seen to fail when the claim does not ask for chain or network.
    """
    past = {"created_at": datetime.now(UTC) - timedelta(days=3), "expires_at": datetime.now(UTC) - timedelta(days=2)}
    strangers: list[dict[str, Any]] = [
        {"chain": "bitcoin", "network": "regtest", "asset": "BTC", "address_scheme": "bip84_p2wpkh", "chain_id": None},
        {"chain": "bitcoin", "network": "local", "asset": "BTC"},
        {"network": "sepolia", "chain_id": 11155111},
        {"network": "no-such-network", "chain_id": None},
        {"chain": "dogecoin", "network": "local"},
    ]

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            ours = await shop.request()
            ids = [await shop.request(**(past | each)) for each in strangers]
            before = shop.rows()
            for id_ in ids:
                await shop.chain.send(before[id_]["address_canonical"], ETHER)
            await shop.pay(ours)
            for _ in range(4):
                await shop.chain.mine()
                await shop.desk.work()
            after = shop.rows()
            assert after.pop(ours)["status"] == "confirmed"
            assert after == {id_: before[id_] for id_ in ids}
            assert [shop.settlements(id_) for id_ in ids] == [{}] * len(ids)

    asyncio.run(run())


# row errors

ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "another chain id": ({"chain_id": 1}, "chain_id_mismatch"),
    "no chain id": ({"chain_id": None}, "chain_id_mismatch"),
    "a token without contract": ({"token_standard": "ERC20", "token_decimals": 6}, "token_contract_missing"),
    "a negative amount": ({"expected_amount_minor": -1}, "amount_negative"),
    "an amount that is none": ({"expected_amount_minor": "NaN"}, "amount_negative"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_a_row_that_cannot_be_decided_says_so_and_is_tried_ever_more_rarely(
    database: Database, anvil: Anvil, error: str
) -> None:
    overrides, name = ERRORS[error]

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            bad, good = await shop.request(**overrides), await shop.request()
            await shop.chain.send(shop.row(bad)["address_canonical"], ETHER)
            await shop.pay(good, to_mine=2)
            await shop.desk.work()
            assert shop.status(good) == "confirmed"
            waits = []
            for failures in range(1, 5):
                row = shop.row(bad)
                assert (row["reconcile_error"], row["reconcile_failures"]) == (name, failures)
                assert (row["status"], row["reconcile_lease_owner"]) == ("pending", None)
                waits.append(round(seconds_until_next_look(row), -1))
                shop.make_due()
                await shop.desk.look()
            assert waits == [10, 30, 60, 120]
            (entry,) = shop.entries(bad)  # told once, however often it fails
            assert (entry["reason"], entry["evidence"]) == ("row_failed", [{"error": name}])
            assert (entry["from_status"], entry["to_status"]) == ("pending", "pending")

    asyncio.run(run())


@pytest.mark.parametrize("error", ERRORS)
def test_a_row_that_is_put_right_gets_the_money_that_came_meanwhile(
    database: Database, anvil: Anvil, error: str
) -> None:
    overrides, _ = ERRORS[error]
    right = {"chain_id": 31337, "expected_amount_minor": ETHER, "token_standard": None}

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request(**overrides)
            await shop.desk.work()
            await shop.chain.send(shop.row(id_)["address_canonical"], ETHER)
            await shop.chain.mine(2)
            await shop.work()
            assert shop.status(id_) == "pending"
            sets = ", ".join(f"{name} = %({name})s" for name in right)
            database.execute(f"UPDATE app.payment_requests SET {sets}", right)
            await shop.work()
            assert (shop.status(id_), shop.row(id_)["reconcile_error"]) == ("confirmed", None)
            assert shop.row(id_)["reconcile_failures"] == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("column", "wrong", "name"),
    [
        ("address_canonical", "0x1234", "address_invalid"),
        ("address_canonical", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq", "address_invalid"),
        ("token_contract", "USDT", "token_contract_invalid"),
    ],
)
def test_a_request_that_nobody_can_pay_does_not_expire_silently(
    database: Database, anvil: Anvil, column: str, wrong: str, name: str
) -> None:
    """Seen to fail (expired): no credit ever matches it. Put right it gets what came meanwhile."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.token_request()
            await shop.pay(id_)
            right = shop.row(id_)[column]
            database.execute(f"UPDATE app.payment_requests SET {column} = %s", [wrong])
            await shop.mine_at(shop.row(id_)["expires_at"] + timedelta(seconds=1))
            await shop.chain.mine(5)
            await shop.work()
            assert (shop.status(id_), shop.row(id_)["reconcile_error"]) == ("pending", name)
            database.execute(f"UPDATE app.payment_requests SET {column} = %s", [right])
            await shop.work()
            assert (shop.status(id_), shop.row(id_)["reconcile_error"]) == ("confirmed", None)

    asyncio.run(run())


def test_twin_addresses_settle_neither_until_one_is_gone(database: Database, anvil: Anvil) -> None:
    """The same address in letters of another case; the unique key of the database compares bytes."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            one = await shop.request()
            two = await shop.request(address_canonical=to_checksum_address(shop.row(one)["address_canonical"]))
            other = await shop.request()
            await shop.pay(one)
            await shop.pay(other, to_mine=2)
            await shop.work()
            assert shop.status(other) == "confirmed"
            for id_ in (one, two):
                assert (shop.status(id_), shop.row(id_)["reconcile_error"]) == ("pending", "ambiguous_address")
                assert shop.settlements(id_) == {}
            database.execute("DELETE FROM app.payment_requests WHERE id = %s", [two])
            await shop.work()
            assert (shop.status(one), shop.row(one)["reconcile_error"]) == ("confirmed", None)

    asyncio.run(run())


def test_a_request_without_end_never_expires_and_is_confirmed(database: Database, anvil: Anvil) -> None:
    """Seen to fail (StoreRejected at the claim, for everybody) when infinite times are read as they are."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            endless, eternal = await shop.request(expires_at="infinity"), await shop.request(created_at="-infinity")
            address = f"0x{0xE7:040x}"
            database.execute("UPDATE app.payment_requests SET address_canonical = %s WHERE id = %s", [address, endless])
            await shop.mine_at(await shop.now() + timedelta(days=400))
            await shop.chain.mine(20)
            await shop.work()
            assert (shop.status(endless), shop.status(eternal)) == ("pending", "expired")
            await shop.chain.send(address, ETHER)
            await shop.chain.mine(2)
            await shop.work()
            assert shop.status(endless) == "confirmed"

    asyncio.run(run())


def test_a_usdt_request_without_any_token_column_is_not_paid_in_wei(database: Database, anvil: Anvil) -> None:
    """Its amount is in token units: 5,000,000 wei are worth nothing. Seen to be confirmed without the asset's check."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request(asset="USDT", expected_amount_minor=5_000_000)
            await shop.pay(id_)
            await shop.work()
            assert shop.status(id_) == "pending"
            assert shop.row(id_)["reconcile_error"] == "token_contract_missing"
            assert shop.settlements(id_) == {}

    asyncio.run(run())
