"""The door of the status page: what each answer says of itself, and how often it is drawn."""

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from reconsup.monitor import front, http
from reconsup.monitor.onlookers import FIRST_SECONDS, Onlookers
from reconsup.monitor.status import Fleet
from reconsup.store.recent import Recent
from tests.monitor.test_status import FLEET, known
from tests.shown import told

RECENT = Recent(told.RECENT["transitions"], told.RECENT["hosts"])


class Answer:
    def __init__(self, status: int, headers: Any, text: str) -> None:
        self.status, self.headers, self.text = status, headers, text


Ask = Callable[..., Awaitable[Answer]]


class House:
    """The application, without a process around it. `drawn` counts how often the scoreboard was read."""

    def __init__(self, folder: Path, *, fleet: Fleet = FLEET, **fields: Any) -> None:
        self.onlookers = Onlookers(pause_seconds=0.1)
        self.drawn = 0
        self._fleet = fleet
        self.known = known(backlog_at=time.monotonic(), census_at=time.monotonic(), **fields)
        self.app = http.application(self._read, self.known, folder, self.onlookers)

    def _read(self) -> Fleet:
        self.drawn += 1
        return self._fleet

    def visit(self, doing: Callable[[Ask], Awaitable[None]]) -> None:
        async def run() -> None:
            runner = web.AppRunner(self.app, access_log=None)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]  # it listens
            async with aiohttp.ClientSession() as session:

                async def ask(path: str, method: str = "GET", host: str | None = None) -> Answer:
                    headers = {} if host is None else {"Host": host}
                    async with session.request(method, url + path, headers=headers) as answer:
                        return Answer(answer.status, answer.headers, await answer.text())

                try:
                    await doing(ask)
                finally:
                    await runner.cleanup()

        asyncio.run(run())


