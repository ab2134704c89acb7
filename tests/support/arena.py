"""Where an endurance run happens: a PostgreSQL that falls and rises, a chain, and endpoints of which one is good.

Each host has three: one that is dead (refuses, or is silent), a real node that stands still on a fork of the same
chain, and the good one, behind a proxy that lies when it is told to. The fork parts from the chain below the tail that
the program keeps. (Where it parts within the tail, its node is heard until it has stood still for 60 s, in each process
anew: see chain/node.py. No process of an endurance run lives so long.) The first host begins: it bears the cursor, and
its first endpoint that answers is the good one; the other's is the stuck one.
"""

import asyncio
import os
import random
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from reconsup.demo.anvil import Anvil
from tests.story.conftest import Town, deploy
from tests.support import lease_history
from tests.support.hosts import MARK, TOUGH, Host, hosts
from tests.support.phoenix import Phoenix, phoenix
from tests.support.program import START_SECONDS, Program, wait_for
from tests.support.trade import Trade
from tests.support.twin_nodes import Twins

TAIL_BLOCKS = 64
FORK_AT, FORK_BLOCKS = 12, 5
LEASE_SECONDS = 2.0
DRAIN_SECONDS = 3.0
SETTINGS = {
    "PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "PAYMENT_REQUEST_RECONCILER_EVM_MIN_CONFIRMATIONS": "2",
    "RECONSUP_RPC_TIMEOUT_SECONDS": "0.5",
    "RECONSUP_DRAIN_SECONDS": f"{DRAIN_SECONDS:g}",
    "RECONSUP_BOOT_SECONDS": "6",  # so a worker that is stopped before it is ready
    "RECONSUP_WATCHDOG_SECONDS": "6",  # longer than a worker is stopped for a while
    "RECONSUP_TAIL_BLOCKS": str(TAIL_BLOCKS),
}


@dataclass(frozen=True)
class Arena:
    """The stage. `urls`: by the last letter of a host's name, its endpoints in its order of preference."""

    town: Town
    postgres: Phoenix
    trade: Trade
    urls: Mapping[str, list[str]]
    workers: int
    stuck: Anvil

    def program(self, worker_id: str, mark: str, folder: Path) -> Program:
        """Start the program on a host."""
        return Program(
            self.town.database.direct_url,
            {"local": self.urls[worker_id[-1]]},
            folder=folder,
            worker_id=worker_id,
            workers=self.workers,
            code=TOUGH,
            **SETTINGS,
            **{MARK: mark},
        )

    @contextmanager
    def hosts(self, chance: random.Random) -> Iterator[dict[str, Host]]:
        """Two hosts whose workers are ready. Nothing of them is left afterwards."""
        mark = f"{os.getpid()}-{secrets.token_hex(4)}"  # another run's are not ours
        with hosts("ab", self.program, self.town.folder, mark, chance) as made:
            made["a"].start()
            born = "SELECT 1 FROM app.chain_cursors WHERE tip_time IS NOT NULL"
            wait_for("the cursor is born", lambda: self.town.database.fetch(born), START_SECONDS)
            made["b"].start()
            for host in made.values():
                host.program.wait_ready()
            yield made


@contextmanager
def arena(folder: Path, seed: int, workers: int) -> Iterator[Arena]:
    """All of it for the length of a with block, and nothing afterwards."""
    with ExitStack() as stack:
        server = stack.enter_context(phoenix(folder / "pg"))
        lease_history.install(server.database)
        genesis = [
            "--timestamp",
            str(int(time.time()) - 60),
        ]  # one block for both, and the rest of the wall clock's time
        good, stuck = (stack.enter_context(Anvil(block_seconds=0, options=genesis)) for _ in range(2))
        token = asyncio.run(deploy(good))
        good.rpc("anvil_mine", FORK_AT)
        twins = Twins(good, stuck, None, None)
        twins.follow()
        twins.part(1, FORK_BLOCKS)
        good.rpc("evm_setTime", hex(int(time.time())))
        good.rpc("anvil_mine", hex(2 * TAIL_BLOCKS), 0)
        town = Town(server.database, good, token, folder)
        trade = stack.enter_context(Trade(town, seed, good.url, stuck.url))
        refusing, silent = (stack.enter_context(socket.socket()) for _ in range(2))
        for each in (refusing, silent):
            each.bind(("127.0.0.1", 0))
        silent.listen(64)
        dead = {"a": refusing, "b": silent}
        url = {name: f"http://127.0.0.1:{each.getsockname()[1]}" for name, each in dead.items()}
        urls = {"a": [url["a"], trade.node.url, stuck.url], "b": [stuck.url, trade.node.url, url["b"]]}
        yield Arena(town, server, trade, urls, workers, stuck)
