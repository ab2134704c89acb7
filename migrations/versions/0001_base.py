"""The two tables that payment services write: made on an empty database, left as they are on another's.

Revision ID: 0001_base
Revises:

On a database where another service made them, this revision only looks whether reconsup can work with what
is there. Downgrading leaves them there; tables of our own are dropped only when they are empty.
"""

from alembic import op

from reconsup.store.ddl import BIGINT, BOOLEAN, INSTANT, INTEGER, JSON, NUMERIC, TEXT, MigrationRefused, Steps, steps_of

revision = "0001_base"
down_revision = None
branch_labels = None
depends_on = None

TABLES = ("payment_request_settlements", "payment_requests")  # in the order in which they can be dropped

REQUESTS = """
CREATE TABLE app.payment_requests (
    id text PRIMARY KEY,
    wallet_account_id text,
    chain text NOT NULL,
    network text NOT NULL,
    asset text NOT NULL,
    status text NOT NULL
        CHECK (status IN ('pending', 'detected', 'confirmed', 'reorged', 'expired', 'failed')),
    expected_amount_minor numeric(78,0),
    address_canonical text NOT NULL,
    address_scheme text NOT NULL,
    derivation_index bigint NOT NULL CHECK (derivation_index >= 0),
    chain_id bigint,
    token_standard text,
    token_contract text,
    token_decimals integer,
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (octet_length(metadata::text) <= 4096),
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (chain, network, address_canonical),
    UNIQUE (wallet_account_id, derivation_index)
)
"""

SETTLEMENTS = """
CREATE TABLE app.payment_request_settlements (
    payment_request_id text NOT NULL REFERENCES app.payment_requests (id) ON DELETE CASCADE,
    evidence_ref text NOT NULL,
    amount_minor numeric(78,0) NOT NULL CHECK (amount_minor >= 0),
    confirmations integer NOT NULL CHECK (confirmations >= 0),
    block_height bigint,
    block_hash text,
    is_canonical boolean NOT NULL DEFAULT true,
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (octet_length(metadata::text) <= 4096),
    first_seen_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (payment_request_id, evidence_ref)
)
"""

SETTLEMENTS_DEPTH = """
CREATE INDEX payment_request_settlements_depth_idx
    ON app.payment_request_settlements (payment_request_id, is_canonical, confirmations)
"""

# What reconsup reads and writes there, whoever made the tables.
REQUEST_COLUMNS = {
    "id": TEXT,
    "chain": TEXT,
    "network": TEXT,
    "asset": TEXT,
    "status": TEXT,
    "expected_amount_minor": NUMERIC,
    "address_canonical": TEXT,
    "chain_id": BIGINT,
    "token_standard": TEXT,
    "token_contract": TEXT,
    "expires_at": INSTANT,
    "created_at": INSTANT,
    "updated_at": INSTANT,
}
SETTLEMENT_COLUMNS = {
    "payment_request_id": TEXT,
    "evidence_ref": TEXT,
    "amount_minor": NUMERIC,
    "confirmations": INTEGER,
    "block_height": BIGINT,
    "block_hash": TEXT,
    "is_canonical": BOOLEAN,
    "metadata": JSON,
    "first_seen_at": INSTANT,
    "last_seen_at": INSTANT,
    "created_at": INSTANT,
    "updated_at": INSTANT,
}


def upgrade() -> None:
    steps = steps_of(op.get_context())
    # Look first: a database that we cannot work with is not changed at all.
    if requests_exist := steps.table_exists("payment_requests"):
        steps.require_columns("payment_requests", REQUEST_COLUMNS)
        steps.require_unique("payment_requests", "id")
    if settlements_exist := steps.table_exists("payment_request_settlements"):
        steps.require_columns("payment_request_settlements", SETTLEMENT_COLUMNS)
        steps.require_unique("payment_request_settlements", "payment_request_id", "evidence_ref")
    if requests_exist:
        steps.keep_table("payment_requests")
    else:
        steps.create_table("payment_requests", REQUESTS)
    if settlements_exist:
        steps.keep_table("payment_request_settlements")
    else:
        steps.create_table("payment_request_settlements", SETTLEMENTS, SETTLEMENTS_DEPTH)


def before_downgrade(steps: Steps) -> None:
    """Asked before any revision above this one goes: a refusal must find the database as it was."""
    ours = [table for table in TABLES if steps.origin("table", table) == "made" and steps.table_exists(table)]
    _refuse([table for table in ours if steps.has_rows(table)])


def downgrade() -> None:
    _refuse(steps_of(op.get_context()).drop_empty_tables(*TABLES))


def _refuse(full: list[str]) -> None:
    if full:
        raise MigrationRefused(
            f"going below this revision drops {' and '.join(f'app.{table}' for table in full)}, and there are "
            "rows: export and delete them first; nothing was changed"
        )
