"""What the store remembers of blocks that could not be proven: one height a network, and what it says for the tail."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from reconsup.chain.block import Block
from reconsup.store import backlog, migrate
from reconsup.store import cursor as cursors
from reconsup.store.cursor import Cursor
from reconsup.store.database import Database
from tests.support.ledgers import NETWORK, Chain, Emptied, born, committed, cursor_of, rolled_back, store
from tests.support.postgres import Database as Empty

pytestmark = pytest.mark.service

OLD_CURSOR = """
INSERT INTO app.chain_cursors (chain, network, chain_id, genesis_hash, next_height, tip_hash, tail_start)
VALUES ('ethereum', 'read', 1, '0x0', 101, '0x0', 50), ('ethereum', 'unread', 1, '0x0', 50, '0x0', 50)
"""


def proven(blocks: Sequence[Block], *but: int) -> list[Block]:
    """The blocks, proven, except those of these heights."""
    return [replace(block, proven=block.height not in but) for block in blocks]


async def state_of(database: Database, cursor: Cursor) -> bool | None:
    """Whether the network is told to be proven; the cursor in hand says what the one in the database says."""
    assert await cursors.read(database, NETWORK) == replace(cursor, owner=None)
    (state,) = (await backlog.read(database, [NETWORK])).networks
    assert state.proven in (None, cursor.is_proven)
    return state.proven


def test_a_network_is_proven_until_a_block_is_not_and_again_when_the_tail_has_left_it(emptied: Emptied) -> None:
    """Seen to fail: (proven, though nothing was read) without the question for blocks; (unproven for ever) without the
    comparison with the tail; (another height) with the first unproven block of a range in place of the last."""
    chain = Chain(first=100)
    chain.mined(130)

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = await born(scanner, chain)
            assert await state_of(scanner, cursor) is None
            cursor = (await committed(scanner, cursor, *proven(chain.blocks[:3]))).cursor
            assert (await state_of(scanner, cursor), cursor.unproven_height) == (True, None)
            cursor = (await committed(scanner, cursor, *proven(chain.blocks[3:8], 104, 106))).cursor
            assert (await state_of(scanner, cursor), cursor.unproven_height) == (False, 106)
            cursor = (await committed(scanner, cursor, *proven(chain.blocks[8:10]))).cursor
            assert (await state_of(scanner, cursor), cursor.unproven_height) == (False, 106)
            emptied.execute("UPDATE app.chain_blocks SET block_time = block_time - interval '1 day'")
            cursor = (await committed(scanner, cursor, *proven(chain.blocks[10:]))).cursor
            assert cursor.tail_start > 106
            assert (await state_of(scanner, cursor), cursor.unproven_height) == (True, 106)

    asyncio.run(story())


@pytest.mark.parametrize(("unproven", "after"), [((), None), ((101,), 101), ((103,), 102), ((101, 104), 102)])
def test_a_rollback_leaves_no_unproven_height_above_the_fork(
    emptied: Emptied, unproven: tuple[int, ...], after: int | None
) -> None:
    """Which block below the fork was the last unproven one nobody knows: perhaps the highest. So it is never told too
    low. Seen to fail (104 is gone) without the rollback's value, and (proven, though 101 was not) with null for it."""
    chain = Chain(first=100)
    chain.mined(5)
    other = chain.branch(102)
    other.mined(3)

    async def story() -> None:
        async with store(emptied) as scanner:
            cursor = await born(scanner, chain)
            cursor = (await committed(scanner, cursor, *proven(chain.blocks, *unproven))).cursor
            done = await rolled_back(scanner, cursor, chain.fork_to(other, 102))
            assert done.cursor.unproven_height == after
            assert await state_of(scanner, done.cursor) is (after is None)

    asyncio.run(story())
    assert cursor_of(emptied)["unproven_height"] == after


def test_what_was_read_before_blocks_were_proven_is_not_told_as_proven(empty_database: Empty) -> None:
    """Seen to fail without the migration's statement."""

    def silent(_: str) -> None:
        """Say nothing."""

    migrate.upgrade(empty_database.url, "0005_rare_rows", say=silent)
    empty_database.execute(OLD_CURSOR)
    migrate.upgrade(empty_database.url, say=silent)

    rows: list[tuple[Any, ...]] = empty_database.fetch("SELECT network, unproven_height FROM app.chain_cursors")
    assert dict(rows) == {"read": 100, "unread": None}
