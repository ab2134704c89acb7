"""chain.evm.Pace: how many blocks one batch asks for. Plain calls."""

import pytest

from reconsup.chain.evm import BATCH_BLOCKS_MAX, BATCH_BYTES_AIM, Pace


def test_it_begins_with_all_that_a_batch_may_hold() -> None:
    assert Pace().blocks == BATCH_BLOCKS_MAX


@pytest.mark.parametrize(("transactions", "blocks"), [(0, 50), (1, 50), (200, 20), (100_000, 1)])
def test_the_heads_number_of_transactions_is_the_first_guess(transactions: int, blocks: int) -> None:
    pace = Pace()
    pace.expect(transactions)
    assert pace.blocks == blocks


def test_a_measured_size_replaces_the_guess() -> None:
    pace = Pace()
    pace.expect(200)
    for _ in range(20):
        pace.fitted(10, 10 * BATCH_BYTES_AIM // 4)
        pace.expect(1)
    assert pace.blocks == 4


def test_it_halves_down_to_one_and_grows_back_slowly() -> None:
    pace = Pace()
    seen = []
    for _ in range(8):
        pace.was_too_much(pace.blocks)
        seen.append(pace.blocks)
    assert seen == [25, 12, 6, 3, 1, 1, 1, 1]

    rounds = 0
    while pace.blocks < BATCH_BLOCKS_MAX:
        pace.fitted(pace.blocks, 1000)
        rounds += 1
    assert 10 < rounds < 40


def test_an_answer_to_less_than_the_limit_proves_nothing_about_it() -> None:
    pace = Pace()
    pace.was_too_much(20)
    for _ in range(10):
        pace.fitted(3, 1000)
    assert pace.blocks == 10
