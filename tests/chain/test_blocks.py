"""chain.evm reads blocks from a real anvil; a node that lies or lags is a proxy before it."""

from typing import Any

import pytest

from reconsup.chain.block import NATIVE, Credit
from reconsup.chain.decode import TRANSFER_TOPIC
from reconsup.chain.errors import AnswerTooSlow, ChainInconsistent, ChainUnavailable
from reconsup.chain.evm import EvmChain
from reconsup.demo.anvil import Anvil
from tests.chain.bench import Bench, on_bench, pay
from tests.support.proxy import Answers, Proxy, Reply, Spoil, change, refuse

pytestmark = pytest.mark.service

UINT256_MAX = 2**256 - 1
BODY, RECEIPTS, RECEIPT = "eth_getBlockByNumber", "eth_getBlockReceipts", "eth_getTransactionReceipt"


def nft_transfer(sender: str, to: str, token_id: int) -> str:
    """Init code that emits an ERC-721 Transfer: four topics, no data."""
    words = [token_id, int(to, 16), int(sender, 16), int(TRANSFER_TOPIC, 16)]
    return "0x" + "".join(f"7f{word:064x}" for word in words) + "60006000a400"  # PUSH32 ×4, LOG4(0, 0), STOP


# -- what a block holds
def test_the_credits_of_a_real_block(anvil: Anvil) -> None:
    async def story(at: Bench) -> None:
        dev = at.dev
        payer, bob, carol = (dev.accounts[index] for index in (0, 8, 9))
        dollars = await dev.deploy_token(10**12)
        nonce = int(await dev.call("eth_getTransactionCount", payer, "latest"), 16)
        plain = await dev.send(bob, 7)
        token = await dev.send_token(dollars, carol, 5_000_000)
        to_itself = await dev.send(payer, 3)
        await dev.send(dollars, 8)  # fails: the token takes no value
        await dev.send(None, 9, data="0x00")  # makes a contract
        await dev.send(bob, 0)
        await dev.send_token(dollars, carol, 0)
        await dev.send_token(dollars, carol, 10**13)  # fails: more than there is
        await dev.send(None, data=nft_transfer(bob, carol, 1))
        await dev.mine()

        (block,) = await at.chain.blocks(2, 2)

        raw = await dev.call(BODY, "0x2", False)
        assert len(raw["transactions"]) == 9
        assert nonce == 1
        assert block.credits == (
            Credit(plain, plain, bob, NATIVE, 7),
            Credit(f"{token}:0", token, carol, dollars, 5_000_000),
            Credit(to_itself, to_itself, payer, NATIVE, 3),
        )
        assert (block.block_hash, block.parent_hash) == (raw["hash"], raw["parentHash"])
        assert int(block.time.timestamp()) == int(raw["timestamp"], 16)
        assert block.proven is True

    on_bench(anvil, story)


def test_the_largest_amount_is_exact(anvil: Anvil) -> None:
    async def story(at: Bench) -> None:
        contract = await at.dev.deploy_token(UINT256_MAX)

        (block,) = await at.chain.blocks(1, 1)

        (credit,) = block.credits
        assert credit.amount_minor == UINT256_MAX
        assert (credit.token_contract, credit.address) == (contract, at.dev.accounts[0])

    on_bench(anvil, story)


def test_log_indexes_run_over_the_whole_block(anvil: Anvil) -> None:
    async def story(at: Bench) -> None:
        dollars = await at.dev.deploy_token(10**12)
        hashes = [await at.dev.send_token(dollars, at.dev.accounts[1], 1) for _ in range(3)]
        await at.dev.mine()

        (block,) = await at.chain.blocks(2, 2)

        assert [credit.evidence_ref for credit in block.credits] == [f"{tx}:{n}" for n, tx in enumerate(hashes)]

    on_bench(anvil, story)


def test_empty_blocks_and_the_genesis_have_no_credits(anvil: Anvil) -> None:
    async def story(at: Bench) -> None:
        await at.dev.mine(3)

        blocks = await at.chain.blocks(0, 3)

        assert [block.height for block in blocks] == [0, 1, 2, 3]
        assert not any(block.credits for block in blocks)

    on_bench(anvil, story)


