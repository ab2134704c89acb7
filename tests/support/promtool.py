"""What Prometheus's own judge says of a page."""

import subprocess

from tests.support import tools


def complaints(page: bytes | str) -> list[str]:
    """What `promtool check metrics` has to say; nothing: the page is clean."""
    text = page.encode() if isinstance(page, str) else page
    said = subprocess.run([tools.promtool(), "check", "metrics"], input=text, capture_output=True, check=False)
    lines = (said.stdout + said.stderr).decode().splitlines()
    return lines or ([] if said.returncode == 0 else [f"promtool ended with {said.returncode}"])
