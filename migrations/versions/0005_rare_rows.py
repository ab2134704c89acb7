"""Two small indexes for rows that are rare: those at which a worker died, and open ones that nothing will look at.

Revision ID: 0005_rare_rows
Revises: 0004_history

Every idle poll asks for the first kind and every sweep for the second. Without an index the one goes through all
rows that are due, the other through the whole table, to find next to none. Each says in its condition all that its
statement says, and is in its order: PostgreSQL cannot know how rare these rows are, and must find no other road better.
"""

from alembic import op

from reconsup.store.ddl import steps_of
from reconsup.store.indexes import ConcurrentIndex, build_index, drop_index

revision = "0005_rare_rows"
down_revision = "0004_history"
branch_labels = None
depends_on = None

INDEXES = (
    ConcurrentIndex(
        "reconsup_suspect_idx",
        "payment_requests",
        "USING btree (chain, network, next_reconcile_at, created_at, id)"
        " WHERE ((reconcile_crashes > 0) AND (next_reconcile_at IS NOT NULL) AND (status = ANY"
        " (ARRAY['pending'::text, 'detected'::text, 'confirmed'::text, 'reorged'::text, 'expired'::text])))",
    ),
    ConcurrentIndex(
        "reconsup_forgotten_idx",
        "payment_requests",
        "USING btree (id) WHERE ((next_reconcile_at IS NULL) AND (status = ANY"
        " (ARRAY['pending'::text, 'detected'::text, 'reorged'::text])))",
    ),
)


def upgrade() -> None:
    steps = steps_of(op.get_context())
    for index in INDEXES:
        build_index(steps, index)


def downgrade() -> None:
    steps = steps_of(op.get_context())
    for index in INDEXES:
        drop_index(steps, index)
