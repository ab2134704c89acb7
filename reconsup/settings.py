"""Environment, `--env-file` and flags → one frozen Settings. The only reader of os.environ.

Flags win over the file, the file over the environment. Everything that is wrong is reported at once, each with a
stable code, the name, the value (never a secret) and what is allowed; what contradicts something else is told
even when a third setting is unreadable. Nothing is guessed: a value that is not understood stops the program
with exit code 78 before it touches a database.

`SETTINGS` is the one table: the flags of the command line and the table in the README are made from it.
"""

import difflib
import io
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dotenv.parser import parse_stream

from reconsup import redact
from reconsup import settings_parse as parse
from reconsup.settings_table import BY_FIELD, BY_NAME, METRICS_ADDRESS, SETTINGS, Setting, short_name

__all__ = ["BY_FIELD", "SETTINGS", "ConfigError", "ConfigErrors", "Setting", "Settings", "load", "load_from_process"]

Depth = int | Literal["safe", "finalized"]

_SHOWN_CHARACTERS_MAX = 200
_TYPO_RATIO = 0.75
FILE_BYTES_MAX = 1024 * 1024
WATCHDOG_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One thing that is wrong. `value_shown` holds no secret; None: there was no value."""

    code: str
    name: str
    value_shown: str | None
    allowed: str

    def __str__(self) -> str:
        shown = self.name if self.value_shown is None else f"{self.name}={self.value_shown}"
        return f"{self.code}: {shown}: {self.allowed}"


class ConfigErrors(Exception):
    """Everything that is wrong with the configuration, in the order of the table. Exit code 78."""

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(map(str, self.errors)))


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """What the operator decided. Seconds are floats, depths are in blocks; networks are those of chain 'ethereum'.

    `warnings` are sentences for the log: nothing is wrong enough to stop.
    """

    database_url: str
    poll_interval_seconds: float
    batch_size: int
    lease_seconds: float
    worker_base: str
    detected_threshold_bps: int
    confirmed_threshold_bps: int
    min_confirmations: int
    finality_confirmations: int
    confirmations: Mapping[str, Depth]
    reorg_observe_window_seconds: float
    rpc_urls: Mapping[str, tuple[str, ...]]
    workers: parse.Workers
    start_seconds: float
    drain_seconds: float
    boot_seconds: float
    watchdog_seconds: float
    recycle_seconds: float
    recycle_memory_mb: float
    memory_max_mb: float
    rpc_timeout_seconds: float
    rpc_quorum: Mapping[str, int]
    block_proof: Mapping[str, bool]
    balance_audit: Mapping[str, bool]
    audit_blocks: int
    native_logs_from: Mapping[str, int]
    tail_blocks: int
    expiry_confirmations: int
    expiry_grace_seconds: float
    metrics_address: tuple[str, int] | None
    log_format: str | None
    warnings: tuple[str, ...] = ()

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks this process serves: those it has an endpoint for, in order of name."""
        return tuple(sorted(self.rpc_urls))

    def confirmation_depth(self, network: str) -> Depth:
        """How deep a credit on `network` must be to confirm: blocks, or a tag of the chain."""
        return self.confirmations.get(network, self.min_confirmations)

    def finality_depth(self, network: str) -> int:
        """After how many blocks a confirmed request on `network` is watched no more: never before it confirms."""
        depth = self.confirmation_depth(network)
        return max(self.finality_confirmations, depth) if isinstance(depth, int) else self.finality_confirmations

    def quorum(self, network: str) -> int:
        """How many endpoints of `network` must show the same header before a block is stored."""
        return self.rpc_quorum.get(network, 1)

    def proves_blocks(self, network: str) -> bool:
        """Whether the roots of the blocks of `network` are recomputed."""
        return self.block_proof.get(network, True)

    def audits_balances(self, network: str) -> bool:
        """Whether the balances of native requests on `network` are compared with what was seen."""
        return self.balance_audit.get(network, True)

    def shown(self) -> dict[str, object]:
        """Every field with its secrets hidden, for `check` and for the log."""
        fields: dict[str, object] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        urls = {network: [redact.redact_url(url) for url in urls] for network, urls in self.rpc_urls.items()}
        return fields | {"database_url": shown_database_url(self.database_url), "rpc_urls": urls}

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.shown().items())})"


def load(
    env: Mapping[str, str], flags: Mapping[str, str], env_file: Path | None = None, *, is_again: bool = False
) -> Settings:
    """Settings from three layers; `flags` has the settings' names as keys, not the flags'.

    An empty value counts as not set, except RECONSUPMETRICS_ADDRESS, where it means: no listener. Raises
    ConfigErrors with everything that is wrong. `is_again`: the file was read before, and must never be waited for.
    """
    texts, errors = _layered(env, flags, env_file, is_again=is_again)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        error = _read(setting, texts, values)
        if error is not None:
            errors.append(error)
    if values.pop("enabled", True) is False:
        raise ConfigErrors([_DISABLED])
    errors += _contradictions(values, texts)
    errors += _quorums_too_large(values, texts)
    if errors:
        raise ConfigErrors(errors)
    return Settings(**values, warnings=(*_typos(texts), *_doubts(values)))


