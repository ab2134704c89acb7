"""One host as a page for a browser: what is wrong first, then all that is known. PURE.

What is wrong, and what stands in the tables of workers and networks, is what `reconsup status` says
(`reconsup.shown.host`); here it is only laid out. Every text is escaped (`reconsup.shown.html`).

`told` is the body of /status; `recent` what the database said while somebody looks, see `reconsup.monitor.front`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from reconsup.shown import host
from reconsup.shown.everyone import STOPPED
from reconsup.shown.html import Html, joined, tag, text
from reconsup.shown.lines import EMPTY, NOTHING, Column, Piece, Style, figure, span
from reconsup.shown.sheet import SCRIPT, STYLE

Told = Mapping[str, Any]

WORKERS_MAX = 64  # lines; more are counted, those in trouble stay
NETWORKS_MAX = 64
CRASHES_MAX = 12
AGAIN_SECONDS = 5  # where there is no JavaScript
OLD_SECONDS = 15.0  # what the database said earlier is marked as old
_ORDER = ("pending", "detected", "confirmed", "reorged", "expired", "failed")
_CLASSES = {Style.BAD: "bad", Style.WARN: "warn", Style.GOOD: "good", Style.DIM: "dim", Style.BOLD: "bold"}
_STATUSES = {"confirmed": "good", "detected": "info", "reorged": "bad", "expired": "warn", "failed": "bad"}
_ICONS = {"good": "#2e7d4f", "warn": "#b26a00", "bad": "#c62828"}
_LONG = 16  # letters of name and value: on a narrow screen it has a line of its own
_DECIMALS_MAX = 77
_DIGITS_MAX = 100  # of an amount that is written out


@dataclass(frozen=True, slots=True)
class Look:
    """The page of one moment. `state`: good, warn or bad; `main` what is drawn anew at every look."""

    title: str
    state: str
    main: Html
    icon: str


def look(told: Told, recent: Told) -> Look:
    """All of it."""
    problems = host.problems(told)
    is_bad = any(problem[0].style is Style.BAD for problem in problems)
    state = "bad" if is_bad else "warn" if problems else "good"
    count = sum(problem[0].style is (Style.BAD if is_bad else Style.WARN) for problem in problems)
    words = f"{count} {'wrong' if is_bad else 'to look at'}" if problems else "ok"
    name = str(told["supervisor"].get("base") or "reconsup")
    sections = (
        _head(told, name),
        _verdict(problems),
        _tiles(told),
        _networks(told),
        _workers(told),
        _requests(told["backlog"]),
        _transitions(told, recent),
        _crashes(told),
        _hosts(told, recent),
        _foot(),
    )
    return Look(f"{words} – {name} – reconsup", state, joined(*sections), icon(state))


def document(seen: Look, made: str) -> str:
    """The whole page; `made`: what tells this version of it from others."""
    head = joined(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="robots", content="noindex"),
        tag("title", seen.title),
        tag("link", rel="icon", id="icon", href=seen.icon),
        tag("style", Html(STYLE)),
        tag("noscript", tag("meta", http_equiv="refresh", content=str(AGAIN_SECONDS))),
    )
    live = tag(
        "p",
        tag("span", "", class_="dot", aria_hidden="true"),
        tag("span", f"Loads itself anew every {AGAIN_SECONDS} seconds", id="words", role="status"),
        tag("span", "", id="age", aria_hidden="true"),
        id="live",
    )
    body = tag("body", live, tag("main", seen.main, id="page"), tag("script", Html(SCRIPT)), data_made=made)
    return "<!doctype html>\n" + tag("html", tag("head", head), body, lang="en", data_live="plain")


def icon(state: str) -> str:
    """A dot of the state's colour and shape, for the browser's tab."""
    shape = {
        "good": "<circle cx='8' cy='8' r='6' {}/>",
        "warn": "<path d='M8 1 15 14H1z' {}/>",
        "bad": "<path d='M2 2h12v12H2z' {}/>",
    }[state].format(f"fill='{_ICONS[state]}'")
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>{shape}</svg>"
    return "data:image/svg+xml," + svg.replace("#", "%23").replace("<", "%3C").replace(">", "%3E").replace(" ", "%20")


def _head(told: Told, name: str) -> Html:
    supervisor = told["supervisor"]
    state = str(supervisor["state"])
    up = span(host.seconds_between(supervisor.get("started_at"), told.get("at")))
    reloading = supervisor.get("reload") in host.RELOADING
    facts = [
        tag("span", state, class_=f"pill {'good' if state == 'running' else 'warn'}"),
        *([tag("span", "takes new settings", class_="pill warn")] if reloading else []),
        tag("span", f"up {up}"),
        tag("span", f"reconsup {supervisor['version']}"),
        tag("span", f"pid {supervisor['pid']}"),
        tag("span", _moment(told.get("at"), None)),
    ]
    return tag("header", tag("h1", name), tag("p", *facts, class_="facts"))


def _verdict(problems: Sequence[Sequence[Piece]]) -> Html:
    if not problems:
        return tag("p", tag("strong", "✓ Nothing is wrong"), " that this host knows of.", class_="verdict good")
    items = []
    for problem in problems:
        first, *rest = problem
        if rest:
            mark, words = ("✗", "wrong: ") if first.style is Style.BAD else ("!", "look at: ")
            sign = tag("span", mark, class_="sign", aria_hidden="true")
            items.append(tag("li", sign, tag("span", words, class_="unseen"), *_pieces(rest), class_=_class(first)))
        else:
            items.append(tag("li", first.text.strip(), class_="hint"))
    name = "What is wrong" if any(problem[0].style is Style.BAD for problem in problems) else "What to look at"
    return tag("section", tag("h2", name), tag("ul", *items), class_="verdict")


def _tiles(told: Told) -> Html:
    workers, backlog = told["workers"], told["backlog"]
    ready, wanted = sum(worker["state"] == "ready" for worker in workers), host.workers_wanted(told)
    due = backlog["due"]
    oldest = (
        f"the oldest for {span(backlog['oldest_due_seconds'])}" if due else "none waits" if due == 0 else "not known"
    )
    lags = [each["lag_seconds"] for each in told["networks"].values() if each["lag_seconds"] is not None]
    tiles = (
        ("Workers ready", f"{ready} of {wanted}", "", "good" if ready >= wanted else "bad"),
        ("Due now", NOTHING if due is None else f"{due:,}", oldest, "warn" if due is None else ""),
        ("Leases held", str(sum(worker["leases"] for worker in workers)), "by this host", ""),
        ("Last block read", f"{span(max(lags))} old" if lags else NOTHING, "of the network furthest behind", ""),
    )
    return tag("dl", *(_tile(*tile) for tile in tiles), class_="tiles")


def _tile(name: str, value: str, note: str, style: str) -> Html:
    return tag(
        "div", tag("dt", name), tag("dd", value, class_=f"value {style}".strip()), tag("dd", note, class_="note")
    )


def _networks(told: Told) -> Html:
    columns = (host.NETWORKS[0], Column("state"), *host.NETWORKS[1:])
    rows = []
    for name, network in list(told["networks"].items())[:NETWORKS_MAX]:
        first, *others = host.network_row(name, network)
        rows.append([first, _network_state(told, name, network), *others])
    note = _more(len(told["networks"]) - NETWORKS_MAX)
    return _section("Networks", _table("Networks", columns, rows), note, empty="No network is configured.")


def _network_state(told: Told, name: str, network: Told) -> Piece:
    problems = host.network_problems(told, name, network)
    if problems:
        _, said = problems[0][:2]
        return Piece(said.text.removeprefix(f"network {name}").lstrip(": ").removeprefix("is "), said.style)
    is_known = network["scanned"] is not None
    return Piece("reads", Style.GOOD) if is_known else Piece("not known", Style.WARN)


def _workers(told: Told) -> Html:
    workers, left_out = host.chosen(told, WORKERS_MAX)
    rows = [host.worker_row(told, worker) for worker in workers]
    return _section("Workers", _table("Workers", host.WORKERS, rows), left_out, empty="There is none.")


def _requests(backlog: Told) -> Html:
    counts: Mapping[str, int] = backlog["by_status"] or {}
    ago, unserved = backlog.get("counted_seconds_ago"), backlog.get("unserved")
    most = max(counts.values(), default=0)
    names = [*(name for name in _ORDER if name in counts), *sorted(set(counts) - set(_ORDER))]
    items = [
        tag("tr", _cell("th", "status", _status(name), scope="row"), _cell("td", "count", f"{counts[name]:,}", "right"),
            _cell("td", "", _bar(counts[name], most), "wide"), role="row")
        for name in names
    ]  # fmt: skip
    errors = backlog.get("row_errors") or {}
    notes = [f"counted {span(ago)} ago"] if counts else []
    notes += [f"row errors: {', '.join(f'{kind} {count}' for kind, count in sorted(errors.items()))}"] if errors else []
    notes += [f"{unserved} open, of networks without an endpoint here"] if unserved else []
    head = _head_row((Column("status"), Column("count", is_right=True), Column("")))
    table = tag("table", head, tag("tbody", *items, role="rowgroup"), role="table", class_="bars") if items else None
    return _section("Requests by status", table, "; ".join(notes), empty="Not counted yet, or not known.")


def _bar(count: int, most: int) -> Html:
    width = f"{100 * count / most:.1f}%" if most else "0"
    rect = tag("rect", width=width, height="8", rx="2")
    return tag("svg", rect, class_="bar", aria_hidden="true", height="8", width="100%")


def _transitions(told: Told, recent: Told) -> Html:
    columns = (Column("when"), Column("request"), Column("status"), Column("reason"), Column("amount"),
               Column("network"), Column("by", 1))  # fmt: skip
    entries = recent.get("transitions")
    rows = [[_when(each, told, recent), str(each.get("request_id")), _step(each), _reason(each), _amount(each),
             figure(each.get("network")), figure(each.get("worker_id"))] for each in entries or ()]  # fmt: skip
    empty = "Nothing has happened yet." if entries is not None else _unread(recent)
    return _section("Last transitions", _table("Last transitions", columns, rows), _read_at(recent), empty=empty)


def _when(entry: Told, told: Told, recent: Told) -> Html:
    ago = entry.get("seconds_ago")
    since = recent.get("seconds_ago") or 0.0
    age = f"{span(ago + since)} ago" if isinstance(ago, int | float) else ""
    return joined(_moment(entry.get("at"), told.get("at")), " ", tag("span", age, class_="dim"))


def _step(entry: Told) -> Html:
    before, after = str(entry.get("from_status")), str(entry.get("to_status"))
    if before == after:
        return joined(_status(after), tag("span", " stays", class_="dim"))
    return joined(_status(before), tag("span", " → ", class_="dim"), _status(after))


def _reason(entry: Told) -> Html:
    error = entry.get("error")
    said = tag("span", str(entry.get("reason")))
    return joined(said, tag("span", f" {error}", class_="warn")) if error else said


def _amount(entry: Told) -> str:
    """What was there of what was asked for; in whole units where it is known how many digits they have."""
    paid, expected = entry.get("amount_minor"), entry.get("expected_amount_minor")
    if paid is None and expected is None:
        return NOTHING
    asset, decimals = entry.get("asset"), entry.get("token_decimals")
    if entry.get("is_native") and asset == "ETH":
        decimals = 18
    if not isinstance(decimals, int) or not 0 <= decimals <= _DECIMALS_MAX:
        return f"{figure(paid)} of {figure(expected)} smallest units of {figure(asset)}"
    return f"{_units(paid, decimals)} of {_units(expected, decimals)} {figure(asset)}"


def _units(minor: object, decimals: int) -> str:
    digits = str(minor)
    if minor is None or not digits.isdecimal() or len(digits) > _DIGITS_MAX:
        return figure(minor) if minor is None else f"{digits} smallest units"
    whole = digits.rjust(decimals + 1, "0")
    point = len(whole) - decimals
    return f"{int(whole[:point]):,}" + (f".{fraction}" if (fraction := whole[point:].rstrip("0")) else "")


def _crashes(told: Told) -> Html:
    columns = (Column("when"), Column("worker"), Column("died of"), Column("at request", 1), Column("pid", 1, True))
    crashes: Sequence[Told] = told.get("crashes") or ()
    empty = "None since it was started." if "crashes" in told else "Not known."
    rows = [_crash(crash, told.get("at")) for crash in crashes[:CRASHES_MAX]]
    note = _more(len(crashes) - CRASHES_MAX)
    return _section("Last crashes", _table("Last crashes", columns, rows), note, empty=empty)


def _crash(crash: Told, now: object) -> list[str | Piece]:
    age = tag("span", f"{span(crash['seconds_ago'])} ago", class_="dim")
    return [
        joined(_moment(crash["at"], now), " ", age),
        str(crash["worker_id"]),
        Piece(host.died_of(crash), Style.WARN),
        figure(crash.get("row")),
        str(crash["pid"]),
    ]


def _hosts(told: Told, recent: Told) -> Html:
    columns = (Column("host"), Column("state"), Column("ready", is_right=True), Column("seen ago", is_right=True),
               Column("networks", 2), Column("version", 2), Column("pid", 3, True))  # fmt: skip
    entries = recent.get("hosts")
    mine = told["supervisor"].get("base")
    rows = [_host(each, recent) for each in entries or () if each.get("base") != mine]
    empty = "None was seen within a day." if entries is not None else _unread(recent)
    return _section("Other hosts on this database", _table("Other hosts", columns, rows), _read_at(recent), empty=empty)


def _host(entry: Told, recent: Told) -> list[str | Piece]:
    state, served, is_quiet = entry.get("state"), entry.get("networks"), entry.get("gone")
    is_gone = is_quiet and state != STOPPED
    seen = float(entry.get("seen_seconds_ago") or 0.0)
    ready, wanted = entry.get("workers_ready"), entry.get("workers_wanted") or entry.get("slots")
    style = Style.BAD if is_gone else Style.GOOD if state == "running" else Style.WARN
    return [
        Piece(str(entry.get("base")), Style.BOLD),
        Piece("gone" if is_gone else figure(state), style),
        f"{figure(None if is_quiet else ready)}/{figure(wanted)}",
        span(seen + (recent.get("seconds_ago") or 0.0)),
        ", ".join(map(str, served)) if isinstance(served, list) else NOTHING,
        str(entry.get("version")),
        str(entry.get("pid")),
    ]


def _unread(recent: Told) -> str:
    problem = recent.get("problem")
    return f"Not known: {problem}" if problem else "Not read yet: it is read while somebody looks."


def _read_at(recent: Told) -> str:
    ago, problem = recent.get("seconds_ago"), recent.get("problem")
    if ago is None:
        return ""
    why = f": {problem}" if problem else ""
    return f"read {span(ago)} ago" if ago <= OLD_SECONDS and not problem else f"old: read {span(ago)} ago{why}"


def _foot() -> Html:
    links = ("status", "metrics", "readyz", "healthz")
    pages = [joined(tag("a", f"/{name}", href=name), " ") for name in links]
    note = "Times are UTC. This page changes nothing. For programs: "
    return tag("footer", tag("p", note, *pages))


def _section(name: str, table: Html | None, note: str = "", *, empty: str) -> Html:
    style = "note warn" if note.startswith("old") else "note"
    inside = [tag("h2", name), tag("p", note, class_=style) if note else ""]
    return tag("section", *inside, table if table else tag("p", empty, class_="empty"))


def _table(name: str, columns: Sequence[Column], rows: Sequence[Sequence[str | Piece]]) -> Html | None:
    """A real table; on a narrow screen each row becomes a card. Columns that say nothing are left out."""
    if not rows:
        return None
    kept = [
        at for at, each in enumerate(columns) if each.rank == 0 or any(_words(row[at]) not in EMPTY for row in rows)
    ]
    body = [
        tag("tr", *(_cell("td" if at else "th", columns[at].title, row[at], "right" if columns[at].is_right else None,
                          scope=None if at else "row") for at in kept), role="row")
        for row in rows
    ]  # fmt: skip
    head = _head_row([columns[at] for at in kept])
    return tag("table", head, tag("tbody", *body, role="rowgroup"), role="table", aria_label=name)


def _head_row(columns: Iterable[Column]) -> Html:
    cells = [
        tag("th", each.title, scope="col", role="columnheader", class_="right" if each.is_right else None)
        for each in columns
    ]
    return tag("thead", tag("tr", *cells, role="row"), role="rowgroup")


def _cell(kind: str, of: str, inside: str | Piece, style: str | None = None, scope: str | None = None) -> Html:
    role = "rowheader" if scope else "cell"
    is_empty = _words(inside) in EMPTY
    styles = " ".join(
        each
        for each in (style, "nothing" if is_empty else None, "long" if len(of) + len(_words(inside)) > _LONG else None)
        if each
    )
    words = joined(*_pieces([inside])) if isinstance(inside, Piece) else inside
    return tag(kind, words, role=role, scope=scope, data_of=of, class_=styles or None)


def _words(inside: str | Piece) -> str:
    return inside.text if isinstance(inside, Piece) else inside


def _pieces(pieces: Iterable[Piece]) -> list[Html]:
    return [tag("span", each.text, class_=_class(each)) if _class(each) else text(each.text) for each in pieces]


def _class(piece: Piece) -> str | None:
    return _CLASSES.get(piece.style)


def _status(status: str) -> Html:
    return tag("span", status, class_=f"pill {_STATUSES.get(status, '')}".strip())


def _moment(at: object, now: object) -> Html:
    """A moment in UTC: the time of day, with the date unless it is today's (by `now`)."""
    try:
        moment = datetime.fromisoformat(str(at)).astimezone(UTC)
    except (ValueError, OverflowError):
        return text(NOTHING if at is None else str(at))
    day = f"{moment:%Y-%m-%d} "
    words = f"{'' if str(now).startswith(day.strip()) else day}{moment:%H:%M:%S}{'' if now else ' UTC'}"
    return tag("time", words, datetime=moment.isoformat(), title=f"{moment:%Y-%m-%d %H:%M:%S} UTC")


def _more(count: int) -> str:
    return f"… and {count} more" if count > 0 else ""
