"""One host as its /status tells it, as a screen of lines. PURE.

What a person must know at once stands at the top. Fields that an older supervisor does not send are shown as unknown.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from reconsup.shown.lines import (
    GAP,
    Column,
    Line,
    Piece,
    Style,
    cut,
    facts,
    figure,
    line,
    mebibytes,
    span,
    table,
)

Told = Mapping[str, Any]

SILENT_SECONDS = 30.0  # where the watchdog's time is not told
LAG_SECONDS_MAX = 60.0
SPARE = 512
RELOAD_PROBLEMS = {
    "refused": "the last ones were refused, nothing has changed",
    "failed": "no worker could start with the last ones, nothing has changed",
    "stalled": "not all workers have them yet, those that follow cannot start",
}
RELOADING = ("begun", "accepted")

_STATES = {
    "ready": Style.GOOD,
    "booting": Style.WARN,
    "draining": Style.WARN,
    "dead": Style.BAD,
    "backoff": Style.BAD,
    "parked": Style.BAD,
}
WORKERS = (
    Column("slot", is_right=True),
    Column("worker", 5),
    Column("state"),
    Column("pid", 1, is_right=True),
    Column("restarts", 1, is_right=True),
    Column("left by", 2),
    Column("leases", 1, is_right=True),
    Column("memory", 3, is_right=True),
    Column("cycle", 3, is_right=True),
    Column("beat", 1, is_right=True),
    Column("loop", 6),
    Column("age", 4, is_right=True),
    Column("started in", 7, is_right=True),
)
NETWORKS = (
    Column("network"),
    Column("head", 1, is_right=True),
    Column("scanned", is_right=True),
    Column("lag", is_right=True),
    Column("at head", 1),
    Column("read by", 2),
    Column("proven", 3),
    Column("old blocks left", 4, is_right=True),
)


def picture(told: Told, width: int, height: int | None = None) -> list[Line]:
    """All of it, no line longer than `width`; healthy workers are left out where there would be more than `height`."""
    head = [cut(_title(told), width), *(cut(each, width) for each in problems(told))]
    crash = facts([("last crash", _last_crash(told))], width)
    tail = [*_apart(crash), *_apart(_backlog(told["backlog"], width)), *_apart(networks(_networks(told), width))]
    room = None if height is None else max(height - len(head) - len(tail) - 2, 2)
    lines = [*head, *_apart(_workers(told, width, room)), *tail]
    if height is not None and len(lines) > height:
        lines = [*lines[: height - 1], line(Piece(f"… {len(lines) - height + 1} lines more", Style.DIM))]
    return lines


def problems(told: Told) -> list[Line]:
    """What a person should look at, the worst first."""
    supervisor, found = told["supervisor"], []
    reason = supervisor.get("problem") or told.get("database", {}).get("problem")
    if reason:
        found.append(bad(f"not ready: {reason}"))
    reload = supervisor.get("reload")
    if reload in RELOAD_PROBLEMS:
        found.append(warn(f"new settings: {RELOAD_PROBLEMS[reload]} (see its log)"))
    for name, network in _networks(told).items():
        found += network_problems(told, name, network)
    patience = _patience(told)
    for worker in told["workers"]:
        if worker["state"] == "parked":
            found.append(bad(f"slot {_seat(worker)} is parked: it died too often; HUP gives it another chance"))
        elif _is_silent(worker, patience):
            loop = f" from its loop {worker['loop']}" if worker.get("loop") else ""
            found.append(bad(f"slot {_seat(worker)}: no sign of life{loop} for {span(worker['beat_seconds_ago'])}"))
    return sorted(found, key=lambda each: each[0].style is Style.WARN)


def bad(sentence: str) -> Line:
    """A line that says what is wrong."""
    return line(Piece("! ", Style.BAD), Piece(sentence, Style.BAD))


def warn(sentence: str) -> Line:
    """A line that says what may be wrong, or may mend itself."""
    return line(Piece("! ", Style.WARN), Piece(sentence, Style.WARN))


def networks(told: Mapping[str, Told], width: int) -> list[Line]:
    """The table of networks."""
    return table(NETWORKS, [network_row(name, each) for name, each in told.items()], width)


def seconds_between(earlier: str | None, later: str | None) -> float | None:
    """How long after the one moment the other was, both as ISO 8601."""
    if earlier is None or later is None:
        return None
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def _title(told: Told) -> Line:
    supervisor = told["supervisor"]
    ready, wanted = [worker["state"] for worker in told["workers"]].count("ready"), workers_wanted(told)
    up = span(seconds_between(supervisor["started_at"], told.get("at")))
    return line(
        Piece(supervisor.get("base") or "reconsup", Style.BOLD),
        GAP,
        Piece(supervisor["state"], Style.GOOD if supervisor["state"] == "running" else Style.WARN),
        GAP,
        Piece(f"{ready} of {wanted} workers ready", Style.GOOD if ready >= wanted else Style.BAD),
        Piece(GAP + "takes new settings" if supervisor.get("reload") in RELOADING else "", Style.WARN),
        GAP + f"pid {supervisor['pid']}" + GAP + f"up {up}",
        Piece(GAP + f"reconsup {supervisor['version']}", Style.DIM),
    )


def workers_wanted(told: Told) -> int:
    """How many workers there are to be."""
    wanted: int = told["supervisor"].get("workers_wanted") or len(told["workers"])
    return wanted


def _workers(told: Told, width: int, room: int | None) -> list[Line]:
    """The workers in `room` lines, in the order of their slots; without room for all, rather those in trouble."""
    shown, counts = chosen(told, room)
    lines = table(WORKERS, [worker_row(told, each) for each in shown], width)
    return [*lines, cut(line(Piece(counts, Style.DIM)), width)] if counts else lines


def chosen(told: Told, room: int | None) -> tuple[Sequence[Told], str]:
    """The workers that are shown where `room` lines are (None: as many as it takes), those in trouble first to stay;
    and what is said of those that are not.

    Seats in which nobody is wanted are not shown.
    """
    workers = [each for each in told["workers"] if each["state"] != "empty" or each["slot"] < workers_wanted(told)]
    if room is None or len(workers) + 1 <= room:
        return workers, ""
    patience = _patience(told)
    by_need = sorted(workers, key=lambda each: each["state"] == "ready" and not _is_silent(each, patience))
    kept = {each["slot"] for each in by_need[: max(room - 2, 0)]}
    states = [each["state"] for each in workers if each["slot"] not in kept]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return [each for each in workers if each["slot"] in kept], f"… and {counts}"


def worker_row(told: Told, worker: Told) -> list[Piece]:
    """A worker's pieces under WORKERS."""
    state, at = worker["state"], told.get("at")
    is_silent = _is_silent(worker, _patience(told))
    beat = Piece(span(worker.get("beat_seconds_ago")), Style.BAD if is_silent else Style.PLAIN)
    restarts = worker["restarts"]
    causes = sorted((worker.get("causes") or {}).items(), key=lambda each: -each[1])
    return [
        Piece(_seat(worker)),
        Piece(worker["worker_id"]),
        Piece(state, _STATES.get(state, Style.PLAIN)),
        Piece(figure(worker["pid"])),
        Piece(str(restarts), Style.WARN if restarts else Style.DIM),
        Piece(", ".join(f"{count} {cause}" for cause, count in causes), Style.WARN),
        Piece(str(worker["leases"])),
        Piece(mebibytes(worker.get("memory_bytes"))),
        Piece(span(seconds_between(worker["last_cycle"], at))),
        beat,
        Piece(worker.get("loop") or "", Style.DIM),
        Piece(span(worker.get("age_seconds"))),
        Piece(_milliseconds(worker.get("ready_seconds"))),
    ]


