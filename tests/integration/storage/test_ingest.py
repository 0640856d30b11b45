"""Events come from the broker into their tables, each exactly once, whatever dies or is refused."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from marketprism.market.v1 import events_pb2

from services.broker.server import NatsServer
from services.shared.health import Health
from services.shared.publisher import Publisher
from services.shared.telemetry import Metrics
from services.storage.engine import Engine
from services.storage.errors import StoreUnavailable
from services.storage.ingest import Ingest
from services.storage.ingest_batch import Rows, frame_rows
from services.storage.ingest_calls import IngestCalls
from services.storage.settings import EngineSettings
from services.storage.tables import TABLES
from tests.integration.nats_tools import call, nats_server, read_all, until
from tests.integration.storage.ingest_tools import (
    QUICK,
    TRADE,
    Worker,
    each_once,
    ingesting,
    make_streams,
    publish,
    stored,
    trade,
    until_stored,
)
from tests.integration.storage.store_tools import no_context, open_store

KILLS = int(os.environ.get("MARKETPRISM_INGEST_KILLS", "8"))
"""How often the process is killed; more for a soak."""


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        await make_streams(server.url)
        yield server


@pytest.fixture
async def publisher(nats: NatsServer) -> AsyncIterator[Publisher]:
    publisher = Publisher(nats.url)
    await publisher.start()
    yield publisher
    await publisher.stop()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with open_store(tmp_path / "store") as engine:
        yield engine


async def acknowledged(url: str, table: str = "trade") -> int:
    stream = TABLES[table].stream
    info = await call(url, f"CONSUMER.INFO.{stream}.storage-{table}")
    return int(info["ack_floor"]["stream_seq"])


async def test_every_event_is_stored_with_its_bytes_and_its_place(
    nats: NatsServer, publisher: Publisher, engine: Engine
) -> None:
    await publish(publisher, range(500))
    async with ingesting(nats.url, engine):
        await until_stored(engine, 500)
        await publish(publisher, range(500, 520))
        await until_stored(engine, 520)
    each_once(await stored(engine), 520)
    table = TABLES["trade"]
    rows = await engine.query(
        f"SELECT {table.event_sql()} AS event FROM trade ORDER BY stream_sequence", events_of=table
    )
    assert [event for (event,) in rows] == [trade(n).SerializeToString() for n in range(520)]
    assert await acknowledged(nats.url) == 520


async def test_status_and_health_tell_how_it_goes(
    nats: NatsServer, publisher: Publisher, engine: Engine
) -> None:
    await publish(publisher, range(10))
    async with ingesting(nats.url, engine) as ingest:
        await until_stored(engine, 10)
        await until(lambda: ingest.tables["trade"].state.batches, "the batch is acknowledged")
        answer = await IngestCalls(ingest).GetIngestStatus(None, no_context())  # type: ignore[arg-type]
        (stream,) = answer.streams
        assert answer.writable
        assert (stream.stream, stream.stored_sequence, stream.rows) == ("MARKET_TRADE", 10, 10)
        assert (stream.pending, stream.rejected, stream.last_error) == (0, 0, "")
        assert stream.lag.ToSeconds() > 0
        assert abs(stream.last_write_time.ToSeconds() - time.time()) < 60
        assert {s.status for s in ingest.dependencies().values()} == {Health.HEALTHY}


async def test_a_process_that_is_killed_again_and_again_stores_everything_once(
    nats: NatsServer, publisher: Publisher, tmp_path: Path
) -> None:
    worker = Worker(nats.url, tmp_path / "store")
    count = 0
    try:
        for _ in range(KILLS):
            await worker.start()
            if random.random() < 0.3:
                nats.child.kill()
            for _ in range(random.randint(1, 8)):
                await publish(publisher, range(count, count + 300))
                count += 300
                await asyncio.sleep(random.uniform(0, 0.08))
            await worker.stop()
    finally:
        await worker.stop()
    async with open_store(tmp_path / "store") as engine:
        async with ingesting(nats.url, engine) as ingest:
            await until_stored(engine, count)
            consumer = ingest.tables["trade"].consumer
            await until(lambda: consumer.status.settled_sequence == count, "all is acknowledged")
        each_once(await stored(engine), count)


async def test_an_insert_that_was_not_acknowledged_is_not_made_again(
    nats: NatsServer, publisher: Publisher, engine: Engine
) -> None:
    await publish(publisher, range(100))
    async with ingesting(nats.url, engine):
        await until_stored(engine, 100)
    await call(nats.url, "CONSUMER.RESET.MARKET_TRADE.storage-trade", {"seq": 41})
    await publish(publisher, range(100, 150))
    async with ingesting(nats.url, engine) as ingest:
        await until_stored(engine, 150)
        assert ingest.tables["trade"].state.held == 60
    each_once(await stored(engine), 150)


async def test_a_broker_that_is_killed_again_and_again_changes_nothing(
    nats: NatsServer, publisher: Publisher, engine: Engine
) -> None:
    count = 0
    async with ingesting(nats.url, engine) as ingest:
        for _ in range(4):
            await publish(publisher, range(count, count + 400))
            count += 400
            await asyncio.sleep(random.uniform(0, 0.1))
            nats.child.kill()
        await until_stored(engine, count)
        consumer = ingest.tables["trade"].consumer
        await until(lambda: consumer.status.settled_sequence == count, "all is acknowledged")
    each_once(await stored(engine), count)


async def test_bad_messages_are_set_aside_alone_and_the_rest_is_stored(
    nats: NatsServer, publisher: Publisher, engine: Engine
) -> None:
    good = trade(1000).SerializeToString()
    bad = {
        "empty": b"",
        "junk": b"\xff\xfe no protobuf \x00",
        "cut": good[:-1],
        "swallowing": good + b"\x0a\x7f",
        "swallowing-the-place": good + b"\x0a\x04",
        "open-varint": good + b"\x20\x80",
        "wrong-wire-type": good + b"\x38\x05",
        "no-decimal": good.replace(b"64250.05", b"64250,05"),
        "exponent": good.replace(b"64250.05", b"6425e+05"),
        "too-wide": events_pb2.Trade(
            exchange="simulated", symbol="A-USDT", trade_id="7", price="1" * 30, quantity="1"
        ).SerializeToString(),
        "unknown-side": good + b"\x48\x63",
        "not-utf8": good.replace(b"simulated", b"simul\xffted"),
    }
    place = 0
    for name, payload in bad.items():
        await publish(publisher, range(place, place + 25))
        place += 25
        assert publisher.publish(TRADE.format(f"BAD-{name}"), payload, f"bad/{name}")
    await publish(publisher, range(place, place + 25))
    place += 25
    async with ingesting(nats.url, engine) as ingest:
        await until_stored(engine, place)
        status = ingest.tables["trade"]
        await until(lambda: status.state.rejected == len(bad), "the bad ones are set aside")
        await until(
            lambda: status.consumer.status.settled_sequence == place + len(bad), "acknowledged"
        )
    letters = await read_all(nats.url, "DEAD_LETTER")
    assert {m.subject.rpartition("BAD-")[2]: m.payload for m in letters} == bad
    assert all(m.subject.startswith("dead_letter.trade.simulated.BAD-") for m in letters)
    sequences = await stored(engine)
    assert len(sequences) == len(set(sequences)) == place
    for letter in letters:
        headers = letter.headers
        sequence = int(headers["Marketprism-Stream-Sequence"])
        assert sequence not in sequences
        assert headers["Marketprism-Stream"] == "MARKET_TRADE"
        assert headers["Marketprism-Reason"]
        assert headers["Nats-Msg-Id"].startswith("MARKET_TRADE/")
        assert headers["Nats-Msg-Id"].endswith(f"/{sequence}")


async def test_a_dead_letter_of_a_batch_that_comes_again_is_one_letter(
    nats: NatsServer, publisher: Publisher, engine: Engine
) -> None:
    await publish(publisher, range(5))
    assert publisher.publish(TRADE.format("BAD"), b"junk", "bad")
    await publish(publisher, range(5, 10))
    for _ in range(3):
        async with ingesting(nats.url, engine) as ingest:
            await until(lambda: ingest.tables["trade"].state.rejected, "it is set aside")
        await call(nats.url, "CONSUMER.RESET.MARKET_TRADE.storage-trade", {"seq": 1})
    assert len(await read_all(nats.url, "DEAD_LETTER")) == 1
    assert await stored(engine) == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]


async def test_after_a_pause_the_table_is_compared_with_all_that_the_broker_holds(
    nats: NatsServer, publisher: Publisher, engine: Engine
) -> None:
    await publish(publisher, range(300))
    async with ingesting(nats.url, engine) as ingest:
        await until_stored(engine, 300)
        async with ingest.paused():
            # As a restore leaves it: a part of what was acknowledged.
            await engine.command(
                "ALTER TABLE trade DELETE WHERE stream_sequence > 120 OR stream_sequence % 7 = 0",
                settings={"mutations_sync": 2},
            )
            await publish(publisher, range(300, 320))
            assert len(await stored(engine)) < 120
        await until_stored(engine, 320)
        consumer = ingest.tables["trade"].consumer
        await until(lambda: consumer.status.settled_sequence == 320, "all is acknowledged")
        assert ingest.tables["trade"].state.lost == 0
    each_once(await stored(engine), 320)


async def test_a_stream_made_anew_is_stored_beside_the_old_one(
    nats: NatsServer, publisher: Publisher, engine: Engine
) -> None:
    await publish(publisher, range(20))
    async with ingesting(nats.url, engine) as ingest:
        await until_stored(engine, 20)
        await call(nats.url, "STREAM.DELETE.MARKET_TRADE")
        await call(
            nats.url,
            "STREAM.CREATE.MARKET_TRADE",
            {"name": "MARKET_TRADE", "subjects": ["market.trade.>"], "allow_batched": True},
        )
        await publish(publisher, range(20, 35))
        await until_stored(engine, 35)
        assert ingest.tables["trade"].state.replaced == 0
    assert await stored(engine) == sorted([*range(1, 21), *range(1, 16)])


async def test_another_message_at_a_stored_place_is_stored_too(
    nats: NatsServer, publisher: Publisher, engine: Engine
) -> None:
    """A failure of power may cost the broker its newest messages, and others get their places."""
    await publish(publisher, range(10))
    info = await call(nats.url, "STREAM.INFO.MARKET_TRADE")
    async with ingesting(nats.url, engine) as ingest:
        await until_stored(engine, 10)
        created = ingest.tables["trade"].consumer.session
        assert created is not None
    # The table as it would be: it holds trades at places that the stream gave to others.
    await engine.command("TRUNCATE TABLE trade")
    lost = [trade(n).SerializeToString() for n in range(500, 510)]
    rows = Rows(lost, list(range(1, 11)), created.stream_created)
    await engine.insert(TABLES["trade"], frame_rows(rows))
    await call(nats.url, "CONSUMER.RESET.MARKET_TRADE.storage-trade", {"seq": 1})
    async with ingesting(nats.url, engine) as ingest:
        await until_stored(engine, 20)
        assert ingest.tables["trade"].state.replaced == 10
    assert info["state"]["last_seq"] == 10
    assert len(await stored(engine)) == 20


class Away(Engine):
    """A real engine whose inserts can be made to fail as those of a server that is away."""

    away = False
    after = False

    async def insert(self, table, block):  # type: ignore[no-untyped-def]  # as the base
        if self.away and not self.after:
            raise StoreUnavailable("insert: the database cannot now: Connection refused")
        await super().insert(table, block)
        if self.away:
            raise StoreUnavailable("insert: the answer did not come in time")


@pytest.fixture
async def flaky(engine: Engine) -> AsyncIterator[Away]:
    engine.__class__ = Away
    assert isinstance(engine, Away)
    yield engine
    engine.away = False


async def test_an_insert_whose_answer_is_lost_is_not_made_twice(
    nats: NatsServer, publisher: Publisher, flaky: Away
) -> None:
    flaky.away = flaky.after = True
    async with ingesting(nats.url, flaky, QUICK.model_copy(update={"batch_rows": 100})) as ingest:
        await publish(publisher, range(2000))
        await until_stored(flaky, 2000)
        flaky.away = False
        table = ingest.tables["trade"]
        await until(lambda: table.consumer.status.settled_sequence == 2000, "acknowledged")
        assert table.state.retries >= 5, "most answers were lost"
    each_once(await stored(flaky), 2000)


async def test_a_database_that_is_away_is_waited_for_and_the_broker_keeps_the_rest(
    nats: NatsServer, publisher: Publisher, flaky: Away
) -> None:
    flaky.away = True
    settings = QUICK.model_copy(update={"batch_rows": 100})
    async with ingesting(nats.url, flaky, settings) as ingest:
        await publish(publisher, range(2000))
        table = ingest.tables["trade"]
        await until(lambda: table.state.retries > 3, "it tries again and again")
        assert not ingest.writable
        health = ingest.dependencies()["ingest"]
        assert health.status is Health.DEGRADED
        assert "insert: the" in health.detail
        status = table.consumer.status
        assert status.unsettled <= 200
        assert status.pending >= 1800
        assert await acknowledged(nats.url) == 0
        flaky.away = False
        await until_stored(flaky, 2000)
        await until(lambda: ingest.writable, "it says that all is well again")
        assert ingest.dependencies()["ingest"].status is Health.HEALTHY
    each_once(await stored(flaky), 2000)


class Odd(Engine):
    """A real engine that fails at one message with a code that nobody knows."""

    async def insert(self, table, block):  # type: ignore[no-untyped-def]  # as the base
        if b"ODD" in block:
            raise StoreUnavailable("insert: the database cannot now", metadata={"code": 4711})
        await super().insert(table, block)


async def test_a_message_that_fails_for_an_unknown_reason_again_and_again_is_set_aside(
    nats: NatsServer, publisher: Publisher, engine: Engine
) -> None:
    engine.__class__ = Odd
    await publish(publisher, range(20))
    odd = trade(20, "ODD")
    assert publisher.publish(TRADE.format("ODD"), odd.SerializeToString(), "odd")
    await publish(publisher, range(20, 40))
    async with ingesting(nats.url, engine) as ingest:
        await until(lambda: ingest.tables["trade"].state.rejected == 1, "it is set aside")
        assert await stored(engine) == [*range(1, 21), *range(22, 42)]
        assert publisher.publish(TRADE.format("ODD"), odd.SerializeToString(), "odd again")
        await until(lambda: ingest.tables["trade"].state.rejected == 2, "one alone is, too")
    (first, _) = await read_all(nats.url, "DEAD_LETTER")
    assert first.headers["Marketprism-Error-Code"] == "4711"


async def test_a_missing_dead_letter_stream_holds_up_one_table_and_says_so(
    nats: NatsServer, publisher: Publisher, engine: Engine
) -> None:
    await call(nats.url, "STREAM.DELETE.DEAD_LETTER")
    await publish(publisher, range(3))
    assert publisher.publish(TRADE.format("BAD"), b"junk", "bad")
    offer = events_pb2.BestBidOffer(exchange="simulated", symbol="A-USDT")
    offer.receive_time.FromNanoseconds(1_795_529_124_000_000_123)
    assert publisher.publish(
        "market.best_bid_offer.simulated.A-USDT", offer.SerializeToString(), "offer"
    )
    async with ingesting(nats.url, engine, QUICK, "trade", "best_bid_offer") as ingest:
        await until_stored(engine, 1, "best_bid_offer")
        await until(lambda: ingest.tables["trade"].state.retries > 1, "it tries again")
        assert "DEAD_LETTER" in ingest.dependencies()["ingest"].detail
        assert ingest.writable
        await call(
            nats.url, "STREAM.CREATE.DEAD_LETTER",
            {"name": "DEAD_LETTER", "subjects": ["dead_letter.>"]},
        )  # fmt: skip
        await until(lambda: ingest.tables["trade"].state.rejected == 1, "it is set aside then")
    assert await stored(engine) == [1, 2, 3]


async def test_events_that_the_broker_dropped_before_they_were_stored_are_told(
    nats: NatsServer, publisher: Publisher, engine: Engine
) -> None:
    await publish(publisher, range(10))
    async with ingesting(nats.url, engine):
        await until_stored(engine, 10)
    await publish(publisher, range(10, 100))
    config = (await call(nats.url, "STREAM.INFO.MARKET_TRADE"))["config"]
    await call(nats.url, "STREAM.UPDATE.MARKET_TRADE", {**config, "max_msgs": 20})
    async with ingesting(nats.url, engine) as ingest:
        await until_stored(engine, 30)
        assert ingest.tables["trade"].state.lost == 70
        health = ingest.dependencies()["ingest"]
        assert health.status is Health.DEGRADED
        assert "70 events of trade" in health.detail


async def test_a_broker_that_is_away_is_told(tmp_path: Path, engine: Engine) -> None:
    async with ingesting("nats://127.0.0.1:1", engine) as ingest:
        trades = ingest.tables["trade"].consumer
        await until(lambda: trades.status.last_error, "it noticed")
        health = ingest.dependencies()["broker"]
        assert health.status is Health.DEGRADED
        assert "127.0.0.1:1" in health.detail


def test_every_table_has_a_consumer_of_its_own(tmp_path: Path) -> None:
    engine = Engine(EngineSettings(), tmp_path)
    ingest = Ingest("nats://127.0.0.1:1", engine, QUICK, Metrics("storage"))
    assert set(ingest.tables) == set(TABLES)
    assert {s.stream for s in ingest.streams()} == {table.stream for table in TABLES.values()}
