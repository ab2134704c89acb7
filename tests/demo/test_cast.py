"""The cast: who pays what, and how it must end."""

from collections import Counter

import pytest

from reconsup.demo.cast import ORDERS, Asset, Plot, shown, the
from reconsup.payments.request import Status

ETH = 10**18
CONFIRMED, DETECTED, REORGED, RECONFIRMED = (
    "payment_confirmed",
    "payment_detected",
    "payment_reorged",
    "payment_reconfirmed",
)


def test_there_are_enough_requests_of_both_assets_and_one_of_each_special_kind() -> None:
    plots = Counter(order.plot for order in ORDERS)

    assert len(ORDERS) >= 24
    assert min(Counter(order.asset for order in ORDERS).values()) >= 12
    assert {plot: count for plot, count in plots.items() if plot is not Plot.PAID} == {
        plot: 1 for plot in Plot if plot is not Plot.PAID
    }


def test_ids_and_addresses_are_unique_and_addresses_lower_case() -> None:
    addresses = {order.address for order in ORDERS}

    assert len({order.id for order in ORDERS}) == len(addresses) == len(ORDERS)
    assert all(len(each) == 42 and each == each.lower() for each in addresses)


@pytest.mark.parametrize(
    ("plot", "is_enough"),
    [
        (Plot.OVERPAID, True),
        (Plot.INSTALMENTS, True),
        (Plot.UNDERPAID, False),
        (Plot.REORGED, True),
    ],
)
def test_the_payments_are_what_the_plot_says(plot: Plot, is_enough: bool) -> None:
    order = the(plot)
    assert order.expected_minor is not None

    assert (order.credited_minor >= order.expected_minor) is is_enough


def test_the_instalments_are_enough_only_together() -> None:
    order = the(Plot.INSTALMENTS)
    assert order.expected_minor is not None

    assert len(order.payments_minor) == 2
    assert max(order.payments_minor) < order.expected_minor == sum(order.payments_minor)


def test_what_expires_ends_expired_and_all_else_confirmed() -> None:
    assert Counter(order.final_status for order in ORDERS) == {
        Status.EXPIRED: 3,
        Status.CONFIRMED: len(ORDERS) - 3,
    }


@pytest.mark.parametrize(
    ("plot", "reasons", "is_right"),
    [
        (Plot.PAID, [CONFIRMED], True),
        (Plot.PAID, [DETECTED, CONFIRMED], True),
        (Plot.PAID, [DETECTED], False),
        (Plot.PAID, [CONFIRMED, CONFIRMED], False),
        (Plot.PAID, [CONFIRMED, REORGED, RECONFIRMED], False),
        (Plot.UNDERPAID, ["payment_underpaid_expired"], True),
        (Plot.UNDERPAID, ["payment_expired"], False),
        (Plot.UNPAID, ["payment_expired"], True),
        (Plot.UNPAID, [], False),
        (Plot.LATE, ["payment_expired", "payment_late"], True),
        (Plot.LATE, ["payment_expired"], False),
        (Plot.REORGED, [DETECTED, CONFIRMED, REORGED, RECONFIRMED], True),
        (Plot.REORGED, [CONFIRMED, REORGED, DETECTED, CONFIRMED], True),
        (Plot.REORGED, [CONFIRMED, REORGED], False),
        (Plot.REORGED, [CONFIRMED], False),
    ],
)
def test_a_history_is_right_or_not(plot: Plot, reasons: list[str], is_right: bool) -> None:
    order = next(order for order in ORDERS if order.plot is plot)

    assert order.is_history(reasons) is is_right


def test_amounts_are_shown_in_whole_units() -> None:
    assert shown(ETH // 20, Asset.ETH) == "0.050 ETH"
    assert shown(12_000_000, Asset.USDT) == "12.00 USDT"
    assert shown(999_999, Asset.USDT, width=6) == "  0.99 USDT"
