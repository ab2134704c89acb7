"""One setting's text → its value, or a ValueError.

Each function takes what an operator wrote, without white space around it. `Refused` carries words that are better
than the setting's rule (which network, which part); any other ValueError stands for the rule itself. No message
contains a value: it may be a secret.
"""

import json
import os
import re
import socket
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, TypeAdapter, ValidationError

EMBEDDED = "embedded:"
BLOCKS_MAX = 100_000
WORKERS_MAX = 512
MEBIBYTES_MAX = 1 << 20
ENDPOINTS_MAX = 16
WORKER_BASE_CHARACTERS_MAX = 128

_Network = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
_Depth = Annotated[int, Field(strict=True, ge=1, le=BLOCKS_MAX)] | Literal["safe", "finalized"]
_UrlList = Annotated[list[str], Field(min_length=1, max_length=ENDPOINTS_MAX)]
_BOOLEAN = TypeAdapter(bool)
_CONFIRMATIONS: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[_Network, _Depth])
_SWITCHES: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[_Network, Annotated[bool, Field(strict=True)]])
_COUNTS: TypeAdapter[dict[str, Any]] = TypeAdapter(
    dict[_Network, Annotated[int, Field(strict=True, ge=1, le=ENDPOINTS_MAX)]]
)
_HEIGHTS: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[_Network, Annotated[int, Field(strict=True, ge=0, lt=2**63)]])
_RPC_URLS: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[_Network, str | _UrlList])


class Refused(ValueError):
    """What is wrong, in words for the operator and without the value."""


def integer(least: int, most: int) -> Callable[[str], int]:
    """A parser of whole numbers from `least` to `most`."""
    return TypeAdapter(Annotated[int, Field(ge=least, le=most)]).validate_python


def number(*, above: float | None = None, least: float | None = None, most: float) -> Callable[[str], float]:
    """A parser of finite numbers, fractions allowed."""
    bounds = Field(gt=above, ge=least, le=most, allow_inf_nan=False)
    return TypeAdapter(Annotated[float, bounds]).validate_python


def boolean(text: str) -> bool:
    """true, false and their usual spellings."""
    return _BOOLEAN.validate_python(text)


def database_url(text: str) -> str:
    """A PostgreSQL URL that libpq understands, or embedded:PATH."""
    if text.startswith(EMBEDDED):
        if not text.removeprefix(EMBEDDED).strip():
            raise Refused("embedded: needs a PATH: the directory that holds the database")
        return text
    if re.match(r"postgres(ql)?\+\w+://", text):
        raise Refused("write postgresql://… without the +driver: reconsup chooses its own")
    if not re.match(r"postgres(ql)?://", text):
        raise ValueError
    try:
        parts = conninfo_to_dict(text)
    except psycopg.Error:
        # libpq's message quotes the URL, and with it the password.
        raise Refused(
            "is not a URL that PostgreSQL understands: "
            "percent-encode special characters in the password (@ is %40, / is %2F, # is %23, a space is %20)"
        ) from None
    if "@" in str(parts.get("host", "")):
        raise Refused("the password contains @: write it as %40")
    for port in str(parts.get("port") or "5432").split(","):
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise Refused("the port is a number from 1 to 65535 (a / in the password is written %2F)")
    return text


def worker_base(text: str) -> str:
    """The name that this host's workers share."""
    if not re.fullmatch(rf"[A-Za-z0-9._-]{{1,{WORKER_BASE_CHARACTERS_MAX}}}", text):
        raise ValueError
    return text


def host_name() -> str:
    """This host's name, as far as a worker's id can hold it."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).strip("-")
    return name[:WORKER_BASE_CHARACTERS_MAX] or "host"


class Workers(NamedTuple):
    """How many workers: at least, and at most as many as the work that waits asks for."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}:{self.most}"


def workers(text: str) -> Workers:
    """A number of workers, or MIN:MAX; `auto` is the CPUs that this process may use."""
    least, is_range, most = text.partition(":")
    if not is_range:
        return Workers(_workers(text), _workers(text))
    scaled = Workers(_workers(least), _workers(most))
    if scaled.least > scaled.most:
        raise Refused("MIN:MAX: MIN must not be above MAX")
    return scaled


