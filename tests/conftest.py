"""Fixtures for all rooms: a real PostgreSQL and a real chain, each started at its first use."""

pytest_plugins = ["tests.support.postgres", "tests.support.anvil"]
