"""A service manager's ear: a NOTIFY_SOCKET that keeps what it was told and when, and judges it at the end."""

import itertools
import re
import socket
import struct
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

WATCHDOG_SECONDS = 4.0  # pings are due at half of it
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
WORKER = re.compile(r"-\d+$")


@dataclass(frozen=True)
class Message:
    """One datagram. `at` is the wall clock's, as in the program's log; `pid` the sender's, told by the kernel."""

    at: float
    pid: int
    said: Mapping[str, str]


class Manager:
    """Listens from its construction to `end`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[Message] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def environment(self) -> dict[str, str]:
        """What a unit with a watchdog finds (WATCHDOG_PID apart: it is not known before the start)."""
        return {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": str(int(WATCHDOG_SECONDS * 1_000_000))}

    def end(self) -> None:
        """Hear out what was sent, and close."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(b"", str(self.path))
        self._thread.join(10)
        self._socket.close()
        self.path.unlink()

    def _listen(self) -> None:
        while True:
            data, extra, *_ = self._socket.recvmsg(65536, socket.CMSG_SPACE(CREDENTIALS.size))
            if not data:
                return
            pairs = (line.partition("=") for line in data.decode().splitlines())
            pid = CREDENTIALS.unpack(extra[0][2])[0]
            self.messages.append(Message(time.time(), pid, {name: value for name, _, value in pairs}))


def complaints(
    messages: Sequence[Message], log: Iterable[Mapping[str, Any]], *, main_pid: int, is_drained: bool
) -> list[str]:
    """What a service manager would have to object to. `is_drained`: the program left by itself, with 0.

    Only the main process is listened to (NotifyAccess=main). Pings are asked for from READY to STOPPING: that is when
    a watchdog runs for certain.
    """
    heard = [each for each in messages if each.pid == main_pid]
    found = [f"told by another process: {dict(each.said)}" for each in messages if each.pid != main_pid]
    ready = [each.at for each in heard if each.said.get("READY") == "1"]
    stopping = [each.at for each in heard if each.said.get("STOPPING") == "1"]
    pings = [each.at for each in heard if "WATCHDOG" in each.said]
    workers = [
        datetime.fromisoformat(line["timestamp"]).timestamp()
        for line in log
        if line["event"] == "process_ready" and WORKER.search(line["worker_id"])
    ]
    if ready and (not workers or ready[0] < workers[0]):
        found.append("READY before a worker was ready")
    if is_drained and len(stopping) != 1:
        found.append(f"STOPPING {len(stopping)} times")
    if stopping and any(at > stopping[0] for at in ready):
        found.append("READY after STOPPING")
    if ready:
        end = stopping[0] if stopping else max(pings, default=ready[0])
        due = [ready[0], *(at for at in pings if ready[0] < at < end), end]
        longest = max(later - earlier for earlier, later in itertools.pairwise(due))
        if longest > WATCHDOG_SECONDS:
            found.append(f"no WATCHDOG for {longest:.1f} s, at most {WATCHDOG_SECONDS:g} s are granted")
    return found
