"""A real browser without a window: chromium, told what to do over its DevTools protocol."""

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from tests.support import tools

T = TypeVar("T")

START_SECONDS = 30.0
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--disable-extensions", "--no-default-browser-check", "--remote-debugging-port=0"),
)


class Browser:
    """One tab. `errors` is what its console complained of, `requests` every address that it asked."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, run: Any) -> None:
        self._socket = socket
        self._run = run
        self._number = 0
        self.errors: list[str] = []
        self.requests: list[str] = []

    def start(self) -> None:
        """Listen to what the tab has to say."""
        for room in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{room}.enable")

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command; its result."""
        answer: dict[str, Any] = self._run(self._tell(method, parameters))
        return answer

    async def _tell(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = json.loads(await self._socket.receive_str(timeout=START_SECONDS))
            if message.get("id") == self._number:
                assert "error" not in message, (method, message)
                result: dict[str, Any] = message["result"]
                return result
            self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.errors.append(json.dumps(told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""
        self.tell("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        """What a piece of JavaScript comes to."""
        found = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (expression, found)
        return found["result"].get("value")

    def text(self) -> str:
        """The page as it is read."""
        return str(self.value("document.body ? document.body.innerText : ''"))

    def wait_for(self, expression: str, seconds: float = 20.0) -> Any:
        """Look again and again until it is true; fails with the page's text."""
        deadline = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {expression}\n{self.text()}"
            self._run(asyncio.sleep(0.05))
        return found

    def look(self, width: int, height: int, *, is_dark: bool = False, scale: float = 1) -> None:
        """Another screen: its width and height in CSS pixels."""
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
                  mobile=width < 500)  # fmt: skip
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self.tell("Emulation.setEmulatedMedia", features=scheme)

    def picture(self, path: Path, *, is_whole: bool = False) -> None:
        """What is seen, as PNG; `is_whole`: also what is below."""
        data = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=is_whole)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser that remembers nothing, and is gone afterwards with all its processes."""
    program, environment = tools.chromium()
    folder = Path(tempfile.mkdtemp(prefix="reconsup-browser-"))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            env={**os.environ, "HOME": str(folder), **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    loop = asyncio.new_event_loop()

    def run(doing: Coroutine[Any, Any, T]) -> T:
        return loop.run_until_complete(doing)

    session = run(_session())
    try:
        tab = Browser(run(_tab(session, folder, process)), run)
        tab.start()
        yield tab
    finally:
        run(session.close())
        loop.close()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


async def _tab(
    session: aiohttp.ClientSession, folder: Path, process: "subprocess.Popen[bytes]"
) -> aiohttp.ClientWebSocketResponse:
    deadline = time.monotonic() + START_SECONDS
    told = folder / "profile/DevToolsActivePort"
    while True:
        is_there = told.exists() and told.read_text().count("\n")
        assert process.poll() is None, (folder / "log").read_text()
        assert is_there or time.monotonic() < deadline, (folder / "log").read_text()
        if is_there:
            break
        await asyncio.sleep(0.02)
    port = int(told.read_text().split()[0])
    while True:
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            for target in await answer.json(content_type=None):
                if target["type"] == "page":
                    return await session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
