"""The units, the settings file and the package fit the program, and one another. No systemd need run here.

What they do under a real one is tried by tests/packaging/vm.py.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from reconsup import cli
from reconsup.fleet import notify, slot
from reconsup.fleet.limits import WORKER_OOM_RAISE
from reconsup.settings import SETTINGS, load_from_process
from reconsup.settings_table import BY_NAME
from tests.packaging import env_file
from tests.support import tools

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "packaging/systemd"
UNITS = ("reconsup.service", "reconsup@.service")
# What a machine brings and the units name.
TARGETS = ("sysinit", "basic", "shutdown", "network-online", "nss-lookup", "multi-user")
PROGRAMS = ("bin/kill", "bin/sh")
EXPOSURE_MAX = 20  # tenths


def load_builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deb_build", ROOT / "packaging/deb/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = load_builder()


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The root of a machine on which the package is installed: with an empty program, and empty targets."""
    program = tmp_path / "program"
    program.touch()
    root = tmp_path / "root"
    files = {path: (source.read_bytes(), mode) for path, (source, mode) in BUILD.contents(program).items()}
    files |= {f"usr/lib/systemd/system/{name}.target": (b"[Unit]\n", 0o644) for name in TARGETS}
    files |= dict.fromkeys(PROGRAMS, (b"", 0o755))
    for path, (content, mode) in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        (root / path).chmod(mode)
    return root


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    path, environment = tools.systemd_analyze()
    return subprocess.run(
        [path, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60
    )


def settings_of(name: str) -> dict[str, list[str]]:
    """The unit's NAME=value lines. An empty value is one too: it takes everything away."""
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / name).read_text().splitlines():
        key, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def one(name: str, key: str) -> str:
    (value,) = settings_of(name)[key]
    return value


def test_systemd_has_nothing_to_say_against_the_units(machine: Path) -> None:
    """Seen to fail: with `WatchdogSecs=`, and with the program left out of the package."""
    said = analyze("verify", f"--root={machine}", "reconsup.service", "reconsup@shop.service")
    assert (said.stdout, said.stderr, said.returncode) == ("", "", 0)


def test_systemd_does_look(machine: Path) -> None:
    """The test above would pass if nothing was read at all."""
    unit = machine / "usr/lib/systemd/system/reconsup.service"
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    (machine / "usr/bin/reconsup").unlink()
    said = analyze("verify", f"--root={machine}", "reconsup.service", "reconsup@shop.service").stderr
    assert "Unknown key 'WatchdogSecs'" in said
    assert "/usr/bin/reconsup is not executable" in said


@pytest.mark.parametrize("unit", ["reconsup.service", "reconsup@shop.service"])
def test_the_service_is_exposed_to_little(machine: Path, unit: str) -> None:
    """2.0 or better. Seen to fail without the three lines of SystemCallFilter."""
    said = analyze("security", "--offline=true", f"--root={machine}", f"--threshold={EXPOSURE_MAX}", "--no-pager", unit)
    assert said.returncode == 0, said.stdout.splitlines()[-1]
    (figure,) = re.findall(r"exposure level for \S+: ([\d.]+)", said.stdout)
    assert float(figure) <= EXPOSURE_MAX / 10


def test_no_door_is_open_but_those_that_are_needed(machine: Path) -> None:
    said = analyze("security", "--offline=true", f"--root={machine}", "--json=short", "reconsup.service").stdout
    open_doors = {each["name"] for each in json.loads(said) if not each["set"] and each["exposure"]}
    # the network is needed, and these are explained in the unit
    assert open_doors <= {
        "PrivateNetwork=",
        "RestrictAddressFamilies=~AF_(INET|INET6)",
        "RestrictAddressFamilies=~AF_UNIX",
        "IPAddressDeny=",
        "PrivateUsers=",
        "ProcSubset=",
        "RootDirectory=/RootImage=",
        "PrivateMounts=",
        "DeviceAllow=",
    }


def test_the_template_differs_in_its_name_its_file_and_its_worker_id_only() -> None:
    single, template = (settings_of(name) for name in UNITS)
    differing = {key for key in single | template if single.get(key) != template.get(key)}
    assert differing == {"Description", "ExecStart", "Environment", "SyslogIdentifier"}
    assert template["ExecStart"] == [single["ExecStart"][0].replace("reconsup.env", "%i.env")]
    assert template["Environment"] == ["PAYMENT_REQUEST_RECONCILER_WORKER_ID=%H-%i"]


@pytest.mark.parametrize("unit", UNITS)
def test_the_program_understands_the_units_command_line(unit: str) -> None:
    program, *arguments = one(unit, "ExecStart").split()
    parsed = cli._parser().parse_args(arguments)
    assert program == "/usr/bin/reconsup"
    assert parsed.command is cli._run
    assert parsed.env_file.parent == Path("/etc/reconsup")


def test_a_variable_of_the_template_is_a_setting_and_no_secret() -> None:
    name = one("reconsup@.service", "Environment").partition("=")[0]
    assert not BY_NAME[name].is_secret


