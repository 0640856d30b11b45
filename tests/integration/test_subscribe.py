"""Subscribe and StreamMarketData against a real broker, by generated stubs and by REST."""

import asyncio
import contextlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from marketprism.market.v1 import common_pb2, events_pb2, market_event_pb2, order_book_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.broker.server import NatsServer
from services.gateway.service import GatewayService
from services.marketdata.service import MarketDataService
from services.marketdata.settings import (
    LogBounds,
    MarketDataSettings,
    StreamSettings,
    SubscriptionLimits,
)
from services.shared.errors import MarketPrismError, from_rpc_error
from services.shared.ports import free_port
from services.shared.settings import MeshSettings, NatsSettings, ServiceSettings
from tests.integration.gateway_mesh import gateway_settings
from tests.integration.marketdata_tools import (
    SMALL_WINDOW,
    Venue,
    client,
    make_streams,
    marketdata,
    ready,
    refused,
)
from tests.integration.nats_tools import Relay, nats_server, until
from tests.unit.marketdata.truth import ClientBook, Collected

E = market_event_pb2
S = order_book_pb2
BTC = ("binance", "BTC-USDT")
TRADE = common_pb2.EVENT_KIND_TRADE
BOOK = common_pb2.EVENT_KIND_ORDER_BOOK
TICKER = common_pb2.EVENT_KIND_TICKER


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


