"""Who reads too slowly is told exactly how much was left out."""

import contextlib
from collections.abc import AsyncIterator

import pytest
from marketprism.market.v1 import events_pb2, market_event_pb2, order_book_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.marketdata.market import Market
from services.marketdata.settings import LogBounds, MarketDataSettings, StreamSettings
from services.marketdata.streams import Streams
from tests.unit.marketdata.test_market import Stored, begin
from tests.unit.marketdata.truth import ClientBook, Collected

KEY = {"exchange": "binance", "symbol": "BTC-USDT"}
LAGGING = market_event_pb2.STREAM_STATE_LAGGING


@pytest.fixture
def market() -> Market:
    bounds = LogBounds(max_events=16)
    made = Market(MarketDataSettings(order_book_log=bounds, trade_log=bounds))
    made.catalog.ready = True
    return made


async def read(stream: AsyncIterator[bytes]) -> list[market_event_pb2.MarketEvent]:
    return list(pb.StreamOrderBookResponse.FromString(await anext(stream)).events)


def put_trades(market: Market, first: int, count: int) -> None:
    for number in range(first, first + count):
        trade = events_pb2.Trade(**KEY, trade_id=str(number))
        market.on_trade([Stored("market.trade.binance.BTC-USDT", trade.SerializeToString())])


async def test_trades_that_came_and_that_were_left_out_are_all_there_were(market: Market) -> None:
    put_trades(market, 0, 1)
    streams = Streams(market, StreamSettings())
    async with contextlib.aclosing(
        streams.trades(pb.StreamTradesRequest(**KEY), None)  # type: ignore[type-var]
    ) as stream:
        await read(stream)
        put_trades(market, 1, 40)
        (told,) = await read(stream)
        assert (told.stream_status.state, told.stream_status.dropped_events) == (LAGGING, 24)
        came = [int(event.trade.trade_id) for event in await read(stream)]
        assert came == list(range(25, 41)), "expected the newest, and none of them counted as lost"
    assert market.tally.dropped == 24


async def test_updates_that_came_and_that_were_left_out_are_all_there_were(market: Market) -> None:
    book = Collected()
    begin(market, book)
    streams = Streams(market, StreamSettings())
    client = ClientBook()
    async with contextlib.aclosing(
        streams.order_book(pb.StreamOrderBookRequest(**KEY), None)  # type: ignore[type-var]
    ) as stream:
        client.take(await read(stream))
        for _ in range(40):
            market.on_order_book([Stored(book.subject("order_book_update"), book.update())])
        market.on_order_book([Stored(book.subject("order_book_snapshot"), book.snapshot())])
        for _ in range(5):
            market.on_order_book([Stored(book.subject("order_book_update"), book.update())])
        told, *rest = await read(stream)
        assert told.stream_status.state == LAGGING
        snapshots = [e.order_book_snapshot for e in rest if e.HasField("order_book_snapshot")]
        assert [s.reason for s in snapshots] == [order_book_pb2.SNAPSHOT_REASON_CONFLATED]
        assert told.stream_status.dropped_events == snapshots[0].sequence
        client.take(rest)
        while client.sequence < book.sequence:
            client.take(await read(stream))
    assert client.best() == book.best()
    assert market.tally.dropped == snapshots[0].sequence
