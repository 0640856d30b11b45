"""What trades add up to: one-minute candles and the rolling 24-hour ticker of one symbol."""

from collections import deque
from dataclasses import dataclass

from services.simulator.fixed import SCALE
from services.simulator.market import Candle, Trade

__all__ = ["MINUTE_US", "DayStatistics", "MinuteBar"]

MINUTE_US = 60_000_000
"""Microseconds of a candle."""

_DAY_MINUTES = 24 * 60


@dataclass(slots=True)
class MinuteBar:
    """A one-minute candle being made. Volumes in units of 1e-8."""

    open_us: int
    open: int
    high: int
    low: int
    close: int
    first_trade_id: int = -1
    last_trade_id: int = -1
    volume: int = 0
    quote_volume: int = 0
    trades: int = 0
    taker_volume: int = 0
    taker_quote_volume: int = 0

    def add(self, trade: Trade) -> None:
        """Count a trade in."""
        if not self.trades:
            self.first_trade_id = trade.trade_id
            self.open = self.high = self.low = trade.price
        self.last_trade_id = trade.trade_id
        self.close = trade.price
        self.high = max(self.high, trade.price)
        self.low = min(self.low, trade.price)
        value = trade.price * trade.quantity // SCALE
        self.volume += trade.quantity
        self.quote_volume += value
        self.trades += 1
        if not trade.buyer_is_maker:
            self.taker_volume += trade.quantity
            self.taker_quote_volume += value

    def candle(self, symbol: str, time_us: int, *, closed: bool) -> Candle:
        """Return the candle as an event."""
        return Candle(
            symbol,
            time_us,
            self.open_us,
            self.open_us + MINUTE_US - 1,
            self.first_trade_id,
            self.last_trade_id,
            self.open,
            self.close,
            self.high,
            self.low,
            self.volume,
            self.quote_volume,
            self.trades,
            self.taker_volume,
            self.taker_quote_volume,
            closed,
        )


class DayStatistics:
    """The minutes of the last day, and their sums, kept without rescanning them at every trade."""

    __slots__ = ("_bars", "_high", "_low", "bar", "quote_volume", "trades", "volume")

    def __init__(self, time_us: int, price: int) -> None:
        self.bar = _bar(time_us, price)
        self._bars: deque[MinuteBar] = deque()
        self._high, self._low = price, price
        self.volume = 0
        self.quote_volume = 0
        self.trades = 0

    def add(self, trade: Trade) -> None:
        """Count a trade in; its minute must be the current one (see `roll`)."""
        self.bar.add(trade)
        self.volume += trade.quantity
        self.quote_volume += trade.price * trade.quantity // SCALE
        self.trades += 1

    def roll(self, time_us: int) -> MinuteBar | None:
        """Begin the minute of `time_us`; the bar that closed, or None in the same minute."""
        if time_us < self.bar.open_us + MINUTE_US:
            return None
        closed = self.bar
        self._bars.append(closed)
        while len(self._bars) >= _DAY_MINUTES:
            gone = self._bars.popleft()
            self.volume -= gone.volume
            self.quote_volume -= gone.quote_volume
            self.trades -= gone.trades
        self._high = max(bar.high for bar in self._bars)
        self._low = min(bar.low for bar in self._bars)
        self.bar = _bar(time_us, closed.close)
        return closed

    def bars(self, count: int) -> list[MinuteBar]:
        """Return the last `count` minutes, the running one last."""
        older = [self._bars[i] for i in range(max(0, len(self._bars) - count + 1), len(self._bars))]
        return [*older, self.bar]

    @property
    def first_bar(self) -> MinuteBar:
        """The oldest minute of the day."""
        return self._bars[0] if self._bars else self.bar

    @property
    def high(self) -> int:
        """Highest price of the day."""
        return max(self._high, self.bar.high) if self._bars else self.bar.high

    @property
    def low(self) -> int:
        """Lowest price of the day."""
        return min(self._low, self.bar.low) if self._bars else self.bar.low


def _bar(time_us: int, price: int) -> MinuteBar:
    return MinuteBar(time_us - time_us % MINUTE_US, price, price, price, price)
