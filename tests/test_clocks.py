"""Who asks this machine for the time of day, and what for: nothing that decides, and nothing that SQL compares.

The clock of a worker may be wrong by an hour. Leases, due times and expiry are the database's and the chain's.
"""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.test_house import modules

# What in Python's library tells the time of day.
TIME_OF_DAY = re.compile(
    r"(\w+\.)*time\.time(_ns)?|(\w+\.)+(now|utcnow|today|localtime|gmtime|ctime|strftime|CLOCK_REALTIME\w*|clock_gettime(_ns)?)"
)
# Module → how often, and what for.
KNOWN = {
    "worker.reconciler": (1, "the last cycle, as /status shows it"),
    "fleet.supervisor": (1, "when it was started, as /status and reconsup_hosts.started_at show it"),
    "monitor.http": (1, "the moment that /status tells of"),
    "fleet.scoreboard": (1, "when somebody crashed, as the status page shows it"),
    "status.command": (1, "when it looked, and how long ago that was: for people"),
    "chain.pauses": (1, "a Retry-After that is a date: it bounds a pause, and the pause is bounded too"),
    "demo.picture": (1, "the demo's own lines"),
}
# Module → what it asks the database's own clock besides now(), and what for.
KNOWN_SQL = {
    "store.persist": (
        ["clock_timestamp"],
        "how long ago the money came, for reconsup_notice_seconds; nothing compares it",
    )
}
TIME_OF_DAY_SQL = re.compile(
    r"%\(\w*(?:now|clock|today)\w*\)s|clock_timestamp|timeofday|statement_timestamp|localtime", re.I
)


def looks_at_the_clock(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Name) and TIME_OF_DAY.fullmatch(ast.unparse(node)):
            yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"{node.lineno}: {name.name}" for name in node.names if name.name != "monotonic")


def test_nobody_else_asks_for_the_time_of_day() -> None:
    """Seen to fail with `datetime.now(UTC)` in the claim."""
    found = {module: list(looks_at_the_clock(source)) for module, source in modules().items()}
    assert {module: len(each) for module, each in found.items() if each} == {
        module: count for module, (count, _) in KNOWN.items()
    }, {module: each for module, each in found.items() if each}


def test_no_statement_is_told_the_time() -> None:
    found = {module: TIME_OF_DAY_SQL.findall(source) for module, source in modules().items()}
    assert {module: each for module, each in found.items() if each} == {
        module: words for module, (words, _) in KNOWN_SQL.items()
    }


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.time()",
        "import time\ntime.time_ns()",
        "from time import time\ntime()",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\nclock = datetime.datetime.utcnow",
        "import datetime\ndatetime.date.today()",
        "import time\ntime.clock_gettime(0)",
    ],
)
def test_each_way_to_ask_is_seen(source: str) -> None:
    assert list(looks_at_the_clock(source)) != []
