"""What stands around the database and around the chain: `python -m tests.local.keep database FOLDER`.

Both end with the process that started them, so that nothing is left of a test or a demo. Here they are to stay: this
process stays with its one, says where it is (NAME-facts.json), stops it at TERM, and ends when it ends.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tests.local.parts import write_whole

Facts = Mapping[str, Any]


@contextmanager
def database(folder: Path) -> Iterator[Facts]:
    """The embedded PostgreSQL, as durable as any; the tests' other one where they run on that."""
    from reconsup.store import embedded

    binaries = os.environ.get("RECONSUP_TEST_POSTGRES")
    with embedded.start(folder / "database", binaries=Path(binaries).resolve() if binaries else None) as server:
        yield {"pid": server.pid, "port": server.port, "url": server.url}


@contextmanager
def chain(folder: Path) -> Iterator[Facts]:
    """anvil, a block a second, with a token like USDT that its first account owns."""
    from reconsup.demo.anvil import Anvil
    from reconsup.demo.customers import BLOCK_SECONDS, Customers

    states = folder / "chain"
    shutil.rmtree(states, ignore_errors=True)  # of one that was killed
    with Anvil(block_seconds=BLOCK_SECONDS, options=("--cache-path", str(states))) as anvil:
        genesis = anvil.rpc("eth_getBlockByNumber", "0x0", False)["hash"]
        token = Customers(anvil).token_contract
        yield {"pid": anvil.pid, "url": anvil.url, "chain_id": anvil.chain_id, "token": token, "genesis": genesis}
    shutil.rmtree(states, ignore_errors=True)


KEPT: Mapping[str, Callable[[Path], AbstractContextManager[Facts]]] = {"database": database, "chain": chain}


def main(name: str, folder: Path) -> int:
    """Stay until TERM (0), or until what is kept has ended (1)."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        with KEPT[name](folder) as facts:
            write_whole(folder / f"{name}-facts.json", facts)
            os.waitid(os.P_PID, facts["pid"], os.WEXITED | os.WNOWAIT)
    except Exception as error:  # noqa: BLE001 - whatever it is, who asked for this part is told in a sentence
        print(f"{' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    print(f"the {name} (process {facts['pid']}) ended by itself", file=sys.stderr)
    return 1


def _leave(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
