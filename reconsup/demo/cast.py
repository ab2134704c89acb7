"""Who takes part: the demo's payment requests, what is paid for each, and how each must end.

Everything that the closing check compares the database with stands here. Knows no clock, database or chain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from reconsup.demo.token import DECIMALS as USDT_DECIMALS
from reconsup.payments.request import Reason, Status

ETH_DECIMALS = 18


class Asset(StrEnum):
    """What is paid with."""

    ETH = "ETH"
    USDT = "USDT"

    @property
    def decimals(self) -> int:
        """How many digits of the minor unit make one whole."""
        return ETH_DECIMALS if self is Asset.ETH else USDT_DECIMALS


class Plot(StrEnum):
    """What happens to a request, in the words of the table."""

    PAID = "paid"
    OVERPAID = "overpaid"
    INSTALMENTS = "two instalments"
    ANY_AMOUNT = "any amount"
    UNDERPAID = "underpaid"
    UNPAID = "never paid"
    LATE = "paid too late"
    REORGED = "reorged"


# How a history must read once the entries that say "seen, but not deep enough yet" are left out. A payment that was
# taken back and is mined again may be seen at its first block: then it is detected and confirmed like a new one.
_HISTORIES: dict[Plot, tuple[tuple[Reason, ...], ...]] = {
    Plot.PAID: ((Reason.CONFIRMED,),),
    Plot.OVERPAID: ((Reason.CONFIRMED,),),
    Plot.INSTALMENTS: ((Reason.CONFIRMED,),),
    Plot.ANY_AMOUNT: ((Reason.CONFIRMED,),),
    Plot.UNDERPAID: ((Reason.UNDERPAID_EXPIRED,),),
    Plot.UNPAID: ((Reason.EXPIRED,),),
    Plot.LATE: ((Reason.EXPIRED, Reason.LATE),),
    Plot.REORGED: (
        (Reason.CONFIRMED, Reason.REORGED, Reason.RECONFIRMED),
        (Reason.CONFIRMED, Reason.REORGED, Reason.CONFIRMED),
    ),
}
_EXPIRING = frozenset({Plot.UNDERPAID, Plot.UNPAID, Plot.LATE})


@dataclass(frozen=True, slots=True)
class Order:
    """One payment request. Amounts are minor units; `expected_minor` None means any amount will do.

    `payments_minor` are the payments that it gets, in this order.
    """

    number: int
    asset: Asset
    plot: Plot
    expected_minor: int | None
    payments_minor: tuple[int, ...]

    @property
    def id(self) -> str:
        """The primary key."""
        return f"order-{self.label}"

    @property
    def label(self) -> str:
        """The id, short."""
        return f"{self.number:02}"

    @property
    def address(self) -> str:
        """Where the customer pays to: nobody has its key, and nobody needs it."""
        return "0x" + sha256(f"reconsup {self.id}".encode()).hexdigest()[:40]

    @property
    def ends_soon(self) -> bool:
        """Whether the demo waits for this one to expire."""
        return self.plot in _EXPIRING

    @property
    def final_status(self) -> Status:
        """The status that it must end with."""
        return Status.EXPIRED if self.ends_soon else Status.CONFIRMED

    @property
    def credited_minor(self) -> int:
        """What it has on chain in the end. What a reorg took back does not count."""
        return self.payments_minor[-1] if self.plot is Plot.REORGED else sum(self.payments_minor)

    def is_history(self, reasons: Sequence[str]) -> bool:
        """Whether a history with these reasons, oldest first, is what must have happened."""
        return tuple(each for each in reasons if each != Reason.DETECTED) in _HISTORIES[self.plot]

    def shown_amount(self) -> str:
        """The expected amount for people, to stand below others."""
        return (
            f"   any {self.asset}" if self.expected_minor is None else shown(self.expected_minor, self.asset, width=6)
        )


def shown(amount_minor: int, asset: Asset, *, width: int = 0) -> str:
    """An amount for people, e.g. `0.120 ETH` or `42.50 USDT`; the number fills so many characters."""
    digits = 3 if asset is Asset.ETH else 2
    whole = amount_minor // 10 ** (asset.decimals - digits)
    number = f"{whole // 10**digits}.{whole % 10**digits:0{digits}}"
    return f"{number:>{width}} {asset}"


def _milli_eth(amount: int) -> int:
    return amount * int(10 ** (ETH_DECIMALS - 3))


def _cents(amount: int) -> int:
    return amount * int(10 ** (USDT_DECIMALS - 2))


def _orders() -> tuple[Order, ...]:
    eth, usdt = Asset.ETH, Asset.USDT
    amounts_eth = (50, 120, 75, 310, 18, 99, 240, 60, 145, 33, 500)
    amounts_usdt = (2500, 4250, 999, 12000, 1890, 3499, 7500, 560, 21000, 1499)
    paid = [(eth, Plot.PAID, _milli_eth(each), (_milli_eth(each),)) for each in amounts_eth]
    paid += [(usdt, Plot.PAID, _cents(each), (_cents(each),)) for each in amounts_usdt]
    paid = paid[::2] + paid[1::2]  # not one asset after the other
    special: list[tuple[Asset, Plot, int | None, tuple[int, ...]]] = [
        (usdt, Plot.INSTALMENTS, _cents(9000), (_cents(4000), _cents(5000))),
        (usdt, Plot.UNDERPAID, _cents(8000), (_cents(3000),)),
        (eth, Plot.UNPAID, _milli_eth(80), ()),
        (usdt, Plot.LATE, _cents(3300), (_cents(3300),)),
        (eth, Plot.OVERPAID, _milli_eth(200), (_milli_eth(250),)),
        (usdt, Plot.ANY_AMOUNT, None, (_cents(1234),)),
        (eth, Plot.REORGED, _milli_eth(400), (_milli_eth(400), _milli_eth(400))),
    ]
    return tuple(Order(number, *each) for number, each in enumerate([*paid, *special], start=1))


ORDERS = _orders()


def the(plot: Plot) -> Order:
    """The only order of a plot."""
    (order,) = (each for each in ORDERS if each.plot is plot)
    return order