# -- how blocks are asked for
def test_a_range_is_one_http_request(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        for height in range(10):
            await pay(at.dev, height + 1)
            await at.dev.mine()

        blocks = await at.chain.blocks(1, 10)

        assert [block.credits[0].amount_minor for block in blocks] == list(range(1, 11))
        assert proxy.requests == [[BODY] * 10 + [RECEIPTS] * 10]
        assert at.chain.supports_block_receipts is True

    on_bench(anvil, story, proxy)


def test_a_long_range_goes_in_batches_of_100_calls(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        await at.dev.mine(120)

        assert len(await at.chain.blocks(1, 120)) == 120
        assert [len(methods) for methods in proxy.requests] == [100, 100, 40]

    on_bench(anvil, story, proxy)


def only_up_to(calls: int, answer: Any) -> Spoil:
    return lambda requests, answers: answers if len(requests) <= calls else answer


TOO_MUCH = {
    "413": Reply(413),
    "an error for the batch": {"id": None, "error": {"code": -32600, "message": "batch too large"}},
    "geth's word for a large answer": {"id": None, "error": {"code": -32003, "message": "response too large"}},
}


@pytest.mark.parametrize("answer", TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_batches_shrink_to_what_the_endpoint_bears(anvil: Anvil, proxy: Proxy, answer: Any) -> None:
    async def story(at: Bench) -> None:
        await at.dev.mine(40)
        proxy.spoil = only_up_to(24, answer)

        assert len(await at.chain.blocks(1, 40)) == 40
        assert [len(methods) for methods in proxy.requests[:3]] == [80, 40, 20]
        proxy.requests.clear()
        await at.chain.blocks(1, 10)
        assert len(proxy.requests) == 1, "it remembers"

    on_bench(anvil, story, proxy)


def test_a_block_that_is_too_large_alone_is_unavailable(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        proxy.spoil = only_up_to(0, Reply(413))

        with pytest.raises(ChainUnavailable, match="refuses a request of this size"):
            await at.chain.blocks(0, 0)

    on_bench(anvil, story, proxy)


def test_after_a_slow_answer_less_is_asked_the_next_time(anvil: Anvil, proxy: Proxy) -> None:
    """Not at once: that could take several time-outs in one call, and the caller has a lease. (Seen to fail.)"""

    async def story(at: Bench) -> None:
        await at.dev.mine(20)
        proxy.delay_seconds = 1.0
        with pytest.raises(AnswerTooSlow):
            await at.chain.blocks(1, 20)
        proxy.delay_seconds = 0.0
        await at.chain.blocks(1, 20)
        assert [len(methods) for methods in proxy.requests] == [40, 20, 20]

    on_bench(anvil, story, proxy, timeout_seconds=0.4)


# -- without eth_getBlockReceipts
UNSUPPORTED = {
    "by code": (-32601, "nope"),
    "geth": (-32601, "the method eth_getBlockReceipts does not exist/is not available"),
    "in words": (-32000, "Method not found"),
    "a gateway": (-32600, "Unsupported method: eth_getBlockReceipts. See the docs"),
}


@pytest.mark.parametrize(("code", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_single_receipts_do_where_there_are_no_block_receipts(
    anvil: Anvil, proxy: Proxy, code: int, message: str
) -> None:
    async def story(at: Bench) -> None:
        await pay(at.dev, 1, times=3)
        await at.dev.mine(2)
        await at.dev.deploy_token(10**9)
        expected = await at.chain.blocks(0, 3)
        assert sum(len(block.credits) for block in expected) == 4

        proxy.requests.clear()
        proxy.spoil = refuse(RECEIPTS, code, message)
        chain = EvmChain(at.chain.endpoint)
        assert await chain.blocks(0, 3) == expected
        assert chain.supports_block_receipts is False
        assert await chain.blocks(0, 3) == expected
        assert proxy.requests == [[BODY] * 4 + [RECEIPTS] * 4, [RECEIPT] * 4, [BODY] * 4, [RECEIPT] * 4]

    on_bench(anvil, story, proxy)


def test_single_receipts_come_in_batches_of_100(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        await pay(at.dev, 1, times=130)
        await at.dev.mine()
        at.chain.supports_block_receipts = False

        (block,) = await at.chain.blocks(1, 1)

        assert len(block.credits) == 130
        assert [len(methods) for methods in proxy.requests] == [1, 100, 30]

    on_bench(anvil, story, proxy)


def test_batches_of_single_receipts_shrink_too(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        await pay(at.dev, 1, times=30)
        await at.dev.mine()
        at.chain.supports_block_receipts = False
        proxy.spoil = only_up_to(12, Reply(413))

        (block,) = await at.chain.blocks(1, 1)
        assert len(block.credits) == 30
        assert [len(methods) for methods in proxy.requests] == [1, 30, 30, 25, 12, 12, 6]

        proxy.spoil = only_up_to(0, Reply(413))
        with pytest.raises(ChainUnavailable, match="of this size"):
            await at.chain.blocks(1, 1)

    on_bench(anvil, story, proxy)


def test_a_passing_refusal_of_receipts_is_not_taken_for_a_missing_method(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        proxy.spoil = refuse(RECEIPTS, -32000, "header not found")
        with pytest.raises(ChainUnavailable, match="refuses eth_getBlockReceipts: header not found"):
            await at.chain.blocks(0, 0)
        assert at.chain.supports_block_receipts is None

    on_bench(anvil, story, proxy)


def test_a_missing_single_receipt_is_a_lagging_node(anvil: Anvil, proxy: Proxy) -> None:
    """Seen to fail with the check for None in EvmChain._read taken out."""

    async def story(at: Bench) -> None:
        await pay(at.dev, 1)
        await at.dev.mine()
        at.chain.supports_block_receipts = False
        proxy.spoil = change(RECEIPT, lambda _: None)
        with pytest.raises(ChainUnavailable, match=r"is behind: it has no receipts for block 1$"):
            await at.chain.blocks(1, 1)

    on_bench(anvil, story, proxy)


def test_a_reorg_between_block_and_receipts_is_not_stitched_together(anvil: Anvil, proxy: Proxy) -> None:
    """The same transaction is mined again while we are reading. Seen to fail without the check of the block hash."""

    async def story(at: Bench) -> None:
        (paid,) = await pay(at.dev, 5)
        await at.dev.mine()
        raw = await at.dev.raw(paid)
        at.chain.supports_block_receipts = False

        def reorg_after_the_body(requests: Answers, answers: Answers) -> Answers:
            if requests[0]["method"] == BODY:
                anvil.rpc("anvil_reorg", 1, [[raw, 0]])
            return answers

        proxy.spoil = reorg_after_the_body
        with pytest.raises(ChainInconsistent, match="is another block's"):
            await at.chain.blocks(1, 1)
        proxy.spoil = None
        (block,) = await at.chain.blocks(1, 1)
        assert [credit.evidence_ref for credit in block.credits] == [paid]

    on_bench(anvil, story, proxy)


# -- what is not there
def test_a_height_above_the_head_is_a_lagging_node_never_an_empty_block(anvil: Anvil) -> None:
    async def story(at: Bench) -> None:
        await at.dev.mine(2)
        for first in (1, 3):
            with pytest.raises(ChainUnavailable, match=r"is behind: it does not have block 3$"):
                await at.chain.blocks(first, 3)

    on_bench(anvil, story)


@pytest.mark.parametrize("method", [BODY, RECEIPTS])
def test_null_in_the_middle_is_a_lagging_node(anvil: Anvil, proxy: Proxy, method: str) -> None:
    """Seen to fail with the check for None in EvmChain._read taken out."""

    async def story(at: Bench) -> None:
        await at.dev.mine(3)
        proxy.spoil = lambda requests, answers: [
            {**answer, "result": None} if (request["method"], request["params"][0]) == (method, "0x2") else answer
            for request, answer in zip(requests, answers, strict=True)
        ]
        with pytest.raises(ChainUnavailable, match=r"^local: http://127.0.0.1:\d+ is behind: .* block 2$"):
            await at.chain.blocks(1, 3)

    on_bench(anvil, story, proxy)


def _swap_blocks(_: Answers, answers: Answers) -> Answers:
    results = [answers[1]["result"], answers[0]["result"], *(each["result"] for each in answers[2:])]
    return [{**answer, "result": result} for answer, result in zip(answers, results, strict=True)]


LIES: dict[str, Spoil] = {
    "a receipt is missing": change(RECEIPTS, lambda receipts: receipts[:-1]),
    "no receipts at all": change(RECEIPTS, lambda _: []),
    "receipts in another order": change(RECEIPTS, lambda receipts: receipts[::-1]),
    "a log is missing": change(RECEIPTS, lambda receipts: [receipts[0] | {"logs": []}, *receipts[1:]]),
    "receipts that are no list": change(RECEIPTS, lambda _: 7),
    "a block that is no object": change(BODY, lambda _: "0x1"),
    "a block without transactions": change(BODY, lambda block: {**block, "transactions": []}),
    "another height": change(BODY, lambda block: {**block, "number": "0x63"}),
    "blocks that do not link": change(BODY, lambda block: {**block, "parentHash": "0x" + "12" * 32}),
    "blocks in each other's place": _swap_blocks,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_node_that_contradicts_itself_is_refused(anvil: Anvil, proxy: Proxy, lie: Spoil) -> None:
    """The links: seen to fail with the last check of EvmChain.blocks taken out. The others: test_decode, row by row."""

    async def story(at: Bench) -> None:
        dollars = await at.dev.deploy_token(10**9)
        for _ in range(3):
            await at.dev.send_token(dollars, at.dev.accounts[1], 1)
        await at.dev.mine()
        proxy.spoil = lie
        with pytest.raises(ChainInconsistent, match=r"^local: http://127.0.0.1:\d+ \S+"):
            await at.chain.blocks(1, 2)

    on_bench(anvil, story, proxy)


def test_an_unknown_transaction_type_does_not_stop_the_scan(anvil: Anvil, proxy: Proxy) -> None:
    async def story(at: Bench) -> None:
        (paid,) = await pay(at.dev, 5)
        await at.dev.mine()
        proxy.spoil = change(
            BODY, lambda block: {**block, "transactions": [{**tx, "type": "0x7e"} for tx in block["transactions"]]}
        )

        (block,) = await at.chain.blocks(1, 1)

        assert [credit.evidence_ref for credit in block.credits] == [paid]

    on_bench(anvil, story, proxy)
