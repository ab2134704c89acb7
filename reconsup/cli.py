"""The commands, their flags and exit codes; the only place where the rooms are wired together.

Answers go to stdout, everything else to stderr. An operating error is one sentence that says what to do, never a
traceback.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import reconsup
from reconsup import logs
from reconsup.settings import (
    BY_FIELD,
    SETTINGS,
    ConfigError,
    ConfigErrors,
    Settings,
    load_database_url,
    load_from_process,
    load_metrics_address,
)
from reconsup.settings_table import METRICS_ADDRESS

if TYPE_CHECKING:
    from reconsup.fleet.plan import Limits

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 64
EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78

EMBEDDED = "embedded:"
MEMORY_FOLDER = "/dev/shm"  # noqa: S108 - a folder of ours is made in it
MEBIBYTE = 1 << 20
BUSY_SECONDS_MIN = 10.0  # two polls; a request that is due for longer has nobody to look at it
BEHIND_SECONDS_MIN = 60.0  # several blocks of a slow chain
PROBE_SLACK_SECONDS = 10.0  # the probe ends by itself at the start deadline; this bounds one that hangs


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser().parse_args(with_default_command(given))
    try:
        sys.exit(parsed.command(parsed))
    except ConfigErrors as errors:
        for error in errors.errors:
            print(error, file=sys.stderr)
        sys.exit(EXIT_CONFIG)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `reconsup check | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is exit code 64."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def with_default_command(arguments: list[str]) -> list[str]:
    """`reconsup --workers 4` means `reconsup run --workers 4`."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        return ["run", *arguments]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="reconsup", description=reconsup.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"reconsup {reconsup.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    run = _add(commands, "run", _run, "the supervisor and its workers (the default command)")
    _add_settings(run)
    migrate = _add(commands, "migrate", _migrate, "bring the database's schema up or down")
    migrate.add_argument("action", nargs="?", default="upgrade", choices=("upgrade", "downgrade", "current"))
    migrate.add_argument("revision", nargs="?", help="default: head (downgrade needs one: a name, -1, or base)")
    migrate.add_argument("--database-url", dest="DATABASE_URL", metavar="URL")
    migrate.add_argument("--env-file", type=Path, metavar="PATH")
    check = _add(commands, "check", _check, "try settings, database, schema and endpoints, a line each")
    _add_settings(check)
    _add_status(commands)
    chain = _add(commands, "chain", _chain, "start a network that stopped itself, on the chain its endpoints show")
    chain.add_argument("network", metavar="NETWORK")
    chain.add_argument("action", choices=("resume",))
    chain.add_argument(
        "--from",
        dest="from_height",
        type=_height,
        metavar="HEIGHT",
        help="the block above which to read again: one from before the chains parted (default: where they do)",
    )
    _add_settings(chain)
    demo = _add(commands, "demo", _demo, "the whole thing on this machine: chain, database, payments, a crash")
    demo.add_argument("--plain", action="store_true", help="plain lines instead of the live table")
    return parser


def _add(
    commands: "argparse._SubParsersAction[_Parser]",
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(command=command)
    return parser


def _add_status(commands: "argparse._SubParsersAction[_Parser]") -> None:
    status = _add(commands, "status", _status, "show the supervisor that runs here, or with --all every host")
    status.description = (
        "Shows the supervisor that listens on the metrics address: workers, backlog, networks. Exits with 0 if there "
        "was something to show, whatever it says (--ready tells whether the host is ready), else with 69."
    )
    status.add_argument(
        "--ready",
        action="store_true",
        help="one line, and 0 only if the host is ready as /readyz says, else 69: for scripts",
    )
    status.add_argument("--all", action="store_true", help="ask the database for every host that works on it")
    status.add_argument(
        "--json", action="store_true", help="what /status says, for programs (with --all: all hosts, however long gone)"
    )
    status.add_argument("--watch", action="store_true", help="show it again every second, until Ctrl-C")
    status.add_argument(
        "--metrics-address", dest=METRICS_ADDRESS, metavar="HOST:PORT", help="where the supervisor listens"
    )
    status.add_argument("--database-url", dest="DATABASE_URL", metavar="URL", help="the database, for --all")
    status.add_argument("--env-file", type=Path, metavar="PATH", help="the file that the supervisor is started with")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env-file", type=Path, metavar="PATH", help="settings as NAME=value lines; they win over the environment"
    )
    for setting in SETTINGS:
        default = f" (default: {setting.default})" if setting.default else ""
        text = f"{setting.rule}{default}; {setting.name}".replace("%", "%%")
        parser.add_argument(setting.flag, dest=setting.name, metavar="VALUE", help=text)


def _height(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a block's height")
    return int(text)


def _flags(parsed: argparse.Namespace) -> dict[str, str]:
    names = {setting.name for setting in SETTINGS}
    return {name: value for name, value in vars(parsed).items() if name in names and value is not None}


def _run(parsed: argparse.Namespace) -> int:
    settings = load_from_process(_flags(parsed), parsed.env_file)
    logs.configure(settings.log_format)
    _warn(settings)
    with ExitStack() as stack:
        with_database = _with_database(settings, stack)
        if with_database is None:
            return EXIT_UNAVAILABLE
        return _supervise(with_database, lambda: _read_again(parsed, settings, with_database), stack)


def _warn(settings: Settings) -> None:
    for warning in settings.warnings:
        logs.get_logger().warning("settings", warning=warning)


def _supervise(settings: Settings, read_again: Callable[[], Settings], stack: ExitStack) -> int:
    """Import everything heavy once, then fork: a new worker is ready in milliseconds and costs a few megabytes."""
    from reconsup.fleet import supervisor
    from reconsup.monitor import http, metrics
    from reconsup.worker import probe, process

    def setup(settings: Settings) -> supervisor.Setup:
        return supervisor.Setup(
            supervisor.Roles(
                worker=lambda seat: process.run(seat, settings),
                monitor=lambda seat: http.run(seat, settings),
                probe=lambda seat: probe.run(seat, settings),
            ),
            least=settings.workers.least,
            most=settings.workers.most,
            limits=_limits(settings),
        )

    def reload() -> supervisor.Setup:
        try:
            return setup(read_again())
        except ConfigErrors as errors:
            raise supervisor.SetupRefused(*map(str, errors.errors)) from errors

    directory = stack.enter_context(metrics.folder(_memory_folder()))
    options = supervisor.Options(settings.worker_base, reconsup.__version__, directory)
    return supervisor.run(setup(settings), options, reload)


def _read_again(parsed: argparse.Namespace, settings: Settings, running: Settings) -> Settings:
    """The settings as they are now, at HUP. What cannot change while the supervisor runs is an error.

    `running`: the ones it was started with, an embedded database's URL being that of the server.
    """
    again = load_from_process(_flags(parsed), parsed.env_file, is_again=True)
    errors = [
        _needs_restart(field)
        for field, is_kept in (
            ("worker_base", again.worker_base == settings.worker_base),
            ("database_url", again.database_url == settings.database_url or not _is_embedded(again, settings)),
        )
        if not is_kept
    ]
    if errors:
        raise ConfigErrors(errors)
    _warn(again)
    return replace(again, database_url=running.database_url) if _is_embedded(again) else again


def _is_embedded(*several: Settings) -> bool:
    return any(settings.database_url.startswith(EMBEDDED) for settings in several)


def _needs_restart(field: str) -> ConfigError:
    name = BY_FIELD[field].name
    return ConfigError("CONFIG_NEEDS_RESTART", name, None, "cannot change while the supervisor runs: restart it")


def _limits(settings: Settings) -> "Limits":
    from reconsup.fleet.plan import Limits

    return Limits(
        boot_seconds=settings.boot_seconds,
        drain_seconds=settings.drain_seconds,
        start_seconds=settings.start_seconds + PROBE_SLACK_SECONDS,
        watchdog_seconds=settings.watchdog_seconds,
        recycle_seconds=settings.recycle_seconds,
        recycle_bytes=int(settings.recycle_memory_mb * MEBIBYTE),
        busy_seconds=max(BUSY_SECONDS_MIN, 2 * settings.poll_interval_seconds),
        behind_seconds=max(BEHIND_SECONDS_MIN, 4 * settings.poll_interval_seconds),
    )


def _memory_folder() -> Path:
    """Where the metrics' files live: in memory where the system has such a folder, else where temporary files go."""
    return Path(MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK) else tempfile.gettempdir())


def _check(parsed: argparse.Namespace) -> int:
    settings = load_from_process(_flags(parsed), parsed.env_file)
    from reconsup import check

    with ExitStack() as stack:
        with_database = _with_database(settings, stack)
        return EXIT_UNAVAILABLE if with_database is None else check.run(with_database, print)


def _status(parsed: argparse.Namespace) -> int:
    from reconsup import settings
    from reconsup.status import command

    if parsed.ready and (parsed.all or parsed.json or parsed.watch):
        _complain("reconsup: --ready answers for one host, once, in one line: give it without --all, --json, --watch")
        return EXIT_USAGE
    manner = command.Manner(
        as_json=parsed.json,
        again=parsed.watch,
        is_colored=settings.wants_colors(),
        is_movable=settings.is_movable(),
    )
    if parsed.all:
        url = load_database_url(_flags(parsed), parsed.env_file)
        if not url.startswith(EMBEDDED):
            return command.of_everyone(url, manner)
        _complain("reconsup: only one reconsup works on an embedded database: ask it without --all")
        return EXIT_UNAVAILABLE
    address = load_metrics_address(_flags(parsed), parsed.env_file)
    if address is None:
        _complain(
            "reconsup: the supervisor has no listener (RECONSUP_METRICS_ADDRESS is empty): `reconsup status --all` "
            "asks the database instead"
        )
        return EXIT_UNAVAILABLE
    return command.is_ready(address) if parsed.ready else command.of_host(address, manner)


def _chain(parsed: argparse.Namespace) -> int:
    settings = load_from_process(_flags(parsed), parsed.env_file)
    from reconsup import resume

    with ExitStack() as stack:
        with_database = _with_database(settings, stack)
        if with_database is None:
            return EXIT_UNAVAILABLE
        return resume.run(with_database, parsed.network, parsed.from_height, print, _complain)


def _complain(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _with_database(settings: Settings, stack: ExitStack) -> Settings | None:
    """The settings with a URL that a client can use: an embedded PostgreSQL is started and ends with us."""
    url = _started(settings.database_url, stack)
    return None if url is None else replace(settings, database_url=url)


def _started(url: str, stack: ExitStack) -> str | None:
    if not url.startswith(EMBEDDED):
        return url
    from reconsup.store import embedded

    try:
        return stack.enter_context(embedded.start(Path(url.removeprefix(EMBEDDED)))).url
    except embedded.EmbeddedError as error:
        print(f"reconsup: {error}", file=sys.stderr)
        return None


def _migrate(parsed: argparse.Namespace) -> int:
    from reconsup.store import migrate
    from reconsup.store.ddl import MigrationError

    flags = {"DATABASE_URL": parsed.DATABASE_URL} if parsed.DATABASE_URL else {}
    url = load_database_url(flags, parsed.env_file)
    if parsed.action == "downgrade" and parsed.revision is None:
        print(
            "reconsup: say how far down: `reconsup migrate downgrade REVISION` (a name, -1, or base)", file=sys.stderr
        )
        return EXIT_USAGE
    with ExitStack() as stack:
        started = _started(url, stack)
        if started is None:
            return EXIT_UNAVAILABLE
        try:
            if parsed.action == "current":
                print(migrate.schema_state(started).sentence())
                return EXIT_OK
            go = migrate.upgrade if parsed.action == "upgrade" else migrate.downgrade
            done = go(started, parsed.revision or "head")
        except migrate.UnknownRevision as error:
            print(f"reconsup: {error}", file=sys.stderr)
            return EXIT_USAGE
        except MigrationError as error:
            print(f"reconsup: {error}", file=sys.stderr)
            return EXIT_UNAVAILABLE
        print(f"schema: {done.before or 'none'} → {done.after or 'none'}")
        return EXIT_OK


def _demo(parsed: argparse.Namespace) -> int:
    from reconsup.demo import show

    return show.run(is_plain=parsed.plain)


if __name__ == "__main__":
    main()
