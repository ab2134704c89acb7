"""The Dockerfile, checked without an engine: what it names exists, and the image starts as the program wants to be."""

import re
import tomllib

import reconsup
from reconsup import cli
from reconsup.settings_table import BY_NAME
from tests.packaging import image
from tests.packaging.image import ROOT

START_SECONDS = float(BY_NAME["RECONSUP_START_SECONDS"].default or 0)
WATCHDOG_SECONDS = 60.0  # the default of RECONSUP_WATCHDOG_SECONDS


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    """Seen to fail without `!packaging/reconsup.spec` in .dockerignore."""
    sources = [source for source, _ in image.copied()]
    assert "reconsup" in sources
    assert [each for each in sources if not (ROOT / each).exists()] == []
    assert [each for each in sources if not image.is_sent(each)] == []
    assert image.is_sent("reconsup/cli.py")


def test_nothing_else_reaches_the_builder() -> None:
    """Least of all what somebody left there: keys, environment files, the history. Seen to fail without the `*`."""
    sources = {source for source, _ in image.copied()}
    top = {each.name for each in ROOT.iterdir()} | {".git", ".env", "dist", "tests", ".venv"}
    packaging = {f"packaging/{each.name}" for each in (ROOT / "packaging").iterdir()}
    sent = {each for each in top | packaging if image.is_sent(each)}
    assert sent <= sources
    assert not image.is_sent("reconsup/fleet/__pycache__/plan.cpython-311.pyc")


def test_every_path_that_an_instruction_names_is_made_by_one_before_it() -> None:
    copies = [each.rest.split() for each in image.instructions() if each.word == "COPY"]
    into_build = {source for source, _ in image.copied()}
    packed = next(each.words for each in image.instructions() if each.word == "RUN" and "PyInstaller" in each.rest)
    installed = next(each.words for each in image.instructions() if each.word == "RUN" and "pip" in each.rest)
    (requirements,) = (each.partition("=")[2] for each in installed if each.startswith("--requirement="))
    (made,) = (each.partition("=")[2] for each in packed if each.startswith("--distpath="))
    folder = re.findall(r'^NAME = "(\w+)"', (ROOT / packed[-1]).read_text(), re.MULTILINE)[0] + "-folder"

    assert {requirements, packed[-1]} <= into_build
    assert ["--from=build", f"{made}/{folder}", "/opt/reconsup"] in copies
    assert image.environment()["PATH"].split(":")[0] == "/opt/reconsup"
    (certificates,) = (words for words in copies if words[1].endswith("ca-certificates.crt"))
    assert image.environment()["SSL_CERT_FILE"] == certificates[2] + "ca-certificates.crt"


def test_the_image_holds_what_make_binary_packs() -> None:
    """The same pins, recipe and seeds: what the stories are run with."""
    makefile = (ROOT / "Makefile").read_text()
    for name, value in image.environment(0).items():
        assert f"{name}={value}" in makefile
    for file in ("packaging/requirements-binary.txt", "packaging/reconsup.spec"):
        assert file in makefile
        assert (file in dict(image.copied())) is True


def test_the_supervisor_is_pid_1_and_no_root() -> None:
    """Exec form: a shell would be PID 1, and hear TERM in its place. Seen to fail with `ENTRYPOINT reconsup`."""
    (entry,) = image.of_image("ENTRYPOINT")
    (user,) = image.of_image("USER")
    (signal,) = image.of_image("STOPSIGNAL")
    assert entry.words == ["/opt/reconsup/reconsup"]
    assert image.of_image("CMD") == []
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user.rest), "by number, so that an orchestrator sees that it is not root"
    assert signal.rest == "SIGTERM"
    assert all(each.rest.startswith("[") for each in image.instructions() if each.word == "RUN")


def test_the_last_stage_only_copies() -> None:
    """So any base with a C library will do, and nothing has to run there."""
    assert image.of_image("RUN") == []


def test_healthy_means_that_the_supervisor_runs_and_gives_it_time() -> None:
    """A check of readiness would have healthy supervisors replaced while the database is away.

    Seen to fail with `status --ready`, and with three checks: a monitor that hangs would be the end of the container
    before the supervisor has replaced it.
    """
    (check,) = image.of_image("HEALTHCHECK")
    seconds = {name: float(value) for name, value in re.findall(r"--([a-z-]+)=(\d+)", check.rest)}
    program, *words = check.words
    parsed = cli._parser().parse_args(words)

    assert program == image.of_image("ENTRYPOINT")[0].words[0]
    assert (parsed.command, parsed.ready, parsed.all, parsed.watch) == (cli._status, False, False, False)
    assert seconds["interval"] * (seconds["retries"] - 1) > WATCHDOG_SECONDS
    assert seconds["start-period"] > START_SECONDS
    assert seconds["timeout"] > 2 * 2.0, "the answer is waited for 2 s"


def test_the_metrics_are_listened_for_on_the_containers_own_interfaces() -> None:
    address = BY_NAME["RECONSUP_METRICS_ADDRESS"].parse(image.environment()["RECONSUP_METRICS_ADDRESS"])
    (port,) = image.of_image("EXPOSE")
    assert address == ("0.0.0.0", int(port.rest))


def test_every_setting_that_the_image_sets_is_one() -> None:
    names = set(image.environment()) - {"PATH", "SSL_CERT_FILE"}
    assert names <= set(BY_NAME)


def test_the_label_tells_this_version() -> None:
    (label,) = image.of_image("LABEL")
    labels = dict(re.findall(r'([\w.]+)="([^"]*)"', label.rest))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert labels["org.opencontainers.image.version"] == project["version"] == reconsup.__version__
    assert labels["org.opencontainers.image.licenses"] == project["license"]
