"""marketdata against a real nats-server and real gRPC clients: what clients are promised."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from marketprism.collector.v1 import collector_service_pb2, integrity_event_pb2
from marketprism.market.v1 import (
    common_pb2,
    events_pb2,
    instrument_pb2,
    market_event_pb2,
    order_book_pb2,
)
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1.market_data_service_pb2_grpc import MarketDataServiceStub

from services.broker.server import NatsServer
from services.marketdata.live_kinds import KIND_OF_SUBJECT
from services.marketdata.service import MarketDataService
from services.marketdata.settings import LogBounds, MarketDataSettings
from services.shared.errors import MarketPrismError, from_rpc_error
from services.shared.jetstream import Connection
from services.shared.ports import free_port
from services.shared.settings import MeshSettings, NatsSettings, ServiceSettings
from tests.integration.nats_tools import Relay, call, make_stream, nats_server, until
from tests.unit.marketdata.truth import ClientBook, Collected, levels_of

S = order_book_pb2
KEY = {"exchange": "binance", "symbol": "BTC-USDT"}


class Venue:
    """Plays the collector: publishes to the broker what it would."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection: Connection | None = None
        self.trade_id = 0

    async def connect(self) -> None:
        if self.connection is None or self.connection.is_closed:
            self.connection = await Connection.open([self.url], name="venue")

    async def put(self, subject: str, payload: bytes) -> None:
        """Publish one message and wait until it is stored."""
        assert self.connection is not None
        await self.connection.request(subject, payload)

    def send(self, subject: str, payload: bytes) -> None:
        """Publish one message without waiting."""
        assert self.connection is not None
        self.connection.publish(subject, payload)

    async def instrument(self, book: Collected, **fields: Any) -> None:
        message = instrument_pb2.Instrument(
            exchange=book.exchange,
            symbol=book.symbol,
            native_symbol=book.symbol.replace("-", ""),
            kind=instrument_pb2.INSTRUMENT_KIND_SPOT,
            base=book.symbol.split("-")[0],
            quote=book.symbol.split("-")[1],
            **fields,
        )
        await self.put(book.subject("instrument"), message.SerializeToString())

    async def begin(self, book: Collected) -> None:
        """Publish instrument, first snapshot, SYNCED."""
        await self.instrument(book)
        await self.put(book.subject("order_book_snapshot"), book.rebuild())
        await self.put(book.subject("order_book_status"), book.synced())

    async def reconnect(self) -> None:
        """Connect again, when the broker is back."""
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(MarketPrismError, TimeoutError):
                await self.connect()
                assert self.connection is not None
                await self.connection.request("$JS.API.INFO", timeout=1)
                return
            assert time.monotonic() < deadline, "expected the broker to come back"
            await asyncio.sleep(0.05)

    async def update_wide(self, book: Collected, count: int) -> None:
        """Publish updates of many levels."""
        for _ in range(count):
            self.send(book.subject("order_book_update"), book.update(40))
        assert self.connection is not None
        await self.connection.flush()

    async def update(self, book: Collected, count: int = 1) -> None:
        for _ in range(count):
            self.send(book.subject("order_book_update"), book.update())
        assert self.connection is not None
        await self.connection.flush()

    def trade(self, **fields: Any) -> events_pb2.Trade:
        self.trade_id += 1
        trade = events_pb2.Trade(
            **KEY,
            trade_id=str(self.trade_id),
            price="50000",
            quantity="0.5",
            side=common_pb2.SIDE_BUY,
            **fields,
        )
        trade.receive_time.FromNanoseconds(time.time_ns())
        return trade

    def send_trade(self, **fields: Any) -> events_pb2.Trade:
        trade = self.trade(**fields)
        self.send("market.trade.binance.BTC-USDT", trade.SerializeToString())
        return trade

    def heartbeat(self, collector_id: str = "collector-1") -> None:
        status = collector_service_pb2.GetStatusResponse(
            collector_id=collector_id,
            connections=[collector_service_pb2.VenueConnection(exchange="binance")],
        )
        self.send(f"collector.heartbeat.{collector_id}", status.SerializeToString())


