"""Reading ahead: what was asked for comes, once; what went wrong is told to who asks; what is dropped is gone."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from reconsup.chain.block import Block
from reconsup.chain.errors import ChainInconsistent, ChainUnavailable
from reconsup.worker.ahead import ReadAhead, next_range
from tests.support.ledgers import Chain, ether


class Node:
    """Blocks 100 to 119, as often as they are asked for; `gate` holds an answer back."""

    def __init__(self) -> None:
        self.mined = Chain(first=100).mined(20)
        self.asked: list[tuple[int, int]] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def blocks(self, first: int, last: int) -> list[Block]:
        self.asked.append((first, last))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if last > 119:
            raise ChainUnavailable("it is behind")
        return self.mined[first - 100 : last - 99]


def on(story: Callable[[Node, ReadAhead], Awaitable[None]]) -> None:
    async def run() -> None:
        node = Node()
        await story(node, ReadAhead(node))

    asyncio.run(run())


def heights(blocks: list[Block]) -> list[int]:
    return [block.height for block in blocks]


def test_what_was_read_ahead_is_not_read_again_even_if_more_is_asked_for() -> None:
    async def story(node: Node, ahead: ReadAhead) -> None:
        ahead.begin(103, 104)
        assert heights(await ahead.blocks(103, 110)) == [103, 104]
        assert heights(await ahead.blocks(105, 106)) == [105, 106]
        assert node.asked == [(103, 104), (105, 106)]

    on(story)


def test_after_a_rollback_what_was_read_ahead_is_of_no_use_and_dropped() -> None:
    """Seen to fail (blocks of the wrong heights) when whatever was read ahead is taken."""

    async def story(node: Node, ahead: ReadAhead) -> None:
        ahead.begin(110, 112)
        assert heights(await ahead.blocks(103, 104)) == [103, 104]
        assert heights(await ahead.blocks(110, 111)) == [110, 111]
        assert node.asked[-1] == (110, 111)

    on(story)


def test_what_failed_ahead_is_told_to_who_asks_and_then_asked_again() -> None:
    async def story(_: Node, ahead: ReadAhead) -> None:
        ahead.begin(119, 120)
        with pytest.raises(ChainUnavailable):
            await ahead.blocks(119, 120)
        assert heights(await ahead.blocks(119, 119)) == [119]

    on(story)


def test_nobody_is_told_of_a_failure_that_was_dropped() -> None:
    """Seen to fail (the loop's "exception was never retrieved") without the callback."""

    async def story(_: Node, ahead: ReadAhead) -> None:
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        ahead.begin(119, 120)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ahead.drop()
        await asyncio.sleep(0)
        assert told == []

    on(story)


def test_who_is_cancelled_while_waiting_stops_the_reading() -> None:
    async def story(node: Node, ahead: ReadAhead) -> None:
        node.gate.clear()
        ahead.begin(103, 104)
        waiting = asyncio.create_task(ahead.blocks(103, 104))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0)
        assert node.cancelled == 1

    on(story)


@pytest.mark.parametrize(
    ("credits_each", "seconds", "expected"),
    [
        (0, 0.0, 100),  # twice as many
        (0, 2.5, 100),  # fifty in 2.5 s: a hundred in a sixth of the lease
        (0, 10.0, 25),  # slow: as many as fit into it
        (0, 500.0, 1),
        (1_000, 0.1, 10),  # ten thousand credits
        (200, 0.1, 50),  # whole HTTP requests
    ],
)
def test_a_range_is_as_long_as_credits_and_the_lease_allow(credits_each: int, seconds: float, expected: int) -> None:
    chain = Chain(first=100)
    blocks = [chain.mine(*(ether(f"0x{n:040x}", 1, (at, n)) for n in range(credits_each))) for at in range(50)]
    assert next_range(blocks, seconds, twice=100, tail_blocks=1024, lease_seconds=30.0) == expected


def test_no_range_is_longer_than_the_tail() -> None:
    blocks = Chain(first=100).mined(50)
    assert next_range(blocks, 0.1, twice=10_000, tail_blocks=64, lease_seconds=30.0) == 50
    assert next_range(blocks, 0.1, twice=10_000, tail_blocks=1024, lease_seconds=30.0) == 1000


class LongNode(Node):
    """Blocks 100 to 299; `other` is another chain, of which the upper ones come after a reorg between two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.mined = Chain(first=100).mined(200)
        self.other: list[Block] = []

    async def blocks(self, first: int, last: int) -> list[Block]:
        self.asked.append((first, last))
        await self.gate.wait()
        source = self.other if self.other and first > 150 else self.mined
        if last > 299:
            raise ChainUnavailable("it is behind")
        return source[first - 100 : last - 99]


def test_many_blocks_are_asked_for_in_two_requests_at_the_same_time() -> None:
    async def run() -> None:
        node = LongNode()
        ahead = ReadAhead(node)
        node.gate.clear()
        ahead.begin(100, 299)
        for _ in range(3):
            await asyncio.sleep(0)
        assert node.asked == [(100, 199), (200, 299)]
        node.gate.set()
        assert heights(await ahead.blocks(100, 299)) == list(range(100, 300))
        assert heights(await ahead.blocks(100, 149)) == list(range(100, 150))
        assert heights(await ahead.blocks(100, 159)) == list(range(100, 160))
        assert node.asked[2:] == [(100, 149), (100, 149), (150, 159)]

    asyncio.run(run())


def test_two_answers_that_are_not_of_one_chain_are_refused_and_one_that_fails_fails_both() -> None:
    """Seen to fail (blocks of two chains as one range) without the look at where they meet."""

    async def run() -> None:
        node = LongNode()
        node.other = Chain(first=100, name="other").mined(200)
        with pytest.raises(ChainInconsistent, match="blocks 199 and 200"):
            await ReadAhead(node).blocks(100, 299)
        with pytest.raises(ChainUnavailable):
            await ReadAhead(node).blocks(100, 350)

    asyncio.run(run())
