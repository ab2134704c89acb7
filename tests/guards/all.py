"""All mutants by name."""

from tests.guards.of_audit import OF_AUDIT
from tests.guards.of_chain import OF_CHAIN, WHOSE_MONEY
from tests.guards.of_leases import OF_LEASES

MUTANTS = OF_LEASES | OF_CHAIN | OF_AUDIT

# Not in `make test`: what has nothing to do with leases and fences, and what takes seconds to fail.
LONG = {*WHOSE_MONEY, *OF_AUDIT, "transaction without an idle time-out"}
