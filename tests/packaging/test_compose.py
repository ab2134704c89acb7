"""The compose file and what it mounts, checked without an engine."""

import re

import pytest

from reconsup.fleet.plan import Limits
from reconsup.settings import ConfigErrors, load
from reconsup.settings_table import BY_NAME
from tests.packaging import compose, image
from tests.packaging.compose import FOLDER

OURS = ("migrate", "reconsup")
KNOBS = {
    "SERVICE_RECONCILER_ENABLED": "PAYMENT_REQUEST_RECONCILER_ENABLED",
    "SERVICE_RECONCILER_WORKERS": "RECONSUP_WORKERS",
    "SERVICE_RECONCILER_POLL_INTERVAL_SECONDS": "PAYMENT_REQUEST_RECONCILER_POLL_INTERVAL_SECONDS",
    "SERVICE_RECONCILER_LEASE_SECONDS": "PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS",
    "SERVICE_EVM_RPC_URLS_JSON": "PAYMENT_REQUEST_EVM_RPC_URLS_JSON",
}
MARGIN_SECONDS = 10.0  # the monitor's farewell takes at most five


def test_compose_takes_the_file_as_it_is() -> None:
    said = compose.config("-q")
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_the_knobs_arrive_and_nobody_edits_the_file() -> None:
    urls = '{"mainnet": ["https://a.example/k", "https://b.example"]}'
    given = {
        "SERVICE_RECONCILER_ENABLED": "true",
        "SERVICE_RECONCILER_REPLICAS": "2",
        "SERVICE_RECONCILER_WORKERS": "4",
        "SERVICE_RECONCILER_POLL_INTERVAL_SECONDS": "0.25",
        "SERVICE_RECONCILER_LEASE_SECONDS": "17",
        "SERVICE_EVM_RPC_URLS_JSON": urls,
    }
    said = compose.config(**given)
    assert said.returncode == 0, said.stderr
    assert re.search(r"replicas: 2$", said.stdout, re.MULTILINE)
    for knob, setting in KNOBS.items():
        (value,) = re.findall(rf"{setting}: (.*(?:\n {{8,}}.*)*)", said.stdout)
        assert re.sub(r"\s+", " ", value).strip("'\"") == given[knob]


def test_every_variable_is_a_knob_with_one_default_and_every_knob_is_used() -> None:
    """Seen to fail with a variable that `make service-up` does not judge, and with a knob that nothing reads."""
    variables = compose.variables()
    knobs = {knob.name: knob for knob in compose.script().KNOBS}
    assert set(variables) == set(knobs) - {"SERVICE_KEEP_DATA"}
    for name, default in variables.items():
        assert default is not None, f"{name} has no default"
        assert default == "" or knobs[name].allows(default)
    for knob, setting in KNOBS.items():
        assert f"${{{knob}:-" in compose.settings("reconsup")[setting]
    for name in ("ENABLED", "POLL_INTERVAL_SECONDS", "LEASE_SECONDS"):
        setting = BY_NAME[f"PAYMENT_REQUEST_RECONCILER_{name}"]
        assert variables[f"SERVICE_RECONCILER_{name}"] == setting.default, "one default, said twice"


@pytest.mark.parametrize("name", OURS)
def test_every_setting_in_the_file_is_one_of_reconsup(name: str) -> None:
    """Seen to fail with RECONSUP_WORKER."""
    found = compose.settings(name)
    assert "DATABASE_URL" in found
    assert set(found) <= set(BY_NAME)


def test_with_its_defaults_reconsup_can_start() -> None:
    """And is told, in the log, that without endpoints there is nothing to see."""
    variables = compose.variables()
    database_url = re.search(r"&database-url (\S+)", compose.text())
    assert database_url is not None
    given = {**image.environment(), **compose.settings("reconsup"), "DATABASE_URL": database_url[1]}
    filled = {
        name: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: variables[found[1]] or "", value)
        for name, value in given.items()
    }
    settings = load(filled, {})
    (warning,) = settings.warnings
    assert "names no network" in warning
    assert settings.database_url == "postgresql://reconsup:for-development-only@postgres:5432/reconsup"


def test_no_replica_is_given_a_name() -> None:
    """A worker's id begins with the host's name, which is the container's: two with one id would share leases."""
    assert "PAYMENT_REQUEST_RECONCILER_WORKER_ID" not in compose.settings("reconsup")
    assert not re.search(r"hostname:|container_name:", compose.text())


def test_a_replica_is_stopped_only_after_its_drain() -> None:
    """Seen to fail with 30 s."""
    (grace,) = re.findall(r"stop_grace_period: (\d+)s", compose.service("reconsup"))
    drain = float(BY_NAME["RECONSUP_DRAIN_SECONDS"].default or 0)
    assert Limits().drain_seconds == drain
    assert float(grace) >= drain + MARGIN_SECONDS


