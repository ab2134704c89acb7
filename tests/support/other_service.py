"""The database of another payment service, as it is before reconsup comes (interop case b).

It made the tables, it goes on inserting into them with its own columns only, it has indexes and lease columns of its
own, and a foreign key to a table that is none of ours.
"""

from typing import Any

import psycopg

_TABLES = """
CREATE SCHEMA app;
CREATE TABLE app.wallet_accounts (id text PRIMARY KEY, name text NOT NULL);
CREATE TABLE app.payment_requests (
    id text PRIMARY KEY,
    wallet_account_id text NOT NULL REFERENCES app.wallet_accounts (id),
    chain text NOT NULL,
    network text NOT NULL,
    asset text NOT NULL,
    status text NOT NULL CONSTRAINT known_status
        CHECK (status IN ('pending', 'detected', 'confirmed', 'reorged', 'expired', 'failed')),
    expected_amount_minor numeric(78,0),
    address_canonical text NOT NULL,
    address_scheme text NOT NULL,
    derivation_index bigint NOT NULL CHECK (derivation_index >= 0),
    chain_id bigint,
    token_standard text,
    token_contract text,
    token_decimals integer,
    metadata jsonb NOT NULL DEFAULT '{}',
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    reconcile_lease_owner text,
    reconcile_lease_until timestamptz,
    webhook_url text,
    UNIQUE (chain, network, address_canonical),
    UNIQUE (wallet_account_id, derivation_index)
);
CREATE INDEX ix_lease ON app.payment_requests (status, reconcile_lease_until, created_at, id);
CREATE INDEX ix_expiry ON app.payment_requests (status, expires_at);
CREATE INDEX ix_status ON app.payment_requests (status, chain, network);
CREATE INDEX ix_created ON app.payment_requests (created_at DESC);
CREATE INDEX ix_wallet ON app.payment_requests (wallet_account_id);
CREATE TABLE app.payment_request_settlements (
    payment_request_id text NOT NULL REFERENCES app.payment_requests (id) ON DELETE CASCADE,
    evidence_ref text NOT NULL,
    amount_minor numeric(78,0) NOT NULL CHECK (amount_minor >= 0),
    confirmations integer NOT NULL CHECK (confirmations >= 0),
    block_height bigint,
    block_hash text,
    is_canonical boolean NOT NULL DEFAULT true,
    metadata jsonb NOT NULL DEFAULT '{}',
    first_seen_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (payment_request_id, evidence_ref)
);
CREATE INDEX ix_settlements ON app.payment_request_settlements (payment_request_id, is_canonical, confirmations);
INSERT INTO app.wallet_accounts VALUES ('w1', 'the rows of before'), ('w2', 'the rows to come');
"""

# Seven of ten rows are history; every tenth is leased by the service's own reconciler, every twentieth is bitcoin.
_ROWS = """
INSERT INTO app.payment_requests (id, wallet_account_id, chain, network, asset, status, expected_amount_minor,
    address_canonical, address_scheme, derivation_index, chain_id, expires_at, created_at,
    reconcile_lease_owner, reconcile_lease_until)
SELECT 'old_' || lpad(n::text, 6, '0'), 'w1', CASE WHEN mod(n, 20) = 0 THEN 'bitcoin' ELSE 'ethereum' END,
       CASE WHEN mod(n, 20) = 0 THEN 'testnet' ELSE 'sepolia' END, CASE WHEN mod(n, 20) = 0 THEN 'BTC' ELSE 'ETH' END,
       (ARRAY['pending', 'detected', 'reorged', 'confirmed', 'confirmed', 'confirmed', 'expired', 'expired',
              'failed', 'confirmed'])[1 + mod(n, 10)],
       n, '0xAbCd' || lpad(to_hex(n), 36, '0'), 'evm_bip44', n, 11155111, now() + interval '1 hour', now(),
       CASE WHEN mod(n, 10) = 1 THEN 'old-reconciler' END, CASE WHEN mod(n, 10) = 1 THEN now() + interval '1 minute' END
  FROM generate_series(1, %(rows)s) AS n
"""

_SETTLEMENTS = """
INSERT INTO app.payment_request_settlements (payment_request_id, evidence_ref, amount_minor, confirmations,
    block_height, block_hash, first_seen_at, last_seen_at)
SELECT id, '0x' || md5(id), 5, 3, 100, '0x' || md5(network), now(), now()
  FROM app.payment_requests WHERE status IN ('detected', 'confirmed')
"""

OPEN = ("pending", "detected", "reorged")


def make_tables(connection: psycopg.Connection[Any], *, rows: int) -> None:
    """Make the service's tables with `rows` requests and their settlements."""
    connection.execute(_TABLES)
    connection.execute(_ROWS, {"rows": rows})
    connection.execute(_SETTLEMENTS)
