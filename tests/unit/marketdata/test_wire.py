"""Spliced messages are the very bytes that the protobuf library writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import (
    events_pb2,
    market_data_service_pb2,
    market_event_pb2,
    order_book_pb2,
)

from services.marketdata import wire
from tests.unit.marketdata.truth import Collected

S = order_book_pb2


def response(*events: market_event_pb2.MarketEvent) -> bytes:
    message = market_data_service_pb2.StreamOrderBookResponse(events=events)
    return message.SerializeToString()


@given(st.integers(0, 2**64 - 1))
def test_a_varint_is_what_protobuf_writes(value: int) -> None:
    message = S.OrderBookUpdate(epoch=value).SerializeToString()
    assert b"\x18" + wire.varint(value) == (message or b"\x18\x00")


@pytest.mark.parametrize("size", [0, 1, 100, 119, 120, 124, 125, 127, 128, 16380, 16384, 300_000])
def test_an_item_is_what_protobuf_writes_for_events(size: int) -> None:
    trade = events_pb2.Trade(trade_id="x" * size)
    payload = trade.SerializeToString()
    item = wire.event_item(wire.TRADE, payload)
    assert item == response(market_event_pb2.MarketEvent(trade=trade))
    assert wire.event_payload(item) == payload
    assert wire.event_kind(item) == wire.TRADE


def test_items_of_all_kinds_concatenate_into_one_response() -> None:
    book = Collected()
    snapshot = S.OrderBookSnapshot.FromString(book.rebuild())
    update = S.OrderBookUpdate.FromString(book.update())
    status = S.OrderBookStatus.FromString(book.synced())
    told = market_event_pb2.StreamStatus(
        state=market_event_pb2.STREAM_STATE_LAGGING,
        reason="SLOW_READER",
        message="m",
        dropped_events=7,
        exchange="binance",
        symbol="BTC-USDT",
    )
    told.time.FromNanoseconds(1_700_000_000_123_456_789)
    joined = b"".join(
        (
            wire.event_item(wire.ORDER_BOOK_SNAPSHOT, snapshot.SerializeToString()),
            wire.event_item(wire.ORDER_BOOK_UPDATE, update.SerializeToString()),
            wire.event_item(wire.ORDER_BOOK_STATUS, status.SerializeToString()),
            wire.stream_status_item(
                market_event_pb2.STREAM_STATE_LAGGING,
                now=1_700_000_000_123_456_789,
                reason="SLOW_READER",
                message="m",
                dropped_events=7,
                exchange="binance",
                symbol="BTC-USDT",
            ),
        )
    )
    assert joined == response(
        market_event_pb2.MarketEvent(order_book_snapshot=snapshot),
        market_event_pb2.MarketEvent(order_book_update=update),
        market_event_pb2.MarketEvent(order_book_status=status),
        market_event_pb2.MarketEvent(stream_status=told),
    )
    stream_status = wire.event_item(wire.STREAM_STATUS, told.SerializeToString())
    assert wire.event_kind(stream_status) == wire.STREAM_STATUS
    assert wire.event_payload(stream_status) == told.SerializeToString()


@pytest.mark.parametrize("before", [0, S.SNAPSHOT_REASON_PERIODIC, S.SNAPSHOT_REASON_EPOCH_START])
@pytest.mark.parametrize("levels", [0, 50])
def test_a_snapshots_reason_is_changed_and_nothing_else(before: int, levels: int) -> None:
    book = Collected(levels=levels)
    payload = book.rebuild(before)
    expected = S.OrderBookSnapshot.FromString(payload)
    expected.reason = S.SNAPSHOT_REASON_SUBSCRIBED
    assert wire.with_reason(payload, S.SNAPSHOT_REASON_SUBSCRIBED) == expected.SerializeToString()


def test_a_snapshot_encoded_in_another_order_keeps_each_field_once() -> None:
    expected = S.OrderBookSnapshot(symbol="A", epoch=3, reason=S.SNAPSHOT_REASON_CONFLATED)
    strange = b"\x48\x02" + S.OrderBookSnapshot(symbol="A", epoch=3).SerializeToString()
    changed = wire.with_reason(strange, S.SNAPSHOT_REASON_CONFLATED)
    assert changed == expected.SerializeToString()


@given(st.integers(0, 2**62))
def test_times_keep_every_nanosecond(nanos: int) -> None:
    assert wire.nanoseconds(wire.timestamp(nanos)) == nanos
