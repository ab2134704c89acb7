"""Requests, money and chains in the few words that a table of decisions needs.

All times are seconds after the request's deadline (negative: before it), all heights are given as depths under the
scanned height 1000 (depth 1 is the tip).
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from reconsup.payments.decision import ChainView, Decision, Facts, Policy, decide
from reconsup.payments.request import PaymentRequest, Status
from reconsup.payments.settlement import Orphaning, Settlement

DEADLINE = datetime(2026, 3, 1, 12, tzinfo=UTC)
SCANNED = 1000
AUDITED = DEADLINE + timedelta(days=1)  # the time of the block at which the balance was compared
CHAIN_ID = 31337
BLOCK_SECONDS = 12.0
POLICY = Policy(confirmations=3, finality_confirmations=6, expiry_confirmations=12)
MAX_AMOUNT = 2**256 - 1


def after_deadline(seconds: float) -> datetime:
    return DEADLINE + timedelta(seconds=seconds)


def request(status: Status = Status.PENDING, expected: int | None = 100, **changes: Any) -> PaymentRequest:
    """A native request for 100 wei, its past on chain read."""
    row: dict[str, Any] = {
        "id": "pr_1",
        "network": "local",
        "asset": "ETH",
        "address": "0x" + "aB" * 20,
        "chain_id": CHAIN_ID,
        "token_standard": None,
        "token_contract": None,
        "expires_at": DEADLINE,
        "created_at": after_deadline(-3600),
        "admitted": True,
    }
    return PaymentRequest(status=status, expected_amount_minor=expected, **row | changes)


def paid(amount_minor: int, depth: int = 1, *, at: float = -60, ref: str = "0xa1") -> Settlement:
    """Money that the chain holds; `at`: the time of the block that first showed it."""
    height = SCANNED - depth + 1
    return Settlement(ref, amount_minor, height, f"0xb{height}", after_deadline(at))


def lost(
    amount_minor: int, depth: int = 1, *, at: float = -60, ref: str = "0xa9", scanned: int = SCANNED - 12
) -> Settlement:
    """Money that a proven reorg took back while the scan stood at `scanned` (by default just long enough ago).

    `depth` counts from there: how many blocks stood on it when it went.
    """
    height = scanned - depth + 1
    proof = Orphaning(height=height, block_hash=f"0xb{height}", new_hash=f"0xc{height}", scanned_height=scanned)
    return Settlement(ref, amount_minor, height, proof.block_hash, after_deadline(at), proof)


def chain(tip: float = -600, **changes: Any) -> ChainView:
    """The chain at height 1000 with its tip at that time, a block each 12 s."""
    known: dict[str, Any] = {
        "chain_id": CHAIN_ID,
        "scanned_height": SCANNED,
        "tip_time": after_deadline(tip),
        "tip_age_seconds": 0.0,
        "block_seconds": BLOCK_SECONDS,
        "expiry_time": after_deadline(tip - (POLICY.expiry_confirmations - 1) * BLOCK_SECONDS),
    }
    return ChainView(**known | changes)


BEFORE = chain()  # the deadline is ten minutes away
OVER = chain(tip=133)  # the block one second after the deadline is just deep enough


def decided(
    status: Status | PaymentRequest,
    *settlements: Settlement,
    view: ChainView = BEFORE,
    policy: Policy = POLICY,
    **facts: Any,
) -> Decision:
    """What becomes of a request for 100 wei (3 blocks confirm, 6 are final, 12 expire), its balance compared."""
    of = request(status) if isinstance(status, Status) else status
    decision = decide(of, Facts(settlements=settlements, **{"audited_time": AUDITED} | facts), view, policy)
    assert isinstance(decision, Decision)
    return decision
