"""Services behind the gateway, made for its tests: they answer by the symbol they are asked for."""

# ruff: noqa: N802 - the names of methods are the contracts'

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.api import httpbody_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from marketprism.collector.v1 import collector_service_pb2 as collector_pb2
from marketprism.collector.v1 import collector_service_pb2_grpc as collector_grpc
from marketprism.history.v1 import history_service_pb2 as history_pb2
from marketprism.history.v1 import history_service_pb2_grpc as history_grpc
from marketprism.market.v1 import common_pb2, order_book_pb2
from marketprism.market.v1 import market_data_service_pb2 as market_pb2
from marketprism.market.v1 import market_data_service_pb2_grpc as market_grpc

from services.shared.errors import (
    STATUS_TABLE,
    FieldViolation,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from services.shared.interceptors import current_request_id
from services.shared.service import BaseService
from services.storage.http_cache import mark_immutable

ERRORS = {code.value[0]: error for error, (code, _) in STATUS_TABLE.items()}


class MarketData(BaseService, market_grpc.MarketDataServiceServicer):
    name = "marketdata"
    grpc_services = (market_pb2.DESCRIPTOR.services_by_name["MarketDataService"],)

    def __init__(self, *args: Any, instance: str = "one", **more: Any) -> None:
        super().__init__(*args, **more)
        self.instance = instance
        self.calls: Counter[str] = Counter()
        self.open_streams = 0
        self.stream_ended = asyncio.Event()

    def register(self, server: grpc.aio.Server) -> None:
        market_grpc.add_MarketDataServiceServicer_to_server(self, server)

    async def GetOrderBook(
        self, request: market_pb2.GetOrderBookRequest, context: Any
    ) -> market_pb2.GetOrderBookResponse:
        symbol = request.symbol
        self.calls[symbol] += 1
        if request.depth < 0:
            violation = FieldViolation("depth", f"expected 0 to 10000, got {request.depth}")
            raise InvalidArgument("depth is out of range", violations=[violation])
        if symbol == "NONE":
            raise NotFound(
                'no instrument "NONE" at \\ the venue',
                reason="INSTRUMENT_NOT_FOUND",
                metadata={"symbol": symbol},
            )
        if symbol == "SAY":
            said = dict(context.invocation_metadata() or ())["x-say"]
            raise NotFound(bytes.fromhex(said).decode(), reason="SAID")
        if symbol == "SLOW":
            await asyncio.sleep(60)
        if symbol.startswith("CODE-"):
            raise ERRORS[int(symbol.removeprefix("CODE-"))]("as asked", retry_after=1.5)
        if symbol == "FLAKY" and self.calls[symbol] % 2:
            raise Unavailable("only the first time")
        levels = [common_pb2.PriceLevel(price="1.5", quantity="2")] * (request.depth or 1)
        book = order_book_pb2.OrderBookSnapshot(
            exchange=self.instance,
            symbol=symbol,
            epoch=2**60,
            bid_horizon=current_request_id(),
            reason=order_book_pb2.SNAPSHOT_REASON_REQUESTED,
            bids=levels,
        )
        return market_pb2.GetOrderBookResponse(order_book=book)

    async def BatchGetOrderBooks(
        self, request: market_pb2.BatchGetOrderBooksRequest, context: Any
    ) -> market_pb2.BatchGetOrderBooksResponse:
        return market_pb2.BatchGetOrderBooksResponse(
            order_books=[
                market_pb2.GetOrderBookResponse(
                    order_book=order_book_pb2.OrderBookSnapshot(symbol=key.symbol)
                )
                for key in request.instruments
            ]
        )

    async def ListTickers(
        self, request: market_pb2.ListTickersRequest, context: Any
    ) -> market_pb2.ListTickersResponse:
        self.calls[f"tickers of {request.exchange}"] += 1
        return market_pb2.ListTickersResponse()

    async def StreamOrderBook(
        self, request: market_pb2.StreamOrderBookRequest, context: Any
    ) -> AsyncIterator[market_pb2.StreamOrderBookResponse]:
        self.open_streams += 1
        try:
            if request.symbol == "BURST":
                for number in range(64):
                    yield _update(number, levels=4_000)
                return
            number = 0
            while not self.stopping.is_set():
                yield _update(number)
                number += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), 0.05)
        finally:
            self.open_streams -= 1
            self.stream_ended.set()

    async def Subscribe(
        self, requests: AsyncIterator[market_pb2.SubscribeRequest], context: Any
    ) -> AsyncIterator[market_pb2.SubscribeResponse]:
        async for request in requests:
            answer = market_pb2.SubscribeResponse()
            answer.events.add().stream_status.subscription_id = request.add.subscription_id
            yield answer


