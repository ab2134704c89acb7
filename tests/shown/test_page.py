"""The status page as text: what it says, and that nobody's words become markup."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from reconsup.shown import host, page, sheet
from reconsup.shown.html import Html, tag
from reconsup.shown.lines import Style, text
from tests.shown import told

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\u202e\x1b[2J\x00\ud800"
SICK = told.SICK | {"crashes": told.CRASHES}
UNREAD: dict[str, Any] = {"transitions": None, "hosts": None, "seconds_ago": None, "problem": None}
VOID = {"meta", "link"}


class Reader(HTMLParser):
    """What a browser would make of it: the elements, balanced, and the words."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(what: Any = None, recent: Any = None) -> Reader:
    return Reader(page.document(page.look(what or told.host(), recent or told.RECENT), "made"))


def strings(what: Any, evil: str, ours: frozenset[str] = frozenset()) -> Any:
    """The same with every text, and every name of a network or a status, replaced; not the moments that are `ours`."""
    if isinstance(what, dict):
        return {
            key if key in KEYS else evil + key: value if key in ours else strings(value, evil, ours)
            for key, value in what.items()
        }
    if isinstance(what, list | tuple):
        return [strings(each, evil, ours) for each in what]
    return evil + what if isinstance(what, str) else what


def keys(what: Any) -> Iterator[str]:
    if isinstance(what, dict):
        for key, value in what.items():
            yield key
            yield from keys(value)
    elif isinstance(what, list | tuple):
        for each in what:
            yield from keys(each)


KEYS = set(keys(SICK)) | set(keys(told.RECENT))
MOMENTS = frozenset({"at", "started_at", "last_cycle"})
KEYS -= {*SICK["networks"], "mainnet", "pending", "confirmed", "detected", "failed", "set_aside", "hang"}


def test_what_is_wrong_stands_first_in_the_words_of_the_command() -> None:
    seen = read(SICK)
    wrong = seen.text.partition("Workers ready")[0]

    for problem in host.problems(SICK):
        assert text(problem, is_colored=False).removeprefix("! ").strip() in wrong
    assert [words for tag_, words in seen.elements if tag_ == "li" and words.get("class") == "bad"] != []
    assert "Nothing is wrong" in read().text
    assert "Nothing is wrong" not in seen.text


@pytest.mark.parametrize(
    ("what", "title"),
    [(told.host(), "ok – pay-1 – reconsup"), (SICK, "4 wrong – pay-1 – reconsup"),
     (told.host(networks={"base": told.network(scanned=1, lag_seconds=99.0, at_head=False)}),
      "1 to look at – pay-1 – reconsup")],
)  # fmt: skip
def test_the_tab_tells_the_state(what: Any, title: str) -> None:
    seen = page.look(what, told.RECENT)

    assert seen.title == title
    assert seen.icon != page.icon("good") or title.startswith("ok")
    assert len({page.icon(state) for state in ("good", "warn", "bad")}) == 3


@pytest.mark.parametrize("what", [told.host(), SICK, told.OLD])
@pytest.mark.parametrize("recent", [told.RECENT, UNREAD, {**told.RECENT, "transitions": [], "hosts": []}])
def test_nobodys_words_become_markup(what: Any, recent: Any) -> None:
    """Names of networks and hosts, reasons, ids, problems, versions: every text at once.

    Seen to fail when an element's words, and when an attribute's, are not escaped.
    """
    calm, evil = read(what, recent), read(strings(what, EVIL, MOMENTS), strings(recent, EVIL))

    names = [name for name, _ in evil.elements]
    assert names.count("script") == 1
    assert names.count("img") == 0
    assert {key for _, given in evil.elements for key in given} <= {
        *{key for _, given in calm.elements for key in given},
        *("title", "datetime"),
    }
    assert "<script>alert(1)</script>" in evil.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e\ud800]", "".join(evil.words))


def test_a_text_is_escaped_unless_it_is_markup_already() -> None:
    assert tag("p", "<b>", Html("<i></i>"), title="'\"<") == '<p title="&#39;&quot;&lt;">&lt;b&gt;<i></i></p>'
    assert tag("p", Html("<b>").lower()) == "<p>&lt;b&gt;</p>", "what was made of markup is text again"


def test_nothing_comes_from_elsewhere_and_no_style_or_handler_stands_in_an_element() -> None:
    """What the page's own policy would refuse, and what would tell others who looks."""
    seen = read(SICK)

    addresses = {given[key] for _, given in seen.elements for key in ("src", "href", "action") if key in given}
    assert {each for each in addresses if each and not each.startswith("data:")} == {
        "status",
        "metrics",
        "readyz",
        "healthz",
    }
    assert not [given for _, given in seen.elements if any(key == "style" or key.startswith("on") for key in given)]
    assert "http" not in sheet.STYLE
    assert "http" not in sheet.SCRIPT
    assert "</" not in sheet.SCRIPT.replace("</main>", "")


def test_without_javascript_it_loads_itself_anew_and_says_when_it_was_so() -> None:
    seen = read()

    assert ("meta", {"http-equiv": "refresh", "content": "5"}) in seen.elements
    assert "2026-01-02 03:04:05 UTC" in seen.text
    assert "every 5 seconds" in seen.text


@pytest.mark.parametrize("what", [told.OLD, {**told.OLD, "workers": [], "networks": {}}])
def test_what_is_not_known_is_said_to_be_not_known(what: Any) -> None:
    """The database is away, and nobody ever looked: no zero, no "none" in place of a figure."""
    seen = read(what, {**UNREAD, "problem": "connection refused"}).text

    assert "not ready: connection refused" in seen
    assert "Due now – not known" in seen
    assert "Not counted yet, or not known." in seen
    assert seen.count("Not known: connection refused") == 2
    assert "Nothing has happened" not in seen
    assert "None since" not in seen
    assert "Nothing is wrong" not in seen


