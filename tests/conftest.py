"""Fixtures for all rooms: a real PostgreSQL and a real chain, each started at its first use."""

import pytest

pytest_plugins = ["tests.support.postgres", "tests.support.anvil"]

LAST_TO_END = "tests/story/test_endurance.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The one that takes ten minutes begins first, so that nobody waits for it alone."""
    items.sort(key=lambda item: not item.nodeid.startswith(LAST_TO_END))
