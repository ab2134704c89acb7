"""The state machine's table, and the rows that nobody can decide."""

import dataclasses
import itertools
from typing import Any

import pytest

from reconsup.payments.request import ETHEREUM, TRANSITIONS, Network, Reason, RowError, Status
from tests.payments.make import CHAIN_ID, request

TOKEN = {"token_standard": "ERC20", "token_contract": "0x" + "c0" * 20}


def test_the_table_is_the_lifecycle_of_the_contract() -> None:
    arrows = """
        pending → detected → confirmed; pending → confirmed; detected → reorged; confirmed → reorged;
        reorged → detected; reorged → confirmed; pending → expired; detected → expired; reorged → expired
    """
    allowed = set()
    for chain in arrows.split(";"):
        names = [Status(name.strip()) for name in chain.split("→")]
        allowed |= set(itertools.pairwise(names))

    assert set(TRANSITIONS) == allowed


def test_nothing_leaves_expired_and_failed_and_nothing_stays_where_it_is() -> None:
    assert not {before for before, _ in TRANSITIONS} & {Status.EXPIRED, Status.FAILED}
    assert all(before != after for before, after in TRANSITIONS)


def test_each_target_has_its_own_reasons() -> None:
    by_target: dict[Status, set[Reason]] = {}
    for (_, after), reasons in TRANSITIONS.items():
        by_target.setdefault(after, set()).update(reasons)

    assert by_target == {
        Status.DETECTED: {Reason.DETECTED},
        Status.CONFIRMED: {Reason.CONFIRMED, Reason.RECONFIRMED},
        Status.REORGED: {Reason.REORGED},
        Status.EXPIRED: {Reason.EXPIRED, Reason.UNDERPAID_EXPIRED},
    }


def test_whatever_may_be_confirmed_may_be_confirmed_again() -> None:
    confirmed = {pair for pair, reasons in TRANSITIONS.items() if Reason.CONFIRMED in reasons}
    reconfirmed = {pair for pair, reasons in TRANSITIONS.items() if Reason.RECONFIRMED in reasons}

    assert reconfirmed == confirmed


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[Status.EXPIRED, Status.CONFIRMED] = frozenset()  # type: ignore[index]  # that is the point


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({}, None, id="a native request"),
        pytest.param(TOKEN, None, id="a token request"),
        pytest.param({"token_standard": "", "token_contract": ""}, None, id="empty texts for native value"),
        pytest.param({"expected": None}, None, id="any amount"),
        pytest.param({"expected": 0}, None, id="nothing expected counts as any amount"),
        pytest.param({"expected": 2**256 - 1}, None, id="the largest amount there is"),
        pytest.param({"expected": -1}, RowError.AMOUNT_NEGATIVE, id="a negative amount"),
        pytest.param({"chain_id": None}, RowError.CHAIN_ID_MISMATCH, id="no chain id"),
        pytest.param({"chain_id": CHAIN_ID + 1}, RowError.CHAIN_ID_MISMATCH, id="another chain's id"),
        pytest.param({"token_standard": "ERC20"}, RowError.TOKEN_CONTRACT_MISSING, id="a token without contract"),
        pytest.param(
            {"token_standard": "ERC20", "token_contract": ""},
            RowError.TOKEN_CONTRACT_MISSING,
            id="a token whose contract is an empty text: native value must not pay it",
        ),
        pytest.param(
            {"token_contract": TOKEN["token_contract"]},
            RowError.TOKEN_CONTRACT_MISSING,
            id="a contract without a standard",
        ),
        pytest.param({"token_contract": ""}, RowError.TOKEN_CONTRACT_MISSING, id="half of it an empty text"),
        pytest.param({"token_standard": ""}, RowError.TOKEN_CONTRACT_MISSING, id="the other half an empty text"),
    ],
)
def test_rows_that_cannot_be_decided(changes: dict[str, Any], error: RowError | None) -> None:
    """Seen to fail with each comparison of PaymentRequest.error taken out, and with `is None` instead of emptiness."""
    assert request(**changes).error(chain_id=CHAIN_ID, shares_address=False) == error


def test_a_shared_address_is_an_error() -> None:
    """Seen to fail with that question taken out."""
    assert request().error(chain_id=CHAIN_ID, shares_address=True) == RowError.AMBIGUOUS_ADDRESS


def test_the_chain_id_is_the_first_thing_to_be_wrong() -> None:
    """Whether an address is shared, or an amount is odd, says nothing on a chain that is not the request's."""
    odd = request(expected=-1, chain_id=1, token_standard="ERC20")

    assert odd.error(chain_id=CHAIN_ID, shares_address=True) == RowError.CHAIN_ID_MISMATCH


def test_values_between_rooms_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        request().status = Status.CONFIRMED  # type: ignore[misc]  # that is the point


def test_a_network_prints_as_its_name() -> None:
    assert str(Network(ETHEREUM, "mainnet")) == "mainnet"
