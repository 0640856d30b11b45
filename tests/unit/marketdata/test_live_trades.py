"""Trades: the latest by number, and what was missed told until it is over."""

import pytest
from marketprism.collector.v1 import integrity_event_pb2
from marketprism.market.v1 import (
    common_pb2,
    events_pb2,
    market_data_service_pb2,
    market_event_pb2,
)

from services.marketdata.live_trades import BROKER, LiveTrades, concerns_trades, trades_field
from services.marketdata.tally import Tally

I = integrity_event_pb2  # noqa: E741 - as the enum's prefix
OPEN = market_event_pb2.STREAM_STATE_OPEN
INTERRUPTED = market_event_pb2.STREAM_STATE_INTERRUPTED


class Scene:
    def __init__(self) -> None:
        self.now = 1_000
        self.tally = Tally()
        self.live = LiveTrades(
            "binance",
            "BTC-USDT",
            max_events=100,
            max_bytes=100_000,
            recent_limit=10,
            tally=self.tally,
            clock=lambda: self.now,
        )

    def trade(self, number: int, **fields: object) -> events_pb2.Trade:
        trade = events_pb2.Trade(
            exchange="binance", symbol="BTC-USDT", trade_id=str(number), **fields
        )
        trade.receive_time.FromNanoseconds(self.now)
        self.live.on_trade(trade.SerializeToString())
        return trade

    def ledger(self, kind: int, **fields: object) -> None:
        self.live.on_integrity(I.IntegrityEvent(kind=kind, **fields))

    def told(self) -> list[tuple[int, str]]:
        log = self.live.log
        message = market_data_service_pb2.StreamTradesResponse.FromString(
            b"".join(log.items(log.first))
        )
        return [
            (e.stream_status.state, e.stream_status.reason)
            for e in message.events
            if e.HasField("stream_status")
        ]

    def opening(self) -> list[tuple[int, str]]:
        message = market_data_service_pb2.StreamTradesResponse.FromString(
            b"".join(self.live.opening())
        )
        return [(e.stream_status.state, e.stream_status.reason) for e in message.events]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_recent_trades_are_paged_by_number_while_new_ones_come(scene: Scene) -> None:
    trades = [scene.trade(n) for n in range(25)]
    items, place = scene.live.recent(4, None)
    response = market_data_service_pb2.ListRecentTradesResponse.FromString(trades_field(items))
    assert list(response.trades) == trades[24:20:-1]
    scene.trade(25)
    items, place = scene.live.recent(4, place)
    response = market_data_service_pb2.ListRecentTradesResponse.FromString(trades_field(items))
    assert list(response.trades) == trades[20:16:-1], "expected no trade twice and none left out"
    items, place = scene.live.recent(4, place)
    assert (len(items), place) == (1, None), "expected the end where memory ends"
    assert scene.live.recent(4, 0) == ([], None)


def test_the_listed_trades_are_what_protobuf_writes(scene: Scene) -> None:
    trade = scene.trade(1, price="1" * 200)
    items, _ = scene.live.recent(1, None)
    expected = market_data_service_pb2.ListRecentTradesResponse(trades=[trade])
    assert trades_field(items) == expected.SerializeToString()


def test_a_loss_of_a_moment_is_told_with_its_end(scene: Scene) -> None:
    scene.ledger(I.INTEGRITY_KIND_DROPPED, count=7, detail="the buffer was full")
    assert scene.told() == [(INTERRUPTED, "DROPPED"), (OPEN, "DROPPED")]


def test_an_interruption_lasts_until_the_same_connection_is_back(scene: Scene) -> None:
    scene.ledger(I.INTEGRITY_KIND_DISCONNECTED, connection_id="a")
    scene.ledger(I.INTEGRITY_KIND_CONNECTED, connection_id="b")
    assert scene.opening() == [(OPEN, "SUBSCRIBED"), (INTERRUPTED, "VENUE_DISCONNECTED")]
    scene.live.interrupt(BROKER, "BROKER_DISCONNECTED", "gone")
    scene.ledger(I.INTEGRITY_KIND_CONNECTED, connection_id="a")
    assert scene.told()[-1][0] == INTERRUPTED, "expected OPEN only when nothing interrupts"
    scene.ledger(I.INTEGRITY_KIND_GAP)
    assert scene.told()[-1] == (INTERRUPTED, "VENUE_GAP")
    scene.live.resume(BROKER)
    assert scene.told()[-1] == (OPEN, "BROKER_DISCONNECTED")
    assert scene.opening() == [(OPEN, "SUBSCRIBED")]


def test_a_collectors_start_ends_what_its_predecessor_left_open(scene: Scene) -> None:
    scene.ledger(I.INTEGRITY_KIND_DISCONNECTED, connection_id="a")
    scene.ledger(I.INTEGRITY_KIND_COLLECTOR_STOPPED)
    scene.ledger(I.INTEGRITY_KIND_COLLECTOR_STARTED)
    assert scene.told()[-2:] == [(INTERRUPTED, "COLLECTOR_STARTED"), (OPEN, "COLLECTOR_STARTED")]


def test_a_trade_that_was_read_later_shows_that_trades_flow(scene: Scene) -> None:
    scene.ledger(I.INTEGRITY_KIND_DISCONNECTED, connection_id="a")
    scene.trade(1)
    scene.now += 1
    scene.trade(2, backfilled=True)
    assert scene.opening()[-1][0] == INTERRUPTED
    scene.trade(3)
    assert scene.opening() == [(OPEN, "SUBSCRIBED")]
    scene.live.interrupt(BROKER, "BROKER_DISCONNECTED", "gone")
    scene.now += 1
    scene.trade(4)
    assert scene.opening()[-1][0] == INTERRUPTED, "expected the broker's end to be told by itself"


@pytest.mark.parametrize(
    "garbage", [b"\xff", b"", events_pb2.Trade(symbol="X").SerializeToString()]
)
def test_garbage_is_counted_and_told(scene: Scene, garbage: bytes) -> None:
    scene.live.on_trade(garbage)
    assert scene.tally.malformed == 1
    assert scene.told() == [(INTERRUPTED, "MALFORMED_EVENT"), (OPEN, "MALFORMED_EVENT")]
    assert not scene.live.heard_of


def test_only_entries_that_may_mean_trades_concern_them() -> None:
    kinds = common_pb2
    gap, malformed = I.INTEGRITY_KIND_GAP, I.INTEGRITY_KIND_MALFORMED_FRAME
    event = I.IntegrityEvent
    assert concerns_trades(event(kind=gap, event_kind=kinds.EVENT_KIND_TRADE))
    assert concerns_trades(event(kind=gap))
    assert not concerns_trades(event(kind=gap, event_kind=kinds.EVENT_KIND_ORDER_BOOK))
    assert concerns_trades(event(kind=malformed, event_kind=kinds.EVENT_KIND_TRADE))
    assert not concerns_trades(event(kind=malformed))
