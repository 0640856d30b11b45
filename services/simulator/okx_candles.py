"""Candles of OKX: intervals of one minute and more, folded from the market's minutes."""

from collections.abc import Mapping, Sequence

from services.simulator.market import Candle, Market

__all__ = ["BARS", "BAR_CHANNELS", "bar_of", "bars"]

_MINUTE_US = 60_000_000
_SHIFT_US = 8 * 60 * _MINUTE_US

BARS: Mapping[str, int] = {
    "1m": 1,
    "3m": 3,
    "5m": 5,
    "15m": 15,
    "30m": 30,
    "1H": 60,
    "2H": 120,
    "4H": 240,
    "6H": 360,
    "12H": 720,
    "1D": 1440,
    "6Hutc": 360,
    "12Hutc": 720,
    "1Dutc": 1440,
}
"""Minutes of an interval by the venue's name of it. From six hours on they begin by Hong Kong's
clock, but for those that say `utc`."""

BAR_CHANNELS: Mapping[str, str] = {f"candle{bar}": bar for bar in BARS}
"""Intervals by channel."""


def bar_of(market: Market, minute: Candle, bar: str) -> Candle:
    """Return the candle of an interval that a minute's candle belongs to, as it stands."""
    minutes = BARS[bar]
    if minutes == 1:
        return minute
    begin = _begin(minute.open_us, bar)
    known = market.candles(minute.symbol, minutes + 1)
    older = [each for each in known if begin <= each.open_us < minute.open_us]
    return _folded([*older, minute], begin, minutes)


def bars(market: Market, symbol: str, bar: str, count: int) -> list[Candle]:
    """Return the last `count` candles as far as the market knows them, the newest first."""
    minutes = BARS[bar]
    groups: dict[int, list[Candle]] = {}
    for candle in market.candles(symbol, minutes * (count + 1)):
        groups.setdefault(_begin(candle.open_us, bar), []).append(candle)
    newest = sorted(groups, reverse=True)[:count]
    return [_folded(groups[begin], begin, minutes) for begin in newest]


def _begin(time_us: int, bar: str) -> int:
    length = BARS[bar] * _MINUTE_US
    shift = _SHIFT_US if BARS[bar] >= 360 and not bar.endswith("utc") else 0
    return time_us - (time_us + shift) % length


def _folded(minutes: Sequence[Candle], begin_us: int, count: int) -> Candle:
    first, last = minutes[0], minutes[-1]
    end_us = begin_us + count * _MINUTE_US
    return last._replace(
        open_us=begin_us,
        close_us=end_us - 1,
        first_trade_id=next((c.first_trade_id for c in minutes if c.trades), -1),
        last_trade_id=next((c.last_trade_id for c in reversed(minutes) if c.trades), -1),
        open=first.open,
        high=max(candle.high for candle in minutes),
        low=min(candle.low for candle in minutes),
        volume=sum(candle.volume for candle in minutes),
        quote_volume=sum(candle.quote_volume for candle in minutes),
        trades=sum(candle.trades for candle in minutes),
        taker_volume=sum(candle.taker_volume for candle in minutes),
        taker_quote_volume=sum(candle.taker_quote_volume for candle in minutes),
        closed=last.closed and last.close_us + 1 == end_us,
    )
