"""`python -m tests.local up | receive-test | down`: 0, or sentences on stderr and 1; 64 for a knob that is none."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tests.local import knobs
from tests.local.parts import ROOT
from tests.local.place import Place
from tests.local.trouble import EXIT_USAGE, Trouble

FOLDER = ROOT / ".local"


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says."""
    given = _parser().parse_args(arguments)
    try:
        if not Path("/proc/self/stat").exists():
            raise Trouble("this needs Linux: processes are told apart by what is in /proc")
        _do(given)
    except Trouble as trouble:
        for sentence in trouble.sentences:
            print(f"local: {sentence}", file=sys.stderr)
        return trouble.code
    except (OSError, subprocess.SubprocessError) as error:
        print(f"local: the system refuses what is needed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("local: interrupted; what was started runs on: `make local-down` ends it", file=sys.stderr)
        return 130
    return 0


def _do(given: argparse.Namespace) -> None:
    """The knobs are judged first, then the folder is ours; each command's imports are its own."""
    place = Place(given.folder)
    if given.command == "up":
        wanted = knobs.read(os.environ)
        from tests.local.up import up

        with place.locked():
            up(place, wanted, _say)
    elif given.command == "down":
        keeps_data = knobs.keeps_data(os.environ)
        from tests.local.down import down

        with place.locked():
            down(place, _say, keeps_data=keeps_data)
    else:
        from tests.local.receive import receive

        with place.locked():
            receive(place, _say, kill=given.kill)


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # `… | head`: nobody reads on, and what was begun is finished all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m tests.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    for name in ("up", "receive-test", "down"):
        command = commands.add_parser(name)
        command.add_argument("--folder", type=Path, default=FOLDER, help="where all of it lives (default: .local)")
        if name == "receive-test":
            command.add_argument(
                "--kill", metavar="NAME", help="kill this supervisor while its workers have work in hand"
            )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
