"""Payloads of Binance's streams that spot and futures have alike, and what they are turned into.

Follows Binance's "WebSocket Streams" and "WebSocket Market Streams" documents as of 2026. Where a
payload means something else on COIN-M, which counts contracts, the function takes `inverse`.
"""

from typing import Annotated, TypeAlias

import msgspec
from google.protobuf.duration_pb2 import Duration
from marketprism.market.v1 import common_pb2, events_pb2

from services.collector.venues.base import Observation, TopOfBook, TradePrint
from services.collector.venues.binance_common import Id, Time, nanoseconds, timestamp
from services.shared.decimals import canonical_decimal

__all__ = [
    "AggregateTrade",
    "BookTicker",
    "Kline",
    "Ticker",
    "aggregate_trade",
    "candle",
    "ticker",
    "top_of_book",
]


# A time whose successor is one as well.
_TimeBefore: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999_998)]


class BookTicker(msgspec.Struct, gc=False, frozen=True):
    """The `bookTicker` payload."""

    native_symbol: str = msgspec.field(name="s")
    """Instrument."""
    update_id: Id = msgspec.field(name="u")
    """Order book update id."""
    bid_price: str = msgspec.field(name="b")
    """Best bid."""
    bid_quantity: str = msgspec.field(name="B")
    """Quantity of the best bid."""
    ask_price: str = msgspec.field(name="a")
    """Best ask."""
    ask_quantity: str = msgspec.field(name="A")
    """Quantity of the best ask."""
    event_time: Time = msgspec.field(name="E", default=0)
    """Event time as sent."""


class AggregateTrade(msgspec.Struct, gc=False, frozen=True):
    """The `aggTrade` payload: trades of one order, at one price, folded into one."""

    native_symbol: str = msgspec.field(name="s")
    """Instrument."""
    first_trade_id: Id = msgspec.field(name="f")
    """First trade contained."""
    last_trade_id: Id = msgspec.field(name="l")
    """Last trade contained."""
    price: str = msgspec.field(name="p")
    """Price of all of them."""
    quantity: str = msgspec.field(name="q")
    """Quantity of all of them together."""
    time: Time = msgspec.field(name="T")
    """When they were matched."""
    buyer_is_maker: bool = msgspec.field(name="m")
    """Whether the taker sold."""
    aggregate_id: Id | None = msgspec.field(name="a", default=None)
    """Number of the aggregate; absent from futures frames of 2019."""

    def __post_init__(self) -> None:
        if self.last_trade_id < self.first_trade_id:
            raise ValueError(f"expected f <= l, got {self.first_trade_id} and {self.last_trade_id}")


class Ticker(msgspec.Struct, gc=False, frozen=True):
    """The `24hrTicker` payload. Only spot tells the best bid and ask in it."""

    native_symbol: str = msgspec.field(name="s")
    """Instrument."""
    event_time: Time = msgspec.field(name="E")
    """Event time as sent."""
    price_change: str = msgspec.field(name="p")
    """Last price - open price."""
    price_change_percent: str = msgspec.field(name="P")
    """The same in percent."""
    weighted_average: str = msgspec.field(name="w")
    """Average price, weighted by volume."""
    last_price: str = msgspec.field(name="c")
    """Last price."""
    last_quantity: str = msgspec.field(name="Q")
    """Last quantity."""
    open_price: str = msgspec.field(name="o")
    """Price at the beginning of the window."""
    high_price: str = msgspec.field(name="h")
    """Highest price."""
    low_price: str = msgspec.field(name="l")
    """Lowest price."""
    volume: str = msgspec.field(name="v")
    """Volume in base currency; COIN-M: in contracts."""
    other_volume: str = msgspec.field(name="q")
    """Volume in quote currency; COIN-M: in base currency."""
    open_time: Time = msgspec.field(name="O")
    """Begin of the window."""
    trade_count: Id = msgspec.field(name="n")
    """Trades in the window."""
    bid_price: str = msgspec.field(name="b", default="")
    """Best bid."""
    bid_quantity: str = msgspec.field(name="B", default="")
    """Quantity of the best bid."""
    ask_price: str = msgspec.field(name="a", default="")
    """Best ask."""
    ask_quantity: str = msgspec.field(name="A", default="")
    """Quantity of the best ask."""


class _Interval(msgspec.Struct, gc=False, frozen=True):
    open_time: Time = msgspec.field(name="t")
    last_time: _TimeBefore = msgspec.field(name="T")
    interval: str = msgspec.field(name="i")
    open_price: str = msgspec.field(name="o")
    close_price: str = msgspec.field(name="c")
    high_price: str = msgspec.field(name="h")
    low_price: str = msgspec.field(name="l")
    volume: str = msgspec.field(name="v")
    other_volume: str = msgspec.field(name="q")
    taker_buy_volume: str = msgspec.field(name="V")
    taker_buy_other_volume: str = msgspec.field(name="Q")
    trade_count: Id = msgspec.field(name="n")
    closed: bool = msgspec.field(name="x")

    def __post_init__(self) -> None:
        if self.last_time < self.open_time:
            raise ValueError(f"expected t <= T, got {self.open_time} and {self.last_time}")


