"""How PostgreSQL means to run reconsup's own statements: their plans, while its statistics are right, missing or old.

`Planned` is the real `Database`, in one transaction that is rolled back in the end. Each statement that the real
functions send is prepared with the types that psycopg gives its parameters, explained as it runs (plan, rows, pages)
in a savepoint, and then sent for real. `Bulk` is a database with many rows, and with the statistics of other days
kept by, to be put back before a test.
"""

import re
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from psycopg import sql as composed
from psycopg.adapt import PyFormat, Transformer

from reconsup.store.database import Database, Transaction
from tests.support import postgres

Mode = Literal["custom", "generic"]
T = TypeVar("T")

REQUESTS = "payment_requests"


@dataclass(frozen=True, slots=True)
class Plan:
    """One statement as it was run. `function` is what was being done."""

    function: str
    text: str
    root: dict[str, Any]

    def nodes(self) -> Iterator[dict[str, Any]]:
        """All nodes, each before its children."""
        return _walk(self.root)

    @property
    def pages(self) -> int:
        """How many pages it touched: one that was touched twice counts twice."""
        return int(self.root["Shared Hit Blocks"] + self.root["Shared Read Blocks"])

    @property
    def indexes(self) -> set[str]:
        """Names of the indexes by which it went to the requests."""
        found = set()
        for node in self.nodes():
            if node["Node Type"] == "Bitmap Heap Scan" and node["Relation Name"] == REQUESTS:
                found |= {each["Index Name"] for each in _walk(node) if "Index Name" in each}
            elif node.get("Relation Name") == REQUESTS and "Index Name" in node:
                found.add(node["Index Name"])
        return found

    @property
    def read_whole(self) -> set[str]:
        """Names of the tables that it read from end to end."""
        return {node["Relation Name"] for node in self.nodes() if node["Node Type"] == "Seq Scan" and _ran(node)}

    @property
    def discarded(self) -> int:
        """How many rows it looked at and threw away."""
        names = ("Rows Removed by Filter", "Rows Removed by Join Filter", "Rows Removed by Index Recheck")
        return round(sum(node.get(name, 0) * node["Actual Loops"] for node in self.nodes() for name in names))

    @property
    def sorted_rows(self) -> int:
        """How many rows went into its largest sort."""
        sorts = (node for node in self.nodes() if "Sort" in node["Node Type"])
        inputs = (child["Actual Rows"] * child["Actual Loops"] for node in sorts for child in node["Plans"])
        return round(max(inputs, default=0))

    @property
    def shape(self) -> str:
        """Its nodes in one line, for people."""
        return _shape(self.root)


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)


def _ran(node: dict[str, Any]) -> bool:
    return bool(node["Actual Loops"])


def _shape(node: dict[str, Any]) -> str:
    name = str(node.get("Operation", "") + " " + node["Node Type"]).strip()
    of = node.get("Index Name") or node.get("Relation Name") or node.get("CTE Name") or node.get("Function Name")
    children = ", ".join(_shape(child) for child in node.get("Plans", ()))
    return f"{name}{f' {of}' if of else ''}{f' ({children})' if children else ''}"


class Planned(Database):
    """A Database whose statements are planned in one way, explained and in the end rolled back."""

    def __init__(self, database: postgres.Database, mode: Mode) -> None:
        url = f"{database.direct_url}?options=-cplan_cache_mode%3Dforce_{mode}_plan"
        super().__init__(url, application_name="planned", lease_seconds=600)
        self.plans: list[Plan] = []
        self.parameters: list[dict[str, Any] | None] = []
        self._function = ""

    async def __aenter__(self) -> "Planned":
        await (await self._connected()).execute("BEGIN")
        return self

    async def fetch(self, sql: Any, parameters: dict[str, Any] | None = None) -> list[Any]:
        """Run one statement in the one transaction."""
        cursor = await self._send(await self._connected(), sql, parameters)
        return await cursor.fetchall() if cursor.description else []

    async def transact(self, work: Any) -> Any:
        """Run the work in the one transaction."""
        return await work(Transaction(self, await self._connected()))

    async def of(self, function: str, work: Awaitable[T]) -> T:
        """Do the work and note its plans under this name."""
        self._function = function
        return await work

    async def _send(self, connection: Any, sql: Any, parameters: dict[str, Any] | None) -> Any:
        root = await _explained(connection, sql, parameters)
        self.plans.append(Plan(self._function, sql, root))
        self.parameters.append(parameters)
        return await super()._send(connection, sql, parameters)


async def _explained(connection: Any, sql: str, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """The plan of a statement prepared as psycopg would send it, run and undone."""
    names = list(dict.fromkeys(_NAMED.findall(sql)))
    values = [(parameters or {})[name] for name in names]
    transformer = Transformer(connection)
    transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))
    oids = transformer.types or ()
    named = await (await connection.execute(_TYPES, [list(oids)])).fetchall()
    types = [name for (name,) in named]
    text = _NAMED.sub(lambda found: f"${names.index(found[1]) + 1}", sql)
    literals = ", ".join(composed.Literal(value).as_string(connection) for value in values)
    await connection.execute("SAVEPOINT before")
    await connection.execute(f"PREPARE explained{_listed(types)} AS {text}")
    answer = await connection.execute(f"{_EXPLAIN} EXECUTE explained{f'({literals})' if values else ''}")
    (((explained,),),) = await answer.fetchall()
    await connection.execute("ROLLBACK TO before")
    await connection.execute("DEALLOCATE explained")
    root: dict[str, Any] = explained["Plan"]
    return root


def _listed(types: list[str]) -> str:
    return f"({', '.join(types)})" if types else ""


_NAMED = re.compile(r"%\((\w+)\)s")
_EXPLAIN = "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON)"
_TYPES = """
SELECT CASE of WHEN 0 THEN 'unknown' ELSE format_type(of, NULL) END
FROM unnest(%s::oid[]) WITH ORDINALITY AS given(of, position) ORDER BY position
"""
