"""The status page for people: `/`, and its inside as JSON for the page's own script; and the manners of every answer.

Drawn on the server, so that it is whole without JavaScript; at most once a second, however many browsers look. It
changes nothing and asks the database for nothing itself. The script and the sheet are allowed by their hashes, all
else is forbidden.
"""

import base64
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from reconsup.monitor import status
from reconsup.monitor.onlookers import Onlookers
from reconsup.monitor.status import Fleet, Known
from reconsup.shown import page, sheet

KEPT_SECONDS = 1.0

PAGES: Mapping[str, str] = {
    "/": "the status page, for people",
    "/status": "the same as JSON",
    "/metrics": "for Prometheus",
    "/healthz": "200 while the supervisor runs",
    "/readyz": "200 while this host does its work, else 503 and why not",
}

_OF_PAYMENTS = frozenset({"/", "/page.json", "/status"})  # the others tell of no request


def _allowed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_allowed(sheet.SCRIPT)}",
        f"style-src {_allowed(sheet.STYLE)}",
        "connect-src 'self'",
        "img-src data:",  # the tab's dot
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MADE = hashlib.sha256((sheet.SCRIPT + sheet.STYLE).encode()).hexdigest()[:12]  # tells versions of the page apart


@dataclass(frozen=True, slots=True)
class _Drawn:
    at: float
    at_iso: object
    look: page.Look


class Front:
    """The page. `read_fleet` reads the scoreboard as it is at that moment."""

    def __init__(self, read_fleet: Callable[[], Fleet], known: Known, onlookers: Onlookers) -> None:
        self._read_fleet = read_fleet
        self._known = known
        self._onlookers = onlookers
        self._drawn: _Drawn | None = None

    def routes(self) -> list[web.RouteDef]:
        """Where it is to be found."""
        return [web.get("/", self._document), web.get("/page.json", self._inside)]

    async def _document(self, request: web.Request) -> web.Response:
        drawn = await self._look(request)
        return web.Response(
            text=page.document(drawn.look, MADE),
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Security-Policy": POLICY},
        )

    async def _inside(self, request: web.Request) -> web.Response:
        drawn = await self._look(request)
        look = drawn.look
        return web.json_response(
            {"made": MADE, "at": drawn.at_iso, "state": look.state, "title": look.title, "icon": look.icon,
             "main": look.main}
        )  # fmt: skip

    async def _look(self, request: web.Request) -> _Drawn:
        if request.method == "GET":
            await self._onlookers.look(is_worth_waiting=self._known.problem is None)
        now = time.monotonic()
        if self._drawn is None or now - self._drawn.at > KEPT_SECONDS:
            told = status.status(self._read_fleet(), self._known, now)
            self._drawn = _Drawn(now, told["at"], page.look(told, self._recent()))
        return self._drawn

    def _recent(self) -> dict[str, Any]:
        recent, age = self._onlookers.recent, self._onlookers.seconds_ago
        return {
            "transitions": None if recent is None else recent.transitions,
            "hosts": None if recent is None else recent.hosts,
            "seconds_ago": age,
            "problem": self._onlookers.problem or self._known.problem,
        }


def _misdirected(request: web.Request) -> web.Response | None:
    """A refusal, where a browser on this machine, or at the end of a tunnel to it, was sent here by a page of somebody
    else who lets a name of his point to 127.0.0.1: to the browser that page and ours are one site, and it could read.
    """
    if request.path not in _OF_PAYMENTS or request.transport is None:
        return None
    here: str = request.transport.get_extra_info("sockname")[0]
    is_local = ip_address(here.partition("%")[0]).is_loopback
    if not (is_local and is_anybodys(request.headers.get("Host", ""))):
        return None
    todo = f"ask for http://localhost:…{request.path}, and let a proxy send that as Host"
    return web.Response(status=421, text=f"This page is for this machine: {todo}.\n")


def is_anybodys(host: str) -> bool:
    """Whether it is a name that somebody on the internet may own. Not an address, and not a name without a domain."""
    name = re.sub(r":[0-9]*$", "", host).rstrip(".").lower()
    return "." in name and re.fullmatch(r"\[.*\]|[0-9.]+|.*\.localhost|localhost\.localdomain", name) is None


@web.middleware
async def manners(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What every answer says about itself; and what there is, to those who ask for what there is not."""
    try:
        response = _misdirected(request) or await handler(request)
    except web.HTTPNotFound:
        there = "".join(f"{path}  {what}\n" for path, what in PAGES.items())
        response = web.Response(status=404, text=f"There is no such page here. There are:\n{there}")
    except web.HTTPMethodNotAllowed as refused:
        sentence = "Nothing can be changed here: only GET and HEAD are answered.\n"
        response = web.Response(status=405, text=sentence, headers={"Allow": refused.headers["Allow"]})
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response
