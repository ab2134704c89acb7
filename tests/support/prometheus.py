"""A real Prometheus server, with the rules and the example of a configuration that are shipped."""

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.support import promql, tools
from tests.support.program import free_port, wait_for

START_SECONDS = 30.0


class Prometheus:
    """It scrapes these targets every second, as packaging/prometheus/scrape.yml says but for targets and pace."""

    def __init__(self, folder: Path, targets: Mapping[str, int]) -> None:
        """`targets`: what is in the example (the first line of its list) → the port that takes its place."""
        self.port = free_port()
        configuration = promql.SCRAPE.read_text()
        for shipped, port in targets.items():
            assert configuration.count(shipped) > 0, shipped
            configuration = configuration.replace(shipped, f"127.0.0.1:{port}")
        assert configuration.count("interval: 15s") == 2
        (folder / "prometheus.yml").write_text(configuration.replace("interval: 15s", "interval: 1s"))
        (folder / promql.RULES.name).write_text(promql.RULES.read_text())
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    tools.prometheus(),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        wait_for("Prometheus is ready", self._is_ready, START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def query(self, expr: str) -> list[dict[str, Any]]:
        """An instant query: the series that it finds."""
        return list(self._api("query", query=expr)["result"])

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health."""
        return [rule for group in self._api("rules")["groups"] for rule in group["rules"]]

    def alerts(self) -> dict[str, dict[str, Any]]:
        """The alerts that fire now, by name."""
        return {
            each["labels"]["alertname"]: each for each in self._api("alerts")["alerts"] if each["state"] == "firing"
        }

    def _api(self, name: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{name}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())["data"]