class RefusingMarketData(market_grpc.MarketDataServiceServicer):
    """A plain servicer: it refuses a stream before the stream begins."""

    async def GetOrderBook(
        self, request: market_pb2.GetOrderBookRequest, context: Any
    ) -> market_pb2.GetOrderBookResponse:
        book = order_book_pb2.OrderBookSnapshot(exchange="refusing", symbol=request.symbol)
        return market_pb2.GetOrderBookResponse(order_book=book)

    async def StreamOrderBook(
        self, request: market_pb2.StreamOrderBookRequest, context: Any
    ) -> AsyncIterator[market_pb2.StreamOrderBookResponse]:
        error = NotFound("no such instrument", reason="INSTRUMENT_NOT_FOUND")
        await context.abort_with_status(rpc_status.to_status(error.to_status()))
        yield market_pb2.StreamOrderBookResponse()


@contextlib.asynccontextmanager
async def refusing_server() -> AsyncIterator[int]:
    """Run `RefusingMarketData` on a bare grpc.aio server; gives its port."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    market_grpc.add_MarketDataServiceServicer_to_server(RefusingMarketData(), server)
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


class Collector(BaseService, collector_grpc.CollectorServiceServicer):
    name = "collector"
    grpc_services = (collector_pb2.DESCRIPTOR.services_by_name["CollectorService"],)

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.resyncs = 0

    def register(self, server: grpc.aio.Server) -> None:
        collector_grpc.add_CollectorServiceServicer_to_server(self, server)

    async def GetStatus(
        self, request: collector_pb2.GetStatusRequest, context: Any
    ) -> collector_pb2.GetStatusResponse:
        return collector_pb2.GetStatusResponse(collector_id="test")

    async def Resync(
        self, request: collector_pb2.ResyncRequest, context: Any
    ) -> collector_pb2.ResyncResponse:
        self.resyncs += 1
        raise Unavailable("not now")


class History(BaseService, history_grpc.HistoryServiceServicer):
    name = "storage"
    grpc_services = (history_pb2.DESCRIPTOR.services_by_name["HistoryService"],)

    def register(self, server: grpc.aio.Server) -> None:
        history_grpc.add_HistoryServiceServicer_to_server(self, server)

    async def ListTrades(
        self, request: history_pb2.ListTradesRequest, context: Any
    ) -> history_pb2.ListTradesResponse:
        answer = history_pb2.ListTradesResponse(next_page_token=request.symbol)
        if request.symbol == "SETTLED" and await mark_immutable(
            context, answer.SerializeToString(), max_age=60
        ):
            return history_pb2.ListTradesResponse()
        return answer

    async def ExportEvents(
        self, request: history_pb2.ExportEventsRequest, context: Any
    ) -> AsyncIterator[history_pb2.ExportEventsResponse]:
        for line in (b"price,quantity\n", b"1.5,2\n"):
            body = httpbody_pb2.HttpBody(content_type="text/csv", data=line)
            yield history_pb2.ExportEventsResponse(chunk=body)


def _update(number: int, levels: int = 1) -> market_pb2.StreamOrderBookResponse:
    answer = market_pb2.StreamOrderBookResponse()
    update = answer.events.add().order_book_update
    update.sequence = number
    level = common_pb2.PriceLevel(price="1.5", quantity="2")
    update.bids.extend([level] * levels)
    return answer
