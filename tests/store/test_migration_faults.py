"""What a migration meets on a busy database: locks, long transactions, its own death half-way.

Nothing here waits for time to pass: `say` is called by the migration just before it waits, and the tests do what
others would be doing at that moment.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from reconsup.store import migrate
from reconsup.store.ddl import LocksBusy, Pace, Steps
from reconsup.store.revision import EXPECTED_REVISION
from tests.support import other_service
from tests.support.catalogue import catalogue
from tests.support.postgres import Database, insert_request

pytestmark = pytest.mark.service

ROWS = 60
BRISK = Pace(lock_timeout_ms=50, pause_seconds=0.05, pause_seconds_max=0.1, give_up_seconds=20, window_rows=7)
HASTY = Pace(lock_timeout_ms=30, pause_seconds=0.02, pause_seconds_max=0.02, give_up_seconds=0.1, window_rows=7)
BUILDING = "building index app.reconsup_claim_idx"
WAITING_BUILD = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'CREATE INDEX%'"
    " AND wait_event_type = 'Lock'"
)


@pytest.fixture
def database(unwatched: Database) -> Database:
    """As a migration leaves it: what is compared here must be reconsup's own."""
    return unwatched


@pytest.fixture
def other(empty_database: Database) -> Database:
    """A database of the other service, with a few rows."""
    with empty_database.connect() as connection:
        other_service.make_tables(connection, rows=ROWS)
    return empty_database


@contextmanager
def upgrading(database: Database, say: Callable[[str], None]) -> Iterator[threading.Thread]:
    """Upgrade in a thread; it has to end well by the end of the block."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            migrate.upgrade(database.url, say=say, pace=BRISK)
        except BaseException as error:  # noqa: BLE001 - to be raised in the test itself
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(20)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def poll(database: Database, query: str) -> tuple[Any, ...]:
    """Ask until there is an answer."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if rows := database.fetch(query):
            return rows[0]
        time.sleep(0.01)
    raise AssertionError(f"nothing came of {query}")


def insert_without_waiting(database: Database) -> str:
    """Insert as the other service does; fail when that takes a lock somebody else has."""
    with database.connect() as connection:
        connection.execute("SET lock_timeout = '200ms'")
        return insert_request(connection, wallet_account_id="w2")


def silent(_: str) -> None:
    """Say nothing."""


def lines(database: Database) -> set[str]:
    with database.connect() as connection:
        return catalogue(connection)


def test_inserts_go_on_while_an_index_is_built(other: Database) -> None:
    """The build waits for an open transaction; inserts wait for nobody. Seen to fail without CONCURRENTLY (the
    insert then waits for the build, which waits for the open transaction)."""
    with other.connect(autocommit=False) as busy:
        first: list[str] = []

        def say(sentence: str) -> None:
            if BUILDING in sentence:
                first.append(insert_request(busy, wallet_account_id="w2"))

        with upgrading(other, say) as migration:
            poll(other, WAITING_BUILD)
            second = insert_without_waiting(other)
            assert migration.is_alive()
            busy.commit()

    assert other.fetch(
        "SELECT count(*) FROM app.payment_requests WHERE id = ANY (%s) AND next_reconcile_at <= now()",
        ([*first, second],),
    ) == [(2,)]
    assert not any("INVALID" in line for line in lines(other))


def test_a_long_reader_is_asked_again_and_holds_up_nobody_else(other: Database) -> None:
    """Seen to fail without the lock time-out: the ALTER then waits, and the insert behind it."""
    with other.connect(autocommit=False) as reader:
        reader.execute("SELECT count(*) FROM app.payment_requests")
        tries: list[str] = []
        third_try = threading.Event()

        def say(sentence: str) -> None:
            if "payment_requests is locked by another session; trying again" in sentence:
                tries.append(insert_without_waiting(other))
                if len(tries) == 3:
                    third_try.set()

        with upgrading(other, say):
            assert third_try.wait(10)
            insert_without_waiting(other)
            reader.rollback()

    assert migrate.schema_state(other.url).is_ready
    assert other.fetch(
        "SELECT count(*) FROM app.payment_requests WHERE next_reconcile_at IS NULL AND id LIKE 'pr%'"
    ) == [(0,)]


def test_it_gives_up_with_the_name_of_who_is_in_the_way(other: Database) -> None:
    with other.connect(autocommit=False, application_name="nightly-report") as reader:
        reader.execute("SELECT count(*) FROM app.payment_requests")
        with pytest.raises(LocksBusy) as caught:
            migrate.upgrade(other.url, say=silent, pace=HASTY)

        assert "app.payment_requests was locked by other sessions for 0.1 s" in str(caught.value)
        assert f"pid {reader.info.backend_pid}, nightly-report, idle in transaction" in str(caught.value)
        assert "run the same command again" in str(caught.value)
    assert migrate.upgrade(other.url, say=silent, pace=BRISK) == migrate.Migrated("0001_base", EXPECTED_REVISION)