class Reader:
    """Reads a stream of either RPC in the background."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.books: dict[tuple[str, str], ClientBook] = defaultdict(ClientBook)
        self.trades: list[str] = []
        self.tickers: list[str] = []
        self.statuses: list[market_event_pb2.StreamStatus] = []
        self.error: MarketPrismError | None = None
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while (response := await self.call.read()) is not grpc.aio.EOF:
                for event in response.events:
                    self._take(event)
            await self.call
        except grpc.aio.AioRpcError as error:
            self.error = from_rpc_error(error)

    def _take(self, event: market_event_pb2.MarketEvent) -> None:
        kind = event.WhichOneof("event")
        if kind == "stream_status":
            self.statuses.append(event.stream_status)
        elif kind == "trade":
            self.trades.append(event.trade.trade_id)
        elif kind == "ticker":
            self.tickers.append(event.ticker.last_price)
        else:
            assert kind is not None
            payload = getattr(event, kind)
            self.books[payload.exchange, payload.symbol].take([event])

    async def told(self, reason: str, count: int = 1) -> market_event_pb2.StreamStatus:
        """Wait for a status, and give the last one of its reason."""
        found: list[market_event_pb2.StreamStatus] = []

        def is_told() -> bool:
            found[:] = [status for status in self.statuses if status.reason == reason]
            return len(found) >= count or self.task.done()

        await until(is_told, f"{reason} is told")
        assert len(found) >= count, f"expected {reason}, got {self.statuses} {self.error}"
        return found[-1]

    async def at(self, *books: Collected) -> None:
        """Wait until the books that are kept are the true ones."""
        for book in books:
            kept = self.books[book.exchange, book.symbol]
            await until(
                lambda kept=kept, book=book: (
                    (kept.epoch, kept.sequence) == (book.epoch, book.sequence)
                ),
                f"the subscriber comes to {book.sequence} of {book.symbol}",
            )
            assert kept.best() == book.best()

    async def stop(self) -> None:
        self.call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@contextlib.asynccontextmanager
async def reading(call: Any) -> AsyncIterator[Reader]:
    reader = Reader(call)
    try:
        yield reader
    finally:
        await reader.stop()


def add(identity: str, *instruments: str, kinds: Any = (TRADE,), **more: Any) -> Any:
    return pb.SubscribeRequest(
        add=pb.Subscription(subscription_id=identity, instruments=instruments, kinds=kinds, **more)
    )


async def tell_ticker(venue: Venue, symbol: str, price: str) -> None:
    event = events_pb2.Ticker(exchange="binance", symbol=symbol, last_price=price)
    await venue.put(f"market.ticker.binance.{symbol}", event.SerializeToString())


async def test_subscriptions_come_and_go_in_one_stream(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    btc, eth = Collected(), Collected(symbol="ETH-USDT")
    await venue.begin(btc)
    await venue.begin(eth)
    await tell_ticker(venue, "BTC-USDT", "1")
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        call = stub.Subscribe()
        async with reading(call) as reader:
            await call.write(add("books", "binance/*-USDT", kinds=[BOOK]))
            await reader.at(btc, eth)
            await call.write(add("rest", "binance/BTC-USDT", kinds=[TRADE, TICKER]))
            assert (await reader.told("ADDED", 2)).subscription_id == "rest"
            await venue.update(btc, 50)
            await venue.update(eth, 20)
            trade = venue.send_trade()
            await reader.at(btc, eth)
            await until(lambda: reader.trades == [trade.trade_id], "the trade comes")
            assert reader.tickers == ["1"], "expected the latest ticker"
            assert reader.statuses[0].state == E.STREAM_STATE_OPEN

            await call.write(pb.SubscribeRequest(remove="books"))
            await reader.told("REMOVED")
            before = reader.books[BTC].sequence
            await venue.update(btc, 5)
            await tell_ticker(venue, "BTC-USDT", "2")
            await until(lambda: reader.tickers == ["1", "2"], "the next ticker comes")
            assert reader.books[BTC].sequence == before, "expected nothing of what was removed"

            sol = Collected(symbol="SOL-USDT")
            await call.write(add("more", "*/SOL-*", kinds=[BOOK]))
            await reader.told("ADDED", 3)
            await venue.begin(sol)
            await reader.at(sol)
            assert (await reader.told("INSTRUMENT_ADDED")).symbol == "SOL-USDT"

            await call.done_writing()
            await venue.update(sol, 10)
            await reader.at(sol)
            assert reader.error is None, "expected a client to be free to stop writing"


async def test_what_is_wrong_with_a_request_is_told_and_ends_nothing(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    await venue.begin(Collected())
    limits = SubscriptionLimits(max_subscriptions=2)
    async with (
        marketdata(nats, tmp_path, subscriptions=limits) as service,
        client(service) as stub,
    ):
        await ready(service)
        call = stub.Subscribe()
        async with reading(call) as reader:
            await call.write(add("good", "binance/BTC-USDT", "binance/NONE"))
            unknown = await reader.told("NO_SUCH_INSTRUMENT")
            assert (unknown.subscription_id, unknown.symbol) == ("good", "NONE")
            wrong = pb.SubscribeRequest()
            wrong.heartbeat_interval.FromMilliseconds(99)
            for request, reason, identity in (
                (add("a", "binance"), "INVALID_PATTERN", "a"),
                (add("b", "*/*", kinds=[77]), "UNKNOWN_KIND", "b"),
                (add("c", "*/*", kinds=[]), "REQUIRED_FIELD_MISSING", "c"),
                (add("", "*/*"), "REQUIRED_FIELD_MISSING", ""),
                (add("d", "*/*", depth=-1), "INVALID_BOOK_OPTIONS", "d"),
                (add("good", "*/*"), "DUPLICATE_SUBSCRIPTION_ID", "good"),
                (pb.SubscribeRequest(remove="e"), "NO_SUCH_SUBSCRIPTION", "e"),
                (pb.SubscribeRequest(), "NO_ACTION", ""),
                (wrong, "INVALID_HEARTBEAT_INTERVAL", ""),
            ):
                count = sum(status.reason == reason for status in reader.statuses) + 1
                await call.write(request)
                told = await reader.told(reason, count)
                assert told.subscription_id == identity
                assert told.state == E.STREAM_STATE_SUBSCRIPTION
                assert told.message.startswith("refused: "), told.message
            await call.write(add("second", "*/*"))
            await reader.told("ADDED", 2)
            await call.write(add("third", "*/*"))
            await reader.told("TOO_MANY_SUBSCRIPTIONS")
            trade = venue.send_trade()
            await until(lambda: reader.trades == [trade.trade_id], "the stream goes on")


async def test_a_request_of_a_single_subscription_is_refused_before_it_begins(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    await venue.begin(Collected())
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)

        async def error_of(**fields: Any) -> MarketPrismError:
            whole = {"instruments": ["*/*"], "kinds": [TRADE], **fields}
            return await refused(stub.StreamMarketData(pb.StreamMarketDataRequest(**whole)).read())

        assert (await error_of(instruments=[])).violations[0].field == "instruments"
        assert (await error_of(instruments=["x"])).violations[0].field == "instruments[0]"
        assert (await error_of(kinds=[1, 0])).violations[0].field == "kinds[1]"
        assert (await error_of(depth=3)).violations[0].field == "depth"
        quick = {"nanos": 99_000_000}
        assert (await error_of(heartbeat_interval=quick)).violations[0].field == (
            "heartbeat_interval"
        )
        error = await error_of(instruments=["binance/BTC-USDT", "binance/BTCUSDT"])
        assert (error.reason, error.metadata["symbol"]) == ("INSTRUMENT_NOT_FOUND", "BTCUSDT")


async def test_heartbeats_come_at_the_chosen_interval_and_the_end_is_told(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    await venue.begin(Collected())
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        call = stub.Subscribe()
        request = pb.StreamMarketDataRequest(instruments=["*/*"], kinds=[TRADE])
        request.heartbeat_interval.FromMilliseconds(100)
        async with reading(call) as empty, reading(stub.StreamMarketData(request)) as single:
            interval = pb.SubscribeRequest()
            interval.heartbeat_interval.FromMilliseconds(100)
            await call.write(interval)
            await empty.told("HEARTBEAT_INTERVAL_SET")
            for reader in (empty, single):
                assert (await reader.told("IDLE", 3)).state == E.STREAM_STATE_HEARTBEAT
            service.request_stop()
            for reader in (empty, single):
                last = await reader.told("SERVER_STOPPING")
                assert last is reader.statuses[-1]
                assert last.state == E.STREAM_STATE_ENDED
                await until(reader.task.done, "the stream ends")
                assert reader.error is not None
                assert reader.error.reason == "SERVER_STOPPING"
                assert reader.error.retry_after == 1.0


async def test_a_restart_is_survived_by_resuming(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    books = [Collected(symbol=f"{base}-USDT") for base in ("ADA", "BTC", "ETH")]
    for book in books:
        await venue.begin(book)
        await venue.update(book, 5)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        call = stub.Subscribe()
        async with reading(call) as first:
            await call.write(add("s", "binance/*", kinds=[BOOK]))
            await first.at(*books)
    for book in books:
        await venue.update(book, 7)
    resumes = [
        pb.InstrumentResume(
            instrument=pb.InstrumentKey(exchange=key[0], symbol=key[1]),
            resume=pb.ResumePoint(epoch=kept.epoch, sequence=kept.sequence),
        )
        for key, kept in first.books.items()
    ]
    resumes[0].resume.epoch -= 1
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        call = stub.Subscribe()
        async with reading(call) as second:
            second.books = first.books
            await call.write(add("s", "binance/*", kinds=[BOOK], resumes=resumes))
            await second.at(*books)
            await second.told("RESUMED", 2)
    reasons = [first.books["binance", book.symbol].snapshots for book in books]
    subscribed, too_old = S.SNAPSHOT_REASON_SUBSCRIBED, S.SNAPSHOT_REASON_RESUME_TOO_OLD
    assert reasons == [[subscribed, too_old], [subscribed], [subscribed]]


async def test_a_broker_that_is_away_is_told_to_all_and_nothing_is_lost(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    await tell_ticker(venue, "BTC-USDT", "1")
    relay = Relay(nats.port)
    async with (
        relay.running(),
        marketdata(nats, tmp_path, url=relay.url) as service,
        client(service) as stub,
    ):
        await ready(service)
        call, states = stub.Subscribe(), stub.Subscribe()
        async with reading(call) as reader, reading(states) as watcher:
            await call.write(add("s", "binance/*", kinds=[BOOK, TRADE, TICKER]))
            await states.write(add("s", "binance/*", kinds=[TICKER]))
            await reader.at(book)
            await until(lambda: watcher.tickers == ["1"], "the ticker comes")
            relay.refuse()
            relay.cut()
            for each in (reader, watcher):
                told = await each.told("BROKER_DISCONNECTED")
                assert told.state == E.STREAM_STATE_INTERRUPTED
            assert reader.books[BTC].state != S.ORDER_BOOK_STATE_SYNCED
            await venue.update(book, 20)
            trade = venue.send_trade()
            await tell_ticker(venue, "BTC-USDT", "2")
            relay.let_through()
            await reader.at(book)
            for each in (reader, watcher):
                assert (await each.told("RESUMED")).state == E.STREAM_STATE_OPEN
            await until(lambda: reader.trades == [trade.trade_id], "the trade comes late")
            await until(lambda: watcher.tickers == ["1", "2"], "the ticker comes late")
            assert reader.books[BTC].snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED]


async def test_books_come_as_they_are_wanted(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        call = stub.Subscribe()
        async with reading(call) as reader:
            mode = pb.ORDER_BOOK_MODE_TOP
            await call.write(add("top", "*/*", kinds=[BOOK], order_book_mode=mode, depth=3))
            await reader.told("ADDED")
            await call.write(add("all", "binance/BTC-USDT", kinds=[BOOK]))
            await reader.told("BOOK_OPTIONS_CONFLICT")
            for _ in range(20):
                await venue.update(book)
            kept = reader.books[BTC]
            await until(lambda: kept.best() == book.best(3), "the best levels are the true ones")
            assert kept.updates == 0, "expected whole tops, and no updates"
            await call.write(pb.SubscribeRequest(remove="top"))
            await reader.told("REMOVED")
            await call.write(add("all", "binance/BTC-USDT", kinds=[BOOK]))
            await reader.at(book)


async def test_one_stalled_client_leaves_the_others_alone(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected(levels=200)
    await venue.begin(book)
    log = LogBounds(max_events=64, max_bytes=256 * 1024)
    async with (
        marketdata(
            nats,
            tmp_path,
            order_book_log=log,
            trade_log=LogBounds(max_events=64),
            stream=StreamSettings(max_message_bytes=32 * 1024, slow_reader_losses=1000),
        ) as service,
        client(service, **SMALL_WINDOW) as stub,
        client(service) as other,
    ):
        await ready(service)
        stalled, call = stub.Subscribe(), other.Subscribe()
        for each in (stalled, call):
            await each.write(add("s", "binance/*", kinds=[BOOK, TRADE]))
        await stalled.read()
        async with reading(call) as reader:
            await reader.at(book)
            dropped = service.market.tally.dropped
            live = service.market.books[BTC]
            for _ in range(60):
                await venue.update_wide(book, 20)
                for _ in range(5):
                    venue.send_trade()
                await reader.at(book)
            assert service.market.tally.dropped == dropped, "expected nobody to lose anything"
            assert live.log.waiting == 1, "expected the stalled one to wait for nothing"
            assert reader.books[BTC].snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED]
            await until(lambda: len(reader.trades) == 300, "every trade comes")
        slow = Reader(stalled)
        # It began in the middle of what it had not read.
        slow.books[BTC] = _Tolerant()
        await slow.at(book)
        await until(lambda: slow.trades[-1:] == reader.trades[-1:], "the last trade comes")
        assert S.SNAPSHOT_REASON_CONFLATED in slow.books[BTC].snapshots
        lagging = [s for s in slow.statuses if s.state == E.STREAM_STATE_LAGGING]
        missing = 300 - len(slow.trades)
        assert missing == sum(s.dropped_events for s in lagging if "TRADE" in s.message)
        assert missing > 0, "expected trades to be left out, and told"
        await slow.stop()


class _Tolerant(ClientBook):
    """A client's book whose first snapshot was read by another."""

    def _on_order_book_update(self, update: order_book_pb2.OrderBookUpdate) -> None:
        if self.has_book:
            super()._on_order_book_update(update)


