"""What systemd is told: facts and moments in, messages out, over a real datagram socket and into a real one."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from reconsup.fleet.notify import MARGIN_SECONDS, RETRY_SECONDS, Facts, Notifier
from reconsup.fleet.state import Phase
from tests.support.notify_server import NotifyServer, fill

PROBING = Facts(Phase.PROBING, ready=0, wanted=2, deadline=1060.0)
BOOTING = replace(PROBING, phase=Phase.RUNNING)
READY = Facts(Phase.RUNNING, ready=2, wanted=2, is_healthy=True)
RELOADING = replace(READY, reloads=1, is_reloading=True, deadline=1100.0)
RELOADED = replace(READY, reloads=1)
DRAINING = Facts(Phase.DRAINING, ready=1, wanted=2, deadline=1030.0)
SICK = replace(READY, is_healthy=False)

UP = "STATUS=running: 2 of 2 workers ready"


class Ear:
    """A socket that is read by hand: what was sent is there when the sender returns."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(name)

    def heard(self) -> list[str]:
        """The messages since the last time."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@contextmanager
def listening(name: str) -> Iterator[Ear]:
    ear = Ear(name)
    try:
        yield ear
    finally:
        ear.close()


def conversation(folder: Path, steps: list[tuple[float, Facts]], **environment: str) -> list[list[str]]:
    """What is heard after each step (moment, facts)."""
    with listening(str(folder / "n")) as ear:
        notifier = Notifier({"NOTIFY_SOCKET": ear.name, **environment}, 42)
        heard = []
        for now, facts in steps:
            notifier.say_state(now, facts)
            heard.append(ear.heard())
        return heard


STORIES: dict[str, list[tuple[float, Facts, list[str]]]] = {
    "ready only when a worker is, and once": [
        (1000, replace(PROBING, deadline=None), ["STATUS=probing: 0 of 2 workers ready"]),
        (1002, replace(BOOTING, deadline=None), ["STATUS=running: 0 of 2 workers ready"]),
        (1002.1, replace(READY, ready=1), ["READY=1\nSTATUS=running: 1 of 2 workers ready"]),
        (1002.2, READY, []),
        (1003.1, READY, [UP]),
        (1009, READY, []),
        (1010, replace(READY, ready=0), ["STATUS=running: 0 of 2 workers ready"]),
        (1012, READY, [UP]),
    ],
    "the status goes out when it changes, at most once a second": [
        (1000, READY, [f"READY=1\n{UP}"]),
        (1000.3, replace(READY, figures="1 restart"), []),
        (1000.6, replace(READY, figures="2 restarts"), []),
        (1001, replace(READY, figures="3 restarts"), [f"{UP}; 3 restarts"]),
        (1005, replace(READY, figures="3 restarts"), []),
    ],
    "a reload is told with its moment, and its end": [
        (1000, READY, [f"READY=1\n{UP}"]),
        (
            1000.123456,
            replace(RELOADING, deadline=None),
            [f"RELOADING=1\nMONOTONIC_USEC=1000123456\n{UP}"],
        ),
        (1001, replace(RELOADING, deadline=None), []),
        (1002, replace(RELOADED, figures="new settings"), [f"READY=1\n{UP}; new settings"]),
        (1003, replace(RELOADED, figures="new settings"), []),
    ],
    "a reload that is refused within one turn is told nevertheless, and why": [
        (1000, READY, [f"READY=1\n{UP}"]),
        (
            1002,
            replace(RELOADED, figures="reload refused"),
            [f"RELOADING=1\nMONOTONIC_USEC=1002000000\n{UP}; reload refused", f"READY=1\n{UP}; reload refused"],
        ),
        (1003, replace(RELOADED, figures="reload refused"), []),
    ],
    "a reload that begins while another runs is told anew": [
        (1000, READY, [f"READY=1\n{UP}"]),
        (1001, replace(RELOADING, deadline=None), [f"RELOADING=1\nMONOTONIC_USEC=1001000000\n{UP}"]),
        (1002, replace(RELOADING, reloads=2, deadline=None), [f"RELOADING=1\nMONOTONIC_USEC=1002000000\n{UP}"]),
        (1003, replace(RELOADED, reloads=2), [f"READY=1\n{UP}"]),
    ],
    "a reload before anybody is ready is a part of the start": [
        (1000, replace(BOOTING, reloads=1, is_reloading=True, deadline=None), ["STATUS=running: 0 of 2 workers ready"]),
        (1002, RELOADED, [f"READY=1\n{UP}"]),
        (1003, RELOADED, []),
    ],
    "stopping is told once, when the drain begins, also in the midst of a reload": [
        (1000, READY, [f"READY=1\n{UP}"]),
        (1001, replace(RELOADING, deadline=None), [f"RELOADING=1\nMONOTONIC_USEC=1001000000\n{UP}"]),
        (
            1002,
            replace(DRAINING, reloads=1, is_reloading=True, deadline=None),
            ["STOPPING=1\nSTATUS=draining: 1 of 2 workers ready"],
        ),
        (1003, replace(DRAINING, ready=0, reloads=2, deadline=None), ["STATUS=draining: 0 of 2 workers ready"]),
        (1004.5, Facts(Phase.DONE, 0, 2), ["STATUS=done: 0 of 2 workers ready"]),
    ],
    "who is told to stop while it starts never says ready": [
        (1000, DRAINING, ["STOPPING=1\nSTATUS=draining: 1 of 2 workers ready", "EXTEND_TIMEOUT_USEC=5000000"]),
        (1000.5, DRAINING, []),
    ],
    "the start asks for more time, every second, never beyond its deadline and a margin": [
        (1000, PROBING, ["STATUS=probing: 0 of 2 workers ready\nEXTEND_TIMEOUT_USEC=5000000"]),
        (1000.9, PROBING, []),
        (1001, PROBING, ["EXTEND_TIMEOUT_USEC=5000000"]),
        (1002, BOOTING, ["STATUS=running: 0 of 2 workers ready\nEXTEND_TIMEOUT_USEC=5000000"]),
        (1059, BOOTING, ["EXTEND_TIMEOUT_USEC=3000000"]),
        (1061.5, BOOTING, ["EXTEND_TIMEOUT_USEC=500000"]),
        (1062.5, BOOTING, []),
        (1063, READY, [f"READY=1\n{UP}"]),
        (1064, replace(READY, deadline=1100.0), []),
    ],
    "a drain and a roll-over ask for more time while they are in time": [
        (1000, READY, [f"READY=1\n{UP}"]),
        (
            1001,
            RELOADING,
            [f"RELOADING=1\nMONOTONIC_USEC=1001000000\n{UP}", "EXTEND_TIMEOUT_USEC=5000000"],
        ),
        (1101, RELOADING, ["EXTEND_TIMEOUT_USEC=1000000"]),
        (1103, RELOADING, []),
        (
            1104,
            replace(DRAINING, deadline=1110.0),
            ["STOPPING=1\nSTATUS=draining: 1 of 2 workers ready", "EXTEND_TIMEOUT_USEC=5000000"],
        ),
        (1111, replace(DRAINING, deadline=1110.0), ["EXTEND_TIMEOUT_USEC=1000000"]),
        (1113, replace(DRAINING, deadline=1110.0), []),
    ],
}


@pytest.mark.parametrize("story", STORIES)
def test_what_systemd_hears(tmp_path: Path, story: str) -> None:
    """Seen to fail with each condition of `_turns`, each limit of `_due` and the margin taken out, one by one."""
    steps = STORIES[story]

    assert conversation(tmp_path, [(now, facts) for now, facts, _ in steps]) == [heard for *_, heard in steps]


def pings(folder: Path, steps: list[tuple[float, Facts]], **environment: str) -> list[float]:
    """The moments at which the watchdog was told that we live."""
    heard = conversation(folder, steps, **environment)
    return [now for (now, _), messages in zip(steps, heard, strict=True) if "WATCHDOG=1" in "\n".join(messages)]


def test_the_watchdog_hears_of_us_thrice_in_its_period_and_only_while_somebody_is_well(tmp_path: Path) -> None:
    """Seen to fail with `_is_alive` taken out."""
    steps = [(1000 + tick / 4, SICK if 20 <= tick < 60 else READY) for tick in range(120)]

    told = pings(tmp_path, steps, WATCHDOG_USEC="3000000")

    assert told == [float(at) for at in (*range(1000, 1005), *range(1015, 1030))]


@pytest.mark.parametrize(
    ("facts", "last"),
    [
        (PROBING, 1060 + MARGIN_SECONDS),
        (BOOTING, 1060 + MARGIN_SECONDS),
        (DRAINING, 1030 + MARGIN_SECONDS),
        (replace(PROBING, deadline=None), 0),
        (RELOADING, 2000),
        (replace(RELOADING, is_healthy=False), 0),
    ],
)
def test_a_fleet_that_waits_lives_until_its_deadline(tmp_path: Path, facts: Facts, last: float) -> None:
    """Seen to fail without the waiting, and without its end."""
    told = pings(tmp_path, [(float(at), facts) for at in range(1000, 1200)], WATCHDOG_USEC="3000000")

    assert [at for at in told if at >= last] == []
    assert len(told) == max(min(int(last), 1200) - 1000, 0)


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "42"}, 1.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": ""}, None),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "None"}, None),
        ({"WATCHDOG_USEC": "1"}, 0.05),
        *(
            ({"WATCHDOG_USEC": text}, None)
            for text in ("", "0", "-1", "1e6", " 3000000", "٣٠٠٠٠٠٠", "x", "18446744073709551615", "9" * 99)
        ),
        ({}, None),
    ],
)
def test_the_watchdog_is_ours_or_nobodys(tmp_path: Path, environment: dict[str, str], seconds: float | None) -> None:
    with listening(str(tmp_path / "n")) as ear:
        notifier = Notifier({"NOTIFY_SOCKET": ear.name, **environment}, 42)
        notifier.say_state(1000, READY)

        heard = ear.heard()
        assert [each for each in heard if "WATCHDOG" in each] == ([] if seconds is None else ["WATCHDOG=1"])
        assert notifier.next_at(1000) == (None if seconds is None else 1000 + seconds)


@pytest.mark.parametrize(
    ("facts", "now", "due"),
    [
        (READY, 1000.0, 1001.0),  # the watchdog
        (SICK, 1000.5, 1001.5),  # to be asked again
        (replace(READY, figures="new"), 1000.1, 1001.0),  # the status that had to wait
        (replace(DRAINING, ready=2), 1000.0, 1001.0),
    ],
)
def test_it_says_when_it_wants_to_be_called_next(tmp_path: Path, facts: Facts, now: float, due: float) -> None:
    with listening(str(tmp_path / "n")) as ear:
        notifier = Notifier({"NOTIFY_SOCKET": ear.name, "WATCHDOG_USEC": "3000000"}, 42)
        assert notifier.next_at(999.0) == 999.0
        notifier.say_state(1000, READY)
        notifier.say_state(now, facts)
        ear.heard()

        assert notifier.next_at(now) == due


def test_a_loop_that_comes_only_when_asked_misses_nothing_and_does_not_spin(tmp_path: Path) -> None:
    """Whatever the facts: the next moment lies ahead, and there something is said (or asked again)."""
    with listening(str(tmp_path / "n")) as ear:
        notifier, now, turns = Notifier({"NOTIFY_SOCKET": ear.name, "WATCHDOG_USEC": "3000000"}, 42), 1000.0, 0
        while now < 1100:
            facts = PROBING if now < 1010 else SICK if now < 1020 else READY if now < 1050 else DRAINING
            notifier.say_state(now, facts)
            ear.heard()
            turns += 1
            due = notifier.next_at(now)
            assert due is not None
            assert due > now
            now = due

        assert turns <= 210


@pytest.mark.parametrize(
    ("figures", "status"),
    [
        ("3 Zahlungen für Zoë, 你好", "running: 2 of 2 workers ready; 3 Zahlungen für Zoë, 你好"),
        ("a\nREADY=1\r\0\x1b[2J\u202eb", "running: 2 of 2 workers ready; a READY=1   [2J b"),
        ("half \ud800", "running: 2 of 2 workers ready; half  "),
    ],
)
def test_the_status_is_one_line_of_utf8(tmp_path: Path, figures: str, status: str) -> None:
    """Seen to fail without the filter: the second line would have been an assignment."""
    ((heard,),) = conversation(tmp_path, [(1000.0, replace(READY, figures=figures))])

    assert heard == f"READY=1\nSTATUS={status}"


def test_a_long_status_is_cut_between_letters(tmp_path: Path) -> None:
    ((heard,),) = conversation(tmp_path, [(1000.0, replace(READY, figures="ü" * 9000))])

    assert 1000 < len(heard.encode()) < 1100
    assert heard.endswith("ü")


def test_an_abstract_socket_is_spoken_to() -> None:
    name = f"reconsup-test-{os.getpid()}"
    with listening(f"\0{name}") as ear:
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"}, 42)
        notifier.say_state(1000, READY)

        assert ear.heard() == [f"READY=1\n{UP}"]


@pytest.mark.parametrize(
    "address", ["", "@", "/", "vsock:2:1234", "relative", "/nobody/there", "/" + "x" * 200, "@" + "x" * 200]
)
def test_who_does_not_listen_is_no_matter(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"}, 42)
    for now in range(1000, 1100):
        notifier.say_state(now, READY)

    assert notifier.next_at(1099) == (1099 + RETRY_SECONDS if len(address) > 1 and address[0] in "/@" else None)


def test_without_a_socket_nothing_is_ever_due() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "3000000"}, 42)

    assert notifier.next_at(1000) is None
    notifier.say_state(1000, DRAINING)
    assert notifier.next_at(1000) is None


def test_a_manager_that_does_not_read_blocks_nobody_and_hears_it_when_it_does(tmp_path: Path) -> None:
    """Seen to fail (a READY that never came) when what could not be sent counted as said."""
    with listening(str(tmp_path / "n")) as ear:
        assert fill(ear.name) > 0
        notifier = Notifier({"NOTIFY_SOCKET": ear.name, "WATCHDOG_USEC": "3000000"}, 42)
        started_at = time.monotonic()
        notifier.say_state(1000, PROBING)
        notifier.say_state(1001, READY)
        notifier.say_state(1002, RELOADING)
        assert time.monotonic() - started_at < 1
        assert notifier.next_at(1002) == 1002 + RETRY_SECONDS
        assert set(ear.heard()) == {"FILLING=1"}
        notifier.say_state(1002.1, RELOADED)  # too soon to try again
        assert ear.heard() == []
        notifier.say_state(1002.5, RELOADED)

        assert ear.heard() == [f"READY=1\n{UP}", "WATCHDOG=1"]


def test_a_manager_that_begins_to_listen_anew_hears_what_it_missed(tmp_path: Path) -> None:
    name = str(tmp_path / "n")
    with listening(name) as ear:
        notifier = Notifier({"NOTIFY_SOCKET": name}, 42)
        notifier.say_state(1000, READY)
        assert len(ear.heard()) == 1
    os.unlink(name)
    notifier.say_state(1002, replace(RELOADING, deadline=None))
    with listening(name) as ear:
        notifier.say_state(1003, RELOADED)

        assert ear.heard() == [f"RELOADING=1\nMONOTONIC_USEC=1003000000\n{UP}", f"READY=1\n{UP}"]


def test_a_real_manager_hears_a_life_in_order_and_in_time() -> None:
    """A driver's loop in real time: it sleeps until the moment it was told, as the supervisor does."""
    with NotifyServer(watchdog_seconds=0.3) as manager:
        notifier = Notifier(manager.environment, os.getpid())
        started_at = time.monotonic()
        life = [(0.1, PROBING), (0.6, READY), (0.8, RELOADING), (1.0, RELOADED), (1.2, DRAINING)]
        while (now := time.monotonic()) < started_at + life[-1][0]:
            age = now - started_at
            facts = next(facts for until, facts in life if age < until)
            notifier.say_state(now, replace(facts, deadline=started_at + 2))
            due = notifier.next_at(time.monotonic())
            assert due is not None
            next_turn = min(due, started_at + next(until for until, _ in life if age < until))
            time.sleep(max(next_turn - time.monotonic(), 0))
        manager.until("the last of it", lambda: manager.told("STOPPING") != [])

        assert manager.words("READY", "RELOADING", "STOPPING") == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]
        (reload,) = manager.told("RELOADING")
        assert 0 <= reload.at - int(reload.fields["MONOTONIC_USEC"]) / 1e6 < 0.2
        told = [each.at for each in manager.told("WATCHDOG")]
        assert max(later - earlier for earlier, later in pairwise(told)) < 0.3
        assert {each.pid for each in manager.messages()} == {os.getpid()}
        assert all(
            0 < int(each.fields["EXTEND_TIMEOUT_USEC"]) <= 5_000_000 for each in manager.told("EXTEND_TIMEOUT_USEC")
        )


@pytest.mark.parametrize("is_abstract", [False, True])
def test_the_server_of_the_tests_hears_by_file_and_by_name(*, is_abstract: bool) -> None:
    with NotifyServer(is_abstract=is_abstract) as manager:
        Notifier(manager.environment, 42).say_state(1000, READY)

        assert manager.wait("READY", "1")[0].text == f"READY=1\n{UP}"
    manager.close()
