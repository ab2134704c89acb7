"""The history of every request, and the hosts that are at work.

Revision ID: 0004_history
Revises: 0003_chain

The history cannot be read again from anywhere: downgrading drops it only when it is empty, and otherwise leaves
it where it is, for the next upgrade to go on with.
"""

from alembic import op

from reconsup.store.ddl import BIGINT, INSTANT, INTEGER, JSON, NUMERIC, TEXT, steps_of

revision = "0004_history"
down_revision = "0003_chain"
branch_labels = None
depends_on = None

TRANSITIONS = """
CREATE TABLE app.payment_request_transitions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_request_id text NOT NULL,
    from_status text NOT NULL,
    to_status text NOT NULL,
    reason text NOT NULL,
    evidence_ref text,
    amount_minor numeric,
    expected_amount_minor numeric(78,0),
    confirmations integer,
    evidence jsonb NOT NULL DEFAULT '[]',
    proof jsonb,
    worker_id text,
    lease_owner text,
    lease_epoch bigint,
    created_at timestamptz NOT NULL DEFAULT now()
)
"""

TRANSITIONS_INDEXES = (
    "CREATE INDEX payment_request_transitions_request_idx ON app.payment_request_transitions (payment_request_id, id)",
    "CREATE UNIQUE INDEX payment_request_transitions_late_key"
    " ON app.payment_request_transitions (payment_request_id, evidence_ref) WHERE reason = 'payment_late'",
)

TRANSITION_COLUMNS = {
    "id": BIGINT,
    "payment_request_id": TEXT,
    "from_status": TEXT,
    "to_status": TEXT,
    "reason": TEXT,
    "evidence_ref": TEXT,
    "amount_minor": NUMERIC,
    "expected_amount_minor": NUMERIC,
    "confirmations": INTEGER,
    "evidence": JSON,
    "proof": JSON,
    "worker_id": TEXT,
    "lease_owner": TEXT,
    "lease_epoch": BIGINT,
    "created_at": INSTANT,
}

HOSTS = """
CREATE TABLE app.reconsup_hosts (
    base text PRIMARY KEY,
    boot_id text,
    pid integer NOT NULL,
    version text NOT NULL,
    slots integer NOT NULL,
    started_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL
) WITH (fillfactor = 50)
"""


def upgrade() -> None:
    steps = steps_of(op.get_context())
    if steps.table_exists("payment_request_transitions"):
        steps.require_columns("payment_request_transitions", TRANSITION_COLUMNS)
        steps.keep_table("payment_request_transitions")
    else:
        steps.create_table("payment_request_transitions", TRANSITIONS, *TRANSITIONS_INDEXES)
    steps.create_table("reconsup_hosts", HOSTS)


def downgrade() -> None:
    steps = steps_of(op.get_context())
    steps.drop_table("reconsup_hosts")
    if steps.drop_empty_tables("payment_request_transitions"):
        steps.say("app.payment_request_transitions holds rows and is left as it is; the next upgrade goes on with it")
