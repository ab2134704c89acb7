"""What reaches stderr, and in which shape. Each case runs in a process of its own: logging is process-wide."""

import json
import socket
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from reconsup import logs, redact

PREAMBLE = """
import logging, os, sys, warnings
from reconsup import logs
log = logs.get_logger()
"""


def lines_of(script: str) -> list[str]:
    """What `script` writes to stderr; it must not fail nor write elsewhere."""
    done = subprocess.run([sys.executable, "-c", PREAMBLE + script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr.splitlines()


def events_of(script: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines_of("logs.configure('json', worker_id='h-1', owner='h-1#ab')\n" + script)]


def test_an_event_is_one_line_of_json_with_time_level_and_who() -> None:
    (event,) = events_of("log.warning('two\\nlines', claimed=3, amount=2**256-1, ratio=float('nan'))")

    stamp = datetime.fromisoformat(str(event.pop("timestamp")))
    assert stamp.utcoffset() == timedelta(0)
    assert event == {
        "level": "warning",
        "event": "two\\nlines",
        "worker_id": "h-1",
        "owner": "h-1#ab",
        "claimed": 3,
        "amount": 2**256 - 1,
        "ratio": "nan",
    }


def test_after_a_fork_the_child_speaks_for_itself() -> None:
    events = events_of(
        "log.info('before')\n"
        "if os.fork() == 0:\n"
        "    logs.configure('json', worker_id='h-2'); log.info('child'); os._exit(0)\n"
        "os.wait(); log.info('after')"
    )

    assert [(event["event"], event["worker_id"]) for event in events] == [
        ("before", "h-1"),
        ("child", "h-2"),
        ("after", "h-1"),
    ]


def test_libraries_speak_in_the_same_format_from_warning_on() -> None:
    events = events_of(
        "logging.getLogger('alembic').info('no'); log.debug('no')\n"
        "logging.getLogger('aiohttp').warning('at %s', 'https://h/s3cr3t')\n"
        "warnings.warn('old')\n"
        "logging.getLogger('web3').warning('%d', 'not a number')"
    )

    assert [(event["logger"], event["worker_id"]) for event in events] == [("aiohttp", "h-1"), ("py.warnings", "h-1")]
    assert events[0]["event"] == "at https://h/***"


SECRETS = """
url = "postgresql://u:s3cr3t@h/db"
log.info(url, url=url, nested={"a": [url, ("x", {"password": "s3cr3t"})]}, error=ValueError(url), api_key="s3cr3t")
log.info("x", rpc="https://s3cr3t@h/v3/s3cr3t?k=s3cr3t", text="connect password=s3cr3t host=h", set={url})
try:
    raise ConnectionError(f"no way to {url}") from OSError("https://h/s3cr3t")
except ConnectionError:
    log.exception("failed")
    logging.getLogger("asyncio").exception("failed too")
"""


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_secret_comes_through_whatever_carries_it(form: str) -> None:
    """Seen to fail when `harmless` is taken out of the processors."""
    output = "\n".join(lines_of(f"logs.configure('{form}')\n" + SECRETS))

    assert "s3cr3t" not in output
    assert output.count("postgresql://u:***@h/db") >= 5
    assert "ConnectionError" in output


def test_text_is_plain_where_there_is_no_terminal() -> None:
    (line,) = lines_of("logs.configure('text', worker_id='h-1'); log.info('ready', slot=1)")

    assert "\x1b" not in line
    assert "ready" in line
    assert "worker_id=h-1 slot=1" in line


def test_without_a_terminal_the_format_is_json() -> None:
    (line,) = lines_of("logs.configure(); log.info('ready')")

    assert json.loads(line)["event"] == "ready"


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_journal_is_told_the_level_of_each_line_and_nobody_else_is(form: str, tmp_path: Path) -> None:
    """`journalctl -p err` shows the errors. Seen to fail without the prefix, and with one for every socket."""
    here = tmp_path / "journal" / "stdout"
    here.parent.mkdir()
    told = f"logs.configure({form!r}); log.error('bad'); log.info('good'); logging.getLogger('x').warning('third')"
    said = {}
    for name, is_known in (("the journal", True), ("another socket", False)):
        script = PREAMBLE + (f"import re; logs._JOURNAL = re.compile({str(here)!r})\n" if is_known else "") + told
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as end:
            here.unlink(missing_ok=True)
            listener.bind(str(here))
            listener.listen()
            end.connect(str(here))
            subprocess.run([sys.executable, "-c", script], stderr=end, timeout=30, check=True)
            said[name] = listener.accept()[0].recv(65536).decode().splitlines()

    assert [line[:3] for line in said["the journal"]] == ["<3>", "<6>", "<4>"]
    assert [line[3:][:1] == "{" for line in said["the journal"]] == [form == "json"] * 3
    assert [line for line in said["another socket"] if line.startswith("<")] == []
    assert len(said["another socket"]) == 3


def test_the_journal_is_known_by_the_name_of_its_socket() -> None:
    assert logs._JOURNAL.fullmatch("/run/systemd/journal/stdout")
    assert logs._JOURNAL.fullmatch("/run/systemd/journal.shop/stdout")
    assert not logs._JOURNAL.fullmatch("/tmp/run/systemd/journal/stdout")


def test_lines_of_many_processes_never_mix() -> None:
    """Seen to fail when a line is written in two parts."""
    events = events_of(
        "for child in range(4):\n"
        "    if os.fork() == 0:\n"
        "        for n in range(200): log.info('beat', child=child, filler='x' * 900)\n"
        "        os._exit(0)\n"
        "for _ in range(4): os.wait()"
    )

    assert len(events) == 800


def test_a_log_that_nobody_reads_stops_nothing() -> None:
    script = PREAMBLE + "logs.configure('json'); os.close(2); log.error('unheard'); print('alive')"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)

    assert (done.returncode, done.stdout) == (0, "alive\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:p@h:5/db", "postgresql://u:***@h:5/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://u:p@ss/x@h/db?password=1 next", "postgresql://u:***@h/db?*** next"),
        ("postgresql://u:p'w\"d@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p@h/db?password=a@b", "postgresql://u:***@b"),
        ("postgresql://h/db?user=u&password=a@b", "postgresql://***@b"),
        ("url=URL('https://h:8545/v3/KEY')", "url=URL('https://h:8545/***"),
        ("https://KEY@h/v3", "https://***@h/***"),
        ("https://h?apikey=KEY", "https://h/***"),
        ("http://127.0.0.1:8545", "http://127.0.0.1:8545"),
        ("http://127.0.0.1:8545/", "http://127.0.0.1:8545/"),
        ("at https://h/KEY and wss://h/KEY", "at https://h/*** and wss://h/***"),
        ("host=h password='a b' user=u", "host=h password=*** user=u"),
        ("Authorization: Bearer abc", "Authorization: ***"),
        ("no secret here: 3", "no secret here: 3"),
    ],
)
def test_what_is_shown_of_a_text_with_secrets(text: str, shown: str) -> None:
    assert redact.text(text) == shown


def test_what_is_no_url_is_hidden_wholly() -> None:
    assert redact.redact_url("just-a-key") == "***"
