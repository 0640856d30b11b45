"""The fan-out benchmarks send what a collector would, and count only what they could read."""

import time

from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import order_book_pb2

from benchmarks.fanout_events import Updates, symbol, update
from benchmarks.fanout_latency import _Latencies
from services.marketdata.wire import ORDER_BOOK_UPDATE, event_item


def test_quickly_made_updates_are_those_of_the_library() -> None:
    made = Updates(symbol(3), levels=6)
    expected = order_book_pb2.OrderBookUpdate.FromString(update(symbol(3), 0, levels=6))
    for number, make in enumerate([made.next, made.next_now] * 3, 1):
        came = order_book_pb2.OrderBookUpdate.FromString(make())
        assert came.sequence == number
        assert abs(time.time_ns() - came.receive_time.ToNanoseconds()) < 60e9
        for each in ("sequence", "exchange_time", "receive_time"):
            came.ClearField(each)  # type: ignore[arg-type]  # any of its fields
            expected.ClearField(each)  # type: ignore[arg-type]
        assert came == expected


def test_a_latency_is_from_the_stamp_to_the_reading() -> None:
    made = Updates(symbol(0), levels=2)
    message = b"".join(event_item(ORDER_BOOK_UPDATE, made.next_now()) for _ in range(2))
    stamps = [
        event.order_book_update.receive_time.ToNanoseconds()
        for event in pb.StreamMarketDataResponse.FromString(message).events
    ]
    latencies = _Latencies()
    latencies.sample(message, stamps[1] + 5_000_000)
    assert len(latencies.seconds) == 2
    assert latencies.at(0.0) == 5.0
    assert latencies.figures()["samples"] == 2
