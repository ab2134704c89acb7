"""chain.nodes: what the other endpoints say before something is written. Two real nodes, made to part."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from reconsup.chain.block import Block
from reconsup.chain.errors import Behind, EndpointsDisagree, QuorumMissing
from tests.chain.nodes_at import NUMBER, WHO, Group, asked, nodes_at, nothing
from tests.support.proxy import Reply, change
from tests.support.twin_nodes import Twins, away, twin_nodes

pytestmark = pytest.mark.service


@pytest.fixture
def twins() -> Iterator[Twins]:
    with twin_nodes() as running:
        yield running


async def agree(group: Group, first: int, last: int, stored: Mapping[int, str] | None = None) -> int:
    """What the scanner asks before it stores the blocks of a: up to which height it may."""

    async def known() -> Mapping[int, str]:
        return stored or {}

    return await group.nodes.agree_on_blocks(group.chains[0], await group.headers(0, first, last), known)


# blocks


def test_a_witness_costs_one_small_http_request_and_a_single_endpoint_none(twins: Twins) -> None:
    async def run() -> None:
        async with nodes_at(*twins.urls) as group, nodes_at(twins.at_a.url) as alone:
            await group.pin()
            twins.clear()
            await agree(group, 4, 5)
            assert twins.at_b.requests == [[NUMBER, NUMBER]]
            headers = await alone.headers(0, 4, 5)
            twins.clear()
            await alone.nodes.agree_on_blocks(alone.chains[0], headers, nothing)
            assert alone.nodes.has_another(alone.chains[0]) is False
            assert asked(twins.at_a) == 0

    asyncio.run(run())


def test_another_block_at_the_same_height_holds_everything_back_and_is_told_once(twins: Twins) -> None:
    """Also that of an endpoint whose head is far above. Seen to fail with the comparison of hashes taken out."""

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            twins.part(3, 9)
            with capture_logs() as logs:
                for _ in range(3):
                    with pytest.raises(EndpointsDisagree, match="show different blocks 8: nothing is written"):
                        await agree(group, 6, 8)
            (log,) = logs
            assert (log["event"], log["height"]) == ("endpoints_disagree", 8)
            assert log["hashes"] == {
                twins.at_a.url: twins.a.rpc(NUMBER, "0x8", False)["hash"],
                twins.at_b.url: twins.b.rpc(NUMBER, "0x8", False)["hash"],
            }
            assert "nothing of this network is written" in log["todo"]
            twins.follow()
            with capture_logs() as logs:
                await agree(group, 6, 8)
                await agree(group, 6, 8)
            assert [log["event"] for log in logs] == ["endpoints_agree_again"]

    asyncio.run(run())


@pytest.mark.parametrize("b_blocks", [1, 2])
def test_a_lower_head_on_another_fork_contradicts_too(twins: Twins, b_blocks: int) -> None:
    """Against the blocks in hand, or the stored ones below them.

    Seen to fail with the witness's own latest header left out.
    """

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            twins.part(4, b_blocks)
            with pytest.raises(EndpointsDisagree, match=f"different blocks {5 + b_blocks}"):
                await agree(group, 6, 9)
            stored = {header.height: header.block_hash for header in await group.headers(0, 5, 8)}
            with pytest.raises(EndpointsDisagree, match=f"different blocks {5 + b_blocks}"):
                await agree(group, 9, 9, stored)

    asyncio.run(run())


def test_who_is_behind_on_the_same_chain_silent_or_set_aside_holds_nothing_back(twins: Twins) -> None:
    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            twins.a.rpc("anvil_mine", 3, 1)
            assert await agree(group, 6, 8) == 8  # b is behind
            twins.at_b.spoil = change(NUMBER, lambda _: None)  # and knows nothing at all
            await agree(group, 6, 8)
            twins.at_b.spoil = lambda *_: Reply(body=b"[]")
            await group.wait(1000)
            await agree(group, 6, 8)
            twins.clear()
            await agree(group, 6, 8)  # set aside: not even asked
            assert asked(twins.at_b) == 0

    asyncio.run(run())


def test_a_null_for_the_block_of_one_whose_head_is_above_says_nothing(twins: Twins) -> None:
    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            twins.part(1, 3)
            twins.at_b.spoil = lambda requests, answers: [
                answer | {"result": None} if request["params"][:1] == ["0x6"] else answer
                for request, answer in zip(requests, answers, strict=True)
            ]
            await agree(group, 6, 6)

    asyncio.run(run())


def test_a_slow_witness_delays_no_longer_than_one_time_out_and_then_not_at_all(twins: Twins) -> None:
    async def run() -> None:
        async with nodes_at(*twins.urls, timeout_seconds=0.3) as group:
            await group.pin()
            twins.at_b.delay_seconds = 5.0
            loop = asyncio.get_running_loop()
            began = loop.time()
            await agree(group, 4, 5)
            assert loop.time() - began < 2
            twins.clear()
            await agree(group, 4, 5)
            assert asked(twins.at_b) == 0

    asyncio.run(run())


def test_a_witness_of_another_chain_has_no_say(twins: Twins) -> None:
    """Seen to fail (nothing is ever written) when witnesses are not asked who they are."""

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            twins.at_b.spoil = away
            await agree(group, 4, 5)
            await group.wait(1)
            twins.at_b.spoil = change("eth_chainId", lambda _: "0x5")
            twins.part()
            await agree(group, 6, 8)

    asyncio.run(run())


# a head that stands still


def test_a_head_that_stands_still_while_anothers_grows_by_32_blocks_has_no_say_until_it_grows(twins: Twins) -> None:
    """A node that stopped on a block which the chain gave up would hold back the network for ever.

    Seen to fail (still disagreeing) without Node.is_stuck.
    """

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            twins.part(31, 1)
            for height in (6, 20, 36):
                await group.wait(100)
                with pytest.raises(EndpointsDisagree):
                    await agree(group, 6, height)
            twins.a.rpc("anvil_mine", 2, 1)
            group.nodes.saw(group.chains[0], (await group.headers(0, 38, 38))[0])
            with capture_logs() as logs:
                await agree(group, 6, 38)
            assert [(log["event"], log.get("reason")) for log in logs] == [
                ("endpoint_set_aside", "stuck"),
                ("endpoints_agree_again", None),
            ]
            await group.wait(300)
            await agree(group, 6, 38)
            twins.b.rpc("anvil_mine", 1, 2)
            await group.wait(300)
            with pytest.raises(EndpointsDisagree):
                await agree(group, 6, 38)

    asyncio.run(run())


def test_a_head_that_jumps_silences_nobody(twins: Twins) -> None:
    """Seen to fail (the liar's blocks are written) without the time in Node.is_stuck."""

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            twins.part(1, 1)
            with pytest.raises(EndpointsDisagree):
                await agree(group, 6, 6)
            twins.a.rpc("anvil_mine", 1000, 1)
            group.nodes.saw(group.chains[0], (await group.headers(0, 1006, 1006))[0])
            await group.wait(59)
            with pytest.raises(EndpointsDisagree):
                await agree(group, 6, 10)

    asyncio.run(run())


def test_an_endpoint_whose_head_stands_still_is_left_for_one_whose_head_is_higher(twins: Twins) -> None:
    """Asked every half minute of standstill, no more often. Seen to fail without Nodes.compare_heads."""

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            a = group.chains[0]
            (top,) = await group.headers(0, 5, 5)
            group.nodes.saw(a, top)
            twins.b.rpc("anvil_mine", 1, 1)
            twins.clear()
            await group.nodes.compare_heads(a, top)
            assert asked(twins.at_b) == 0
            await group.wait(30)
            with pytest.raises(Behind, match="stands still at block 5, another is at 6"):
                await group.nodes.compare_heads(a, top)
            twins.at_b.spoil = change(NUMBER, lambda _: twins.a.rpc(NUMBER, "0x5", False))
            await group.nodes.compare_heads(a, top)
            await group.wait(29)
            await group.nodes.compare_heads(a, top)
            assert asked(twins.at_b) == 1
            await group.wait(1)
            await group.nodes.compare_heads(a, top)
            assert asked(twins.at_b) == 2

    asyncio.run(run())


# a reorg


def test_an_endpoint_that_still_gives_the_stored_block_holds_a_rollback_back(twins: Twins) -> None:
    """Also one that is set aside: what is taken back is money.

    Seen to fail without the question to the others, and (set aside) without `also_set_aside`.
    """

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            a, stored = group.chains[0], twins.b.rpc(NUMBER, "0x4", False)["hash"]
            twins.a.rpc("anvil_reorg", 2, [])
            new = (await group.headers(0, 4, 4))[0].block_hash
            assert new != stored
            with pytest.raises(EndpointsDisagree, match="different blocks 4"):
                await group.nodes.agree_on_fork(a, 4, stored, new)
            twins.at_b.spoil = away
            await agree(group, 1, 2)
            twins.at_b.spoil = None
            assert not group.nodes.has_another(a)
            with pytest.raises(EndpointsDisagree):
                await group.nodes.agree_on_fork(a, 4, stored, new)
            twins.follow()
            await group.nodes.agree_on_fork(a, 4, stored, new)

    asyncio.run(run())


def test_who_does_not_have_the_block_or_does_not_answer_holds_no_rollback_back(twins: Twins) -> None:
    """And one that asked for a pause is not even asked."""

    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            a = group.chains[0]
            await group.nodes.agree_on_fork(a, 6, "0x" + "5" * 64, "0x" + "6" * 64)
            twins.at_b.spoil = away
            await group.nodes.agree_on_fork(a, 5, twins.b.rpc(NUMBER, "0x5", False)["hash"], "0x" + "6" * 64)
            twins.at_b.spoil = lambda *_: Reply(429, headers={"Retry-After": "60"})
            await group.nodes.agree_on_fork(a, 5, twins.b.rpc(NUMBER, "0x5", False)["hash"], "0x" + "6" * 64)
            twins.clear()
            await group.nodes.agree_on_fork(a, 5, twins.b.rpc(NUMBER, "0x5", False)["hash"], "0x" + "6" * 64)
            assert asked(twins.at_b) == 0

    asyncio.run(run())


# the quorum


def test_a_quorum_waits_until_so_many_show_the_same(twins: Twins) -> None:
    """Behind is not the same, nor is silence; it is told once. Seen to fail without the count."""

    async def run() -> None:
        async with nodes_at(*twins.urls, quorum=2) as group:
            await group.pin()
            await agree(group, 4, 5)
            twins.a.rpc("anvil_mine", 1, 1)
            with capture_logs() as logs:
                for _ in range(3):
                    with pytest.raises(QuorumMissing, match="1 of 2 endpoints show block 6"):
                        await agree(group, 6, 6)
                twins.at_b.spoil = away
                for _ in range(2):
                    with pytest.raises(QuorumMissing):
                        await agree(group, 6, 6)
                assert [log["event"] for log in logs].count("quorum_missing") == 1
            twins.at_b.spoil = None
            twins.follow()
            await agree(group, 6, 6)  # at once: it is needed, so it was asked although it is set aside

    asyncio.run(run())


def test_a_quorum_stores_what_it_shows_while_one_of_it_is_always_behind(twins: Twins) -> None:
    """Two blocks behind on a fast chain: it never shows the highest block in hand, and that must stop nothing.

    Seen to fail (QuorumMissing) when only the highest block counts.
    """

    async def run() -> None:
        async with nodes_at(*twins.urls, quorum=2) as group, nodes_at(*twins.urls) as any_of_them:
            await group.pin()
            twins.a.rpc("anvil_mine", 2, 1)
            twins.follow()
            twins.a.rpc("anvil_mine", 2, 1)
            assert await agree(group, 6, 9) == 7
            with pytest.raises(QuorumMissing, match="1 of 2 endpoints show block 8"):
                await agree(group, 8, 9)
            assert await agree(any_of_them, 6, 9) == 9

    asyncio.run(run())


def test_a_rollback_needs_the_quorum_too(twins: Twins) -> None:
    async def run() -> None:
        async with nodes_at(*twins.urls, quorum=2) as group:
            await group.pin()
            stored = twins.a.rpc(NUMBER, "0x5", False)["hash"]
            twins.a.rpc("anvil_reorg", 1, [])
            new = twins.a.rpc(NUMBER, "0x5", False)["hash"]
            twins.at_b.spoil = away
            with pytest.raises(QuorumMissing, match="that block 5 was replaced"):
                await group.nodes.agree_on_fork(group.chains[0], 5, stored, new)
            twins.at_b.spoil = None
            twins.follow()
            await group.nodes.agree_on_fork(group.chains[0], 5, stored, new)

    asyncio.run(run())


def test_no_chain_is_pinned_on_fewer_words_than_the_quorum(twins: Twins) -> None:
    async def run() -> None:
        async with nodes_at(*twins.urls, quorum=2) as group:
            twins.at_b.spoil = away
            with pytest.raises(QuorumMissing):
                await group.nodes.identity()

    asyncio.run(run())


# blocks that could not be proven


async def unproven(group: Group, first: int, last: int) -> list[Block]:
    return [replace(block, proven=False) for block in await group.chains[0].blocks(first, last)]


def test_a_block_that_two_endpoints_give_alike_is_as_good_as_proven(twins: Twins) -> None:
    async def run() -> None:
        async with nodes_at(*twins.urls, proves=True) as group:
            await group.pin()
            blocks = await unproven(group, 2, 5)
            assert all(block.proven for block in await group.nodes.vouched(group.chains[0], blocks))
            mixed = [replace(blocks[0], proven=True), *blocks[1:3], replace(blocks[3], proven=True)]
            twins.clear()
            assert all(block.proven for block in await group.nodes.vouched(group.chains[0], mixed))
            assert twins.at_b.requests == [[NUMBER] * 2 + ["eth_getBlockReceipts"] * 2]
            twins.clear()
            proven = [replace(block, proven=True) for block in blocks]
            assert await group.nodes.vouched(group.chains[0], proven) == proven
            twins.at_b.spoil = away
            assert await group.nodes.vouched(group.chains[0], blocks) == blocks  # stored, and shown as unproven
            assert twins.at_b.requests == [[NUMBER] * 4 + ["eth_getBlockReceipts"] * 4]

    asyncio.run(run())


def test_blocks_are_not_read_twice_where_the_operator_wants_no_proofs(twins: Twins) -> None:
    async def run() -> None:
        async with nodes_at(*twins.urls, proves=False) as group:
            await group.pin()
            twins.clear()
            blocks = await unproven(group, 5, 5)
            assert await group.nodes.vouched(group.chains[0], blocks) == blocks
            assert asked(twins.at_b) == 0

    asyncio.run(run())


def test_a_block_with_other_credits_at_another_endpoint_is_not_written(twins: Twins) -> None:
    """The same hash, but money is missing in one of the two. Seen to fail when only hashes are compared."""

    async def run() -> None:
        payment = {"from": twins.a.accounts[0], "to": twins.a.accounts[1], "value": "0x5"}
        twins.a.rpc("eth_sendTransaction", payment)
        twins.a.rpc("anvil_mine", 1, 1)
        twins.follow()
        async with nodes_at(*twins.urls, proves=True) as group:
            await group.pin()
            (block,) = await unproven(group, 6, 6)
            assert len(block.credits) == 1
            with pytest.raises(EndpointsDisagree):
                await group.nodes.vouched(group.chains[0], [replace(block, credits=())])

    asyncio.run(run())


def test_who_is_asked_who_it_is_is_not_asked_again_as_a_witness(twins: Twins) -> None:
    async def run() -> None:
        async with nodes_at(*twins.urls) as group:
            await group.pin()
            for _ in range(3):
                await agree(group, 4, 5)
            assert twins.at_b.requests == [WHO, *[[NUMBER, NUMBER]] * 3]

    asyncio.run(run())
