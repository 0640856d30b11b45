"""Binance spot market streams, as the venue writes them.

Follows "WebSocket Streams for Binance" of the Binance spot API documentation.
"""

import re
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from aiohttp import web

from services.simulator.binance_candles import INTERVALS, fold, minutes_of
from services.simulator.binance_requests import answer
from services.simulator.binance_rest import BinanceRest
from services.simulator.connection import Connection, Variant
from services.simulator.fixed import SCALE, eight_decimals
from services.simulator.market import (
    AggregateTrade,
    BestPrices,
    Candle,
    DepthUpdate,
    Event,
    Market,
    RawFrame,
    Ticker,
    Trade,
)
from services.simulator.protocol import BadHandshakeError, VenueProtocol

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["BinanceSpot", "to_microseconds"]

_CACHED = 400_000
_TRADES = ("@trade", "@aggTrade")
_AGGREGATES_KEPT = 20_000
_TIMES = re.compile(rb'"(?:E|T|t|O|C|time|serverTime)":\d{13}(?=[,}])')


def to_microseconds(payload: bytes) -> bytes:
    """Return the payload with its millisecond times in microseconds (`timeUnit=microsecond`)."""
    return _TIMES.sub(rb"\g<0>000", payload)


class _Prices(dict[int, bytes]):
    """`["PRICE","` by units of 1e-8; formatting is the dearest part of a depth frame."""

    def __missing__(self, units: int) -> bytes:
        if len(self) >= _CACHED:
            self.clear()
        text = b'["%d.%08d","' % divmod(units, SCALE)
        self[units] = text
        return text


class _Quantities(dict[int, bytes]):
    """`QUANTITY"]` by units of 1e-8."""

    def __missing__(self, units: int) -> bytes:
        if len(self) >= _CACHED:
            self.clear()
        text = b'%d.%08d"]' % divmod(units, SCALE)
        self[units] = text
        return text


