"""Money that leaves no log, with real processes: found by whoever holds the scan, also after a kill."""

import os
import signal

import pytest

from tests.story.conftest import WEI, Town
from tests.support import hidden
from tests.support.program import Program, wait_for

pytestmark = [pytest.mark.service, pytest.mark.story]


def test_what_a_contract_sends_on_is_confirmed_and_what_nobody_paid_expires_whoever_is_killed(town: Town) -> None:
    """Its expiry waits for the audit, and happens; the killed worker's successor goes on with the audit."""
    for address, code in hidden.CODES.items():
        town.anvil.rpc("anvil_setCode", address, "0x" + code)
    town.mine(1)  # else they are in a state whose root they are not in
    paid = [town.requests(1)[0] for _ in range(2)]
    unpaid = town.requests(1)[0]
    settings = {"RECONSUP_AUDIT_BLOCKS": "1", "RECONSUP_EXPIRY_CONFIRMATIONS": "2"}
    with Program(town.database.url, town.rpc_urls, folder=town.folder, workers=1, **settings) as program:
        program.wait_ready()
        town.anvil.rpc("evm_setIntervalMining", 1)
        for round_, id_ in enumerate(paid):
            ((address,),) = town.database.fetch(
                "SELECT address_canonical FROM app.payment_requests WHERE id = %s", [id_]
            )
            data = {"to": hidden.WALLET, "data": address.lower(), "value": hex(WEI), "gas": hex(10**6)}
            town.anvil.rpc("eth_sendTransaction", {"from": town.anvil.accounts[0]} | data)
            wait_for("it is confirmed", lambda round_=round_: town.statuses().get("confirmed") == round_ + 1, 30)
            os.kill(program.pids()[0], signal.SIGKILL)
        refs = town.database.fetch("SELECT evidence_ref FROM app.payment_request_settlements")
        assert [ref.partition(":")[2] for (ref,) in refs] == ["trace:0.0"] * 2
        town.database.execute("UPDATE app.payment_requests SET expires_at = now() WHERE id = %s", [unpaid])
        wait_for("the other expires", lambda: town.statuses() == {"confirmed": 2, "expired": 1}, 30)
        wait_for("it is counted", lambda: program.metric("reconsup_audit_settlements_total") >= 1)
        assert program.stop() == 0
