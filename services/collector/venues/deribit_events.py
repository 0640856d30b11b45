"""What Deribit pushes beside books: trades, tickers, quotes, indexes, candles.

Follows Deribit's documents of the channels `trades`, `ticker`, `quote`, `deribit_price_index`,
`deribit_volatility_index` and `chart.trades` as of 2026, and takes the frames of 2019 as well.
Amounts are already in the unit of the instrument: quote currency for inverse perpetuals and
futures, base currency for everything else.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.market.v1 import common_pb2, instrument_pb2
from marketprism.market.v1 import events_pb2 as pb

from services.collector.venues.base import (
    Observation,
    Several,
    TopOfBook,
    TradePrint,
    VenueMessage,
)
from services.collector.venues.deribit_book import Id, Milliseconds
from services.collector.venues.deribit_names import index_symbol, read_name
from services.collector.venues.deribit_numbers import (
    NULL,
    fraction,
    number,
    optional_number,
    quantity,
)

__all__ = ["CANDLE_SECONDS", "EVENT_DECODERS", "Trade", "trade_print"]

CANDLE_SECONDS = {
    **{str(minutes): minutes * 60 for minutes in (1, 3, 5, 10, 15, 30, 60, 120, 180, 360, 720)},
    "1D": 86_400,
}
"""Lengths of the venue's candles in seconds, by its name of the resolution."""

_FUNDING_PERIOD = Duration(seconds=8 * 3600)
_PERPETUAL = instrument_pb2.INSTRUMENT_KIND_PERPETUAL
_UNKNOWN = instrument_pb2.INSTRUMENT_KIND_UNSPECIFIED
_SPOT = instrument_pb2.INSTRUMENT_KIND_SPOT


class Trade(msgspec.Struct, gc=False, frozen=True):
    """One trade, pushed or asked for."""

    number: Id = msgspec.field(name="trade_seq")
    """Contiguous within the instrument."""
    venue_id: str | int = msgspec.field(name="trade_id")
    """Unique within the currency."""
    time: Milliseconds = msgspec.field(name="timestamp")
    """When it was matched."""
    price: msgspec.Raw
    """Price."""
    amount: msgspec.Raw
    """Amount in the unit of the instrument."""
    native_symbol: str = msgspec.field(name="instrument_name")
    """Instrument."""
    direction: Literal["buy", "sell"]
    """The taker's side."""
    liquidation: Literal["M", "T", "MT", "none", ""] | None = None
    """Whose order was a liquidation: maker, taker, both."""


class _Stats(msgspec.Struct, gc=False, frozen=True):
    high: msgspec.Raw = NULL
    low: msgspec.Raw = NULL
    volume: msgspec.Raw = NULL
    volume_usd: msgspec.Raw = NULL
    volume_notional: msgspec.Raw = NULL
    price_change: msgspec.Raw = NULL


class _Greeks(msgspec.Struct, gc=False, frozen=True):
    delta: msgspec.Raw = NULL
    gamma: msgspec.Raw = NULL
    vega: msgspec.Raw = NULL
    theta: msgspec.Raw = NULL
    rho: msgspec.Raw = NULL


class _Ticker(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="instrument_name")
    time: Milliseconds = msgspec.field(name="timestamp")
    stats: _Stats | None = None
    last_price: msgspec.Raw = NULL
    best_bid_price: msgspec.Raw = NULL
    best_bid_amount: msgspec.Raw = NULL
    best_ask_price: msgspec.Raw = NULL
    best_ask_amount: msgspec.Raw = NULL
    mark_price: msgspec.Raw = NULL
    index_price: msgspec.Raw = NULL
    estimated_delivery_price: msgspec.Raw = NULL
    open_interest: msgspec.Raw = NULL
    current_funding: msgspec.Raw = NULL
    greeks: _Greeks | None = None
    mark_iv: msgspec.Raw = NULL
    bid_iv: msgspec.Raw = NULL
    ask_iv: msgspec.Raw = NULL
    underlying_price: msgspec.Raw = NULL
    underlying_index: str | None = None
    interest_rate: msgspec.Raw = NULL


class _Quote(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="instrument_name")
    time: Milliseconds = msgspec.field(name="timestamp")
    best_bid_price: msgspec.Raw = NULL
    best_bid_amount: msgspec.Raw = NULL
    best_ask_price: msgspec.Raw = NULL
    best_ask_amount: msgspec.Raw = NULL


_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=80)]


class _Index(msgspec.Struct, gc=False, frozen=True):
    time: Milliseconds = msgspec.field(name="timestamp")
    price: msgspec.Raw
    name: _Name = msgspec.field(name="index_name")


class _Volatility(msgspec.Struct, gc=False, frozen=True):
    time: Milliseconds = msgspec.field(name="timestamp")
    volatility: msgspec.Raw
    name: _Name = msgspec.field(name="index_name")


