"""Rows at which deciding fails, of which the database takes nothing, at which workers died: the others go on."""

import asyncio
from typing import Any

import psycopg
import pytest

from reconsup.demo.anvil import Anvil
from reconsup.payments.decision import decide
from reconsup.store.errors import StoreRefused
from reconsup.worker import pause, reconciler
from tests.support.desk import ETHER, Desk, Shop, open_shop
from tests.support.postgres import Database
from tests.support.stepped import until
from tests.worker.test_rows import ERRORS, seconds_until_next_look

pytestmark = pytest.mark.service


def test_a_row_on_which_deciding_fails_does_not_hold_back_the_others(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail (nobody is confirmed) without the except around one decision."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            ids = [await shop.request() for _ in range(5)]
            poisoned(monkeypatch, ids[2], RuntimeError("the bug"))
            for id_ in ids:
                await shop.pay(id_)
            await shop.chain.mine()
            await shop.desk.work()
            assert [shop.status(id_) for id_ in ids] == ["confirmed", "confirmed", "pending", "confirmed", "confirmed"]
            assert shop.row(ids[2])["reconcile_error"] == "failed: RuntimeError: the bug"
            assert 10 < seconds_until_next_look(shop.row(ids[2])) <= 15
            monkeypatch.undo()
            await shop.work()
            assert (shop.status(ids[2]), shop.row(ids[2])["reconcile_error"]) == ("confirmed", None)

    asyncio.run(run())


def poisoned(monkeypatch: pytest.MonkeyPatch, poison: str, error: BaseException) -> None:
    """Let the decision about one request fail."""

    def deciding(request: Any, *rest: Any) -> Any:
        if request.id == poison:
            raise error
        return decide(request, *rest)

    monkeypatch.setattr(reconciler, "decide", deciding)


REJECTIONS = {
    "when it is decided": "BEFORE UPDATE ON app.payment_requests",
    "when it is settled": "BEFORE INSERT ON app.payment_request_settlements",
}


@pytest.mark.parametrize("when", REJECTIONS)
def test_a_row_of_which_the_database_takes_nothing_does_not_hold_back_the_others(
    database: Database, anvil: Anvil, when: str
) -> None:
    """Another service's constraint on its own table may refuse what we write: at the decision, or in the admission.

    Seen to fail (StoreRejected leaves the loop) when a batch is not taken apart.
    """

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            addresses = [(await shop.request(), "")[0] for _ in range(3)]
            rows = [shop.row(id_)["address_canonical"] for id_ in addresses]
            database.execute("DELETE FROM app.payment_requests")
            for address in rows:  # paid before they are requested: settled by the admission
                await shop.chain.send(address, ETHER)
            await shop.chain.mine(2)
            await shop.desk.scan()
            ids = [await shop.request(address_canonical=address) for address in rows]
            _reject(database, REJECTIONS[when], ids[1])
            await shop.desk.look()
            assert [shop.status(id_) for id_ in ids] == ["confirmed", "pending", "confirmed"]
            error = shop.row(ids[1])["reconcile_error"]
            assert error.startswith("failed: ")
            assert "not with me" in error
            assert shop.row(ids[1])["reconcile_lease_owner"] is None

    asyncio.run(run())


def _reject(database: Database, when: str, id_: str) -> None:
    is_request = "payment_requests" in when
    condition = "NEW.id = '{}' AND NEW.status = 'confirmed'" if is_request else "NEW.payment_request_id = '{}'"
    database.execute(
        "CREATE FUNCTION app.reject() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {condition.format(id_)} THEN RAISE check_violation USING MESSAGE = 'not with me'; END IF;"
        " RETURN NEW; END $$"
    )
    database.execute(f"CREATE TRIGGER reject {when} FOR EACH ROW EXECUTE FUNCTION app.reject()")


def test_a_table_that_nobody_may_write_is_an_alarm_and_the_process_lives(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many rows at once are not to blame one by one.

    Seen to fail (StoreRejected leaves the loop) when the loop does not expect it.
    """
    monkeypatch.setattr(pause, "AWAY_SECONDS", 0.01)

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            for _ in range(20):
                await shop.request()
            await shop.pay(id_, to_mine=2)
            await shop.desk.scan()
            database.execute("ALTER TABLE app.payment_requests ADD CONSTRAINT theirs CHECK (asset = '') NOT VALID")
            working = asyncio.create_task(shop.desk.reconciler.run())
            await asyncio.wait([working], timeout=0.1)
            assert not working.done()
            database.execute("ALTER TABLE app.payment_requests DROP CONSTRAINT theirs")
            await until(database.url, "SELECT 1 FROM app.payment_requests WHERE id = %s AND status = 'confirmed'", id_)
            shop.desk.pauses.stop()
            await working

    asyncio.run(run())


def test_a_right_that_was_taken_away_is_told_as_a_refusal_and_not_as_a_database_that_is_away(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Somebody revoked UPDATE on the requests. Seen to fail ("database_away", while it answers everybody)."""

    async def claim(*_: Any, **__: Any) -> Any:
        raise StoreRefused("permission denied for table payment_requests")

    monkeypatch.setattr(reconciler.leases, "claim", claim)

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            await shop.desk.scan()
            working = asyncio.create_task(shop.desk.reconciler.run())
            await asyncio.wait([working], timeout=0.1)
            shop.desk.pauses.stop()
            await working

    asyncio.run(run())
    told = capfd.readouterr().out
    assert "database_refuses" in told
    assert "database_away" not in told


def test_a_row_that_the_scan_cannot_settle_is_an_alarm_and_the_process_lives(
    database: Database, anvil: Anvil, capfd: pytest.CaptureFixture[str]
) -> None:
    """The block is read again and again: rather no block than one with a payment missing.

    The log says so, from which block on, and what to do. Seen to fail (StoreRejected leaves the loop) when the scanner
    does not expect it; and (a warning with PostgreSQL's words alone) while it was told like a chain that is away.
    """

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.desk.work()
            _reject(database, REJECTIONS["when it is settled"], id_)
            await shop.pay(id_, to_mine=2)
            for _ in range(3):
                assert await shop.desk.scanner.turn() > 0
            assert shop.scanned() == 1
            told = [line for line in capfd.readouterr().out.splitlines() if "block_refused" in line]
            assert len(told) == 3
            assert all("not with me" in line and "next_height=2" in line and "put it right" in line for line in told)
            database.execute("DROP TRIGGER reject ON app.payment_request_settlements")
            await shop.desk.work()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


# what others do to settlements


@pytest.mark.parametrize("status", ["confirmed", "detected"])
def test_a_settlement_that_another_program_disowned_is_repaired(database: Database, anvil: Anvil, status: str) -> None:
    """No proof says that the chain took it back, and our chain still holds its block."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            await shop.pay(id_, to_mine=2 if status == "confirmed" else 1)
            await shop.work()
            assert shop.status(id_) == status
            database.execute("UPDATE app.payment_request_settlements SET is_canonical = false")
            shop.database.execute("UPDATE app.payment_requests SET next_reconcile_at = now()")
            await shop.desk.look()
            assert shop.status(id_) == status
            assert [each["is_canonical"] for each in shop.settlements(id_).values()] == [True]
            assert "payment_reorged" not in shop.reasons(id_)

    asyncio.run(run())


@pytest.mark.parametrize(
    "metadata",
    ['{"first_block_time": "yesterday"}', '{"first_block_time": 5}', '{"first_block_time": "2026-01-01T00:00:00"}'],
)
def test_a_settlement_with_nonsense_in_its_metadata_is_an_error_of_its_row_only(
    database: Database, anvil: Anvil, metadata: str
) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            bad, good = await shop.request(), await shop.request()
            await shop.pay(bad)
            await shop.pay(good, to_mine=2)
            await shop.desk.scan()
            database.execute("UPDATE app.payment_request_settlements SET metadata = %s WHERE payment_request_id = %s",
                             [metadata, bad])  # fmt: skip
            await shop.desk.look()
            assert (shop.status(bad), shop.status(good)) == ("pending", "confirmed")
            assert str(shop.row(bad)["reconcile_error"]).startswith("failed: ")
            database.execute("DELETE FROM app.payment_request_settlements WHERE payment_request_id = %s", [bad])
            await shop.work()
            assert shop.row(bad)["reconcile_error"] is None

    asyncio.run(run())


def test_settlements_of_another_program_do_not_count(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            id_ = await shop.request()
            database.execute(
                "INSERT INTO app.payment_request_settlements (payment_request_id, evidence_ref, amount_minor,"
                " confirmations, block_height, block_hash, first_seen_at, last_seen_at)"
                " VALUES (%s, 'theirs', %s, 99, 1, '0xabc', now(), now())",
                [id_, ETHER],
            )
            await shop.desk.work()
            assert shop.status(id_) == "pending"
            (theirs,) = shop.settlements(id_).values()
            assert (theirs["evidence_ref"], theirs["is_canonical"], theirs["metadata"]) == ("theirs", True, {})

    asyncio.run(run())


# rows at which workers died


def test_a_suspect_is_claimed_alone_and_after_the_others(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[str]] = []

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            ids = [await shop.request() for _ in range(4)]
            database.execute("UPDATE app.payment_requests SET reconcile_crashes = 1 WHERE id = ANY(%s)", [ids[:2]])
            _watch_batches(shop.desk, monkeypatch, batches)
            await shop.desk.work()
            assert sorted(batches[0]) == ids[2:]
            assert sorted(batches[1:]) == [[ids[0]], [ids[1]]]
            assert {row["reconcile_crashes"] for row in shop.rows().values()} == {0}

    asyncio.run(run())


def test_suspects_get_their_turn_while_there_is_always_more_to_do(database: Database, anvil: Anvil) -> None:
    """Seen to fail (never looked at) when suspects wait for an idle moment."""

    async def run() -> None:
        async with open_shop(database, anvil, batch_size=1) as shop:
            suspect = await shop.request()
            others = [await shop.request() for _ in range(30)]
            database.execute("UPDATE app.payment_requests SET reconcile_crashes = 1 WHERE id = %s", [suspect])
            await shop.desk.scan()
            for _ in range(10):
                assert await shop.desk.reconciler.look_around()
            assert shop.row(suspect)["reconcile_lease_epoch"] == 1
            assert sum(shop.row(id_)["reconcile_lease_epoch"] for id_ in others) == 20  # two at a time

    asyncio.run(run())


def _watch_batches(desk: Desk, monkeypatch: pytest.MonkeyPatch, batches: list[list[str]]) -> None:
    real = desk.reconciler._process

    async def process(database: Any, batch: Any) -> Any:
        batches.append([claim.request.id for claim in batch.claims])
        return await real(database, batch)

    monkeypatch.setattr(desk.reconciler, "_process", process)


def test_the_row_at_work_is_noted_so_that_a_death_can_be_laid_to_its_charge(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Death(BaseException):
        pass

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            ids = [await shop.request() for _ in range(3)]
            await shop.desk.scan()
            poisoned(monkeypatch, ids[1], Death())
            with pytest.raises(Death):
                await shop.desk.reconciler.look_around()
            assert shop.desk.row_noted == ids[1]

    asyncio.run(run())


def test_a_request_that_is_deleted_while_it_is_decided_is_forgotten(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            gone, kept = await shop.request(), await shop.request()
            await shop.desk.scan()
            _delete_while_deciding(database, monkeypatch, gone)
            await shop.desk.look()
            assert list(shop.rows()) == [kept]
            assert shop.row(kept)["reconcile_lease_owner"] is None

    asyncio.run(run())


def _delete_while_deciding(database: Database, monkeypatch: pytest.MonkeyPatch, id_: str) -> None:
    def deciding(*arguments: Any) -> Any:
        with psycopg.connect(database.url, autocommit=True) as outsider:
            outsider.execute("DELETE FROM app.payment_requests WHERE id = %s", [id_])
        return decide(*arguments)

    monkeypatch.setattr(reconciler, "decide", deciding)


def test_nothing_is_left_leased(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            await _one_of_each(shop)
            await shop.work()
            assert [row["id"] for row in shop.rows().values() if row["reconcile_lease_owner"]] == []

    asyncio.run(run())


async def _one_of_each(shop: Shop) -> None:
    for overrides, _ in ERRORS.values():
        await shop.request(**overrides)
    await shop.request()
