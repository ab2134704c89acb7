"""demo.anvil and demo.devchain: the local chain starts, obeys, and is gone afterwards, also when we are killed."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reconsup.demo import anvil as demo_anvil
from reconsup.demo.anvil import INSTALL, Anvil, AnvilError, find_anvil
from reconsup.demo.devchain import DevChain
from reconsup.demo.token import balance_of

pytestmark = pytest.mark.service


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def until(condition: Any, what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def test_it_starts_on_a_free_port_with_the_chain_id_asked_and_stops() -> None:
    with Anvil(chain_id=4242) as one, Anvil() as other:
        assert one.url != other.url
        assert (int(one.rpc("eth_chainId"), 16), int(other.rpc("eth_chainId"), 16)) == (4242, 31337)
        assert len(one.accounts) == 10
        pid = one.pid
        assert is_alive(pid)
    assert not is_alive(pid)
    one.stop()


def test_the_time_of_blocks_is_as_asked() -> None:
    def height(chain: Anvil) -> int:
        return int(chain.rpc("eth_blockNumber"), 16)

    with Anvil(block_seconds=0) as on_demand, Anvil(block_seconds=0.1) as steady:
        payment = {"from": on_demand.accounts[0], "to": on_demand.accounts[1], "value": "0x1"}
        on_demand.rpc("eth_sendTransaction", payment)
        until(lambda: height(steady) >= 3, "blocks come by themselves")
        assert height(on_demand) == 0
        on_demand.rpc("anvil_mine")
        assert height(on_demand) == 1


def test_it_dies_with_a_killed_parent() -> None:
    """Seen to fail without the parent-death signal: the chain went on, a child of init."""
    script = "from reconsup.demo.anvil import Anvil; import time; print(Anvil().pid, flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)

    parent.send_signal(signal.SIGKILL)
    parent.wait()

    try:
        until(lambda: not is_alive(pid), "anvil follows its parent")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_taken_port_is_said_so() -> None:
    with Anvil() as one:
        port = int(one.url.rpartition(":")[2])
        with pytest.raises(AnvilError, match=rf"^port {port} is taken: "):
            Anvil(port=port)


def test_without_anvil_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AnvilError) as caught:
        find_anvil()
    assert INSTALL in str(caught.value)


def test_it_is_found_in_node_modules_of_a_folder_above(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = find_anvil()
    package = real.parents[1].name
    binary = tmp_path / "node_modules/@foundry-rs" / package / "bin/anvil"
    binary.parent.mkdir(parents=True)
    binary.symlink_to(real)
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path / "a/b")

    assert find_anvil() == binary


def test_npms_starter_script_on_path_is_not_what_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = find_anvil()
    scope = tmp_path / "node_modules/@foundry-rs"
    binary = scope / real.parents[1].name / "bin/anvil"
    starter = scope / "anvil/bin.mjs"
    for path in (binary, starter):
        path.parent.mkdir(parents=True)
    binary.symlink_to(real)
    starter.write_text("#!/bin/false\n")
    starter.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/anvil").symlink_to(starter)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    assert find_anvil() == binary


def test_one_that_cannot_run_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "anvil"
    broken.write_text("#!/bin/sh\necho this machine is too old >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(demo_anvil, "find_anvil", lambda: broken)
    with pytest.raises(AnvilError, match=r"^anvil ended at its start: this machine is too old$"):
        Anvil()


def test_a_call_that_is_refused_and_one_that_nobody_answers() -> None:
    with Anvil() as chain:
        with pytest.raises(AnvilError, match="refuses eth_nonsense: "):
            chain.rpc("eth_nonsense")
        os.kill(chain.pid, signal.SIGKILL)
        with pytest.raises(AnvilError, match="does not answer eth_chainId"):
            chain.rpc("eth_chainId")


def test_people_pay_mine_and_go_back(anvil: Anvil) -> None:
    async def story() -> None:
        async with DevChain(anvil.url) as dev:
            before = await dev.snapshot()
            dollars = await dev.deploy_token(1_000)
            await dev.set_automine(False)
            await dev.send_token(dollars, dev.accounts[1], 400)
            start = await dev.block_time()
            await dev.set_next_block_time(start + 500)
            await dev.mine(2, seconds_apart=10)
            assert await dev.block_time() == start + 510
            held = await dev.call("eth_call", {"to": dollars, "data": balance_of(dev.accounts[1])}, "latest")
            assert int(held, 16) == 400
            height = await dev.height()
            await dev.reorg(2)
            assert await dev.height() == height
            held = await dev.call("eth_call", {"to": dollars, "data": balance_of(dev.accounts[1])}, "latest")
            assert int(held, 16) == 0
            await dev.revert(before)
            assert await dev.height() == 0

    asyncio.run(story())


def test_the_token_is_what_its_source_says(anvil: Anvil) -> None:
    async def ask(dev: DevChain, contract: str, selector: str) -> str:
        return str(await dev.call("eth_call", {"to": contract, "data": selector}, "latest"))

    async def story() -> None:
        async with DevChain(anvil.url) as dev:
            dollars = await dev.deploy_token(5 * 10**12)
            assert int(await ask(dev, dollars, "0x313ce567"), 16) == 6  # decimals()
            assert int(await ask(dev, dollars, "0x18160ddd"), 16) == 5 * 10**12  # totalSupply()
            assert b"dUSDT" in bytes.fromhex((await ask(dev, dollars, "0x95d89b41"))[2:])  # symbol()

    asyncio.run(story())
