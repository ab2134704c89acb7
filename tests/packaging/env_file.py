"""packaging/systemd/reconsup.env, made from reconsup/settings_table.py: `python -m tests.packaging.env_file > …`.

What a setting allows is the table's word; what it means to somebody who runs the service stands here.
"""

from textwrap import fill

from reconsup.settings import SETTINGS
from reconsup.settings_table import Setting

HEAD = """\
# The settings of reconsup, for reconsup.service. NAME=value; a # at the beginning of a line makes it a comment.
# A line that is a comment shows the default. `reconsup check --env-file THIS-FILE` tries them before the service does;
# `systemctl reload reconsup` puts them in force, all or nothing, while payments are processed.
# It holds a password and keys: root:reconsup, 0640.

# ---- two lines without which there is nothing to do
"""

MEANINGS: dict[str, str] = {
    "DATABASE_URL": "The PostgreSQL (15 or newer) that holds the payment requests.",
    "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": "The networks to serve and their endpoints. Several URLs of a network watch "
    "one another. Requests of networks that are not named are left alone. In single quotes.",
    "PAYMENT_REQUEST_RECONCILER_ENABLED": "false: the service refuses to start (exit code 78), and stays down.",
    "PAYMENT_REQUEST_RECONCILER_POLL_INTERVAL_SECONDS": "How often an idle worker looks for due requests, and for a "
    "new block. Shorter: payments are seen sooner, endpoints are asked more.",
    "PAYMENT_REQUEST_RECONCILER_BATCH_SIZE": "How many requests a worker takes at a time.",
    "PAYMENT_REQUEST_RECONCILER_LEASE_SECONDS": "For how long a worker holds what it took, at most. After a power cut "
    "others wait so long; after a crash, milliseconds.",
    "PAYMENT_REQUEST_RECONCILER_WORKER_ID": "The name of this supervisor: no two on one database may have the same. "
    "reconsup@NAME.service gives HOST-NAME.",
    "PAYMENT_REQUEST_RECONCILER_DETECTED_THRESHOLD_BPS": "How much of the expected amount makes a request detected.",
    "PAYMENT_REQUEST_RECONCILER_CONFIRMED_THRESHOLD_BPS": "How much of it, deep enough, makes it confirmed.",
    "PAYMENT_REQUEST_RECONCILER_EVM_MIN_CONFIRMATIONS": "How deep a payment's block must be to confirm.",
    "PAYMENT_REQUEST_RECONCILER_EVM_FINALITY_MIN_CONFIRMATIONS": "How deep it must be to be watched no longer.",
    "RECONSUP_CONFIRMATIONS_JSON": "How deep, for single networks; or the chain's own word for it.",
    "PAYMENT_REQUEST_RECONCILER_REORG_OBSERVE_WINDOW_SECONDS": "For how long after its confirmation a final request's "
    "status still follows a reorg.",
    "RECONSUP_WORKERS": "How many worker processes.",
    "RECONSUP_START_SECONDS": "How long a start waits for the database. Then systemd tries again, for ever.",
    "RECONSUP_DRAIN_SECONDS": "How long a stop may take.",
    "RECONSUP_BOOT_SECONDS": "How long a new worker may take.",
    "RECONSUP_WATCHDOG_SECONDS": "When a worker that hangs is replaced. The unit's WatchdogSec= is about the "
    "supervisor.",
    "RECONSUP_RECYCLE_SECONDS": "Replace workers by age.",
    "RECONSUP_RECYCLE_MEMORY_MB": "Replace workers by size, gently.",
    "RECONSUP_MEMORY_MAX_MB": "A hard limit for each worker. The unit's MemoryMax= is one for all together.",
    "RECONSUP_RPC_TIMEOUT_SECONDS": "How long an endpoint may take to answer.",
    "RECONSUP_RPC_QUORUM_JSON": "Ask for agreement of several endpoints, for single networks.",
    "RECONSUP_BLOCK_PROOF_JSON": "Blocks are proven against their own header; not for these networks.",
    "RECONSUP_BALANCE_AUDIT_JSON": "Money that leaves no log is found by comparing balances; not for these networks.",
    "RECONSUP_AUDIT_BLOCKS": "How often they are compared.",
    "RECONSUP_NATIVE_LOGS_FROM_JSON": "Networks whose native transfers are logs.",
    "RECONSUP_TAIL_BLOCKS": "How much of each chain's past is kept in the database.",
    "RECONSUP_EXPIRY_CONFIRMATIONS": "How sure an expiry must be.",
    "RECONSUP_EXPIRY_GRACE_SECONDS": "Patience with customers who pay late.",
    "RECONSUP_METRICS_ADDRESS": "Where /metrics, /healthz, /readyz and /status are. No two supervisors of a host may "
    "have the same. It knows no password: only other machines that may see it should reach it.",
    "RECONSUP_LOG_FORMAT": "How the journal's lines look.",
}
EXAMPLES = {
    "DATABASE_URL": "postgresql://reconsup:PASSWORD@127.0.0.1:5432/payments",
    "PAYMENT_REQUEST_EVM_RPC_URLS_JSON": '\'{"mainnet": ["https://…", "https://…"]}\'',
}
WIDTH = 118


def _comment(text: str) -> str:
    return fill(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _value(setting: Setting) -> str:
    default = setting.default or ""
    return f"'{default}'" if setting.name.endswith("_JSON") else default


def _told(setting: Setting) -> str:
    rule = setting.rule.removeprefix("required: ").removesuffix(", or embedded:PATH")  # the one file has none
    return "\n".join((_comment(MEANINGS[setting.name]), _comment(f"Allowed: {rule}.")))


def text() -> str:
    """The whole file. The two that everybody needs are on top and are no comments."""
    parts = [HEAD]
    parts += [
        f"{_told(setting)}\n# {setting.name}={EXAMPLES[setting.name]}\n{setting.name}=\n"
        for setting in SETTINGS
        if setting.name in EXAMPLES
    ]
    parts.append("# ---- all others\n")
    parts += [
        f"{_told(setting)}\n# {setting.name}={_value(setting)}\n"
        for setting in SETTINGS
        if setting.name not in EXAMPLES
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    print(text(), end="")