def load_from_process(flags: Mapping[str, str], env_file: Path | None = None, *, is_again: bool = False) -> Settings:
    """`load` with this process's own environment."""
    return load(os.environ, flags, env_file, is_again=is_again)


def load_database_url(flags: Mapping[str, str], env_file: Path | None = None) -> str:
    """DATABASE_URL alone, from this process's environment: for commands that need nothing else to be right."""
    return str(_load_one("DATABASE_URL", flags, env_file))


def load_metrics_address(flags: Mapping[str, str], env_file: Path | None = None) -> tuple[str, int] | None:
    """RECONSUP_METRICS_ADDRESS alone, likewise: host and port, or None where there is no listener."""
    address: tuple[str, int] | None = _load_one(METRICS_ADDRESS, flags, env_file)
    return address


def _load_one(name: str, flags: Mapping[str, str], env_file: Path | None) -> Any:
    texts, errors = _layered(os.environ, flags, env_file)
    values: dict[str, Any] = {}
    error = _read(BY_NAME[name], texts, values)
    if error is not None:
        errors.append(error)
    if errors:
        raise ConfigErrors(errors)
    return values[BY_NAME[name].field]


def wants_colors() -> bool:
    """Whether this process's environment allows colours on a terminal."""
    return not os.environ.get("NO_COLOR") and is_movable()


def is_movable() -> bool:
    """Whether a terminal of this process's environment has a cursor that can be moved."""
    return os.environ.get("TERM", "dumb") not in ("dumb", "")


def shown_database_url(url: str) -> str:
    """DATABASE_URL as it may be shown."""
    return url if url.startswith(parse.EMBEDDED) else redact.redact_url(url)


_DISABLED = ConfigError(
    "CONFIG_RECONCILER_DISABLED",
    BY_FIELD["enabled"].name,
    "false",
    "reconsup is switched off; true switches it on",
)


def _layered(
    env: Mapping[str, str], flags: Mapping[str, str], env_file: Path | None, *, is_again: bool = False
) -> tuple[dict[str, str], list[ConfigError]]:
    """Flags over file over environment, blank values left out; and what is wrong with the file."""
    unknown = set(flags) - set(BY_NAME)
    assert not unknown, f"flags are keyed by the settings' names, not {unknown}"
    from_file, errors = _read_file(env_file, is_again=is_again) if env_file is not None else ({}, [])
    texts: dict[str, str] = {}
    for layer in (env, from_file, flags):
        for name, value in layer.items():
            if value.strip() or name == METRICS_ADDRESS:
                texts[name] = value.strip()
    return texts, errors


def _read_file(path: Path, *, is_again: bool) -> tuple[dict[str, str], list[ConfigError]]:
    """The file in the format that python-dotenv and systemd's EnvironmentFile share; nothing is interpolated."""

    def error(value: str, allowed: str) -> ConfigError:
        return ConfigError("CONFIG_ENV_FILE_INVALID", "--env-file", value, allowed)

    try:
        content = _content(path, is_again=is_again)
        text = "" if content is None else content.decode("utf-8")
    except OSError as problem:
        return {}, [error(str(path), f"cannot be read: {(problem.strerror or 'unknown error').lower()}")]
    except UnicodeDecodeError:
        return {}, [error(str(path), "is not UTF-8 text")]
    if content is None:
        return {}, [error(str(path), "is a pipe or a device: to be read again it must be a file")]
    if len(content) > FILE_BYTES_MAX:
        return {}, [error(str(path), f"has more than {FILE_BYTES_MAX} bytes: it is not such a file")]
    values: dict[str, str] = {}
    errors = []
    # systemd takes ; for a comment too
    for binding in parse_stream(io.StringIO(re.sub(r"(?m)^[ \t]*;", "#", text))):
        if binding.error or (binding.key is not None and binding.value is None):
            # only the place is shown: the line may hold a secret
            errors.append(error(f"{path}:{binding.original.line}", "a line is NAME=value or a # comment"))
        elif binding.key is not None and binding.value is not None:
            values[binding.key] = binding.value
    return values, errors


def _content(path: Path, *, is_again: bool) -> bytes | None:
    """The file's bytes, no more than one too many. None if it is to be read again, and is no file.

    A pipe gives what it holds once. The second time it is empty, which would mean that every setting has its default
    again; or it is waited for until somebody writes, and so no child is looked after, and TERM is not heard.
    """
    more = os.O_NONBLOCK if is_again else 0
    with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | more)) as file:
        if is_again and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        return io.BufferedReader(file).read(FILE_BYTES_MAX + 1)


