"""packaging/INSTALL.md, line by line, on a bare Debian 12 whose PID 1 is systemd; then all that may happen.

`python -m tests.packaging.vm dist/reconsup_….deb [LATER.deb]`, by hand, as root: takes eight minutes, Debian's archive
and two packages of the host's (mmdebstrap, systemd-container). LATER is a package of a later version; without it the
same program is packed again as one. RECONSUP_VM_BASE: a folder in which the bare file system is kept for the next time.

Only `nano` is not run as written: it is where a person writes lines, and they are written.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from reconsup.demo.anvil import find_anvil
from tests.packaging import machine, test_units
from tests.packaging.machine import Machine

PAGE = (test_units.ROOT / "packaging/INSTALL.md").read_text()
DATABASE = "postgresql://reconsup:choose-one@127.0.0.1:5432/payments"
NODE = "http://127.0.0.1:8545"
LINES = "".join(
    f"{line}\\n"
    for line in (
        f"DATABASE_URL={DATABASE}",
        f'PAYMENT_REQUEST_EVM_RPC_URLS_JSON={{"anvil": "{NODE}"}}',
        "PAYMENT_REQUEST_RECONCILER_POLL_INTERVAL_SECONDS=1",
    )
)
ENV = "/etc/reconsup/reconsup.env"
MAIN_PID = "$(systemctl show -p MainPID --value reconsup)"
READY = "curl -sf http://127.0.0.1:9464/readyz"
CROWD = """
INSERT INTO app.payment_requests (id, chain, network, asset, status, address_canonical, address_scheme,
                                  derivation_index, chain_id, expires_at, expected_amount_minor)
SELECT 'crowd_' || n, 'ethereum', 'anvil', 'ETH', 'pending', '0x' || lpad(to_hex(n), 40, '0'), 'evm_bip44', n, 31337,
       now() + interval '1 hour', 1 FROM generate_series(1, 5000) AS n ON CONFLICT DO NOTHING
"""
# Only rows that no worker has in hand: 5,000 in any order could meet a worker's own order in a deadlock.
WORK = """
UPDATE app.payment_requests SET next_reconcile_at = now() WHERE id IN (
  SELECT id FROM app.payment_requests WHERE id LIKE 'crowd%' FOR UPDATE SKIP LOCKED)
