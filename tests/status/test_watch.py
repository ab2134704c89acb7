"""`reconsup status --watch` in a real terminal and in a pipe, beside a page that tells what a supervisor tells."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.shown import told
from tests.support.program import free_port, wait_for
from tests.support.terminal import ENTER, LEAVE, Terminal

pytestmark = pytest.mark.story

CURSOR = "\x1b[?25h"


class Page:
    """/status on a port of its own."""

    def __init__(self, port: int) -> None:
        self.told: Any = told.host()
        self.answers = threading.Event()
        self.answers.set()
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page.answers.wait(10)
                body = json.dumps(page.told).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=lambda: self.server.serve_forever(0.02), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.answers.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@contextmanager
def a_page(port: int) -> Iterator[Page]:
    page = Page(port)
    try:
        yield page
    finally:
        page.close()


def watching(port: int, *more: str, **environment: str) -> Terminal:
    return Terminal("status", "--watch", "--metrics-address", f"127.0.0.1:{port}", *more, **environment)


def test_it_draws_in_place_and_follows_the_window_and_the_supervisor() -> None:
    port = free_port()
    with watching(port) as terminal:
        terminal.wait_for("no reconsup answers at")
        assert terminal.written.startswith(ENTER)
        with a_page(port) as page:
            terminal.wait_for("2 of 2 workers ready")
            assert "every second, Ctrl-C ends it" in terminal.screen()[0]
            page.told = told.SICK
            terminal.wait_for("slot 2 is parked")
            assert len(terminal.screen()) <= 24
            terminal.forget()
            terminal.resize(40, 10)
            terminal.wait_for("lines more")
            assert max(map(len, terminal.screen())) <= 40
            assert len(terminal.screen()) <= 10
            terminal.resize(80, 24)
        terminal.forget()
        terminal.wait_for("no reconsup answers at")
        terminal.wait_for("ago it was so:")
        assert any("slot 2 is parked" in line for line in terminal.screen())
        terminal.type("\x03")
        assert terminal.end() == 0
        assert terminal.written.endswith(CURSOR + LEAVE)
    assert "Traceback" not in terminal.written


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_given_back_whatever_ends_it(number: signal.Signals) -> None:
    """At once, also while it waits for one who does not answer. Seen to fail without the handlers."""
    port = free_port()
    with a_page(port) as page, watching(port) as terminal:
        terminal.wait_for("2 of 2 workers ready")
        page.answers.clear()
        time.sleep(1.0)  # by now it has asked again
        started_at = time.monotonic()
        terminal.process.send_signal(number)
        assert terminal.end() == 0
        assert time.monotonic() - started_at < 0.8
        assert terminal.written.count(ENTER) == terminal.written.count(LEAVE) == 1
        assert terminal.written.endswith(LEAVE)


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again() -> None:
    port = free_port()
    with a_page(port), watching(port) as terminal:
        terminal.wait_for("2 of 2 workers ready")
        terminal.process.send_signal(signal.SIGTSTP)
        wait_for("it stopped", lambda: os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED | os.WNOHANG), 5)
        terminal.read()
        assert terminal.written.endswith(CURSOR + LEAVE)
        terminal.forget()
        terminal.process.send_signal(signal.SIGCONT)
        terminal.wait_for("2 of 2 workers ready")
        assert terminal.written.startswith(ENTER)


def test_colours_are_for_terminals_that_want_them() -> None:
    port = free_port()
    address = ("--metrics-address", f"127.0.0.1:{port}")
    with a_page(port):
        looks = []
        for environment in ({}, {"NO_COLOR": "1"}):
            with Terminal("status", *address, **environment) as terminal:
                assert terminal.end() == 0
                looks.append("\x1b[" in terminal.written)
        assert looks == [True, False]
        with watching(port, TERM="dumb") as terminal:
            terminal.wait_for("2 of 2 workers ready")
            assert "\x1b[" not in terminal.written


def test_in_a_pipe_there_are_plain_blocks_and_nobody_minds_when_it_is_closed() -> None:
    port = free_port()
    command = [sys.executable, "-m", "reconsup.cli", "status", "--watch", "--metrics-address", f"127.0.0.1:{port}"]
    with a_page(port), subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(20)]
        blocks = "".join(lines).split("\n\n")
        assert "every second" in blocks[0]
        assert lines[1].startswith("pay-1  running  2 of 2 workers ready")
        assert any("every second" in block for block in blocks[1:])
        assert "\x1b" not in "".join(lines)
        process.stdout.close()
        assert process.wait(5) == 1
        assert "Traceback" not in process.stderr.read()


def test_programs_get_a_line_of_json_each_second() -> None:
    port = free_port()
    command = [sys.executable, "-m", "reconsup.cli", "status", "--watch", "--json"]
    with (
        a_page(port),
        subprocess.Popen(
            [*command, "--metrics-address", f"127.0.0.1:{port}"], stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline()) for _ in range(2)] == [told.host()] * 2
        process.terminate()
        assert process.wait(5) == 0
