"""Requests whose addresses differ only in the case of their letters.

A database that another service made may hold them: its unique key compares bytes, a chain does not. A credit to
such an address would belong to two requests, so it settles neither, and somebody has to be told. Only Ethereum:
elsewhere (base58) letters of another case are another address. Must never change a row.
"""

from dataclasses import dataclass

import psycopg

from reconsup.store.ddl import Steps

SHOWN_MAX = 20

CASE_TWINS = """
SELECT network, lower(address_canonical), array_agg(id ORDER BY id)
  FROM app.payment_requests
 WHERE chain = 'ethereum'
 GROUP BY chain, network, lower(address_canonical)
HAVING count(*) > 1
 ORDER BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class CaseTwins:
    """Requests of one network that share an address (in lower case here)."""

    network: str
    address: str
    request_ids: tuple[str, ...]

    def sentence(self) -> str:
        """Say who shares what."""
        ids = ", ".join(self.request_ids)
        return f"requests {ids} on {self.network} share the address {self.address}, in letters of different case"


async def fetch_case_twins(connection: psycopg.AsyncConnection[tuple[object, ...]]) -> tuple[CaseTwins, ...]:
    """Return all of them, by network and address. Reads the whole table: for `check`, not for a loop."""
    cursor = await connection.execute(CASE_TWINS)
    return tuple(_twins(row) for row in await cursor.fetchall())


def say_case_twins(steps: Steps) -> None:
    """Say who they are, at most SHOWN_MAX of them."""
    found = [_twins(row) for row in steps.fetch(CASE_TWINS)]
    for twins in found[:SHOWN_MAX]:
        steps.say(f"warning: {twins.sentence()}: neither will be settled until one of them is changed")
    if len(found) > SHOWN_MAX:
        steps.say(f"warning: {len(found) - SHOWN_MAX} more addresses like these; `reconsup check` lists all")


def _twins(row: tuple[object, ...]) -> CaseTwins:
    network, address, ids = row
    assert isinstance(ids, list)
    return CaseTwins(str(network), str(address), tuple(str(each) for each in ids))
