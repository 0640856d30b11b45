"""Longer candles, made of the minutes of a market.

Follows "Kline/Candlestick chart intervals" of Binance's documents: weeks begin on Monday,
months on their first day, everything else is counted from the epoch, in UTC.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from services.simulator.market import Candle

__all__ = ["INTERVALS", "fold", "minutes_of", "span_of"]

_MINUTE = 60_000_000
_DAY = 24 * 60 * _MINUTE
_MONDAY = 4 * _DAY  # the epoch was a Thursday

INTERVALS = (
    *("1m", "3m", "5m", "15m", "30m"),
    *("1h", "2h", "4h", "6h", "8h", "12h"),
    *("1d", "3d", "1w", "1M"),
)
"""What the venue has candles of."""

_UNITS = {"m": _MINUTE, "h": 60 * _MINUTE, "d": _DAY, "w": 7 * _DAY}


def span_of(interval: str, time_us: int) -> tuple[int, int]:
    """Return first microsecond and last microsecond of the candle in which that time lies."""
    if interval == "1M":
        now = datetime.fromtimestamp(time_us // 1_000_000, UTC)
        begin = datetime(now.year, now.month, 1, tzinfo=UTC)
        end = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
        return int(begin.timestamp()) * 1_000_000, int(end.timestamp()) * 1_000_000 - 1
    length = int(interval[:-1]) * _UNITS[interval[-1]]
    offset = _MONDAY if interval.endswith("w") else 0
    begin_us = (time_us - offset) // length * length + offset
    return begin_us, begin_us + length - 1


def minutes_of(interval: str) -> int:
    """Return how many minutes such a candle has, 31 days' for a month."""
    if interval == "1M":
        return 31 * _DAY // _MINUTE
    return int(interval[:-1]) * _UNITS[interval[-1]] // _MINUTE


def fold(minutes: Sequence[Candle], interval: str) -> list[Candle]:
    """Return the candles of that interval, oldest first, from those of single minutes.

    The first one begins with the first minute known, so it may tell less than the venue's would.
    """
    if interval == "1m":
        return list(minutes)
    folded: list[Candle] = []
    parts: list[Candle] = []
    end = -1
    for minute in minutes:
        if minute.open_us > end:
            if parts:
                folded.append(_joined(parts, interval))
            parts = []
            end = span_of(interval, minute.open_us)[1]
        parts.append(minute)
    if parts:
        folded.append(_joined(parts, interval))
    return folded


def _joined(minutes: Sequence[Candle], interval: str) -> Candle:
    first, last = minutes[0], minutes[-1]
    begin, end = span_of(interval, first.open_us)
    traded = [minute for minute in minutes if minute.trades]
    return last._replace(
        open_us=begin,
        close_us=end,
        first_trade_id=traded[0].first_trade_id if traded else -1,
        last_trade_id=traded[-1].last_trade_id if traded else -1,
        open=traded[0].open if traded else first.open,
        high=max((minute.high for minute in traded), default=first.high),
        low=min((minute.low for minute in traded), default=first.low),
        volume=sum(minute.volume for minute in minutes),
        quote_volume=sum(minute.quote_volume for minute in minutes),
        trades=sum(minute.trades for minute in minutes),
        taker_volume=sum(minute.taker_volume for minute in minutes),
        taker_quote_volume=sum(minute.taker_quote_volume for minute in minutes),
        closed=last.closed and last.close_us >= end,
    )
