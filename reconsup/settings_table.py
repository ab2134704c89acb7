"""The one table of settings: names, defaults, rules. Flags, error messages and the README's table come from it.

A new setting is `RECONSUP_…` and has its line here and its field in `reconsup.settings.Settings`; one that differs
per network is a JSON map. Nothing here reads the environment.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reconsup import settings_parse as parse

METRICS_ADDRESS = "RECONSUP_METRICS_ADDRESS"
_RECONCILER = "PAYMENT_REQUEST_RECONCILER_"
_PREFIXES = (_RECONCILER, "PAYMENT_REQUEST_", "RECONSUP_")  # longest first
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the table. `default` is written as an operator would write it; None: what `rule` says.

    `parse` raises ValueError; its words, if it has better ones than `rule`, are shown.
    """

    name: str
    field: str
    default: str | None
    rule: str
    parse: Callable[[str], object]
    is_secret: bool = False

    @property
    def flag(self) -> str:
        """The command-line flag: PAYMENT_REQUEST_RECONCILER_WORKER_ID → --worker-id."""
        return "--" + short_name(self.name).lower().replace("_", "-")


def short_name(name: str) -> str:
    """`name` without the prefix that says whose setting it is."""
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "DATABASE_URL",
        "database_url",
        None,
        "required: postgresql://USER:PASSWORD@HOST:PORT/NAME, or embedded:PATH",
        parse.database_url,
        is_secret=True,
    ),
    Setting(_RECONCILER + "ENABLED", "enabled", "true", "true or false", parse.boolean),
    Setting(
        _RECONCILER + "POLL_INTERVAL_SECONDS",
        "poll_interval_seconds",
        "15",
        "seconds above 0 and at most 86400, fractions allowed",
        parse.number(above=0, most=_DAY),
    ),
    Setting(_RECONCILER + "BATCH_SIZE", "batch_size", "200", "1 to 5000 requests per claim", parse.integer(1, 5000)),
    Setting(
        _RECONCILER + "LEASE_SECONDS",
        "lease_seconds",
        "30",
        "seconds, 2 to 3600 and at least 3 × RECONSUP_RPC_TIMEOUT_SECONDS",
        parse.number(least=2, most=3600),
    ),
    Setting(
        _RECONCILER + "WORKER_ID",
        "worker_base",
        None,
        "1 to 128 of A-Z a-z 0-9 . _ - (default: the host name); a worker is BASE-SLOT",
        parse.worker_base,
    ),
    Setting(
        _RECONCILER + "DETECTED_THRESHOLD_BPS",
        "detected_threshold_bps",
        "10000",
        "1 to 10000 hundredths of a percent of the expected amount, at most the confirmed threshold",
        parse.integer(1, 10_000),
    ),
    Setting(
        _RECONCILER + "CONFIRMED_THRESHOLD_BPS",
        "confirmed_threshold_bps",
        "10000",
        "1 to 10000 hundredths of a percent of the expected amount",
        parse.integer(1, 10_000),
    ),
    Setting(
        _RECONCILER + "EVM_MIN_CONFIRMATIONS",
        "min_confirmations",
        "1",
        "1 to 100000 blocks (1: the block itself)",
        parse.integer(1, parse.BLOCKS_MAX),
    ),
    Setting(
        _RECONCILER + "EVM_FINALITY_MIN_CONFIRMATIONS",
        "finality_confirmations",
        None,
        "1 to 100000 blocks, at least the minimum confirmations (default: the same); "
        "where RECONSUP_CONFIRMATIONS_JSON gives a network more, that is its finality",
        parse.integer(1, parse.BLOCKS_MAX),
    ),
    Setting(
        "RECONSUP_CONFIRMATIONS_JSON",
        "confirmations",
        "{}",
        '{"NETWORK": 12, "OTHER": "safe" or "finalized"}: 1 to 100000 blocks or a tag, wins over the minimum',
        parse.confirmations,
    ),
    Setting(
        _RECONCILER + "REORG_OBSERVE_WINDOW_SECONDS",
        "reorg_observe_window_seconds",
        "86400",
        "seconds above 0 and at most 315360000",
        parse.number(above=0, most=3650 * _DAY),
    ),
    Setting(
        "PAYMENT_REQUEST_EVM_RPC_URLS_JSON",
        "rpc_urls",
        "{}",
        '{"NETWORK": "https://…"} or {"NETWORK": ["https://…", "https://…"]}',
        parse.rpc_urls,
        is_secret=True,
    ),
    Setting(
        "RECONSUP_WORKERS",
        "workers",
        "auto",
        "1 to 512, auto (one per CPU), or MIN:MAX: as many as the work that waits asks for",
        parse.workers,
    ),
    Setting(
        "RECONSUP_START_SECONDS",
        "start_seconds",
        "60",
        "seconds above 0 and at most 86400: the database must answer within",
        parse.number(above=0, most=_DAY),
    ),
    Setting(
        "RECONSUP_DRAIN_SECONDS",
        "drain_seconds",
        "30",
        "seconds above 0 and at most 86400: workers that have not left by then are killed",
        parse.number(above=0, most=_DAY),
    ),
    Setting(
        "RECONSUP_BOOT_SECONDS",
        "boot_seconds",
        "60",
        "seconds, 2 to 3600: a worker that is not ready by then is killed",
        parse.number(least=2, most=3600),
    ),
    Setting(
        "RECONSUP_WATCHDOG_SECONDS",
        "watchdog_seconds",
        None,
        "seconds, 2 to 86400 and at least the lease: a worker of whose work loops one shows no life for so long "
        "is killed (default: 60, or twice the lease if that is more)",
        parse.number(least=2, most=_DAY),
    ),
    Setting(
        "RECONSUP_RECYCLE_SECONDS",
        "recycle_seconds",
        "0",
        "0 (never), or 10 to 31536000: a worker is replaced when it is about that old",
        parse.none_or(10, 365 * _DAY),
    ),
    Setting(
        "RECONSUP_RECYCLE_MEMORY_MB",
        "recycle_memory_mb",
        "0",
        "0 (never), or 64 to 1048576 MiB: a worker that has more resident is replaced",
        parse.none_or(64, parse.MEBIBYTES_MAX),
    ),
    Setting(
        "RECONSUP_MEMORY_MAX_MB",
        "memory_max_mb",
        "0",
        "0 (no limit), or 256 to 1048576 MiB: more memory of its own the system gives no worker (RLIMIT_DATA)",
        parse.none_or(256, parse.MEBIBYTES_MAX),
    ),
    Setting(
        "RECONSUP_RPC_TIMEOUT_SECONDS",
        "rpc_timeout_seconds",
        "5",
        "seconds above 0 and at most 600, fractions allowed",
        parse.number(above=0, most=600),
    ),
    Setting(
        "RECONSUP_RPC_QUORUM_JSON",
        "rpc_quorum",
        "{}",
        '{"NETWORK": 2}: how many of its endpoints must show the same header before a block is stored '
        "(default 1: one shows it and none contradicts)",
        parse.counts,
    ),
    Setting(
        "RECONSUP_BLOCK_PROOF_JSON",
        "block_proof",
        "{}",
        '{"NETWORK": false}: do not recompute the roots of its blocks (default true; only for chains that build them '
        "in another way)",
        parse.switches,
    ),
    Setting(
        "RECONSUP_BALANCE_AUDIT_JSON",
        "balance_audit",
        "{}",
        '{"NETWORK": false}: do not compare the balances of native requests (default true; only where no endpoint can '
        "tell them: money that leaves no transaction to the address and no log is then not seen)",
        parse.switches,
    ),
    Setting(
        "RECONSUP_AUDIT_BLOCKS",
        "audit_blocks",
        "64",
        "1 to 100 blocks from one balance audit to the next: a full node keeps the balances of about 128 blocks",
        parse.integer(1, 100),
    ),
    Setting(
        "RECONSUP_NATIVE_LOGS_FROM_JSON",
        "native_logs_from",
        "{}",
        '{"NETWORK": HEIGHT}: from this block on native transfers come as logs (EIP-7708)',
        parse.heights,
    ),
    Setting(
        "RECONSUP_TAIL_BLOCKS",
        "tail_blocks",
        "1024",
        "64 to 1000000 blocks whose credits are kept",
        parse.integer(64, 1_000_000),
    ),
    Setting(
        "RECONSUP_EXPIRY_CONFIRMATIONS",
        "expiry_confirmations",
        "12",
        "1 to 100000 blocks, at most RECONSUP_TAIL_BLOCKS: how deep the block after the deadline must be",
        parse.integer(1, parse.BLOCKS_MAX),
    ),
    Setting(
        "RECONSUP_EXPIRY_GRACE_SECONDS",
        "expiry_grace_seconds",
        "0",
        "seconds, 0 to 2592000: how long after the deadline a payment still counts",
        parse.number(least=0, most=30 * _DAY),
    ),
    Setting(
        METRICS_ADDRESS,
        "metrics_address",
        "127.0.0.1:9464",
        "HOST:PORT ([::1]:9464 for IPv6), or empty: no listener",
        parse.address,
    ),
    Setting(
        "RECONSUP_LOG_FORMAT",
        "log_format",
        None,
        "json or text (default: text on a terminal, else json)",
        parse.log_format,
    ),
)
BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}
BY_FIELD: Mapping[str, Setting] = {setting.field: setting for setting in SETTINGS}
