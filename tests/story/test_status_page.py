"""The status page in a real browser: beside the real program with real payments, and beside one that is dying."""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.monitor.test_backlog import insert_cursor
from tests.shown import told
from tests.shown.stand import PICTURED, stand
from tests.story.conftest import Town
from tests.support import launcher
from tests.support.browser import Browser, browser
from tests.support.program import Program, free_port, wait_for

pytestmark = [pytest.mark.service, pytest.mark.story, pytest.mark.long]

EVIL = "<img src=x onerror=alert(1)>" + "W" * 150


@pytest.fixture
def tab() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def live(tab: Browser, state: str, seconds: float = 20.0) -> None:
    """Wait until the page says of itself that it is so."""
    tab.wait_for(f"document.documentElement.dataset.live === {json.dumps(state)}", seconds)


def reads(tab: Browser, words: str, seconds: float = 20.0) -> None:
    """Wait until these words stand there."""
    tab.wait_for(f"document.body.innerText.includes({json.dumps(words)})", seconds)


def overflow(tab: Browser) -> list[Any]:
    """How much wider than the screen the page is, and which elements are."""
    wide = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
    found: list[Any] = tab.value(
        "[document.documentElement.scrollWidth - document.documentElement.clientWidth,"
        f" {wide}.map(e => e.outerHTML.slice(0, 80))]"
    )
    return found


def test_the_page_shows_payments_a_killed_worker_and_networks_in_trouble(town: Town, tab: Browser) -> None:
    """And what it shows changes without a reload. Seen to fail when the script changes nothing."""
    ids = town.requests(4)
    insert_cursor(town.database, network="stopped", stop_reason="reorg below what is final (block 33)")
    dead = f"http://127.0.0.1:{free_port()}"
    urls = {**town.rpc_urls, "away": dead, "stopped": dead}
    with Program(town.database.url, urls, folder=town.folder, worker_id="pay-1") as program:
        program.wait_ready()
        address = f"http://127.0.0.1:{program.port}/"
        tab.look(1280, 900)
        tab.open(address)
        tab.value("window.mark = 1")
        live(tab, "live")
        assert "2 of 2" in tab.text()
        assert "network stopped is stopped: reorg below what is final (block 33)" in tab.text()
        reads(tab, "network away: none of its blocks was read yet")
        assert "wrong – pay-1 – reconsup" in tab.value("document.title")

        town.pay(ids)
        reads(tab, "payment_confirmed")
        reads(tab, "5 of 5 USDT")
        reads(tab, "0.001 of 0.001 ETH")
        os.kill(program.pids()[1], signal.SIGKILL)
        reads(tab, "signal (SIGKILL)")
        reads(tab, "2 of 2")
        town.database.execute(
            "INSERT INTO app.payment_request_transitions"
            " (payment_request_id, from_status, to_status, reason, worker_id)"
            " VALUES (%(evil)s, 'pending', 'pending', %(evil)s, %(evil)s)",
            {"evil": EVIL},
        )
        reads(tab, EVIL[:60])
        assert tab.value("document.images.length") == 0
        for is_dark in (False, True):
            tab.look(360, 740, is_dark=is_dark)
            assert overflow(tab) == [0, []]
        assert tab.value("window.mark") == 1
        assert tab.errors == []
        assert {each for each in tab.requests if not each.startswith("data:")} == {address, f"{address}page.json"}
        assert program.stop() == 0