def _seat(worker: Told) -> str:
    return "spare" if worker["slot"] == SPARE else str(worker["slot"])


def _patience(told: Told) -> float:
    return float(told["supervisor"].get("watchdog_seconds") or 2 * SILENT_SECONDS) / 2


def _is_silent(worker: Told, patience: float) -> bool:
    """Whether it gave no sign of life for so long that somebody should know."""
    beat = worker.get("beat_seconds_ago")
    return worker["state"] in ("ready", "draining") and beat is not None and beat > patience


def _milliseconds(seconds: float | None) -> str:
    return figure(None) if seconds is None else f"{seconds * 1000:.0f} ms"


def _backlog(told: Told, width: int) -> list[Line]:
    due, oldest, counts = told["due"], told["oldest_due_seconds"], told["by_status"]
    ago = told.get("counted_seconds_ago")
    errors, unserved = told.get("row_errors") or {}, told.get("unserved")
    requests = [Piece(f"{status} {count}") for status, count in (counts or {}).items()]
    waiting = [Piece("nothing" if due == 0 else str(due))] if due is not None else [Piece("not known", Style.WARN)]
    pairs: list[tuple[str, list[Piece]]] = [
        ("due", waiting + ([Piece(f"the oldest for {span(oldest)}")] if due else [])),
        ("requests", [*requests, Piece(f"counted {span(ago)} ago", Style.DIM)] if requests else []),
        ("row errors", [Piece(f"{kind} {count}", Style.WARN) for kind, count in errors.items()]),
        ("unserved", [Piece(f"{unserved} open, of networks without an endpoint here", Style.WARN)] if unserved else []),
    ]
    return facts(pairs, width)


