"""A real anvil for the tests: one process for each test process, its chain put back after every test."""

from collections.abc import Iterator

import pytest

from reconsup.demo.anvil import Anvil


@pytest.fixture(scope="session")
def anvil_process() -> Iterator[Anvil]:
    with Anvil() as running:
        yield running


@pytest.fixture
def anvil(anvil_process: Anvil) -> Iterator[Anvil]:
    """An empty chain that mines a block for each transaction (`rpc("evm_setAutomine", False)` stops that)."""
    snapshot = anvil_process.rpc("evm_snapshot")
    yield anvil_process
    anvil_process.rpc(
        "anvil_dropAllTransactions"
    )  # a revert leaves them in the pool, and the next test would mine them
    anvil_process.rpc("evm_setAutomine", True)
    anvil_process.rpc("evm_setIntervalMining", 0)
    assert anvil_process.rpc("evm_revert", snapshot) is True