# Who is called at night types what an alert says, and the alert does not know where the settings are.
_WHERE = "; in the environment, or in a file: --env-file /etc/reconsup/reconsup.env is the package's"


def _read(setting: Setting, texts: Mapping[str, str], values: dict[str, Any]) -> ConfigError | None:
    """Parse one setting into `values`, or say what is wrong with it."""
    text = texts.get(setting.name, setting.default)
    if text is None:
        if setting.name == "DATABASE_URL":
            return ConfigError(_code(setting.name, "MISSING"), setting.name, None, f"{setting.rule}{_WHERE}")
        # Derived defaults. A minimum that could not be read is an error of its own.
        derived = {
            "worker_base": parse.host_name(),
            "finality_confirmations": values.get("min_confirmations"),
            "watchdog_seconds": max(WATCHDOG_SECONDS, 2 * values.get("lease_seconds", 0)),
        }
        values[setting.field] = derived.get(setting.field)
        return None
    try:
        values[setting.field] = setting.parse(text)
    except parse.Refused as refused:
        return _invalid(setting, text, str(refused))
    except ValueError:
        return _invalid(setting, text, setting.rule)
    return None


# field, other field, how many times the other it must be: at least, at most
_PAIRS = (
    ("lease_seconds", "rpc_timeout_seconds", 3, None),
    ("watchdog_seconds", "lease_seconds", 1, None),
    ("detected_threshold_bps", "confirmed_threshold_bps", None, 1),
    ("finality_confirmations", "min_confirmations", 1, None),
    ("expiry_confirmations", "tail_blocks", None, 1),
)


def _contradictions(values: Mapping[str, Any], texts: Mapping[str, str]) -> list[ConfigError]:
    """Each pair of settings that cannot both be meant. A pair of which one could not be read is left out."""
    found = []
    for field, other_field, least, most in _PAIRS:
        if values.get(field) is None or values.get(other_field) is None:
            continue
        value, other_value = values[field], values[other_field]
        if (least and value < least * other_value) or (most and value > most * other_value):
            setting, other = BY_FIELD[field], BY_FIELD[other_field]
            reason = f"{setting.rule} (here {other.name}={texts.get(other.name, other.default)})"
            found.append(_invalid(setting, texts.get(setting.name, setting.default or ""), reason))
    return found


def _quorums_too_large(values: Mapping[str, Any], texts: Mapping[str, str]) -> list[ConfigError]:
    """Networks that ask for more endpoints than they have: nothing of them would ever be stored."""
    urls, setting = values.get("rpc_urls"), BY_FIELD["rpc_quorum"]
    if urls is None:
        return []
    short = [
        name for name, count in (values.get("rpc_quorum") or {}).items() if name in urls and count > len(urls[name])
    ]
    text = texts.get(setting.name, "")
    return [_invalid(setting, text, f"network {name}: has fewer URLs: {len(urls[name])}") for name in sorted(short)[:1]]


def _invalid(setting: Setting, text: str, allowed: str) -> ConfigError:
    if setting.is_secret:
        # A torn password may stand anywhere in what was not understood.
        scheme, mark, _ = text.partition("://")
        shown = f"{scheme}://{redact.HIDDEN}" if mark and scheme.isalpha() else redact.HIDDEN
    else:
        shown = redact.text(text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "…")
    return ConfigError(_code(setting.name, "INVALID"), setting.name, shown, allowed)


def _code(name: str, problem: str) -> str:
    return f"CONFIG_{name.removeprefix('PAYMENT_REQUEST_')}_{problem}"


def _typos(texts: Mapping[str, str]) -> list[str]:
    """A sentence for each name that is nearly one of ours. Names that are not near may be somebody else's."""
    ours = {short_name(known): known for known in BY_NAME}
    found = []
    for name in sorted(set(texts) - set(BY_NAME)):
        if name.startswith(("RECONSUP_", "PAYMENT_REQUEST_RECONCILER_", "PAYMENT_REQUEST_EVM_")):
            near = difflib.get_close_matches(short_name(name), ours, n=1, cutoff=_TYPO_RATIO)
            found += [f"{name} is not a setting and has no effect: did you mean {ours[word]}?" for word in near]
    return found


def _doubts(values: Mapping[str, Any]) -> list[str]:
    """Sentences about what is allowed but hardly meant."""
    if not values["rpc_urls"]:
        return ["PAYMENT_REQUEST_EVM_RPC_URLS_JSON names no network: no payment request will be processed"]
    per_network = ("confirmations", "rpc_quorum", "block_proof", "balance_audit", "native_logs_from")
    return [
        f"{BY_FIELD[field].name} names {network!r}, which has no endpoint"
        for field in per_network
        for network in sorted(set(values[field]) - set(values["rpc_urls"]))
    ]
