"""What reconsup remembers of each chain, and the indexes by which a block finds its requests.

Revision ID: 0003_chain
Revises: 0002_leases

These tables are a memory of public data: dropping them loses nothing that cannot be read again. But a request
that was admitted to a memory which is gone is not admitted to the next one: downgrading takes the admission back.
"""

from alembic import op

from reconsup.store.ddl import steps_of
from reconsup.store.indexes import ConcurrentIndex, build_index, drop_index
from reconsup.store.twins import say_case_twins

revision = "0003_chain"
down_revision = "0002_leases"
branch_labels = None
depends_on = None

CURSORS = """
CREATE TABLE app.chain_cursors (
    chain text,
    network text,
    chain_id bigint NOT NULL,
    genesis_hash text NOT NULL,
    next_height bigint NOT NULL,
    tip_hash text NOT NULL,
    tip_time timestamptz,
    head_height bigint,
    safe_height bigint,
    finalized_height bigint,
    tail_start bigint NOT NULL,
    stop_reason text,
    stopped_at timestamptz,
    scan_lease_owner text,
    scan_lease_until timestamptz,
    scan_lease_epoch bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain, network)
) WITH (fillfactor = 50)
"""

BLOCKS = """
CREATE TABLE app.chain_blocks (
    chain text,
    network text,
    height bigint,
    block_hash text NOT NULL,
    parent_hash text NOT NULL,
    block_time timestamptz NOT NULL,
    PRIMARY KEY (chain, network, height)
)
"""

CREDITS = """
CREATE TABLE app.chain_credits (
    chain text,
    network text,
    height bigint,
    evidence_ref text,
    block_hash text NOT NULL,
    block_time timestamptz NOT NULL,
    tx_hash text NOT NULL,
    address text NOT NULL,
    token_contract text NOT NULL DEFAULT '',
    amount_minor numeric(78,0) NOT NULL CHECK (amount_minor > 0),
    PRIMARY KEY (chain, network, height, evidence_ref)
)
"""

CREDITS_EXTRAS = (
    "CREATE INDEX chain_credits_address_idx ON app.chain_credits (address, chain, network)",
    "COMMENT ON COLUMN app.chain_credits.address IS 'lower case'",
    "COMMENT ON COLUMN app.chain_credits.token_contract IS 'lower case; '''' = native'",
)

SPANS = """
CREATE TABLE app.chain_spans (
    chain text,
    network text,
    from_height bigint NOT NULL,
    to_height bigint NOT NULL,
    next_height bigint NOT NULL,
    next_hash text NOT NULL,
    lease_owner text,
    lease_until timestamptz,
    lease_epoch bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain, network)
) WITH (fillfactor = 50)
"""

INDEXES = (
    ConcurrentIndex(
        "reconsup_match_idx",
        "payment_requests",
        "USING btree (chain, network, lower(address_canonical))",
    ),
    ConcurrentIndex(
        "reconsup_settlement_block_idx",
        "payment_request_settlements",
        "USING btree (block_hash) WHERE (block_hash IS NOT NULL)",
    ),
)


def upgrade() -> None:
    steps = steps_of(op.get_context())
    steps.create_table("chain_cursors", CURSORS)
    steps.create_table("chain_blocks", BLOCKS)
    steps.create_table("chain_credits", CREDITS, *CREDITS_EXTRAS)
    steps.create_table("chain_spans", SPANS)
    for index in INDEXES:
        build_index(steps, index)
    say_case_twins(steps)


def downgrade() -> None:
    steps = steps_of(op.get_context())
    for index in INDEXES:
        drop_index(steps, index)
    steps.update_requests(
        "taking admissions back",
        assign="reconcile_admitted_height = NULL",
        where="reconcile_admitted_height IS NOT NULL",
    )
    for table in ("chain_spans", "chain_credits", "chain_blocks", "chain_cursors"):
        steps.drop_table(table)
