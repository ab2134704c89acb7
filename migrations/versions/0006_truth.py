"""How good our knowledge of a chain is: proofs, tags, spans of old blocks, the balance audit, stops.

Revision ID: 0006_truth
Revises: 0005_rare_rows

The columns are added without a default, so that no row is rewritten. What they hold can all be read from the chain
again, except what happened to a network (`chain_events`): that table is left where it is while it holds rows.
"""

from alembic import op

from reconsup.store.ddl import BIGINT, INSTANT, JSON, TEXT, AddedColumn, Steps, steps_of
from reconsup.store.indexes import ConcurrentIndex, build_index, drop_index

revision = "0006_truth"
down_revision = "0005_rare_rows"
branch_labels = None
depends_on = None

CURSOR_COLUMNS = (
    AddedColumn("finalized_tag_height", "bigint", BIGINT),
    AddedColumn("unproven_height", "bigint", BIGINT),
    AddedColumn("audited_height", "bigint", BIGINT),
    AddedColumn("audited_hash", "text", TEXT),
    AddedColumn("disagreed_at", "timestamptz", INSTANT),
)

# What was read before blocks were proven.
NOT_YET_PROVEN = (
    "UPDATE app.chain_cursors SET unproven_height = next_height - 1"
    " WHERE unproven_height IS NULL AND next_height > tail_start"
)

SPAN_COLUMNS = (AddedColumn("until_time", "timestamptz", INSTANT),)

REQUEST_COLUMNS = (
    AddedColumn("reconcile_span_height", "bigint", BIGINT),
    AddedColumn("reconcile_audited_height", "bigint", BIGINT),
    AddedColumn("reconcile_audited_hash", "text", TEXT),
)

BALANCES = """
CREATE TABLE app.request_balances (
    payment_request_id text PRIMARY KEY REFERENCES app.payment_requests (id) ON DELETE CASCADE,
    height bigint NOT NULL,
    block_hash text NOT NULL,
    difference_minor numeric NOT NULL DEFAULT 0,
    unexplained_minor numeric NOT NULL DEFAULT 0,
    nonce bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
)
"""

EVENTS = """
CREATE TABLE app.chain_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain text NOT NULL,
    network text NOT NULL,
    event text NOT NULL,
    height bigint,
    who text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now()
)
"""

EVENT_COLUMNS = {
    "id": BIGINT,
    "chain": TEXT,
    "network": TEXT,
    "event": TEXT,
    "height": BIGINT,
    "who": TEXT,
    "detail": JSON,
    "created_at": INSTANT,
}

INDEXES = (
    ConcurrentIndex(
        "reconsup_span_idx",
        "payment_requests",
        "USING btree (chain, network, reconcile_span_height) WHERE (reconcile_span_height IS NOT NULL)",
    ),
    ConcurrentIndex(
        "reconsup_audit_idx",
        "payment_requests",
        "USING btree (chain, network, expires_at, id) WHERE ((COALESCE(token_standard, ''::text) = ''::text)"
        " AND (status = ANY (ARRAY['pending'::text, 'detected'::text, 'reorged'::text])))",
    ),
)


def _mark_unproven(steps: Steps) -> None:
    steps.run(NOT_YET_PROVEN)


def upgrade() -> None:
    steps = steps_of(op.get_context())
    steps.add_columns("chain_cursors", CURSOR_COLUMNS)
    steps.short("chain_cursors", lambda: _mark_unproven(steps))
    steps.add_columns("chain_spans", SPAN_COLUMNS)
    steps.add_columns("payment_requests", REQUEST_COLUMNS)
    steps.create_table("request_balances", BALANCES)
    if steps.table_exists("chain_events"):
        steps.require_columns("chain_events", EVENT_COLUMNS)
        steps.keep_table("chain_events")
    else:
        steps.create_table("chain_events", EVENTS)
    for index in INDEXES:
        build_index(steps, index)


def downgrade() -> None:
    steps = steps_of(op.get_context())
    for index in INDEXES:
        drop_index(steps, index)
    if steps.drop_empty_tables("chain_events"):
        steps.say("app.chain_events holds rows and is left as it is; the next upgrade goes on with it")
    steps.drop_table("request_balances")
    steps.drop_columns("payment_requests", REQUEST_COLUMNS)
    steps.drop_columns("chain_spans", SPAN_COLUMNS)
    steps.drop_columns("chain_cursors", CURSOR_COLUMNS)
