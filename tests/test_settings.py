"""Every rule of the settings table, both ways; everything at once; and not one secret shown."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from reconsup.settings import SETTINGS, ConfigErrors, Settings, load, load_database_url, load_from_process
from reconsup.settings_table import BY_NAME

R = "PAYMENT_REQUEST_RECONCILER_"
URLS = "PAYMENT_REQUEST_EVM_RPC_URLS_JSON"
DEPTHS = "RECONSUP_CONFIRMATIONS_JSON"
DATABASE = "postgresql://reconsup:s3cr3t@db.example:5432/payments"
GOOD = {"DATABASE_URL": DATABASE, URLS: '{"local": "http://127.0.0.1:8545"}'}


def refused(env: Mapping[str, str], *, env_file: Path | None = None) -> dict[str, str]:
    """The errors that `env` brings on top of a good environment: code → its line."""
    with pytest.raises(ConfigErrors) as caught:
        load(GOOD | dict(env), {}, env_file)
    return {error.code: str(error) for error in caught.value.errors}


def accepted(**env: str) -> Settings:
    return load(GOOD | env, {})


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = load({"DATABASE_URL": DATABASE}, {})

    expected = {
        "poll_interval_seconds": 15,
        "batch_size": 200,
        "lease_seconds": 30,
        "detected_threshold_bps": 10000,
        "confirmed_threshold_bps": 10000,
        "min_confirmations": 1,
        "finality_confirmations": 1,
        "confirmations": {},
        "reorg_observe_window_seconds": 86400,
        "rpc_urls": {},
        "workers": (len(os.sched_getaffinity(0)),) * 2,
        "start_seconds": 60,
        "drain_seconds": 30,
        "boot_seconds": 60,
        "watchdog_seconds": 60,
        "recycle_seconds": 0,
        "recycle_memory_mb": 0,
        "memory_max_mb": 0,
        "rpc_timeout_seconds": 5,
        "rpc_quorum": {},
        "block_proof": {},
        "balance_audit": {},
        "audit_blocks": 64,
        "native_logs_from": {},
        "tail_blocks": 1024,
        "expiry_confirmations": 12,
        "expiry_grace_seconds": 0,
        "metrics_address": ("127.0.0.1", 9464),
        "log_format": None,
    }
    assert expected == {name: getattr(settings, name) for name in expected}


ACCEPTED = [
    ("DATABASE_URL", "postgres://h/db", "database_url", "postgres://h/db"),
    (
        "DATABASE_URL",
        " postgresql://u:%40@[::1]:5/db?sslmode=require\n",
        "database_url",
        "postgresql://u:%40@[::1]:5/db?sslmode=require",
    ),
    ("DATABASE_URL", "postgresql://h1:1,h2:2/db", "database_url", "postgresql://h1:1,h2:2/db"),
    ("DATABASE_URL", "postgresql:///db?host=/run", "database_url", "postgresql:///db?host=/run"),
    ("DATABASE_URL", "embedded:/var/lib/reconsup", "database_url", "embedded:/var/lib/reconsup"),
    (R + "ENABLED", "TRUE", "batch_size", 200),
    (R + "POLL_INTERVAL_SECONDS", "0.25", "poll_interval_seconds", 0.25),
    (R + "BATCH_SIZE", "1", "batch_size", 1),
    (R + "BATCH_SIZE", "5000", "batch_size", 5000),
    (R + "LEASE_SECONDS", "15", "lease_seconds", 15.0),
    (R + "WORKER_ID", "a" * 128, "worker_base", "a" * 128),
    (R + "WORKER_ID", "Host_1.example-x", "worker_base", "Host_1.example-x"),
    (R + "DETECTED_THRESHOLD_BPS", "1", "detected_threshold_bps", 1),
    (R + "EVM_MIN_CONFIRMATIONS", "12", "finality_confirmations", 12),
    (R + "EVM_FINALITY_MIN_CONFIRMATIONS", "64", "finality_confirmations", 64),
    (DEPTHS, '{"local": "finalized"}', "confirmations", {"local": "finalized"}),
    (DEPTHS, '{"local": "safe", "base": 10}', "confirmations", {"local": "safe", "base": 10}),
    (R + "REORG_OBSERVE_WINDOW_SECONDS", "0.5", "reorg_observe_window_seconds", 0.5),
    (URLS, "{}", "rpc_urls", {}),
    (URLS, '{"a": "https://x/k"}', "rpc_urls", {"a": ("https://x/k",)}),
    (URLS, '{"a": ["https://x", "http://u:p@[::1]:1/?q"]}', "rpc_urls", {"a": ("https://x", "http://u:p@[::1]:1/?q")}),
    ("RECONSUP_WORKERS", "512", "workers", (512, 512)),
    ("RECONSUP_WORKERS", "2:8", "workers", (2, 8)),
    ("RECONSUP_WORKERS", "AUTO", "workers", (len(os.sched_getaffinity(0)),) * 2),
    ("RECONSUP_START_SECONDS", "0.1", "start_seconds", 0.1),
    ("RECONSUP_DRAIN_SECONDS", "1e2", "drain_seconds", 100.0),
    ("RECONSUP_BOOT_SECONDS", "2", "boot_seconds", 2.0),
    ("RECONSUP_WATCHDOG_SECONDS", "30", "watchdog_seconds", 30.0),
    (R + "LEASE_SECONDS", "100", "watchdog_seconds", 200.0),
    ("RECONSUP_RECYCLE_SECONDS", "0", "recycle_seconds", 0.0),
    ("RECONSUP_RECYCLE_SECONDS", "86400", "recycle_seconds", 86400.0),
    ("RECONSUP_RECYCLE_MEMORY_MB", "512", "recycle_memory_mb", 512.0),
    ("RECONSUP_MEMORY_MAX_MB", "1024", "memory_max_mb", 1024.0),
    ("RECONSUP_RPC_TIMEOUT_SECONDS", "10", "rpc_timeout_seconds", 10.0),
    ("RECONSUP_RPC_QUORUM_JSON", '{"local": 1, "absent": 3}', "rpc_quorum", {"local": 1, "absent": 3}),
    ("RECONSUP_BLOCK_PROOF_JSON", '{"local": false}', "block_proof", {"local": False}),
    ("RECONSUP_BALANCE_AUDIT_JSON", '{"local": false}', "balance_audit", {"local": False}),
    ("RECONSUP_AUDIT_BLOCKS", "100", "audit_blocks", 100),
    ("RECONSUP_NATIVE_LOGS_FROM_JSON", '{"local": 0}', "native_logs_from", {"local": 0}),
    ("RECONSUP_TAIL_BLOCKS", "64", "tail_blocks", 64),
    ("RECONSUP_EXPIRY_CONFIRMATIONS", "1024", "expiry_confirmations", 1024),
    ("RECONSUP_EXPIRY_GRACE_SECONDS", "0", "expiry_grace_seconds", 0.0),
    ("RECONSUP_METRICS_ADDRESS", "", "metrics_address", None),
    ("RECONSUP_METRICS_ADDRESS", "[::1]:9464", "metrics_address", ("::1", 9464)),
    ("RECONSUP_METRICS_ADDRESS", "0.0.0.0:80", "metrics_address", ("0.0.0.0", 80)),
    ("RECONSUP_LOG_FORMAT", "JSON", "log_format", "json"),
    ("RECONSUP_LOG_FORMAT", "text", "log_format", "text"),
]


@pytest.mark.parametrize(("name", "text", "field", "value"), ACCEPTED)
def test_what_a_rule_allows_is_taken(name: str, text: str, field: str, value: object) -> None:
    settings = accepted(**{name: text})

    assert getattr(settings, field) == value


REFUSED = [
    ("DATABASE_URL", "mysql://u:s3cr3t@h/db"),
    ("DATABASE_URL", "s3cr3t"),
    ("DATABASE_URL", "postgresql+psycopg://u:s3cr3t@h/db"),
    ("DATABASE_URL", "postgresql://u:s3cr3t/x@h/db"),
    ("DATABASE_URL", "postgresql://u:s3cr3t@x@h/db"),
    ("DATABASE_URL", "postgresql://u:s3cr3t%zz@h/db"),
    ("DATABASE_URL", "postgresql://u:s3 cr3t@h/db"),
    ("DATABASE_URL", "postgresql://h:99999/db?password=s3cr3t"),
    ("DATABASE_URL", "postgresql://h:0/db"),
    ("DATABASE_URL", "postgresql://h/db?pasword=s3cr3t"),
    ("DATABASE_URL", "embedded:"),
    (R + "ENABLED", "maybe"),
    (R + "POLL_INTERVAL_SECONDS", "0"),
    (R + "POLL_INTERVAL_SECONDS", "-1"),
    (R + "POLL_INTERVAL_SECONDS", "nan"),
    (R + "POLL_INTERVAL_SECONDS", "inf"),
    (R + "POLL_INTERVAL_SECONDS", "15s"),
    (R + "POLL_INTERVAL_SECONDS", "86401"),
    (R + "BATCH_SIZE", "0"),
    (R + "BATCH_SIZE", "5001"),
    (R + "BATCH_SIZE", "2.5"),
    (R + "LEASE_SECONDS", "1.9"),
    (R + "LEASE_SECONDS", "NaN"),
    (R + "LEASE_SECONDS", "14.9"),  # 3 × the RPC time-out is 15
    (R + "WORKER_ID", "a" * 129),
    (R + "WORKER_ID", "host#1"),
    (R + "WORKER_ID", "höst"),
    (R + "DETECTED_THRESHOLD_BPS", "0"),
    (R + "DETECTED_THRESHOLD_BPS", "10001"),
    (R + "CONFIRMED_THRESHOLD_BPS", "10001"),
    (R + "EVM_MIN_CONFIRMATIONS", "0"),
    (R + "EVM_FINALITY_MIN_CONFIRMATIONS", "0"),
    (DEPTHS, "12"),
    (DEPTHS, '{"local": 0}'),
    (DEPTHS, '{"local": 1.0}'),
    (DEPTHS, '{"local": true}'),
    (DEPTHS, '{"local": "12"}'),
    (DEPTHS, '{"local": "latest"}'),
    (DEPTHS, '{"local": 1, "local": 2}'),
    (DEPTHS, '{"lo cal": 1}'),
    (DEPTHS, '{"local": NaN}'),
    (DEPTHS, "{"),
    (R + "REORG_OBSERVE_WINDOW_SECONDS", "0"),
    (URLS, "[]"),
    (URLS, '{"local": []}'),
    (URLS, '{"local": null}'),
    (URLS, '{"local": ["https://s3cr3t/x", "https://s3cr3t/x"]}'),
    (URLS, '{"local": "https://s3cr3t/x", "local": "https://y"}'),
    (URLS, '{"": "https://s3cr3t/x"}'),
    (URLS, '{"https://s3cr3t/x": "mainnet"}'),
    (URLS, '{"local": "ws://s3cr3t/x"}'),
    (URLS, '{"local": "s3cr3t"}'),
    (URLS, '{"local": "https:///s3cr3t"}'),
    (URLS, '{"local": "https://h:s3cr3t/"}'),
    (URLS, '{"local": "https://h/s3 cr3t"}'),
    (URLS, '{"local": "https://h/#s3cr3t"}'),
    (URLS, '{"local": "https://s3cr3t'),
    ("RECONSUP_WORKERS", "0"),
    ("RECONSUP_WORKERS", "513"),
    ("RECONSUP_WORKERS", "8:2"),
    ("RECONSUP_WORKERS", "0:2"),
    ("RECONSUP_WORKERS", "2:"),
    ("RECONSUP_WATCHDOG_SECONDS", "29"),
    ("RECONSUP_RECYCLE_SECONDS", "9"),
    ("RECONSUP_RECYCLE_MEMORY_MB", "63"),
    ("RECONSUP_MEMORY_MAX_MB", "-1"),
    ("RECONSUP_BOOT_SECONDS", "1"),
    ("RECONSUP_WORKERS", "many"),
    ("RECONSUP_START_SECONDS", "0"),
    ("RECONSUP_DRAIN_SECONDS", "-inf"),
    ("RECONSUP_RPC_TIMEOUT_SECONDS", "0"),
    ("RECONSUP_RPC_QUORUM_JSON", '{"local": 0}'),
    ("RECONSUP_RPC_QUORUM_JSON", '{"local": 2}'),  # it has one URL
    ("RECONSUP_BLOCK_PROOF_JSON", '{"local": "off"}'),
    ("RECONSUP_BALANCE_AUDIT_JSON", '["local"]'),
    ("RECONSUP_AUDIT_BLOCKS", "0"),
    ("RECONSUP_AUDIT_BLOCKS", "101"),
    ("RECONSUP_NATIVE_LOGS_FROM_JSON", '{"local": -1}'),
    ("RECONSUP_TAIL_BLOCKS", "63"),
    ("RECONSUP_EXPIRY_CONFIRMATIONS", "0"),
    ("RECONSUP_EXPIRY_CONFIRMATIONS", "1025"),
    ("RECONSUP_EXPIRY_GRACE_SECONDS", "-1"),
    ("RECONSUP_METRICS_ADDRESS", "9464"),
    ("RECONSUP_METRICS_ADDRESS", ":9464"),
    ("RECONSUP_METRICS_ADDRESS", "host:0"),
    ("RECONSUP_METRICS_ADDRESS", "host:65536"),
    ("RECONSUP_METRICS_ADDRESS", "http://host:9464"),
    ("RECONSUP_LOG_FORMAT", "xml"),
]


@pytest.mark.parametrize(("name", "text"), REFUSED)
def test_what_a_rule_forbids_is_refused_by_its_code_alone(name: str, text: str) -> None:
    errors = refused({name: text})

    code = f"CONFIG_{name.removeprefix('PAYMENT_REQUEST_')}_INVALID"
    assert [code] == list(errors)
    assert errors[code].startswith(f"{code}: {name}=")
    assert "s3" not in errors[code]
    assert "cr3t" not in errors[code]


def test_every_setting_has_a_case_both_ways() -> None:
    names = {setting.name for setting in SETTINGS}

    assert names == {name for name, *_ in ACCEPTED} | {R + "CONFIRMED_THRESHOLD_BPS"}
    assert names == {name for name, _ in REFUSED}


def test_json_that_was_cut_off_is_told_in_whole_words() -> None:
    (told,) = refused({URLS: '{"local'}).values()
    assert "is not JSON: Unterminated string starting at line 1 column 2" in told


def test_a_missing_database_url_has_its_own_code() -> None:
    with pytest.raises(ConfigErrors) as caught:
        load({"DATABASE_URL": "  "}, {})

    (error,) = caught.value.errors
    assert error.code == "CONFIG_DATABASE_URL_MISSING"
    assert str(error).startswith("CONFIG_DATABASE_URL_MISSING: DATABASE_URL: required: postgresql://")
    assert "--env-file /etc/reconsup/reconsup.env" in str(error)


def test_everything_wrong_is_reported_at_once_also_what_contradicts(tmp_path: Path) -> None:
    errors = refused(
        {
            "DATABASE_URL": "nonsense",
            R + "LEASE_SECONDS": "6",
            R + "DETECTED_THRESHOLD_BPS": "9000",
            R + "CONFIRMED_THRESHOLD_BPS": "8000",
            R + "EVM_MIN_CONFIRMATIONS": "5",
            R + "EVM_FINALITY_MIN_CONFIRMATIONS": "4",
            "RECONSUP_WORKERS": "none",
            "RECONSUP_TAIL_BLOCKS": "100",
            "RECONSUP_EXPIRY_CONFIRMATIONS": "101",
        },
        env_file=tmp_path / "absent",
    )

    assert {
        "CONFIG_ENV_FILE_INVALID",
        "CONFIG_DATABASE_URL_INVALID",
        "CONFIG_RECONCILER_LEASE_SECONDS_INVALID",
        "CONFIG_RECONCILER_DETECTED_THRESHOLD_BPS_INVALID",
        "CONFIG_RECONCILER_EVM_FINALITY_MIN_CONFIRMATIONS_INVALID",
        "CONFIG_RECONSUP_WORKERS_INVALID",
        "CONFIG_RECONSUP_EXPIRY_CONFIRMATIONS_INVALID",
    } == set(errors)
    assert "RECONSUP_RPC_TIMEOUT_SECONDS=5" in errors["CONFIG_RECONCILER_LEASE_SECONDS_INVALID"]


def test_a_contradiction_with_an_unreadable_setting_is_not_told() -> None:
    errors = refused({R + "LEASE_SECONDS": "6", "RECONSUP_RPC_TIMEOUT_SECONDS": "soon"})

    assert list(errors) == ["CONFIG_RECONSUP_RPC_TIMEOUT_SECONDS_INVALID"]


@pytest.mark.parametrize("text", ["false", "0", "no", "False"])
def test_switched_off_is_said_alone_whatever_else_is_wrong(text: str) -> None:
    errors = refused({R + "ENABLED": text, "DATABASE_URL": "", "RECONSUP_WORKERS": "none"})

    assert list(errors) == ["CONFIG_RECONCILER_DISABLED"]


def test_flags_win_over_the_file_and_the_file_over_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "reconsup.env"
    file.write_text(f"{R}BATCH_SIZE=20\nRECONSUP_WORKERS=2\n")
    env = GOOD | {R + "BATCH_SIZE": "10", "RECONSUP_WORKERS": "1", "RECONSUP_TAIL_BLOCKS": "99"}

    settings = load(env, {"RECONSUP_WORKERS": "3", R + "BATCH_SIZE": ""}, file)

    assert (settings.workers, settings.batch_size, settings.tail_blocks) == ((3, 3), 20, 99)


def test_an_empty_value_is_no_value_except_for_the_metrics_address(tmp_path: Path) -> None:
    file = tmp_path / "reconsup.env"
    file.write_text(f"{R}BATCH_SIZE=\nRECONSUP_METRICS_ADDRESS=\n")

    settings = load(GOOD | {R + "BATCH_SIZE": "10", "RECONSUP_METRICS_ADDRESS": "h:1"}, {}, file)

    assert (settings.batch_size, settings.metrics_address) == (10, None)


def test_a_file_that_systemd_reads_is_read_alike(tmp_path: Path) -> None:
    file = tmp_path / "reconsup.env"
    lines = (
        "# a comment",
        "; another",
        "",
        'DATABASE_URL="postgresql://u:p%23$HOME@h/db"\r',
        URLS + '={"local": "http://h/k"}',
        DEPTHS + """='{"local": 3}'""",
        f"{R}WORKER_ID=first",
        f"{R}WORKER_ID = last",
    )
    file.write_text("\n".join(lines), newline="")

    settings = load({}, {}, file)

    assert settings.database_url == "postgresql://u:p%23$HOME@h/db"
    assert settings.rpc_urls == {"local": ("http://h/k",)}
    assert (settings.confirmations, settings.worker_base) == ({"local": 3}, "last")


@pytest.mark.parametrize(
    ("content", "place"),
    [(b"RECONSUP_WORKERS 2 s3cr3t\n", ":1"), (b"A=1\nB='s3cr3t\n", ":2"), (b"A=\xff\xfe", ""), (None, "")],
)
def test_a_file_that_cannot_be_read_says_where_and_shows_nothing(
    tmp_path: Path, content: bytes | None, place: str
) -> None:
    file = tmp_path / "reconsup.env"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)

    errors = refused({}, env_file=file)

    assert errors["CONFIG_ENV_FILE_INVALID"].startswith(f"CONFIG_ENV_FILE_INVALID: --env-file={file}{place}: ")
    assert "s3cr3t" not in errors["CONFIG_ENV_FILE_INVALID"]


def test_a_pipe_is_read_once_and_never_again(tmp_path: Path) -> None:
    """`--env-file <(decrypt …)` is empty the second time. Seen to fail without the look at what kind of file it is: at
    HUP 12 confirmations became 1, and a pipe that nobody writes to was waited for for ever.
    """
    reader, writer = os.pipe()
    os.write(writer, b"PAYMENT_REQUEST_RECONCILER_EVM_MIN_CONFIRMATIONS=12\n")
    os.close(writer)
    pipe, fifo = Path(f"/dev/fd/{reader}"), tmp_path / "fifo"
    os.mkfifo(fifo)

    assert load(GOOD, {}, pipe).confirmation_depth("local") == 12
    for path in (pipe, fifo, Path(os.devnull)):
        with pytest.raises(ConfigErrors) as caught:
            load(GOOD, {}, path, is_again=True)
        assert "to be read again it must be a file" in str(caught.value.errors[0])
    os.close(reader)


def test_a_file_that_can_be_no_settings_is_not_read_to_its_end() -> None:
    assert "more than 1048576 bytes" in refused({}, env_file=Path("/dev/zero"))["CONFIG_ENV_FILE_INVALID"]


def test_a_folder_in_place_of_the_file_costs_no_descriptor(tmp_path: Path) -> None:
    opened = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(ConfigErrors):
            load(GOOD, {}, tmp_path, is_again=True)
    assert os.listdir("/proc/self/fd") == opened


def test_no_secret_is_in_the_settings_own_words() -> None:
    settings = load(
        {
            "DATABASE_URL": "postgresql://u:s3cr3t-a@h/db?password=s3cr3t-b",
            URLS: '{"a": ["https://s3cr3t-c@h/v3/s3cr3t-d", "http://u:s3cr3t-e@h:1?key=s3cr3t-f"]}',
        },
        {},
    )

    for words in (repr(settings), str(settings), f"{settings}", str(settings.shown())):
        assert "s3cr3t" not in words
        assert "postgresql://u:***@h/db?***" in words
        assert "https://***@h/***" in words


def test_the_name_of_the_host_is_made_fit_to_be_a_worker_id(monkeypatch: pytest.MonkeyPatch) -> None:
    for host, base in {"web 1/ü.example": "web-1-.example", "ü": "host", "h" * 200: "h" * 128}.items():
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)

        assert base == load(GOOD, {}).worker_base


def test_a_network_is_watched_at_least_as_long_as_it_takes_to_confirm() -> None:
    settings = accepted(
        **{
            R + "EVM_MIN_CONFIRMATIONS": "2",
            R + "EVM_FINALITY_MIN_CONFIRMATIONS": "8",
            DEPTHS: '{"deep": 30, "tag": "safe"}',
        }
    )

    depths = {each: (settings.confirmation_depth(each), settings.finality_depth(each)) for each in ("deep", "tag", "x")}
    assert depths == {"deep": (30, 30), "tag": ("safe", 8), "x": (2, 8)}


def test_a_name_that_is_nearly_a_setting_is_warned_of_and_others_are_left_alone() -> None:
    settings = accepted(
        RECONSUP_WORKER="3",
        RECONSUP_WORKER_ID="x",
        RECONSUP_DATABASE_URL="x",
        PAYMENT_REQUEST_RECONCILER_BATCHSIZE="3",
        RECONSUP_UNRELATED_THING="1",
        PAYMENT_REQUEST_WEBHOOK_URL="1",
        DATABASE_URI="x",
    )

    suggestions = {line.split()[0]: line.rstrip("?").split()[-1] for line in settings.warnings}
    assert suggestions == {
        "RECONSUP_WORKER": "RECONSUP_WORKERS",
        "RECONSUP_WORKER_ID": R + "WORKER_ID",
        "RECONSUP_DATABASE_URL": "DATABASE_URL",
        R + "BATCHSIZE": R + "BATCH_SIZE",
    }


def test_serving_nothing_and_depths_for_nobody_are_warned_of() -> None:
    nothing = load({"DATABASE_URL": DATABASE}, {}).warnings
    nobody = accepted(**{DEPTHS: '{"mainet": 3, "local": 2}'}).warnings

    assert "no payment request will be processed" in nothing[0]
    assert nobody == ("RECONSUP_CONFIRMATIONS_JSON names 'mainet', which has no endpoint",)


def test_each_setting_has_a_flag_of_its_own_and_a_field() -> None:
    flags = {setting.flag: setting.name for setting in SETTINGS}
    fields = set(Settings.__dataclass_fields__) - {"warnings"} | {"enabled"}

    assert len(SETTINGS) == len(flags)
    assert {
        "--workers": "RECONSUP_WORKERS",
        "--worker-id": R + "WORKER_ID",
        "--database-url": "DATABASE_URL",
        "--metrics-address": "RECONSUP_METRICS_ADDRESS",
        "--evm-rpc-urls-json": URLS,
        "--poll-interval-seconds": R + "POLL_INTERVAL_SECONDS",
    }.items() <= flags.items()
    assert fields == {setting.field for setting in SETTINGS}


def test_each_default_obeys_its_own_rule() -> None:
    for setting in SETTINGS:
        if setting.default is not None:
            setting.parse(setting.default)
    assert {"DATABASE_URL", URLS} == {name for name, setting in BY_NAME.items() if setting.is_secret}


def test_the_process_environment_is_read_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://h/from-process")
    monkeypatch.setenv("RECONSUP_WORKERS", "nonsense")

    assert load_database_url({}) == "postgresql://h/from-process"
    assert load_database_url({"DATABASE_URL": "postgresql://h/flag"}) == "postgresql://h/flag"
    with pytest.raises(ConfigErrors, match="CONFIG_RECONSUP_WORKERS_INVALID"):
        load_from_process({})
    assert load({"DATABASE_URL": DATABASE, "RECONSUP_WORKERS": "1"}, {}).workers == (1, 1)
