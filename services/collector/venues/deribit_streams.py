"""Which channels of Deribit bring what, and the requests that subscribe to them.

A topic is the name of a channel. Of the intervals that a channel comes in `raw` is for those who
are authenticated; the collector is not, and takes `100ms`.
"""

from collections.abc import Sequence

import msgspec
from marketprism.market.v1 import common_pb2, instrument_pb2

from services.collector.venues.base import (
    InstrumentSpec,
    Selection,
    Subscription,
    VenueRequest,
)
from services.collector.venues.deribit_events import CANDLE_SECONDS
from services.collector.venues.deribit_names import LISTED_KINDS

__all__ = [
    "HEARTBEAT_SECONDS",
    "MOST_CHANNELS",
    "requests",
    "shared_subscriptions",
    "subscriptions",
]

HEARTBEAT_SECONDS = 30
"""How often the venue tells that it is there, and asks whether we are."""

MOST_CHANNELS = 500
"""Channels in a request, and on a connection."""

_BOOK = common_pb2.EVENT_KIND_ORDER_BOOK
_TRADE = common_pb2.EVENT_KIND_TRADE
_LIQUIDATION = common_pb2.EVENT_KIND_LIQUIDATION
_TOP = common_pb2.EVENT_KIND_BEST_BID_OFFER
_TICKER = common_pb2.EVENT_KIND_TICKER
_MARK = common_pb2.EVENT_KIND_MARK_PRICE
_INTEREST = common_pb2.EVENT_KIND_OPEN_INTEREST
_FUNDING = common_pb2.EVENT_KIND_FUNDING_RATE
_GREEKS = common_pb2.EVENT_KIND_OPTION_GREEKS
_CANDLE = common_pb2.EVENT_KIND_CANDLE
_INDEX = common_pb2.EVENT_KIND_INDEX_PRICE
_VOLATILITY = common_pb2.EVENT_KIND_VOLATILITY_INDEX

_PERPETUAL = instrument_pb2.INSTRUMENT_KIND_PERPETUAL
_FUTURE = instrument_pb2.INSTRUMENT_KIND_FUTURE
_OPTION = instrument_pb2.INSTRUMENT_KIND_OPTION

# Seconds of silence that are still normal. A book or quote is silent while nobody changes an order,
# which in a far option is most of the time; a ticker follows its index, which changes each second.
_QUIET_BOOK = {_PERPETUAL: 60.0, _FUTURE: 300.0, _OPTION: 3600.0}
_QUIET_TICKER = {_PERPETUAL: 30.0, _FUTURE: 120.0, _OPTION: 300.0}
_QUIET_SPOT = 900.0
_QUIET_INDEX = 30.0
_QUIET_VOLATILITY = 60.0

# The currencies whose options the venue sums up in a volatility index.
_VOLATILITY_INDEXES = {"BTC": "btc_usd", "ETH": "eth_usd"}
_RESOLUTIONS = {seconds: resolution for resolution, seconds in CANDLE_SECONDS.items()}


def _ticker_kinds(
    kind: "instrument_pb2.InstrumentKind.ValueType",
) -> tuple["common_pb2.EventKind.ValueType", ...]:
    if kind == _PERPETUAL:
        return _TICKER, _MARK, _INTEREST, _FUNDING
    if kind == _FUTURE:
        return _TICKER, _MARK, _INTEREST
    if kind == _OPTION:
        return _TICKER, _MARK, _INTEREST, _GREEKS
    return (_TICKER,)


def subscriptions(spec: InstrumentSpec, selection: Selection) -> list[Subscription]:
    """Give the channels of one instrument that bring what is selected."""
    name = spec.native_symbol
    derivative = spec.kind in _QUIET_BOOK
    quiet = _QUIET_BOOK.get(spec.kind, _QUIET_SPOT)
    trades = (_TRADE, _LIQUIDATION) if derivative else (_TRADE,)
    ticker = _ticker_kinds(spec.kind)
    candidates = [
        Subscription(f"book.{name}.100ms", (_BOOK,), name, quiet_seconds=quiet),
        Subscription(f"trades.{name}.100ms", trades, name),
        Subscription(f"quote.{name}", (_TOP,), name, quiet_seconds=quiet),
        Subscription(
            f"ticker.{name}.100ms",
            ticker,
            name,
            quiet_seconds=_QUIET_TICKER.get(spec.kind, _QUIET_SPOT),
        ),
    ]
    candidates += [
        Subscription(
            f"chart.trades.{name}.{_RESOLUTIONS[seconds]}",
            (_CANDLE,),
            name,
            # An interval without a trade is told as well, when it begins.
            quiet_seconds=2.0 * seconds + 60.0,
        )
        for seconds in selection.candle_intervals
        if seconds in _RESOLUTIONS
    ]
    return [each for each in candidates if not selection.kinds.isdisjoint(each.kinds)]


def shared_subscriptions(
    specs: Sequence[InstrumentSpec], selection: Selection
) -> list[Subscription]:
    """Give the channels of the indexes of these instruments, and of the venue's list of them."""
    found = [Subscription(f"instrument.state.{kind}.any", ()) for kind in LISTED_KINDS]
    if _INDEX in selection.kinds:
        indexes = sorted({spec.underlying for spec in specs if spec.underlying})
        found += [
            Subscription(f"deribit_price_index.{index}", (_INDEX,), quiet_seconds=_QUIET_INDEX)
            for index in indexes
        ]
    if _VOLATILITY in selection.kinds:
        bases = {spec.base for spec in specs}
        found += [
            Subscription(
                f"deribit_volatility_index.{index}",
                (_VOLATILITY,),
                quiet_seconds=_QUIET_VOLATILITY,
            )
            for base, index in _VOLATILITY_INDEXES.items()
            if base in bases
        ]
    return found


def requests(method: str, topics: Sequence[str], first_request_id: int) -> list[VenueRequest]:
    """Make the requests that subscribe to or unsubscribe from these channels."""
    made: list[VenueRequest] = []
    for start in range(0, len(topics), MOST_CHANNELS):
        part = tuple(topics[start : start + MOST_CHANNELS])
        request_id = first_request_id + len(made)
        request = {
            "jsonrpc": "2.0",
            "id": request_id,
            "method": method,
            "params": {"channels": part},
        }
        made.append(VenueRequest(request_id, part, msgspec.json.encode(request).decode()))
    return made
