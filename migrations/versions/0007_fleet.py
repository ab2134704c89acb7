"""What a host says of its own fleet, so that `reconsup status --all` can show every host that works on a database.

Revision ID: 0007_fleet
Revises: 0006_truth
"""

from alembic import op

from reconsup.store.ddl import JSON, AddedColumn, steps_of

revision = "0007_fleet"
down_revision = "0006_truth"
branch_labels = None
depends_on = None

HOST_COLUMNS = (AddedColumn("status", "jsonb", JSON),)


def upgrade() -> None:
    steps_of(op.get_context()).add_columns("reconsup_hosts", HOST_COLUMNS)


def downgrade() -> None:
    steps_of(op.get_context()).drop_columns("reconsup_hosts", HOST_COLUMNS)
