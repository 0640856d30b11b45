"""A candle is closed by the next one, and only when all of it was seen."""

from marketprism.market.v1 import common_pb2, events_pb2

from services.collector.candles import CandleCloser
from services.collector.venues.base import Observation

MINUTE = 60


def candle(minute: int, close: str, symbol: str = "X") -> Observation:
    message = events_pb2.Candle(close_price=close)
    message.open_time.FromSeconds(minute * MINUTE)
    message.interval.FromSeconds(MINUTE)
    return Observation(common_pb2.EVENT_KIND_CANDLE, message, native_symbol=symbol, key="60")


def told(closer: CandleCloser, observation: Observation) -> list[tuple[int, str, bool]]:
    return [
        (each.message.open_time.seconds // MINUTE, each.message.close_price, each.message.closed)  # type: ignore[attr-defined]
        for each in closer.observe(observation)
    ]


def test_the_first_candle_of_all_is_never_closed() -> None:
    closer = CandleCloser()
    assert told(closer, candle(1, "10")) == [(1, "10", False)]
    assert told(closer, candle(2, "11")) == [(2, "11", False)], "its beginning was not seen"


def test_a_candle_seen_from_its_beginning_is_closed_by_the_next() -> None:
    closer = CandleCloser()
    for observation in (candle(1, "10"), candle(2, "11"), candle(2, "12")):
        closer.observe(observation)
    assert told(closer, candle(3, "13")) == [(2, "12", True), (3, "13", False)]
    assert told(closer, candle(3, "14")) == [(3, "14", False)]
    assert told(closer, candle(4, "15")) == [(3, "14", True), (4, "15", False)]


def test_what_was_interrupted_or_skipped_is_not_closed() -> None:
    closer = CandleCloser()
    for minute in (1, 2):
        closer.observe(candle(minute, "1"))
    closer.interrupt()
    assert told(closer, candle(3, "2")) == [(3, "2", False)]
    assert told(closer, candle(4, "3")) == [(3, "2", True), (4, "3", False)]
    assert told(closer, candle(6, "4")) == [(6, "4", False)], "a minute is missing"


def test_an_old_candle_changes_nothing() -> None:
    closer = CandleCloser()
    for minute in (1, 2, 3):
        closer.observe(candle(minute, str(minute)))
    assert told(closer, candle(2, "9")) == [(2, "9", False)]
    assert told(closer, candle(4, "4")) == [(3, "3", True), (4, "4", False)]


def test_what_is_published_is_not_what_is_remembered() -> None:
    closer = CandleCloser()
    for minute in (1, 2):
        closer.observe(candle(minute, str(minute)))
    first = candle(3, "3")
    closer.observe(first)
    first.message.symbol = "completed"  # type: ignore[attr-defined]
    (closed, _) = closer.observe(candle(4, "4"))
    assert closed.message.symbol == ""  # type: ignore[attr-defined]


def test_instruments_are_told_apart_and_forgotten() -> None:
    closer = CandleCloser()
    for minute in (1, 2):
        closer.observe(candle(minute, "1", "X"))
        closer.observe(candle(minute, "1", "Y"))
    closer.forget("X")
    assert told(closer, candle(3, "2", "X")) == [(3, "2", False)]
    assert told(closer, candle(3, "2", "Y")) == [(2, "1", True), (3, "2", False)]
