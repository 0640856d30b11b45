"""Every kind beside books and trades, from the broker to a caller of RPCs."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.broker.server import NatsServer
from services.marketdata.live_kinds import INDEX_KINDS, KINDS
from services.shared.errors import NotFound, Unavailable
from tests.integration.marketdata_tools import (
    KEY,
    Venue,
    client,
    marketdata,
    ready,
    refused,
)
from tests.integration.nats_tools import until
from tests.unit.marketdata.truth import Collected

C = common_pb2
INDEX = {"exchange": "binance", "symbol": "BTC-USD"}


async def put(venue: Venue, number: int, key: dict[str, str] = KEY, /, **values: Any) -> bytes:
    payload: bytes = KINDS[number].message(**key, **values).SerializeToString()
    subject = f"market.{KINDS[number].name}.{key['exchange']}.{key['symbol']}"
    await venue.put(subject, payload)
    return payload


async def latest(stub: Any, key: dict[str, str] = KEY, **more: Any) -> list[Any]:
    answer = await stub.GetLatestEvents(pb.GetLatestEventsRequest(**key, **more))
    return list(answer.events)


async def test_what_stands_side_by_side_is_all_there_after_a_start(
    nats: NatsServer,
    venue: Venue,
    tmp_path: Path,
) -> None:
    await venue.instrument(Collected())
    for seconds in (60, 3600, 86_400):
        await put(venue, C.EVENT_KIND_CANDLE, interval=Duration(seconds=seconds), open_price="1")
    for whose in (1, 2, 3):
        await put(venue, C.EVENT_KIND_LONG_SHORT_RATIO, kind=whose)
    await put(venue, C.EVENT_KIND_CANDLE, interval=Duration(seconds=60), open_price="2")
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        events = await latest(stub)
        candles = {
            e.candle.interval.seconds: e.candle.open_price for e in events if e.candle.symbol
        }
        assert candles == {60: "2", 3600: "1", 86_400: "1"}
        ratios = {e.long_short_ratio.kind for e in events if e.HasField("long_short_ratio")}
        assert ratios == {1, 2, 3}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {C.EVENT_KIND_TRADE}))
async def test_the_latest_of_a_kind_is_what_the_collector_encoded(
    nats: NatsServer,
    venue: Venue,
    tmp_path: Path,
    kind: int,
) -> None:
    key = INDEX if kind in INDEX_KINDS else KEY
    await venue.instrument(Collected())
    before = await put(venue, kind, key)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        (event,) = await latest(stub, key, kinds=[kind])
        assert getattr(event, KINDS[kind].name).SerializeToString() == before
        after = await put(venue, kind, key, receive_time={"seconds": 5})
        await until(
            lambda: (
                service.market.latest_payloads(kind, (key["exchange"], key["symbol"])) == [after]
            ),
            "the next one is taken",
        )
        (event,) = await latest(stub, key)
        assert getattr(event, KINDS[kind].name).receive_time.seconds == 5


async def test_tickers_that_have_not_come_are_not_ready_and_indices_have_none(
    nats: NatsServer,
    venue: Venue,
    tmp_path: Path,
) -> None:
    await venue.instrument(Collected())
    await put(venue, C.EVENT_KIND_INDEX_PRICE, INDEX)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        error = await refused(stub.GetTicker(pb.GetTickerRequest(**KEY)))
        assert (type(error), error.reason) == (Unavailable, "TICKER_NOT_READY")
        error = await refused(stub.GetTicker(pb.GetTickerRequest(**INDEX)))
        assert (type(error), error.reason) == (NotFound, "INSTRUMENT_NOT_FOUND")
        await put(venue, C.EVENT_KIND_TICKER, last_price="7")
        await until(lambda: service.market.keys(C.EVENT_KIND_TICKER), "the ticker is taken")
        answer = await stub.GetTicker(pb.GetTickerRequest(**KEY))
        assert answer.ticker.last_price == "7"
        listed = await stub.ListTickers(pb.ListTickersRequest())
        assert [each.last_price for each in listed.tickers] == ["7"]


async def test_streams_that_are_open_are_counted(
    nats: NatsServer,
    venue: Venue,
    tmp_path: Path,
) -> None:
    await venue.begin(Collected())
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        call = stub.StreamOrderBook(pb.StreamOrderBookRequest(**KEY))
        await call.read()
        stats = await stub.GetOrderBookStats(pb.GetOrderBookStatsRequest())
        assert (stats.streams, stats.snapshots) == (1, 1)
        call.cancel()
        await until(lambda: service.market.tally.open_streams() == 0, "the stream is closed")
