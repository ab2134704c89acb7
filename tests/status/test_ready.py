"""`reconsup status --ready`: one line and an exit code, for health checks and scripts that have no curl."""

import time

import pytest

from reconsup import cli
from reconsup.status import ask, command
from tests.shown import told
from tests.status.test_watch import a_page
from tests.support.program import free_port


@pytest.fixture
def port() -> int:
    return free_port()


def test_a_host_that_is_ready_is_told_in_one_line(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    with a_page(port):
        assert command.is_ready(("0.0.0.0", port)) == 0, "who listens on all addresses is asked on the loopback"
    assert capsys.readouterr() == ("ready: pay-1, 2 of 2 workers\n", "")


@pytest.mark.parametrize(
    ("supervisor", "why"),
    [
        ({"ready": False, "problem": "database: it has not answered for 5 s"}, "database: it has not answered for 5 s"),
        ({"ready": False, "problem": None}, "it does not say why"),
        ({"ready": "yes"}, "it does not say why"),
        ({"ready": None, "problem": "no worker is ready: there is none"}, "no worker is ready: there is none"),
    ],
)
def test_a_host_that_is_not_ready_says_why(
    port: int, supervisor: dict[str, object], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail with the answer itself taken for readiness."""
    with a_page(port) as page:
        page.told = told.host(supervisor=supervisor)
        assert command.is_ready(("127.0.0.1", port)) == 69
    assert capsys.readouterr() == ("", f"reconsup: not ready: {why}\n")


def test_where_nobody_answers_it_is_not_ready(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.is_ready(("127.0.0.1", port)) == 69
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert "no reconsup answers at" in error


def test_a_supervisor_that_hangs_is_not_waited_for(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ask, "ANSWER_SECONDS", 0.2)
    with a_page(port) as page:
        page.answers.clear()
        started_at = time.monotonic()
        assert command.is_ready(("127.0.0.1", port)) == 69
        assert time.monotonic() - started_at < 1.5
    assert "does not answer within 0.2 s" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["--all", "--json", "--watch"])
def test_ready_is_asked_alone(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["status", "--ready", other])
    assert left.value.code == 64
    assert "without --all, --json, --watch" in capsys.readouterr().err
