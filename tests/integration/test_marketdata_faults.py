"""What clients are told when the collector, the broker or marketdata itself fails."""

import asyncio
import signal
from pathlib import Path

from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import (
    market_event_pb2,
    order_book_pb2,
)

from services.broker.server import NatsServer
from tests.integration.marketdata_tools import (
    KEY,
    Venue,
    client,
    make_streams,
    marketdata,
    process,
    ready,
    refused,
    subscribed,
    trades_of,
)
from tests.integration.nats_tools import Relay, call, nats_server, until
from tests.unit.marketdata.truth import Collected, levels_of

S = order_book_pb2


async def test_garbage_on_the_subjects_is_counted_and_told(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        async with subscribed(stub) as subscriber:
            await subscriber.at(book)
            await venue.put(book.subject("order_book_update"), b"\xff\x00garbage")
            await subscriber.told(S.ORDER_BOOK_STATE_RESYNCING, S.ORDER_BOOK_REASON_DELIVERY_GAP)
            book.update()
            await venue.update(book, 3)
            for subject in (
                "market.order_book_update.binance",
                "market.order_book_unheard_of.binance.BTC-USDT",
                "market.integrity.binance._",
                "market.instrument.binance.BTC-USDT",
                "market.order_book_status.binance.BTC-USDT",
                "collector.heartbeat.c",
            ):
                venue.send(subject, b"\xff\xff\xff")
            await venue.put(book.subject("order_book_snapshot"), book.snapshot())
            await venue.update(book, 3)
            await subscriber.told(S.ORDER_BOOK_STATE_SYNCED, count=2)
            await subscriber.at(book)
        await until(lambda: service.market.tally.malformed == 5, "garbage is counted")
        assert service.health()[0] == 200


async def test_a_silent_collector_makes_its_books_stale(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    async with (
        marketdata(nats, tmp_path, collector_silence_seconds=1) as service,
        client(service) as stub,
    ):
        await ready(service)
        async with subscribed(stub) as subscriber, trades_of(service, stub) as (events, _):
            stale = (S.ORDER_BOOK_STATE_STALE, S.ORDER_BOOK_REASON_COLLECTOR_SILENT)
            await subscriber.told(*stale)
            venue.heartbeat()
            await subscriber.told(S.ORDER_BOOK_STATE_SYNCED, count=2)
            await subscriber.told(*stale, count=2)
            assert "silent for" in subscriber.book.statuses[-1].detail
            health = service.health()[1]["dependencies"]["collector"]
            assert health["status"] == "degraded"
            reasons = [event.stream_status.reason for event in events]
            assert reasons.count("COLLECTOR_SILENT") >= 3


async def test_without_a_broker_it_starts_waits_and_says_so(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "nats") as nats, marketdata(nats, tmp_path) as service:
        async with client(service) as stub:
            for call_ in (
                stub.GetOrderBook(pb.GetOrderBookRequest(**KEY)),
                stub.StreamTrades(pb.StreamTradesRequest(**KEY)).read(),
                stub.ListInstruments(pb.ListInstrumentsRequest()),
                stub.ListOrderBookStatuses(pb.ListOrderBookStatusesRequest()),
            ):
                assert (await refused(call_)).reason == "STARTING"
        status, body = service.health()
        assert status == 503
        assert body["dependencies"]["broker"]["status"] == "unhealthy"
        await make_streams(nats.url)
        await ready(service)
        async with client(service) as stub:
            error = await refused(stub.GetOrderBook(pb.GetOrderBookRequest(**KEY)))
            assert (error.reason, error.retry_after) == ("STARTING", 1.0)


async def test_killing_the_broker_is_told_and_loses_nothing(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        async with subscribed(stub) as subscriber, trades_of(service, stub) as (events, _):
            await venue.update(book, 20)
            await subscriber.at(book)
            for round_ in (1, 2):
                nats.child.kill(signal.SIGKILL)
                await subscriber.told(
                    S.ORDER_BOOK_STATE_STALE, S.ORDER_BOOK_REASON_BROKER_DISCONNECTED, round_
                )
                assert service.health()[0] == 200, "expected to serve what is held meanwhile"
                answer = await stub.GetOrderBook(pb.GetOrderBookRequest(**KEY))
                assert levels_of(answer.order_book) == book.best()
                await venue.reconnect()
                await venue.update(book, 20)
                await subscriber.told(S.ORDER_BOOK_STATE_SYNCED, count=round_ + 1)
                await subscriber.at(book)
            assert subscriber.book.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED]
            sent = venue.send_trade()
            await until(lambda: any(e.trade == sent for e in events), "trades go on")
            opened = market_event_pb2.STREAM_STATE_OPEN
            await until(
                lambda: any(e.stream_status.state == opened for e in events[-2:]), "OPEN is told"
            )
            states = [e.stream_status.state for e in events if e.HasField("stream_status")]
            interrupted = market_event_pb2.STREAM_STATE_INTERRUPTED
            assert states.count(interrupted) >= 1, "twice, unless the second came too soon"
            assert states[-1] == market_event_pb2.STREAM_STATE_OPEN


async def test_what_the_broker_forgot_is_told_and_mended_by_the_next_snapshot(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    relay = Relay(nats.port)
    async with (
        relay.running(),
        marketdata(nats, tmp_path, url=relay.url) as service,
        client(service) as stub,
    ):
        await ready(service)
        async with subscribed(stub) as subscriber:
            await subscriber.at(book)
            relay.refuse()
            relay.cut()
            await subscriber.told(S.ORDER_BOOK_STATE_STALE)
            await venue.update(book, 20)
            await call(nats.url, "STREAM.PURGE.MARKET_ORDER_BOOK", {})
            relay.let_through()
            await subscriber.told(S.ORDER_BOOK_STATE_RESYNCING, S.ORDER_BOOK_REASON_DELIVERY_GAP)
            await venue.put(book.subject("order_book_snapshot"), book.snapshot())
            await venue.update(book, 3)
            await subscriber.told(S.ORDER_BOOK_STATE_SYNCED, count=2)
            await subscriber.at(book)


async def test_killed_and_started_again_under_load_it_serves_the_true_books(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    books = [Collected(symbol=f"{base}-USDT", seed=n) for n, base in enumerate(("BTC", "ETH", "X"))]
    for book in books:
        await venue.begin(book)
    loading = True

    async def load() -> None:
        while loading:
            for book in books:
                await venue.update(book, 7)
                if book.sequence % 49 == 0:
                    venue.send(book.subject("order_book_snapshot"), book.snapshot())
            await asyncio.sleep(0.002)

    task = asyncio.create_task(load())
    try:
        for _ in range(3):
            async with process(nats, tmp_path) as (stub, child):
                async with subscribed(stub) as subscriber:
                    await until(lambda s=subscriber: s.book.updates > 200, "updates flow")
                child.kill()
        async with process(nats, tmp_path) as (stub, _):
            async with subscribed(stub) as subscriber:
                await until(lambda: subscriber.book.updates > 200, "updates flow")
                loading = False
                await task
                await subscriber.at(books[0])
            for book in books:
                request = pb.GetOrderBookRequest(exchange="binance", symbol=book.symbol)
                answer = await stub.GetOrderBook(request)
                assert answer.order_book.sequence == book.sequence
                assert levels_of(answer.order_book) == book.best()
                assert answer.status.state == S.ORDER_BOOK_STATE_SYNCED
    finally:
        loading = False
        task.cancel()
        await asyncio.wait({task})