async def test_the_example_watches_many_books_and_resumes(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    books = [Collected(), Collected(symbol="ETH-USDT")]
    for book in books:
        await venue.begin(book)
    example = Path(__file__).parents[2] / "examples" / "python" / "watch_many.py"
    port = free_port()
    async with marketdata_at(port, nats, tmp_path) as service:
        await ready(service)
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            str(example),
            "binance/*",
            f"--address=127.0.0.1:{port}",
            stdout=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": str(example.parents[2] / "gen" / "python"),
                "PYTHONUNBUFFERED": "1",
            },
        )
        lines = Lines(child)
        await lines.has("2 of 2 books in step, 0 trades\n")
        venue.send_trade()
        await lines.has("2 of 2 books in step, 1 trades\n")
    await lines.has("ENDED        SERVER_STOPPING")
    for book in books:
        await venue.update(book, 5)
    try:
        async with marketdata_at(port, nats, tmp_path) as service:
            await ready(service)
            await lines.has("SUBSCRIPTION RESUMED binance/ETH-USDT")
            await venue.update(books[0], 5)
            await lines.has("2 of 2 books in step, 1 trades\n")
    finally:
        child.terminate()
        await child.wait()


@contextlib.asynccontextmanager
async def marketdata_at(
    port: int, nats: NatsServer, tmp_path: Path
) -> AsyncIterator[MarketDataService]:
    mesh = MeshSettings(
        data_dir=tmp_path / "data",
        nats=NatsSettings(url=nats.url),
        services={"marketdata": ServiceSettings(grpc_port=port)},
        shutdown_grace_seconds=2,
    )
    settings = MarketDataSettings(collector_silence_seconds=3600)
    async with MarketDataService(mesh, settings).running() as service:
        yield service


