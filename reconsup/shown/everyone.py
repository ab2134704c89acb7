"""Every host that works on one database, as a screen of lines. PURE.

`Told` is what `reconsup status --all --json` prints; see `reconsup.status.hosts.told`.
"""

from collections.abc import Mapping
from typing import Any

from reconsup.shown.host import bad, networks, warn
from reconsup.shown.lines import GAP, Column, Line, Piece, Style, cut, figure, line, mebibytes, span, table

Told = Mapping[str, Any]

_HOSTS = (
    Column("host"),
    Column("state"),
    Column("ready"),
    Column("restarts", 1, is_right=True),
    Column("leases", 1, is_right=True),
    Column("memory", 4, is_right=True),
    Column("seen ago", is_right=True),
    Column("reads", 2),
    Column("version", 3),
    Column("pid", 5, is_right=True),
)
STOPPED = "stopped"


def picture(told: Told, width: int, height: int | None = None) -> list[Line]:
    """All of it, no line longer than `width` and no more than `height` lines."""
    gone = [host for host in told["hosts"] if host["gone"] and host["state"] != STOPPED]
    living = sum(not host["gone"] for host in told["hosts"])
    head = [cut(_title(told, living, len(gone)), width), *(cut(each, width) for each in _problems(told))]
    hosts = table(_HOSTS, [_host(each) for each in told["hosts"]], width)
    scans = networks({each["network"]: each for each in told["networks"]}, width)
    lines = [*head, *([line(), *hosts] if hosts else []), *([line(), *scans] if scans else [])]
    if height is not None and len(lines) > height:
        lines = [*lines[: height - 1], line(Piece(f"… {len(lines) - height + 1} lines more", Style.DIM))]
    return lines


def _title(told: Told, count: int, gone: int) -> Line:
    words = f"{count} host{'' if count == 1 else 's'} on this database"
    pieces = [Piece(words, Style.GOOD if count else Style.BAD)]
    if gone:
        pieces.append(Piece(f"{GAP}{gone} gone", Style.WARN))
    return (*pieces, Piece(f"{GAP}{told['at'][:19].replace('T', ' ')} UTC (database)", Style.DIM))


def _problems(told: Told) -> list[Line]:
    served = {name for host in told["hosts"] if not host["gone"] for name in host["networks"] or ()}
    found = []
    for each in told["networks"]:
        if each["stop_reason"]:
            found.append(bad(f"network {each['network']} is stopped: {each['stop_reason']}"))
        elif each["holder"] is None and each["network"] in served:
            found.append(bad(f"network {each['network']} is read by nobody"))
        elif each["network"] not in served:
            found.append(warn(f"network {each['network']} is served by no living host"))
    strangers = told["unknown_owners"]
    if strangers["leases"] or strangers["scans"]:
        kinds = [f"leases of unknown owners: {strangers['leases']}"] if strangers["leases"] else []
        kinds += [f"scans of unknown owners: {', '.join(strangers['scans'])}"] if strangers["scans"] else []
        ends = strangers["end_in_seconds"]
        when = f"the last ends in {span(ends)}" if ends > 0 else "their time is over, anybody may take them"
        found.append(bad(f"{', '.join(kinds)}; {when}"))
    return found


def _host(host: Told) -> list[Piece]:
    is_lost = host["gone"] and host["state"] != STOPPED
    state = "gone" if is_lost else host["state"] or figure(None)
    ready, wanted = None if host["gone"] else host["workers_ready"], host["workers_wanted"]
    is_short = not host["gone"] and (ready is None or ready < wanted)
    return [
        Piece(host["base"], Style.BOLD),
        Piece(state, Style.BAD if is_lost else Style.GOOD if state == "running" else Style.WARN),
        Piece(f"{figure(ready)}/{wanted}", Style.WARN if is_short else Style.PLAIN),
        Piece(figure(host["restarts"]), Style.WARN if host["restarts"] else Style.DIM),
        Piece(str(host["leases"])),
        Piece(figure(None) if host["gone"] else mebibytes(host["memory_bytes"])),
        Piece(span(host["seen_seconds_ago"]), Style.BAD if is_lost else Style.PLAIN),
        Piece(", ".join(host["scans"]) or figure(None)),
        Piece(host["version"]),
        Piece(str(host["pid"])),
    ]