def _last_crash(told: Told) -> list[Piece]:
    crashes = told.get("crashes") or ()
    if not crashes:
        return []
    last = crashes[0]
    row = last.get("row")
    return [
        Piece(f"{last['worker_id']} {died_of(last)}", Style.WARN),
        Piece(f"{span(last['seconds_ago'])} ago"),
        *([Piece(f"at request {row}")] if row else []),
    ]


def died_of(crash: Told) -> str:
    """Of what a process died, in a few words."""
    how = crash.get("signal") or f"exit code {figure(crash.get('exit_code'))}"
    return f"{crash['cause']} ({how})"


def _networks(told: Told) -> Mapping[str, Told]:
    found: Mapping[str, Told] = told["networks"]
    return found


def network_row(name: str, told: Told) -> list[Piece]:
    """A network's pieces under NETWORKS."""
    lag, at_head = told["lag_seconds"], told.get("at_head")
    return [
        Piece(name),
        Piece(figure(told["head"])),
        Piece(figure(told["scanned"])),
        Piece(span(lag)),
        _yes_or_no(at_head, Style.WARN) if not told.get("stop_reason") else Piece("stopped", Style.BAD),
        Piece((told["holder"] or figure(None)).partition("#")[0]),
        _yes_or_no(told.get("proven"), Style.PLAIN),
        Piece(figure(told.get("span_blocks_left"))),
    ]


def _yes_or_no(fact: bool | None, style: Style) -> Piece:
    return Piece(figure(None)) if fact is None else Piece("yes") if fact else Piece("no", style)


def network_problems(whole: Told, name: str, told: Told) -> list[Line]:
    """What a person should look at in one network."""
    if told.get("stop_reason"):
        return [
            bad(f"network {name} is stopped: {told['stop_reason']}"),
            line(Piece(f"  if the chain that it read is gone for good: reconsup chain {name} resume", Style.DIM)),
        ]
    if told.get("disagrees"):
        return [bad(f"network {name}: its endpoints show different blocks: nothing is written (reconsup check)")]
    head, scanned, lag = told["head"], told["scanned"], told["lag_seconds"]
    if told.get("proven") is None and whole["backlog"]["due"] is not None:
        return [warn(f"network {name}: none of its blocks was read yet")]
    if head is None or scanned is None or told.get("at_head") is not False or (lag or 0) <= LAG_SECONDS_MAX:
        return []
    if head > scanned:
        return [warn(f"network {name} is {head - scanned} blocks behind")]
    return [warn(f"network {name}: none of its endpoints shows its head now (reconsup check)")]


def _apart(block: list[Line]) -> list[Line]:
    return [line(), *block] if block else []