class Kline(msgspec.Struct, gc=False, frozen=True):
    """The `kline` payload."""

    native_symbol: str = msgspec.field(name="s")
    """Instrument."""
    event_time: Time = msgspec.field(name="E")
    """Event time as sent."""
    kline: _Interval = msgspec.field(name="k")
    """The candle."""


def top_of_book(data: BookTicker) -> TopOfBook:
    """Give the best bid and offer of a `bookTicker`."""
    bid = (canonical_decimal(data.bid_price), canonical_decimal(data.bid_quantity))
    ask = (canonical_decimal(data.ask_price), canonical_decimal(data.ask_quantity))
    # An empty side comes as price 0, quantity 0.
    return TopOfBook(
        data.native_symbol,
        data.update_id,
        nanoseconds(data.event_time),
        ("", "") if bid[1] == "0" else bid,
        ("", "") if ask[1] == "0" else ask,
    )


def aggregate_trade(data: AggregateTrade) -> TradePrint:
    """Give an `aggTrade` by the number of its last trade, which the stream `trade` has as well."""
    return TradePrint(
        data.native_symbol,
        data.last_trade_id,
        nanoseconds(data.time),
        canonical_decimal(data.price),
        canonical_decimal(data.quantity),
        data.buyer_is_maker,
        trade_count=data.last_trade_id - data.first_trade_id + 1,
        venue_id="" if data.aggregate_id is None else str(data.aggregate_id),
    )


def ticker(data: Ticker, *, inverse: bool = False) -> Observation:
    """Give a `24hrTicker`."""
    bid, bid_quantity = _side(data.bid_price, data.bid_quantity)
    ask, ask_quantity = _side(data.ask_price, data.ask_quantity)
    volume, other_volume = canonical_decimal(data.volume), canonical_decimal(data.other_volume)
    return Observation(
        common_pb2.EVENT_KIND_TICKER,
        events_pb2.Ticker(
            exchange_time=timestamp(nanoseconds(data.event_time)),
            last_price=canonical_decimal(data.last_price),
            last_quantity=canonical_decimal(data.last_quantity),
            open_price=canonical_decimal(data.open_price),
            high_price=canonical_decimal(data.high_price),
            low_price=canonical_decimal(data.low_price),
            base_volume=other_volume if inverse else volume,
            quote_volume=volume if inverse else other_volume,
            price_change=canonical_decimal(data.price_change),
            price_change_percent=canonical_decimal(data.price_change_percent),
            weighted_average_price=canonical_decimal(data.weighted_average),
            bid_price=bid,
            bid_quantity=bid_quantity,
            ask_price=ask,
            ask_quantity=ask_quantity,
            trade_count=data.trade_count,
            open_time=timestamp(nanoseconds(data.open_time)),
        ),
        data.native_symbol,
        contracts=("last_quantity", "quote_volume") if inverse else (),
    )


def candle(data: Kline, *, inverse: bool = False) -> Observation:
    """Give a `kline`; Binance names the last millisecond (or microsecond) in it, we its end."""
    kline = data.kline
    begin = nanoseconds(kline.open_time)
    end = nanoseconds(kline.last_time + 1)
    volume, other = canonical_decimal(kline.volume), canonical_decimal(kline.other_volume)
    bought = canonical_decimal(kline.taker_buy_volume)
    bought_other = canonical_decimal(kline.taker_buy_other_volume)
    return Observation(
        common_pb2.EVENT_KIND_CANDLE,
        events_pb2.Candle(
            interval=Duration(seconds=(end - begin) // 10**9),
            open_time=timestamp(begin),
            exchange_time=timestamp(nanoseconds(data.event_time)),
            close_time=timestamp(end),
            open_price=canonical_decimal(kline.open_price),
            high_price=canonical_decimal(kline.high_price),
            low_price=canonical_decimal(kline.low_price),
            close_price=canonical_decimal(kline.close_price),
            base_volume=other if inverse else volume,
            quote_volume=volume if inverse else other,
            taker_buy_base_volume=bought_other if inverse else bought,
            taker_buy_quote_volume=bought if inverse else bought_other,
            trade_count=kline.trade_count,
            closed=kline.closed,
        ),
        data.native_symbol,
        contracts=("quote_volume", "taker_buy_quote_volume") if inverse else (),
        key=kline.interval,
    )


def _side(price: str, quantity: str) -> tuple[str, str]:
    if not price:
        return "", ""
    side = (canonical_decimal(price), canonical_decimal(quantity))
    return ("", "") if side[1] == "0" else side
