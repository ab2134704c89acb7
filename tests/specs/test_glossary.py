"""Each word that the program writes is explained once, and nothing is explained that nobody says."""

import re
import typing
from pathlib import Path

import pytest

from reconsup.chain.node import Aside
from reconsup.fleet.slot import Cause, WorkerState
from reconsup.fleet.state import Phase
from reconsup.monitor import metrics
from reconsup.payments.request import Reason, RowError, Status
from reconsup.store.persist import Refusal

ROOT = Path(__file__).parent.parent.parent
GLOSSARY = ROOT / "specs/glossary.md"
ENTRIES = re.findall(r"^\*\*([^*]+)\*\*: (.+?)(?=\n\n|\n?\Z)", GLOSSARY.read_text(), re.MULTILINE | re.DOTALL)
WORDS = [word for word, _ in ENTRIES]
TABLES: dict[str, set[str]] = {
    **{kind.__name__: set(kind) for kind in (Status, Reason, RowError, WorkerState, Cause, Phase, Aside)},
    "Refusal": set(typing.get_args(Refusal)),
    "failures of rows": {
        value.replace("set_aside", "set aside") for value in metrics.ROW_FAILURES.line.values["reason"]
    },
    "the field's own": {
        *("lease", "epoch", "fence", "touch", "tail", "span", "admission", "credit", "settlement", "evidence_ref"),
        *("finality", "seat", "slot", "incarnation", "drain", "claim", "persist", "view", "cursor", "scan", "witness"),
    },
}


@pytest.mark.parametrize("name", TABLES)
def test_every_word_of_the_programs_tables_is_explained(name: str) -> None:
    """Seen to fail with `parked`, `payment_again` and `refuses` taken out of the page."""
    assert {str(word) for word in TABLES[name]} - set(WORDS) == set()


def test_words_stand_once_and_in_order_with_a_sentence_or_two() -> None:
    assert sorted(set(WORDS), key=lambda word: (re.sub(r"[^a-z]", " ", word), word)) == WORDS
    assert len(WORDS) == GLOSSARY.read_text().count("\n**")
    assert [word for word, text in ENTRIES if not text.endswith(".") or len(re.findall(r"[.:] [A-Z]", text)) > 3] == []


def test_no_word_is_explained_that_nobody_uses() -> None:
    """In the code, or on a page. Seen to fail with an entry `mempool`."""
    pages = [path for pattern in ("specs/**/*.md", "README.md", "packaging/*.md") for path in ROOT.glob(pattern)]
    paths = [*(ROOT / "reconsup").rglob("*.py"), *(ROOT / "migrations").rglob("*.py"), *pages]
    text = " ".join(path.read_text() for path in paths if path != GLOSSARY).lower()

    unused = [word for word in WORDS if not re.search(rf"(?<![a-z]){re.escape(word)}(?:s|es|d|ed|ing)?(?![a-z])", text)]
    assert unused == []
