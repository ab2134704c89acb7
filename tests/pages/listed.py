"""Which command of a page is run where. A command in none of these lists fails `test_every_command_is_run_or_listed`.

To add one, copy it from the test's message and put it where it belongs:

* `ON_STAGE`: it is run as written by tests/pages/test_commands.py, with the exit code given here, in the order of its
  page, on a stage with a database, a chain and a supervisor. What cannot be there is put in by `STAND_INS`.
* `ELSEWHERE`: another test runs it; say which (`tests/file.py::test_name`; the test is looked for).
* `BY_HAND`: no test can. Say who ran it, when, and why no test can.

`make` targets that .ci/run runs, `python -m pytest` with tests that exist, and commands within a sentence that begin
with `reconsup` or `make`, need no entry: they are parsed (by the real command line parser; the Makefile). Blocks of SQL
are run; JSON, INI and TOML are read. For a block of any other kind (`yaml`), for SQL that wants a stage of its own, and
for a block of commands that one test runs as a whole, `BLOCKS` says by its first line which test that is. A page whose
test takes all blocks below a remark `<!-- run: name -->` has one entry in `MARKED`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hand:
    """Who ran it, when, and why no test can."""

    who: str
    when: str
    why: str


# As written → what stands there in the test. FOLDER is the test's own; PID the supervisor's; PORT where it listens.
STAND_INS = {
    "/etc/reconsup/": "FOLDER/etc/reconsup/",
    "--env-file reconsup.env": "--env-file FOLDER/etc/reconsup/reconsup.env",
    "root:reconsup": "OWNER",  # the user and group of the tests
    "NETWORK": "local",
    "127.0.0.1:9464": "127.0.0.1:PORT",
}

ON_STAGE = {
    "reconsup migrate": 0,
    "reconsup migrate current": 0,
    "reconsup check": 0,
    "reconsup check --env-file reconsup.env": 0,
    "python -m tests.specs.states": 0,
    "reconsup --workers 4": 0,
    "reconsup status": 0,
    "reconsup status --env-file /etc/reconsup/reconsup.env": 0,
    "reconsup check --env-file /etc/reconsup/reconsup.env": 0,
    "reconsup migrate --env-file /etc/reconsup/owner.env": 0,
    "reconsup chain NETWORK resume --env-file /etc/reconsup/reconsup.env": 0,
    "kill -HUP PID": 0,
    "kill -USR2 PID": 0,
    "make": 0,
    ".venv/bin/python -m tests.test_readme settings": 0,
    ".venv/bin/python -m tests.test_readme metrics": 0,
    ".venv/bin/python -m tests.packaging.env_file": 0,
    "chown root:reconsup /etc/reconsup/reconsup.env": 0,
    "chmod 0640 /etc/reconsup/reconsup.env": 0,
}

LOCAL = "tests/local/test_local.py"

ELSEWHERE: dict[str, str] = {
    "SERVICE_RECONCILER_REPLICAS=2 SERVICE_RECONCILER_WORKERS=2 make local-up-all": LOCAL,
    "make local-up-all": LOCAL,
    "make local-receive-test": LOCAL,
    "make local-down": LOCAL,
    "make spec-lint": "tests/specs/test_lint.py::test_nothing_is_wrong_with_the_pages",
}

CONTAINERS = (
    "the writer of the compose file, with Podman 4.3, docker-compose 1.29 and images made by hand: all came up but a "
    "port of the Grafana stand-in, so service-up ended with 1; docker itself, and the real images, nobody has run"
)
NO_ENGINE = "the tests have no container engine; tests/packaging/test_service.py runs it beside a stand-in for one"

UNITS = "the writer of the units (tests/packaging/vm.py), under systemd 252"

BY_HAND: dict[str, Hand] = {
    "SERVICE_RECONCILER_REPLICAS=2 SERVICE_RECONCILER_WORKERS=2 make service-up": Hand(
        CONTAINERS, "2026-11-24", NO_ENGINE
    ),
    "make service-down": Hand(CONTAINERS, "2026-11-24", NO_ENGINE),
    "make demo": Hand(
        "the writer of these pages, in a clean clone",
        "2026-11-24",
        "it makes the environment that the tests themselves run in; tests/story/test_demo.py runs what it runs then",
    ),
    "systemctl status reconsup": Hand(UNITS, "2026-11-24", "the tests have no systemd as PID 1"),
    "systemctl reload reconsup": Hand(UNITS, "2026-11-24", "the tests have no systemd as PID 1"),
    "systemctl start reconsup": Hand(UNITS, "2026-11-24", "the tests have no systemd as PID 1"),
    "journalctl -u reconsup -p warning": Hand(UNITS, "2026-11-24", "the tests have no journal of a service"),
    "journalctl -k": Hand("the writer of these pages", "2026-11-24", "it shows the machine's own log"),
    'make bench PARTS="claims writes"': Hand(
        "the writer of these pages, in a clean clone", "2026-11-24", "it measures for minutes"
    ),
    "make deb": Hand(UNITS, "2026-11-24", "dpkg-deb is Debian's; tests/packaging/test_units.py holds what goes in"),
    "make binary": Hand(
        "the writer of the one file", "2026-11-24", "make test-launch makes it before its tests; it takes minutes"
    ),
}

# Make targets that a page names before they are there. Once they are, they must be listed as others are.
TARGETS_TO_COME: set[str] = set()

# page → the first line of a block → the test that reads it
BLOCKS: dict[str, dict[str, str]] = {
    "packaging/SECURITY.md": {
        "CREATE ROLE reconsup_owner LOGIN;": "tests/pages/test_security.py",
        "GRANT USAGE ON SCHEMA app TO reconsup_run;": "tests/pages/test_security.py",
    },
}

# page → the test that runs every block below a remark <!-- run: name --> or reads it below <!-- lines: name -->
# (vm.py is run by hand: it wants a machine of its own under systemd)
MARKED = {"packaging/INSTALL.md": "tests/packaging/vm.py"}
