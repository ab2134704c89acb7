"""Rows that PostgreSQL refuses to write, in other ways than by a plain check or RAISE: the others are paid."""

import asyncio
from typing import Any

import pytest

from reconsup.demo.anvil import Anvil
from reconsup.store import refusals
from reconsup.store.errors import StoreUnavailable
from reconsup.worker import reconciler
from tests.support.desk import LOCAL, open_shop
from tests.support.postgres import Database
from tests.worker.test_starvation import TRIGGER, _paid

pytestmark = pytest.mark.service

DEFERRED = TRIGGER.replace("TRIGGER theirs BEFORE", "CONSTRAINT TRIGGER theirs AFTER").replace(
    "FOR EACH ROW", "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
)
RAISES = "RAISE EXCEPTION 'not with me'"
# of the application's own, of classes that psycopg calls operational or internal, and of what is tried again elsewhere
CODES = ("45000", "U0001", "55000", "XX000", "38000", "25006", "23503")


@pytest.mark.parametrize("code", CODES)
def test_whatever_code_another_services_trigger_chose_only_its_row_is_left_out(
    database: Database, anvil: Anvil, code: str
) -> None:
    """Seen to fail: a code of its own (45000, U0001) ended the worker, the others were taken for an absent database."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            ids = await _paid(shop, 5)
            database.execute(TRIGGER.format(id=ids[0], act=f"{RAISES} USING ERRCODE = '{code}'"))
            await shop.desk.look()
            assert [shop.status(id_) for id_ in ids] == ["pending"] + ["confirmed"] * 4
            assert shop.reasons(ids[0]) == ["row_failed"]

    asyncio.run(run())


def test_a_row_that_is_refused_only_at_commit_is_left_out_too(database: Database, anvil: Anvil) -> None:
    """Seen to fail (StoreRejected, again and again) while constraints waited for the end of what is taken back."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            ids = await _paid(shop, 5)
            database.execute(DEFERRED.format(id=ids[0], act=RAISES))
            await shop.desk.look()
            assert [shop.status(id_) for id_ in ids] == ["pending"] + ["confirmed"] * 4

    asyncio.run(run())


def test_a_row_whose_trigger_waits_in_vain_for_a_lock_is_not_to_blame(database: Database, anvil: Anvil) -> None:
    """Seen to fail (the row is blamed) when that lock's time-out is taken for what the trigger has to say."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            (id_,) = await _paid(shop, 1)
            database.execute("CREATE TABLE app.ledger_of_theirs AS SELECT 1 AS one")
            waits = "PERFORM 1 FROM app.ledger_of_theirs FOR UPDATE NOWAIT"
            database.execute(TRIGGER.format(id=id_, act=waits))
            with database.connect() as other:
                other.execute("BEGIN")
                other.execute("SELECT 1 FROM app.ledger_of_theirs FOR UPDATE")
                with pytest.raises(StoreUnavailable):
                    await refusals.find(
                        shop.desk.reconciler._databases[0], LOCAL, owner="me", lease_seconds=30.0, limit=10
                    )

    asyncio.run(run())


def test_many_rows_that_no_update_may_touch_do_not_hold_back_the_others(database: Database, anvil: Anvil) -> None:
    """More than are found at a time, all of them before the others; as of a service that archives what is over.

    Seen to fail (StoreRejected, and nobody is confirmed, ever) when sixteen at once are an alarm only.
    """

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            ids = await _paid(shop, 60)
            database.execute(
                "UPDATE app.payment_requests SET next_reconcile_at = now() - interval '1 hour'"
                " WHERE id = ANY(%s)", [ids[:40]]
            )  # fmt: skip
            archived = ", ".join(f"'{id_}'" for id_ in ids[:40])
            database.execute(
                f"ALTER TABLE app.payment_requests ADD CONSTRAINT theirs CHECK (id NOT IN ({archived})) NOT VALID"
            )
            await shop.desk.look()
            assert [shop.status(id_) for id_ in ids] == ["pending"] * 40 + ["confirmed"] * 20

    asyncio.run(run())


# rows that are refused only after they were claimed


def test_a_row_that_may_be_claimed_but_not_decided_does_not_hold_back_the_others(
    database: Database, anvil: Anvil
) -> None:
    """It is the oldest, so it is the first of every batch. Seen to fail (nobody is confirmed, ever) when the refusal
    of its failure leaves the batch.
    """

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            ids = await _paid(shop, 5)
            database.execute(
                "UPDATE app.payment_requests SET next_reconcile_at = now() - interval '1 hour' WHERE id = %s", [ids[0]]
            )
            trigger = TRIGGER.replace("BEFORE UPDATE ON", "BEFORE UPDATE OF status ON")
            database.execute(trigger.format(id=ids[0], act=RAISES))
            await shop.desk.look()
            assert [shop.status(id_) for id_ in ids] == ["pending"] + ["confirmed"] * 4
            assert shop.reasons(ids[0]) == ["row_failed"]

    asyncio.run(run())


def test_a_row_that_nobody_may_write_any_more_once_it_is_leased_does_not_hold_the_worker(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor may its lease be given back: another answer is lost, and still the worker goes on.

    Seen to fail (StoreRejected at the beginning of each cycle, for ever) when the give-back insists.
    """

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            ids = await _paid(shop, 5)
            real = reconciler.decide

            def deciding(*arguments: Any) -> Any:
                database.execute(TRIGGER.format(id=ids[0], act=RAISES))
                monkeypatch.setattr(reconciler, "decide", real)
                return real(*arguments)

            monkeypatch.setattr(reconciler, "decide", deciding)
            await shop.desk.look()
            assert [shop.status(id_) for id_ in ids] == ["pending"] + ["confirmed"] * 4
            assert shop.row(ids[0])["reconcile_lease_owner"] == shop.desk.owner
            shop.desk.reconciler._may_hold_leases = True
            more = await _paid(shop, 2)
            await shop.desk.look()
            assert [shop.status(id_) for id_ in more] == ["confirmed"] * 2

    asyncio.run(run())
