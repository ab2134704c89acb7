"""A node that leaves something out, or changes it, and numbers the rest anew: nothing of such a block is stored.

The lies here pass every check of a block's structure; only its own header gives them away.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from reconsup import settings
from reconsup.chain.block import Block
from reconsup.demo.anvil import Anvil
from reconsup.worker.process import evm_chain
from tests.chain.conftest import TIMEOUT_SECONDS, endpoint
from tests.chain.test_proof import renumber
from tests.chain.vectors import EXECUTION_APIS, of_anvil, of_glamsterdam
from tests.support.desk import Shop, open_shop
from tests.support.postgres import Database
from tests.support.proxy import Answers, Proxy, Spoil, change
from tests.worker.conftest import NUMBER, RECEIPTS, everything

pytestmark = pytest.mark.service

Raw = dict[str, Any]


def lie(edit: Callable[[Raw, list[Raw]], None]) -> Spoil:
    """Spoil every block together with its receipts, as one batch asks for them."""

    def spoil(requests: Answers, answers: Answers) -> Answers:
        half = len(requests) // 2
        if [each["method"] for each in requests] == [NUMBER] * half + [RECEIPTS] * half:
            for block, receipts in zip(answers[:half], answers[half:], strict=True):
                if block["result"]["transactions"]:
                    edit(block["result"], receipts["result"])
                    renumber(block["result"], receipts["result"])
        return answers

    return spoil


def without_last(block: Raw, receipts: list[Raw]) -> None:
    del block["transactions"][-1], receipts[-1]


def without_first(block: Raw, receipts: list[Raw]) -> None:
    del block["transactions"][0], receipts[0]


def without_last_log(_: Raw, receipts: list[Raw]) -> None:
    receipts[-1]["logs"].clear()


def without_first_log(_: Raw, receipts: list[Raw]) -> None:
    receipts[0]["logs"].clear()


def more_value(block: Raw, _: list[Raw]) -> None:
    block["transactions"][0]["value"] = hex(10**21)


def failed(_: Raw, receipts: list[Raw]) -> None:
    receipts[0]["status"] = "0x0"


def to_another(block: Raw, _: list[Raw]) -> None:
    block["transactions"][0]["to"] = "0x" + "12" * 20


def unknown_type(block: Raw, _: list[Raw]) -> None:
    block["transactions"][0]["type"] = "0x7e"


LIES = {
    "the last transaction is left out": (False, without_last),
    "the first transaction is left out": (False, without_first),
    "a value is changed": (False, more_value),
    "a recipient is changed": (False, to_another),
    "a success is told as a failure": (False, failed),
    "the last log is left out": (True, without_last_log),
    "the first log is left out": (True, without_first_log),
}


async def two_pay(shop: Shop, *, is_token: bool) -> list[str]:
    """Two requests that are paid in one block, the first and the last of its transactions."""
    ids = [await (shop.token_request() if is_token else shop.request()) for _ in range(2)]
    for id_ in ids:
        await shop.pay(id_, to_mine=0)
    await shop.chain.mine(2)
    return ids


@pytest.mark.parametrize(("is_token", "edit"), LIES.values(), ids=LIES.keys())
def test_what_a_node_leaves_out_or_changes_is_not_stored_and_told_truly_it_is_paid(
    database: Database, anvil: Anvil, proxy: Proxy, is_token: bool, edit: Callable[[Raw, list[Raw]], None]
) -> None:
    """Seen to fail, all seven (blocks stored, and one of the two never paid), with the proof switched off."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url) as shop:
            await shop.token()
            await shop.work()
            proxy.spoil = lie(edit)
            ids = await two_pay(shop, is_token=is_token)
            before = everything(database)
            with structlog.testing.capture_logs() as logged:
                for _ in range(3):  # it lies on, and it is told once
                    await shop.desk.scanner.turn()
                await shop.desk.look()
            (failure,) = [line for line in logged if line["event"] == "scan_failed"]
            assert failure["kind"] == "ChainInconsistent"
            assert 'RECONSUP_BLOCK_PROOF_JSON={"local": false}' in failure["error"]
            assert proxy.url in failure["error"]
            assert everything(database)[1:] == before[1:]
            assert [shop.status(id_) for id_ in ids] == ["pending", "pending"]
            proxy.spoil = None
            await shop.work()
            assert [shop.status(id_) for id_ in ids] == ["confirmed", "confirmed"]
            assert shop.cursor()["unproven_height"] is None

    asyncio.run(run())


