"""All mutants by name."""

from tests.guards.of_chain import OF_CHAIN, WHOSE_MONEY
from tests.guards.of_endpoints import OF_ENDPOINTS
from tests.guards.of_leases import OF_LEASES

MUTANTS = OF_LEASES | OF_CHAIN | OF_ENDPOINTS

# Not in `make test`: what has nothing to do with leases and fences, and what takes seconds to fail.
LONG = {*WHOSE_MONEY, *OF_ENDPOINTS, "transaction without an idle time-out"}
