"""Whose signature an https:// endpoint's certificate needs: the machine's own authorities, wherever it keeps them.

A packed program brings an OpenSSL that looks where the machine that made it keeps them. Elsewhere it would find
nothing, and every https:// endpoint would fail. So the usual places are tried, and at last the list that comes with the
program.
"""

import functools
import ssl
from collections.abc import Sequence
from pathlib import Path

import certifi

PLACES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),  # Debian, Alpine, Arch
    Path("/etc/pki/tls/certs/ca-bundle.crt"),  # Red Hat and its kin
    Path("/etc/ssl/ca-bundle.pem"),  # SUSE
    Path("/etc/ssl/cert.pem"),
)


@functools.cache
def context() -> ssl.SSLContext:
    """What connections to endpoints are made with; one a process, reading the authorities takes milliseconds."""
    made = ssl.create_default_context()
    if (found := authorities(ssl.get_default_verify_paths(), PLACES)) is not None:
        made.load_verify_locations(cafile=found)
    return made


def authorities(defaults: ssl.DefaultVerifyPaths, places: Sequence[Path]) -> Path | None:
    """The file to be read; None where OpenSSL finds some by itself (also by SSL_CERT_FILE, SSL_CERT_DIR)."""
    if defaults.cafile or (defaults.capath and any(Path(defaults.capath).iterdir())):
        return None
    return next((place for place in places if place.is_file()), Path(certifi.where()))