async def make_streams(url: str) -> None:
    await make_stream(
        url,
        "MARKET_ORDER_BOOK",
        "market.order_book_snapshot.>",
        "market.order_book_update.>",
        "market.order_book_status.>",
    )
    await make_stream(url, "MARKET_TRADE", "market.trade.>")
    await make_stream(url, "MARKET_BEST_BID_OFFER", "market.best_bid_offer.>")
    others = sorted(set(KIND_OF_SUBJECT) - {"trade", "best_bid_offer"})
    await make_stream(url, "MARKET_REFERENCE", *(f"market.{name}.>" for name in others))
    await make_stream(url, "MARKET_INSTRUMENT", "market.instrument.>", max_msgs_per_subject=1)
    await make_stream(url, "MARKET_INTEGRITY", "market.integrity.>")


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        await make_streams(server.url)
        yield server


@pytest.fixture
async def venue(nats: NatsServer) -> AsyncIterator[Venue]:
    playing = Venue(nats.url)
    await playing.connect()
    yield playing
    if playing.connection is not None:
        playing.connection.close("test done")


@contextlib.asynccontextmanager
async def marketdata(
    nats: NatsServer, tmp_path: Path, *, url: str = "", **settings: Any
) -> AsyncIterator[MarketDataService]:
    """Run the service; the collector's silence is only told where a test wants it."""
    mesh = MeshSettings(
        data_dir=tmp_path / "data",
        nats=NatsSettings(url=url or nats.url),
        services={"marketdata": ServiceSettings()},
        shutdown_grace_seconds=2,
    )
    settings.setdefault("collector_silence_seconds", 3600)
    async with MarketDataService(mesh, MarketDataSettings(**settings)).running() as service:
        yield service


async def ready(service: MarketDataService) -> None:
    await until(lambda: service.health()[0] == 200, "marketdata is ready")


