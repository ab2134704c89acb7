"""All mutants by name."""

from functools import reduce
from operator import or_

from tests.guards.of_audit import OF_AUDIT
from tests.guards.of_chain import OF_CHAIN, WHOSE_MONEY
from tests.guards.of_endpoints import OF_ENDPOINTS
from tests.guards.of_final import OF_FINAL
from tests.guards.of_leases import OF_LEASES
from tests.guards.of_metrics import OF_METRICS
from tests.guards.of_proof import OF_PROOF
from tests.guards.of_spans import ALWAYS, OF_SPANS

TABLES = (OF_LEASES, OF_CHAIN, OF_FINAL, OF_PROOF, OF_ENDPOINTS, OF_SPANS, OF_AUDIT, OF_METRICS)
MUTANTS = reduce(or_, TABLES)

# Not in `make test`: what has nothing to do with leases and fences, and what takes seconds to fail.
LONG = {
    *WHOSE_MONEY,
    *OF_PROOF,
    *OF_ENDPOINTS,
    *OF_AUDIT,
    *OF_METRICS,
    *(OF_SPANS.keys() - ALWAYS),
    "transaction without an idle time-out",
}