def test_a_person_is_waited_for_only_after_exits_that_a_person_must_mend() -> None:
    """69 (the database is away, the schema behind) and 70 (gave up) are tried again, for ever."""
    for unit in UNITS:
        assert one(unit, "RestartPreventExitStatus") == f"{cli.EXIT_USAGE} {cli.EXIT_CONFIG}"
        assert one(unit, "Restart") == "always"
        assert one(unit, "StartLimitIntervalSec") == "0"
    assert {slot.EXIT_UNAVAILABLE, slot.EXIT_GAVE_UP}.isdisjoint({cli.EXIT_USAGE, cli.EXIT_CONFIG})
    assert slot.EXIT_CONFIG == cli.EXIT_CONFIG


def default_seconds(name: str) -> float:
    return float(BY_NAME[name].default or "nan")


@pytest.mark.parametrize("unit", UNITS)
def test_the_units_time_outs_fit_the_programs(unit: str) -> None:
    limits = slot.Limits()
    start = default_seconds("RECONSUP_START_SECONDS") + cli.PROBE_SLACK_SECONDS
    boot = default_seconds("RECONSUP_BOOT_SECONDS")
    stop = default_seconds("RECONSUP_DRAIN_SECONDS") + limits.stacks_seconds + limits.farewell_seconds
    assert float(one(unit, "TimeoutStartSec")) >= start + boot + notify.MARGIN_SECONDS
    after_stop = int(re.findall(r"seq (\d+)", (SYSTEMD / "after-stop").read_text())[0]) * 0.1
    assert float(one(unit, "TimeoutStopSec")) >= stop + notify.MARGIN_SECONDS + after_stop
    assert float(one(unit, "WatchdogSec")) >= 3 * notify.PINGS_IN_A_PERIOD * notify.STATUS_EVERY_SECONDS


@pytest.mark.parametrize("unit", UNITS)
def test_the_supervisor_is_the_last_that_is_taken_when_memory_runs_out(unit: str) -> None:
    assert one(unit, "OOMPolicy") == "continue"
    adjust = int(one(unit, "OOMScoreAdjust"))
    assert adjust < 0 < adjust + WORKER_OOM_RAISE


def test_the_settings_file_is_the_one_that_is_made_of_the_table() -> None:
    """`python -m tests.packaging.env_file > packaging/systemd/reconsup.env` makes it."""
    assert (SYSTEMD / "reconsup.env").read_text() == env_file.text()
    assert set(env_file.MEANINGS) == {setting.name for setting in SETTINGS}


def test_the_settings_file_with_two_lines_filled_in_is_all_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every comment that shows a default made a setting too, nothing changes: the defaults are the program's."""
    for name in BY_NAME:
        monkeypatch.delenv(name, raising=False)
    text = (SYSTEMD / "reconsup.env").read_text()
    head, mark, rest = text.partition("# ---- all others\n")
    assert mark
    urls = '\'{"mainnet": "https://node.example/KEY"}\''
    filled = head.replace("\nDATABASE_URL=\n", "\nDATABASE_URL=postgresql://u:p@localhost/payments\n")
    filled = filled.replace("\nPAYMENT_REQUEST_EVM_RPC_URLS_JSON=\n", f"\nPAYMENT_REQUEST_EVM_RPC_URLS_JSON={urls}\n")
    plain, shown = tmp_path / "plain.env", tmp_path / "shown.env"
    plain.write_text(filled + mark + rest)
    shown.write_text(filled + re.sub(r"(?m)^# ([A-Z_]+=)", r"\1", rest))
    assert shown.read_text().count("\nRECONSUP_") > 10
    assert load_from_process({}, plain) == load_from_process({}, shown)


@pytest.mark.parametrize("unit", UNITS)
def test_every_path_that_a_unit_names_is_in_the_package_or_made_by_it(unit: str, machine: Path) -> None:
    text = "\n".join(line for line in (SYSTEMD / unit).read_text().splitlines() if not line.startswith("#"))
    named = set(re.findall(r"(/usr/(?:bin|lib|share)/reconsup[\w./-]*|/usr/share/doc/[\w./-]+)", text))
    assert "/usr/lib/reconsup/after-stop" in named
    assert {path for path in named if not (machine / path.lstrip("/")).is_file()} == set()
    assert "/etc/reconsup/" in text
    assert "/etc/reconsup" in (ROOT / "packaging/deb/postinst").read_text()


def page() -> str:
    return (ROOT / "packaging/INSTALL.md").read_text()


def test_every_path_that_the_install_page_names_is_in_the_package_or_the_checkout(machine: Path) -> None:
    named = set(re.findall(r"/usr/(?:share|lib)/reconsup/[\w./-]+\w", page()))
    assert named >= {"/usr/share/reconsup/prometheus/scrape.yml"}
    assert {path for path in named if not (machine / path.lstrip("/")).is_file()} == set()
    in_checkout = set(re.findall(r"(packaging/[\w./@-]+\w)", page()))
    assert {path for path in in_checkout if not (ROOT / path).is_file()} == set()