@pytest.mark.parametrize("name", OURS)
def test_ours_can_write_nothing_and_gain_nothing(name: str) -> None:
    section = compose.service(name)
    for line in (
        "read_only: true",
        "cap_drop: [ALL]",
        'security_opt: ["no-new-privileges:true"]',
        "tmpfs: [/tmp]",
        "init: false",
    ):
        assert line in section, line


def test_the_order_of_the_start() -> None:
    assert "migrate: {condition: service_completed_successfully}" in compose.service("reconsup")
    assert "postgres: {condition: service_healthy}" in compose.service("migrate")
    assert re.search(r"command: \[migrate\]", compose.service("migrate"))
    assert "--host=127.0.0.1" in compose.service("postgres"), "not the server that prepares the folder"


def test_nothing_can_be_reached_from_other_machines() -> None:
    published = re.findall(r"^    ports: \[(.*)\]$", compose.text(), re.MULTILINE)
    assert len(published) == 3
    assert all(each.strip('"').startswith("127.0.0.1:") for each in published)
    assert "ports:" not in compose.service("postgres")
    assert "network_mode" not in compose.text()


def test_whatever_is_mounted_exists_and_cannot_be_changed() -> None:
    mounts = re.findall(r"- (\.[^:\s]+):(/[^:\s]+)(\S*)", compose.text())
    assert {source for source, _, _ in mounts} >= {"./prometheus.yaml", "../prometheus", "../grafana"}
    assert [source for source, _, _ in mounts if not (FOLDER / source).exists()] == []
    assert {mode for _, _, mode in mounts} == {":ro"}


def test_every_image_has_a_version() -> None:
    images = {re.findall(r"image: (\S+)", compose.service(name))[0] for name in compose.names()}
    assert "reconsup:local" in images
    assert all(re.search(r":\w[\w.-]+$", each) and not each.endswith(":latest") for each in images)
    assert all(each.startswith("docker.io/") for each in images - {"reconsup:local"}), "Podman asks for the whole name"


def test_prometheus_finds_every_replica_and_every_rule() -> None:
    file = (FOLDER / "prometheus.yaml").read_text()
    (port,) = image.of_image("EXPOSE")
    assert "names: [reconsup]" in file
    assert "reconsup" in compose.names()
    assert f"port: {port.rest}" in file
    (pattern,) = re.findall(r"- rules/(\S+)", file)
    assert "../prometheus:/etc/prometheus/rules:ro" in compose.service("prometheus")
    found = {each.name for each in (FOLDER / "../prometheus").glob("*.y*ml") if "\ngroups:" in "\n" + each.read_text()}
    assert found == {each.name for each in (FOLDER / "../prometheus").glob(pattern)}


def test_grafana_finds_prometheus_and_the_board() -> None:
    assert "url: http://prometheus:9090" in (FOLDER / "grafana/datasource.yaml").read_text()
    (path,) = re.findall(r"path: (\S+)", (FOLDER / "grafana/boards.yaml").read_text())
    section = compose.service("grafana")
    assert f"../grafana:{path}:ro" in section
    for file, kind in (("datasource", "datasources"), ("boards", "dashboards")):
        assert f"./grafana/{file}.yaml:/etc/grafana/provisioning/{kind}/" in section


def test_grafana_lets_nobody_in_but_to_look() -> None:
    given = compose.settings("grafana")
    assert given["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert (given["GF_AUTH_BASIC_ENABLED"], given["GF_AUTH_DISABLE_LOGIN_FORM"]) == ('"false"', '"true"')


SERVES = [
    ("SERVICE_RECONCILER_WORKERS", "1 4 512 auto 2:8 1:1", "0 513 -1 many 8:2 1: :4 1:2:3 1.5"),
    ("SERVICE_RECONCILER_POLL_INTERVAL_SECONDS", "0.25 15 86400", "0 -1 86401 soon 1e3 nan"),
    ("SERVICE_RECONCILER_LEASE_SECONDS", "15 30 3600 17.5", "14 1 3601 long inf"),
    ("SERVICE_RECONCILER_ENABLED", "true false TRUE", "2 maybe"),
    (
        "SERVICE_EVM_RPC_URLS_JSON",
        '{} {"a":"http://h"} {"a":["http://h","http://i"]}',
        '[] { "x" {"a":1} {"a":[]} {"a":[2]}',
    ),
]


@pytest.mark.parametrize(("knob", "good", "bad"), SERVES)
def test_a_knob_allows_nothing_that_reconsup_would_refuse(knob: str, good: str, bad: str) -> None:
    """What passes starts; what does not is told before anything is built."""
    (judge,) = (each for each in compose.script().KNOBS if each.name == knob)
    for value in good.split():
        assert judge.allows(value), value
        assert told(KNOBS[knob], value) <= {"CONFIG_RECONCILER_DISABLED"}, value
    for value in bad.split():
        assert not judge.allows(value), value


def told(setting: str, value: str) -> set[str]:
    """The codes of what reconsup says is wrong."""
    try:
        load({"DATABASE_URL": "postgresql://h/x", setting: value}, {})
    except ConfigErrors as errors:
        return {each.code for each in errors.errors}
    return set()
