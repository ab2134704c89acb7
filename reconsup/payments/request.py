"""What a payment request is, and the state machine it lives in.

The transition table below *is* the state machine: a pair of statuses that is not in it cannot be written. Each
pair names the only reason the history may give for it. Statuses that reconsup never leaves (`failed` belongs
to other programs) have no row. Nothing here looks at a clock, a database or a chain.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

ETHEREUM = "ethereum"
NATIVE_ASSET = "ETH"
EVM_ADDRESS = re.compile(r"0x[0-9a-f]{40}", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Network:
    """A chain's network as the columns `chain` and `network` name it, e.g. ethereum/mainnet."""

    chain: str
    name: str

    def __str__(self) -> str:
        return self.name


class Status(StrEnum):
    """The values of `payment_requests.status`."""

    PENDING = "pending"
    DETECTED = "detected"
    CONFIRMED = "confirmed"
    REORGED = "reorged"
    EXPIRED = "expired"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a history entry was written. The last five leave the status as it is."""

    DETECTED = "payment_detected"
    CONFIRMED = "payment_confirmed"
    REORGED = "payment_reorged"
    RECONFIRMED = "payment_reconfirmed"
    EXPIRED = "payment_expired"
    UNDERPAID_EXPIRED = "payment_underpaid_expired"
    LATE = "payment_late"
    AGAIN = "payment_again"  # more money for a request that was confirmed already
    REORGED_AFTER_FINALITY = "payment_reorged_after_finality"
    ROW_FAILED = "row_failed"  # the row could not be processed, and this had not been said of it before
    ROW_SET_ASIDE = "row_set_aside"  # workers died at it: it is looked at no more


TRANSITIONS = MappingProxyType(
    {
        (Status.PENDING, Status.DETECTED): frozenset({Reason.DETECTED}),
        (Status.PENDING, Status.CONFIRMED): frozenset({Reason.CONFIRMED, Reason.RECONFIRMED}),
        (Status.PENDING, Status.EXPIRED): frozenset({Reason.EXPIRED, Reason.UNDERPAID_EXPIRED}),
        (Status.DETECTED, Status.CONFIRMED): frozenset({Reason.CONFIRMED, Reason.RECONFIRMED}),
        (Status.DETECTED, Status.REORGED): frozenset({Reason.REORGED}),
        (Status.DETECTED, Status.EXPIRED): frozenset({Reason.EXPIRED, Reason.UNDERPAID_EXPIRED}),
        (Status.CONFIRMED, Status.REORGED): frozenset({Reason.REORGED}),
        (Status.REORGED, Status.DETECTED): frozenset({Reason.DETECTED}),
        (Status.REORGED, Status.CONFIRMED): frozenset({Reason.CONFIRMED, Reason.RECONFIRMED}),
        (Status.REORGED, Status.EXPIRED): frozenset({Reason.EXPIRED, Reason.UNDERPAID_EXPIRED}),
    }
)


class RowError(StrEnum):
    """What makes a row impossible to decide; stored in `reconcile_error`, counted, retried ever more rarely."""

    AMBIGUOUS_ADDRESS = "ambiguous_address"
    CHAIN_ID_MISMATCH = "chain_id_mismatch"
    TOKEN_CONTRACT_MISSING = "token_contract_missing"  # noqa: S105 - a reason, not a password
    TOKEN_CONTRACT_INVALID = "token_contract_invalid"  # noqa: S105 - a reason, not a password
    ADDRESS_INVALID = "address_invalid"  # nobody can pay it: it would expire, whatever the customer did
    AMOUNT_NEGATIVE = "amount_negative"
    UNEXPLAINED_BALANCE = "unexplained_balance"  # only where the request would expire


@dataclass(frozen=True, slots=True)
class PaymentRequest:
    """One row of `app.payment_requests`, as far as a decision needs it.

    `expected_amount_minor` is in wei or token units; None and 0 both mean "any amount above zero".
    `admitted` says that the request's whole past on chain has been read.
    """

    id: str
    network: str
    asset: str
    address: str
    status: Status
    expected_amount_minor: int | None
    chain_id: int | None
    token_standard: str | None
    token_contract: str | None
    expires_at: datetime
    created_at: datetime
    admitted: bool

    def error(self, *, chain_id: int, shares_address: bool) -> RowError | None:
        """Name what makes this row impossible to decide on the chain with `chain_id`, or None.

        `shares_address`: another row has the same address (in other letters) and token, so that a credit
        would belong to both.
        """
        if self.chain_id != chain_id:
            return RowError.CHAIN_ID_MISMATCH
        if bool(self.token_standard) != bool(self.token_contract):  # "" would be matched as native value
            return RowError.TOKEN_CONTRACT_MISSING
        if (self.token_standard is None) != (self.token_contract is None):  # nothing would be matched (store.matching)
            return RowError.TOKEN_CONTRACT_MISSING
        if not self.token_contract and self.asset != NATIVE_ASSET:  # USDT without its contract is not paid in wei
            return RowError.TOKEN_CONTRACT_MISSING
        if self.token_contract and not EVM_ADDRESS.fullmatch(self.token_contract):
            return RowError.TOKEN_CONTRACT_INVALID
        if not EVM_ADDRESS.fullmatch(self.address):
            return RowError.ADDRESS_INVALID
        if self.expected_amount_minor is not None and self.expected_amount_minor < 0:
            return RowError.AMOUNT_NEGATIVE
        if shares_address:
            return RowError.AMBIGUOUS_ADDRESS
        return None