def test_a_row_that_somebody_holds_comes_last(other: Database) -> None:
    """Seen to fail without SKIP LOCKED: the batch then waits for the row and keeps its other rows locked."""
    with other.connect(autocommit=False) as holder:
        said: list[str] = []

        def say(sentence: str) -> None:
            if "trying again" in sentence and not said:
                others = other.fetch(
                    "SELECT count(*) FILTER (WHERE next_reconcile_at IS NULL) FROM app.payment_requests"
                    " WHERE status IN ('pending', 'detected', 'reorged')"
                )
                assert others == [(1,)]
                holder.rollback()
            said.append(sentence)

        # The column first: the ALTER would wait for whoever holds a row.
        other.execute("ALTER TABLE app.payment_requests ADD COLUMN next_reconcile_at timestamptz")
        holder.execute("SELECT 1 FROM app.payment_requests WHERE id = 'old_000010' FOR UPDATE")
        steps = Steps(other.connect(options="-c lock_timeout=1s"), say=say, pace=BRISK)
        changed = steps.update_requests(
            "making open requests due",
            assign="next_reconcile_at = now()",
            where="next_reconcile_at IS NULL AND status IN ('pending', 'detected', 'reorged')",
        )

    assert said[0] == "making open requests due: some rows are locked by another session; trying again in 0.05 s"
    assert changed == ROWS * 3 // 10


def test_a_row_that_is_held_for_ever_ends_in_a_sentence(other: Database) -> None:
    with other.connect(autocommit=False) as holder, other.connect() as connection:
        holder.execute("SELECT 1 FROM app.payment_requests WHERE id = 'old_000010' FOR UPDATE")
        with pytest.raises(LocksBusy, match=r"app\.payment_requests was locked .* idle in transaction"):
            Steps(connection, say=silent, pace=HASTY).update_requests(
                "testing", assign="asset = 'X'", where="asset <> 'X'"
            )


def test_an_index_left_over_from_a_killed_build_is_built_again(other: Database) -> None:
    """A real one: the server ends our connection in the middle of the build. Seen to fail without the drop."""
    with other.connect(autocommit=False) as busy:

        def say(sentence: str) -> None:
            if BUILDING in sentence:
                insert_request(busy, wallet_account_id="w2")

        with pytest.raises(migrate.DatabaseAway, match="went away"):  # noqa: SIM117, PT012 - the block must end before the context does
            with upgrading(other, say):
                (pid,) = poll(other, WAITING_BUILD)
                other.fetch("SELECT pg_terminate_backend(%s)", (pid,))
        busy.commit()
    assert [line for line in lines(other) if "INVALID" in line and "reconsup_claim_idx" in line]
    assert migrate.schema_state(other.url).current == "0001_base"

    said: list[str] = []
    migrate.upgrade(other.url, say=said.append, pace=BRISK)

    assert "index app.reconsup_claim_idx is left over from an interrupted build: dropped, built again" in said
    assert not any("INVALID" in line for line in lines(other))
    assert migrate.schema_state(other.url).is_ready


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_killed_after_any_statement_it_goes_on_where_it_was(
    empty_database: Database, database: Database, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """Two statements further at each run, up and then down. Seen to fail with a note written in
    a transaction of its own, after its object: the next run took the object for a stranger's."""
    if whose == "theirs":
        with empty_database.connect() as connection:
            other_service.make_tables(connection, rows=ROWS)
        migrate.upgrade(database.url, say=silent)
    before = lines(empty_database)

    up = runs_until_done(monkeypatch, lambda: migrate.upgrade(empty_database.url, say=silent, pace=BRISK))
    after = lines(empty_database)
    down = runs_until_done(monkeypatch, lambda: migrate.downgrade(empty_database.url, "base", say=silent, pace=BRISK))

    assert min(up, down) > 10
    assert before == lines(empty_database)
    if whose == "ours":
        assert after == lines(database)
    else:
        assert not any("INVALID" in line for line in after)


class Killed(Exception):
    """Stands for kill -9: nothing after it is executed."""


def runs_until_done(monkeypatch: pytest.MonkeyPatch, go: Callable[[], object]) -> int:
    """Call `go`, dying after the first, third, fifth … statement of its steps, until it gets through; the runs."""
    honest = Steps.run
    for runs in range(1, 500):
        left = 2 * runs - 1  # a run goes on where the last one died, so the even ones get their turn as well

        def run(steps: Steps, statement: str, values: Any = ()) -> int:
            nonlocal left
            changed = honest(steps, statement, values)
            left -= 1
            if left == 0:
                steps.connection.close()  # the server rolls back what is open
                raise Killed
            return changed

        with monkeypatch.context() as patch:
            patch.setattr(Steps, "run", run)
            try:
                go()
            except (Killed, migrate.DatabaseAway):
                continue
            return runs
    raise AssertionError("it never got through")


def test_time_outs_of_the_role_do_not_cut_a_build(other: Database) -> None:
    """Seen to fail without lifting them: the waiting build was cancelled."""
    other.execute(f"ALTER DATABASE {other.name} SET statement_timeout = '300ms'")
    with other.connect(autocommit=False) as busy:

        def say(sentence: str) -> None:
            if BUILDING in sentence:
                insert_request(busy, wallet_account_id="w2")

        with upgrading(other, say):
            poll(other, WAITING_BUILD + " AND clock_timestamp() - query_start > interval '400 ms'")
            busy.commit()

    assert migrate.schema_state(other.url).is_ready
