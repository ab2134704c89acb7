"""chain.block: links, and the walk back to the fork. Plain calls."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconsup.chain.block import Ask, Block, Fork, Header, NoFork, links, walk_back


def at(height: int, branch: str = "a", parent_branch: str | None = None) -> Header:
    """A header named by its height and branch: block 7 on branch b hangs on block 6 of b unless told otherwise."""
    return Header(
        height=height,
        block_hash=f"{branch}{height}",
        parent_hash=f"{parent_branch or branch}{height - 1}",
        time=datetime.fromtimestamp(1_800_000_000 + height, UTC),
    )


def chain(first: int, last: int, branch: str = "a", fork_from: str | None = None) -> list[Header]:
    """Headers, highest first. The lowest hangs on branch `fork_from`."""
    return [at(height, branch, fork_from if height == first else None) for height in range(last, first - 1, -1)]


def stored(first: int, last: int, branch: str = "a") -> dict[int, str]:
    return {height: f"{branch}{height}" for height in range(first, last + 1)}


def time_of(height: int) -> datetime:
    return at(height).time


LINKS = {
    "nothing": ([], True),
    "one": ([at(5)], True),
    "two in order": ([at(5), at(6)], True),
    "a gap": ([at(5), at(7)], False),
    "at the same second": ([at(5), replace(at(6), time=time_of(5))], True),
    "back in time": ([at(5), replace(at(6), time=time_of(4))], False),
    "highest first": ([at(6), at(5)], False),
    "another branch above": ([at(5), at(6, "b")], False),
    "a branch that leaves here": ([at(5), at(6, "b", "a")], True),
    "the same twice": ([at(5), at(5)], False),
    "right hash, wrong height": ([at(5), Header(7, "x", "a5", at(7).time)], False),
}


@pytest.mark.parametrize(("headers", "expected"), LINKS.values(), ids=LINKS.keys())
def test_headers_link_by_height_and_parent_hash(headers: list[Header], expected: bool) -> None:
    """Seen to fail with either half of the comparison in `links` taken out."""
    assert links(headers) is expected


WALKS = {
    # what is stored, what was fetched (highest first), what the walk says
    "our tip is the head": (stored(1, 9), [at(9)], Fork(9, "a9", time_of(9), ())),
    "our tip is below the head": (stored(1, 9), chain(9, 12), Fork(9, "a9", time_of(9), ())),
    "not yet down at our tip": (stored(1, 9), [at(12)], Ask(11, "a11")),
    "one block is orphaned, its parent not yet seen": (stored(1, 9), [at(9, "b", "a")], Ask(8, "a8")),
    "one block is orphaned": (
        stored(1, 9),
        [at(9, "b", "a"), at(8)],
        Fork(8, "a8", time_of(8), ((9, "a9", "b9"),)),
    ),
    "three blocks are orphaned, the new branch is longer": (
        stored(1, 9),
        [*chain(7, 11, "b", fork_from="a"), at(6)],
        Fork(6, "a6", time_of(6), ((7, "a7", "b7"), (8, "a8", "b8"), (9, "a9", "b9"))),
    ),
    "down to the lowest stored block": (
        stored(7, 9),
        [*chain(8, 9, "b", fork_from="a"), at(7)],
        Fork(7, "a7", time_of(7), ((8, "a8", "b8"), (9, "a9", "b9"))),
    ),
    "deeper than anything stored": (stored(7, 9), chain(7, 9, "b"), NoFork.BELOW_TAIL),
    "another chain down to its genesis": (stored(0, 2), chain(0, 2, "b"), NoFork.BELOW_TAIL),
    "the head is below our tip, on our chain": (stored(1, 9), [at(8)], NoFork.HEAD_BELOW_TIP),
    "the head is below our tip, on another chain": (stored(1, 9), [at(8, "b")], NoFork.HEAD_BELOW_TIP),
    "headers of two chains": (stored(1, 9), [at(9, "b"), at(8, "a")], NoFork.UNLINKED),
    "a header left out": (stored(1, 9), [at(9, "b"), at(7, "b")], NoFork.UNLINKED),
}


@pytest.mark.parametrize(("have", "fetched", "expected"), WALKS.values(), ids=WALKS.keys())
def test_the_walk_back(have: dict[int, str], fetched: list[Header], expected: object) -> None:
    """Seen to fail with the check of the head's height, of the links, or of the tail's end taken out."""
    assert walk_back(have, fetched) == expected


@given(tail=st.integers(0, 5), fork=st.integers(0, 20), tip=st.integers(0, 20), head=st.integers(0, 30))
def test_a_walk_ends_at_the_fork_whatever_the_lengths(tail: int, fork: int, tip: int, head: int) -> None:
    """Any stored chain, any fork, any head: following the Asks ends, at the right block, with the whole proof."""
    tip, fork = max(tip, tail), max(0, min(fork, head))
    canonical = {height: at(height, "b", "a" if height == fork + 1 else None) for height in range(fork + 1, head + 1)}
    canonical |= {height: at(height) for height in range(fork + 1)}
    by_hash = {header.block_hash: header for header in canonical.values()}
    have, headers = stored(tail, tip), [canonical[head]]

    while isinstance(step := walk_back(have, headers), Ask):
        headers.append(by_hash[step.block_hash])
        assert headers[-1].height == step.height

    if head < tip:
        assert step is NoFork.HEAD_BELOW_TIP
    elif fork < tail:
        assert step is NoFork.BELOW_TAIL
    else:
        common = min(fork, tip)
        orphaned = tuple((height, f"a{height}", f"b{height}") for height in range(common + 1, tip + 1))
        assert step == Fork(common, f"a{common}", time_of(common), orphaned)


def test_a_block_shows_its_header() -> None:
    block = Block(at(7), (), proven=False)
    assert (block.height, block.block_hash, block.parent_hash, block.time) == (7, "a7", "a6", time_of(7))
