"""Customers of a machine: requests are made and paid all the time; at the end each one is confirmed, once.

`python -m tests.packaging.customers DATABASE_URL NODE_URL SECONDS`
"""

import json
import secrets
import sys
import time
import urllib.request
from typing import Any

import psycopg

PRICE = 10**12
PAUSE_SECONDS = 0.05
PATIENCE_SECONDS = 90.0
_NEW = """
INSERT INTO app.payment_requests (id, chain, network, asset, status, address_canonical, address_scheme,
                                  derivation_index, chain_id, expires_at, expected_amount_minor)
VALUES (%s, 'ethereum', 'anvil', 'ETH', 'pending', %s, 'evm_bip44', %s, 31337, now() + interval '1 hour', %s)
"""


def call(node: str, method: str, *params: Any) -> Any:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(node, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)["result"]


def main(database: str, node: str, seconds: float) -> int:
    """Pay for so long; 0 if all was noticed, each payment once."""
    accounts, ids = call(node, "eth_accounts"), []
    with psycopg.connect(database, autocommit=True) as connection:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            address, request = "0x" + secrets.token_hex(20), "pr_" + secrets.token_hex(8)
            connection.execute(_NEW, (request, address, secrets.randbelow(2**31), PRICE))
            payer = accounts[len(ids) % len(accounts)]
            call(node, "eth_sendTransaction", {"from": payer, "to": address, "value": hex(PRICE)})
            ids.append(request)
            time.sleep(PAUSE_SECONDS)
        end = time.monotonic() + PATIENCE_SECONDS
        while (found := _statuses(connection, ids)) != {"confirmed": len(ids)} and time.monotonic() < end:
            time.sleep(0.2)
        told = connection.execute(
            "SELECT count(*), count(DISTINCT payment_request_id) FROM app.payment_request_transitions"
            " WHERE payment_request_id = ANY (%s) AND reason = 'payment_confirmed'",
            (ids,),
        ).fetchone()
    print(f"{len(ids)} paid: {found}; confirmed in the history: {told}", flush=True)
    return 0 if found == {"confirmed": len(ids)} and told == (len(ids), len(ids)) else 1


def _statuses(connection: psycopg.Connection[Any], ids: list[str]) -> dict[str, int]:
    rows = connection.execute(
        "SELECT status, count(*) FROM app.payment_requests WHERE id = ANY (%s) GROUP BY 1", (ids,)
    ).fetchall()
    return dict(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
