"""`reconsup demo`: the door. Listens to the signals first, then lets everything heavy in."""

import sys

from reconsup.demo.interrupts import Interrupted, Interrupts


def run(*, is_plain: bool) -> int:
    """Show it; 0 if everything ended as it must, 1 after a sentence that says what did not, 128 + n after signal n."""
    with Interrupts() as interrupts:
        try:
            from reconsup.demo import performance  # slow to import: who presses Ctrl-C meanwhile is heard

            interrupts.check()
            return performance.run(interrupts, is_plain=is_plain)
        except Interrupted:
            print("reconsup demo: interrupted; everything that was started is gone", file=sys.stderr)
            return interrupts.exit_code
