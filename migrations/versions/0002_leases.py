"""The columns by which workers share the requests, and the index of the claim.

Revision ID: 0002_leases
Revises: 0001_base

`next_reconcile_at` is added without a default, so that every row which exists has null; then the default is set,
for rows to come; then the open rows alone are made due, in batches. A default given with the column would have
made every confirmed row of the past due. The counters have a constant default from the start: PostgreSQL keeps
such a value in the catalogue and rewrites no row.
"""

from alembic import op

from reconsup.store.ddl import BIGINT, INSTANT, INTEGER, TEXT, AddedColumn, steps_of
from reconsup.store.indexes import ConcurrentIndex, build_index, drop_index

revision = "0002_leases"
down_revision = "0001_base"
branch_labels = None
depends_on = None

COLUMNS = (
    AddedColumn("reconcile_lease_owner", "text", TEXT),
    AddedColumn("reconcile_lease_until", "timestamptz", INSTANT),
    AddedColumn("reconcile_lease_epoch", "bigint NOT NULL DEFAULT 0", BIGINT),
    AddedColumn("next_reconcile_at", "timestamptz", INSTANT, later_default="now()"),
    AddedColumn("reconcile_due_height", "bigint", BIGINT),
    AddedColumn("reconcile_admitted_height", "bigint", BIGINT),
    AddedColumn("reconcile_failures", "integer NOT NULL DEFAULT 0", INTEGER),
    AddedColumn("reconcile_crashes", "integer NOT NULL DEFAULT 0", INTEGER),
    AddedColumn("reconcile_error", "text", TEXT),
)

INDEXES = (
    ConcurrentIndex(
        "reconsup_claim_idx",
        "payment_requests",
        "USING btree (chain, network, next_reconcile_at, created_at, id)"
        " WHERE ((next_reconcile_at IS NOT NULL) AND (status = ANY (ARRAY['pending'::text, 'detected'::text,"
        " 'confirmed'::text, 'reorged'::text, 'expired'::text])))",
    ),
    ConcurrentIndex(
        "reconsup_due_height_idx",
        "payment_requests",
        "USING btree (chain, network, reconcile_due_height) WHERE (reconcile_due_height IS NOT NULL)",
    ),
    ConcurrentIndex(
        "reconsup_lease_owner_idx",
        "payment_requests",
        "USING btree (reconcile_lease_owner) WHERE (reconcile_lease_owner IS NOT NULL)",
    ),
)


def upgrade() -> None:
    steps = steps_of(op.get_context())
    steps.add_columns("payment_requests", COLUMNS)
    steps.update_requests(
        "making open requests due",
        assign="next_reconcile_at = now()",
        where="next_reconcile_at IS NULL AND status IN ('pending', 'detected', 'reorged')",
    )
    for index in INDEXES:  # after the rows: cheaper than keeping them up to date meanwhile
        build_index(steps, index)


def downgrade() -> None:
    steps = steps_of(op.get_context())
    for index in INDEXES:
        drop_index(steps, index)
    steps.drop_columns("payment_requests", COLUMNS)
