"""reconsup notices on-chain payments and moves payment requests in PostgreSQL. `reconsup.cli` is the way in."""

__version__ = "0.1.0"