def _workers(text: str) -> int:
    if text.lower() == "auto":
        return min(len(os.sched_getaffinity(0)), WORKERS_MAX)
    return integer(1, WORKERS_MAX)(text)


def none_or(least: float, most: float) -> Callable[[str], float]:
    """A parser of numbers from `least` to `most`, or 0: not at all."""
    within = number(least=least, most=most)

    def parse(text: str) -> float:
        value = number(least=0, most=most)(text)
        return within(text) if value else 0.0

    return parse


def address(text: str) -> tuple[str, int] | None:
    """HOST:PORT, with an IPv6 host in brackets. Empty: None."""
    if not text:
        return None
    match = re.fullmatch(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})", text)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise ValueError
    return match["v6"] or match["host"], int(match["port"])


def log_format(text: str) -> str:
    """`json` or `text`."""
    if text.lower() not in {"json", "text"}:
        raise ValueError
    return text.lower()


def confirmations(text: str) -> dict[str, int | Literal["safe", "finalized"]]:
    """A depth in blocks or a tag for each network."""
    return dict(_mapping(text, _CONFIRMATIONS, 'a whole number of blocks from 1 to 100000, "safe" or "finalized"'))


def switches(text: str) -> dict[str, bool]:
    """On or off for each network."""
    return dict(_mapping(text, _SWITCHES, "true or false"))


def counts(text: str) -> dict[str, int]:
    """A number of endpoints for each network."""
    return dict(_mapping(text, _COUNTS, f"a whole number from 1 to {ENDPOINTS_MAX}"))


def heights(text: str) -> dict[str, int]:
    """A block's number for each network."""
    return dict(_mapping(text, _HEIGHTS, "a block's number: a whole number from 0"))


def rpc_urls(text: str) -> dict[str, tuple[str, ...]]:
    """One or several endpoints for each network, in order of preference."""
    allowed = f'"https://…" or a list of 1 to {ENDPOINTS_MAX} of them'
    given = _mapping(text, _RPC_URLS, allowed)
    urls = {network: (value,) if isinstance(value, str) else tuple(value) for network, value in given.items()}
    for network, several in urls.items():
        for url in several:
            problem = _url_problem(url)
            if problem:
                raise Refused(f"network {network}: {problem}")
        if len(set(several)) < len(several):
            raise Refused(f"network {network}: the same URL is there twice")
    return urls


def _mapping(text: str, adapter: TypeAdapter[dict[str, Any]], allowed: str) -> dict[str, Any]:
    """A JSON object whose keys are networks, each there once."""
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise Refused(
            f"is not JSON: {error.msg.removesuffix(' at')} at line {error.lineno} column {error.colno}"
        ) from None
    except RecursionError:
        raise Refused("is not JSON that a setting can hold") from None
    if not isinstance(value, dict):
        raise Refused('is not a JSON object: {"NETWORK": …}')
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        place = error.errors(include_url=False, include_input=False)[0]["loc"]
        network = str(place[0]) if place else ""
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", network):
            raise Refused("a network's name is 1 to 64 of A-Z a-z 0-9 . _ -") from None
        raise Refused(f"network {network}: must be {allowed}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise Refused("the same name is there twice")
    return result


def _refuse_constant(_: str) -> float:
    raise Refused("is not JSON: NaN and Infinity are not numbers")


def _url_problem(url: str) -> str | None:
    """Why `url` cannot be an endpoint, without any part of it."""
    if re.search(r"[\s\"'<>\\^`{|}\x00-\x1f\x7f]", url) or not url.isascii():
        return "the URL has white space or characters that must be percent-encoded"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "the URL's host or port cannot be read"
    if parts.scheme not in {"http", "https"}:
        return "the URL must begin with http:// or https://"
    if not host or port == 0:
        return "the URL has no host" if not host else "the URL's port is 0"
    if parts.fragment:
        return "the URL has a # part, which is never sent: percent-encode it as %23"
    return None