def test_a_block_that_cannot_be_proven_is_paid_and_told_once(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    """Its credits are read, its height is noted, and one line says that the network is not proven any more."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url) as shop:
            with structlog.testing.capture_logs() as logged:
                await shop.work()
                assert not [line for line in logged if line["event"] == "network_unproven"]
                proxy.spoil = lie(unknown_type)
                for _ in range(2):
                    id_ = await shop.request()
                    await shop.pay(id_, to_mine=2)
                    await shop.work()
                    assert shop.status(id_) == "confirmed"
                proxy.spoil = None
                height = shop.scanned() - 1
                await shop.chain.mine(2)
                await shop.work()
            (told,) = [line for line in logged if line["event"] == "network_unproven"]
            assert told["height"] == height - 2
            assert "reconsup check" in told["todo"]
            assert shop.cursor()["unproven_height"] == height

    asyncio.run(run())


def test_after_a_reorg_no_height_above_the_fork_counts_as_unproven(
    database: Database, anvil: Anvil, proxy: Proxy
) -> None:
    """Seen to fail (the height of a block that is gone) without the rollback's own value."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url) as shop:
            proxy.spoil = lie(unknown_type)
            await shop.pay(await shop.request(), to_mine=1)
            await shop.work()
            unproven = shop.scanned()
            assert shop.cursor()["unproven_height"] == unproven
            proxy.spoil = None
            await shop.chain.reorg(1)
            await shop.work()
            assert shop.scanned() == unproven
            assert shop.cursor()["unproven_height"] == unproven - 1

    asyncio.run(run())


# -- the default


SHAPES: dict[str, Callable[[], tuple[Raw, list[Raw]]]] = {
    "local": of_anvil,
    "mainnet": lambda: (EXECUTION_APIS["block"], EXECUTION_APIS["receipts"]),
    "sepolia": of_glamsterdam,
}


def as_set(url: str, network: str, shape: tuple[Raw, list[Raw]], **more: str) -> tuple[Block, str | None]:
    """The block that a worker with these settings reads, and why it is not proven."""
    env = {"DATABASE_URL": "postgresql://nobody@127.0.0.1/none"} | more
    env["PAYMENT_REQUEST_EVM_RPC_URLS_JSON"] = f'{{"{network}": "{url}"}}'

    async def run() -> tuple[Block, str | None]:
        async with endpoint(url, timeout_seconds=TIMEOUT_SECONDS, network=network) as node:
            chain = evm_chain(node, settings.load(env, {}))
            (block,) = await chain.blocks(*[int(shape[0]["number"], 16)] * 2)
            return block, chain.doubt

    return asyncio.run(run())


@pytest.mark.parametrize("network", SHAPES)
def test_blocks_are_proven_unless_somebody_switches_it_off(proxy: Proxy, network: str) -> None:
    """Seen to fail with the default of the setting, of `proves_blocks` or of EvmChain turned round."""
    block, receipts = SHAPES[network]()

    def show(requests: Answers, answers: Answers) -> Answers:
        return change(NUMBER, lambda _: block)(requests, change(RECEIPTS, lambda _: receipts)(requests, answers))

    proxy.spoil = show
    read, doubt = as_set(proxy.url, network, (block, receipts))
    assert (read.proven, doubt) == (True, None)
    off, doubt = as_set(proxy.url, network, (block, receipts), RECONSUP_BLOCK_PROOF_JSON=f'{{"{network}": false}}')
    assert (off.proven, doubt) == (False, "RECONSUP_BLOCK_PROOF_JSON switches the proof off")
    assert off.credits == read.credits
