"""An https:// endpoint is checked against the machine's authorities, also where a packed OpenSSL does not find them."""

import ssl
import subprocess
import sys
from pathlib import Path

import certifi

from reconsup.chain.certificates import authorities

CODE = (
    "from reconsup.chain.certificates import context; import ssl; made = context();"
    "print(made.cert_store_stats()['x509_ca'], made.verify_mode is ssl.CERT_REQUIRED, made.check_hostname)"
)


def defaults(cafile: Path | None = None, capath: Path | None = None) -> ssl.DefaultVerifyPaths:
    return ssl.DefaultVerifyPaths(cafile and str(cafile), capath and str(capath), "", "", "", "")  # type: ignore[arg-type] # as the library makes it


def test_what_openssl_finds_by_itself_is_all_that_counts(tmp_path: Path) -> None:
    (tmp_path / "0a1b2c3d.0").touch()
    assert authorities(defaults(cafile=tmp_path / "0a1b2c3d.0"), [tmp_path / "0a1b2c3d.0"]) is None
    assert authorities(defaults(capath=tmp_path), [tmp_path / "0a1b2c3d.0"]) is None


def test_an_empty_folder_of_authorities_is_none(tmp_path: Path) -> None:
    """Debian's openssl makes the folder, ca-certificates fills it. Seen to fail with the folder alone counted."""
    folder, bundle = tmp_path / "certs", tmp_path / "bundle.crt"
    folder.mkdir()
    bundle.touch()
    assert authorities(defaults(capath=folder), [tmp_path / "missing", bundle]) == bundle


def test_where_the_machine_has_none_the_program_brings_its_own(tmp_path: Path) -> None:
    assert authorities(defaults(), [tmp_path / "missing"]) == Path(certifi.where())


def test_a_process_whose_openssl_finds_nothing_still_knows_authorities(tmp_path: Path) -> None:
    """Seen to fail without the look at other places: no authority at all, so each https:// endpoint failed."""
    nowhere = {"SSL_CERT_FILE": str(tmp_path / "none"), "SSL_CERT_DIR": str(tmp_path / "none")}
    said = subprocess.run([sys.executable, "-c", CODE], env=nowhere, capture_output=True, text=True, check=True)
    count, *is_strict = said.stdout.split()
    assert int(count) > 50
    assert is_strict == ["True", "True"]
