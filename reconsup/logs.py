"""How reconsup speaks: one line an event to stderr, JSON for machines or text for people.

Each line is one write(2), so that lines of several processes never mix; a log that nobody reads (EPIPE) stops
nothing. Libraries (alembic, aiohttp, web3, asyncio, warnings) speak through the same pipe from WARNING on. Every
string, also inside an exception, passes `redact.text`: no password, key or RPC URL's secret part is ever written.

`configure` again after a fork: what it is given (worker_id, owner) is then on every line of the process.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from datetime import date
from typing import Any, Literal, cast

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from reconsup import redact

Format = Literal["json", "text"]
Logger = FilteringBoundLogger

_STDERR = 2
_DEPTH_MAX = 6


def configure(format: str | None = None, *, level: int = logging.INFO, **bound: object) -> None:  # noqa: A002 - the setting's name
    """Send every event from here on to stderr as `format` (`json`, `text`; None: text on a terminal).

    `bound` is on every line: `configure("json", worker_id="host-1", owner="host-1#00f3…")`.
    """
    is_text = sys.stderr.isatty() if format is None else format == "text"
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _Bound(bound),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        harmless,
    ]
    renderer = _text_renderer() if is_text else _json
    structlog.configure(
        processors=[*before, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_LineLogger,
        cache_logger_on_first_use=False,  # a forked child configures again
    )
    _configure_libraries(before, renderer)


def get_logger(**bound: object) -> FilteringBoundLogger:
    """A logger: `log.info("cycle", claimed=3)`. The event is a short fixed phrase, figures are keywords."""
    return cast(FilteringBoundLogger, structlog.get_logger(**bound))


def harmless(_: object, __: str, event: EventDict) -> EventDict:
    """Structlog processor: every value without secrets, and of a kind that JSON can hold."""
    return _harmless_fields(event, 0) | {"event": _one_line(event.get("event", ""))}


def _harmless_fields(fields: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    return {
        str(name): redact.HIDDEN if redact.names_a_secret(str(name)) else _harmless(value, depth)
        for name, value in fields.items()
    }


def _harmless(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return redact.text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < _DEPTH_MAX:
        if isinstance(value, Mapping):
            return _harmless_fields(value, depth + 1)
        if isinstance(value, list | tuple | set | frozenset):
            return [_harmless(inner, depth + 1) for inner in value]
    return redact.text(value.isoformat() if isinstance(value, date) else str(value))


def _one_line(event: object) -> str:
    return redact.text(str(event)).replace("\r", "\\r").replace("\n", "\\n")


class _Bound:
    """Processor: the process's own fields, behind those of the event itself."""

    def __init__(self, bound: Mapping[str, object]) -> None:
        self._bound = dict(bound)

    def __call__(self, _: object, __: str, event: EventDict) -> EventDict:
        return {**self._bound, **event}


def _json(_: object, __: str, event: MutableMapping[str, Any]) -> str:
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    ordered = first | dict(event)
    try:
        return orjson.dumps(ordered).decode()
    except TypeError:  # an integer beyond 64 bits, as amounts in wei are, or half a letter
        return json.dumps(ordered, ensure_ascii=False, default=str, separators=(",", ":"))


def _text_renderer() -> Processor:
    # the plain traceback: the pretty one prints local variables, and with them secrets
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )


class _LineLogger:
    """structlog's way out: a line, in one write."""

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, line: str) -> None:
        _write(line)

    log = debug = info = warn = warning = error = err = critical = fatal = exception = failure = msg


class _LineHandler(logging.Handler):
    """logging's way out: the same."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):  # a library's broken format string must not stop the program
            _write(self.format(record))


def _write(line: str) -> None:
    data = (line + "\n").encode("utf-8", errors="backslashreplace")
    with suppress(OSError):
        while data:
            data = data[os.write(_STDERR, data) :]


def _configure_libraries(before: list[Processor], renderer: Processor) -> None:
    handler = _LineHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *before],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
