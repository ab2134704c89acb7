"""Rows that are in the way of others: they are left out or put off, and the others are looked at without a pause."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from reconsup.demo.anvil import Anvil
from reconsup.payments.request import Network
from reconsup.store.errors import StoreRejected, StoreUnavailable
from reconsup.worker import reconciler
from tests.support.desk import LOCAL, POLICY, Shop, open_shop
from tests.support.postgres import Database
from tests.support.stepped import until
from tests.worker.test_rows import seconds_until_next_look
from tests.worker.test_trust import Slow

pytestmark = pytest.mark.service


def test_a_worker_goes_through_all_that_is_due_without_a_pause(database: Database, anvil: Anvil) -> None:
    """Two batches in each cycle. Seen to fail (one batch a poll) when a full batch does not say that there is more."""

    async def run() -> None:
        async with open_shop(database, anvil, batch_size=5) as shop:
            ids = [await shop.request() for _ in range(47)]
            await shop.desk.scan()
            cycles = 1
            while await shop.desk.reconciler.look_around():
                cycles += 1
            assert cycles == 5
            assert [shop.row(id_)["reconcile_lease_epoch"] for id_ in ids] == [1] * 47

    asyncio.run(run())


# rows that PostgreSQL refuses to write


TRIGGER = """
CREATE FUNCTION app.theirs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NEW.id = '{id}' THEN {act}; END IF; RETURN NEW; END $$;
CREATE TRIGGER theirs BEFORE UPDATE ON app.payment_requests FOR EACH ROW EXECUTE FUNCTION app.theirs()
"""
ACTS = {
    "raises": ("RAISE EXCEPTION 'not with me'", "not with me"),
    "raises a check violation": ("RAISE check_violation USING MESSAGE = 'not with me'", "not with me"),
    "divides by zero": ("NEW.derivation_index := 1 / 0", "division by zero"),
    "reads a table that is gone": ("PERFORM 1 FROM app.gone", 'relation "app.gone" does not exist'),
}


@pytest.mark.parametrize("act", ACTS)
def test_a_row_that_no_update_may_touch_does_not_hold_back_the_others(
    database: Database, anvil: Anvil, act: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The trigger is another service's, the row one it forgot. It is named in log and history, and left out.

    Seen to fail (nobody is confirmed) when a refused claim is only an alarm; and, with RAISE EXCEPTION, when its error
    code is taken for a mistake of ours: every worker died of it.
    """
    statement, words = ACTS[act]

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            ids = await _paid(shop, 7)
            database.execute(TRIGGER.format(id=ids[3], act=statement))
            await shop.desk.look()
            assert [shop.status(id_) for id_ in ids] == ["confirmed"] * 3 + ["pending"] + ["confirmed"] * 3
            assert shop.row(ids[3])["reconcile_lease_owner"] is None
            (entry,) = shop.entries(ids[3])
            assert (entry["reason"], entry["evidence"]) == ("row_failed", [{"error": words}])

    asyncio.run(run())
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "row_refused" in line]
    assert words in line


