"""The whole thing on this machine, from the first part's start to the last one's end, and nothing left of it.

Real parts, one story: requests, payments, a crash, a reorg, and a summary that is checked against the database.
"""

import errno
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable

import psycopg

from reconsup.demo import summary
from reconsup.demo.acts import perform
from reconsup.demo.anvil import AnvilError
from reconsup.demo.books import Books
from reconsup.demo.customers import Customers
from reconsup.demo.interrupts import Interrupts
from reconsup.demo.pages import Pages
from reconsup.demo.picture import Lines, Screen
from reconsup.demo.play import Play, Tools
from reconsup.demo.stage import StageError, built
from reconsup.store.ddl import MigrationError
from reconsup.store.embedded import EmbeddedError

EXIT_OK = 0
EXIT_FAILED = 1
LAST_LOOK_SECONDS = 1.5
LINE_MAX = 110


def run(interrupts: Interrupts, *, is_plain: bool) -> int:
    """Perform; 0 if everything ended as it must, 1 after a sentence that says what did not. Raises Interrupted."""
    try:
        return close(_perform(_screen(is_plain), interrupts.check))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: nor the flush at exit
        return EXIT_FAILED
    except (StageError, EmbeddedError, AnvilError, MigrationError, psycopg.Error, OSError) as error:
        interrupts.check()  # a Ctrl-C reaches what we were just starting, too
        print(f"reconsup demo: {_sentence(error)}", file=sys.stderr)
        return EXIT_FAILED


def _sentence(error: Exception) -> str:
    """What went wrong and what to do; the parts' own errors say it already."""
    words = " ".join(str(error).split())
    if isinstance(error, psycopg.errors.DiskFull) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return f"the disk is full ({words}): make room, or set TMPDIR to a folder on another disk"
    if isinstance(error, psycopg.Error):
        return f"its PostgreSQL failed ({words}): try again; somebody may have stopped it"
    if isinstance(error, OSError):
        return f"the system refuses what the demo needs ({words}): look at its limits, or set TMPDIR to another folder"
    if isinstance(error, EmbeddedError) and "folder" in words:
        return f"{words} (TMPDIR says where the demo makes its folder)"
    return str(error)


def _screen(is_plain: bool) -> Screen:
    """The live table on a terminal that can show it, else lines."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without UTF-8 stops nothing
    try:
        from rich.console import Console

        from reconsup.demo.table import HEIGHT_MIN, WIDTH_MIN, LiveTable
    except ModuleNotFoundError as error:
        raise StageError(
            f"the demo needs the package {(error.name or '').partition('.')[0]}: run `pip install 'reconsup[embedded]'`"
        ) from error
    console = Console()
    is_large = console.width >= WIDTH_MIN and console.height >= HEIGHT_MIN
    if is_plain or not is_large or not console.is_terminal or console.is_dumb_terminal:
        return Lines()
    return LiveTable(console)


def _perform(screen: Screen, check: Callable[[], None]) -> summary.Accounts:
    """Everything between the first part's start and the last one's end."""
    started_at = time.monotonic()
    with screen, built(screen.tell, check) as stage, Books(stage.database_url) as books:
        pages = Pages(stage.supervisor.metrics_port)
        play = Play(Tools(stage, books, Customers(stage.anvil), pages, screen, check))
        outcome = perform(play, stage.anvil.chain_id)
        play.breathe(LAST_LOOK_SECONDS)
        rpc_calls = pages.metric("reconsup_rpc_requests_total")
        blocks_read = pages.metric("reconsup_blocks_scanned_total")
        play.enter("SIGTERM: the workers drain")
        drained = stage.supervisor.stop()
        return summary.read(
            books,
            outcome,
            rpc_calls=rpc_calls,
            blocks_read=blocks_read,
            drained=drained,
            seconds=time.monotonic() - started_at,
        )


def close(accounts: summary.Accounts) -> int:
    """Print the summary, and what is not as it must be; the exit code."""
    print(f"\nreconsup demo: what happened in {accounts.seconds:.0f} s, by the database\n")
    width = max(60, min(LINE_MAX, shutil.get_terminal_size((LINE_MAX, 24)).columns))
    for name, figures in summary.lines(accounts):
        print(textwrap.fill(figures, width, initial_indent=f"  {name:<12} ", subsequent_indent=" " * 15))
    faults = summary.faults(accounts)
    if not faults:
        print("\nEvery request ended as it must. Everything that was started is gone.")
        return EXIT_OK
    for fault in faults:
        print(f"reconsup demo: {fault}", file=sys.stderr)
    return EXIT_FAILED
