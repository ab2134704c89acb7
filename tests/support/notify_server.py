"""The service manager's ear: a real datagram socket that keeps what is said to it, when, and by which process.

with NotifyServer(watchdog_seconds=1) as manager, Program(..., **manager.environment) as program:
    manager.wait("READY", "1")
"""

import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_NONE = -1


@dataclass(frozen=True)
class Message:
    """One datagram. `at` is monotonic; `pid` is the sender's, told by the kernel."""

    at: float
    pid: int
    text: str

    @property
    def fields(self) -> dict[str, str]:
        """Its assignments, in order."""
        return {name: value for name, _, value in (line.partition("=") for line in self.text.splitlines())}


class NotifyServer:
    """Listens from its making on. `is_abstract`: a name without a file, as systemd gives in a container."""

    def __init__(self, *, watchdog_seconds: float | None = None, is_abstract: bool = False) -> None:
        # a short path of its own: a test's folder may be longer than an address can be
        self._folder = tempfile.TemporaryDirectory(prefix="notify-")
        path = Path(self._folder.name) / "socket"
        self.address = f"@{path}" if is_abstract else str(path)
        self._watchdog_seconds = watchdog_seconds
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{path}" if is_abstract else str(path))
        self._kept: list[Message] = []
        self._news = threading.Condition()
        # a socket holds few messages: nobody must have to wait for the test to look
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def environment(self) -> dict[str, str]:
        """What systemd gives its service."""
        watchdog = self._watchdog_seconds
        return {"NOTIFY_SOCKET": self.address} | (
            {} if watchdog is None else {"WATCHDOG_USEC": f"{watchdog * 1e6:.0f}"}
        )

    def messages(self) -> list[Message]:
        """All so far, in order."""
        with self._news:
            return list(self._kept)

    def told(self, name: str, value: str | None = None) -> list[Message]:
        """Those that assign `name` (that value)."""
        return [each for each in self.messages() if _assigns(each, name, value)]

    def words(self, *names: str) -> list[str]:
        """`NAME=value` of these names (all but STATUS where none is given), in order, each as often as it was said."""
        said = [pair for each in self.messages() for pair in each.fields.items()]
        return [f"{name}={value}" for name, value in said if (name in names if names else name != "STATUS")]

    def wait(self, name: str, value: str | None = None, *, count: int = 1, seconds: float = 30.0) -> list[Message]:
        """Until `name` was assigned (that value) so often."""
        self.until(f"{count} × {name}={value}", lambda: len(self.told(name, value)) >= count, seconds)
        return self.told(name, value)

    def until(self, what: str, happened: Callable[[], bool], seconds: float = 30.0) -> None:
        """Until `happened`, looked at after each message."""
        deadline = time.monotonic() + seconds
        with self._news:
            while not happened():
                left = deadline - time.monotonic()
                assert left > 0, f"not within {seconds:g} s: {what}; heard: {[each.text for each in self._kept]}"
                self._news.wait(left)

    def close(self) -> None:
        """Hear no more."""
        if self._socket.fileno() != _NONE:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._thread.join()
            self._socket.close()
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        while True:
            data, extra, *_ = self._socket.recvmsg(65536, socket.CMSG_SPACE(_CREDENTIALS.size))
            at = time.monotonic()
            if not data:
                return
            pid = next((_CREDENTIALS.unpack(raw)[0] for _, kind, raw in extra if kind == socket.SCM_CREDENTIALS), 0)
            with self._news:
                self._kept.append(Message(at, pid, data.decode()))
                self._news.notify_all()


def _assigns(message: Message, name: str, value: str | None) -> bool:
    return name in message.fields and value in (None, message.fields[name])


def fill(address: str) -> int:
    """Send to a path until its queue takes no more; how many went in. For a manager that does not read."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
        out.connect(address)
        sent = 0
        while True:
            try:
                out.send(b"FILLING=1")
            except BlockingIOError:
                return sent
            sent += 1
