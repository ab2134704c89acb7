"""A credit seen on chain for a request, and the sums that a decision compares.

Sums are plain integers in minor units. A settlement counts only while it is canonical, and for a status only
when it is in time: the block in which its transaction was *first* seen has a time no later than the
request's end plus grace. When we happened to look never matters.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Orphaning:
    """The stored proof that the chain took a settlement back.

    At `height` the chain had `block_hash` and has `new_hash` now; it was found while our scan stood at
    `scanned_height`.
    """

    height: int
    block_hash: str
    new_hash: str
    scanned_height: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """One row of `app.payment_request_settlements` that reconsup wrote (others never reach a decision).

    `orphaning` is set exactly when the settlement is not canonical and a proof names its block.
    """

    evidence_ref: str
    amount_minor: int
    height: int
    block_hash: str
    first_block_time: datetime
    orphaning: Orphaning | None = None

    def __post_init__(self) -> None:
        assert self.orphaning is None or self.orphaning.block_hash == self.block_hash

    @property
    def is_canonical(self) -> bool:
        """Whether the chain, as far as it was read, still holds this credit."""
        return self.orphaning is None

    @property
    def transaction(self) -> str:
        """What stays the same when the same payment is mined again: see `transaction_of`."""
        return transaction_of(self.evidence_ref, self.amount_minor)

    def confirmations(self, scanned_height: int) -> int:
        """How many blocks of the scanned chain stand on this one, itself included."""
        return max(0, scanned_height - self.height + 1)


def transaction_of(evidence_ref: str, amount_minor: int) -> str:
    """The transaction hash of a piece of evidence; of a balance's difference, which has none, the amount."""
    first, _, rest = evidence_ref.partition(":")
    return f"delta:{amount_minor}" if rest == "delta" else first


def total(settlements: Sequence[Settlement]) -> int:
    """The sum of the amounts, in minor units."""
    return sum(settlement.amount_minor for settlement in settlements) if settlements else 0


def is_reached(sum_minor: int, expected_minor: int | None, threshold_bps: int) -> bool:
    """Whether a sum reaches a share (in 1/10000) of the expected amount; nothing expected means: anything."""
    return sum_minor > 0 and sum_minor * 10_000 >= (expected_minor or 0) * threshold_bps


def height_that_reaches(
    settlements: Iterable[Settlement], expected_minor: int | None, threshold_bps: int
) -> int | None:
    """The lowest height at which the settlements up to it reach the threshold; None if they never do."""
    sum_minor = 0
    for settlement in sorted(settlements, key=lambda each: each.height):
        sum_minor += settlement.amount_minor
        if is_reached(sum_minor, expected_minor, threshold_bps):
            return settlement.height
    return None
