"""The tables of schema `app`, in their finished shape.

This is what the migrations in `migrations/` lead to on an empty database; a test compares the two catalogues
object by object. A database that another service made may have more (columns, indexes, foreign keys), never
less. Tables are described here and changed there: whoever edits this page adds a revision, and the other way
round. Nothing here speaks to a database.

`payment_requests` takes rows that break the rules of the service that writes them (a token without a contract,
a negative amount): reconsup names such rows as row errors instead of relying on somebody's constraint.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

SCHEMA = "app"

metadata = MetaData(schema=SCHEMA)

_MINOR_UNITS = Numeric(78, 0)  # 2^256 - 1 has 78 digits
_INSTANT = DateTime(timezone=True)
_NOW = text("now()")
# Tables with few rows that change all the time: room on the page keeps their updates off the indexes.
_BUSY: dict[str, Any] = {"postgresql_with": {"fillfactor": 50}}

payment_requests = Table(
    "payment_requests",
    metadata,
    Column("id", Text, nullable=False),
    Column("wallet_account_id", Text),
    Column("chain", Text, nullable=False),
    Column("network", Text, nullable=False),
    Column("asset", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("expected_amount_minor", _MINOR_UNITS),
    Column("address_canonical", Text, nullable=False),
    Column("address_scheme", Text, nullable=False),
    Column("derivation_index", BigInteger, nullable=False),
    Column("chain_id", BigInteger),
    Column("token_standard", Text),
    Column("token_contract", Text),
    Column("token_decimals", Integer),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("expires_at", _INSTANT, nullable=False),
    Column("created_at", _INSTANT, nullable=False, server_default=_NOW),
    Column("updated_at", _INSTANT, nullable=False, server_default=_NOW),
    # what reconsup adds
    Column("reconcile_lease_owner", Text),
    Column("reconcile_lease_until", _INSTANT),
    Column("reconcile_lease_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("next_reconcile_at", _INSTANT, server_default=_NOW),
    Column("reconcile_due_height", BigInteger),
    Column("reconcile_admitted_height", BigInteger),
    Column("reconcile_failures", Integer, nullable=False, server_default=text("0")),
    Column("reconcile_crashes", Integer, nullable=False, server_default=text("0")),
    Column("reconcile_error", Text),
    Column("reconcile_span_height", BigInteger),
    Column("reconcile_audited_height", BigInteger),
    Column("reconcile_audited_hash", Text),
    PrimaryKeyConstraint("id", name="payment_requests_pkey"),
    UniqueConstraint(
        "chain", "network", "address_canonical", name="payment_requests_chain_network_address_canonical_key"
    ),
    UniqueConstraint(
        "wallet_account_id", "derivation_index", name="payment_requests_wallet_account_id_derivation_index_key"
    ),
    CheckConstraint(
        "status IN ('pending', 'detected', 'confirmed', 'reorged', 'expired', 'failed')",
        name="payment_requests_status_check",
    ),
    CheckConstraint("derivation_index >= 0", name="payment_requests_derivation_index_check"),
    CheckConstraint("octet_length(metadata::text) <= 4096", name="payment_requests_metadata_check"),
)

Index(
    "reconsup_claim_idx",
    payment_requests.c.chain,
    payment_requests.c.network,
    payment_requests.c.next_reconcile_at,
    payment_requests.c.created_at,
    payment_requests.c.id,
    postgresql_where=text(
        "next_reconcile_at IS NOT NULL AND status IN ('pending', 'detected', 'confirmed', 'reorged', 'expired')"
    ),
)
Index(
    "reconsup_due_height_idx",
    payment_requests.c.chain,
    payment_requests.c.network,
    payment_requests.c.reconcile_due_height,
    postgresql_where=text("reconcile_due_height IS NOT NULL"),
)
Index(
    "reconsup_lease_owner_idx",
    payment_requests.c.reconcile_lease_owner,
    postgresql_where=text("reconcile_lease_owner IS NOT NULL"),
)
Index(
    "reconsup_suspect_idx",
    payment_requests.c.chain,
    payment_requests.c.network,
    payment_requests.c.next_reconcile_at,
    payment_requests.c.created_at,
    payment_requests.c.id,
    postgresql_where=text(
        "reconcile_crashes > 0 AND next_reconcile_at IS NOT NULL"
        " AND status IN ('pending', 'detected', 'confirmed', 'reorged', 'expired')"
    ),
)
Index(
    "reconsup_forgotten_idx",
    payment_requests.c.id,
    postgresql_where=text("next_reconcile_at IS NULL AND status IN ('pending', 'detected', 'reorged')"),
)
Index(
    "reconsup_span_idx",
    payment_requests.c.chain,
    payment_requests.c.network,
    payment_requests.c.reconcile_span_height,
    postgresql_where=text("reconcile_span_height IS NOT NULL"),
)
Index(
    "reconsup_audit_idx",
    payment_requests.c.chain,
    payment_requests.c.network,
    payment_requests.c.expires_at,
    payment_requests.c.id,
    postgresql_where=text("COALESCE(token_standard, '') = '' AND status IN ('pending', 'detected', 'reorged')"),
)
Index(
    "reconsup_match_idx",
    payment_requests.c.chain,
    payment_requests.c.network,
    text("lower(address_canonical)"),
)

payment_request_settlements = Table(
    "payment_request_settlements",
    metadata,
    Column("payment_request_id", Text, nullable=False),
    Column("evidence_ref", Text, nullable=False),
    Column("amount_minor", _MINOR_UNITS, nullable=False),
    Column("confirmations", Integer, nullable=False),
    Column("block_height", BigInteger),
    Column("block_hash", Text),
    Column("is_canonical", Boolean, nullable=False, server_default=text("true")),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("first_seen_at", _INSTANT, nullable=False),
    Column("last_seen_at", _INSTANT, nullable=False),
    Column("created_at", _INSTANT, nullable=False, server_default=_NOW),
    Column("updated_at", _INSTANT, nullable=False, server_default=_NOW),
    PrimaryKeyConstraint("payment_request_id", "evidence_ref", name="payment_request_settlements_pkey"),
    ForeignKeyConstraint(
        ["payment_request_id"],
        [f"{SCHEMA}.payment_requests.id"],
        ondelete="CASCADE",
        name="payment_request_settlements_payment_request_id_fkey",
    ),
    CheckConstraint("amount_minor >= 0", name="payment_request_settlements_amount_minor_check"),
    CheckConstraint("confirmations >= 0", name="payment_request_settlements_confirmations_check"),
    CheckConstraint("octet_length(metadata::text) <= 4096", name="payment_request_settlements_metadata_check"),
)

Index(
    "payment_request_settlements_depth_idx",
    payment_request_settlements.c.payment_request_id,
    payment_request_settlements.c.is_canonical,
    payment_request_settlements.c.confirmations,
)
Index(
    "reconsup_settlement_block_idx",
    payment_request_settlements.c.block_hash,
    postgresql_where=text("block_hash IS NOT NULL"),
)

chain_cursors = Table(
    "chain_cursors",
    metadata,
    Column("chain", Text, nullable=False),
    Column("network", Text, nullable=False),
    Column("chain_id", BigInteger, nullable=False),
    Column("genesis_hash", Text, nullable=False),
    Column("next_height", BigInteger, nullable=False),
    Column("tip_hash", Text, nullable=False),
    Column("tip_time", _INSTANT),
    Column("head_height", BigInteger),
    Column("safe_height", BigInteger),
    Column("finalized_height", BigInteger),
    Column("tail_start", BigInteger, nullable=False),
    Column("stop_reason", Text),
    Column("stopped_at", _INSTANT),
    Column("scan_lease_owner", Text),
    Column("scan_lease_until", _INSTANT),
    Column("scan_lease_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("created_at", _INSTANT, nullable=False, server_default=_NOW),
    Column("updated_at", _INSTANT, nullable=False, server_default=_NOW),
    Column("finalized_tag_height", BigInteger),  # the tag's own: finalized_height also counts what left the tail
    Column("unproven_height", BigInteger),
    Column("audited_height", BigInteger),
    Column("audited_hash", Text),
    Column("disagreed_at", _INSTANT),
    PrimaryKeyConstraint("chain", "network", name="chain_cursors_pkey"),
    **_BUSY,
)

chain_blocks = Table(
    "chain_blocks",
    metadata,
    Column("chain", Text, nullable=False),
    Column("network", Text, nullable=False),
    Column("height", BigInteger, nullable=False),
    Column("block_hash", Text, nullable=False),
    Column("parent_hash", Text, nullable=False),
    Column("block_time", _INSTANT, nullable=False),
    PrimaryKeyConstraint("chain", "network", "height", name="chain_blocks_pkey"),
)

chain_credits = Table(
    "chain_credits",
    metadata,
    Column("chain", Text, nullable=False),
    Column("network", Text, nullable=False),
    Column("height", BigInteger, nullable=False),
    Column("evidence_ref", Text, nullable=False),
    Column("block_hash", Text, nullable=False),
    Column("block_time", _INSTANT, nullable=False),
    Column("tx_hash", Text, nullable=False),
    Column("address", Text, nullable=False, comment="lower case"),
    Column("token_contract", Text, nullable=False, server_default=text("''"), comment="lower case; '' = native"),
    Column("amount_minor", _MINOR_UNITS, nullable=False),
    PrimaryKeyConstraint("chain", "network", "height", "evidence_ref", name="chain_credits_pkey"),
    CheckConstraint("amount_minor > 0", name="chain_credits_amount_minor_check"),
    Index(
        "chain_credits_address_idx", "address", "chain", "network"
    ),  # address first: a range of heights must find no use for it,
)

chain_spans = Table(
    "chain_spans",
    metadata,
    Column("chain", Text, nullable=False),
    Column("network", Text, nullable=False),
    Column("from_height", BigInteger, nullable=False),
    Column("to_height", BigInteger, nullable=False),
    Column("next_height", BigInteger, nullable=False),
    Column("next_hash", Text, nullable=False),
    Column("lease_owner", Text),
    Column("lease_until", _INSTANT),
    Column("lease_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("created_at", _INSTANT, nullable=False, server_default=_NOW),
    Column("updated_at", _INSTANT, nullable=False, server_default=_NOW),
    Column("until_time", _INSTANT),
    PrimaryKeyConstraint("chain", "network", name="chain_spans_pkey"),
    **_BUSY,
)

payment_request_transitions = Table(
    "payment_request_transitions",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    # no foreign key: the history outlives its request
    Column("payment_request_id", Text, nullable=False),
    Column("from_status", Text, nullable=False),
    Column("to_status", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("evidence_ref", Text),
    Column("amount_minor", Numeric),  # a sum: it may be longer than any one amount
    Column("expected_amount_minor", _MINOR_UNITS),
    Column("confirmations", Integer),
    Column("evidence", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    Column("proof", JSONB),
    Column("worker_id", Text),
    Column("lease_owner", Text),
    Column("lease_epoch", BigInteger),
    Column("created_at", _INSTANT, nullable=False, server_default=_NOW),
    PrimaryKeyConstraint("id", name="payment_request_transitions_pkey"),
    Index("payment_request_transitions_request_idx", "payment_request_id", "id"),
    Index(
        "payment_request_transitions_late_key",
        "payment_request_id",
        "evidence_ref",
        unique=True,
        postgresql_where=text("reason = 'payment_late'"),
    ),
)

# Native balances that settlements do not explain: what an address held before (a difference that is known), and what
# could not be placed in a block (unexplained).
request_balances = Table(
    "request_balances",
    metadata,
    Column("payment_request_id", Text, nullable=False),
    Column("height", BigInteger, nullable=False),
    Column("block_hash", Text, nullable=False),
    Column("difference_minor", Numeric, nullable=False, server_default=text("0")),
    Column("unexplained_minor", Numeric, nullable=False, server_default=text("0")),
    Column("nonce", BigInteger, nullable=False, server_default=text("0")),
    Column("created_at", _INSTANT, nullable=False, server_default=_NOW),
    Column("updated_at", _INSTANT, nullable=False, server_default=_NOW),
    PrimaryKeyConstraint("payment_request_id", name="request_balances_pkey"),
    ForeignKeyConstraint(
        ["payment_request_id"],
        [f"{SCHEMA}.payment_requests.id"],
        ondelete="CASCADE",
        name="request_balances_payment_request_id_fkey",
    ),
)

# What happened to a network as a whole: it stopped, started again, was resumed by somebody.
chain_events = Table(
    "chain_events",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("chain", Text, nullable=False),
    Column("network", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("height", BigInteger),
    Column("who", Text, nullable=False),
    Column("detail", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("created_at", _INSTANT, nullable=False, server_default=_NOW),
    PrimaryKeyConstraint("id", name="chain_events_pkey"),
)

reconsup_hosts = Table(
    "reconsup_hosts",
    metadata,
    Column("base", Text, nullable=False),
    Column("boot_id", Text),  # a system without one has null
    Column("pid", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("started_at", _INSTANT, nullable=False),
    Column("last_seen_at", _INSTANT, nullable=False),
    Column("status", JSONB),  # what the host said of its fleet when it was last seen
    PrimaryKeyConstraint("base", name="reconsup_hosts_pkey"),
    **_BUSY,
)

# Whose is it? Every object that a migration made, or met and left alone. A downgrade takes away what is
# noted as made, nothing else.
reconsup_schema_objects = Table(
    "reconsup_schema_objects",
    metadata,
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("noted_at", _INSTANT, nullable=False, server_default=_NOW),
    PrimaryKeyConstraint("kind", "name", name="reconsup_schema_objects_pkey"),
    CheckConstraint("origin IN ('made', 'found')", name="reconsup_schema_objects_origin_check"),
)