@contextlib.asynccontextmanager
async def client(service: MarketDataService, **options: int) -> AsyncIterator[Any]:
    address = f"127.0.0.1:{service.grpc_port}"
    channel_options = [(key.replace("__", "."), value) for key, value in options.items()]
    channel_options.append(("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.insecure_channel(address, options=channel_options) as channel:
        yield MarketDataServiceStub(channel)  # type: ignore[no-untyped-call]


class Subscriber:
    """Reads a StreamOrderBook in the background and keeps the book."""

    def __init__(self, stub: Any, **request: Any) -> None:
        self.book = ClientBook()
        self.messages = 0
        self.error: MarketPrismError | None = None
        self.call = stub.StreamOrderBook(pb.StreamOrderBookRequest(**{**KEY, **request}))
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for response in self.call:
                self.messages += 1
                self.book.take(response.events)
        except grpc.aio.AioRpcError as error:
            self.error = from_rpc_error(error)

    async def at(self, book: Collected) -> None:
        """Wait until the book kept stands where the true one stands, and compare them."""
        await until(
            lambda: (
                self.task.done()
                or (self.book.epoch, self.book.sequence) == (book.epoch, book.sequence)
            ),
            f"the subscriber comes to {book.sequence}",
        )
        if self.task.done():
            await self.task
        assert self.book.best() == book.best(), "expected the client's book to be the true one"

    async def told(self, state: int, reason: int | None = None, count: int = 1) -> None:
        await until(
            lambda: (
                sum(s.state == state and reason in (None, s.reason) for s in self.book.statuses)
                >= count
            ),
            f"state {state} reason {reason} is told",
        )

    async def stop(self) -> None:
        self.call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@contextlib.asynccontextmanager
async def subscribed(stub: Any, **request: Any) -> AsyncIterator[Subscriber]:
    subscriber = Subscriber(stub, **request)
    try:
        yield subscriber
    finally:
        await subscriber.stop()


async def refused(call: Any) -> MarketPrismError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_a_subscriber_gets_a_snapshot_then_every_update(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    await venue.put("market.order_book_snapshot.strange", b"nobody's")
    await venue.update(book, 10)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        async with subscribed(stub) as subscriber:
            await subscriber.at(book)
            kinds = subscriber.book.kinds
            assert kinds[:3] == ["stream_status", "order_book_snapshot", "order_book_status"]
            assert subscriber.book.stream_states[0].state == market_event_pb2.STREAM_STATE_OPEN
            assert subscriber.book.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED]
            assert subscriber.book.state == S.ORDER_BOOK_STATE_SYNCED
            await venue.update(book, 200)
            await venue.put(book.subject("order_book_snapshot"), book.snapshot())
            await venue.update(book, 5)
            await subscriber.at(book)
            assert subscriber.book.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED], (
                "expected no periodic snapshot for a subscriber in step"
            )
        answer = await stub.GetOrderBook(pb.GetOrderBookRequest(**KEY, depth=5))
        assert levels_of(answer.order_book) == book.best(5)
        assert answer.order_book.sequence == book.sequence
        assert answer.order_book.reason == S.SNAPSHOT_REASON_REQUESTED
        assert answer.status.state == S.ORDER_BOOK_STATE_SYNCED
        assert 0 <= answer.age_ms < 60_000


async def test_resume_continues_without_a_snapshot(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    await venue.update(book, 5)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        async with subscribed(stub) as first:
            await first.at(book)
        kept = first.book
        await venue.update(book, 50)
        resume = {"epoch": kept.epoch, "sequence": kept.sequence}
        second = Subscriber(stub, resume=resume)
        second.book = kept
        await second.at(book)
        assert kept.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED]
        assert kept.stream_states[-1].reason == "RESUMED"
        await second.stop()
        async with subscribed(stub, resume={"epoch": 5, "sequence": 1}) as third:
            await third.at(book)
            assert third.book.snapshots == [S.SNAPSHOT_REASON_RESUME_TOO_OLD]


async def test_a_book_out_of_step_is_told_before_its_snapshot_comes(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.instrument(book)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        error = await refused(stub.GetOrderBook(pb.GetOrderBookRequest(**KEY)))
        assert (error.reason, error.metadata["state"]) == (
            "ORDER_BOOK_NOT_READY",
            "ORDER_BOOK_STATE_SYNCING",
        )
        async with subscribed(stub) as subscriber:
            await subscriber.told(S.ORDER_BOOK_STATE_SYNCING, S.ORDER_BOOK_REASON_STARTUP)
            await venue.begin(book)
            await venue.update(book, 3)
            await subscriber.at(book)
            await venue.put(book.subject("order_book_status"), book.resyncing())
            await subscriber.told(S.ORDER_BOOK_STATE_RESYNCING, S.ORDER_BOOK_REASON_VENUE_GAP)
            answer = await stub.GetOrderBook(pb.GetOrderBookRequest(**KEY))
            assert levels_of(answer.order_book) == book.best(), "expected what was last right"
            assert answer.status.state == S.ORDER_BOOK_STATE_RESYNCING
            await venue.begin(book)
            await venue.update(book, 3)
            await subscriber.at(book)
            assert subscriber.book.state == S.ORDER_BOOK_STATE_SYNCED
            assert subscriber.book.snapshots[-1] == S.SNAPSHOT_REASON_EPOCH_START


async def test_bad_requests_name_the_field_or_the_instrument(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    await venue.begin(Collected())
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)

        async def field_of(call: Any) -> str:
            error = await refused(call)
            assert error.violations, error
            return error.violations[0].field

        for depth in (-1, 10_001):
            call = stub.GetOrderBook(pb.GetOrderBookRequest(**KEY, depth=depth))
            assert await field_of(call) == "depth"
        assert await field_of(stub.GetOrderBook(pb.GetOrderBookRequest(exchange="x"))) == "symbol"
        keys = [pb.InstrumentKey(**KEY)]
        batch = pb.BatchGetOrderBooksRequest(instruments=keys * 101)
        assert await field_of(stub.BatchGetOrderBooks(batch)) == "instruments"
        statuses = pb.ListOrderBookStatusesRequest(page_size=1001)
        assert await field_of(stub.ListOrderBookStatuses(statuses)) == "page_size"
        trades = pb.ListRecentTradesRequest(**KEY, page_token="nonsense")
        assert await field_of(stub.ListRecentTrades(trades)) == "page_token"
        stream = pb.StreamOrderBookRequest(**KEY, resume=pb.ResumePoint(sequence=4))
        assert await field_of(stub.StreamOrderBook(stream).read()) == "resume.epoch"
        quick = pb.StreamTradesRequest(**KEY)
        quick.heartbeat_interval.FromMilliseconds(99)
        assert await field_of(stub.StreamTrades(quick).read()) == "heartbeat_interval"

        request = pb.GetOrderBookRequest(exchange="binance", symbol="btc_usdt")
        error = await refused(stub.GetOrderBook(request))
        assert error.reason == "INSTRUMENT_NOT_FOUND"
        assert error.metadata == {"exchange": "binance", "symbol": "btc_usdt"}
        assert "did you mean BTC-USDT" in error.message
        stream = pb.StreamOrderBookRequest(exchange="binanc", symbol="BTC-USDT")
        error = await refused(stub.StreamOrderBook(stream).read())
        assert error.reason == "EXCHANGE_NOT_FOUND"
        assert "did you mean binance" in error.message


async def test_lists_are_paged_and_tokens_are_bound_to_their_filter(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    books = [Collected(symbol=f"{base}-USDT", levels=3) for base in ("ADA", "BTC", "ETH", "SOL")]
    for book in books:
        await venue.begin(book)
    await venue.put(books[2].subject("order_book_status"), books[2].resyncing())
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        symbols: list[str] = []
        token = ""
        for _ in range(2):
            page = await stub.ListInstruments(
                pb.ListInstrumentsRequest(page_size=2, page_token=token)
            )
            symbols += [instrument.symbol for instrument in page.instruments]
            token = page.next_page_token
            if token:
                other = pb.ListInstrumentsRequest(page_size=2, page_token=token, base="BTC")
                assert (await refused(stub.ListInstruments(other))).reason == "PAGE_TOKEN_INVALID"
        assert (symbols, token) == ([book.symbol for book in books], "")
        found = await stub.ListInstruments(pb.ListInstrumentsRequest(base="BTC"))
        assert [i.native_symbol for i in found.instruments] == ["BTCUSDT"]
        one = await stub.GetInstrument(pb.GetInstrumentRequest(**KEY))
        assert one.instrument == found.instruments[0]

        statuses = await stub.ListOrderBookStatuses(pb.ListOrderBookStatusesRequest(page_size=3))
        assert [s.symbol for s in statuses.statuses] == ["ADA-USDT", "BTC-USDT", "ETH-USDT"]
        rest = await stub.ListOrderBookStatuses(
            pb.ListOrderBookStatusesRequest(page_size=3, page_token=statuses.next_page_token)
        )
        assert [s.symbol for s in rest.statuses] == ["SOL-USDT"]
        out = await stub.ListOrderBookStatuses(
            pb.ListOrderBookStatusesRequest(states=[S.ORDER_BOOK_STATE_RESYNCING])
        )
        assert [s.symbol for s in out.statuses] == ["ETH-USDT"]
        keys = [pb.InstrumentKey(exchange="binance", symbol=book.symbol) for book in books]
        batch = await stub.BatchGetOrderBooks(pb.BatchGetOrderBooksRequest(instruments=keys))
        for book, answer in zip(books, batch.order_books, strict=True):
            assert levels_of(answer.order_book) == book.best()
        keys.append(pb.InstrumentKey(exchange="binance", symbol="NO-USDT"))
        error = await refused(
            stub.BatchGetOrderBooks(pb.BatchGetOrderBooksRequest(instruments=keys))
        )
        assert error.reason == "INSTRUMENT_NOT_FOUND"


async def test_trades_are_streamed_and_the_latest_are_listed(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    await venue.instrument(Collected())
    sent = [venue.send_trade() for _ in range(5)]
    assert venue.connection is not None
    await venue.connection.flush()
    async with (
        marketdata(nats, tmp_path, recent_trades=8) as service,
        client(service) as stub,
        trades_of(service, stub) as (events, _),
    ):
        await until(lambda: events, "the stream is open")
        assert events[0].stream_status.state == market_event_pb2.STREAM_STATE_OPEN
        sent += [venue.send_trade() for _ in range(5)]
        await until(lambda: len(events) == 6, "five trades came")
        assert [event.trade for event in events[1:]] == sent[5:]
        listed: list[events_pb2.Trade] = []
        token = ""
        for size in (3, 3, 2):
            request = pb.ListRecentTradesRequest(**KEY, page_size=3, page_token=token)
            page = await stub.ListRecentTrades(request)
            assert len(page.trades) == size
            listed += page.trades
            token = page.next_page_token
        assert token == ""
        assert listed == sent[:1:-1], "expected the latest eight, newest first"


async def test_best_bid_and_offer(nats: NatsServer, venue: Venue, tmp_path: Path) -> None:
    await venue.instrument(Collected())
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        request = pb.GetBestBidOfferRequest(**KEY)
        error = await refused(stub.GetBestBidOffer(request))
        assert error.reason == "BEST_BID_OFFER_NOT_READY"
        offer = events_pb2.BestBidOffer(**KEY, bid_price="1", ask_price="2", venue_sequence=7)
        await venue.put("market.best_bid_offer.binance.BTC-USDT", offer.SerializeToString())
        await venue.put("market.best_bid_offer.binance.BTC-USDT", b"\xff")
        await until(lambda: service.market.tally.malformed == 1, "the garbage was counted")
        assert (await stub.GetBestBidOffer(request)).best_bid_offer == offer


async def test_what_the_ledger_says_is_missing_is_told_to_trade_subscribers(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    await venue.instrument(Collected())
    kinds = integrity_event_pb2

    async def ledger(symbol: str, **fields: Any) -> None:
        event = integrity_event_pb2.IntegrityEvent(exchange="binance", symbol=symbol, **fields)
        subject = f"market.integrity.binance.{symbol or '_'}"
        await venue.put(subject, event.SerializeToString())

    async with (
        marketdata(nats, tmp_path) as service,
        client(service) as stub,
        trades_of(service, stub) as (events, _),
    ):
        await until(lambda: events, "the stream is open")
        await ledger(
            "BTC-USDT",
            kind=kinds.INTEGRITY_KIND_GAP,
            event_kind=common_pb2.EVENT_KIND_TRADE,
            count=3,
            detail="expected trade 5, got 8",
        )
        await ledger(
            "BTC-USDT",
            kind=kinds.INTEGRITY_KIND_GAP,
            event_kind=common_pb2.EVENT_KIND_ORDER_BOOK,
        )
        for kind in (kinds.INTEGRITY_KIND_DISCONNECTED, kinds.INTEGRITY_KIND_CONNECTED):
            await ledger("", kind=kind, connection_id="c1", detail="network")
        await until(lambda: len(events) == 5, "two interruptions and their ends are told")
        told = [(e.stream_status.state, e.stream_status.reason) for e in events[1:]]
        interrupted = market_event_pb2.STREAM_STATE_INTERRUPTED
        opened = market_event_pb2.STREAM_STATE_OPEN
        assert told == [
            (interrupted, "VENUE_GAP"),
            (opened, "VENUE_GAP"),
            (interrupted, "VENUE_DISCONNECTED"),
            (opened, "VENUE_DISCONNECTED"),
        ]
        assert events[1].stream_status.message == "expected trade 5, got 8 (3 missing)"


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


async def test_heartbeats_come_when_nothing_else_does(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    await venue.begin(Collected())
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        async with subscribed(stub, heartbeat_interval={"nanos": 100_000_000}) as subscriber:
            states = subscriber.book.stream_states
            await until(lambda: len(states) >= 4, "three heartbeats came")
            assert {s.state for s in states[1:]} == {market_event_pb2.STREAM_STATE_HEARTBEAT}


async def test_a_stop_is_told_last(nats: NatsServer, venue: Venue, tmp_path: Path) -> None:
    book = Collected()
    await venue.begin(book)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        async with subscribed(stub) as subscriber:
            await subscriber.at(book)
            await service.stop()
            await asyncio.wait({subscriber.task}, timeout=5)
            last = subscriber.book.stream_states[-1]
            assert (last.state, last.reason) == (
                market_event_pb2.STREAM_STATE_ENDED,
                "SERVER_STOPPING",
            )
            assert subscriber.error is not None
            assert subscriber.error.reason == "SERVER_STOPPING"


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


class Stalled:
    """A client that opens a stream and then reads nothing until it is told to."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.events: list[market_event_pb2.MarketEvent] = []

    async def read(self, enough: Callable[[], bool]) -> MarketPrismError | None:
        try:
            while not enough():
                response = await self.call.read()
                if response is grpc.aio.EOF:
                    await self.call
                self.events.extend(response.events)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
        return None

    def stream_states(self) -> list[int]:
        return [e.stream_status.state for e in self.events if e.HasField("stream_status")]


SMALL_WINDOW = {"grpc__http2__lookahead_bytes": 65536, "grpc__http2__bdp_probe": 0}


async def test_a_stalled_client_holds_no_memory_delays_nobody_and_gets_a_fresh_snapshot(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    log = LogBounds(max_events=500, max_bytes=1024 * 1024)
    async with (
        marketdata(nats, tmp_path, order_book_log=log) as service,
        client(service) as stub,
        client(service, **SMALL_WINDOW) as stalled_stub,
    ):
        await ready(service)
        request = pb.StreamOrderBookRequest(**KEY)
        stalled = Stalled(stalled_stub.StreamOrderBook(request))
        await stalled.read(lambda: len(stalled.events) >= 3)
        async with subscribed(stub) as subscriber:
            await subscriber.at(book)
            process_ = psutil.Process()
            used: list[int] = []
            for _ in range(6):
                for _ in range(25):
                    # Small steps, so that the one who reads is never behind the small log.
                    await venue.update_wide(book, 40)
                    await until(
                        lambda: subscriber.book.sequence == book.sequence, "the reader keeps up"
                    )
                used.append(process_.memory_info().rss)
            await subscriber.at(book)
            assert subscriber.book.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED]
            sent = sum(used[-1:]) - used[0]
            assert sent < 12 * 1024 * 1024, f"memory grew by {sent} bytes while a client stalled"
            kept = ClientBook()
            await stalled.read(
                lambda: market_event_pb2.STREAM_STATE_LAGGING in stalled.stream_states()
            )
            await venue.update(book, 1)
            await stalled.read(lambda: _sequence(stalled.events[-1]) == book.sequence)
            lagging = next(
                n
                for n, event in enumerate(stalled.events)
                if event.stream_status.state == market_event_pb2.STREAM_STATE_LAGGING
            )
            assert stalled.events[lagging].stream_status.dropped_events > 1000
            snapshot = stalled.events[lagging + 1].order_book_snapshot
            assert snapshot.reason == S.SNAPSHOT_REASON_CONFLATED
            kept.take(stalled.events[lagging:])
            assert kept.best() == book.best()
            assert service.market.tally.dropped > 1000
        stalled.call.cancel()


async def test_a_trade_reader_who_stays_too_slow_is_ended(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    await venue.instrument(Collected())
    log = LogBounds(max_events=100, max_bytes=64 * 1024)
    async with (
        marketdata(nats, tmp_path, trade_log=log) as service,
        client(service, **SMALL_WINDOW) as stub,
    ):
        await ready(service)
        slow = Stalled(stub.StreamTrades(pb.StreamTradesRequest(**KEY)))
        await slow.read(lambda: bool(slow.events))
        error = None
        assert venue.connection is not None
        trades = service.market.trades_of(("binance", "BTC-USDT"))
        for _ in range(40):
            goal = trades.log.end + 3000
            while trades.log.end < goal:
                for _ in range(500):
                    venue.send_trade(trade_count=1 << 40)
                await venue.connection.flush()
                await asyncio.sleep(0.001)
            # Reads something each time, and never enough.
            seen = slow.stream_states().count(market_event_pb2.STREAM_STATE_LAGGING)
            error = await slow.read(
                lambda s=seen: (
                    slow.stream_states().count(market_event_pb2.STREAM_STATE_LAGGING) > s
                    or market_event_pb2.STREAM_STATE_ENDED in slow.stream_states()
                )
            )
            if market_event_pb2.STREAM_STATE_ENDED in slow.stream_states():
                break
        error = error or await slow.read(lambda: False)
        assert error is not None
        assert error.reason == "SLOW_READER"
        assert slow.stream_states().count(market_event_pb2.STREAM_STATE_LAGGING) == 2
        assert slow.events[-1].stream_status.reason == "SLOW_READER"
        trade_count = sum(e.HasField("trade") for e in slow.events)
        dropped = sum(e.stream_status.dropped_events for e in slow.events)
        assert trade_count + dropped <= venue.trade_id


def _sequence(event: market_event_pb2.MarketEvent) -> int:
    return event.order_book_update.sequence or event.order_book_snapshot.sequence


@contextlib.asynccontextmanager
async def process(
    nats: NatsServer, tmp_path: Path
) -> AsyncIterator[tuple[Any, asyncio.subprocess.Process]]:
    """Run marketdata as a process of its own, until it is ready; gives a stub and the process."""
    grpc_port, http_port = free_port(), free_port()
    environment = {
        **os.environ,
        "NATS_URL": nats.url,
        "MARKETPRISM__SERVICES__DATA_DIR": str(tmp_path / "process"),
        "MARKETPRISM__SERVICES__SERVICES": json.dumps(
            {"marketdata": {"grpc_port": grpc_port, "http_port": http_port}}
        ),
        "MARKETPRISM__MARKETDATA__COLLECTOR_SILENCE_SECONDS": "3600",
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.marketdata", env=environment
    )
    try:
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{grpc_port}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            stub = MarketDataServiceStub(channel)  # type: ignore[no-untyped-call]
            request = pb.GetOrderBookStatusRequest(**KEY)
            deadline = time.monotonic() + 20
            while True:
                try:
                    await stub.GetOrderBookStatus(request, wait_for_ready=True, timeout=20)
                    break
                except grpc.aio.AioRpcError as error:
                    if from_rpc_error(error).reason != "STARTING" or time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(0.02)
            yield stub, child
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        await child.wait()


@contextlib.asynccontextmanager
async def trades_of(
    service: MarketDataService, stub: Any, **request: Any
) -> AsyncIterator[tuple[list[market_event_pb2.MarketEvent], list[MarketPrismError]]]:
    """Read a StreamTrades in the background; gives its events and its errors."""
    await ready(service)
    events: list[market_event_pb2.MarketEvent] = []
    errors: list[MarketPrismError] = []
    call = stub.StreamTrades(pb.StreamTradesRequest(**KEY, **request))

    async def read() -> None:
        try:
            async for response in call:
                events.extend(response.events)
        except grpc.aio.AioRpcError as error:
            errors.append(from_rpc_error(error))

    task = asyncio.create_task(read())
    try:
        yield events, errors
    finally:
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_the_example_client_keeps_a_book(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    example = Path(__file__).parents[2] / "examples" / "python" / "keep_book.py"
    async with marketdata(nats, tmp_path) as service:
        await ready(service)
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            str(example),
            *KEY.values(),
            f"--address=127.0.0.1:{service.grpc_port}",
            "--lines=3",
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(example.parents[2] / "gen" / "python")},
        )
        lines: list[str] = []
        assert child.stdout is not None
        while line := await child.stdout.readline():
            lines.append(line.decode())
            await asyncio.sleep(0.11)
            await venue.update(book, 1)
        assert await child.wait() == 0
        assert len(lines) == 3
        assert all(line.startswith("SYNCED") for line in lines)
        assert f"{book.epoch}/" in lines[-1]
        missing = await asyncio.create_subprocess_exec(
            sys.executable,
            str(example),
            "binance",
            "NO-SUCH",
            f"--address=127.0.0.1:{service.grpc_port}",
            stderr=asyncio.subprocess.PIPE,
        )
        _, error = await missing.communicate()
        assert missing.returncode == 1
        assert b"NOT_FOUND: binance has no instrument 'NO-SUCH'" in error
