"""Values cross the wire exactly, lists of hundreds of them as one array."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reconsup.payments.decision import Look
from tests.support.ledgers import MONEY_MAX, Emptied, store
from tests.support.postgres import Database

pytestmark = pytest.mark.service

TIME = datetime(2026, 11, 24, 9, 15, 7, 365522, UTC)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", []),
        ("text", ["pr_1", "ü{},", 'a "quoted" one', "back\\slash", '\\"', "", " ", "null", "NULL", None]),
        ("text", ["two\nlines", "a\ttab", "\x01\x7f", "\\n", '\\\\"\n']),  # JSON has other words for these
        ("bigint", [0, -1, None, 2**63 - 1]),
        ("numeric", [1, None, MONEY_MAX]),  # beyond 64 bits
        ("numeric", ["1", str(MONEY_MAX)]),
        ("float8", [0.1, 1e-9, None, 86400.0]),
        ("timestamptz", [TIME, TIME + timedelta(microseconds=1), None]),
        ("boolean", [True, False, None]),
        ("jsonb", ['{"ref": "0x\\u00e9:1", "text": "a \\"b\\" \\\\ c\\n"}', "[]", None]),
    ],
    ids=[
        "nothing",
        "text",
        "control characters",
        "bigint",
        "amounts",
        "amounts as text",
        "float",
        "time",
        "bool",
        "json",
    ],
)
def test_a_list_arrives_as_it_was_sent(emptied: Emptied, kind: str, values: list[Any]) -> None:
    r"""Seen to fail (`n` for a line's end) when an array is taken from JSON whatever JSON escapes."""

    async def story() -> list[Any]:
        async with store(emptied) as worker:
            rows = await worker.fetch(
                f"SELECT e::text, e = s::{kind} AS same FROM unnest(%(values)s::{kind}[]) WITH ORDINALITY AS a(e, n)"
                f" FULL JOIN unnest(%(singly)s::text[]) WITH ORDINALITY AS b(s, n) USING (n) ORDER BY n",
                {"values": values, "singly": [None if each is None else str(each) for each in values]},
            )
            return [each.same for each in rows]

    assert asyncio.run(story()) == [None if each is None else True for each in values]


def test_a_number_that_json_does_not_know_never_becomes_a_look() -> None:
    """As null it would mean: never. Seen to fail without the assertion in Look."""
    with pytest.raises(AssertionError):
        Look(seconds=math.nan)


def test_letters_arrive_also_in_a_database_that_keeps_them_in_another_encoding(database: Database) -> None:
    """JSON is UTF-8, whatever the database or the environment wants to speak.

    Seen to fail (`Ã¼` for `ü`: a request with such an id was never written again) without the encoding at connect.
    """
    database.execute(f'ALTER DATABASE "{database.name}" SET client_encoding = LATIN1')

    async def story() -> list[Any]:
        async with store(database) as worker:
            return await worker.fetch("SELECT (%(list)s::text[])[1] = %(one)s AS same", {"list": ["ü"], "one": "ü"})

    ((is_same,),) = asyncio.run(story())
    assert is_same
