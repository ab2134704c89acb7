"""Asks a supervisor's monitor for /status, and the database for all hosts. Every wait is short and bounded."""

import asyncio
import ipaddress
import json
from typing import Any

from reconsup import redact
from reconsup.status import hosts
from reconsup.store import hosts as store
from reconsup.store.database import Database
from reconsup.store.errors import SchemaBehind, StoreUnavailable

Address = tuple[str, int]

ANSWER_SECONDS = 2.0
ANSWER_BYTES_MAX = 8 << 20  # 512 workers are half a megabyte
DATABASE_SECONDS = 6.0  # a third of it bounds a statement

_REQUEST = "GET /status HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\n\r\n"


class NoAnswer(Exception):
    """Nothing can be shown: why, and what to do about it, in one sentence."""


async def host(address: Address) -> dict[str, Any]:
    """What /status says there. Raises NoAnswer."""
    url = shown(address)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await _get(reachable(address))
    except TimeoutError:
        raise NoAnswer(
            f"what listens at {url} does not answer within {ANSWER_SECONDS:g} s: look at its log, and whether its "
            "monitor process is stopped"
        ) from None
    except ConnectionRefusedError:
        raise NoAnswer(
            f"no reconsup answers at {url}: start one, or say with --metrics-address (or --env-file) where it listens"
        ) from None
    except OSError as error:
        raise NoAnswer(f"{url} cannot be reached: {error.strerror or error}: correct --metrics-address") from None
    told = _understood(answer)
    if told is None:
        raise NoAnswer(
            f"something else answers at {url}, no reconsup: give reconsup another --metrics-address, or say where it "
            "listens"
        )
    return told


async def everyone(database: Database) -> dict[str, Any]:
    """What the database knows of all hosts. Raises NoAnswer."""
    try:
        return hosts.told(await store.read(database))
    except (StoreUnavailable, SchemaBehind) as error:
        raise NoAnswer(f"the database cannot be asked: {redact.text(str(error))}") from None


def reachable(address: Address) -> Address:
    """The address to ask: who listens on all addresses (0.0.0.0, ::) is asked on the loopback one."""
    host, port = address
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return address
    return ("127.0.0.1" if ip.version == 4 else "::1", port) if ip.is_unspecified else address


def shown(address: Address) -> str:
    """The address as a person may type it."""
    host, port = reachable(address)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _get(address: Address) -> bytes:
    """The whole answer. HTTP/1.0: whoever answers closes the connection when he has said everything."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(_REQUEST.format(host=address[0]).encode())
        answer = b""
        while chunk := await reader.read(1 << 16):
            answer += chunk
            if len(answer) > ANSWER_BYTES_MAX:
                break
        return answer
    finally:
        writer.close()


def _understood(answer: bytes) -> dict[str, Any] | None:
    """The JSON of a supervisor's /status; None if it is something else."""
    head, _, body = answer.partition(b"\r\n\r\n")
    version, _, rest = head.partition(b" ")
    if not version.startswith(b"HTTP/") or not rest.startswith(b"200"):
        return None
    try:
        told = json.loads(body)
    except ValueError:
        return None
    if not isinstance(told, dict) or not {"supervisor", "workers", "backlog", "networks"} <= set(told):
        return None
    return told
