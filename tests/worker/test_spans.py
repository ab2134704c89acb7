"""Requests that are older than the tail when they are first seen: their blocks are read once, for all of them."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from reconsup.demo.anvil import Anvil
from reconsup.store.errors import SchemaBehind, StoreUnavailable
from tests.support.desk import Desk, Shop, open_shop
from tests.support.postgres import Database
from tests.support.proxy import Answers, Proxy, change, proxy_before
from tests.worker.conftest import NUMBER, RECEIPTS, everything

pytestmark = pytest.mark.service

MINUTE = 60  # between blocks, so that an hour of chain time is no longer than the tail
TAIL = 64


async def grow_old(shop: Shop, blocks: int) -> None:
    """So many blocks later. (The chain mines some hundred a second.)"""
    for _ in range(0, blocks, 500):
        await shop.chain.mine(min(500, blocks), MINUTE)


def reads(proxy: Proxy) -> int:
    """How many HTTP requests asked for whole blocks."""
    return sum(RECEIPTS in methods for methods in proxy.requests)


def spans_of(database: Database) -> list[Any]:
    return database.fetch("SELECT to_height, next_height, lease_owner FROM app.chain_spans")


@pytest.mark.parametrize("blocks", [500, pytest.param(5000, marks=pytest.mark.long)])
def test_requests_thousands_of_blocks_older_than_the_tail_are_confirmed_or_expire_at_a_call_for_fifty_blocks(
    database: Database, anvil: Anvil, proxy: Proxy, blocks: int
) -> None:
    """In ETH, and in a token whose contract nobody watched before. The one that nobody paid expires, and not before.

    Seen to fail (pending for ever) without spans, and (expired though paid) when it is admitted without one.
    """

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url) as shop:
            native, unpaid = await shop.request(), await shop.request()
            token = await shop.token_request()
            await shop.pay(native)
            await shop.pay(token)
            paid_at = await shop.chain.height()
            await grow_old(shop, blocks)
            await shop.desk.scan()
            await shop.desk.look()
            assert [shop.status(id_) for id_ in (native, token, unpaid)] == ["pending"] * 3
            tail_start = shop.cursor()["tail_start"]
            assert tail_start == paid_at + blocks - TAIL + 1
            proxy.requests.clear()
            with capture_logs() as logs:
                await shop.desk.read_span()
            # down to the first block that is a quarter of an hour older than the first request: the chain's first
            assert reads(proxy) == -(-tail_start // 50)
            assert len(proxy.requests) == 1 + reads(proxy)  # once, who it is
            assert max(len(methods) for methods in proxy.requests) == 100
            await shop.desk.audit()
            await shop.desk.look()
            assert [shop.status(id_) for id_ in (native, token, unpaid)] == ["confirmed", "confirmed", "expired"]
            assert [row["block_height"] for row in shop.settlements(token).values()] == [paid_at]
            assert spans_of(database) == []
            (done,) = [each for each in logs if each["event"] == "span_done"]
            told = {"blocks": tail_start, "ranges": reads(proxy), "settlements": 2, "admitted": 3, "from_height": 0}
            assert {name: done[name] for name in told} == told

    asyncio.run(run())


def test_reading_ends_at_the_oldest_requests_first_block(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    """And no blocks are asked for that were never needed, but a few at the end."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url) as shop:
            await grow_old(shop, 300)
            first = await shop.chain.height()
            id_ = await shop.request(expires_at=await shop.now() + timedelta(days=9))
            await grow_old(shop, 200)
            await shop.desk.scan()
            await shop.desk.look()
            proxy.requests.clear()
            await shop.desk.read_span()
            tail_start = shop.cursor()["tail_start"]
            asked = sum(methods.count(RECEIPTS) for methods in proxy.requests)
            needed = tail_start - first + 16  # a quarter of an hour, and the first that is older
            assert needed <= asked <= needed + 8
            assert len(proxy.requests) <= needed / 50 + 3
            assert shop.row(id_)["reconcile_admitted_height"] == shop.scanned()
            await shop.pay(id_, to_mine=2)
            await shop.work()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_all_old_requests_of_an_adopted_database_are_one_span(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    """First start: more of them than a batch holds, paid or not, in states that another program left.

    Seen to fail (each batch has a span of its own) when nobody may join.
    """

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, batch_size=10) as shop:
            old = [await shop.request(status=("pending", "detected", "reorged")[n % 3]) for n in range(36)]
            confirmed = await shop.request(status="confirmed")
            for id_ in (*old[::2], confirmed):
                await shop.pay(id_, to_mine=0)
            await shop.chain.mine()
            await grow_old(shop, 400)
            young = await shop.request()
            await shop.desk.work()
            assert reads(proxy) == -(-(await shop.chain.height() + 1) // 50)  # each block once
            assert {shop.status(id_) for id_ in old[::2]} == {"confirmed"}
            assert {shop.status(id_) for id_ in old[1::2]} == {"expired"}
            assert shop.status(young) == "pending"
            assert shop.row(young)["reconcile_admitted_height"] is not None
            assert shop.status(confirmed) == "confirmed"
            assert len(shop.settlements(confirmed)) == 1
            assert spans_of(database) == []

    asyncio.run(run())


def test_an_old_request_that_was_paid_in_the_tail_has_no_old_blocks_read(
    database: Database, anvil: Anvil, proxy: Proxy
) -> None:
    """Seen to fail (four requests) when the reader does not ask who still needs it."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url) as shop:
            id_ = await shop.request(expires_at=await shop.now() + timedelta(days=9))
            await grow_old(shop, 200)
            await shop.pay(id_, to_mine=2)
            await shop.desk.scan()
            await shop.desk.look()
            assert shop.status(id_) == "confirmed"
            proxy.requests.clear()
            await shop.desk.read_span()
            assert proxy.requests == []
            assert spans_of(database) == []

    asyncio.run(run())


def test_a_reorg_while_a_span_is_read_changes_neither(database: Database, anvil: Anvil) -> None:
    """The span lies below what is final. What is paid in the blocks that go is taken back; what is old stays."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            old = await shop.request()
            await shop.pay(old)
            await grow_old(shop, 200)
            young = await shop.request(expires_at=await shop.now() + timedelta(days=9))
            await shop.pay(young)
            await shop.desk.scan()
            await shop.desk.look()
            assert shop.status(young) == "detected"
            assert await shop.desk.reader.turn() == 0.0  # takes it
            assert await shop.desk.reader.turn() == 0.0  # reads fifty blocks
            ((_, next_height, _),) = spans_of(database)
            assert next_height == shop.cursor()["tail_start"] - 51
            await shop.chain.reorg(3)
            await shop.desk.scan()
            await shop.desk.look()
            assert shop.status(young) == "reorged"
            await shop.desk.read_span()
            await shop.desk.look()
            assert shop.status(old) == "confirmed"
            assert shop.reasons(old) == ["payment_confirmed"]
            assert spans_of(database) == []

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["ChainInconsistent", "ChainUnavailable"])
def test_blocks_that_do_not_hang_below_the_stored_chain_are_not_believed(
    database: Database, anvil: Anvil, proxy: Proxy, kind: str
) -> None:
    """An endpoint shows old blocks of another chain, or none at all: nothing is settled, and another worker may try.

    Seen to fail (no alarm, and the lease is kept) when the hash of the highest is not compared, and without the third
    failure's step back.
    """

    async def run() -> None:
        # unproven: or else such a block is refused for its own hash already
        async with (
            open_shop(database, anvil, url=proxy.url, proves=False) as shop,
            Desk(database, anvil.url, slot=1) as other,
        ):
            id_ = await shop.request()
            await shop.pay(id_)
            await grow_old(shop, 150)
            await shop.desk.scan()
            await shop.desk.look()
            await shop.desk.reader.turn()
            before = everything(database)
            top = hex(shop.cursor()["tail_start"] - 1)

            def another(block: Any) -> Any:
                return block | {"hash": "0x" + "66" * 32, "transactions": []} if block["number"] == top else block

            proxy.spoil = nothing if kind == "ChainUnavailable" else change(NUMBER, another)
            with capture_logs() as logs:
                assert [await shop.desk.reader.turn() for _ in range(3)] == [0.5, 1.0, 30.0]
            assert [each["kind"] for each in logs if each["event"] == "span_failed"] == [kind] * 2
            assert everything(database) == before
            assert spans_of(database)[0][2] is None
            assert await shop.desk.reader.turn() == 0.0  # nobody else took it
            assert await shop.desk.reader.turn() == 30.0
            await other.scan()
            await other.read_span()
            await shop.desk.look()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_an_endpoint_without_old_blocks_goes_on_being_scanned_while_another_one_reads_the_span(
    database: Database, anvil: Anvil, proxy: Proxy
) -> None:
    """Seen to fail (the scan changes over to the other one) when scanner and reader judge the endpoints together."""

    async def run() -> None:
        with proxy_before(anvil.url) as archive:
            async with open_shop(database, anvil, url=[proxy.url, archive.url]) as shop:
                id_ = await shop.request()
                await shop.pay(id_)
                await grow_old(shop, 150)
                await shop.desk.scan()
                tail_start = shop.cursor()["tail_start"]

                def pruned(requests: Answers, answers: Answers) -> Answers:
                    def has(request: Any) -> bool:
                        at = request["params"][0] if request["params"] else ""
                        return not (at.startswith("0x") and len(at) < 20 and 0 < int(at, 16) < tail_start)

                    pairs = zip(requests, answers, strict=True)
                    return [answer if has(request) else answer | {"result": None} for request, answer in pairs]

                proxy.spoil = pruned
                archive.requests.clear()
                await shop.desk.look()
                await shop.desk.read_span()
                await shop.desk.look()
                assert shop.status(id_) == "confirmed"
                assert reads(archive) == -(-tail_start // 50)
                proxy.requests.clear()
                await shop.chain.mine()
                await shop.desk.scan()
                assert shop.scanned() == await shop.chain.height()
                assert (reads(proxy), reads(archive)) == (1, -(-tail_start // 50))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("problem", "todo"),
    [
        (StoreUnavailable("PostgreSQL does not answer"), "nothing: it goes on when PostgreSQL answers"),
        (SchemaBehind("a column does not exist"), "run `reconsup migrate`: then it goes on by itself"),
    ],
)
def test_an_operator_whose_database_is_away_is_not_sent_to_look_for_another_endpoint(
    database: Database, anvil: Anvil, monkeypatch: pytest.MonkeyPatch, problem: StoreUnavailable, todo: str
) -> None:
    """Seen to fail ("give the network an endpoint that has its old blocks") when all failures say the same."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            await shop.desk.scan()
            monkeypatch.setattr(shop.desk.reader, "step", away)
            with capture_logs() as logs:
                assert await shop.desk.reader.turn() == 1.0
            (told,) = [each for each in logs if each["event"] == "span_failed"]
            assert told["todo"] == todo

    async def away() -> float:
        raise problem

    asyncio.run(run())


def nothing(requests: Answers, answers: Answers) -> Answers:
    """A node that keeps no old blocks."""
    return [
        answer | {"result": None} if request["method"] in (NUMBER, RECEIPTS) else answer
        for request, answer in zip(requests, answers, strict=True)
    ]


def test_a_reader_that_was_killed_is_followed_where_it_was(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    async def run() -> None:
        async with open_shop(database, anvil) as shop, Desk(database, proxy.url, slot=1) as other:
            id_ = await shop.request()
            await shop.pay(id_)
            await grow_old(shop, 200)
            await shop.desk.scan()
            await shop.desk.look()
            for _ in range(2):
                await shop.desk.reader.turn()
            await other.scan()
            proxy.requests.clear()
            assert await other.reader.turn() > 0  # somebody reads
            assert proxy.requests == []
            database.fetch("UPDATE app.chain_spans SET lease_until = now() RETURNING 1")
            await other.read_span()
            assert reads(proxy) == -(-(shop.cursor()["tail_start"] - 50) // 50)
            assert await shop.desk.reader.turn() > 0
            await shop.desk.look()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_who_cannot_read_a_range_within_a_lease_reads_less_at_a_time(
    database: Database, anvil: Anvil, proxy: Proxy
) -> None:
    """Whenever more than ten blocks are read at once, the lease ends meanwhile and another worker has had it.

    Seen to fail (not one block is ever stored) when as many are asked for again, of the scanner and of the reader.
    """

    def steal(requests: Answers, answers: Answers) -> Answers:
        if sum(each["method"] == RECEIPTS for each in requests) > 10:
            for table, lease in (("chain_cursors", "scan_lease"), ("chain_spans", "lease")):
                database.execute(
                    f"UPDATE app.{table} SET {lease}_owner = 'other', {lease}_until = now(),"
                    f" {lease}_epoch = {lease}_epoch + 1"
                )
        return answers

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url) as shop:
            id_ = await shop.request()
            await shop.pay(id_)
            await grow_old(shop, 140)
            proxy.spoil = steal
            for _ in range(20):
                await shop.desk.scan()
            assert shop.scanned() == await shop.chain.height()
            await shop.desk.look()
            for _ in range(30):
                await shop.desk.read_span()
            assert spans_of(database) == []
            await shop.desk.look()
            assert shop.status(id_) == "confirmed"

    asyncio.run(run())


def test_a_poll_without_a_span_is_one_statement_and_no_call(database: Database, anvil: Anvil, proxy: Proxy) -> None:
    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url) as shop:
            await shop.request()
            assert await shop.desk.reader.turn() == 15.0  # whether this is the cursor's chain is not known yet
            await shop.desk.work()
            proxy.requests.clear()
            statements = shop.desk.reader._database.statements
            for _ in range(3):
                assert await shop.desk.reader.turn() == 15.0
            assert shop.desk.reader._database.statements == statements + 3
            assert proxy.requests == []

    asyncio.run(run())


def test_a_request_from_long_before_is_served_from_the_tail_and_told_of(database: Database, anvil: Anvil) -> None:
    """One row from 1970 has not the whole chain read. Seen to fail (a span is opened) without the limit."""

    async def run() -> None:
        async with open_shop(database, anvil, blocks=100) as shop:
            long_ago = {"created_at": await shop.now() - timedelta(days=401)}
            id_, paid = await shop.request(**long_ago), await shop.request(**long_ago)
            with capture_logs() as logs:
                await shop.work()
            told = [each["request_id"] for each in logs if each["event"] == "request_too_old"]
            assert set(told) == {id_, paid}
            assert spans_of(database) == []
            await shop.pay(paid, to_mine=2)
            await grow_old(shop, 200)
            await shop.work()
            assert (shop.status(id_), shop.status(paid)) == ("pending", "confirmed")

    asyncio.run(run())


@pytest.mark.parametrize("blocks", [500, pytest.param(4000, marks=pytest.mark.long)])
def test_after_thousands_of_blocks_of_downtime_all_is_caught_up_and_the_tail_is_no_longer_than_its_bound(
    database: Database, anvil: Anvil, proxy: Proxy, blocks: int
) -> None:
    """Payments of the time, requests of the time, what ended meanwhile; each block is read once, fifty at a time."""

    async def run() -> None:
        async with open_shop(database, anvil, url=proxy.url, blocks=70) as shop:
            before, unpaid = await shop.request(), await shop.request()
            await shop.work()
            scanned = shop.scanned()
            await shop.chain.mine(20, MINUTE)
            await shop.pay(before)
            meanwhile = await shop.request()
            await shop.chain.mine(30, MINUTE)
            await shop.pay(meanwhile)
            await shop.chain.send("0x" + "77" * 20, 1)  # to nobody: such credits are kept, and go with their block
            await grow_old(shop, blocks)
            proxy.requests.clear()
            await shop.work()
            head = await shop.chain.height()
            assert reads(proxy) == -(-(head - scanned) // 50)
            statuses = [shop.status(id_) for id_ in (before, meanwhile, unpaid)]
            assert statuses == ["confirmed", "confirmed", "expired"]
            assert spans_of(database) == []  # what came meanwhile was met by the scan
            assert database.fetch("SELECT min(height), max(height), count(*) FROM app.chain_blocks") == [
                (head - TAIL + 1, head, TAIL)
            ]
            assert database.fetch("SELECT count(*) FROM app.chain_credits") == [(0,)]
            assert shop.cursor()["tail_start"] == head - TAIL + 1

    asyncio.run(run())


def test_the_tail_holds_an_hour_of_a_fast_chain(database: Database, anvil: Anvil) -> None:
    async def run() -> None:
        async with open_shop(database, anvil, blocks=70) as shop:
            await shop.desk.scan()
            await shop.chain.mine(500, 12)
            await shop.desk.scan()
            ((lowest, seconds),) = database.fetch(
                "SELECT min(height), extract(epoch FROM max(block_time) - min(block_time))::int FROM app.chain_blocks"
            )
            below, first = (int(anvil.rpc(NUMBER, hex(at), False)["timestamp"], 16) for at in (lowest - 1, lowest))
            assert seconds <= 3600 < seconds + first - below
            assert lowest == shop.cursor()["tail_start"] < shop.scanned() - 250

    asyncio.run(run())


TRIGGER = """
CREATE FUNCTION app.theirs() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN IF OLD.id = '{id}' THEN RAISE EXCEPTION 'not with me'; END IF; RETURN NEW; END $$;
CREATE TRIGGER theirs BEFORE UPDATE ON app.payment_requests FOR EACH ROW EXECUTE FUNCTION app.theirs();
"""


def test_a_frozen_row_that_was_paid_long_ago_does_not_hold_back_the_others(database: Database, anvil: Anvil) -> None:
    """Another service archived it after it had joined the span: it is settled, named and told; once it may be written
    again it is confirmed.

    Seen to fail (the span never ends, nobody is confirmed) when every touch, and when every admission must succeed.
    """

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            frozen, paid, unpaid = [await shop.request() for _ in range(3)]
            await shop.pay(frozen, to_mine=0)
            await shop.pay(paid)
            await grow_old(shop, 200)
            await shop.desk.scan()
            await shop.desk.look()
            database.execute(TRIGGER.format(id=frozen))
            with capture_logs() as logs:
                await shop.desk.read_span()
            assert [each["request_id"] for each in logs if each["event"] == "row_refused"] == [frozen]
            await shop.desk.audit()
            await shop.desk.look()
            assert [shop.status(id_) for id_ in (frozen, paid, unpaid)] == ["pending", "confirmed", "expired"]
            assert spans_of(database) == []
            assert len(shop.settlements(frozen)) == 1
            assert shop.reasons(frozen) == ["row_failed"]
            database.execute("DROP TRIGGER theirs ON app.payment_requests")
            await shop.work()
            assert shop.status(frozen) == "confirmed"

    asyncio.run(run())


def test_a_settlement_that_is_refused_is_an_alarm_and_nobody_is_admitted(database: Database, anvil: Anvil) -> None:
    """Rather no end of the span than a request that expires though it was paid."""

    async def run() -> None:
        async with open_shop(database, anvil) as shop:
            paid, unpaid = await shop.request(), await shop.request()
            await shop.pay(paid)
            await grow_old(shop, 100)
            await shop.desk.scan()
            await shop.desk.look()
            database.execute(
                "ALTER TABLE app.payment_request_settlements ADD CONSTRAINT theirs CHECK (amount_minor < 0) NOT VALID"
            )
            with capture_logs() as logs:
                for _ in range(6):
                    await shop.desk.reader.turn()
            assert {each["event"] for each in logs if each["log_level"] == "error"} == {"span_refused"}
            await shop.work()
            assert (shop.status(paid), shop.status(unpaid)) == ("pending", "pending")
            database.execute("ALTER TABLE app.payment_request_settlements DROP CONSTRAINT theirs")
            database.execute("UPDATE app.chain_spans SET lease_until = now()")
            await shop.work()
            assert (shop.status(paid), shop.status(unpaid)) == ("confirmed", "expired")

    asyncio.run(run())
