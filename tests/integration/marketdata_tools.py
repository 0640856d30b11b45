"""What the tests of marketdata share: who plays the collector, the service, and its clients."""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from marketprism.collector.v1 import collector_service_pb2
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
from services.marketdata.settings import MarketDataSettings
from services.shared.errors import MarketPrismError, from_rpc_error
from services.shared.jetstream import Connection
from services.shared.ports import free_port
from services.shared.settings import MeshSettings, NatsSettings, ServiceSettings
from tests.integration.nats_tools import make_stream, nats_server, until
from tests.unit.marketdata.truth import ClientBook, Collected

S = order_book_pb2
KEY = {"exchange": "binance", "symbol": "BTC-USDT"}
SMALL_WINDOW = {"grpc__http2__lookahead_bytes": 65536, "grpc__http2__bdp_probe": 0}


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


@pytest.fixture(name="nats")
async def nats_fixture(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        await make_streams(server.url)
        yield server


@pytest.fixture(name="venue")
async def venue_fixture(nats: NatsServer) -> AsyncIterator[Venue]:
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


def sequence_of(event: market_event_pb2.MarketEvent) -> int:
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
