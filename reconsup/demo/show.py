"""`reconsup demo`: the door. Listens to the signals first, then lets everything heavy in."""

import importlib.util
import sys

from reconsup.demo.interrupts import Interrupted, Interrupts

EXIT_USAGE = 64


def run(*, is_plain: bool) -> int:
    """Show it; 0 if everything ended as it must, 1 after a sentence that says what did not, 128 + n after signal n."""
    if importlib.util.find_spec("reconsup.demo.performance") is None:  # the one files bring no PostgreSQL and no chain
        print("reconsup demo: not in this file: get the source, and run `make demo` there", file=sys.stderr)
        return EXIT_USAGE
    with Interrupts() as interrupts:
        try:
            from reconsup.demo import performance  # slow to import: who presses Ctrl-C meanwhile is heard

            interrupts.check()
            return performance.run(interrupts, is_plain=is_plain)
        except Interrupted:
            print("reconsup demo: interrupted; everything that was started is gone", file=sys.stderr)
            return interrupts.exit_code
