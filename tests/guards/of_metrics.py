"""The guards of what is counted: damage costs only itself, and no sum falls.

What keeps a full disk and a cut file from killing whoever counts is tried in processes of their own, which no mutant
reaches: their tests say what they were seen to fail with.
"""

from tests.guards.mutants import Mutant, Swap

READER = "reconsup.monitor.reader"
TALLY = "reconsup.monitor.tally"
DAMAGED = "tests/monitor/test_tally.py::test_a_damaged_file_costs_only_itself_and_only_until_the_next_incarnation"

OF_METRICS = {
    "page that a damaged file fails": Mutant(
        READER,
        (Swap("except (OSError, Damaged) as error:", "except ZeroDivisionError as error:"),),
        f"{DAMAGED}[cut]",
        "one bad file, and Prometheus sees nothing of this host",
        fails_with="Damaged",
    ),
    "counts that are forgotten with their file": Mutant(
        READER,
        (Swap("                    self._kept[place] += value\n", "                    self._kept[place] += 0\n"),),
        f"{DAMAGED}[cut]",
        "a sum falls, and Prometheus takes all that is left for new",
    ),
    "scrape that does not look at the keys again": Mutant(
        READER,
        (Swap("        if fields[0::2] != self.raws:\n", "        if False:\n"),),
        f"{DAMAGED}[not UTF-8]",
        "garbage is added up as if it were counts",
    ),
    "scrape that believes any number": Mutant(
        READER,
        (Swap("        if any(map(gt, self.values, values)) or", "        if False and"),),
        f"{DAMAGED}[not a number]",
        "one damaged value, and a counter of all workers is not a number, or falls",
    ),
    "incarnation that goes on in a damaged file": Mutant(
        TALLY,
        (Swap("raise Damaged(\"a value or a series that none of us wrote\")", "pass"),),
        f"{DAMAGED}[below zero]",
        "the file stays damaged for as long as the supervisor lives",
    ),
    "damaged file that nobody can look at": Mutant(
        TALLY,
        (Swap("                _set_aside(self._path)\n                fd = None", "                fd = None"),),
        f"{DAMAGED}[cut]",
        "what happened to the file cannot be found out",
    ),
}  # fmt: skip
