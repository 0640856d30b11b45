"""A generated market with what only Binance futures have: trades that are not of the market.

On `@trade` the venue also tells what its insurance fund took over and what was closed by automatic
deleveraging. Those trades use up an id, and belong to no candle, aggregate trade or list of trades.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

from services.simulator.generated import GeneratedMarket
from services.simulator.market import AggregateTrade, Candle, Event, Ticker, Trade
from services.simulator.reference import Liquidation

__all__ = ["EXECUTIONS", "FuturesMarket", "OtherTrade"]

EXECUTIONS = ("INSURANCE_FUND", "ADL", "NA")
"""What stands for `X` in a trade that is not of the market."""

_EVERY = 64
_Spanned = TypeVar("_Spanned", AggregateTrade, Candle, Ticker)


class OtherTrade(NamedTuple):
    """A trade of the venue's own, which is not one of the market."""

    symbol: str
    time_us: int
    trade_id: int
    price: int
    quantity: int
    buyer_is_maker: bool
    execution: str
    """One of `EXECUTIONS`."""


class FuturesMarket(GeneratedMarket):
    """As `GeneratedMarket`; one id in 65 is used up by an `OtherTrade`."""

    def advance(self, until_us: int) -> list[Event]:
        """Play market time up to `until_us` and return the events, other trades among them."""
        told: list[Event] = []
        for event in super().advance(until_us):
            if type(event) is Trade and not event.trade_id % _EVERY:
                told.append(cast("Event", _other(event)))
            told.append(_numbered(event))
        return told

    def recent_trades(self, symbol: str, limit: int) -> list[Trade]:
        """Return the last `limit` trades of the market, oldest first."""
        return [_trade(trade) for trade in super().recent_trades(symbol, limit)]

    def ticker(self, symbol: str) -> Ticker:
        """Return the rolling statistics of the last day."""
        return _spanned(super().ticker(symbol))

    def candles(self, symbol: str, count: int) -> list[Candle]:
        """Return the last `count` one-minute candles, the running one last."""
        return [_spanned(candle) for candle in super().candles(symbol, count)]

    def liquidations(self, symbol: str, limit: int) -> list[Liquidation]:
        """Return the last `limit` liquidations, oldest first."""
        return [_liquidation(known) for known in super().liquidations(symbol, limit)]


def _number(trade_id: int) -> int:
    # Before each id divisible by `_EVERY` one is left out; -1, which is no id, stays what it is.
    return trade_id + trade_id // _EVERY if trade_id >= 0 else trade_id


def _other(trade: Trade) -> OtherTrade:
    number = _number(trade.trade_id) - 1
    return OtherTrade(
        trade.symbol,
        trade.time_us,
        number,
        trade.price,
        trade.quantity,
        trade.buyer_is_maker,
        EXECUTIONS[trade.trade_id // _EVERY % len(EXECUTIONS)],
    )


def _trade(trade: Trade) -> Trade:
    return trade._replace(trade_id=_number(trade.trade_id))


def _spanned(event: _Spanned) -> _Spanned:
    return event._replace(
        first_trade_id=_number(event.first_trade_id), last_trade_id=_number(event.last_trade_id)
    )


def _liquidation(event: Liquidation) -> Liquidation:
    return event._replace(trade_id=_number(event.trade_id))


_RENUMBER: dict[type, Callable[[Any], Event]] = {
    Trade: _trade,
    AggregateTrade: _spanned,
    Candle: _spanned,
    Ticker: _spanned,
    Liquidation: _liquidation,
}


def _numbered(event: Event) -> Event:
    renumber = _RENUMBER.get(type(event))
    return event if renumber is None else renumber(event)