class BinanceSpot(VenueProtocol):
    """Binance spot: combined and raw streams, SUBSCRIBE and its kin, `/api/v3`."""

    name = "binance"
    title = "Binance spot"
    websocket_paths = ("/stream", "/ws", "/ws/{streams:.*}")

    def __init__(self) -> None:
        self._price = _Prices()
        self._quantity = _Quantities()
        self._encoders: dict[type, Callable[[Any], bytes]] = {
            DepthUpdate: self._depth,
            BestPrices: self._best,
            Trade: self._trade,
            AggregateTrade: self._aggregate,
            RawFrame: lambda event: event.payload,
        }
        self.aggregates: dict[str, deque[AggregateTrade]] = {}
        """The newest aggregate trades by symbol, for REST."""
        self._market: Market | None = None

    def addresses(self, venue: "SimulatedVenue") -> list[tuple[str, str]]:
        """REST, combined and raw streams."""
        return [
            ("REST", f"{venue.rest_url}/api/v3"),
            ("combined", f"{venue.ws_url}/stream?streams="),
            ("raw", f"{venue.ws_url}/ws"),
        ]

    def bind(self, venue: "SimulatedVenue") -> None:
        """Serve that venue from now on."""
        self._market = venue.market

    def open(self, request: web.Request) -> tuple[Variant, list[str]]:
        """`/stream?streams=a/b` is combined, `/ws/a` and `/ws` are raw."""
        unit = request.query.get("timeUnit", "millisecond")
        if unit.lower() not in ("millisecond", "microsecond"):
            raise BadHandshakeError(
                '{"code":-1138,"msg":"Invalid timeUnit; expected millisecond or microsecond."}'
            )
        combined = request.path == "/stream"
        if combined:
            named = request.query.get("streams", "")
        else:
            named = unquote(request.match_info.get("streams", ""))
        streams = list(dict.fromkeys(stream for stream in named.split("/") if stream))
        return Variant(combined, unit.lower() == "microsecond"), streams

    def streams_of(self, event: Event) -> Sequence[str]:
        """`btcusdt@depth@100ms` and so on; none for what spot does not tell."""
        if type(event) is RawFrame:
            return (event.stream,)
        if type(event) is DepthUpdate:
            return (_depth_stream(event.symbol, event.interval_ms),)
        if type(event) is AggregateTrade:
            kept = self.aggregates.get(event.symbol)
            if kept is None:
                kept = self.aggregates[event.symbol] = deque(maxlen=_AGGREGATES_KEPT)
            kept.append(event)
        return _streams(event.symbol, _SUFFIXES.get(type(event), ()))

    def symbol_of(self, stream: str) -> str | None:
        """`btcusdt@trade` belongs to BTCUSDT; `!ticker@arr` to none."""
        symbol, at, _ = stream.partition("@")
        return symbol.upper() if at and not symbol.startswith("!") else None

    def is_reference(self, stream: str) -> bool:
        """Spot tells none of it."""
        return False

    def is_depth(self, stream: str) -> bool:
        """Whether it is `@depth` or `@depth@100ms`."""
        return stream.partition("@")[2] in ("depth", "depth@100ms")

    def event_id(self, event: Event) -> int | None:
        """Trade id or aggregate trade id."""
        if type(event) is Trade:
            return event.trade_id
        if type(event) is AggregateTrade:
            return event.aggregate_id
        if type(event) is RawFrame and event.event_id >= 0 and event.stream.endswith(_TRADES):
            return event.event_id
        return None

    def encode(self, event: Event, stream: str = "") -> bytes | None:
        """Return the bare event, fields in the venue's order; None when the stream is not due.

        Without a stream, a candle is one of a minute and a ticker the whole one.
        """
        if type(event) is Candle:
            return self._candle(event, stream.rpartition("_")[2] or "1m")
        if type(event) is Ticker:
            return self._told_ticker(event, stream)
        return self._encoders[type(event)](event)

    def frame(self, event: Event, stream: str, payload: bytes, variant: Hashable) -> bytes:
        """Return the event, wrapped for combined connections; captured frames as they were."""
        wanted = cast("Variant", variant)
        if wanted.combined:
            if type(event) is RawFrame and event.wrapped is not None:
                text = event.wrapped
            else:
                text = b'{"stream":"%b","data":%b}' % (stream.encode(), payload)
        else:
            text = payload
        return to_microseconds(text) if wanted.microseconds else text

    def shutdown_event(self, time_us: int) -> bytes:
        """`serverShutdown`, never wrapped: it belongs to no stream."""
        return b'{"e":"serverShutdown","E":%d}' % (time_us // 1000)

    def rest_routes(self, venue: "SimulatedVenue") -> list[web.RouteDef]:
        """`/api/v3/...`."""
        return BinanceRest(venue, self.aggregates).routes()

    def _depth(self, event: DepthUpdate) -> bytes:
        price, quantity = self._price, self._quantity
        return b'{"e":"depthUpdate","E":%d,"s":"%b","U":%d,"u":%d,"b":[%b],"a":[%b]}' % (
            event.time_us // 1000,
            event.symbol.encode(),
            event.first_id,
            event.last_id,
            b",".join([price[p] + quantity[q] for p, q in event.bids]),
            b",".join([price[p] + quantity[q] for p, q in event.asks]),
        )

    def _best(self, event: BestPrices) -> bytes:
        return (
            f'{{"u":{event.update_id},"s":"{event.symbol}",'
            f'"b":"{eight_decimals(event.bid)}","B":"{eight_decimals(event.bid_quantity)}",'
            f'"a":"{eight_decimals(event.ask)}","A":"{eight_decimals(event.ask_quantity)}"}}'
        ).encode()

    def _trade(self, event: Trade) -> bytes:
        milliseconds = event.time_us // 1000
        return (
            f'{{"e":"trade","E":{milliseconds},"s":"{event.symbol}","t":{event.trade_id},'
            f'"p":"{eight_decimals(event.price)}","q":"{eight_decimals(event.quantity)}",'
            f'"T":{milliseconds},"m":{_boolean(event.buyer_is_maker)},"M":true}}'
        ).encode()

    def _aggregate(self, event: AggregateTrade) -> bytes:
        milliseconds = event.time_us // 1000
        return (
            f'{{"e":"aggTrade","E":{milliseconds},"s":"{event.symbol}","a":{event.aggregate_id},'
            f'"p":"{eight_decimals(event.price)}","q":"{eight_decimals(event.quantity)}",'
            f'"f":{event.first_trade_id},"l":{event.last_trade_id},"T":{milliseconds},'
            f'"m":{_boolean(event.buyer_is_maker)},"M":true}}'
        ).encode()

    def _candle(self, event: Candle, interval: str) -> bytes:
        # One that has expired since may have events on the way.
        if interval != "1m" and self._market is not None and event.symbol in self._market.symbols:
            minutes = self._market.candles(event.symbol, minutes_of(interval) + 1)
            known = [minute for minute in minutes if minute.open_us < event.open_us]
            event = fold([*known, event], interval)[-1]
        return (
            f'{{"e":"kline","E":{event.time_us // 1000},"s":"{event.symbol}",'
            f'"k":{{"t":{event.open_us // 1000},"T":{event.close_us // 1000},'
            f'"s":"{event.symbol}","i":"{interval}","f":{event.first_trade_id},'
            f'"L":{event.last_trade_id},'
            f'"o":"{eight_decimals(event.open)}","c":"{eight_decimals(event.close)}",'
            f'"h":"{eight_decimals(event.high)}","l":"{eight_decimals(event.low)}",'
            f'"v":"{eight_decimals(event.volume)}","n":{event.trades},'
            f'"x":{_boolean(event.closed)},"q":"{eight_decimals(event.quote_volume)}",'
            f'"V":"{eight_decimals(event.taker_volume)}",'
            f'"Q":"{eight_decimals(event.taker_quote_volume)}","B":"0"}}}}'
        ).encode()

    def _told_ticker(self, event: Ticker, stream: str) -> bytes | None:
        write = self._mini_ticker if "mini" in stream else self._ticker
        if not stream.startswith("!") or self._market is None:
            return write(event)
        # What tells of all symbols is sent when it is the first one's turn.
        symbols = list(self._market.symbols)
        if not symbols or event.symbol != symbols[0]:
            return None
        return b"[%b]" % b",".join([write(self._market.ticker(symbol)) for symbol in symbols])

    def _mini_ticker(self, event: Ticker) -> bytes:
        return (
            f'{{"e":"24hrMiniTicker","E":{event.time_us // 1000},"s":"{event.symbol}",'
            f'"c":"{eight_decimals(event.last)}","o":"{eight_decimals(event.open)}",'
            f'"h":"{eight_decimals(event.high)}","l":"{eight_decimals(event.low)}",'
            f'"v":"{eight_decimals(event.volume)}","q":"{eight_decimals(event.quote_volume)}"}}'
        ).encode()

    def _ticker(self, event: Ticker) -> bytes:
        change = event.last - event.open
        average = event.quote_volume * SCALE // event.volume if event.volume else 0
        return (
            f'{{"e":"24hrTicker","E":{event.time_us // 1000},"s":"{event.symbol}",'
            f'"p":"{eight_decimals(change)}","P":"{change / event.open * 100:.3f}",'
            f'"w":"{eight_decimals(average)}","x":"{eight_decimals(event.previous_close)}",'
            f'"c":"{eight_decimals(event.last)}","Q":"{eight_decimals(event.last_quantity)}",'
            f'"b":"{eight_decimals(event.bid)}","B":"{eight_decimals(event.bid_quantity)}",'
            f'"a":"{eight_decimals(event.ask)}","A":"{eight_decimals(event.ask_quantity)}",'
            f'"o":"{eight_decimals(event.open)}","h":"{eight_decimals(event.high)}",'
            f'"l":"{eight_decimals(event.low)}","v":"{eight_decimals(event.volume)}",'
            f'"q":"{eight_decimals(event.quote_volume)}","O":{event.open_us // 1000},'
            f'"C":{event.time_us // 1000},"F":{event.first_trade_id},"L":{event.last_trade_id},'
            f'"n":{event.trades}}}'
        ).encode()

    def request(
        self, venue: "SimulatedVenue", connection: Connection, text: str
    ) -> tuple[bytes, ...]:
        """SUBSCRIBE, UNSUBSCRIBE, LIST_SUBSCRIPTIONS, SET_PROPERTY and GET_PROPERTY."""

        def subscribe(stream: str) -> None:
            venue.subscribe(connection, stream)

        return (answer(venue, connection, text, subscribe),)


_SUFFIXES: Mapping[type, tuple[str, ...]] = {
    BestPrices: ("@bookTicker",),
    Trade: ("@trade",),
    AggregateTrade: ("@aggTrade",),
    Candle: tuple(f"@kline_{interval}" for interval in INTERVALS),
    Ticker: ("@ticker", "@miniTicker", "!ticker@arr", "!miniTicker@arr"),
}


@lru_cache(maxsize=100_000)
def _streams(symbol: str, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        suffix if suffix.startswith("!") else symbol.lower() + suffix for suffix in suffixes
    )


@lru_cache(maxsize=100_000)
def _depth_stream(symbol: str, interval_ms: int) -> str:
    return f"{symbol.lower()}@depth@100ms" if interval_ms == 100 else f"{symbol.lower()}@depth"


def _boolean(value: bool) -> str:
    return "true" if value else "false"