"""


class Story:
    """What is done on the machine, and what must be true then."""

    def __init__(self, vm: Machine, first: str, later: str) -> None:
        self.vm = vm
        self.names = {"reconsup_0.1.0_amd64.deb": first, "reconsup_0.2.0_amd64.deb": later}

    def block(self, name: str, *, lines: str = LINES, is_tolerant: bool = False) -> list[str]:
        """Run that block of the page, line by line; what each line said."""
        (text,) = re.findall(rf"<!-- run: {name} -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
        said = []
        for line in text.splitlines():
            for written, real in self.names.items():
                line = line.replace(written, real)
            editor = re.fullmatch(r"nano (\S+)", line)
            done = f"printf '{lines}' >> {editor[1]}" if editor else line
            print(f"    # {line}", flush=True)
            said.append(self.vm.run(done, is_tolerant=is_tolerant))
        return said

    def sql(self, statement: str) -> str:
        return self.vm.run(f'cd / && runuser -u postgres -- psql -d payments -qAt -c "{statement}"')

    def leases(self) -> str:
        """Requests and scans that are held."""
        return " ".join(self.block("leases")[0].split())

    def main_pid(self) -> int:
        return int(self.vm.run(f"echo {MAIN_PID}"))

    def children(self) -> list[int]:
        return [int(pid) for pid in self.vm.run(f"pgrep -P {MAIN_PID}").split()]

    def wait_ready(self) -> float:
        return self.vm.wait("/readyz", READY)

    def busy(self) -> None:
        """Give the workers something to hold, and wait until they hold it."""
        self.sql(CROWD)
        self.sql(WORK)
        held = "SELECT count(*) > 50 FROM app.payment_requests WHERE reconcile_lease_owner IS NOT NULL"
        for _ in range(50):
            if self.sql(f"SELECT pg_sleep(0.01); {held}").split()[-1] == "t":
                return
            self.sql(WORK)
        raise AssertionError("nobody takes anything")

    @contextmanager
    def customers(self, seconds: float) -> Iterator[None]:
        """All the while requests are made and paid; at the end all of them are confirmed, once."""
        command = (sys.executable, "-m", "tests.packaging.customers", DATABASE, NODE, str(seconds))
        paying = self.vm.beside(command)
        try:
            time.sleep(2)
            yield
            assert paying.wait(seconds + 100) == 0
        finally:
            paying.kill()

    # ---- the page

    def installs(self) -> None:
        self.block("database")
        install = self.block("install")
        assert "Creating user 'reconsup'" in install[0]
        assert "schema: none → " in install[2]
        see = self.block("see")
        assert "FAIL" not in see[0], see[0]
        assert "Active: active (running)" in see[1]
        assert "2 of 2 workers ready" in see[2] or "workers ready" in see[2]
        assert see[3] == "ready"
        scraped = 'curl -s \'http://127.0.0.1:9090/api/v1/query?query=up\' | grep -q \'"job":"reconsup"}.*"1"\''
        self.vm.wait("Prometheus has scraped it", scraped)
        assert self.vm.run(f"stat -c '%a %U:%G' {ENV}") == "640 root:reconsup"
        assert self.vm.run("systemd-analyze verify reconsup.service reconsup@shop.service") == ""
        for unit in ("reconsup.service", "reconsup@shop.service"):
            figure = self.vm.run(f"systemd-analyze security --no-pager {unit} | tail -1")
            print("   ", figure)
        shown = self.vm.run(
            f"systemctl show reconsup; tr '\\0' ' ' < /proc/{MAIN_PID}/cmdline; cat /proc/{MAIN_PID}/environ"
        )
        assert "choose-one" not in shown
        scores = [int(self.vm.run(f"cat /proc/{pid}/oom_score_adj")) for pid in [self.main_pid(), *self.children()]]
        assert sorted({score - scores[0] for score in scores}) == [0, 250, 500], scores

    def reloads(self) -> None:
        with self.customers(5):
            self.vm.run(f"echo RECONSUP_MEMORY_MAX_MB=1024 >> {ENV}")
            assert "reload_done" in self.block("reload")[2] or self.vm.wait(
                "reload_done", "journalctl -u reconsup -o cat --since -9s | grep -q reload_done"
            )
        assert self.vm.run(f"grep -c 'Max data size *1073741824' /proc/{self.children()[-1]}/limits") == "1"

    def refuses_a_wrong_reload(self) -> None:
        pid = self.main_pid()
        self.vm.run(f"cp -p {ENV} ~/kept; echo RECONSUP_WORKERS=1000 >> {ENV}")
        said = self.block("reload", is_tolerant=True)
        assert "CONFIG_RECONSUP_WORKERS_INVALID" in said[0]
        # as an error: the journal knows the levels
        self.vm.wait("reload_refused", "journalctl -u reconsup -o cat -p err --since -9s | grep -q reload_refused")
        assert '"info"' not in self.vm.run("journalctl -u reconsup -o cat -p warning", is_tolerant=True)
        assert self.main_pid() == pid
        self.vm.run("systemctl stop reconsup")
        assert "exited with error code" in self.vm.run("systemctl start reconsup", is_tolerant=True)
        time.sleep(4)
        status = self.vm.run("systemctl status reconsup --no-pager", is_tolerant=True)
        assert "status=78" in status
        assert "CONFIG_RECONSUP_WORKERS_INVALID" in status
        assert self.vm.run("systemctl show -p NRestarts --value reconsup") == "0"
        self.vm.run(f"cat ~/kept > {ENV}; systemctl start reconsup")

    def survives_the_death_of_a_worker(self) -> None:
        with self.customers(4):
            self.vm.run(f"kill -9 {self.children()[-1]}")
        assert self.vm.run("systemctl is-active reconsup") == "active"

    def survives_the_death_of_the_supervisor(self) -> None:
        for _ in range(3):
            self.wait_ready()
            self.busy()
            before = self.main_pid()
            self.vm.run(f"kill -9 {before}; sleep 0.7")
            assert self.leases() == "0 0"
            self.vm.wait("another supervisor", f'{READY} && test "{MAIN_PID}" -ne {before}')

    def survives_a_supervisor_that_hangs(self) -> None:
        before = self.main_pid()
        self.vm.run(f"kill -STOP {before}")
        took = self.vm.wait("the watchdog", f'{READY} && test "{MAIN_PID}" -ne {before} && test "{MAIN_PID}" -ne 0', 90)
        print(f"    after {took:.0f} s")
        assert "Watchdog timeout" in self.vm.run("journalctl -u reconsup --since -60s -o cat")

    def waits_for_its_database(self) -> None:
        self.vm.run(f"cp -p {ENV} ~/kept; echo RECONSUP_START_SECONDS=4 >> {ENV}; systemctl stop reconsup postgresql")
        self.vm.run("systemctl start --no-block reconsup; sleep 15")
        assert int(self.vm.run("systemctl show -p NRestarts --value reconsup")) >= 1
        self.vm.run("systemctl start postgresql")
        print(f"    ready {self.wait_ready():.1f} s after the database")
        self.vm.run(f"cat ~/kept > {ENV}; systemctl restart reconsup")

    def gives_back_all_leases_at_a_stop(self) -> None:
        for _ in range(3):
            self.busy()
            self.vm.run("systemctl stop reconsup")
            assert self.leases() == "0 0"
            assert self.vm.run("systemctl show -p Result,ExecMainStatus reconsup") == "Result=success\nExecMainStatus=0"
            self.vm.run("systemctl start reconsup")

    def is_upgraded_and_rolled_back(self) -> None:
        version = "dpkg-query -W -f '${Version}' reconsup"
        self.vm.run(f"echo '# mine' >> {ENV}")
        before, pid = self.vm.run(version), self.main_pid()
        with self.customers(30):
            self.vm.run(f"apt-get install -y ./{self.names['reconsup_0.2.0_amd64.deb']}")
            assert self.main_pid() == pid
            assert self.vm.run("systemctl is-active reconsup") == "active"
            said = self.block("upgrade")
            print("   ", said[0], "|", said[2].splitlines()[-1])
            assert self.vm.run(version) != before
            assert self.main_pid() != pid
            self.wait_ready()
            self.block("roll-back")
            assert self.vm.run(version) == before
            self.wait_ready()
        assert self.vm.run(f"tail -1 {ENV}") == "# mine"

    def runs_twice_on_a_host(self) -> None:
        self.block("instance", lines=LINES + "RECONSUP_METRICS_ADDRESS=127.0.0.1:9465\\n")
        said = self.block("hosts")[0]
        assert "vm-shop" in said
        self.vm.run("systemctl disable --now reconsup@shop; rm /etc/reconsup/shop.env")
        self.wait_ready()
        assert "reconsup_metrics_files_damaged 0" in self.vm.run("curl -s http://127.0.0.1:9464/metrics")

    def runs_as_a_role_that_may_little(self) -> None:
        self.sql("CREATE ROLE clerk LOGIN PASSWORD 'choose-one'")
        clerk = DATABASE.replace("//reconsup:", "//clerk:")
        self.vm.run(f"cp -p {ENV} ~/kept; echo DATABASE_URL={clerk} >> {ENV}")
        said = self.block("roles", lines=f"DATABASE_URL={DATABASE}\\n", is_tolerant=True)
        grants = re.findall(r"GRANT [^;`]+? TO \"?clerk\"?", said[3])
        assert len(grants) > 5, said[3]
        for grant in grants:
            self.sql(grant.replace('"', '\\"'))
        assert "FAIL" not in self.vm.run(f"reconsup check --env-file {ENV}")
        self.vm.run("systemctl restart reconsup")
        with self.customers(3):
            pass
        self.vm.run(f"cat ~/kept > {ENV}; systemctl restart reconsup")

    def is_removed(self) -> None:
        self.block("logs", is_tolerant=True)
        self.block("remove")
        assert self.leases() == "0 0"
        left = (
            "ls -d /etc/reconsup /var/cache/reconsup /usr/lib/reconsup /usr/bin/reconsup /dev/shm/reconsup* 2>/dev/null"
        )
        assert self.vm.run(left, is_tolerant=True) == ""
        assert "reconsup" not in (known := self.vm.run("systemctl list-unit-files; systemctl --failed --no-legend")), (
            known
        )

    def is_installed_by_hand(self) -> None:
        self.block("by-hand")
        self.vm.run(f"printf '{LINES}' >> {ENV}; systemctl start reconsup")
        self.wait_ready()


CHAPTERS = (
    Story.installs,
    Story.reloads,
    Story.refuses_a_wrong_reload,
    Story.survives_the_death_of_a_worker,
    Story.survives_the_death_of_the_supervisor,
    Story.survives_a_supervisor_that_hangs,
    Story.waits_for_its_database,
    Story.gives_back_all_leases_at_a_stop,
    Story.is_upgraded_and_rolled_back,
    Story.runs_twice_on_a_host,
    Story.runs_as_a_role_that_may_little,
)
LAST = (Story.is_removed, Story.is_installed_by_hand)


def shut_down(root: Path, vm: Machine, first: str, later: str) -> Machine:
    """With work in hand; the machine that is booted afterwards does not start the service."""
    Story(vm, first, later).busy()
    vm.halt()
    (root / "etc/systemd/system/multi-user.target.wants/reconsup.service").unlink()
    again = Machine(root)
    story = Story(again, first, later)
    again.wait("PostgreSQL", "runuser -u postgres -- psql -c 'SELECT 1'")
    assert story.sql("SELECT count(*) FROM app.payment_requests WHERE reconcile_lease_owner IS NOT NULL") == "0"
    assert story.sql("SELECT count(*) FROM app.chain_cursors WHERE scan_lease_owner IS NOT NULL") == "0"
    again.run("systemctl enable --now reconsup")
    return again


def later_package(first: Path, folder: Path) -> Path:
    """The same once more, as a later version."""
    subprocess.run(["dpkg-deb", "-R", first, folder / "later"], check=True)
    control = folder / "later/DEBIAN/control"
    control.write_text(re.sub(r"Version: .*", "Version: 99", control.read_text()))
    subprocess.run(["dpkg-deb", "-b", folder / "later", folder / "reconsup_99_amd64.deb"], check=True)
    return folder / "reconsup_99_amd64.deb"


def main() -> None:
    """Build, boot, and tell."""
    first = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="reconsup-vm-") as scratch:
        folder = Path(scratch)
        later = Path(sys.argv[2]) if len(sys.argv) > 2 else later_package(first, folder)
        base = Path(os.environ.get("RECONSUP_VM_BASE", folder)) / "base"
        if not base.exists():
            machine.build(base)
        root = folder / "root"
        subprocess.run(["cp", "-a", base, root], check=True)
        for package in (first, later):
            shutil.copy(package, root / "root")
        # what a checkout has, for the chapter without the package
        shutil.copytree(test_units.ROOT / "packaging", root / "root/packaging")
        subprocess.run(["dpkg-deb", "-x", first, folder / "unpacked"], check=True)
        (root / "root/dist").mkdir()
        shutil.copy(folder / "unpacked/usr/bin/reconsup", root / "root/dist")
        vm = Machine(root)
        try:
            node = vm.beside([find_anvil(), "--port", "8545", "--block-time", "1", "--silent"])
            tell(Story(vm, first.name, later.name), CHAPTERS)
            print("gives back all leases when the machine is shut down", flush=True)
            vm = shut_down(root, vm, first.name, later.name)
            node.kill()
            node = vm.beside([find_anvil(), "--port", "8545", "--block-time", "1", "--silent"])
            tell(Story(vm, first.name, later.name), LAST)
        finally:
            vm.halt()
            node.kill()


def tell(story: Story, chapters: Sequence[Callable[[Story], None]]) -> None:
    for chapter in chapters:
        began = time.monotonic()
        print(chapter.__name__.replace("_", " "), flush=True)
        chapter(story)
        print(f"    ok, {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
