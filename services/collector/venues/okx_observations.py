"""What OKX tells beside books and trades: tickers, candles, funding, prices, options...

Follows the channels under "Public data" and "Order book trading, market data" of OKX's v5
documents. A field of a message that is not set here is one that OKX does not tell.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from marketprism.market.v1 import common_pb2, events_pb2

from services.collector.venues.base import InstrumentsChanged, Observation, VenueMessage
from services.collector.venues.okx_common import (
    Time,
    finite,
    is_derivative,
    is_inverse,
    nanoseconds,
    number,
    optional_nanoseconds,
)
from services.collector.venues.okx_market import one_or_several
from services.shared.decimals import canonical_decimal

__all__ = ["CANDLES", "OpenInterest", "observation_decoders", "open_interest"]

CANDLES = {
    "1s": 1, "1m": 60, "3m": 180, "5m": 300, "15m": 900, "30m": 1800,
    "1H": 3600, "2H": 7200, "4H": 14_400,
    "6H": 21_600, "12H": 43_200, "1D": 86_400, "2D": 172_800, "3D": 259_200, "5D": 432_000,
    "1W": 604_800,
    "6Hutc": 21_600, "12Hutc": 43_200, "1Dutc": 86_400, "2Dutc": 172_800, "3Dutc": 259_200,
    "5Dutc": 432_000, "1Wutc": 604_800,
}  # fmt: skip
"""Lengths of candles in seconds, by the end of the channel's name. Those of 6 hours and more begin
by Hong Kong's clock unless they say utc. Months and years have no length, and are left out."""

_T = TypeVar("_T")
_SIDES = {"buy": common_pb2.SIDE_BUY, "sell": common_pb2.SIDE_SELL}
_CLOSING_SIDES = {"long": common_pb2.SIDE_SELL, "short": common_pb2.SIDE_BUY}


class _Push(msgspec.Struct, Generic[_T], gc=False, frozen=True):
    data: Annotated[list[_T], msgspec.Meta(min_length=1)]


class _Argument(msgspec.Struct, gc=False, frozen=True):
    channel: str
    native_symbol: str = msgspec.field(name="instId")


class _Ticker(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="instId")
    time: Time = msgspec.field(name="ts")
    last: str = ""
    last_size: str = msgspec.field(name="lastSz", default="")
    ask: str = msgspec.field(name="askPx", default="")
    ask_size: str = msgspec.field(name="askSz", default="")
    bid: str = msgspec.field(name="bidPx", default="")
    bid_size: str = msgspec.field(name="bidSz", default="")
    open24h: str = ""
    high24h: str = ""
    low24h: str = ""
    volume: str = msgspec.field(name="vol24h", default="")
    currency_volume: str = msgspec.field(name="volCcy24h", default="")


class _Candle(msgspec.Struct, array_like=True, gc=False, frozen=True):
    time: Time
    open: str
    high: str
    low: str
    close: str
    volume: str
    currency_volume: str
    # Recordings of before September 2022 end here.
    quote_volume: str = ""
    confirm: Literal["0", "1"] = "0"


class _CandleFrame(msgspec.Struct, gc=False, frozen=True):
    arg: _Argument
    data: Annotated[list[_Candle], msgspec.Meta(min_length=1)]