def test_a_page_whose_reconsup_is_frozen_killed_or_replaced_says_so(town: Town, tab: Browser) -> None:
    """Seen to fail when the script looks only at whether it got an error: a frozen monitor gives none."""
    with Program(town.database.url, town.rpc_urls, folder=town.folder, worker_id="pay-1") as program:
        program.wait_ready()
        tab.look(360, 740)
        tab.open(f"http://127.0.0.1:{program.port}/")
        live(tab, "live")
        supervisor, *children = launcher.family(program.process.pid)
        (monitor,) = set(children) - set(program.pids().values())

        os.kill(monitor, signal.SIGSTOP)
        live(tab, "gone", 12)
        reads(tab, "No answer from reconsup")
        assert tab.value("document.title").startswith("? no answer – ")
        tab.wait_for("getComputedStyle(document.querySelector('main')).opacity < 0.6")
        assert overflow(tab) == [0, []]
        os.kill(monitor, signal.SIGCONT)
        live(tab, "live")
        assert tab.value("document.title").startswith("ok – ")

        os.kill(supervisor, signal.SIGKILL)
        program.process.wait(10)
        live(tab, "gone")
        reads(tab, "so it was ")
        there = ("--metrics-address", f"127.0.0.1:{program.port}")
        with Program(town.database.url, town.rpc_urls, folder=town.folder, worker_id="pay-2", flags=there) as after:
            after.port = program.port
            after.wait_ready()
            live(tab, "live", 25)
            reads(tab, "pay-2")
            assert after.stop() == 0


def test_a_page_that_nobody_sees_asks_for_nothing_and_is_not_taken_for_fresh(tab: Browser) -> None:
    """Seen to fail when the script goes on asking, and when it shows no age on its return."""
    with stand(PICTURED, told.RECENT) as url:
        tab.open(url)
        live(tab, "live")
        tab.value("Object.defineProperty(document, 'hidden', { get: () => window.away, configurable: true });"
                  "window.away = true; document.dispatchEvent(new Event('visibilitychange')); 0")  # fmt: skip
        asked = len(tab.requests)
        tab.wait_for("document.title.startsWith('paused – ')", 15)
        assert len(tab.requests) <= asked + 1, "one may have been on its way"
        asked = len(tab.requests)
        tab.value("window.away = false; document.dispatchEvent(new Event('visibilitychange')); 0")
        live(tab, "live", 5)
        assert len(tab.requests) > asked
        assert tab.errors == []


def test_a_selection_and_the_place_on_the_page_outlive_a_refresh(tab: Browser) -> None:
    """Somebody copies an id. Seen to fail when the inside is put in anew as a whole."""
    what = dict(told.SICK)
    with stand(what, told.RECENT) as url:
        tab.look(360, 740)
        tab.open(url)
        tab.value("[...document.querySelectorAll('td')].find(e => e.textContent === 'pr_00000009').id = 'picked';"
                  "getSelection().selectAllChildren(picked); scrollTo(0, 900); 0")  # fmt: skip
        what |= {"at": "2026-01-02T03:04:07+00:00", "backlog": {**what["backlog"], "due": 77}}
        reads(tab, "77")
        assert tab.value("getSelection().toString()").strip() == "pr_00000009"
        assert tab.value("scrollY") == 900


@pytest.mark.parametrize("what", [told.host(), told.SICK, told.OLD])
def test_no_screen_is_too_narrow_and_no_scheme_unreadable(tab: Browser, what: Any) -> None:
    with stand({**what, "crashes": told.CRASHES}, told.RECENT) as url:
        for width in (320, 360, 768, 1280):
            for is_dark in (False, True):
                tab.look(width, 740, is_dark=is_dark)
                tab.open(url)
                assert tab.value("document.documentElement.scrollWidth") <= width
                grounds = tab.value("getComputedStyle(document.body).backgroundColor")
                assert (grounds == "rgb(16, 20, 24)") is is_dark
        assert tab.errors == []


def test_without_javascript_the_page_is_whole_and_loads_itself_anew(tab: Browser) -> None:
    with stand(told.SICK, told.RECENT) as url:
        tab.tell("Emulation.setScriptExecutionDisabled", value=True)
        tab.open(url)
        assert "What is wrong" in tab.text()
        assert "Loads itself anew every 5 seconds" in tab.text()
        wait_for("it asks again", lambda: tab.text() and tab.requests.count(f"{url}/") > 1)
        assert {each for each in tab.requests if not each.startswith("data:")} == {f"{url}/"}
        assert tab.errors == []
