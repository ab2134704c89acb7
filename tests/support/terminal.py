"""A command in a terminal of its own (a pty): what it writes is kept, as a terminal would get it."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import Self

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
HOME = "\x1b[H"


class Terminal:
    """`reconsup ARGUMENTS` in a terminal of so many columns and lines. Leaving the `with` ends it."""

    def __init__(self, *arguments: str, columns: int = 80, lines: int = 24, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        self._resize(theirs, columns, lines)
        self.written = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "reconsup.cli", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", **environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _resize(self, descriptor: int, columns: int, lines: int) -> None:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """Draw the window's corner: the program gets SIGWINCH."""
        self._resize(self._ours, columns, lines)

    def type(self, keys: str) -> None:
        """Press keys; "\\x03" is Ctrl-C."""
        os.write(self._ours, keys.encode())

    def forget(self) -> None:
        """Forget what was written so far."""
        self.written = ""

    def read(self, seconds: float = 0.05) -> None:
        """Take in what there is."""
        while select.select([self._ours], [], [], seconds)[0]:
            try:
                chunk = os.read(self._ours, 1 << 16)
            except OSError:  # everybody there has closed it
                return
            if not chunk:
                return
            self.written += chunk.decode(errors="replace")

    def wait_for(self, text: str, seconds: float = 15) -> None:
        """Read on until this was written."""
        deadline = time.monotonic() + seconds
        while text not in self.written:
            self.read()
            assert time.monotonic() < deadline, f"{text!r} is not in {self.written[-3000:]!r}"

    def end(self, seconds: float = 5) -> int:
        """Wait for its end; the exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self.read()
            assert time.monotonic() < deadline, f"it does not end: {self.written[-2000:]!r}"
        self.read()
        return self.process.returncode

    def screen(self) -> list[str]:
        """The lines of the last whole picture, without colours."""
        frame = self.written.rpartition(HOME)[2]
        return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in frame.replace("\r", "").split("\n")]
