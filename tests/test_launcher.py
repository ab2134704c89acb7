"""The ways to start the program are what they say, and a service manager that is told nonsense complains."""

import os
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support import launcher
from tests.support.notified import WATCHDOG_SECONDS, Message, complaints

MAIN = 77
READY_AT = 1_000_000_000.5
WORKER_READY = {"event": "process_ready", "worker_id": "test-0", "timestamp": "2001-09-09T01:46:40.000000Z"}
MONITOR_READY = WORKER_READY | {"worker_id": "test-monitor"}


def heard(*said: tuple[float, str], pid: int = MAIN) -> list[Message]:
    """Messages of one assignment each, so many seconds after READY_AT."""
    return [Message(READY_AT + after, pid, {text.partition("=")[0]: text.partition("=")[2]}) for after, text in said]


GOOD = heard((0, "READY=1"), (2, "WATCHDOG=1"), (4, "WATCHDOG=1"), (5, "STOPPING=1"))


@pytest.mark.parametrize(
    ("messages", "log", "complaint"),
    [
        (GOOD, [WORKER_READY], None),
        (GOOD, [], "READY before a worker was ready"),
        (GOOD, [MONITOR_READY], "READY before a worker was ready"),
        (GOOD, [WORKER_READY | {"timestamp": "2001-09-09T01:46:41Z"}], "READY before a worker was ready"),
        (GOOD[:-1], [WORKER_READY], "STOPPING 0 times"),
        ([*GOOD, *heard((6, "READY=1"))], [WORKER_READY], "READY after STOPPING"),
        ([*GOOD, *heard((6, "STATUS=x"), pid=78)], [WORKER_READY], "told by another process: {'STATUS': 'x'}"),
        ([GOOD[0], GOOD[-1]], [WORKER_READY], f"no WATCHDOG for 5.0 s, at most {WATCHDOG_SECONDS:g} s are granted"),
        ([*GOOD[:2], *heard((9, "STOPPING=1"))], [WORKER_READY], "no WATCHDOG for 7.0 s, at most 4 s are granted"),
    ],
)
def test_a_service_manager_complains_of_what_it_was_told(
    messages: list[Message], log: Sequence[dict[str, Any]], complaint: str | None
) -> None:
    assert complaints(messages, log, main_pid=MAIN, is_drained=True) == ([complaint] if complaint else [])


def test_who_never_was_ready_owes_a_service_manager_nothing() -> None:
    assert complaints([], [], main_pid=MAIN, is_drained=False) == []


def test_a_test_that_plants_code_does_not_pass_for_one_of_the_binary() -> None:
    packed = launcher.Launcher("binary", ("/nowhere/reconsup",), None)
    with pytest.raises(AssertionError, match="mark it `planted`"):
        packed.words("print()")
    with pytest.raises(AssertionError, match="mark it `planted`"):
        packed.run("--version", environment={**os.environ, "PYTHONPATH": "/somewhere"})


def test_a_launcher_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AssertionError, match="one of source, wheel, binary, shiv, then"):
        launcher.named("source+pid2")


@pytest.mark.parametrize("name", ["source", "pid1"])
def test_a_command_ends_with_its_own_code(name: str) -> None:
    done = launcher.named(name).run("fly", environment=os.environ)
    assert (done.returncode, done.stdout) == (64, "")
    assert "usage: reconsup" in done.stderr
