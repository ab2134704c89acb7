"""Everything is killed, stopped, cut off and restarted under load; no status is wrong, nothing is written twice."""

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconsup.demo.anvil import Anvil
from tests.story.conftest import Town, deploy
from tests.support.load import Stream, backends, kill, settle
from tests.support.phoenix import Phoenix, phoenix
from tests.support.program import Program, wait_for
from tests.support.silent_road import Road, road_to

pytestmark = [pytest.mark.service, pytest.mark.story, pytest.mark.direct]

LEASE_SECONDS = 2.0
SHORT = {"PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS": "2", "RECONSUP_RPC_TIMEOUT_SECONDS": "0.5"}
# The client gives up at two thirds of a lease; the lease ends; then there are tries, and a busy machine.
BOUND_SECONDS = 20.0


def program_for(town: Town, url: str = "", *, worker_id: str = "test", workers: int = 2, **environment: str) -> Program:
    return Program(
        url or town.database.direct_url,
        town.rpc_urls,
        folder=town.folder,
        worker_id=worker_id,
        workers=workers,
        **{**SHORT, **environment},
    )


# processes


def test_kill_9_of_workers_again_and_again_under_load(town: Town) -> None:
    """Each slot dies twice, whatever it is doing."""
    with program_for(town, workers=3) as program, Stream(town) as stream:
        program.wait_ready()
        for death in range(6):
            slot = death % 3
            pid = wait_for("the slot is taken", lambda at=slot: program.pids().get(at))
            stream.wait_for_more(2)
            kill(pid, signal.SIGKILL)
            wait_for("it is taken again", lambda at=slot, old=pid: program.pids().get(at, old) != old)
        stream.wait_until_confirmed(5)
        settle(town, stream, program)


def test_kill_9_of_a_whole_host_under_load(town: Town) -> None:
    """Supervisor, workers and monitor of one of two hosts: nobody is left to give anything back."""
    with (
        program_for(town, worker_id="host-a") as doomed,
        program_for(town, worker_id="host-b") as program,
        Stream(town) as stream,
    ):
        doomed.wait_ready()
        program.wait_ready()
        stream.wait_for_more(10)
        pids = [doomed.process.pid, *doomed.pids().values()]
        children = Path(f"/proc/{doomed.process.pid}/task/{doomed.process.pid}/children").read_text().split()
        for pid in {*pids, *map(int, children)}:
            kill(pid, signal.SIGKILL)
        doomed.process.wait()
        stream.wait_until_confirmed(10)
        settle(town, stream, program)


# the database


def test_all_connections_are_ended_again_and_again_under_load(town: Town) -> None:
    with program_for(town) as program, Stream(town) as stream:
        program.wait_ready()
        for _ in range(4):
            stream.wait_for_more(2)
            pids = wait_for("workers and monitor are connected", lambda: all_backends(town))
            town.database.fetch("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])
        stream.wait_until_confirmed(5, BOUND_SECONDS)
        settle(town, stream, program)


def all_backends(town: Town) -> list[int] | None:
    """All that the program has when nothing is wrong: two for each of two workers, one for the monitor's look."""
    pids = [pid for each in backends(town).values() for pid in each]
    return pids if len(pids) >= 5 else None


@pytest.fixture
def phoenix_town(tmp_path: Path) -> Iterator[tuple[Phoenix, Town]]:
    with phoenix(tmp_path / "pg") as server, Anvil(block_seconds=0) as anvil:
        yield server, Town(server.database, anvil, asyncio.run(deploy(anvil)), tmp_path)


@pytest.mark.parametrize(
    ("how", "times"),
    [("immediate", 1), *(pytest.param(how, 6, marks=pytest.mark.long) for how in ("immediate", "fast"))],
)
def test_postgresql_is_restarted_under_load(phoenix_town: tuple[Phoenix, Town], how: str, times: int) -> None:
    server, town = phoenix_town
    with program_for(town) as program, Stream(town) as stream:
        program.wait_ready()
        for _ in range(times):
            stream.wait_for_more(5)
            server.fall(immediate=how == "immediate")
            server.rise()
            stream.wait_until_confirmed(5, BOUND_SECONDS)
        settle(town, stream, program)


# the way to the database


@pytest.fixture
def road(town: Town) -> Iterator[Road]:
    with road_to(town.database.direct_url) as running:
        yield running


@pytest.mark.long
def test_connections_that_say_nothing_any_more_are_given_up_and_made_again(town: Town, road: Road) -> None:
    """As when a firewall forgets them: nobody hangs up. New ones work."""
    with program_for(town, road.url(town.database.direct_url)) as program, Stream(town) as stream:
        program.wait_ready()
        stream.wait_until_confirmed(3)
        assert road.silence() >= 4
        began = time.monotonic()
        stream.wait_until_confirmed(10, BOUND_SECONDS)
        print(f"10 more confirmed {time.monotonic() - began:.1f} s after the silence began, lease {LEASE_SECONDS} s")
        settle(town, stream, program)


@pytest.mark.long
def test_a_way_that_is_dead_for_a_while_is_waited_for(town: Town, road: Road) -> None:
    """New connections are silent too, for five leases."""
    with program_for(town, road.url(town.database.direct_url)) as program, Stream(town) as stream:
        program.wait_ready()
        for _ in range(3):
            stream.wait_until_confirmed(3, 2 * BOUND_SECONDS)
            road.set_dead(True)
            wait_for("it is told", lambda: program.get("/readyz")[0] == 503, BOUND_SECONDS)
            time.sleep(5 * LEASE_SECONDS)  # the outage itself
            road.set_dead(False)
        stream.wait_until_confirmed(10, 2 * BOUND_SECONDS)
        settle(town, stream, program)


@pytest.mark.parametrize(
    ("is_delivered", "times"),
    [(True, 1), *(pytest.param(is_delivered, 6, marks=pytest.mark.long) for is_delivered in (True, False))],
)
def test_a_connection_goes_silent_in_the_middle_of_a_commit(
    town: Town, road: Road, is_delivered: bool, times: int
) -> None:
    """Was it committed? The client cannot know; it asks the database, and nothing is written twice or lost."""
    with program_for(town, road.url(town.database.direct_url)) as program, Stream(town) as stream:
        program.wait_ready()
        for _ in range(times):
            stream.wait_until_confirmed(3, BOUND_SECONDS)
            road.trap(b"COMMIT\0", is_delivered=is_delivered)
            assert road.trapped.wait(BOUND_SECONDS)
        stream.wait_until_confirmed(5, BOUND_SECONDS)
        settle(town, stream, program)
