"""Trades from a real nats-server: streamed, listed, and told of when some are missing."""

import asyncio
from pathlib import Path
from typing import Any

from marketprism.collector.v1 import integrity_event_pb2
from marketprism.market.v1 import (
    common_pb2,
    events_pb2,
    market_event_pb2,
)
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.broker.server import NatsServer
from services.marketdata.settings import LogBounds
from tests.integration.marketdata_tools import (
    KEY,
    SMALL_WINDOW,
    Stalled,
    Venue,
    client,
    marketdata,
    ready,
    trades_of,
)
from tests.integration.nats_tools import until
from tests.unit.marketdata.truth import Collected


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