def test_by_hand_gives_the_same_files_as_the_package() -> None:
    """The lines of "Without the package" install every program, unit and user that the package has."""
    by_hand = page().partition("## Without the package")[2]
    wanted = {source for target, (source, _) in BUILD.FILES.items() if not target.startswith(BUILD.DOC)}
    assert {source for source in wanted if source not in by_hand} == set()


def test_the_install_page_has_five_commands() -> None:
    (block,) = re.findall(r"<!-- run: install -->\n```sh\n(.*?)```", page(), re.DOTALL)
    assert len(block.splitlines()) == 5


UNIT_CGROUP = "0::/system.slice/reconsup.service\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of the script's own: it ends processes, and must find none but ours."""
    path = tmp_path / "proc"
    told(path, "self", UNIT_CGROUP)
    return path


def told(proc: Path, pid: int | str, cgroup: str, name: str = "reconsup") -> None:
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "comm").write_text(f"{name}\n")
    (proc / str(pid) / "cgroup").write_text(f"9:name=systemd:/some\n{cgroup}")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def after_stop(proc: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([SYSTEMD / "after-stop", proc])


def test_after_a_killed_supervisor_its_workers_are_waited_for(proc: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """Seen to fail with one try."""
    told(proc, sleeper.pid, UNIT_CGROUP)
    waiting = after_stop(proc)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.5)
    (proc / str(sleeper.pid) / "comm").unlink()  # it has left
    assert waiting.wait(5) == 0
    assert sleeper.poll() is None


@pytest.mark.long
def test_a_worker_that_does_not_leave_is_killed_in_the_end(proc: Path, sleeper: subprocess.Popen[bytes]) -> None:
    told(proc, sleeper.pid, UNIT_CGROUP)
    assert after_stop(proc).wait(30) == 0
    assert sleeper.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "cgroup"),
    [("reconsup", "0::/system.slice/reconsup@shop.service\n"), ("sh", UNIT_CGROUP)],
    ids=["another-instance", "the-script-itself"],
)
def test_others_are_not_waited_for(proc: Path, name: str, cgroup: str, sleeper: subprocess.Popen[bytes]) -> None:
    told(proc, sleeper.pid, cgroup, name)
    assert after_stop(proc).wait(5) == 0


def test_outside_of_a_unit_the_script_waits_for_nobody(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """Else somebody who tries it in a shell would end every reconsup beside it. Seen to fail without the guard."""
    told(tmp_path / "proc", "self", "0::/\n")
    told(tmp_path / "proc", sleeper.pid, "0::/\n")
    assert after_stop(tmp_path / "proc").wait(5) == 0


def make_onefile(path: Path, *contents: bytes) -> Path:
    """A file that is laid out like the one file: an ELF header, index, stream, trailer."""
    launcher = b"\x7fELF".ljust(18, b"\0") + (62).to_bytes(2, "little")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = deflate.compress(b"".join(contents)) + deflate.flush()
    trailer = f"reconsup-onefile {len(launcher)} 0 {len(stream)} {'0' * 32}\n".encode().ljust(128, b"\n")
    path.write_bytes(launcher + stream + trailer)
    return path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    if not BUILD.shutil.which("dpkg-deb"):
        pytest.fail("dpkg-deb is not here: install the package dpkg")
    program = make_onefile(tmp_path / "reconsup", b"GLIBC_2.17 and ", b"x" * 2_000_000, b"GLIBC_2.36, GLIBC_2.4")
    return Path(BUILD.build(program, tmp_path))


def field(package: Path, name: str) -> str:
    return subprocess.run(["dpkg-deb", "-f", package, name], capture_output=True, text=True, check=True).stdout.strip()


def test_the_package_asks_for_the_c_library_that_its_program_needs(package: Path) -> None:
    assert package.name == f"reconsup_{BUILD.version()}_amd64.deb"
    assert "libc6 (>= 2.36)" in field(package, "Depends")


def test_the_package_is_the_same_each_time_and_all_of_it_is_roots(package: Path, tmp_path: Path) -> None:
    first = package.read_bytes()
    again = tmp_path / "again"
    again.mkdir()
    assert Path(BUILD.build(tmp_path / "reconsup", again)).read_bytes() == first
    listed = subprocess.run(["dpkg-deb", "-c", package], capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in listed.splitlines()} == {"root/root"}
    assert not [line for line in listed.splitlines() if re.match(r".....w|........w", line)]


def test_installing_starts_and_restarts_nothing_and_keeps_an_edited_file() -> None:
    """What the package's scripts say; that they do it is tried by tests/packaging/vm.py."""
    postinst = (ROOT / "packaging/deb/postinst").read_text()
    assert set(re.findall(r"systemctl (?:--\w+ )?([\w-]+)", postinst)) <= {"daemon-reload", "is-active", "restart"}
    assert re.findall(r"systemctl restart", re.sub(r"echo .*", "", postinst)) == []
    assert "! -e /etc/reconsup/reconsup.env" in postinst
    for name in BUILD.SCRIPTS:
        subprocess.run(["sh", "-n", ROOT / "packaging/deb" / name], check=True)


def test_at_a_shutdown_the_database_is_stopped_after_us() -> None:
    for unit in UNITS:
        assert "postgresql.service" in one(unit, "After").split()
