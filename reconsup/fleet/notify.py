"""What systemd is told, over a datagram socket. Without NOTIFY_SOCKET, nothing.

Nobody answers, and an error changes nothing: a service manager that does not listen must not stop the service.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """Speaks to the service manager that `environment` names."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # "@name" is an abstract socket: its name begins with NUL
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._said: dict[str, str] = {}

    def say(self, **assignments: str) -> None:
        """Send what has changed, e.g. `say(READY="1", STATUS="4 workers ready")`, in one message."""
        news = {name: value for name, value in assignments.items() if self._said.get(name) != value}
        if not self._address or not news:
            return
        self._said |= news
        message = "\n".join(f"{name}={value}" for name, value in news.items())
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
            out.sendto(message.encode(), self._address)