class _FundingRate(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    native_symbol: str = msgspec.field(name="instId")
    funding_rate: str
    funding_time: str
    next_funding_rate: str = ""
    next_funding_time: str = ""
    interest_rate: str = ""
    time: str = msgspec.field(name="ts", default="")


class _MarkPrice(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="instId")
    price: str = msgspec.field(name="markPx")
    time: Time = msgspec.field(name="ts")


class _IndexTicker(msgspec.Struct, gc=False, frozen=True):
    index: str = msgspec.field(name="instId")
    price: str = msgspec.field(name="idxPx")
    time: Time = msgspec.field(name="ts")


class OpenInterest(msgspec.Struct, gc=False, frozen=True):
    """Open interest of one instrument, from a stream or an answer."""

    native_symbol: str = msgspec.field(name="instId")
    """Instrument."""
    contracts: str = msgspec.field(name="oi")
    """Contracts outstanding."""
    time: Time = msgspec.field(name="ts")
    """Milliseconds since 1970."""
    base: str = msgspec.field(name="oiCcy", default="")
    """The same in base currency."""
    usd: str = msgspec.field(name="oiUsd", default="")
    """The same in US dollars."""


class _LiquidationDetail(msgspec.Struct, gc=False, frozen=True):
    time: Time = msgspec.field(name="ts")
    side: Literal["buy", "sell", ""] = ""
    position: str = msgspec.field(name="posSide", default="")
    price: str = msgspec.field(name="bkPx", default="")
    size: str = msgspec.field(name="sz", default="")


class _Liquidation(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="instId")
    details: list[_LiquidationDetail]


class _OptionSummary(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="instId")
    time: Time = msgspec.field(name="ts")
    underlying: str = msgspec.field(name="uly", default="")
    delta: str = msgspec.field(name="deltaBS", default="")
    gamma: str = msgspec.field(name="gammaBS", default="")
    vega: str = msgspec.field(name="vegaBS", default="")
    theta: str = msgspec.field(name="thetaBS", default="")
    mark_volatility: str = msgspec.field(name="markVol", default="")
    bid_volatility: str = msgspec.field(name="bidVol", default="")
    ask_volatility: str = msgspec.field(name="askVol", default="")
    forward: str = msgspec.field(name="fwdPx", default="")


class _InstrumentChange(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="instId", default="")
    state: str = ""


def observation_decoders() -> dict[str, Callable[[bytes], VenueMessage]]:
    """Give the decoders of whole frames, by channel. They raise what `DECODE_ERRORS` lists."""
    candles = msgspec.json.Decoder(_CandleFrame).decode
    liquidations = msgspec.json.Decoder(_Push[_Liquidation]).decode
    instruments = msgspec.json.Decoder(_Push[_InstrumentChange]).decode

    def candle(data: bytes) -> VenueMessage:
        frame = candles(data)
        return one_or_several([_candle(frame.arg, each) for each in frame.data])

    def liquidation(data: bytes) -> VenueMessage:
        return one_or_several(list(_liquidations(liquidations(data).data)))

    def instrument(data: bytes) -> VenueMessage:
        changes = [f"{each.native_symbol} {each.state}" for each in instruments(data).data]
        rest = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
        return InstrumentsChanged(", ".join(changes[:5])[:200] + rest)

    return {
        "tickers": _each(_Ticker, _ticker),
        "funding-rate": _each(_FundingRate, _funding_rate),
        "mark-price": _each(_MarkPrice, _mark_price),
        "index-tickers": _each(_IndexTicker, _index_price),
        "open-interest": _each(OpenInterest, open_interest),
        "opt-summary": _each(_OptionSummary, _option_greeks),
        "liquidation-orders": liquidation,
        "instruments": instrument,
        **dict.fromkeys([f"candle{length}" for length in CANDLES], candle),
    }


def _each(row: type[_T], make: Callable[[_T], Observation]) -> Callable[[bytes], VenueMessage]:
    decode = msgspec.json.Decoder(_Push[row]).decode  # type: ignore[valid-type]  # a value here

    def push(data: bytes) -> VenueMessage:
        return one_or_several([make(each) for each in decode(data).data])

    return push


def _stamp(timestamp: Any, time: int) -> None:
    if time:
        timestamp.FromNanoseconds(time)


def _ticker(ticker: _Ticker) -> Observation:
    name = ticker.native_symbol
    contracts: tuple[str, ...] = ()
    base, quote = ticker.volume, ticker.currency_volume
    if is_derivative(name):
        # vol24h counts contracts here, and volCcy24h is in base currency. A number of inverse
        # contracts is a number of US dollars: the quote currency.
        contracts = ("last_quantity", "bid_quantity", "ask_quantity", "quote_volume")
        base, quote = ticker.currency_volume, ticker.volume if is_inverse(name) else ""
    message = events_pb2.Ticker(
        last_price=number(ticker.last),
        last_quantity=number(ticker.last_size),
        open_price=number(ticker.open24h),
        high_price=number(ticker.high24h),
        low_price=number(ticker.low24h),
        base_volume=number(base),
        quote_volume=number(quote),
        bid_price=number(ticker.bid),
        bid_quantity=number(ticker.bid_size),
        ask_price=number(ticker.ask),
        ask_quantity=number(ticker.ask_size),
    )
    _stamp(message.exchange_time, nanoseconds(ticker.time))
    return Observation(common_pb2.EVENT_KIND_TICKER, message, name, contracts=contracts)


def _candle(arg: _Argument, candle: _Candle) -> Observation:
    length = arg.channel.removeprefix("candle")
    seconds = CANDLES.get(length, 0)
    if not seconds:
        raise msgspec.ValidationError(f"a candle of no known length: {arg.channel[:40]!r}")
    base, quote = candle.volume, candle.quote_volume or candle.currency_volume
    if is_derivative(arg.native_symbol):
        base, quote = candle.currency_volume, candle.quote_volume
    message = events_pb2.Candle(
        open_price=canonical_decimal(candle.open),
        high_price=canonical_decimal(candle.high),
        low_price=canonical_decimal(candle.low),
        close_price=canonical_decimal(candle.close),
        base_volume=number(base),
        quote_volume=number(quote),
        closed=candle.confirm == "1",
    )
    opened = nanoseconds(candle.time)
    message.interval.FromSeconds(seconds)
    message.open_time.FromNanoseconds(opened)
    message.close_time.FromNanoseconds(opened + seconds * 1_000_000_000)
    return Observation(common_pb2.EVENT_KIND_CANDLE, message, arg.native_symbol, key=length)


def _funding_rate(funding: _FundingRate) -> Observation:
    message = events_pb2.FundingRate(
        funding_rate=number(funding.funding_rate),
        next_funding_rate=number(funding.next_funding_rate),
        interest_rate=number(funding.interest_rate),
    )
    settled = optional_nanoseconds(funding.funding_time)
    following = optional_nanoseconds(funding.next_funding_time)
    _stamp(message.exchange_time, optional_nanoseconds(funding.time))
    _stamp(message.funding_time, settled)
    _stamp(message.next_funding_time, following)
    if settled and following > settled:
        message.funding_interval.FromNanoseconds(following - settled)
    return Observation(common_pb2.EVENT_KIND_FUNDING_RATE, message, funding.native_symbol)


def _mark_price(mark: _MarkPrice) -> Observation:
    message = events_pb2.MarkPrice(mark_price=canonical_decimal(mark.price))
    _stamp(message.exchange_time, nanoseconds(mark.time))
    return Observation(common_pb2.EVENT_KIND_MARK_PRICE, message, mark.native_symbol)


def _index_price(index: _IndexTicker) -> Observation:
    message = events_pb2.IndexPrice(index_price=canonical_decimal(index.price))
    _stamp(message.exchange_time, nanoseconds(index.time))
    return Observation(common_pb2.EVENT_KIND_INDEX_PRICE, message, symbol=index.index)


def open_interest(interest: OpenInterest) -> Observation:
    """Make the observation. US dollars are told only where prices are in US dollars."""
    name = interest.native_symbol
    # "USD" or "USD_UM": the second part of the name is the quote currency and a variety.
    in_usd = name.partition("-")[2].partition("-")[0].partition("_")[0] == "USD"
    message = events_pb2.OpenInterest(
        open_interest=canonical_decimal(interest.contracts),
        open_interest_base=number(interest.base),
        open_interest_quote=number(interest.usd) if in_usd else "",
    )
    _stamp(message.exchange_time, nanoseconds(interest.time))
    return Observation(
        common_pb2.EVENT_KIND_OPEN_INTEREST, message, name, contracts=("open_interest",)
    )


def _liquidations(liquidations: list[_Liquidation]) -> Iterator[Observation]:
    seen: dict[str, int] = {}
    for liquidation in liquidations:
        name = liquidation.native_symbol
        for detail in liquidation.details:
            side = _SIDES.get(detail.side) or _CLOSING_SIDES.get(
                detail.position, common_pb2.SIDE_UNSPECIFIED
            )
            message = events_pb2.Liquidation(
                side=side,
                price=number(detail.price),
                quantity=number(detail.size),
                # At most one a second of each contract is shown.
                sampled=True,
            )
            _stamp(message.exchange_time, nanoseconds(detail.time))
            # OKX gives them no id; two that are the same in every respect may come in one frame.
            said = f"{detail.time}.{side}.{message.price}.{message.quantity}"
            nth = seen[name + said] = seen.get(name + said, 0) + 1
            yield Observation(
                common_pb2.EVENT_KIND_LIQUIDATION,
                message,
                name,
                contracts=("quantity",) if is_derivative(name) else (),
                event_id=f"{said}.{nth}",
            )


def _option_greeks(summary: _OptionSummary) -> Observation:
    message = events_pb2.OptionGreeks(
        delta=finite(summary.delta),
        gamma=finite(summary.gamma),
        vega=finite(summary.vega),
        theta=finite(summary.theta),
        mark_iv=finite(summary.mark_volatility),
        bid_iv=finite(summary.bid_volatility),
        ask_iv=finite(summary.ask_volatility),
        underlying_price=finite(summary.forward),
        underlying=summary.underlying,
    )
    _stamp(message.exchange_time, nanoseconds(summary.time))
    return Observation(common_pb2.EVENT_KIND_OPTION_GREEKS, message, summary.native_symbol)