def test_what_was_read_before_an_outage_is_marked_as_old() -> None:
    seen = read(told.host(), {**told.RECENT, "seconds_ago": 41.0, "problem": "the database is away"}).text

    assert seen.count("old: read 41 s ago: the database is away") == 2
    assert "old: read 1.5 s ago" not in read().text
    assert "old: read 16 s ago" in read(told.host(), {**told.RECENT, "seconds_ago": 16.0}).text


@pytest.mark.parametrize(
    ("paid", "expected", "fields", "shown"),
    [
        ("1500000000000000000", "1000000000000000000", {}, "1.5 of 1 ETH"),
        ("1", "1000000000000000000", {}, "0.000000000000000001 of 1 ETH"),
        ("115792089237316195423570985008687907853269984665640564039457584007913129639935", "0", {},
         "115,792,089,237,316,195,423,570,985,008,687,907,853,269,984,665,640,564,039,457.584007913129639935 of 0 ETH"),
        ("2500000", "5000000", told.USDT, "2.5 of 5 USDT"),
        ("2500000", None, told.USDT, "2.5 of – USDT"),
        (None, None, {}, "–"),
        ("7", "9", {"asset": "XYZ", "is_native": False}, "7 of 9 smallest units of XYZ"),
        ("7", "9", {"asset": None, "is_native": None}, "7 of 9 smallest units of –"),
        ("7", "9", {**told.USDT, "token_decimals": 0}, "7 of 9 USDT"),
        ("7", "9", {**told.USDT, "token_decimals": 10**9}, "7 of 9 smallest units of USDT"),
        ("7", "9", {**told.USDT, "token_decimals": -1}, "7 of 9 smallest units of USDT"),
        ("NaN", "9000000", told.USDT, "NaN smallest units of 9 USDT"),
        ("-5", "9000000", told.USDT, "-5 smallest units of 9 USDT"),
    ],
)  # fmt: skip
def test_amounts_are_written_whole_and_never_rounded(
    paid: str | None, expected: str | None, fields: dict[str, Any], shown: str
) -> None:
    """Seen to fail when they are divided as floats."""
    entry = told.a_transition(1, amount_minor=paid, expected_amount_minor=expected, **fields)

    assert (
        f" payment_confirmed {shown} {fields.get('network', 'mainnet')} "
        in read(told.host(), {**told.RECENT, "transitions": [entry]}).text
    )


def test_a_moment_of_another_day_has_its_date_and_one_that_is_none_is_shown_as_it_is() -> None:
    moments = ("2026-01-02T05:04:01+02:00", "2025-12-31T23:59:59+00:00")
    entries = [told.a_transition(number, at=at) for number, at in enumerate(moments)]
    entries.append(told.a_transition(3, at="infinity", seconds_ago="x"))
    seen = read(told.host(), {**told.RECENT, "transitions": entries}).text

    assert "03:04:01 6.0 s ago" in seen
    assert "2026-01-02 03:04:01" not in seen
    assert "2025-12-31 23:59:59" in seen
    assert "infinity" in seen


def test_a_crowd_of_workers_stays_short_and_those_in_trouble_are_shown() -> None:
    workers = [told.worker(n, **({"state": "backoff"} if n in (400, 500) else {})) for n in range(512)]
    seen = read(told.host(*workers))

    shown = [given for name, given in seen.elements if name == "th" and given.get("data-of") == "slot"]
    assert len(shown) == page.WORKERS_MAX - 2
    assert "backoff" in seen.text
    assert "… and 450 ready" in seen.text


def test_the_other_hosts_are_shown_and_this_one_is_not_one_of_them() -> None:
    seen = read(told.host()).text.partition("Other hosts")[2]

    assert "pay-1" not in seen
    assert "pay-2 running 3/4" in seen
    assert "pay-3 gone –/2" in seen


def test_tables_are_tables_for_those_who_do_not_see_them() -> None:
    seen = read(SICK)

    roles = {
        given.get("role") for name, given in seen.elements if name in ("table", "thead", "tbody", "tr", "th", "td")
    }
    assert roles == {"table", "rowgroup", "row", "columnheader", "rowheader", "cell"}
    assert [given["lang"] for name, given in seen.elements if name == "html"] == ["en"]
    headings = [name for name, _ in seen.elements if name in ("h1", "h2")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1


def _luminance(color: str) -> float:
    color = color if len(color) == 7 else "#" + "".join(letter * 2 for letter in color[1:])
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_colour_of_words_can_be_read_on_its_ground() -> None:
    """WCAG AA: 4.5 to 1, in light and in dark."""
    light, dark = re.findall(r":root \{([^}]*)\}", sheet.STYLE)
    for scheme in (light, dark):
        colors = dict(re.findall(r"--([\w-]+): (#\w+)", light + scheme))
        pairs = [
            (words, ground) for words in ("ink", "soft", "good", "warn", "bad", "info") for ground in ("card", "ground")
        ]
        pairs += [(name, f"{name}-ground") for name in ("good", "warn", "bad", "info")]
        for words, ground in pairs:
            bright, dim = sorted((_luminance(colors[words]), _luminance(colors[ground])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (words, ground)


def test_each_style_of_a_piece_has_a_class() -> None:
    assert {Style.PLAIN, *page._CLASSES} == set(Style)
