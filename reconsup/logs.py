"""How reconsup speaks: one line an event to stderr, JSON for machines or text for people.

Each line is one write(2), so that lines of several processes never mix; a log that nobody reads stops nothing: a
reader that stands still costs lines, which are counted (`log_lines_dropped`), never time. Libraries (alembic,
aiohttp, web3, asyncio, warnings) speak through the same pipe from WARNING on. Every string, also inside an
exception, passes `redact.text`: no password, key or RPC URL's secret part is ever written.

systemd's journal is told the level of each line (`<3>` before it, which the journal takes off), so that
`journalctl -p warning` shows what it should. Without it a line of any level has the priority `info` there.

`configure` again after a fork: what it is given (worker_id, owner) is then on every line of the process.
"""

import json
import logging
import math
import os
import re
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from datetime import date
from typing import Any, Literal, cast

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from reconsup import redact

Format = Literal["json", "text"]
Logger = FilteringBoundLogger

PATIENCE_SECONDS = 0.1  # for a reader that is only slow; one that was not there in time is waited for no more

_STDERR = 2
_DEPTH_MAX = 6
_JOURNAL = re.compile(r"/run/systemd/journal[^/]*/stdout")  # [^/]*: a namespace of the unit's (LogNamespace=)
_PRIORITIES = {"critical": "<2>", "error": "<3>", "warning": "<4>", "info": "<6>", "debug": "<7>"}  # sd-daemon(3)
# What a terminal would take for its own: control characters, and those that turn the direction of writing around.
_UNSHOWN = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (
        *(code for code in range(0x20) if chr(code) not in "\t\n"),
        *range(0x7F, 0xA0),
        *(0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)),
    )
}


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
    if _is_journal():
        renderer = _with_priority(renderer)
    _outlet.begin(lambda count: _dropped(before, renderer, count))
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
    render = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )
    return lambda logger, name, event: render(logger, name, _shown(event))


def _is_journal() -> bool:
    """Whether stderr is systemd's journal, by whom it is connected to: a name that only root can take."""
    with suppress(OSError):
        if stat.S_ISSOCK(os.fstat(_STDERR).st_mode):
            with socket.socket(fileno=os.dup(_STDERR)) as peer:
                return peer.family == socket.AF_UNIX and _JOURNAL.fullmatch(str(peer.getpeername())) is not None
    return False  # no socket, or nobody is at its other end


def _with_priority(render: Processor) -> Processor:
    """The same, with the level in front."""

    def rendered(logger: Any, name: str, event: EventDict) -> str:
        priority = _PRIORITIES.get(str(event.get("level")), "")
        return f"{priority}{render(logger, name, event)!s}"

    return rendered


def _shown(value: Any) -> Any:
    """The same without what would work on a terminal."""
    if isinstance(value, str):
        return value.translate(_UNSHOWN)
    if isinstance(value, Mapping):
        return {_shown(name): _shown(inner) for name, inner in value.items()}
    return [_shown(inner) for inner in value] if isinstance(value, list) else value


def _dropped(before: list[Processor], renderer: Processor, count: int) -> str:
    event: Any = {"event": "log_lines_dropped", "count": count, "todo": "find out why the log was not read"}
    for processor in (*before, renderer):
        event = processor(None, "warning", event)
    return str(event)


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


class _Outlet:
    """The way to stderr. Waits for a reader a moment, and not at all once it has waited in vain.

    The descriptor is shared with who knows whom, so it is not made non-blocking itself: each line opens the pipe or
    the terminal anew. Lines up to PIPE_BUF come whole or not at all; of a longer one the beginning may be there, and
    the next one then begins on a line of its own.
    """

    def __init__(self) -> None:
        self._tell: Callable[[int], str] = str
        self._dropped = 0
        self._is_torn = False

    def begin(self, tell: Callable[[int], str]) -> None:
        """For a new process. `tell` makes the line that tells how many were dropped."""
        self._tell = tell
        self._dropped = 0

    def write(self, line: str) -> None:
        """Write a line, if it can be written, and before it how many could not."""
        text = f"{self._tell(self._dropped)}\n{line}" if self._dropped else line
        is_out = self._put(text, 0.0 if self._dropped else PATIENCE_SECONDS)
        self._dropped = 0 if is_out else self._dropped + 1

    def _put(self, line: str, patience: float) -> bool:
        data = (("\n" if self._is_torn else "") + line + "\n").encode("utf-8", errors="backslashreplace")
        left = len(data)
        try:
            with _Way() as way:
                deadline = time.monotonic() + patience
                while left:
                    left -= way.write(data[-left:], deadline)
        except OSError:  # no room in time, no reader, no disk, no stderr
            self._is_torn = self._is_torn if left == len(data) else True
            return False
        self._is_torn = False
        return True


class _Way:
    """stderr, once, in a manner that does not block."""

    def __init__(self) -> None:
        self._fd = _STDERR
        self._mask: set[int | signal.Signals] = set()

    def __enter__(self) -> "_Way":
        kind = os.fstat(_STDERR).st_mode
        self._is_socket = stat.S_ISSOCK(kind)
        self._is_file = stat.S_ISREG(kind)
        self._is_terminal = stat.S_ISCHR(kind)
        if not (self._is_file or self._is_socket):
            with suppress(OSError):  # another user's pipe, no descriptor left, no /proc: then poll must do
                self._fd = os.open(f"/proc/self/fd/{_STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if self._is_terminal:
            # in the background `stty tostop` would send TTOU again and again, which asks for one worker fewer
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        return self

    def write(self, data: bytes, deadline: float) -> int:
        """How much went out, at least something; OSError if nothing did until then."""
        while True:
            try:
                return self._write_now(data)
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0 or not _is_writable(self._fd, left):
                    raise

    def _write_now(self, data: bytes) -> int:
        if self._is_socket:
            out = socket.socket(fileno=_STDERR)
            try:
                return out.send(data, socket.MSG_DONTWAIT)
            finally:
                out.detach()  # or it would be closed
        if self._fd == _STDERR and not self._is_file:
            if not _is_writable(_STDERR, 0):
                raise BlockingIOError
            return os.write(_STDERR, data[: select.PIPE_BUF])
        return os.write(self._fd, data)

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if self._fd != _STDERR:
            os.close(self._fd)


def _is_writable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


_outlet = _Outlet()


def _write(line: str) -> None:
    _outlet.write(line)


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
