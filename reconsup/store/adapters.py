"""How values cross the wire where psycopg's own way is not exact enough, or too slow for whole batches."""

import re
from typing import Any

import orjson
from psycopg import AsyncConnection
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.types.array import ListDumper

# What JSON escapes and PostgreSQL would read as another letter: \n, \u0001 and their like.
_ESCAPED_OTHERWISE = re.compile(rb'\\[^"\\]')


def register(connection: AsyncConnection[Any]) -> None:
    """Let this connection use them."""
    connection.adapters.register_loader("numeric", _IntegerLoader)
    connection.adapters.register_dumper(list, _FlatListDumper)


class _IntegerLoader(Loader):
    """numeric → int, exactly. Amounts have no fraction here, and Decimal arithmetic rounds at 28 digits."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


class _FlatListDumper(Dumper):
    """A list without lists in it → the text of an array, whose type the statement names (`%(ids)s::text[]`).

    JSON between braces is that text: elements in double quotes, `\\"` and `\\\\` escaped, null for NULL. psycopg
    goes through the elements one by one, a hundred times slower, and is asked where JSON will not do: for integers
    beyond 64 bits (amounts), and for control characters.
    """

    def __init__(self, cls: type, context: AdaptContext | None = None) -> None:
        super().__init__(cls, context)
        self._careful = ListDumper(cls, context)

    def dump(self, obj: list[Any]) -> Buffer | None:
        assert not any(isinstance(each, list) for each in obj[:1]), "an array of arrays"
        try:
            dumped = orjson.dumps(obj)
        except TypeError:
            return self._careful.dump(obj)
        if b"\\" in dumped and _ESCAPED_OTHERWISE.search(dumped):
            return self._careful.dump(obj)
        return b"{" + dumped[1:-1] + b"}"
