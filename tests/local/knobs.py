"""The knobs, as `make service-up` has them: read from the environment, judged by reconsup's own rules."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reconsup.settings_parse import Refused, Workers, boolean, integer
from reconsup.settings_table import BY_NAME, SETTINGS, Setting
from tests.local.trouble import EXIT_USAGE, Trouble

REPLICAS_MAX = 16
CONNECTIONS_MAX = 190  # the embedded PostgreSQL takes 200
METRICS_PORT = 9464

# What the local chain allows: it answers in milliseconds, mines a block a second and takes nothing back by itself.
# Small batches, so that two dozen payments are work for everybody.
ON_ANVIL = {
    "PAYMENT_REQUEST_RECONCILER_BATCH_SIZE": "4",
    "PAYMENT_REQUEST_RECONCILER_EVM_MIN_CONFIRMATIONS": "2",
    "RECONSUP_EXPIRY_CONFIRMATIONS": "3",
    "RECONSUP_RPC_TIMEOUT_SECONDS": "2",
}
DRAIN_SECONDS = 10

_MINE = {
    "SERVICE_RECONCILER_ENABLED": ("true", "true or false", boolean),
    "SERVICE_RECONCILER_REPLICAS": ("2", f"1 to {REPLICAS_MAX} supervisors", integer(1, REPLICAS_MAX)),
    "LOCAL_METRICS_PORT": (
        str(METRICS_PORT),
        "a port: the first supervisor's, the others have the next ones; 0 for any that are free",
        integer(0, 65535 - REPLICAS_MAX),
    ),
}
_RECONSUP = {
    "SERVICE_RECONCILER_WORKERS": ("2", "RECONSUP_WORKERS"),
    "SERVICE_RECONCILER_POLL_INTERVAL_SECONDS": ("1", "PAYMENT_REQUEST_RECONCILER_POLL_INTERVAL_SECONDS"),
    "SERVICE_RECONCILER_LEASE_SECONDS": ("30", "PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS"),
    "SERVICE_EVM_RPC_URLS_JSON": ("", "PAYMENT_REQUEST_EVM_RPC_URLS_JSON"),
}
_KNOWN = (*_MINE, *_RECONSUP)


@dataclass(frozen=True)
class Knobs:
    """What is wanted. `rpc_urls` is empty where a local chain is."""

    replicas: int
    metrics_port: int
    workers: Workers
    rpc_urls: Mapping[str, tuple[str, ...]]
    settings: Mapping[str, str]

    @property
    def is_on_anvil(self) -> bool:
        """Whether the chain is a local one."""
        return not self.rpc_urls

    def env_file(self, name: str, database_url: str, rpc_urls_json: str, port: int) -> str:
        """All settings of one supervisor, also those left at their default: the shell's environment must not matter."""
        values = {setting.name: setting.default for setting in SETTINGS if setting.default}
        values |= self.settings
        values |= {
            "DATABASE_URL": database_url,
            "PAYMENT_REQUEST_RECONCILER_WORKER_ID": name,
            "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": rpc_urls_json,
            "RECONSUP_METRICS_ADDRESS": f"127.0.0.1:{port}",
            "RECONSUP_DRAIN_SECONDS": str(DRAIN_SECONDS),
            "RECONSUP_LOG_FORMAT": "json",
        }
        return "".join(f"{key}='{value}'\n" for key, value in values.items())


def read(environment: Mapping[str, str]) -> Knobs:
    """The knobs of an environment; an empty one counts as not set. Raises Trouble with a sentence for each bad one."""
    bad = [
        f"{name} is no knob: there are {', '.join(_KNOWN)}"
        for name in environment
        if name.startswith("SERVICE_RECONCILER_") and name not in _KNOWN
    ]
    values: dict[str, Any] = {}
    settings: dict[str, str] = {}
    for name, (default, rule, parse) in _MINE.items():
        _parse(name, environment.get(name) or default, rule, parse, values, bad)
    for name, (default, setting) in _RECONSUP.items():
        text = settings[setting] = environment.get(name) or default
        if text:
            _parse(name, text, _rule(BY_NAME[setting]), BY_NAME[setting].parse, values, bad, is_secret="URLS" in name)
    rpc_urls = values.get("SERVICE_EVM_RPC_URLS_JSON", {})
    if not (environment.get("SERVICE_EVM_RPC_URLS_JSON") or bad):
        settings |= ON_ANVIL
    if not bad:
        bad += _together(values, settings, networks=max(1, len(rpc_urls)))
    if bad:
        raise Trouble(*bad, code=EXIT_USAGE)
    is_on = values["SERVICE_RECONCILER_ENABLED"]
    return Knobs(
        values["SERVICE_RECONCILER_REPLICAS"] if is_on else 0,
        values["LOCAL_METRICS_PORT"],
        values["SERVICE_RECONCILER_WORKERS"],
        rpc_urls,
        settings,
    )


def keeps_data(environment: Mapping[str, str]) -> bool:
    """LOCAL_KEEP_DATA, of which only `down` asks."""
    values: dict[str, Any] = {}
    bad: list[str] = []
    _parse("LOCAL_KEEP_DATA", environment.get("LOCAL_KEEP_DATA") or "1", "1 or 0", boolean, values, bad)
    if bad:
        raise Trouble(*bad, code=EXIT_USAGE)
    return bool(values["LOCAL_KEEP_DATA"])


def _parse(
    name: str,
    text: str,
    rule: str,
    parse: Callable[[str], Any],
    values: dict[str, Any],
    bad: list[str],
    *,
    is_secret: bool = False,
) -> None:
    try:
        values[name] = parse(text.strip())
    except Refused as error:
        bad.append(f"{name}{'' if is_secret else '=' + text}: {error}")
    except ValueError:
        bad.append(f"{name}{'' if is_secret else '=' + text}: {rule}")


def _rule(setting: Setting) -> str:
    return setting.rule.replace("RECONSUP_WORKERS", "SERVICE_RECONCILER_WORKERS")


def _together(values: Mapping[str, Any], settings: Mapping[str, str], *, networks: int) -> list[str]:
    """What each knob alone cannot say."""
    bad = []
    timeout = settings.get("RECONSUP_RPC_TIMEOUT_SECONDS", BY_NAME["RECONSUP_RPC_TIMEOUT_SECONDS"].default)
    least = 3 * float(timeout or 0)
    lease = values["SERVICE_RECONCILER_LEASE_SECONDS"]
    if lease < least:
        bad.append(
            f"SERVICE_RECONCILER_LEASE_SECONDS={lease:g}: at least {least:g}, 3 × the RPC time-out of {timeout} s"
        )
    replicas, most = values["SERVICE_RECONCILER_REPLICAS"], values["SERVICE_RECONCILER_WORKERS"].most
    need = replicas * (most * (3 + 3 * networks) + 3)
    if need > CONNECTIONS_MAX:
        bad.append(
            f"SERVICE_RECONCILER_REPLICAS={replicas} × SERVICE_RECONCILER_WORKERS={most} may open {need} connections, "
            f"and the PostgreSQL here allows {CONNECTIONS_MAX}: fewer of either"
        )
    return bad


def urls_json(rpc_urls: Mapping[str, tuple[str, ...]]) -> str:
    """As the setting has it."""
    return json.dumps({network: list(urls) for network, urls in rpc_urls.items()})
