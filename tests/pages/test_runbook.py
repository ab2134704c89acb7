"""The run-book has all that an operator can be called for, and names nothing that does not exist."""

import re

import pytest

from reconsup.chain.node import Aside
from reconsup.fleet.slot import Cause
from reconsup.monitor import metrics
from reconsup.payments.request import RowError
from reconsup.settings import BY_NAME, SETTINGS
from reconsup.worker.journal import ALARMS
from tests.pages import said

PAGE = (said.ROOT / "packaging" / "RUNBOOK.md").read_text()
BODY = PAGE.partition("\n## Alerts")[0]  # what is after it has its own test
PROSE = re.sub(r"^```.*?^```", "", BODY, flags=re.MULTILINE | re.DOTALL)
NAMED = set(re.findall(r"`([^`\n]+)`", PROSE))
QUOTED = [" ".join(each.split()) for each in re.findall(r'"([^"]+)"', PROSE)]


def test_every_warning_and_every_error_of_the_log_is_in_it() -> None:
    """Seen to fail with a `log.error("cellar_flooded")` more in the monitor, and without `fork_failed` here."""
    events = said.loud_events()

    assert {event: at for event, at in events.items() if event not in NAMED} == {}
    assert len(events) > 50
    assert {"process_hangs", "endpoint_set_aside", "transition", "log_lines_dropped", "process_left"} <= set(events)


@pytest.mark.parametrize(
    "words",
    [
        {*map(str, RowError), *metrics._FAILURES} - {"refused", "failed"},
        {f"{reason}" for reason in ALARMS},
        {f"{cause}" for cause in Cause},
        {f"{why}" for why in Aside},
    ],
    ids=["reconcile_error", "alarms of the history", "causes of a death", "reasons of an endpoint"],
)
def test_every_word_that_is_a_reason_is_in_it(words: set[str]) -> None:
    """Seen to fail with a RowError more."""
    assert sorted(words - NAMED) == []


def test_every_sentence_that_the_status_puts_on_top_is_in_it() -> None:
    """Seen to fail with a sentence more, and with one said in other words."""
    sentences = said.given_to("bad", "warn", folder="reconsup/shown/")
    sentences = {text: at for text, at in sentences.items() if re.search(r"\w+ \w+", text)}

    assert {text: at for text, at in sentences.items() if not any(each.rstrip("… ") in text for each in QUOTED)} == {}
    assert len(sentences) > 7


def test_every_reason_for_which_a_network_stops_is_in_it() -> None:
    reasons = said.given_to("_stop", folder="reconsup/worker/")

    assert len(reasons) > 0
    assert [reason for reason in reasons if reason not in QUOTED] == []


def test_every_exit_code_is_in_it() -> None:
    codes = said.exit_codes()

    assert codes >= {0, 64, 69, 70, 76, 78}
    assert [code for code in codes - {0} if not re.search(rf"^### Exit code .*\b{code}\b", BODY, re.MULTILINE)] == []


def test_every_code_of_a_wrong_setting_is_in_it() -> None:
    fixed = {word for word in said.words() if re.fullmatch(r"CONFIG_[A-Z_]+", word)}

    assert sorted(fixed - NAMED) == []
    assert {"CONFIG_DATABASE_URL_MISSING", "CONFIG_…_INVALID"} <= NAMED


def test_it_names_nothing_that_does_not_exist() -> None:
    """Events, metrics, columns, settings, codes. Seen to fail with `row_reffused`, and with RECONSUP_WORKER."""
    codes = {f"CONFIG_{setting.name.removeprefix('PAYMENT_REQUEST_')}_MISSING" for setting in SETTINGS}
    metric_names = {line.name for line in metrics.TABLE}
    named = {word for each in NAMED for word in re.findall(r"[A-Za-z]+(?:_[A-Za-z0-9]+)+", each)}
    settings = {word for word in named if re.match(r"RECONSUP_|PAYMENT_REQUEST_", word)}
    numbers = {word for word in named if word.startswith("reconsup_")}

    assert sorted(settings - set(BY_NAME) - {"RECONSUP_HOME"}) == []
    assert sorted(numbers - metric_names) == []
    assert sorted(named - settings - numbers - codes - said.words()) == []


def test_every_sentence_that_it_quotes_is_the_program_s() -> None:
    """Word for word, … for what is put in. Seen to fail with one that was reworded."""
    program = said.templates()

    assert [each for each in QUOTED if not any(each.rstrip("… ") in text for text in program)] == []


def test_each_part_says_what_is_seen_what_it_means_and_what_to_do() -> None:
    parts = re.split(r"^### ", BODY, flags=re.MULTILINE)[1:]

    wanting = [
        (part.partition("\n")[0], word)
        for part in parts
        for word in ("Seen", "Means", "Do")
        if f"**{word}:**" not in part
    ]
    assert wanting == []
    assert len(parts) > 40


def test_each_link_within_it_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    assert sorted(set(re.findall(r"\]\(#([^)]+)\)", PAGE)) - anchors) == []
    assert len(anchors) == len(headings), "two parts of one name"


def test_the_alerts_are_its_last_part() -> None:
    assert re.findall(r"^## .*$", PAGE, re.MULTILINE)[-1] == "## Alerts"
