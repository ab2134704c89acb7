"""The closing check: every single thing that is not as it must be is told, and makes the demo fail."""

import re
from dataclasses import replace

import pytest

from reconsup.demo import performance, summary
from reconsup.demo.acts import Outcome, Reorg
from reconsup.demo.books import Entry, Settled
from reconsup.demo.cast import ORDERS, Plot, the
from reconsup.demo.crash import Crash
from reconsup.demo.summary import Accounts, faults, lines

CRASH = Crash("demo-2", 4711, 5, True, ("demo-0", "demo-2"), 21.4, 38.0)
REASONS = {
    Plot.UNDERPAID: ["payment_underpaid_expired"],
    Plot.UNPAID: ["payment_expired"],
    Plot.LATE: ["payment_expired", "payment_late"],
    Plot.REORGED: ["payment_detected", "payment_confirmed", "payment_reorged", "payment_reconfirmed"],
}


def good() -> Accounts:
    """What the database says when all went well."""
    histories = [
        (order.id, reason)
        for order in ORDERS
        for reason in REASONS.get(order.plot, ["payment_detected", "payment_confirmed"])
    ]
    return Accounts(
        statuses={order.id: order.final_status for order in ORDERS},
        entries=[Entry(i, id_, "pending", "detected", reason, "demo-1") for i, (id_, reason) in enumerate(histories)],
        settlements={
            order.id: Settled(order.credited_minor, len(order.payments_minor), 0)
            for order in ORDERS
            if order.payments_minor
        }
        | {the(Plot.REORGED).id: Settled(the(Plot.REORGED).credited_minor, 1, 1)},
        scanned_height=23,
        reorg_proof=(18, "0x" + "a" * 64, "0x" + "b" * 64),
        leases_left=0,
        rpc_calls=260,
        blocks_read=26,
        outcome=Outcome(CRASH, Reorg(the(Plot.REORGED), 2)),
        drained=(0, 0.12),
        seconds=24.0,
    )


def test_nothing_is_wrong_when_all_is_well() -> None:
    assert faults(good()) == []


def without(id_: str, reason: str) -> list[Entry]:
    return [entry for entry in good().entries if (entry.request_id, entry.reason) != (id_, reason)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"statuses": good().statuses | {"order-05": "detected"}}, r"order-05 \(paid\) is detected, not confirmed"),
        ({"statuses": {}}, "order-01 .* is None"),
        ({"entries": without("order-07", "payment_confirmed")}, r"order-07 .* has the history payment_detected$"),
        ({"entries": [*good().entries, good().entries[1]]}, "order-01 .* payment_confirmed, payment_confirmed"),
        ({"entries": without("order-25", "payment_late")}, r"order-25 \(paid too late\) has the history"),
        ({"settlements": good().settlements | {"order-24": Settled(1, 1, 0)}}, "order-24 .* was paid 0.000 ETH"),
        ({"settlements": good().settlements | {"order-01": Settled(0, 0, 1)}}, "order-01 .* settlements of 0.000 ETH"),
        ({"reorg_proof": None}, "no proof of the reorg"),
        ({"leases_left": 3}, "3 leases are left behind"),
        ({"drained": (70, 1.0)}, "exit code 70 after SIGTERM"),
        ({"drained": None}, "did not leave within"),
        ({"outcome": replace(good().outcome, crash=replace(CRASH, takeover_ms=None))}, "nobody took over"),
        ({"outcome": replace(good().outcome, crash=replace(CRASH, ready_ms=None))}, "no new worker became ready"),
    ],
)
def test_whatever_is_not_as_it_must_be_is_told(changed: dict[str, object], words: str) -> None:
    """Seen to fail, case by case, without the condition in `faults` that the case is for."""
    found = faults(replace(good(), **changed))  # type: ignore[arg-type]  # each case names a field with its own type

    assert re.search(words, found[0])


def test_the_figures_are_the_databases() -> None:
    told = dict(lines(good()))

    assert told["requests"] == "25 confirmed, 3 expired"
    assert "25 payment_confirmed" in told["history"]
    assert told["confirmed"].startswith("payment_confirmed exactly once for 25 of 25 requests")
    assert told["settlements"] == "28 on chain, 1 taken back by the reorg"
    assert told["chain"] == "24 blocks (26 read, with those that the reorg replaced), 260 JSON-RPC calls"
    assert "its 5 leased requests were with others (demo-0, the new demo-2) after 21 ms" in told["crash"]
    assert told["drain"] == "SIGTERM → exit 0 in 120 ms, no lease left"


@pytest.mark.parametrize(("leases_left", "code"), [(0, 0), (1, 1)])
def test_the_exit_code_says_whether_something_was_wrong(
    leases_left: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert performance.close(replace(good(), leases_left=leases_left)) == code

    said = capsys.readouterr()
    assert ("Every request ended as it must" in said.out) is (code == 0)
    assert ("1 leases are left behind" in said.err) is (code == 1)
    assert summary.faults(good()) == []
