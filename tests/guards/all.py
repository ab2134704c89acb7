"""All mutants by name."""

from tests.guards.of_chain import OF_CHAIN
from tests.guards.of_leases import OF_LEASES

MUTANTS = OF_LEASES | OF_CHAIN