class _Candle(msgspec.Struct, gc=False, frozen=True):
    tick: Milliseconds
    open: msgspec.Raw
    high: msgspec.Raw
    low: msgspec.Raw
    close: msgspec.Raw
    volume: msgspec.Raw
    cost: msgspec.Raw = NULL


_decode_trades = msgspec.json.Decoder(Annotated[list[Trade], msgspec.Meta(min_length=1)]).decode
_decode_ticker = msgspec.json.Decoder(_Ticker).decode
_decode_quote = msgspec.json.Decoder(_Quote).decode
_decode_index = msgspec.json.Decoder(_Index).decode
_decode_volatility = msgspec.json.Decoder(_Volatility).decode
_decode_candle = msgspec.json.Decoder(_Candle).decode


def _timestamp(milliseconds: int) -> Timestamp:
    return Timestamp(seconds=milliseconds // 1000, nanos=milliseconds % 1000 * 1_000_000)


def _one_or_several(messages: list[VenueMessage]) -> VenueMessage:
    return messages[0] if len(messages) == 1 else Several(tuple(messages))


def _level(price: msgspec.Raw, amount: msgspec.Raw) -> tuple[str, str]:
    """Give the best level of a side; Deribit tells a side that is empty with an amount of 0."""
    text = optional_number(amount)
    if not text or text == "0":
        return "", ""
    return optional_number(price), text


# Trades and liquidations


def trade_print(trade: Trade) -> TradePrint:
    """Read a trade. Raises InvalidDecimalError."""
    return TradePrint(
        trade.native_symbol,
        trade.number,
        trade.time * 1_000_000,
        number(trade.price),
        quantity(trade.amount),
        trade.direction == "sell",
        liquidation=bool(trade.liquidation) and trade.liquidation != "none",
        venue_id=str(trade.venue_id),
    )


def _liquidation(trade: Trade, printed: TradePrint, *, of_taker: bool) -> Observation:
    """Tell of the forced order behind a trade: its side is the taker's, or the other.

    A trade can be two of them; the maker's is told apart by its event id.
    """
    buys = (trade.direction == "buy") is of_taker
    message = pb.Liquidation(
        liquidation_id=printed.venue_id,
        exchange_time=_timestamp(trade.time),
        side=common_pb2.SIDE_BUY if buys else common_pb2.SIDE_SELL,
        price=printed.price,
        quantity=printed.quantity,
        average_price=printed.price,
        filled_quantity=printed.quantity,
    )
    return Observation(
        common_pb2.EVENT_KIND_LIQUIDATION,
        message,
        trade.native_symbol,
        event_id=printed.venue_id if of_taker else f"{printed.venue_id}.maker",
    )


def _trades(channel: str, data: msgspec.Raw) -> VenueMessage:
    messages: list[VenueMessage] = []
    for trade in _decode_trades(data):
        printed = trade_print(trade)
        messages.append(printed)
        if printed.liquidation:
            whose = trade.liquidation or ""
            if "T" in whose:
                messages.append(_liquidation(trade, printed, of_taker=True))
            if "M" in whose:
                messages.append(_liquidation(trade, printed, of_taker=False))
    return _one_or_several(messages)


# Tickers


def _ticker(channel: str, data: msgspec.Raw) -> VenueMessage:
    ticker = _decode_ticker(data)
    name = read_name(ticker.native_symbol)
    native = ticker.native_symbol
    time = _timestamp(ticker.time)
    messages: list[VenueMessage] = [
        Observation(
            common_pb2.EVENT_KIND_TICKER,
            _statistics(ticker, time, inverse=name.inverse),
            native,
        )
    ]
    if name.kind == _SPOT:
        return messages[0]
    mark_price = optional_number(ticker.mark_price)
    if mark_price:
        mark = pb.MarkPrice(
            exchange_time=time,
            mark_price=mark_price,
            index_price=optional_number(ticker.index_price),
            estimated_settlement_price=_unless_text(ticker.estimated_delivery_price),
        )
        messages.append(Observation(common_pb2.EVENT_KIND_MARK_PRICE, mark, native))
    open_interest = optional_number(ticker.open_interest)
    if open_interest:
        # Of a combination the name does not tell in which of the two it is counted.
        counted_in_base = name.kind != _UNKNOWN and not name.inverse
        interest = pb.OpenInterest(
            exchange_time=time,
            open_interest=open_interest,
            open_interest_base=open_interest if counted_in_base else "",
            open_interest_quote=open_interest if name.inverse else "",
        )
        messages.append(Observation(common_pb2.EVENT_KIND_OPEN_INTEREST, interest, native))
    funding_rate = optional_number(ticker.current_funding)
    if funding_rate and name.kind == _PERPETUAL:
        # The rate that accrues at this moment, told for eight hours. `funding_8h` is what the last
        # eight hours came to: a past, which the message has no field for.
        funding = pb.FundingRate(
            exchange_time=time, funding_rate=funding_rate, funding_interval=_FUNDING_PERIOD
        )
        messages.append(Observation(common_pb2.EVENT_KIND_FUNDING_RATE, funding, native))
    if ticker.greeks is not None:
        greeks = _greeks(ticker, ticker.greeks, time, mark_price)
        messages.append(Observation(common_pb2.EVENT_KIND_OPTION_GREEKS, greeks, native))
    return Several(tuple(messages))


def _statistics(ticker: _Ticker, time: Timestamp, *, inverse: bool) -> pb.Ticker:
    stats = ticker.stats or _Stats()
    bid = _level(ticker.best_bid_price, ticker.best_bid_amount)
    ask = _level(ticker.best_ask_price, ticker.best_ask_amount)
    quote_volume = optional_number(stats.volume_notional)
    if not quote_volume and inverse:
        quote_volume = optional_number(stats.volume_usd)
    return pb.Ticker(
        exchange_time=time,
        last_price=optional_number(ticker.last_price),
        high_price=optional_number(stats.high),
        low_price=optional_number(stats.low),
        base_volume=optional_number(stats.volume),
        quote_volume=quote_volume,
        price_change_percent=optional_number(stats.price_change),
        bid_price=bid[0],
        bid_quantity=bid[1],
        ask_price=ask[0],
        ask_quantity=ask[1],
    )


def _unless_text(raw: msgspec.Raw) -> str:
    """Give a number; Deribit writes "expired" in its place when there is none any more."""
    if str(raw, "ascii").startswith('"'):
        return ""
    return optional_number(raw)


def _greeks(ticker: _Ticker, greeks: _Greeks, time: Timestamp, mark_price: str) -> pb.OptionGreeks:
    return pb.OptionGreeks(
        exchange_time=time,
        delta=optional_number(greeks.delta),
        gamma=optional_number(greeks.gamma),
        vega=optional_number(greeks.vega),
        theta=optional_number(greeks.theta),
        rho=optional_number(greeks.rho),
        mark_iv=fraction(ticker.mark_iv),
        bid_iv=fraction(ticker.bid_iv),
        ask_iv=fraction(ticker.ask_iv),
        mark_price=mark_price,
        underlying_price=optional_number(ticker.underlying_price),
        underlying=ticker.underlying_index or "",
        interest_rate=optional_number(ticker.interest_rate),
    )


# The rest


def _quote(channel: str, data: msgspec.Raw) -> VenueMessage:
    quote = _decode_quote(data)
    return TopOfBook(
        quote.native_symbol,
        0,
        quote.time * 1_000_000,
        _level(quote.best_bid_price, quote.best_bid_amount),
        _level(quote.best_ask_price, quote.best_ask_amount),
    )


def _price_index(channel: str, data: msgspec.Raw) -> VenueMessage:
    index = _decode_index(data)
    message = pb.IndexPrice(exchange_time=_timestamp(index.time), index_price=number(index.price))
    return Observation(common_pb2.EVENT_KIND_INDEX_PRICE, message, symbol=index_symbol(index.name))


def _volatility_index(channel: str, data: msgspec.Raw) -> VenueMessage:
    index = _decode_volatility(data)
    message = pb.VolatilityIndex(
        exchange_time=_timestamp(index.time), volatility=number(index.volatility)
    )
    return Observation(
        common_pb2.EVENT_KIND_VOLATILITY_INDEX, message, symbol=f"{index_symbol(index.name)}-DVOL"
    )


def _chart(channel: str, data: msgspec.Raw) -> VenueMessage:
    """Read the state of a candle: `chart.trades.{instrument}.{resolution}`.

    The venue says neither when this state held nor whether it is the last one: `closed` stays
    false, and a candle is final when one with a later open_time has come.
    """
    native_symbol, _, resolution = channel.removeprefix("chart.trades.").rpartition(".")
    seconds = CANDLE_SECONDS.get(resolution)
    if seconds is None or not native_symbol:
        raise msgspec.ValidationError(
            f"expected chart.trades.(instrument).(resolution), got {channel[:80]!r}"
        )
    candle = _decode_candle(data)
    message = pb.Candle(
        interval=Duration(seconds=seconds),
        open_time=_timestamp(candle.tick),
        close_time=_timestamp(candle.tick + seconds * 1000),
        open_price=number(candle.open),
        high_price=number(candle.high),
        low_price=number(candle.low),
        close_price=number(candle.close),
        base_volume=quantity(candle.volume),
        quote_volume=optional_number(candle.cost),
    )
    return Observation(common_pb2.EVENT_KIND_CANDLE, message, native_symbol, key=f"{seconds}s")


EVENT_DECODERS: dict[str, Callable[[str, msgspec.Raw], VenueMessage]] = {
    "trades": _trades,
    "ticker": _ticker,
    "quote": _quote,
    "deribit_price_index": _price_index,
    "deribit_volatility_index": _volatility_index,
    "chart": _chart,
}
"""By the first word of a channel: from the channel and its `data` to the message.

They raise msgspec.DecodeError (ValidationError), UnicodeError or InvalidDecimalError.
"""