class Lines:
    """What a child prints, line by line, each looked at once."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def has(self, beginning: str) -> None:
        """Wait for a line that begins so."""
        assert self._child.stdout is not None
        seen = []
        async with asyncio.timeout(20):
            while line := (await self._child.stdout.readline()).decode():
                if line.startswith(beginning):
                    return
                seen.append(line)
        raise AssertionError(f"expected {beginning!r}, got {seen}")


@contextlib.asynccontextmanager
async def gateway(service: MarketDataService, tmp_path: Path) -> AsyncIterator[str]:
    """Run Envoy before marketdata; gives the root of its REST."""
    names = ("gateway", "collector", "marketdata", "storage", "broker")
    base = MeshSettings(
        data_dir=tmp_path / "gateway",
        services={name: ServiceSettings() for name in names},
        shutdown_grace_seconds=1.0,
    )
    settings = gateway_settings({"marketdata": service})
    async with GatewayService(base, settings).running() as running:
        yield f"http://127.0.0.1:{running.ports['all']}"


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_rest_gets_the_same_stream(
    nats: NatsServer, venue: Venue, tmp_path: Path, accept: str
) -> None:
    book = Collected()
    await venue.begin(book)
    async with (
        marketdata(nats, tmp_path) as service,
        gateway(service, tmp_path) as root,
        aiohttp.ClientSession() as http,
    ):
        await ready(service)
        query = "instruments=binance/*&kinds=EVENT_KIND_ORDER_BOOK&kinds=EVENT_KIND_TRADE"
        url = f"{root}/api/v1/stream?{query}&heartbeat_interval=0.2s"

        await until_served(http, root)
        async with http.get(url, headers={"Accept": accept}) as answer:
            assert answer.status == 200
            assert answer.headers["content-type"] == accept
            events: list[dict[str, Any]] = []

            async def next_events(enough: Callable[[], bool]) -> None:
                async with asyncio.timeout(10):
                    while not enough():
                        line = (await answer.content.readline()).decode().strip()
                        assert line or accept == "text/event-stream" or not answer.content.at_eof()
                        if line:
                            events.extend(json.loads(line.removeprefix("data: "))["events"])

            def kinds() -> list[str]:
                return [next(iter(event)) for event in events]

            await next_events(lambda: "order_book_status" in kinds())
            assert kinds()[:4] == [
                "stream_status",
                "stream_status",
                "order_book_snapshot",
                "order_book_status",
            ]
            await venue.update(book, 3)
            trade = venue.send_trade()
            await next_events(lambda: kinds().count("order_book_update") == 3)
            await next_events(lambda: "trade" in kinds())
            assert next(e for e in events if "trade" in e)["trade"]["trade_id"] == trade.trade_id
            await next_events(
                lambda: events[-1].get("stream_status", {}).get("state") == "STREAM_STATE_HEARTBEAT"
            )
            service.request_stop()
            await next_events(
                lambda: events[-1].get("stream_status", {}).get("reason") == "SERVER_STOPPING"
            )


async def test_rest_is_told_what_is_wrong(nats: NatsServer, venue: Venue, tmp_path: Path) -> None:
    await venue.begin(Collected())
    async with (
        marketdata(nats, tmp_path) as service,
        gateway(service, tmp_path) as root,
        aiohttp.ClientSession() as http,
    ):
        await ready(service)
        await until_served(http, root)
        for query, status, code in (
            ("instruments=binance&kinds=EVENT_KIND_TRADE", 400, "INVALID_PATTERN"),
            ("instruments=*/*", 400, "REQUIRED_FIELD_MISSING"),
            ("instruments=binance/X&kinds=1", 404, "INSTRUMENT_NOT_FOUND"),
        ):
            async with http.get(f"{root}/api/v1/stream?{query}") as answer:
                body = await answer.json()
                assert (answer.status, body["success"]) == (status, False), body
                assert code in json.dumps(body), body


async def until_served(http: aiohttp.ClientSession, root: str) -> None:
    async with asyncio.timeout(20):
        while True:
            async with http.get(f"{root}/api/v1/orderbook/binance/BTC-USDT") as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.02)