def test_the_page_allows_its_own_script_and_sheet_and_nothing_else(tmp_path: Path) -> None:
    """The hashes are those of what really stands in it. Seen to fail with a blank more in the page."""

    async def visit(ask: Ask) -> None:
        page = await ask("/")
        assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        policy = dict(each.split(" ", 1) for each in page.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        for name in ("script", "style"):
            (inside,) = re.findall(f"<{name}>(.*?)</{name}>", page.text, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            assert policy[f"{name}-src"] == f"'sha256-{digest}'"
        assert set(policy) == {"default-src", "script-src", "style-src", "connect-src", "img-src", "base-uri",
                               "form-action", "frame-ancestors"}  # fmt: skip

    House(tmp_path).visit(visit)


@pytest.mark.parametrize("path", ["/", "/page.json", "/status", "/metrics", "/healthz", "/readyz", "/nothing"])
def test_every_answer_has_the_same_manners(tmp_path: Path, path: str) -> None:
    async def visit(ask: Ask) -> None:
        answer, head = await ask(path), await ask(path, "HEAD")
        for name, value in {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
                            "Cache-Control": "no-store", "X-Frame-Options": "DENY"}.items():  # fmt: skip
            assert answer.headers[name] == head.headers[name] == value
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert (head.status, head.text) == (answer.status, "")
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            refused = await ask(path, method)
            assert refused.status == (404 if path == "/nothing" else 405)
            assert refused.headers["X-Content-Type-Options"] == "nosniff"
        if path != "/nothing":
            assert set(refused.headers["Allow"].split(",")) == {"GET", "HEAD"}

    House(tmp_path).visit(visit)


@pytest.mark.parametrize(
    "host", ["evil.example:9464", "EVIL.example.", "127.0.0.1.evil.example", "localhost.evil.example"]
)
def test_a_page_of_somebody_elses_cannot_read_this_one_through_a_name_of_its_own(tmp_path: Path, host: str) -> None:
    """A name that first points to a server of his and then to 127.0.0.1: for the browser that is one site. Prometheus
    and load balancers may come by any name. Seen to fail without the look at Host.
    """

    async def visit(ask: Ask) -> None:
        for path in ("/", "/page.json", "/status"):
            answer = await ask(path, host=host)
            assert (answer.status, f"http://localhost:…{path}" in answer.text) == (421, True)
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        for path in ("/metrics", "/healthz"):
            assert (await ask(path, host=host)).status == 200

    House(tmp_path).visit(visit)


@pytest.mark.parametrize(
    "host",
    [
        "localhost:9464",
        "127.0.0.1:9464",
        "[::1]:9464",
        "127.0.1.1",
        "pay-1:9464",
        "app.localhost",
        "localhost.",
        "localhost.localdomain",
        "",
    ],
)
def test_who_comes_by_an_address_or_a_name_without_a_domain_is_shown_the_page(tmp_path: Path, host: str) -> None:
    house = House(tmp_path)
    house.onlookers.succeed(RECENT, time.monotonic())

    async def visit(ask: Ask) -> None:
        assert [(await ask(path, host=host)).status for path in ("/", "/page.json", "/status")] == [200, 200, 200]

    house.visit(visit)


def test_at_an_address_that_others_reach_any_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There whoever may reach it may read it: a firewall, or a proxy, says who that is."""
    monkeypatch.setattr(front, "ip_address", lambda _: ip_address("192.0.2.7"))

    house = House(tmp_path)
    house.onlookers.succeed(RECENT, time.monotonic())

    async def visit(ask: Ask) -> None:
        assert (await ask("/", host="pay-1.example.org:9464")).status == 200

    house.visit(visit)


def test_who_asks_for_what_there_is_not_is_told_what_there_is(tmp_path: Path) -> None:
    async def visit(ask: Ask) -> None:
        for path in ("/favicon.ico", "/status/", "/%2e%2e/etc/passwd", "//", "/page"):
            answer = await ask(path)
            assert answer.status == 404
            assert answer.headers["Content-Type"].startswith("text/plain")
            for there in ("/", "/status", "/metrics", "/healthz", "/readyz"):
                assert re.search(rf"^{there}  ", answer.text, re.MULTILINE)

    House(tmp_path).visit(visit)


def test_the_script_gets_what_the_server_would_draw(tmp_path: Path) -> None:
    async def visit(ask: Ask) -> None:
        document, inside = await ask("/"), json.loads((await ask("/page.json")).text)
        assert f'<main id="page">{inside["main"]}</main>' in document.text
        assert f"<title>{inside['title']}</title>" in document.text
        assert f'data-made="{inside["made"]}"' in document.text
        assert inside["state"] in ("good", "warn", "bad")

    House(tmp_path).visit(visit)


def test_however_many_look_it_is_drawn_once_a_second(tmp_path: Path) -> None:
    """Seen to fail when nothing is kept."""
    house = House(tmp_path)
    house.onlookers.succeed(RECENT, time.monotonic())

    async def visit(ask: Ask) -> None:
        began = time.monotonic()
        await asyncio.gather(*(ask(path) for path in ("/", "/page.json") * 50))
        assert house.drawn <= 2 + (time.monotonic() - began) / front.KEPT_SECONDS

    house.visit(visit)


def test_who_comes_first_waits_a_moment_for_the_history_and_no_longer(tmp_path: Path) -> None:
    """Nobody reads it here: it must be served without. Seen to fail without the time-out."""
    house = House(tmp_path)

    async def visit(ask: Ask) -> None:
        began = time.monotonic()
        page = await ask("/")
        assert FIRST_SECONDS <= time.monotonic() - began < FIRST_SECONDS + 2
        assert "Not read yet" in page.text
        house.onlookers.succeed(RECENT, time.monotonic())
        began = time.monotonic()
        await asyncio.gather(*(ask("/page.json") for _ in range(5)))
        assert time.monotonic() - began < FIRST_SECONDS

    house.visit(visit)


def test_while_the_database_is_away_nobody_waits_and_the_page_says_so(tmp_path: Path) -> None:
    house = House(tmp_path, problem="connection refused")

    async def visit(ask: Ask) -> None:
        began = time.monotonic()
        page = await ask("/")
        assert time.monotonic() - began < FIRST_SECONDS
        assert page.status == 200
        assert "not ready: database: connection refused" in page.text
        assert "Not known: connection refused" in page.text

    house.visit(visit)


def test_a_page_that_cannot_be_drawn_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(tmp_path)
    house.onlookers.succeed(RECENT, time.monotonic())
    monkeypatch.setattr(front.page, "look", lambda *_: 1 // 0)

    async def visit(ask: Ask) -> None:
        assert (await ask("/")).status == 500
        assert (await ask("/healthz")).status == 200
        assert (await ask("/status")).status == 200

    house.visit(visit)
