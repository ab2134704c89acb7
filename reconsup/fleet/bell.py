"""The bell: one eventfd that every process of this host's fleet shares; one ring wakes every listener.

Nobody ever reads the eventfd: a read by one would silence it for the others. Each listener has an epoll of its own
on it, edge triggered, so every ring is a new edge for each of them. A ring that comes while a listener is busy is
kept for it; several become one. Ringing never blocks and never fails.
"""

import os
import select
from contextlib import suppress


class Bell:
    """Made by the supervisor before the first fork; rung and heard by its children."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def ring(self) -> None:
        """Wake every listener, also the one that rings."""
        with suppress(BlockingIOError):  # after 2**64 - 2 rings
            os.eventfd_write(self._fd, 1)

    def listen(self) -> "Listener":
        """A listener for this process. It may hear one ring from before it began: nothing is lost in between."""
        return Listener(self._fd)


class Listener:
    """One process's ear: readable since the last ring until `drain`. Not to be shared over a fork."""

    def __init__(self, bell_fd: int) -> None:
        self._epoll = select.epoll()
        self._epoll.register(bell_fd, select.EPOLLIN | select.EPOLLET)

    def fileno(self) -> int:
        """For a selector or `loop.add_reader`."""
        return self._epoll.fileno()

    def drain(self) -> bool:
        """Forget the rings so far; whether there were any. Look for work after it, not before."""
        return bool(self._epoll.poll(0))

    def close(self) -> None:
        """Stop listening."""
        self._epoll.close()