def test_a_row_that_broke_a_rule_before_the_rule_was_made_is_left_out_ever_longer_and_told_once(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And looked at in the end, once somebody has put it right. Seen to fail with a constant delay."""
    slow = Slow(monkeypatch)

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            bad, good = await _paid(shop, 2)
            database.execute("UPDATE app.payment_requests SET asset = 'ETH ' WHERE id = %s", [bad])
            database.execute("ALTER TABLE app.payment_requests ADD CONSTRAINT theirs CHECK (asset <> 'ETH ') NOT VALID")
            finds = _counting_finds(monkeypatch)
            await shop.desk.look()
            assert (shop.status(bad), shop.status(good)) == ("pending", "confirmed")
            looked = []
            for seconds in (14.0, 2.0, 29.0, 2.0):  # left out for 15 s, then for 30 s
                slow.pass_by(seconds)
                await shop.desk.look()
                looked.append(len(finds))
            assert looked == [1, 2, 2, 3]
            assert shop.reasons(bad) == ["row_failed"]
            database.execute("ALTER TABLE app.payment_requests DROP CONSTRAINT theirs")
            database.execute("UPDATE app.payment_requests SET asset = 'ETH'")
            slow.pass_by(61.0)
            await shop.desk.look()
            assert shop.status(bad) == "confirmed"

    asyncio.run(run())


def test_a_frozen_row_that_only_waits_for_a_height_does_not_stop_the_scan_of_its_network(
    database: Database, anvil: Anvil
) -> None:
    """Another service froze it between its payment and its depth. Others wait for the same height, or come later.

    Seen to fail (no block is stored from that height on, nobody is confirmed any more, and neither log nor history
    names the row) when rows that wait for a height are touched in the block's own transaction.
    """

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            frozen, beside, later = [await shop.request() for _ in range(3)]
            await shop.pay(frozen, to_mine=0)
            await shop.pay(beside)
            await shop.work()
            assert (shop.status(frozen), shop.status(beside)) == ("detected", "detected")
            database.execute(TRIGGER.format(id=frozen, act="RAISE EXCEPTION 'not with me'"))
            await shop.pay(later, to_mine=3)
            await shop.desk.scan()
            await shop.desk.look()
            assert shop.scanned() == 5
            assert [shop.status(id_) for id_ in (frozen, beside, later)] == ["detected", "confirmed", "confirmed"]
            database.execute("DROP TRIGGER theirs ON app.payment_requests")
            await shop.chain.mine()
            await shop.desk.scan()
            await shop.desk.look()
            assert shop.status(frozen) == "confirmed"

    asyncio.run(run())


def test_a_payment_to_a_frozen_row_does_not_stop_the_scan_of_its_network(
    database: Database, anvil: Anvil, capfd: pytest.CaptureFixture[str]
) -> None:
    """Anybody could pay one wei to a request that another service has archived. It is settled, named, and told.

    Seen to fail (no block is stored any more, nobody is confirmed) when every touch must succeed.
    """

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            frozen, beside, later = [await shop.request() for _ in range(3)]
            await shop.work()
            database.execute(TRIGGER.format(id=frozen, act="RAISE EXCEPTION 'not with me'"))
            await shop.pay(frozen, to_mine=0)
            await shop.pay(beside)
            await shop.desk.scan()
            await shop.pay(later, to_mine=3)
            await shop.desk.scan()
            await shop.desk.look()
            assert [shop.status(id_) for id_ in (frozen, beside, later)] == ["pending", "confirmed", "confirmed"]
            assert len(shop.settlements(frozen)) == 1
            assert [entry["evidence"] for entry in shop.entries(frozen)] == [[{"error": "not with me"}]]
            database.execute("DROP TRIGGER theirs ON app.payment_requests")
            database.execute("UPDATE app.payment_requests SET next_reconcile_at = now() WHERE id = %s", [frozen])
            await shop.desk.look()
            assert shop.status(frozen) == "confirmed"

    asyncio.run(run())
    assert any("row_refused" in line and "it was paid" in line for line in capfd.readouterr().out.splitlines())


@pytest.mark.parametrize("batch_size", [100, 20])
def test_forty_rows_that_broke_a_rule_before_the_rule_was_made_do_not_hold_back_the_others(
    database: Database, anvil: Anvil, batch_size: int
) -> None:
    """They are due before all others, in one batch with them or filling the first batches alone.

    Seen to fail (no end of "database_refuses", nobody is confirmed, no row is named) when so many refusals are taken
    for a table that nobody may write.
    """

    async def run() -> None:
        async with open_shop(database, anvil, batch_size=batch_size) as shop:
            bad = [await shop.request(asset="ETH ") for _ in range(40)]
            good = await _paid(shop, 3)
            database.execute("ALTER TABLE app.payment_requests ADD CONSTRAINT theirs CHECK (asset <> 'ETH ') NOT VALID")
            await shop.desk.look()
            assert [shop.status(id_) for id_ in good] == ["confirmed"] * 3
            assert [shop.reasons(id_) for id_ in bad] == [["row_failed"]] * 40

    asyncio.run(run())


def _counting_finds(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    real = reconciler.refusals.find

    async def find(*arguments: Any, **figures: Any) -> dict[str, str]:
        found.append(await real(*arguments, **figures))
        return found[-1]

    monkeypatch.setattr(reconciler.refusals, "find", find)
    return found


async def _paid(shop: Shop, count: int) -> list[str]:
    """So many requests, paid, scanned, deep enough and due."""
    ids = [await shop.request() for _ in range(count)]
    for id_ in ids:
        await shop.pay(id_, to_mine=0)
    await shop.chain.mine(2)
    await shop.desk.scan()
    return ids


def test_a_network_whose_rows_cannot_be_written_does_not_hold_back_another(database: Database, anvil: Anvil) -> None:
    """Seen to fail (nobody is confirmed) when the first refusal ends the cycle."""
    elsewhere = Network("ethereum", "elsewhere")

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            for _ in range(20):
                await shop.request(network=elsewhere.name)
            (id_,) = await _paid(shop, 1)
            _serve_first(shop, elsewhere)
            database.execute(
                "ALTER TABLE app.payment_requests ADD CONSTRAINT theirs CHECK (network <> 'elsewhere') NOT VALID"
            )
            with pytest.raises(StoreRejected):
                await shop.desk.reconciler.look_around()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def _serve_first(shop: Shop, network: Network) -> None:
    """Let the worker look at this network, too, and before the other."""
    shop.database.execute(
        "INSERT INTO app.chain_cursors"
        " (chain, network, chain_id, genesis_hash, next_height, tip_hash, tip_time, tail_start)"
        " SELECT chain, %s, chain_id, genesis_hash, next_height, tip_hash, tip_time, tail_start"
        " FROM app.chain_cursors",
        [network.name],
    )
    shop.desk.reconciler._duty = replace(shop.desk.duty, policies={network: POLICY, LOCAL: POLICY})


# somebody who holds a lock and does not let go: a forgotten transaction


def test_a_network_whose_cursor_somebody_has_locked_does_not_hold_back_another(
    database: Database, anvil: Anvil
) -> None:
    """Seen to fail (nobody is confirmed, as long as that lasts) when each cycle begins with the same network."""
    elsewhere = Network("ethereum", "elsewhere")

    async def run() -> None:
        async with open_shop(database, anvil, lease_seconds=2.0) as shop:
            await shop.request(network=elsewhere.name)
            (id_,) = await _paid(shop, 1)
            _serve_first(shop, elsewhere)
            with database.connect() as somebody:
                somebody.execute("BEGIN")
                somebody.execute("SELECT 1 FROM app.chain_cursors WHERE network = 'elsewhere' FOR UPDATE")
                for _ in range(2):
                    with pytest.raises(StoreUnavailable):
                        await shop.desk.reconciler.look_around()
                assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_a_leased_row_that_somebody_has_locked_does_not_hold_the_worker(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batch cannot be written; but then the others of it are given back, and claimed again without that row.

    Seen to fail (the worker does nothing, as long as that lasts) when the give-back waits for the row each time.
    """

    async def run() -> None:
        async with open_shop(database, anvil, lease_seconds=2.0) as shop:
            ids = await _paid(shop, 3)
            real = reconciler.decide
            with database.connect() as somebody:

                def deciding(*arguments: Any) -> Any:
                    monkeypatch.setattr(reconciler, "decide", real)
                    somebody.execute("BEGIN")
                    somebody.execute("SELECT 1 FROM app.payment_requests WHERE id = %s FOR UPDATE", [ids[0]])
                    return real(*arguments)

                monkeypatch.setattr(reconciler, "decide", deciding)
                with pytest.raises(StoreUnavailable):
                    await shop.desk.reconciler.look_around()
                await shop.desk.look()
                assert [shop.status(id_) for id_ in ids] == ["pending", "confirmed", "confirmed"]
                somebody.execute("COMMIT")
            ended = "SELECT 1 FROM app.payment_requests WHERE id = %s AND reconcile_lease_until < now()"
            await until(database.url, ended, ids[0])
            await shop.desk.look()
            assert shop.status(ids[0]) == "confirmed"

    asyncio.run(run())


def test_a_row_that_fails_waits_for_a_growing_time_and_the_others_do_not(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail (the others wait with it) when the whole batch is put off."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            ids = await _paid(shop, 5)
            real = reconciler.decide

            def deciding(request: Any, *rest: Any) -> Any:
                assert request.id != ids[2], "the poison"
                return real(request, *rest)

            monkeypatch.setattr(reconciler, "decide", deciding)
            await shop.desk.look()
            assert [shop.status(id_) for id_ in ids].count("confirmed") == 4
            waits = [seconds_until_next_look(shop.row(ids[2]))]
            for _ in range(3):
                shop.make_due()
                await shop.desk.look()
                waits.append(seconds_until_next_look(shop.row(ids[2])))
            assert [round(each) for each in waits] == pytest.approx([15, 30, 60, 120], abs=2)
            assert shop.reasons(ids[2]) == ["row_failed"]

    asyncio.run(run())
