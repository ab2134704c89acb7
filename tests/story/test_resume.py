"""A network that stopped itself is started again by the command, while workers run; another one never noticed."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from reconsup.demo.anvil import Anvil
from tests.support import launcher
from tests.support.deep import final_chain
from tests.support.postgres import Database, insert_request
from tests.support.program import Program, wait_for

pytestmark = [pytest.mark.service, pytest.mark.story]


def reconsup(database: Database, urls: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"DATABASE_URL": database.url, "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": json.dumps(urls)}
    return launcher.chosen().run(*arguments, environment={**os.environ, **environment})


@pytest.mark.parametrize(
    "arguments",
    [["chain"], ["chain", "local"], ["chain", "local", "stop"], ["chain", "local", "resume", "--from", "-1"]],
)
def test_a_wrong_command_line_is_said(database: Database, arguments: Sequence[str]) -> None:
    answer = reconsup(database, {"local": "http://127.0.0.1:1"}, *arguments)
    assert (answer.returncode, answer.stdout) == (64, "")
    assert "usage: reconsup chain" in answer.stderr


def pay(anvil: Anvil, database: Database, id_: str) -> None:
    ((address,),) = database.fetch("SELECT address_canonical FROM app.payment_requests WHERE id = %s", [id_])
    sender = anvil.rpc("eth_accounts")[0]
    anvil.rpc("eth_sendTransaction", {"from": sender, "to": address.lower(), "value": hex(10**18)})
    anvil.rpc("anvil_mine", "0x6")


def status(database: Database, id_: str) -> str:
    return str(database.fetch("SELECT status FROM app.payment_requests WHERE id = %s", [id_])[0][0])


def test_the_command_starts_a_network_while_workers_run_and_another_one_never_stopped(
    database: Database, anvil: Anvil, tmp_path: Path
) -> None:
    """As an operator sees it: the metric, `check`, the command, and the payment that the new chain does not hold."""
    with final_chain() as deep:
        for chain in (deep, anvil):
            chain.rpc("evm_setAutomine", False)
            chain.rpc("anvil_mine", "0x5")
        urls = {"local": deep.url, "other": anvil.url}
        with database.connect() as connection:
            times = {"expected_amount_minor": 10**18}
            gone, elsewhere, later = (
                insert_request(connection, network=network, **times) for network in ("local", "other", "other")
            )
        with Program(database.url, urls, folder=tmp_path, workers=2) as program:
            program.wait_ready()
            pay(deep, database, gone)
            pay(anvil, database, elsewhere)
            wait_for("both are confirmed", lambda: {status(database, i) for i in (gone, elsewhere)} == {"confirmed"})
            deep.rpc("anvil_reorg", 7, [])
            wait_for("it stops", lambda: program.metric("reconsup_chain_stopped") == 1)
            pay(anvil, database, later)
            wait_for("the other goes on", lambda: status(database, later) == "confirmed")
            assert status(database, gone) == "confirmed"
            checked = reconsup(database, urls, "check")
            assert checked.returncode == 76
            assert "reconsup chain local resume" in checked.stdout
            answer = reconsup(database, urls, "chain", "local", "resume")
            assert (answer.returncode, answer.stderr) == (0, "")
            assert "network local goes on above block" in answer.stdout
            wait_for("its payment is taken back", lambda: status(database, gone) == "reorged")
            wait_for("it runs", lambda: program.metric("reconsup_chain_stopped") == 0)
            again = reconsup(database, urls, "chain", "local", "resume")
            assert (again.returncode, "is not stopped" in again.stdout) == (0, True)
            assert program.stop() == 0
        events = database.fetch("SELECT network, event FROM app.chain_events ORDER BY id")
        assert events == [("local", "stopped"), ("local", "resumed")]
