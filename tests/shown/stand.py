"""The status page of a host that is not there: drawn from `told`, served like the real one, for a browser to look at.

`python -m tests.shown.stand packaging/pictures/status-page.png` takes the picture in the README again.
"""

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from reconsup.monitor.front import MADE, POLICY
from reconsup.shown import page
from tests.shown import told
from tests.support.browser import browser

PICTURED = told.host(
    told.worker(0, leases=12),
    told.worker(1, leases=9, restarts=1, causes={"signal": 1}, age_seconds=185.0),
    told.worker(2, leases=11),
    networks={
        "base": told.network(head=38_120_944, scanned=38_120_944, lag_seconds=1.9, holder="pay-1-2#02"),
        "mainnet": told.network(holder="pay-1-0#00"),
        "sepolia": told.network(
            head=9_412_077, scanned=9_412_031, lag_seconds=560.0, at_head=False, holder="pay-2-1#01"
        ),
    },
    crashes=[told.a_crash(1, row="pr_00004711")],
    backlog={"due": 12, "oldest_due_seconds": 3.4, "by_status": {"pending": 412, "detected": 9, "confirmed": 9120,
             "reorged": 1, "expired": 233}, "unserved": 0, "row_errors": {}, "counted_seconds_ago": 4.2},
)  # fmt: skip


@contextmanager
def stand(what: Mapping[str, Any], recent: Mapping[str, Any]) -> Iterator[str]:
    """Serve it; its address."""

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            look = page.look(what, recent)
            kind, body = "text/html", page.document(look, MADE)
            if self.path == "/page.json":
                inside = {"made": MADE, "title": look.title, "icon": look.icon, "main": look.main}
                kind, body = "application/json", json.dumps(inside)
            data = body.encode()
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


def main(path: Path) -> None:
    """Take the picture."""
    with stand(PICTURED, told.RECENT) as url, browser() as tab:
        tab.look(1280, 800)
        tab.open(url)
        tab.wait_for("document.documentElement.dataset.live === 'live'")
        tab.picture(path, is_whole=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
