"""What an operator sees. The golden pages were read by a person, line by line; `python -m tests.shown.test_pictures`
writes them again.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from reconsup.shown import everyone, host
from reconsup.shown.lines import Line, Style, text
from tests.shown import told

GOLDEN = Path(__file__).parent / "golden"
PAGES: Mapping[str, tuple[Callable[..., list[Line]], Any]] = {
    "host": (host.picture, told.host()),
    "sick-host": (host.picture, told.SICK),
    "old-host": (host.picture, told.OLD),
    "everyone": (everyone.picture, told.EVERYONE),
}
WIDTHS = (80, 132)
CROWD = told.host(*[told.worker(n, **({"state": "backoff"} if n in (40, 50) else {})) for n in range(64)])


def page(name: str, width: int, height: int | None = None, *, is_colored: bool = False) -> str:
    picture, what = PAGES[name]
    return "".join(text(line, is_colored=is_colored) + "\n" for line in picture(what, width, height))


def words(lines: list[Line]) -> list[str]:
    return [text(line, is_colored=False) for line in lines]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_the_golden_one(name: str, width: int) -> None:
    assert page(name, width) == (GOLDEN / f"{name}-{width}.txt").read_text()


@pytest.mark.parametrize("name", PAGES)
def test_no_line_is_wider_than_the_terminal_and_none_is_lost(name: str) -> None:
    """Seen to fail where a line is not cut, and where a table keeps a column that does not fit."""
    count = page(name, 200).count("\n")
    for width in range(8, 200):
        lines = page(name, width).splitlines()
        assert max(map(len, lines)) <= width, (name, width)
        assert len(lines) == count


@pytest.mark.parametrize("name", PAGES)
def test_colours_only_repeat_what_the_words_say(name: str) -> None:
    colored = page(name, 80, is_colored=True)

    assert "\x1b[" in colored
    plain = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert [line.rstrip() for line in plain.splitlines()] == page(name, 80).splitlines()


def test_a_low_terminal_leaves_out_healthy_workers_and_says_so() -> None:
    """Seen to fail when the first workers are shown and not those in trouble."""
    lines = words(host.picture(CROWD, 80, 24))

    assert len(lines) <= 24
    slots = [int(line.split()[0]) for line in lines if re.match(r" +\d+  pay-1", line)]
    assert slots == [*range(11), 40, 50]
    assert "… and 51 ready" in lines
    assert any(line.startswith("mainnet") for line in lines)


def test_the_last_crash_is_one_line() -> None:
    crashed = told.host(crashes=told.CRASHES)

    lines = words(host.picture(crashed, 80))

    assert "last crash  pay-1-2 crash (exit code 70)  3 min ago  at request pr_00000042" in lines
    assert [line for line in words(host.picture(told.host(crashes=[]), 80)) if "crash" in line] == []


@pytest.mark.parametrize("height", range(1, 40))
def test_no_terminal_is_too_low(height: int) -> None:
    for picture, what in (*PAGES.values(), (host.picture, CROWD)):
        assert len(picture(what, 80, height)) <= height


def test_what_is_wrong_stands_at_the_top_the_worst_first() -> None:
    styles = [line[0].style for line in host.problems(told.SICK)]

    assert styles == sorted(styles, key=lambda style: style is Style.WARN)
    assert host.problems(told.host()) == []
    (line,) = host.problems(told.host(supervisor={"problem": "database: connection refused"}))
    assert text(line, is_colored=False) == "! not ready: database: connection refused"


@pytest.mark.parametrize(
    ("beat", "state", "watchdog", "is_told"),
    [(29.0, "ready", 60.0, False), (31.0, "ready", 60.0, True), (31.0, "ready", 600.0, False), (3.0, "ready", 4, True),
     (31.0, "booting", 60.0, False), (31.0, "ready", None, True)],
)  # fmt: skip
def test_silence_is_told_from_half_of_the_watchdogs_time_on(
    beat: float, state: str, watchdog: float | None, is_told: bool
) -> None:
    worker = told.worker(0, beat_seconds_ago=beat, state=state)
    found = host.problems(told.host(worker, supervisor={"watchdog_seconds": watchdog}))

    assert bool(found) is is_told


@pytest.mark.parametrize("reload", ["refused", "failed", "stalled"])
def test_new_settings_that_are_not_in_force_are_told(reload: str) -> None:
    assert words(host.problems(told.host(supervisor={"reload": reload})))[0].startswith("! new settings: ")
    assert host.problems(told.host(supervisor={"reload": "done"})) == []
    assert "takes new settings" in words(host.picture(told.host(supervisor={"reload": "begun"}), 80))[0]


def test_seats_where_nobody_is_wanted_are_not_shown() -> None:
    empty = [told.worker(slot, state="empty", pid=None) for slot in (1, 2)]
    shown = words(host.picture(told.host(told.worker(0), *empty, supervisor={"workers_wanted": 2}), 80))

    assert [line.split()[2] for line in shown if re.match(r" +\d  pay-1", line)] == ["ready", "empty"]


def test_a_network_without_a_block_is_no_alarm_while_nothing_is_known() -> None:
    unknown = {"mainnet": told.network(**dict.fromkeys(told.network()))}

    assert words(host.problems(told.host(networks=unknown))) == ["! network mainnet: none of its blocks was read yet"]
    nothing = dict.fromkeys(told.host()["backlog"])
    assert host.problems(told.host(networks=unknown, backlog=nothing)) == []


def test_nobody_can_give_orders_to_the_terminal() -> None:
    """A network's stop reason and a host's name come from elsewhere. Seen to fail when they are written as they are."""
    evil = told.host(networks={"\x1b[2Jx": told.network(stop_reason="\x07\x1b]0;boo\n")})

    assert "\x1b" not in "".join(words(host.picture(evil, 80)))
    assert "?]0;boo?" in "".join(words(host.picture(evil, 80)))


def test_nobody_works_on_the_database() -> None:
    empty = {**told.EVERYONE, "hosts": [], "networks": [], "unknown_owners": {**told.EVERYONE["unknown_owners"]}}

    lines = words(everyone.picture(empty, 80))

    assert lines[0].startswith("0 hosts on this database")
    assert lines[1:] == ["! leases of unknown owners: 14; the last ends in 12 s"]


def write() -> None:
    """Write the golden pages."""
    for name in PAGES:
        for width in WIDTHS:
            (GOLDEN / f"{name}-{width}.txt").write_text(page(name, width))


if __name__ == "__main__":
    write()
